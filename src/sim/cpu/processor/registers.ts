/** What an x86-64 processor holds: data alone, which the rest of the simulator reads and changes. */
import type { Arena } from '../../arena.ts';
import { flatSegment, type Segment, type Table } from './descriptors.ts';
import type { CpuidEntry } from './features.ts';
import { CpuState, State } from './state.ts';

/** What KVM_GUESTDBG_* asks for. */
export interface GuestDebugging {
  singleStep: boolean;
  softwareBreakpoints: boolean;
  /** DR0-3 and DR7 of userspace's hardware breakpoints, which then take the place of the guest's. */
  hardware: { readonly addresses: readonly bigint[]; readonly dr7: bigint } | undefined;
}

/** What a processor keeps of debug exceptions until they are delivered; bits are DR6's. */
export interface DebugEvents {
  /** Breakpoints on data and ports that the instruction that is being stepped has touched. */
  hits: bigint;
  /** The instruction has taken its own single step away. */
  stepLost: boolean;
  /** Comes at the next boundary of instructions that MOV SS does not guard. */
  held: bigint;
}

/** STAR, LSTAR, CSTAR and FMASK. */
const SYSTEM_CALL = { first: 0xc000_0081, last: 0xc000_0084 } as const;

/** Counts how often one was set, and tells of those of system calls. */
class Msrs extends Map<number, bigint> {
  changes = 0;
  systemCall: (() => void) | undefined;
  override set(index: number, value: bigint): this {
    this.changes++;
    if (index >= SYSTEM_CALL.first && index <= SYSTEM_CALL.last) this.systemCall?.();
    return super.set(index, value);
  }
}

/** As after INIT: 64 KiB that can be read and written. */
const segment = (overrides: Partial<Segment>): Segment =>
  flatSegment({ selector: 0, limit: 0xffff, db: 0, g: 0, ...overrides });

export class Registers {
  readonly arena: Arena;
  /** What translated code reaches. */
  readonly state: CpuState;

  /** ES CS SS DS FS GS. A base is mirrored in the state: who puts another segment in its place calls changed() after it. */
  readonly segments: Segment[] = [
    segment({}),
    segment({ selector: 0xf000, base: 0xffff_0000n, type: 11 }),
    segment({}),
    segment({}),
    segment({}),
    segment({}),
  ];
  tr: Segment = segment({ type: 11, s: 0 });
  idtr: Table = { base: 0n, limit: 0xffff };
  cr0 = 0x6000_0010;
  cr2 = 0n;
  cr3 = 0n;
  cr4 = 0;
  cr8 = 0;
  xcr0 = 1n;
  /** The rights of protection keys: two bits each, no access and no write. Translations follow from it. */
  pkru = 0;
  /** DR0-3; 4 and 5 are unused. */
  readonly dr: bigint[] = [0n, 0n, 0n, 0n, 0n, 0n, 0xffff_0ff0n, 0x400n];
  /** Model-specific registers with nothing behind them but their value; the others are in msrs.ts. */
  readonly msrs = new Msrs();
  cpuid: readonly CpuidEntry[] = [];

  // What is known of ways between contexts depends on these.
  get ldtr(): Segment {
    return this.#ldtr;
  }
  set ldtr(ldtr: Segment) {
    this.#ldtr = ldtr;
    this.state.forgetTransitions();
  }
  get gdtr(): Table {
    return this.#gdtr;
  }
  set gdtr(gdtr: Table) {
    this.#gdtr = gdtr;
    this.state.forgetTransitions();
  }
  get efer(): number {
    return this.#efer;
  }
  set efer(efer: number) {
    this.#efer = efer;
    this.state.forgetTransitions();
  }
  #ldtr: Segment = segment({ type: 2, s: 0 });
  #gdtr: Table = { base: 0n, limit: 0xffff };
  #efer = 0;

  // --- events ---
  /** What is to be delivered before the next instruction: KVM_SET_VCPU_EVENTS and KVM_INTERRUPT put it here. */
  exception: { vector: number; errorCode: number | undefined; payload: bigint | undefined } | undefined;
  interrupt: { vector: number; soft: boolean } | undefined;
  nmiPending = 0;
  nmiMasked = false;
  /** The shadow of STI or of MOV SS: over with the next instruction. */
  get shadow(): 'sti' | 'mov-ss' | undefined {
    return this.#shadow ?? (this.state.isNow(State.shadowed) ? 'sti' : undefined);
  }
  set shadow(shadow: 'sti' | 'mov-ss' | undefined) {
    this.#shadow = shadow;
    this.state.setNever(State.shadowed);
  }
  #shadow: 'sti' | 'mov-ss' | undefined;
  /** HLT was executed, and nobody was told. */
  halted = false;
  /** Somebody waits until an interrupt can be taken (kvm_run's request_interrupt_window). */
  windowRequested = false;
  /** Debug exceptions on their way. */
  readonly debug: DebugEvents = { hits: 0n, stepLost: false, held: 0n };
  debugging: GuestDebugging = { singleStep: false, softwareBreakpoints: false, hardware: undefined };

  /** Alignment is checked: CPL 3, CR0.AM and RFLAGS.AC. */
  alignment = false;
  /** The guest or userspace watches each instruction, and each element of a REP. */
  watched = false;

  constructor(arena: Arena) {
    this.arena = arena;
    this.state = new CpuState(arena);
    this.shadow = undefined;
    this.msrs.systemCall = () => this.state.forgetTransitions();
  }

  /** The segments whose bases and selectors the state has. */
  readonly #mirrored: (Segment | undefined)[] = [];
  /** Shows translated code the base and the selector of a segment. */
  mirrorSegment(index: number): void {
    const segment = this.segments[index]!;
    if (segment === this.#mirrored[index]) return;
    this.replaced(index, this.#mirrored[index]);
    this.#mirrored[index] = segment;
    this.state.setSegment(index, segment.base, segment.selector);
  }
  /** Another segment is in the place of this one. */
  protected replaced(_index: number, _before: Segment | undefined): void {}
  /** The state has these already. */
  protected adopt(index: number, segment: Segment): void {
    this.segments[index] = segment;
    this.#mirrored[index] = segment;
  }
}
