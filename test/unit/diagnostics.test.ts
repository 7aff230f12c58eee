/** Seeing what happens: ioctls and exits on diagnostics channels and in NODE_DEBUG, and objects in a terminal. */
import { subscribe, unsubscribe } from 'node:diagnostics_channel';
import { inspect } from 'node:util';
import { describe, expect, it } from 'vitest';
import { describeArgument } from '../../src/diagnostics.ts';
import {
  Exit,
  type ExitMessage,
  enterRealMode,
  type IoctlMessage,
  Machine,
  openHypervisor,
} from '../../src/index.ts';
import { Program } from '../support/program.ts';

const OUT_THEN_HLT = Uint8Array.of(0xb0, 0x2a, 0xe6, 0x10, 0xf4); // mov al, 42; out 0x10, al; hlt

/** What is told while `use` is at work. */
function told(use: () => void): { ioctls: IoctlMessage[]; exits: ExitMessage[] } {
  const ioctls: IoctlMessage[] = [];
  const exits: ExitMessage[] = [];
  const onIoctl = (message: unknown) => ioctls.push(message as IoctlMessage);
  const onExit = (message: unknown) => exits.push(message as ExitMessage);
  subscribe('vmexit:ioctl', onIoctl);
  subscribe('vmexit:exit', onExit);
  try {
    use();
  } finally {
    unsubscribe('vmexit:ioctl', onIoctl);
    unsubscribe('vmexit:exit', onExit);
  }
  return { ioctls, exits };
}

function machine() {
  const hv = openHypervisor({ backend: 'sim' });
  const vm = hv.createVm();
  const ram = vm.allocate(0x1_0000);
  vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memory: ram });
  ram.write(0x1000, OUT_THEN_HLT);
  const vcpu = vm.createVcpu();
  enterRealMode(vcpu);
  vcpu.setRegs({ rip: 0x1000, rflags: 2 });
  return { hv, vm, ram, vcpu };
}

describe('the diagnostics channels', () => {
  it('tell of each ioctl with what it was given, whoever subscribed when, and of each exit', () => {
    const { vm, vcpu } = machine();
    const { ioctls, exits } = told(() => {
      vm.setUserMemoryRegion({ slot: 1, guestPhysAddr: 0x10_0000, memory: vm.allocate(4096) });
      vcpu.getMsrs([0x10]);
      vcpu.run(5000);
      vm.createVcpu(1);
    });
    expect(ioctls).toMatchObject([
      { name: 'KVM_SET_USER_MEMORY_REGION', on: 'VM', result: 0 },
      { name: 'KVM_GET_MSRS', on: 'vCPU 0', argument: [{ index: 0x10 }], result: 1 },
      { name: 'KVM_CREATE_VCPU', on: 'VM', argument: 1, result: 0 },
    ]);
    expect(ioctls[0]!.argument).toMatchObject({ slot: 1, guestPhysAddr: 0x10_0000, memorySize: 4096 });
    expect(exits).toMatchObject([{ vcpu: 0, exit: { reason: 'IO', port: 0x10, outcome: Exit.IO } }]);
    for (const { us } of [...ioctls, ...exits]) expect(us).toBeGreaterThanOrEqual(0);
  });

  it('tell of an ioctl that failed, with its errno, and of none once nobody listens', () => {
    const { vm } = machine();
    const { ioctls } = told(() => expect(() => vm.createVcpu(0)).toThrow('EEXIST'));
    expect(ioctls).toMatchObject([{ name: 'KVM_CREATE_VCPU', result: -17 }]);
    vm.createVcpu(2);
    expect(ioctls).toHaveLength(1);
  });

  it('let a listener make ioctls of its own', () => {
    const { vcpu } = machine();
    const seen: bigint[] = [];
    const onExit = () => seen.push(vcpu.getRegs().rax & 0xffn);
    subscribe('vmexit:exit', onExit);
    vcpu.run(5000);
    unsubscribe('vmexit:exit', onExit);
    expect(seen).toEqual([42n]);
  });
});

it('NODE_DEBUG=vmexit writes a line for each ioctl and exit to standard error, and nothing without it', async () => {
  const script = `
    import { openHypervisor, Machine, flatImage } from './dist/index.js';
    const machine = new Machine(openHypervisor({ backend: 'sim' }), { memory: 0x10_0000 });
    machine.load(flatImage(Uint8Array.of(${OUT_THEN_HLT}), 'real'));
    machine.vcpu.run(5000);`;
  const run = (NODE_DEBUG: string) =>
    new Program(['--input-type=module', '-e', script], { env: { ...process.env, NODE_DEBUG } }).end;
  const [debugged, quiet] = await Promise.all([run('vmexit'), run('')]);
  expect(quiet).toMatchObject({ status: 0, stderr: '' });
  expect(debugged.status).toBe(0);
  expect(debugged.stderr).toMatch(
    /^VMEXIT \d+: VM KVM_SET_USER_MEMORY_REGION\(\{ slot: 0, flags: 0, .*memorySize: 0x100000.* \}\) = 0 \(\d+ us\)$/m,
  );
  expect(debugged.stderr).toMatch(
    /^VMEXIT \d+: vCPU 0 KVM_RUN = IO: I\/O out: 1 byte to port 0x10, .* \(\d+ us\)$/m,
  );
});

it('an argument is shown without its padding, and long ones are cut', () => {
  expect(describeArgument({ cap: 7, args: [1n, 0x2000n], pad: new Uint8Array(64) })).toBe(
    '{ cap: 7, args: [1, 0x2000] }',
  );
  expect(describeArgument(new Uint8Array(4096))).toBe('4096 bytes of 0');
  expect(describeArgument(new Uint8Array(20).fill(1))).toBe(`${'01'.repeat(16)}... 20 bytes`);
  expect(describeArgument(Array(20).fill(3))).toBe('[3, 3, 3, 3, 3, 3, 3, 3, ... 20 in all]');
  expect(describeArgument(undefined)).toBe('');
});

describe('in a terminal', () => {
  it('a VM shows its slots and its private memory', () => {
    const hv = openHypervisor({ backend: 'sim' });
    const vm = hv.createVm({ type: 1 });
    expect(inspect(vm)).toBe('Vm { type: SW_PROTECTED, slots: [] }');
    vm.setUserMemoryRegion2({
      slot: 3,
      guestPhysAddr: 0x10_0000,
      memory: vm.allocate(0x1_0000),
      guestMemfd: vm.createGuestMemfd(0x1_0000),
    });
    vm.setMemoryAttributes({ address: 0x10_1000, size: 0x2000, attributes: 8 });
    expect(inspect(vm, { breakLength: 200 })).toBe(
      'Vm { type: SW_PROTECTED, slots: [ 3: [0x100000, +0x10000) 64 KiB, GUEST_MEMFD ], private: [ [0x101000, +0x2000) ] }',
    );
    vm.close();
    expect(inspect(vm)).toBe('Vm { closed }');
    expect(inspect({ vm: { vm: { vm: { vm } } } })).toContain('[Object]');
    expect(inspect(hv)).toBe("Hypervisor { backend: 'sim' }");
  });

  it('a vCPU shows its last exit as a sentence, and so does the exit', () => {
    const { vcpu } = machine();
    expect(inspect(vcpu)).toBe('Vcpu { id: 0, exit: none }');
    vcpu.run(5000);
    const sentence = 'I/O out: 1 byte to port 0x10, data at kvm_run+0x1000';
    expect(inspect(vcpu, { breakLength: 200 })).toBe(`Vcpu { id: 0, exit: IO: ${sentence} }`);
    expect(inspect(vcpu.exit)).toBe(`IO { ${sentence} }`);
    vcpu.close();
    expect(inspect(vcpu)).toBe('Vcpu { id: 0, closed }');
  });

  it('memory shows its size and makes no view of its bytes', () => {
    const { vm, ram } = machine();
    expect(inspect(ram)).toBe('GuestMemory { size: 64 KiB }');
    expect(inspect(vm.createGuestMemfd(2 ** 21))).toBe('GuestMemfd { size: 2 MiB, flags: 0 }');
    ram.close();
    expect(inspect(ram)).toBe('GuestMemory { size: 64 KiB, closed: true }');
    expect(inspect(new Machine(openHypervisor({ backend: 'sim' }), { memory: 0x10_0000 }))).toContain(
      'GuestMemory { size: 1 MiB }',
    );
  });
});
