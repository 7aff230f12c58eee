/**
 * The switch from one task to another, when it is known which (SDM volume 3, 8.3). Up to the commit point faults are the
 * old task's, and have changed nothing; those after it are the new task's.
 */

import { pdptesAreValid } from '../address/paging.ts';
import { DR6, loseStep } from '../processor/debug.ts';
import {
  type Descriptor,
  rpl,
  Seg,
  type Segment,
  segmentOf,
  selectorCode,
} from '../processor/descriptors.ts';
import { Alone, GuestFault, raise, Vector } from '../processor/fault.ts';
import { IoStop } from '../processor/io.ts';
import { CR0, CR4, paging, Unmodelled, wrapLinear } from '../processor/mode.ts';
import type { Processor } from '../processor/processor.ts';
import { Flag } from '../processor/state.ts';
import { readDescriptor, setSegment, virtualSegment } from './loads.ts';
import { Stack } from './stack.ts';
import { loadTaskLdt, loadTaskSegment, unloaded } from './task-loads.ts';
import { Undo } from './task-undo.ts';
import { layoutOf, type TssLayout } from './tss-layout.ts';

/** A descriptor of a TSS that has been checked. */
export interface Task {
  readonly selector: number;
  readonly descriptor: Descriptor;
}

/** 'call' and 'interrupt' nest: the new task has a link to the old one, and both are busy. */
export type How = 'jump' | 'call' | 'return' | 'interrupt';

export interface Leaving {
  /** Where the old task goes on. */
  readonly next: bigint;
  /** It leaves by a fault: its flags have RF. */
  readonly fault?: boolean;
  /** For the new task's stack. */
  readonly errorCode?: number | undefined;
  /** 1 in error codes where an event from outside is being delivered. */
  readonly ext: number;
}

/** What was wrong behind the commit point: an exception that the new task begins with. */
export interface LateFault {
  readonly vector: number;
  readonly errorCode: number | undefined;
  readonly address: bigint;
}

const LINK = 0;
const BUSY = 2;
/** DR7's local enables, which end with a task (SDM volume 3, 18.2.4). */
const LOCAL = 0x155n;
const FLAGS = 0x3f_7fd5;

interface Image {
  readonly ip: number;
  readonly flags: number;
  readonly registers: readonly number[];
  readonly segments: readonly (readonly [index: number, selector: number])[];
  readonly ldt: number;
  readonly cr3: number | undefined;
  readonly trap: boolean;
}

/** A task's state as its segment has it. */
function read(cpu: Processor, base: bigint, layout: TssLayout): Image {
  const at = (offset: number) => wrapLinear(cpu, base + BigInt(offset));
  const half = (offset: number) => cpu.memory.readSystem16(at(offset));
  const { word, ip, flags, registers, segments, ldt, cr3, trap } = layout;
  const value = (offset: number) => (word === 2 ? half(offset) : cpu.memory.readSystem32(at(offset)) >>> 0);
  return {
    ip: value(ip),
    flags: value(flags),
    registers: Array.from({ length: 8 }, (_, index) => value(registers + index * word)),
    segments: segments.map(([index, offset]) => [index, half(offset)]),
    ldt: half(ldt),
    cr3: cr3 === undefined ? undefined : value(cr3),
    trap: trap !== undefined && (half(trap) & 1) !== 0,
  };
}

/** The old task's state into its segment. Of a field of 32 bits a selector has all. */
function save(cpu: Processor, undo: Undo, { base }: Segment, layout: TssLayout, ip: bigint, flags: number) {
  const { word, registers, segments } = layout;
  const put = (offset: number, value: number) => undo.write(base + BigInt(offset), word, value);
  put(layout.ip, Number(BigInt.asUintN(32, ip)));
  put(layout.flags, flags);
  for (let index = 0; index < 8; index++)
    put(registers + index * word, Number(BigInt.asUintN(32, cpu.state.gpr(index))));
  for (const [index, offset] of segments) put(offset, cpu.segments[index]!.selector);
}

/** Where a descriptor's type is. */
const typeOf = ({ linear }: Descriptor) => linear + 5n;
function setBusy(undo: Undo, descriptor: Descriptor, busy: boolean): void {
  const access = (descriptor.hi >>> 8) & 0xff;
  undo.write(typeOf(descriptor), 1, busy ? access | BUSY : access & ~BUSY);
}

/** All that can be wrong before anything is changed, and the new task's state. */
function prepare(cpu: Processor, { selector, descriptor }: Task, how: How, ext: number) {
  const { tr, memory } = cpu;
  const to = segmentOf(selector, descriptor);
  const layout = layoutOf(to);
  if (to.limit < layout.bytes - 1) raise(Vector.TS, selectorCode(selector, ext));
  const from = layoutOf(tr);
  if (tr.limit < from.bytes - 1) raise(Vector.TS, selectorCode(tr.selector, ext));
  const image = read(cpu, to.base, layout);
  const nests = how === 'call' || how === 'interrupt';
  const check = (linear: bigint, size: number) => memory.checkWrite(wrapLinear(cpu, linear), size, 'system');
  check(tr.base + BigInt(from.ip), from.ldt - from.ip);
  if (nests) check(to.base + BigInt(LINK), 2);
  if (how !== 'return') check(typeOf(descriptor), 1);
  const old = nests ? undefined : readDescriptor(cpu, tr.selector & ~4);
  if (old !== undefined) check(typeOf(old), 1);
  const { cr3 } = image;
  const pdptes = cr3 !== undefined && paging(cpu) && (cpu.cr4 & CR4.PAE) !== 0;
  if (pdptes && !pdptesAreValid(cpu, BigInt(cr3))) raise(Vector.GP, 0);
  return { to, from, image, nests, old };
}

/** What an exception of the new task's is raised for. */
function load(cpu: Processor, { segments, ldt }: Image, level: number, leaving: Leaving, word: 2 | 4): void {
  const { ext, errorCode } = leaving;
  loadTaskLdt(cpu, ldt, ext);
  if ((cpu.state.flags & Flag.VM) === 0)
    for (const [index, selector] of segments) loadTaskSegment(cpu, index, selector, level, ext);
  if (errorCode === undefined) return;
  cpu.changed(); // it is pushed with the new task's rights
  const stack = Stack.current(cpu, ext);
  stack.push(BigInt(errorCode), word);
  stack.write();
  stack.commit();
}

function perform(cpu: Processor, undo: Undo, task: Task, how: How, leaving: Leaving): LateFault | undefined {
  const { to, from, image, nests, old } = prepare(cpu, task, how, leaving.ext);
  const { state, tr } = cpu;
  let { flags } = state;
  if (how === 'return') flags &= ~Flag.NT;
  if (leaving.fault === true) flags |= Flag.RF;
  save(cpu, undo, tr, from, leaving.next, flags);
  if (old !== undefined) setBusy(undo, old, false);
  if (how !== 'return') setBusy(undo, task.descriptor, true);
  if (nests) undo.write(to.base + BigInt(LINK), 2, tr.selector);

  cpu.tr = { ...to, type: to.type | BUSY };
  cpu.cr0 |= CR0.TS;
  cpu.dr[7] = cpu.dr[7]! & ~LOCAL;
  if (image.cr3 !== undefined) {
    cpu.cr3 = BigInt(image.cr3);
    cpu.flushTlbLocal();
  }
  state.flags = (image.flags & FLAGS) | 2 | (nests ? Flag.NT : 0);
  state.rip = BigInt(image.ip);
  for (const [index, value] of image.registers.entries()) state.setGpr(index, BigInt(value));
  const virtual = (state.flags & Flag.VM) !== 0;
  const cs = image.segments.find(([index]) => index === Seg.CS)![1];
  const level = virtual ? 3 : rpl(cs);
  for (const [index, selector] of image.segments)
    setSegment(cpu, index, virtual ? virtualSegment(selector) : unloaded(selector, level));
  cpu.ldtr = { ...cpu.ldtr, selector: image.ldt, present: 0, unusable: 1 };
  loseStep(cpu);
  try {
    load(cpu, image, level, leaving, layoutOf(to).word);
  } catch (thrown) {
    if (!(thrown instanceof GuestFault)) throw thrown;
    const { vector, errorCode, address } = thrown;
    return { vector, errorCode, address };
  }
  if (image.trap) cpu.debug.held |= DR6.BT;
  return undefined;
}

/**
 * Switches. Gives what the new task begins with, if something is wrong with it.
 * @throws GuestFault where something is wrong with the switch, which has not happened then
 */
export function switchTask(cpu: Processor, task: Task, how: How, leaving: Leaving): LateFault | undefined {
  // KVM's emulator has no task switch in the middle of another instruction (emulate.c, __load_segment_descriptor()).
  if (cpu.io.mode === 'emulated') throw new Unmodelled('a task switch whose instruction needs MMIO');
  const undo = new Undo(cpu);
  try {
    return perform(cpu, undo, task, how, leaving);
  } catch (thrown) {
    if (thrown instanceof GuestFault) throw thrown;
    undo.all();
    // KVM_INTERNAL_ERROR_EMULATION, as kvm_task_switch() has it.
    const mmio = thrown instanceof IoStop || (thrown instanceof Alone && thrown.mode === 'emulated');
    throw mmio ? new Unmodelled('a task switch that needs MMIO') : thrown;
  }
}
