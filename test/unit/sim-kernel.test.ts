/** The simulated kernel at the waist: handles, requests and arguments, what lives how long, and state in and out. */
import { describe, expect, it } from 'vitest';
import { type Handle, isHandle, type Reference } from '../../src/hypervisor/backend.ts';
import { Exit, Hypervisor, openHypervisor, type Vcpu, type Vm } from '../../src/index.ts';
import { simulator } from '../../src/open.ts';
import { Errno, ioctls, kvm_userspace_memory_region2, MemFlag, viewOf } from '../../src/uapi/index.ts';
import { enterRealMode } from '../../src/vmm/modes.ts';
import { PAGE } from '../support/area.ts';
import { errnoOf } from '../support/run.ts';

const invalid = expect.objectContaining({ code: 'ERR_KVM_INVALID_ARG' });
const MIB = 2 ** 20;

const made = (result: Handle | number): Handle => {
  if (!isHandle(result)) throw new Error(`a handle was refused: ${result}`);
  return result;
};

function onVcpu(use: (vcpu: Vcpu, vm: Vm) => void): void {
  using hv = openHypervisor({ backend: 'sim' });
  using vm = hv.createVm();
  using vcpu = vm.createVcpu();
  vcpu.setCpuid2(hv.getSupportedCpuid());
  use(vcpu, vm);
}

describe('requests', () => {
  const backend = simulator();
  const system = backend.open();
  const vm = made(backend.create(system, ioctls.KVM_CREATE_VM.request, 0));
  const vcpu = made(backend.create(vm, ioctls.KVM_CREATE_VCPU.request, 0));

  it('that are unknown, or on the wrong kind of handle, give ENOTTY', () => {
    for (const [handle, row] of [
      [system, ioctls.KVM_GET_REGS],
      [vm, ioctls.KVM_GET_REGS],
      [vcpu, ioctls.KVM_SET_MEMORY_ATTRIBUTES],
      [vm, ioctls.KVM_CREATE_IRQCHIP],
      [vcpu, ioctls.KVM_SMI],
    ] as const) {
      expect(backend.ioctl(handle, row.request, new Uint8Array(512)), row.name).toBe(-Errno.ENOTTY);
    }
    expect(backend.ioctl(vm, 0xdead_beef)).toBe(-Errno.ENOTTY);
    expect(backend.create(system, ioctls.KVM_CREATE_VCPU.request, 0)).toBe(-Errno.ENOTTY);
  });

  it('with an argument of another size or type are refused before anything happens', () => {
    const { request, struct } = ioctls.KVM_SET_REGS;
    for (const argument of [undefined, 7, new Uint8Array(struct.size - 1), new Uint8Array(struct.size + 1)]) {
      expect(() => backend.ioctl(vcpu, request, argument)).toThrow(invalid);
    }
    const list = new Uint8Array(ioctls.KVM_SET_CPUID2.struct.size);
    viewOf(list).setUint32(0, 1000, true);
    expect(() => backend.ioctl(vcpu, ioctls.KVM_SET_CPUID2.request, list)).toThrow(invalid);
  });

  it('on what is no handle, or a closed one, are refused', () => {
    const other = made(backend.create(system, ioctls.KVM_CREATE_VM.request, 0));
    backend.close(other);
    backend.close(other);
    expect(() => backend.ioctl(other, 0)).toThrow(expect.objectContaining({ code: 'ERR_KVM_CLOSED' }));
    for (const wrong of [undefined, null, {}, 7, 'vm'] as unknown as Handle[]) {
      expect(() => backend.ioctl(wrong, 0)).toThrow(invalid);
      expect(() => backend.close(wrong)).toThrow(invalid);
    }
    expect(() => backend.runner(vm)).toThrow(invalid);
    expect(() => backend.bytes(vm)).toThrow(invalid);
  });

  it('for a slot need memory of the right kind and size', () => {
    const region = kvm_userspace_memory_region2.encode({ memorySize: 2 * PAGE });
    const { request } = ioctls.KVM_SET_USER_MEMORY_REGION2;
    const memory = made(backend.allocate(PAGE));
    const set = (references: readonly unknown[], bytes = region) =>
      backend.ioctl(vm, request, bytes, references as Reference[]);
    for (const wrong of [
      [{ memory, offset: 0 }],
      [null],
      [],
      [{ memory: vcpu, offset: 0 }],
      [memory],
      [region],
    ])
      expect(() => set(wrong)).toThrow(invalid);
    const half = kvm_userspace_memory_region2.encode({ memorySize: PAGE });
    const place = { memory, offset: 0 };
    for (const offset of [1, -1, 0.5, 2 ** 60])
      expect(() => set([{ memory, offset }], half)).toThrow(invalid);
    expect(() => set([place], half.subarray(1))).toThrow(invalid);
    expect(() => set([place, null, null, null], half)).toThrow(invalid);
    expect(() => set([place, place], half)).toThrow(invalid);
    expect(() => backend.ioctl(vm, ioctls.KVM_SET_TSS_ADDR.request, 0, [null])).toThrow(invalid);
    const reserved = made(backend.reserve(PAGE));
    for (const bitmap of [vcpu, reserved])
      expect(() => set([place, null, { memory: bitmap, offset: 0 }], half)).toThrow(invalid);
    expect(set([place], half)).toBe(0);
    backend.close(memory);
  });

  it('to run take a time above 0', () => {
    const run = backend.runner(vcpu);
    for (const time of [0, -1, Number.NaN, 2 ** 31, 'soon' as unknown as number]) {
      expect(() => run(time)).toThrow(invalid);
    }
  });
});

describe('lifetimes', () => {
  it('a thousand rounds of opening, running and closing use no more than the first', () => {
    const code = Uint8Array.of(0xa2, 0x00, 0x80, 0xf4); // mov [0x8000], al; hlt
    for (let round = 0; round < 1000; round++) {
      using hv = openHypervisor({ backend: 'sim' });
      using vm = hv.createVm({ type: 1 });
      // Together more than there is: 8 GiB of 4.
      using memory = vm.allocate(4 * MIB);
      using secret = vm.createGuestMemfd(4 * MIB);
      vm.setUserMemoryRegion2({ slot: 0, guestPhysAddr: 0, memory, guestMemfd: secret });
      vm.setMemoryAttributes({ address: 0x8000, size: PAGE, attributes: 8 });
      using vcpu = vm.createVcpu();
      enterRealMode(vcpu);
      memory.write(0x1000, code);
      vcpu.setRegs({ rip: 0x1000, rflags: 2n, rax: 1 });
      expect(vcpu.run(1000)).toBe(Exit.HLT);
      expect(memory.read(0x8000, 1)[0]).toBe(0);
    }
  });

  it('memory that was given back is zero when it comes again', () => {
    using hv = openHypervisor({ backend: 'sim' });
    using vm = hv.createVm();
    for (let i = 0; i < 3; i++) {
      using memory = vm.allocate(MIB);
      expect(memory.bytes.every((byte) => byte === 0)).toBe(true);
      memory.bytes.fill(0xff);
    }
  });

  it('a slot keeps its memory, and a vCPU its VM, when they are closed', () => {
    using hv = openHypervisor({ backend: 'sim' });
    const vm = hv.createVm();
    const memory = vm.allocate(MIB);
    vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memory });
    memory.bytes[0x1000] = 0xf4;
    using vcpu = vm.createVcpu();
    enterRealMode(vcpu);
    vcpu.setRegs({ rip: 0x1000, rflags: 2n });
    memory.close();
    vm.close();
    using other = hv.createVm();
    using fresh = other.allocate(MIB);
    expect(fresh.bytes[0x1000]).toBe(0);
    expect(vcpu.run(1000)).toBe(Exit.HLT);
  });

  it('a token of memory that was closed opens nothing', () => {
    using hv = openHypervisor({ backend: 'sim' });
    using vm = hv.createVm();
    const memory = vm.allocate(PAGE);
    const token = memory.share();
    using second = hv.openMemory(token);
    memory.write(0, Uint8Array.of(9));
    expect(second.read(0, 1)[0]).toBe(9);
    memory.close();
    expect(second.read(0, 1)[0]).toBe(9); // nobody else is given it as long as it is open here
    using other = vm.allocate(PAGE);
    other.write(0, Uint8Array.of(1));
    expect(second.read(0, 1)[0]).toBe(9);
    expect(errnoOf(() => hv.openMemory(token))).toBe('ESTALE');
    expect(errnoOf(() => hv.openMemory({ backend: 'sim', fd: 1, inode: 1 }))).toBe('EBADF');
    expect(() => vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memory: second })).toThrow(invalid);
  });

  it('more memory than the host has is ENOMEM', () => {
    using hv = openHypervisor({ backend: 'sim' });
    using vm = hv.createVm();
    vm.allocate(3 * 2 ** 30); // not given back: to look over 3 GiB for what is to be zeroed takes seconds
    expect(errnoOf(() => vm.allocate(2 * 2 ** 30).close())).toBe('ENOMEM');
  });
});

describe('state', () => {
  it('of the x87 and SSE registers is what was set, by both formats', () => {
    onVcpu((vcpu) => {
      const before = vcpu.getFpu();
      const xmm = before.xmm.map((_, i) => new Uint8Array(16).fill(i + 1));
      const one = Uint8Array.of(0, 0, 0, 0, 0, 0, 0, 0x80, 0xff, 0x3f, 0, 0, 0, 0, 0, 0);
      // TOP is 5: ST(0) to ST(2) are registers 5 to 7.
      const fpr = before.fpr.map((zero, i) => (i < 3 ? one : zero));
      const fpu = { ...before, fcw: 0x37f, fsw: 5 << 11, ftwx: 0b1110_0000, lastOpcode: 0x123, xmm, fpr };
      vcpu.setFpu(fpu);
      expect(vcpu.getFpu()).toEqual(fpu);
      const area = vcpu.getXsave();
      expect([area[0], area[4], area[160], area[32 + 9]]).toEqual([0x7f, 0b1110_0000, 1, 0x3f]);
      vcpu.setFpu(before);
      vcpu.setXsave(area);
      expect(vcpu.getFpu()).toEqual(fpu);
      expect(vcpu.getXsave()).toEqual(area);
    });
  });

  it('that an XSAVE area does not claim is as after FNINIT', () => {
    onVcpu((vcpu) => {
      const area = vcpu.getXsave();
      area.fill(0xff, 160, 416);
      vcpu.setXsave(area);
      viewOf(area).setBigUint64(512, 1n, true); // x87 only
      vcpu.setXsave(area);
      expect(vcpu.getFpu().xmm[0]).toEqual(new Uint8Array(16));
      viewOf(area).setBigUint64(512, 4n, true); // AVX
      area.fill(0x5a, 576, 832);
      vcpu.setXsave(area);
      expect(vcpu.getXsave().subarray(576, 832)).toEqual(new Uint8Array(256).fill(0x5a));
      viewOf(area).setBigUint64(512, 3n, true);
      vcpu.setXsave(area);
      expect(vcpu.getXsave().subarray(576, 832)).toEqual(new Uint8Array(256));
      viewOf(area).setBigUint64(512, 0x20n, true); // AVX-512's masks
      expect(errnoOf(() => vcpu.setXsave(area))).toBe('EINVAL');
    });
  });

  it('of all registers goes out and in again without a change', () => {
    onVcpu((vcpu) => {
      const regs = { ...vcpu.getRegs(), rax: 1n, r15: 2n ** 64n - 1n, rflags: 0x246n, rip: 0x1234n };
      vcpu.setRegs(regs);
      expect(vcpu.getRegs()).toEqual(regs);
      const sregs = vcpu.getSregs();
      vcpu.setSregs(sregs);
      expect(vcpu.getSregs()).toEqual(sregs);
      const second = vcpu.getSregs2();
      vcpu.setSregs2(second);
      expect(vcpu.getSregs2()).toEqual(second);
      const events = vcpu.getVcpuEvents();
      vcpu.setVcpuEvents(events);
      expect(vcpu.getVcpuEvents()).toEqual(events);
    });
  });

  it('of an interrupt that waits is in the events and in the bitmap of KVM_GET_SREGS', () => {
    onVcpu((vcpu) => {
      vcpu.interrupt(0x41);
      expect(vcpu.getVcpuEvents().interrupt).toMatchObject({ injected: 1, nr: 0x41 });
      expect(vcpu.getSregs().interruptBitmap).toEqual([0n, 2n, 0n, 0n]);
      const sregs = vcpu.getSregs();
      vcpu.setVcpuEvents({});
      vcpu.setSregs(sregs);
      expect(vcpu.getVcpuEvents().interrupt).toMatchObject({ injected: 1, nr: 0x41 });
    });
  });

  it('of a pending exception is told apart with KVM_CAP_EXCEPTION_PAYLOAD, and KVM_SET_REGS cancels it', () => {
    const EXCEPTION_PAYLOAD = 164;
    const PAYLOAD = 0x10;
    onVcpu((vcpu, vm) => {
      const events = { exception: { pending: 1, nr: 14, hasErrorCode: 1, errorCode: 2 }, flags: PAYLOAD };
      expect(errnoOf(() => vcpu.setVcpuEvents(events))).toBe('EINVAL');
      vm.enableCap({ cap: EXCEPTION_PAYLOAD, args: [1] });
      vcpu.setVcpuEvents({ ...events, exceptionHasPayload: 1, exceptionPayload: 0x1000n });
      expect(vcpu.getVcpuEvents()).toMatchObject({
        exception: { pending: 1, injected: 0, nr: 14, errorCode: 2 },
        exceptionHasPayload: 1,
        exceptionPayload: 0x1000n,
      });
      vcpu.setRegs(vcpu.getRegs());
      expect(vcpu.getVcpuEvents().exception).toMatchObject({ pending: 0, injected: 0 });
    });
  });

  it('that no processor can have is refused, and nothing is set then', () => {
    onVcpu((vcpu) => {
      const sregs = vcpu.getSregs();
      for (const change of [
        { cr0: 1n << 31n }, // paging without protection
        { cr0: 1n << 29n }, // NW without CD
        { cr0: 1n << 40n },
        { cr4: 1n << 12n }, // LA57, which this processor lacks
        { efer: 1n << 10n }, // long mode active, without paging
        { cr8: 16n },
        { apicBase: 1n },
      ]) {
        expect(errnoOf(() => vcpu.setSregs({ ...sregs, cr2: 1n, ...change }))).toBe('EINVAL');
        expect(vcpu.getSregs()).toEqual(sregs);
      }
    });
  });

  it('of CPUID stands once the vCPU has run', () => {
    onVcpu((vcpu) => {
      const entries = vcpu.getCpuid2();
      vcpu.immediateExit = true;
      vcpu.run(1000);
      vcpu.setCpuid2(entries);
      expect(errnoOf(() => vcpu.setCpuid2(entries.slice(1)))).toBe('EINVAL');
    });
  });
});

describe('determinism', () => {
  /** Fills memory, does port and memory-mapped I/O, and ends; gives all that can be seen of it. */
  function trace(): string {
    using hv = new Hypervisor(simulator());
    using vm = hv.createVm();
    using memory = vm.allocate(MIB);
    vm.setUserMemoryRegion2({ slot: 0, guestPhysAddr: 0, memory, flags: MemFlag.LOG_DIRTY_PAGES });
    using vcpu = vm.createVcpu();
    vcpu.setCpuid2(hv.getSupportedCpuid());
    enterRealMode(vcpu);
    // l: out 0x80, al; rdtsc; xor [si], ax; add si, 7; loop l; hlt
    memory.write(
      0x1000,
      Uint8Array.of(0xe6, 0x80, 0x0f, 0x31, 0x31, 0x04, 0x83, 0xc6, 0x07, 0xe2, 0xf5, 0xf4),
    );
    vcpu.setRegs({ rip: 0x1000, rflags: 2n, rcx: 50, rsi: 0x4000 });
    const seen: string[] = [];
    for (let exit = vcpu.run(1000); exit !== Exit.HLT; exit = vcpu.run(1000)) {
      seen.push(`${exit} ${vcpu.io.value} ${vcpu.getRegs().rip}`);
    }
    const show = (_: string, value: unknown) => (typeof value === 'bigint' ? `${value}` : value);
    const state = JSON.stringify([vcpu.getRegs(), vcpu.getSregs(), vcpu.getMsrs([0x10])], show);
    return [...seen, state, memory.read(0x4000, 0x200).join()].join('\n');
  }

  it('the same guest leaves the same trace, the time-stamp counter included', () => {
    const first = trace();
    expect(first.split('\n').length).toBe(52);
    expect(trace()).toBe(first);
  });
});
