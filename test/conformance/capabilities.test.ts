import { expect } from 'vitest';
import { Cap, type Hypervisor, type Vm, VmType } from '../../src/index.ts';
import { API_VERSION, Hypercall, MemoryAttribute, SyncRegs } from '../../src/uapi/index.ts';
import { typesOf } from '../support/conditions.ts';
import { errnoOf } from '../support/run.ts';
import { conformance } from '../support/suite.ts';

/** api.rst says of each that it is informational and that KVM_ENABLE_CAP refuses it. */
const informational = [
  'USER_MEMORY2',
  'MEMORY_FAULT_INFO',
  'MEMORY_ATTRIBUTES',
  'GUEST_MEMFD',
  'VM_TYPES',
  'PRE_FAULT_MEMORY',
] as const;

const UNKNOWN_CAP = 0xffff;
const MAX_VM_TYPE = 31;

const createsType = (hv: Hypervisor, type: number) => errnoOf(() => hv.createVm({ type }).close());

function onNewVm<T>(hv: Hypervisor, type: number, use: (vm: Vm) => T): T {
  using vm = hv.createVm({ type });
  return use(vm);
}

conformance('capabilities', ({ it, needs }) => {
  it('the API version is 12', (hv) => {
    expect(hv.getApiVersion()).toBe(API_VERSION);
  });

  it('an unknown capability is 0 at both scopes, and cannot be enabled', (hv) => {
    using vm = hv.createVm();
    expect([hv.checkExtension(UNKNOWN_CAP), vm.checkExtension(UNKNOWN_CAP)]).toEqual([0, 0]);
    expect(errnoOf(() => vm.enableCap({ cap: UNKNOWN_CAP }))).toBe('EINVAL');
  });

  for (const name of informational) {
    it(`KVM_ENABLE_CAP of ${name} gives EINVAL on a VM and on a vCPU: it is informational only`, (hv) => {
      using vm = hv.createVm();
      using vcpu = vm.createVcpu();
      expect(errnoOf(() => vm.enableCap({ cap: Cap[name] }))).toBe('EINVAL');
      expect(errnoOf(() => vcpu.enableCap({ cap: Cap[name] }))).toBe('EINVAL');
    });
  }

  it('KVM_ENABLE_CAP with flags gives EINVAL', (hv) => {
    using vm = hv.createVm();
    const cap = { cap: Cap.EXIT_HYPERCALL, args: [1 << Hypercall.MAP_GPA_RANGE] };
    expect(errnoOf(() => vm.enableCap({ ...cap, flags: 1 }))).toBe('EINVAL');
  });

  it('KVM_CAP_EXIT_HYPERCALL takes the bits that it reports, and no other', (hv) => {
    using vm = hv.createVm();
    const reported = vm.checkExtension(Cap.EXIT_HYPERCALL);
    for (let bit = 0; bit < 64; bit++) {
      const args = [1n << BigInt(bit)];
      const known = bit < 32 && (reported & (1 << bit)) !== 0;
      expect
        .soft(
          errnoOf(() => vm.enableCap({ cap: Cap.EXIT_HYPERCALL, args })),
          `bit ${bit}`,
        )
        .toBe(known ? 'ok' : 'EINVAL');
    }
  });

  needs('memory-fault-info')('KVM_CAP_MEMORY_FAULT_INFO is present at both scopes', (hv) => {
    expect(hv.checkExtension(Cap.MEMORY_FAULT_INFO)).toBe(1);
    expect(onNewVm(hv, VmType.DEFAULT, (vm) => vm.checkExtension(Cap.MEMORY_FAULT_INFO))).toBe(1);
  });

  it('KVM_CREATE_VM makes exactly the types of KVM_CAP_VM_TYPES, and the default type always', (hv) => {
    const types = hv.checkExtension(Cap.VM_TYPES) | (1 << VmType.DEFAULT);
    for (let type = 0; type <= MAX_VM_TYPE; type++) {
      const there = (types & (1 << type)) !== 0;
      expect.soft(createsType(hv, type), `type ${type}`).toBe(there ? 'ok' : 'EINVAL');
    }
    expect(createsType(hv, MAX_VM_TYPE + 1)).toBe('EINVAL');
  });

  needs('private-memory')('KVM_CAP_MEMORY_ATTRIBUTES tells at VM scope what this VM can do', (hv) => {
    expect(hv.checkExtension(Cap.MEMORY_ATTRIBUTES)).toBe(MemoryAttribute.PRIVATE);
    const at = (type: number) => onNewVm(hv, type, (vm) => vm.checkExtension(Cap.MEMORY_ATTRIBUTES));
    expect(at(VmType.DEFAULT)).toBe(0);
    expect(at(VmType.SW_PROTECTED)).toBe(MemoryAttribute.PRIVATE);
  });

  needs('guest-memfd')('KVM_CAP_GUEST_MEMFD tells at VM scope whether this VM can bind one', (hv) => {
    expect(hv.checkExtension(Cap.GUEST_MEMFD)).toBe(1);
    for (const type of typesOf(hv).filter((type) => type <= VmType.SW_PROTECTED)) {
      using vm = hv.createVm({ type });
      using ram = vm.allocate(4096);
      using secret = vm.createGuestMemfd(4096);
      const bind = () =>
        vm.setUserMemoryRegion2({ slot: 0, guestPhysAddr: 0, memory: ram, guestMemfd: secret });
      expect(errnoOf(bind), `VM type ${type}`).toBe(vm.checkExtension(Cap.GUEST_MEMFD) ? 'ok' : 'EINVAL');
    }
  });

  // sync_regs_test: the set is open at the top, so the highest bit stands for "not yet".
  needs('sync-regs')('KVM_CAP_SYNC_REGS has REGS, SREGS and EVENTS, and not bit 31', (hv) => {
    const all = SyncRegs.REGS | SyncRegs.SREGS | SyncRegs.EVENTS;
    const sets = hv.checkExtension(Cap.SYNC_REGS);
    expect(sets & all).toBe(all);
    expect(sets & (1 << 31)).toBe(0);
  });

  it('KVM_CAP_NR_MEMSLOTS is above 0', (hv) => {
    expect(hv.checkExtension(Cap.NR_MEMSLOTS)).toBeGreaterThan(0);
  });

  needs('private-memory')('a VM with private memory has one address space', (hv) => {
    const spaces = onNewVm(hv, VmType.SW_PROTECTED, (vm) => vm.checkExtension(Cap.MULTI_ADDRESS_SPACE));
    expect(spaces).toBe(1);
  });
});
