/** An x86-64 processor: its registers outside the arena, and the loop that executes. */
import type { Arena } from '../arena.ts';
import type { SecondStage, Stop } from './processor.ts';
import { CpuState } from './state.ts';

/** A segment register with its descriptor cache (SDM volume 3, 3.4.3). */
export interface Segment {
  selector: number;
  /** Unsigned, 64 bits. */
  base: bigint;
  /** In bytes, the granularity applied: the offset of the last byte. */
  limit: number;
  /** The descriptor's type field; 3 (data, read/write, accessed) and so on. */
  type: number;
  /** Code or data (1), or system (0). */
  s: number;
  dpl: number;
  present: number;
  avl: number;
  l: number;
  db: number;
  g: number;
  /** A null selector was loaded. */
  unusable: number;
}

export const Seg = { ES: 0, CS: 1, SS: 2, DS: 3, FS: 4, GS: 5 } as const;

/** GDTR and IDTR. */
export interface Table {
  base: bigint;
  limit: number;
}

/** What KVM_GUESTDBG_* asks for. */
export interface GuestDebugging {
  singleStep: boolean;
  softwareBreakpoints: boolean;
  /** DR0-3 and DR7 of userspace's hardware breakpoints, which then take the place of the guest's. */
  hardware: { readonly addresses: readonly bigint[]; readonly dr7: bigint } | undefined;
}

/** The entries of KVM_SET_CPUID2. */
export interface CpuidEntry {
  readonly function: number;
  readonly index: number;
  readonly flags: number;
  readonly eax: number;
  readonly ebx: number;
  readonly ecx: number;
  readonly edx: number;
}

/** How the guest's page tables choose between private and shared memory, if they do. */
export interface GuestChoice {
  /** The bit of an entry's physical address. */
  readonly bit: number;
  /** SNP's C-bit: 1 is private. TDX's shared bit: 1 is shared. */
  readonly set: 'private' | 'shared';
}

const segment = (overrides: Partial<Segment>): Segment => ({
  selector: 0,
  base: 0n,
  limit: 0xffff,
  type: 3,
  s: 1,
  dpl: 0,
  present: 1,
  avl: 0,
  l: 0,
  db: 0,
  g: 0,
  unusable: 0,
  ...overrides,
});

export class Cpu {
  readonly arena: Arena;
  readonly state: CpuState;
  readonly stage: SecondStage;
  readonly vendor: 'intel' | 'amd';
  readonly choice: GuestChoice | undefined;

  /** ES CS SS DS FS GS. A base is mirrored in the state: change it with loadSegment() or call changed(). */
  readonly segments: Segment[] = [
    segment({}),
    segment({ selector: 0xf000, base: 0xffff_0000n, type: 11 }),
    segment({}),
    segment({}),
    segment({}),
    segment({}),
  ];
  ldtr: Segment = segment({ type: 2, s: 0 });
  tr: Segment = segment({ type: 11, s: 0 });
  gdtr: Table = { base: 0n, limit: 0xffff };
  idtr: Table = { base: 0n, limit: 0xffff };
  cr0 = 0x6000_0010;
  cr2 = 0n;
  cr3 = 0n;
  cr4 = 0;
  cr8 = 0;
  efer = 0;
  xcr0 = 1n;
  /** DR0-3; 4 and 5 are unused. */
  readonly dr: bigint[] = [0n, 0n, 0n, 0n, 0n, 0n, 0xffff_0ff0n, 0x400n];
  /** Model-specific registers with nothing behind them but their value; the others are in msrs.ts. */
  readonly msrs = new Map<number, bigint>();
  cpuid: readonly CpuidEntry[] = [];

  // --- events ---
  /** What is to be delivered before the next instruction: KVM_SET_VCPU_EVENTS and KVM_INTERRUPT put it here. */
  exception: { vector: number; errorCode: number | undefined; payload: bigint | undefined } | undefined;
  interrupt: { vector: number; soft: boolean } | undefined;
  nmiPending = 0;
  nmiMasked = false;
  /** The shadow of STI or of MOV SS: over with the next instruction. */
  shadow: 'sti' | 'mov-ss' | undefined;
  halted = false;
  /** Somebody waits until an interrupt can be taken (kvm_run's request_interrupt_window). */
  windowRequested = false;
  debugging: GuestDebugging = { singleStep: false, softwareBreakpoints: false, hardware: undefined };

  constructor(arena: Arena, stage: SecondStage, options: { vendor: 'intel' | 'amd'; choice?: GuestChoice }) {
    this.arena = arena;
    this.state = new CpuState(arena);
    this.stage = stage;
    this.vendor = options.vendor;
    this.choice = options.choice;
    this.reset();
  }

  /** As after INIT (SDM volume 3, table 9-1), which KVM gives a new vCPU. */
  reset(): void {
    this.state.flags = 2;
    this.state.rip = 0xfff0n;
    this.state.setGpr(2, 0x600n);
  }

  /**
   * Executes until something needs the kernel. At most `slice` instructions pass before it gives 'slice'.
   * @throws SecondStageFault
   */
  run(_slice: number): Stop {
    throw new Error('not there yet');
  }

  /**
   * Finishes the instruction that stopped for I/O or a hypercall. `data` is what was read: bytes for I/O (ignored
   * for writes), RAX for a hypercall. Gives the next stop of the same instruction, if there is one; nothing else
   * executes.
   */
  finish(_data: Uint8Array | bigint): Stop | undefined {
    throw new Error('not there yet');
  }
  /** Whether an instruction is waiting for finish(). */
  get unfinished(): boolean {
    return false;
  }

  /** To be called after control registers, segments or MSRs were changed from outside, or by an instruction. */
  changed(): void {}

  /** The second stage has zapped mappings: forgets all translations to host pages. */
  flushSecondStage(): void {}

  /** A linear address as KVM_TRANSLATE walks it; undefined when it is not mapped. */
  translate(_linear: bigint): { physical: number; writeable: boolean; user: boolean } | undefined {
    return undefined;
  }

  /** The host wrote to this page of the arena (its own store to guest memory, or a punch): code from it is stale. */
  codeChanged(_page: number): void {}
}
