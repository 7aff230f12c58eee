/** How exceptions, interrupts and INT n get to their handlers: SDM volume 3, chapter 6, and volume 2, INT n. */

import { recordDebug } from '../processor/debug.ts';
import {
  type Descriptor,
  descriptorOf,
  isBig,
  isCode,
  isConforming,
  isLong,
  isNull,
  nullStack,
  Seg,
  System,
  segmentOf,
  selectorCode,
} from '../processor/descriptors.ts';
import { Alone, GuestFault, raise, Vector } from '../processor/fault.ts';
import {
  canonical,
  cpl,
  ia32e,
  low32,
  protectedMode,
  Unmodelled,
  virtual8086,
  wrapLinear,
} from '../processor/mode.ts';
import type { Processor } from '../processor/processor.ts';
import { Flag } from '../processor/state.ts';
import { markAccessed, readDescriptor, setSegment } from '../segments/loads.ts';
import { Stack } from '../segments/stack.ts';
import { interruptTask } from '../segments/task-instructions.ts';
import type { LateFault } from '../segments/task-switch.ts';
import { innerPointer, innerStack } from '../segments/tss.ts';
import { dropVirtual, pushVirtual } from '../segments/virtual-8086.ts';
import { enterKnown, noteEvent } from './known-events.ts';

export interface Event {
  /** 'soft' is INT n, INT3 and INTO: the gate's DPL counts, and its faults are the instruction's own. */
  readonly kind: 'exception' | 'interrupt' | 'nmi' | 'soft';
  readonly vector: number;
  readonly errorCode?: number | undefined;
  /** CR2 of a page fault; what a debug exception adds to DR6. */
  readonly address?: bigint | undefined;
  /** Where the handler returns to, when that is not RIP. */
  readonly next?: bigint;
}

/** Thrown where a processor shuts down: a fault on the way to the double fault's handler. */
export class TripleFault {}
export const tripleFault = new TripleFault();

/** SDM volume 3, table 6-4. */
const CONTRIBUTORY: readonly number[] = [Vector.DE, Vector.TS, Vector.NP, Vector.SS, Vector.GP];
/** Those whose handlers find RF set in the flags that they return to (SDM volume 3, 18.3.1.1). */
const FAULTS: readonly number[] = [
  ...CONTRIBUTORY,
  Vector.BR,
  Vector.UD,
  Vector.NM,
  Vector.PF,
  Vector.MF,
  Vector.AC,
  Vector.XM,
];

/**
 * Delivers an event: RIP is its handler's afterwards. Faults on the way are delivered instead, or make a double fault.
 * @throws tripleFault, SecondStageFault, Unmodelled (tables or stacks that lie in MMIO)
 */
export function deliver(cpu: Processor, event: Event): void {
  const { mode } = cpu.io;
  // A stack in a page of code is written at once: no translated code is executing.
  cpu.io.mode = 'alone';
  try {
    for (let current: Event | undefined = event; current !== undefined; ) current = attempt(cpu, current);
  } finally {
    cpu.io.mode = mode;
  }
  cpu.shadow = undefined;
  cpu.changed();
  cpu.numberContext();
}

/** One attempt; gives what is to be delivered instead. */
function attempt(cpu: Processor, event: Event): Event | undefined {
  if (event.kind === 'exception') {
    record(cpu, event.vector, event.address);
    tell(cpu, event);
  }
  try {
    const late = enter(cpu, event);
    if (late === undefined) return undefined;
    raise(late.vector, late.errorCode, late.address);
  } catch (thrown) {
    // KVM_INTERNAL_ERROR_DELIVERY_EV.
    if (thrown instanceof Alone) throw new Unmodelled('an event whose delivery needs MMIO', 3);
    if (!(thrown instanceof GuestFault)) throw thrown;
    return after(cpu, event, thrown);
  }
}

/** The observer learns of an exception, whether its handler is reached or not. */
function tell(
  cpu: Processor,
  { vector, errorCode, address }: Pick<Event, 'vector' | 'errorCode' | 'address'>,
): void {
  cpu.observer?.exception?.(vector, errorCode, cpu.state.rip, vector === Vector.PF ? address : undefined);
}

/** What an exception leaves in control and debug registers, whether its handler is reached or not. */
function record(cpu: Processor, vector: number, address: bigint | undefined): void {
  if (vector === Vector.PF && address !== undefined) cpu.cr2 = address;
  if (vector === Vector.DB) recordDebug(cpu, address ?? 0n);
}

/** What is delivered when there was a fault on the way to a handler (SDM volume 3, table 6-5). */
function after(cpu: Processor, first: Event, { vector, errorCode, address }: GuestFault): Event {
  if (first.kind === 'exception') {
    if (first.vector === Vector.DF) {
      tell(cpu, { vector, errorCode, address });
      throw tripleFault;
    }
    const second = vector === Vector.PF || CONTRIBUTORY.includes(vector);
    const fromContributory = CONTRIBUTORY.includes(first.vector) && CONTRIBUTORY.includes(vector);
    if (fromContributory || (first.vector === Vector.PF && second)) {
      record(cpu, vector, address);
      tell(cpu, { vector, errorCode, address });
      return { kind: 'exception', vector: Vector.DF, errorCode: 0 };
    }
  }
  return { kind: 'exception', vector, errorCode, address };
}

/**
 * Raises what is wrong with tables, gate, code or stack, having changed nothing. Gives what is wrong with a task that it
 * has switched to: an exception of that task's.
 */
export function enter(cpu: Processor, event: Event): LateFault | undefined {
  if (protectedMode(cpu)) return enterProtected(cpu, event);
  enterReal(cpu, event);
  return undefined;
}

/** Through the interrupt vector table, without error codes (SDM volume 3, 20.1.4). */
function enterReal(cpu: Processor, { vector, next, kind }: Event): void {
  const { state, idtr } = cpu;
  if (vector * 4 + 3 > idtr.limit) raise(Vector.GP, vector * 8 + 2 + (kind === 'soft' ? 0 : 1));
  const at = low32(idtr.base + BigInt(vector * 4));
  const offset = cpu.memory.readSystem16(at);
  const selector = cpu.memory.readSystem16(low32(at + 2n));
  const stack = Stack.current(cpu);
  stack.push(BigInt(state.flags & 0xffff), 2);
  stack.push(BigInt(cpu.segments[Seg.CS]!.selector), 2);
  stack.push(next ?? state.rip, 2);
  stack.write();
  stack.commit();
  state.eflags &= ~(Flag.IF | Flag.TF | Flag.AC | Flag.RF);
  const cs = cpu.segments[Seg.CS]!;
  setSegment(cpu, Seg.CS, { ...cs, selector, base: BigInt(selector << 4) });
  state.rip = BigInt(offset);
}

interface Gate {
  readonly type: number;
  readonly linear: bigint;
  readonly selector: number;
  readonly offset: bigint;
  readonly ist: number;
  /** Bytes of each value that is pushed. */
  readonly size: 2 | 4 | 8;
}

const GATES: { readonly [type: number]: 2 | 4 } = {
  [System.INTERRUPT16]: 2,
  [System.TRAP16]: 2,
  [System.INTERRUPT]: 4,
  [System.TRAP]: 4,
};

function readGate(cpu: Processor, { vector, kind }: Event, ext: number): Gate {
  const long = ia32e(cpu);
  const bytes = long ? 16 : 8;
  const code = vector * 8 + 2 + ext;
  if (vector * bytes + bytes - 1 > cpu.idtr.limit) raise(Vector.GP, code);
  const linear = wrapLinear(cpu, cpu.idtr.base + BigInt(vector * bytes));
  const read = (offset: bigint) => cpu.memory.readSystem32(wrapLinear(cpu, linear + offset));
  const { lo, hi, type, s, dpl, present } = descriptorOf(read(0n), read(4n), linear);
  const size = GATES[type];
  const known = long ? size === 4 : size !== undefined || type === System.TASK_GATE;
  if (s || !known) raise(Vector.GP, code);
  if (kind === 'soft' && dpl < cpl(cpu)) raise(Vector.GP, code);
  if (!present) raise(Vector.NP, code);
  const low = BigInt(((hi & 0xffff_0000) | (lo & 0xffff)) >>> 0);
  return {
    type,
    linear,
    selector: lo >>> 16,
    offset: long ? low | (BigInt(read(8n)) << 32n) : size === 2 ? low & 0xffffn : low,
    ist: long ? hi & 7 : 0,
    size: long ? 8 : (size ?? 4),
  };
}

/** The handler's code segment. */
function targetOf(cpu: Processor, selector: number, ext: number): Descriptor {
  if (isNull(selector)) raise(Vector.GP, ext);
  const code = selectorCode(selector, ext);
  const descriptor = readDescriptor(cpu, selector);
  if (descriptor === undefined) raise(Vector.GP, code);
  if (!isCode(descriptor) || descriptor.dpl > cpl(cpu)) raise(Vector.GP, code);
  // Out of virtual-8086 mode there is a way to privilege level 0 alone (SDM volume 2, INT n).
  if (virtual8086(cpu) && (isConforming(descriptor) || descriptor.dpl !== 0)) raise(Vector.GP, code);
  if (ia32e(cpu) && (!isLong(descriptor) || isBig(descriptor))) raise(Vector.GP, code);
  if (!descriptor.present) raise(Vector.NP, code);
  return descriptor;
}

function enterProtected(cpu: Processor, event: Event): LateFault | undefined {
  const { state } = cpu;
  const { vector, errorCode, kind, next } = event;
  const soft = kind === 'soft';
  const ext = soft ? 0 : 1;
  const fault = kind === 'exception' && FAULTS.includes(vector);
  const flags = state.flags | (fault ? Flag.RF : 0);
  if (enterKnown(cpu, { vector, soft, flags, next: next ?? state.rip, errorCode })) return undefined;
  const from = cpu.numberContext();
  const gate = readGate(cpu, event, ext);
  if (gate.type === System.TASK_GATE)
    return interruptTask(cpu, gate.selector, { next: next ?? state.rip, errorCode, ext, fault });
  const virtual = virtual8086(cpu);
  const target = targetOf(cpu, gate.selector, ext);
  const level = isConforming(target) ? cpl(cpu) : target.dpl;
  const inner = level < cpl(cpu);
  const cs = { ...segmentOf(gate.selector, target), selector: (gate.selector & ~3) | level };
  const old = { ss: cpu.segments[Seg.SS]!, rsp: state.gpr(4), cs: cpu.segments[Seg.CS]!.selector };
  const { stack, segment, descriptor } = stackFor(cpu, gate, level, inner, ext);
  const outside = gate.size === 8 ? !canonical(gate.offset) : gate.offset > BigInt(cs.limit);

  if (virtual) pushVirtual(cpu, stack, gate.size);
  const frame = [BigInt(flags), BigInt(old.cs), next ?? state.rip];
  if (inner || gate.size === 8) frame.unshift(BigInt(old.ss.selector), old.rsp);
  if (errorCode !== undefined) frame.push(BigInt(errorCode));
  if (gate.size === 8) stack.pushAll(frame);
  else for (const value of frame) stack.push(value, gate.size);
  if (outside) raise(Vector.GP, ext);
  stack.write();
  markAccessed(cpu, target);
  if (descriptor !== undefined) markAccessed(cpu, descriptor);

  setSegment(cpu, Seg.CS, cs);
  if (segment !== undefined) setSegment(cpu, Seg.SS, segment);
  stack.commit();
  const interrupt = gate.type === System.INTERRUPT || gate.type === System.INTERRUPT16;
  state.eflags &= ~(Flag.TF | Flag.NT | Flag.RF | Flag.VM | (interrupt ? Flag.IF : 0));
  state.rip = gate.offset;
  if (virtual) dropVirtual(cpu);
  if (from !== 0) {
    const { ist, linear: gateAt } = gate;
    const how = { from, gateAt, codeAt: target.linear, inner, level, ist, masks: interrupt };
    noteEvent(cpu, vector, soft, how);
  }
  return undefined;
}

/** The handler's stack; with the segment that SS becomes, when the privilege level changes. */
function stackFor(cpu: Processor, gate: Gate, level: number, inner: boolean, ext: number) {
  if (gate.size === 8) {
    const switched = inner || gate.ist !== 0;
    const rsp = switched ? innerPointer(cpu, level, gate.ist, ext) : cpu.state.gpr(4);
    if (!canonical(rsp)) raise(Vector.SS, ext);
    const segment = inner ? nullStack(level) : undefined;
    // 64-bit mode aligns the stack before it pushes (SDM volume 3, 6.14.2).
    const stack = new Stack(cpu, {
      segment: segment ?? cpu.segments[Seg.SS]!,
      pointer: rsp & ~0xfn,
      bits: 64,
      rights: inner ? 'system' : 'cpl',
      code: ext,
    });
    return { stack, segment, descriptor: undefined };
  }
  if (!inner) return { stack: Stack.current(cpu, ext), segment: undefined, descriptor: undefined };
  const { segment, pointer, selector, descriptor } = innerStack(cpu, level, ext);
  const stack = new Stack(cpu, {
    segment,
    pointer,
    bits: segment.db ? 32 : 16,
    rights: 'system',
    code: selectorCode(selector, ext),
  });
  return { stack, segment, descriptor };
}
