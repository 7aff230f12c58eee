/** Devices in the kernel, and attributes by name (api.rst, KVM_CREATE_DEVICE, KVM_SET_DEVICE_ATTR). */
import { describe, expect } from 'vitest';
import {
  DeviceType,
  type Hypervisor,
  type KvmDevice,
  SystemAttr,
  VcpuTscAttr,
  VfioAttr,
} from '../../src/index.ts';
import { guest } from '../../src/vmm/guest.ts';
import { Agent } from '../support/agent.ts';
import { on, onKvm } from '../support/host.ts';
import { errnoOf } from '../support/run.ts';

const rdtsc = guest(
  64,
  `
 0f 31       | rdtsc
 48 c1 e2 20 | shl rdx, 32
 48 09 d0    | or rax, rdx
 c3          | ret
`,
);

const OFFSET = { group: VcpuTscAttr.CTRL, attr: VcpuTscAttr.OFFSET };
const ADD = { group: VfioAttr.FILE, attr: VfioAttr.FILE_ADD };
const DEL = { group: VfioAttr.FILE, attr: VfioAttr.FILE_DEL };
const GUEST_XCR0 = { group: SystemAttr.GRP_SYSTEM, attr: SystemAttr.XCOMP_GUEST_SUPP };
/** A group that none has. */
const NONE = { group: 77, attr: 0 };

/** The components of XSAVE in CPUID leaf 0xd, which a guest can be shown. */
function xcr0Of(hv: Hypervisor): bigint {
  const leaf = hv.getSupportedCpuid().find((entry) => entry.function === 0xd && entry.index === 0);
  return leaf === undefined ? 0n : (BigInt(leaf.edx) << 32n) | BigInt(leaf.eax);
}

describe('devices and attributes (kvm)', () => {
  const it = onKvm;

  // Without it guests read the host's own counter.
  on('kvm', 'hardware-virtualization')(
    'KVM_VCPU_TSC_OFFSET is added to what the guest reads by RDTSC, of this vCPU and no other',
    (hv) => {
      using agent = Agent.boot(hv);
      using other = agent.vm.createVcpu(1);
      const read = () => {
        agent.beginCode(rdtsc);
        return agent.answer;
      };
      expect(agent.vcpu.hasDeviceAttr(OFFSET)).toBe(true);
      const [offset, others] = [agent.vcpu.getDeviceAttr(OFFSET), other.getDeviceAttr(OFFSET)];
      const before = read();
      const more = 1n << 50n;
      agent.vcpu.setDeviceAttr(OFFSET, BigInt.asUintN(64, offset + more));
      expect(agent.vcpu.getDeviceAttr(OFFSET)).toBe(BigInt.asUintN(64, offset + more));
      const passed = read() - before;
      expect(passed).toBeGreaterThan(more);
      expect(passed).toBeLessThan(more + (1n << 48n));
      expect(other.getDeviceAttr(OFFSET)).toBe(others);
    },
  );

  it('a vCPU has no other attributes, and says so', (hv) => {
    using agent = Agent.boot(hv);
    expect(agent.vcpu.hasDeviceAttr(NONE)).toBe(false);
    expect(errnoOf(() => agent.vcpu.getDeviceAttr(NONE))).toBe('ENXIO');
    expect(errnoOf(() => agent.vcpu.setDeviceAttr(NONE, 1))).toBe('ENXIO');
  });

  it('KVM_X86_XCOMP_GUEST_SUPP has every XSAVE component that CPUID offers guests', (hv) => {
    expect(hv.hasDeviceAttr(GUEST_XCR0)).toBe(true);
    const offered = xcr0Of(hv);
    expect(hv.getDeviceAttr(GUEST_XCR0) & offered).toBe(offered);
    expect(hv.hasDeviceAttr(NONE)).toBe(false);
    expect(errnoOf(() => hv.getDeviceAttr(NONE))).toBe('ENXIO');
  });

  it('attributes of /dev/kvm cannot be set, and VMs have none', (hv) => {
    using vm = hv.createVm();
    expect(errnoOf(() => hv.setDeviceAttr(GUEST_XCR0, 1))).not.toBe('ok');
    for (const call of [
      () => vm.hasDeviceAttr(NONE),
      () => vm.getDeviceAttr(NONE),
      () => vm.setDeviceAttr(NONE, 1),
    ])
      expect(errnoOf(call)).toBe('ENOTTY');
  });

  /** On a VM of its own: there is one of them in each. */
  const withVfio = (hv: Hypervisor, use: (device: KvmDevice) => void) => {
    using vm = hv.createVm();
    using device = vm.createDevice(DeviceType.VFIO);
    use(device);
  };

  it('KVM_CREATE_DEVICE_TEST tells which devices there are, and makes none', (hv) => {
    using vm = hv.createVm();
    expect(vm.hasDevice(999)).toBe(false);
    expect(errnoOf(() => vm.createDevice(999))).toBe('ENODEV');
    expect(vm.hasDevice(DeviceType.VFIO)).toBe(true);
    using device = vm.createDevice(DeviceType.VFIO);
    expect(device.type).toBe(DeviceType.VFIO);
    expect(errnoOf(() => vm.createDevice(DeviceType.VFIO))).toBe('EBUSY');
  });

  it('a VFIO device reads the file descriptor that an attribute is given, and refuses one that is no VFIO file', (hv) => {
    withVfio(hv, (device) => {
      expect(device.hasAttr(ADD)).toBe(true);
      expect(device.hasAttr(NONE)).toBe(false);
      const give = (fd: number) => device.setAttr(ADD, new Uint8Array(Int32Array.of(fd).buffer));
      expect(errnoOf(() => give(-1))).toBe('EBADF');
      expect(errnoOf(() => give(0))).toBe('EINVAL');
      expect(errnoOf(() => device.setAttr(DEL, new Uint8Array(Int32Array.of(0).buffer)))).toBe('ENOENT');
      expect(errnoOf(() => device.getAttr(ADD, 4))).toBe('EPERM');
    });
  });

  it('a device outlives its VM, and is refused once it is closed', (hv) => {
    const vm = hv.createVm();
    const device = vm.createDevice(DeviceType.VFIO);
    vm.close();
    expect(device.hasAttr(ADD)).toBe(true);
    device.close();
    expect(device.closed).toBe(true);
    expect(() => device.hasAttr(ADD)).toThrow(expect.objectContaining({ code: 'ERR_KVM_CLOSED' }));
  });

  it('names what an attribute cannot be before anything changes', (hv) => {
    withVfio(hv, (device) => {
      const invalid = expect.objectContaining({ code: 'ERR_KVM_INVALID_ARG' });
      expect(() => device.setAttr({ attr: 1n << 64n }, 1)).toThrow(invalid);
      expect(() => device.setAttr({ group: -1, attr: 1 }, 1)).toThrow(invalid);
      expect(() => device.setAttr(ADD, new Uint8Array(65_537))).toThrow(invalid);
      expect(() => device.setAttr(ADD, 'x' as never)).toThrow(invalid);
      expect(() => device.getAttr(ADD, 65_537)).toThrow(invalid);
      expect(() => device.hasAttr(undefined as never)).toThrow(invalid);
    });
  });
});

describe('devices and attributes (sim)', () => {
  on('sim')('there are none', (hv) => {
    using agent = Agent.boot(hv);
    for (const call of [
      () => agent.vm.createDevice(DeviceType.VFIO),
      () => agent.vm.hasDevice(DeviceType.VFIO),
      () => agent.vcpu.hasDeviceAttr(OFFSET),
      () => agent.vcpu.setDeviceAttr(OFFSET, 0),
      () => hv.getDeviceAttr(GUEST_XCR0),
    ])
      expect(errnoOf(call)).toBe('ENOTTY');
  });
});
