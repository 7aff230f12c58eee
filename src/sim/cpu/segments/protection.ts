/** Descriptor tables, selectors and segment registers (SDM volume 2; volume 3, 2.4 and 5.10). */

import { addressOf } from '../address/addressing.ts';
import { gprAt, read16, readGpr, readMemory, writeGpr, writeWideOr16 } from '../address/operands.ts';
import {
  type Descriptor,
  isCode,
  isConforming,
  isNull,
  isWritableData,
  rpl,
  Seg,
  type Segment,
  System,
  segmentOf,
  selectorCode,
  type Table,
  Type,
} from '../processor/descriptors.ts';
import { raise, Vector } from '../processor/fault.ts';
import type { Helper, Helpers } from '../processor/helper.ts';
import type { Insn, Size } from '../processor/insn.ts';
import {
  canonical,
  cpl,
  ia32e,
  longMode,
  privileged,
  protectedMode,
  refuseUserMode,
  virtual8086,
  wrapLinear,
} from '../processor/mode.ts';
import type { Processor } from '../processor/processor.ts';
import { Flag } from '../processor/state.ts';
import { loadSegment, readDescriptor } from './loads.ts';
import { Stack } from './stack.ts';

/** Descriptor tables and their selectors are protected mode's. */
function needsProtectedMode(cpu: Processor): void {
  if (!protectedMode(cpu) || virtual8086(cpu)) raise(Vector.UD);
}

function setZero(cpu: Processor, zero: boolean): void {
  const { state } = cpu;
  state.flags = (state.flags & ~Flag.ZF) | (zero ? Flag.ZF : 0);
}

// --- LAR, LSL, VERR, VERW, ARPL ----------------------------------------------------------------------------------------

/** System descriptors that LAR and LSL can see, outside IA-32e mode and in it. */
const LAR = {
  legacy: [
    System.TSS16,
    System.LDT,
    System.TSS16_BUSY,
    System.CALL16,
    System.TASK_GATE,
    System.TSS,
    System.TSS_BUSY,
    System.CALL,
  ] as readonly number[],
  ia32e: [System.LDT, System.TSS, System.TSS_BUSY, System.CALL] as readonly number[],
};
const LSL = {
  legacy: [System.TSS16, System.LDT, System.TSS16_BUSY, System.TSS, System.TSS_BUSY] as readonly number[],
  ia32e: [System.LDT, System.TSS, System.TSS_BUSY] as readonly number[],
};

/** The descriptor, if the program may know about it. */
function visible(cpu: Processor, selector: number, types: typeof LAR): Descriptor | undefined {
  if (isNull(selector)) return undefined;
  const descriptor = readDescriptor(cpu, selector);
  if (descriptor === undefined) return undefined;
  const { s, type, dpl } = descriptor;
  if (!s && !(ia32e(cpu) ? types.ia32e : types.legacy).includes(type)) return undefined;
  if (isCode(descriptor) && isConforming(descriptor)) return descriptor;
  return cpl(cpu) > dpl || rpl(selector) > dpl ? undefined : descriptor;
}

const inspect =
  (types: typeof LAR, result: (descriptor: Descriptor) => number): Helper =>
  (cpu, insn) => {
    needsProtectedMode(cpu);
    const descriptor = visible(cpu, read16(cpu, insn, 1), types);
    setZero(cpu, descriptor !== undefined);
    const { index, size } = gprAt(insn, 0);
    if (descriptor !== undefined) writeGpr(cpu, index, size, BigInt(result(descriptor) >>> 0));
  };

const verify =
  (allowed: (descriptor: Descriptor) => boolean): Helper =>
  (cpu, insn) => {
    needsProtectedMode(cpu);
    const selector = read16(cpu, insn, 0);
    const descriptor = isNull(selector) ? undefined : readDescriptor(cpu, selector);
    const free = descriptor !== undefined && isCode(descriptor) && isConforming(descriptor);
    const near = descriptor !== undefined && cpl(cpu) <= descriptor.dpl && rpl(selector) <= descriptor.dpl;
    setZero(cpu, descriptor?.s === true && (free || near) && allowed(descriptor));
  };

const isReadable = (descriptor: Descriptor) => !isCode(descriptor) || (descriptor.type & Type.READABLE) !== 0;

const arpl: Helper = (cpu, insn) => {
  needsProtectedMode(cpu);
  const wanted = Number(readGpr(cpu, gprAt(insn, 1).index, 2)) & 3;
  const operand = insn.operands[0]!;
  const linear = operand.kind === 'mem' ? addressOf(cpu, operand, insn, 2, true) : undefined;
  if (linear !== undefined) cpu.memory.checkWrite(linear, 2);
  const selector = linear === undefined ? read16(cpu, insn, 0) : cpu.memory.read16(linear);
  const raised = rpl(selector) < wanted;
  if (raised) {
    const next = (selector & ~3) | wanted;
    if (linear !== undefined) cpu.memory.write16(linear, next);
    else writeGpr(cpu, gprAt(insn, 0).index, 2, BigInt(next));
  }
  setZero(cpu, raised);
};

// --- GDTR, IDTR, LDTR, TR ------------------------------------------------------------------------------------------------

function memoryOf(insn: Insn) {
  const operand = insn.operands[0];
  if (operand?.kind === 'mem') return operand;
  throw new TypeError(`${insn.code}: no memory operand`);
}

/** All 32 bits of the base are stored whatever the operand size is. */
const storeTable =
  (tableOf: (cpu: Processor) => Table): Helper =>
  (cpu, insn) => {
    refuseUserMode(cpu);
    const { base, limit } = tableOf(cpu);
    const size = longMode(cpu) ? 8 : 4;
    const linear = addressOf(cpu, memoryOf(insn), insn, size + 2, true);
    const bytes = new Uint8Array(size + 2);
    const view = new DataView(bytes.buffer);
    view.setUint16(0, limit, true);
    if (size === 8) view.setBigUint64(2, base, true);
    else view.setUint32(2, Number(base & 0xffff_ffffn), true);
    cpu.memory.writeBytes(linear, bytes);
  };

function loadTable(cpu: Processor, insn: Insn): Table {
  privileged(cpu);
  const size = longMode(cpu) ? 8 : 4;
  const linear = addressOf(cpu, memoryOf(insn), insn, size + 2, false);
  const limit = cpu.memory.read16(linear);
  const base = readMemory(cpu, wrapLinear(cpu, linear + 2n), size);
  if (size === 8 && !canonical(base)) raise(Vector.GP, 0);
  return { limit, base: insn.code.endsWith('_16') ? base & 0xff_ffffn : base };
}

/** A system segment: LDT or TSS. Descriptors of 64-bit mode have 16 bytes. */
function systemSegment(
  cpu: Processor,
  selector: number,
  types: readonly number[],
): { segment: Segment; descriptor: Descriptor } {
  const error = selectorCode(selector);
  if ((selector & 4) !== 0) raise(Vector.GP, error);
  const long = longMode(cpu);
  const descriptor = readDescriptor(cpu, selector, long ? 16 : 8);
  if (descriptor === undefined || descriptor.s || !types.includes(descriptor.type)) raise(Vector.GP, error);
  if (!descriptor.present) raise(Vector.NP, error);
  const segment = segmentOf(selector, descriptor);
  if (!long) return { segment, descriptor };
  const high = cpu.memory.readSystem32(wrapLinear(cpu, descriptor.linear + 8n));
  const base = segment.base | (BigInt(high) << 32n);
  if (!canonical(base)) raise(Vector.GP, error);
  return { segment: { ...segment, base }, descriptor };
}

const BUSY = 2;

export const descriptorTables: Helpers = {
  lar: inspect(LAR, ({ hi }) => hi & 0x00ff_ff00),
  lsl: inspect(LSL, (descriptor) => segmentOf(0, descriptor).limit),
  verr: verify(isReadable),
  verw: verify(isWritableData),
  arpl,
  sgdt: storeTable((cpu) => cpu.gdtr),
  sidt: storeTable((cpu) => cpu.idtr),
  lgdt(cpu, insn) {
    cpu.gdtr = loadTable(cpu, insn);
  },
  lidt(cpu, insn) {
    cpu.idtr = loadTable(cpu, insn);
  },
  sldt(cpu, insn) {
    needsProtectedMode(cpu);
    refuseUserMode(cpu);
    writeWideOr16(cpu, insn, 0, BigInt(cpu.ldtr.selector));
  },
  str(cpu, insn) {
    needsProtectedMode(cpu);
    refuseUserMode(cpu);
    writeWideOr16(cpu, insn, 0, BigInt(cpu.tr.selector));
  },
  lldt(cpu, insn) {
    needsProtectedMode(cpu);
    privileged(cpu);
    const selector = read16(cpu, insn, 0);
    if (isNull(selector)) cpu.ldtr = { ...cpu.ldtr, selector, present: 0, unusable: 1 };
    else cpu.ldtr = systemSegment(cpu, selector, [System.LDT]).segment;
  },
  ltr(cpu, insn) {
    needsProtectedMode(cpu);
    privileged(cpu);
    const selector = read16(cpu, insn, 0);
    if (isNull(selector)) raise(Vector.GP, 0);
    const types = ia32e(cpu) ? [System.TSS] : [System.TSS16, System.TSS];
    const { segment, descriptor } = systemSegment(cpu, selector, types);
    const busy = ((descriptor.hi >>> 8) & 0xff) | BUSY;
    cpu.memory.writeSystem8(wrapLinear(cpu, descriptor.linear + 5n), busy);
    cpu.tr = { ...segment, type: segment.type | BUSY };
  },
};

// --- segment registers ---------------------------------------------------------------------------------------------------

function segmentAt(insn: Insn, position: number): number {
  const operand = insn.operands[position];
  if (operand?.kind === 'segment') return operand.index;
  throw new TypeError(`${insn.code}: operand ${position} is no segment register`);
}

/** MOV SS and POP SS hold interrupts and debug exceptions back for one instruction (SDM volume 3, 6.8.3). */
function load(cpu: Processor, index: number, selector: number): void {
  if (index === Seg.CS) raise(Vector.UD);
  loadSegment(cpu, index, selector);
  if (index === Seg.SS) cpu.shadow = 'mov-ss';
}

const pointer =
  (segment: number): Helper =>
  (cpu, insn) => {
    const { index, size } = gprAt(insn, 0);
    const memory = insn.operands[1];
    if (memory?.kind !== 'mem') raise(Vector.UD);
    const linear = addressOf(cpu, memory, insn, size + 2, false);
    const offset = readMemory(cpu, linear, size);
    loadSegment(cpu, segment, cpu.memory.read16(wrapLinear(cpu, linear + BigInt(size))));
    writeGpr(cpu, index, size, offset);
  };

const STACK_SIZES: { readonly [letter: string]: Size } = { w: 2, d: 4, q: 8 };
/** Pushw_FS, Popd_DS, and so on. */
const sizeOf = (insn: Insn): 2 | 4 | 8 =>
  STACK_SIZES[/^(?:Push|Pop)([wdq])_/.exec(insn.code)![1]!] as 2 | 4 | 8;

export const segmentRegisters: Helpers = {
  'push sreg'(cpu, insn) {
    const size = sizeOf(insn);
    const stack = Stack.current(cpu);
    const value = BigInt(cpu.segments[segmentAt(insn, 0)]!.selector);
    // Intel's processors write 16 bits of a push of 32 (SDM volume 2, PUSH).
    if (size === 4 && cpu.vendor === 'intel') {
      stack.skip(-2);
      stack.push(value, 2);
    } else stack.push(value, size);
    stack.write();
    stack.commit();
  },
};

export const segmentRegistersEnding: Helpers = {
  'mov to sreg': (cpu, insn) => load(cpu, segmentAt(insn, 0), read16(cpu, insn, 1)),
  'pop sreg'(cpu, insn) {
    const size = sizeOf(insn);
    const stack = Stack.current(cpu);
    const selector = Number(stack.pop(2));
    stack.skip(size - 2);
    // RSP first: a stack segment of another width does not matter to this pop.
    const rsp = cpu.state.gpr(4);
    stack.commit();
    try {
      load(cpu, segmentAt(insn, 0), selector);
    } catch (thrown) {
      cpu.state.setGpr(4, rsp);
      throw thrown;
    }
  },
  les: pointer(0),
  lds: pointer(3),
  lss: pointer(2),
  lfs: pointer(4),
  lgs: pointer(5),
};
