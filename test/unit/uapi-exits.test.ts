import { describe, expect, it } from 'vitest';
import {
  decodeExit,
  describeExit,
  dialects,
  Exit,
  type ExitName,
  exitName,
  exitRows,
  type KvmExit,
} from '../../src/uapi/index.ts';

// The pages are written here byte by byte, at the offsets of the kernel's header, not through the tables under
// test: struct kvm_run has flags at 14, cr8 at 16, and the exit union at 32.

class Page {
  readonly view = new DataView(new ArrayBuffer(4096));
  constructor() {
    // What an earlier exit left in the union must not show through.
    new Uint8Array(this.view.buffer, 32, 256).fill(0xee);
  }
  u8(at: number, ...values: number[]) {
    values.forEach((value, i) => {
      this.view.setUint8(at + i, value);
    });
    return this;
  }
  u16(at: number, value: number) {
    this.view.setUint16(at, value, true);
    return this;
  }
  u32(at: number, ...values: number[]) {
    values.forEach((value, i) => {
      this.view.setUint32(at + 4 * i, value, true);
    });
    return this;
  }
  u64(at: number, ...values: bigint[]) {
    values.forEach((value, i) => {
      this.view.setBigUint64(at + 8 * i, value, true);
    });
    return this;
  }
}

type Case = readonly [name: ExitName, write: (page: Page) => Page, fields: object, sentence: string];

const nothing = (page: Page) => page;

const cases: Case[] = [
  ['UNKNOWN', (p) => p.u64(32, 0x46n), { hardwareExitReason: 0x46n }, 'unknown hardware exit 0x46'],
  ['EXCEPTION', (p) => p.u32(32, 14, 2), { exception: 14, errorCode: 2 }, 'exception #PF, error code 0x2'],
  [
    'IO',
    (p) => p.u8(32, 1, 1).u16(34, 0x3f8).u32(36, 1).u64(40, 0x1000n),
    { direction: 'out', size: 1, port: 0x3f8, count: 1, dataOffset: 0x1000 },
    'I/O out: 1 byte to port 0x3f8, data at kvm_run+0x1000',
  ],
  [
    'IO',
    (p) => p.u8(32, 0, 2).u16(34, 0x1f0).u32(36, 256).u64(40, 0x1000n),
    { direction: 'in', size: 2, port: 0x1f0, count: 256, dataOffset: 0x1000 },
    'I/O in: 256 times 2 bytes from port 0x1f0, data at kvm_run+0x1000',
  ],
  [
    'HYPERCALL',
    (p) => p.u64(32, 12n, 0x10_0000n, 2n, 0x10n, 0n, 0n, 0n, 0n, 1n),
    { nr: 12n, args: [0x10_0000n, 2n, 0x10n, 0n, 0n, 0n], ret: 0n, longMode: true, unknownFlags: 0n },
    'hypercall MAP_GPA_RANGE: make [0x100000, +0x2000) private (attributes 0x10)',
  ],
  [
    'HYPERCALL',
    (p) => p.u64(32, 12n, 0x20_0000n, 1n << 60n, 1n, 0n, 0n, 0n, 0n, 0n),
    { longMode: false },
    'hypercall MAP_GPA_RANGE: make [0x200000, +0x1000000000000000000) shared (attributes 0x1)',
  ],
  [
    'HYPERCALL',
    (p) => p.u64(32, (1n << 63n) + 1n, 1n, 2n, 3n, 4n, 5n, 6n, 0n, 0x8000_0000_0000_0001n),
    { nr: (1n << 63n) + 1n, longMode: true, unknownFlags: 0x8000_0000_0000_0000n },
    'hypercall 0x8000000000000001(0x1, 0x2, 0x3, 0x4, 0x5, 0x6), unknown flags 0x8000000000000000',
  ],
  [
    'DEBUG',
    (p) => p.u32(32, 1, 0).u64(40, 0x1003n, 0xffff_4ff0n, 0x400n),
    { exception: 1, pc: 0x1003n, dr6: 0xffff_4ff0n, dr7: 0x400n },
    'debug exception #DB at 0x1003, DR6 0xffff4ff0, DR7 0x400',
  ],
  ['HLT', nothing, {}, 'hlt'],
  [
    'MMIO',
    (p) => p.u64(32, 0xfee0_0000n).u8(40, 1, 2, 3, 4, 5, 6, 7, 8).u32(48, 8).u8(52, 1),
    { physAddr: 0xfee0_0000, len: 8, isWrite: true, data: new Uint8Array([1, 2, 3, 4, 5, 6, 7, 8]) },
    'MMIO write of 8 bytes at 0xfee00000: 0102030405060708',
  ],
  [
    'MMIO',
    (p) => p.u64(32, 0x1_0000_0000n).u32(48, 1).u8(52, 0),
    { physAddr: 0x1_0000_0000, len: 1, isWrite: false },
    'MMIO read of 1 byte at 0x100000000',
  ],
  ['IRQ_WINDOW_OPEN', nothing, {}, 'interrupt window open'],
  ['SHUTDOWN', nothing, {}, 'shutdown (on x86 a triple fault)'],
  [
    'FAIL_ENTRY',
    (p) => p.u64(32, 0x8000_0021n).u32(40, 3),
    { hardwareEntryFailureReason: 0x8000_0021n, cpu: 3 },
    'hardware refused to enter the guest: 0x80000021 on CPU 3',
  ],
  ['INTR', nothing, {}, 'interrupted by a signal'],
  ['SET_TPR', (p) => p.u64(16, 4n), { cr8: 4n }, 'task priority lowered: cr8 0x4'],
  [
    'TPR_ACCESS',
    (p) => p.u64(32, 0x8000n).u32(40, 1, 0),
    { rip: 0x8000n, isWrite: true },
    'TPR write at rip 0x8000',
  ],
  ['NMI', nothing, {}, 'NMI'],
  [
    'INTERNAL_ERROR',
    (p) => p.u32(32, 3, 4).u64(40, 0x8000_0b0en, 49n, 0n, 0x7n),
    { suberror: 3, ndata: 4, data: [0x8000_0b0en, 49n, 0n, 7n] },
    'KVM internal error DELIVERY_EV, data 0x80000b0e 0x31 0x0 0x7',
  ],
  [
    'SYSTEM_EVENT',
    (p) => p.u32(32, 6, 1).u64(40, 0x8000n),
    { type: 6, ndata: 1, data: [0x8000n] },
    'system event SEV_TERM, data 0x8000',
  ],
  ['SYSTEM_EVENT', (p) => p.u32(32, 3, 0), { type: 3, ndata: 0, data: [] }, 'system event CRASH'],
  ['IOAPIC_EOI', (p) => p.u8(32, 0x30), { vector: 0x30 }, 'I/O APIC end of interrupt, vector 0x30'],
  [
    'HYPERV',
    (p) => p.u32(32, 1, 0, 0x4000_0080, 0).u64(48, 1n, 0x1000n, 0x2000n),
    { type: 1, synic: { msr: 0x4000_0080, pad2: 0, control: 1n, evtPage: 0x1000n, msgPage: 0x2000n } },
    'Hyper-V SYNIC',
  ],
  [
    'HYPERV',
    (p) => p.u32(32, 2, 0).u64(40, 0x5cn, 0n, 1n, 2n),
    { type: 2, hcall: { input: 0x5cn, result: 0n, params: [1n, 2n] } },
    'Hyper-V HCALL 0x5c',
  ],
  [
    'HYPERV',
    (p) => p.u32(32, 3, 0, 0x4000_00f1, 0).u64(48, 1n, 2n, 3n, 4n, 5n),
    {
      type: 3,
      syndbg: {
        msr: 0x4000_00f1,
        pad2: 0,
        control: 1n,
        status: 2n,
        sendPage: 3n,
        recvPage: 4n,
        pendingPage: 5n,
      },
    },
    'Hyper-V SYNDBG',
  ],
  [
    'X86_RDMSR',
    (p) => p.u8(32, 0).u32(40, 2, 0xc001_0015).u64(48, 0n),
    { index: 0xc001_0015, data: 0n, cause: 2, error: 0 },
    'read from MSR 0xc0010015 (UNKNOWN)',
  ],
  [
    'X86_WRMSR',
    (p) => p.u8(32, 0).u32(40, 0x14, 0x1b).u64(48, 0xfee0_0900n),
    { index: 0x1b, data: 0xfee0_0900n, cause: 0x14, error: 0 },
    'write to MSR 0x1b of 0xfee00900 (FILTER|0x10)',
  ],
  ['DIRTY_RING_FULL', nothing, {}, 'dirty ring full'],
  ['AP_RESET_HOLD', nothing, {}, 'AP waits for its reset (SEV-ES)'],
  ['X86_BUS_LOCK', nothing, {}, 'bus lock'],
  [
    'XEN',
    (p) => p.u32(32, 1, 0, 1, 3).u64(48, 0x1dn, 0n, 1n, 2n, 3n, 4n, 5n, 6n),
    { type: 1, hcall: { longmode: 1, cpl: 3, input: 0x1dn, result: 0n, params: [1n, 2n, 3n, 4n, 5n, 6n] } },
    'Xen HCALL 0x1d at CPL 3',
  ],
  [
    'NOTIFY',
    (p) => p.u32(32, 0x41),
    { flags: 0x41, contextInvalid: true },
    'no event window for too long (CONTEXT_INVALID|0x40)',
  ],
  [
    'MEMORY_FAULT',
    (p) => p.u64(32, 8n, 0x1_0000_1000n, 0x1000n),
    { flags: { private: true, userfault: false, unknown: 0n }, gpa: 0x1_0000_1000, size: 0x1000 },
    'memory fault: private access to [0x100001000, +0x1000)',
  ],
  [
    'MEMORY_FAULT',
    (p) => p.u64(32, 0n, 0x2000n, 0x20_0000n),
    { flags: { private: false, userfault: false, unknown: 0n }, gpa: 0x2000, size: 0x20_0000 },
    'memory fault: shared access to [0x2000, +0x200000)',
  ],
  [
    'MEMORY_FAULT',
    (p) => p.u64(32, 0x8000_0000_0000_001fn, 0x2000n, 0x1000n),
    { flags: { private: true, userfault: true, unknown: 0x8000_0000_0000_0007n } },
    'memory fault: private access to [0x2000, +0x1000), userfault, unknown flags 0x8000000000000007',
  ],
  [
    'TDX',
    (p) => p.u64(32, 0n, 0x1_0002n, 0n, 0x8000n, 0x1000n, 0n, 0n, 0n),
    {
      flags: 0n,
      nr: 0x1_0002n,
      ret: 0n,
      data: [0x8000n, 0x1000n, 0n, 0n, 0n],
      getQuote: { ret: 0n, gpa: 0x8000n, size: 0x1000n },
    },
    'TDX call GET_QUOTE, data 0x8000 0x1000 0x0 0x0 0x0',
  ],
  [
    'SNP_REQ_CERTS',
    (p) => p.u64(32, 0x9000n, 4n, 0n),
    { gpa: 0x9000, npages: 4n, ret: 0n },
    'SNP guest asks for certificates: 4 pages at 0x9000',
  ],
  [
    'MEMORY_POISONED',
    (p) => p.u64(32, 8n, 0x3000n, 0x1000n),
    { flags: { private: true, userfault: false, unknown: 0n }, gpa: 0x3000, size: 0x1000 },
    'hardware memory error: private access to [0x3000, +0x1000)',
  ],
  ['INTERRUPTED', nothing, {}, 'interrupted (EINTR)'],
  ['AGAIN', nothing, {}, 'vCPU not runnable (EAGAIN)'],
  ['FAULT', nothing, {}, 'guest memory that the kernel could not reach (EFAULT, without fault information)'],
  ['DEADLINE', nothing, {}, 'deadline passed'],
  ['STOPPED', nothing, {}, 'stopped'],
];

describe('a decoded exit', () => {
  it.each(cases)(
    '%s has the fields that stand in the page, and says them: case %#',
    (name, write, fields, sentence) => {
      const exit = decodeExit(Exit[name], write(new Page()).view);
      expect(exit).toMatchObject({ reason: name, outcome: Exit[name], runFlags: 0, ...fields });
      expect(describeExit(exit)).toBe(sentence);
    },
  );

  it('has a case above for every row of the table', () => {
    expect([...new Set(cases.map(([name]) => name))].sort()).toEqual(Object.keys(exitRows).sort());
  });

  it('has a row for every exit reason that arch/x86/kvm can give, and no row for another architecture’s', () => {
    const raw = Object.keys(Exit).filter((name) => !(name in exitRows));
    expect(raw).toEqual([
      'S390_SIEIC',
      'S390_RESET',
      'DCR',
      'OSI',
      'PAPR_HCALL',
      'S390_UCONTROL',
      'WATCHDOG',
      'S390_TSCH',
      'EPR',
      'S390_STSI',
      'ARM_NISV',
      'RISCV_SBI',
      'RISCV_CSR',
      'LOONGARCH_IOCSR',
      'ARM_SEA',
      'ARM_LDST64B',
    ]);
  });

  it('reads from a view into the middle of a buffer, as a mapped page may be', () => {
    const buffer = new ArrayBuffer(8192);
    new Uint8Array(buffer, 1024).set(new Uint8Array(new Page().u64(32, 8n, 0x5000n, 0x1000n).view.buffer));
    expect(decodeExit(Exit.MEMORY_FAULT, new DataView(buffer, 1024, 4096))).toMatchObject({ gpa: 0x5000 });
  });

  it('is a copy, which the next exit does not change', () => {
    const page = new Page().u64(32, 0x1000n).u8(40, 1, 2, 3, 4).u32(48, 4).u8(52, 1);
    const exit = decodeExit(Exit.MMIO, page.view);
    page.u8(40, 9, 9, 9, 9);
    expect(exit).toMatchObject({ data: new Uint8Array([1, 2, 3, 4]) });
  });

  it('says in which state the guest was', () => {
    const exit = decodeExit(Exit.HLT, new Page().u16(14, 0x8005).view);
    expect(exit.runFlags).toBe(0x8005);
    expect(describeExit(exit)).toBe('hlt [SMM|GUEST_MODE|0x8000]');
  });

  it('can be told apart by its reason', () => {
    const exit: KvmExit = decodeExit(
      Exit.IO,
      new Page().u8(32, 1, 1).u16(34, 0x80).u32(36, 1).u64(40, 0x1000n).view,
    );
    const port: number | undefined = exit.reason === 'IO' ? exit.port : undefined;
    expect(port).toBe(0x80);
  });
});

describe('an exit that is not decoded', () => {
  it.each([
    [99, 'EXIT_99'],
    [0xffff_ffff, 'EXIT_4294967295'],
    [Exit.RISCV_CSR, 'RISCV_CSR'],
    [Exit.LOONGARCH_IOCSR, 'LOONGARCH_IOCSR'],
    [Exit.ARM_SEA, 'ARM_SEA'],
  ])('%s keeps its number, its name and all 256 bytes of the union', (number, name) => {
    const page = new Page().u8(32, 1, 2).u8(287, 3);
    const exit = decodeExit(number, page.view);
    expect(exit).toMatchObject({ reason: 'OTHER', outcome: number, name });
    const raw = exit.reason === 'OTHER' ? exit.raw : new Uint8Array();
    expect([raw.length, raw[0], raw[1], raw[2], raw[255]]).toEqual([256, 1, 2, 0xee, 3]);
    expect(exitName(number)).toBe(name);
  });

  it('is shown with its number and its bytes, up to the last that is not zero', () => {
    const page = new Page();
    new Uint8Array(page.view.buffer, 32, 256).fill(0);
    page.u8(32, 0xab, 0xcd);
    expect(describeExit(decodeExit(99, page.view))).toBe('exit 99 (EXIT_99), not decoded: abcd');
  });
});

describe('an internal error', () => {
  // arch/x86/kvm/x86.c, prepare_emulation_failure_exit(): flags, 16 bytes of instruction, five words of exit info.
  const emulation = (flags: bigint, ndata: number) =>
    new Page()
      .u32(32, 1, ndata)
      .u64(40, flags)
      .u8(48, 3, 0xc5, 0xf8, 0x77, ...Array(12).fill(0x90))
      .u64(64, 0x30n, 0n, 0n, 0n, 0n);

  it('of emulation shows the instruction that KVM could not emulate', () => {
    const exit = decodeExit(Exit.INTERNAL_ERROR, emulation(1n, 8).view);
    expect(exit).toMatchObject({ suberror: 1, ndata: 8, unknownFlags: 0n });
    expect(exit).toMatchObject({ instruction: new Uint8Array([0xc5, 0xf8, 0x77]) });
    expect(describeExit(exit)).toMatch(
      /^KVM internal error EMULATION, instruction bytes c5f877, data 0x1 0x/,
    );
  });

  it('of emulation has no instruction where the flag is clear or the words do not reach', () => {
    for (const page of [emulation(0n, 6), emulation(1n, 2), emulation(2n, 8)]) {
      expect(decodeExit(Exit.INTERNAL_ERROR, page.view)).not.toHaveProperty('instruction');
    }
  });

  it('of emulation keeps a flag bit that it does not know', () => {
    const exit = decodeExit(Exit.INTERNAL_ERROR, emulation(0x8000_0000_0000_0003n, 8).view);
    expect(exit).toMatchObject({ unknownFlags: 0x8000_0000_0000_0002n });
    expect(describeExit(exit)).toContain('unknown flags 0x8000000000000002');
  });

  it('of emulation on a kernel that gives no data has neither flags nor instruction', () => {
    expect(decodeExit(Exit.INTERNAL_ERROR, emulation(1n, 0).view)).toEqual({
      reason: 'INTERNAL_ERROR',
      outcome: Exit.INTERNAL_ERROR,
      runFlags: 0,
      suberror: 1,
      ndata: 0,
      data: [],
    });
  });

  it('with an instruction longer than fifteen bytes gives the fifteen', () => {
    const exit = decodeExit(Exit.INTERNAL_ERROR, emulation(1n, 8).u8(48, 255).view);
    expect(exit.reason === 'INTERNAL_ERROR' && exit.instruction?.length).toBe(15);
  });

  it('with more data than there is room for gives the sixteen words and the number that was claimed', () => {
    const exit = decodeExit(Exit.INTERNAL_ERROR, new Page().u32(32, 4, 1000).view);
    expect(exit).toMatchObject({ suberror: 4, ndata: 1000 });
    expect(exit.reason === 'INTERNAL_ERROR' && exit.data.length).toBe(16);
  });

  it('of a kind it does not know is shown by number', () => {
    const exit = decodeExit(Exit.INTERNAL_ERROR, new Page().u32(32, 77, 0).view);
    expect(describeExit(exit)).toBe('KVM internal error 0x4d');
  });
});

describe('a memory fault', () => {
  it('is read in the dialect that wrote it', () => {
    const page = new Page().u32(32, 1, 0).u64(40, 0x7000n, 0x1000n);
    expect(decodeExit(Exit.MEMORY_FAULT, page.view, dialects.v9)).toMatchObject({
      flags: { private: true, unknown: 0n },
      gpa: 0x7000,
    });
    expect(decodeExit(Exit.MEMORY_FAULT, page.view)).toMatchObject({
      flags: { private: false, unknown: 1n },
    });
  });
});
