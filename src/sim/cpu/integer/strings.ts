/**
 * String instructions (SDM volume 1, 7.3.9). One call does some elements and leaves RIP where it is while more are
 * to come, so that interrupts have their chance. Registers move with each element: a fault finds them exact.
 */

import { PAGE } from '../../arena.ts';
import { addressOf } from '../address/addressing.ts';
import { Seg } from '../processor/descriptors.ts';
import type { Helper, Helpers } from '../processor/helper.ts';
import type { Insn, Memory, Size } from '../processor/insn.ts';
import type { Processor } from '../processor/processor.ts';
import { Access, MMIO } from '../processor/stage.ts';
import { Flag, FlagKind, State } from '../processor/state.ts';

const RAX = 0;
const RCX = 1;
const RSI = 6;
const RDI = 7;
/** Elements of one call. */
const MOST = 4096;

const GIB4 = 2 ** 32;
const bitsOf = (insn: Insn) => insn.addressSize * 8;

/** The counter of repetitions, cut to the address size: of very many not all bits. */
export function repetitions({ state }: Processor, { addressSize }: Insn): number {
  if (addressSize === 2) return state.u16(RCX * 8);
  const low = state.u32(RCX * 8);
  return addressSize === 4 ? low : low + state.u32(RCX * 8 + 4) * GIB4;
}
/** Moves an index or the counter, which is as wide as addresses are, by less than 2^31. */
export function advance({ state }: Processor, { addressSize }: Insn, register: number, by: number): void {
  const at = register * 8;
  if (addressSize === 2) {
    state.setU16(at, state.u16(at) + by);
    return;
  }
  const low = state.u32(at) + by;
  state.setU32(at, low);
  state.setU32(at + 4, addressSize === 4 ? 0 : state.u32(at + 4) + Math.floor(low / GIB4));
}
export const isDown = ({ state }: Processor) => (state.eflags & Flag.DF) !== 0;

/** The operand that this index register addresses. */
export function operandAt({ operands }: Insn, register: number): Memory {
  const [first] = operands;
  return (first?.kind === 'mem' && first.base === register ? first : operands[1]) as Memory;
}
/** An element at an index register, sign-extended. */
function read(cpu: Processor, insn: Insn, register: number, size: Size): bigint {
  const linear = addressOf(cpu, operandAt(insn, register), insn, size, false);
  if (size === 8) return cpu.memory.load64(linear, false, false);
  return BigInt.asIntN(size * 8, BigInt(cpu.memory.load32(linear, size, false, false)));
}
function write(cpu: Processor, insn: Insn, size: Size, value: bigint): void {
  const linear = addressOf(cpu, operandAt(insn, RDI), insn, size, true);
  if (size === 8) cpu.memory.store64(linear, BigInt.asIntN(64, value), false);
  else cpu.memory.store32(linear, Number(BigInt.asIntN(32, value)), size, false);
}
const accumulator = ({ state }: Processor, size: Size) => BigInt.asIntN(size * 8, state.gpr(RAX));

interface StringInstruction {
  /** One element: its accesses, and then the index registers. */
  element(cpu: Processor, insn: Insn, size: Size, step: number): void;
  /** Many elements at once: gives how many, 0 where they must go one by one. */
  bulk?(cpu: Processor, insn: Insn, size: Size, step: number, most: number): number;
}
const movs: StringInstruction = {
  element(cpu, insn, size, step) {
    write(cpu, insn, size, read(cpu, insn, RSI, size));
    advance(cpu, insn, RSI, step);
    advance(cpu, insn, RDI, step);
  },
  bulk(cpu, insn, size, step, most) {
    const reads = whole(cpu, insn, RSI, size, step, most, Access.READ);
    if (reads === 0) return 0;
    const from = found;
    const writes = whole(cpu, insn, RDI, size, step, reads, Access.WRITE);
    if (writes === 0 || from === found) return 0;
    // What is copied onto what is still to be copied is read as it was written.
    const distance = step > 0 ? found - from : from - found;
    const count = distance < 0 ? writes : Math.min(writes, Math.floor(distance / size));
    if (count === 0) return 0;
    const lowest = step > 0 ? 0 : (count - 1) * size;
    cpu.arena.views.u8.copyWithin(found - lowest, from - lowest, from - lowest + count * size);
    advance(cpu, insn, RSI, count * step);
    advance(cpu, insn, RDI, count * step);
    return count;
  },
};
const stos: StringInstruction = {
  element(cpu, insn, size, step) {
    write(cpu, insn, size, accumulator(cpu, size));
    advance(cpu, insn, RDI, step);
  },
  bulk(cpu, insn, size, step, most) {
    const count = whole(cpu, insn, RDI, size, step, most, Access.WRITE);
    if (count === 0) return 0;
    const start = step > 0 ? found : found - (count - 1) * size;
    const { u8, u16, i32, i64 } = cpu.arena.views;
    const value = accumulator(cpu, size);
    if (size === 1 || value === 0n) u8.fill(Number(value), start, start + count * size);
    else {
      if (start % size !== 0) return 0;
      const [first, end] = [start / size, start / size + count];
      if (size === 8) i64.fill(value, first, end);
      else (size === 4 ? i32 : u16).fill(Number(value), first, end);
    }
    advance(cpu, insn, RDI, count * step);
    return count;
  },
};
const lods: StringInstruction = {
  element(cpu, insn, size, step) {
    const value = BigInt.asUintN(size * 8, read(cpu, insn, RSI, size));
    const kept = size >= 4 ? 0n : cpu.state.gpr(RAX) & ~((1n << BigInt(size * 8)) - 1n);
    cpu.state.setGpr(RAX, kept | value);
    advance(cpu, insn, RSI, step);
  },
};

/** Where in the arena the first of the elements is that whole() has counted. */
let found = 0;
/**
 * How many elements at an index register, from there on up or down, lie in one page: 0 of them where a segment, the alignment or
 * the end of the addresses must be looked at for each.
 */
function whole(
  cpu: Processor,
  insn: Insn,
  register: number,
  size: Size,
  step: number,
  most: number,
  access: Access,
): number {
  const { mode, alignment, state } = cpu;
  const { segment } = operandAt(insn, register);
  const flat =
    mode.bits === 64
      ? segment < Seg.FS
      : mode.bits === 32 && segment !== Seg.CS && (mode.flat & (1 << segment)) !== 0;
  if (most === 0 || alignment || !flat || bitsOf(insn) !== mode.bits) return 0;
  const low = state.u32(register * 8);
  const high = mode.bits === 64 ? state.u32(register * 8 + 4) : 0;
  const inside = low & (PAGE - 1);
  const room = inside + size > PAGE ? 0 : Math.floor((step > 0 ? PAGE - inside : inside + size) / size);
  const count = Math.min(most, room);
  if (count < 1 || (mode.bits === 64 && (high << 16) >> 16 !== (high | 0))) return 0;
  found = cpu.memory.hostAt(low, high, size, access);
  if (found === MMIO) return 0;
  if (access !== Access.WRITE) return count;
  // Code that is written to is looked at element by element.
  const page = cpu.code.pageOf(found);
  if (page === undefined) return count;
  const lowest = (found % PAGE) - (step > 0 ? 0 : (count - 1) * size);
  const clear = page.clear(lowest);
  if (step < 0) return clear >= count * size ? count : 0;
  return Math.min(count, Math.floor(clear / size));
}

/**
 * REP with a counter of 0 and 4-byte addresses in 64-bit mode: Intel's processors clear the upper halves of what
 * their fast strings use, and no others' do (arch/x86/kvm/emulate.c, string_registers_quirk).
 */
function clearUpper(cpu: Processor, insn: Insn): void {
  if (cpu.vendor !== 'intel' || insn.addressSize !== 4 || cpu.mode.bits !== 64) return;
  const { state } = cpu;
  state.setGpr(RCX, 0n);
  const cut = (register: number) => state.setGpr(register, state.gpr(register) & 0xffff_ffffn);
  if (/^movs[bd]$/.test(insn.mnemonic)) cut(RSI);
  if (/^(movs|stos)[bd]$/.test(insn.mnemonic)) cut(RDI);
}

const single = (cpu: Processor) => cpu.watched || cpu.io.mode !== undefined;
const stepOf = (cpu: Processor, size: Size) => (isDown(cpu) ? -size : size);

const move =
  ({ element, bulk }: StringInstruction, size: Size): Helper =>
  (cpu, insn) => {
    const step = stepOf(cpu, size);
    if (insn.rep === undefined) {
      if (single(cpu) || !bulk?.(cpu, insn, size, step, 1)) element(cpu, insn, size, step);
      return;
    }
    const all = repetitions(cpu, insn);
    if (all === 0) return clearUpper(cpu, insn);
    const most = single(cpu) ? 1 : Math.min(all, MOST);
    for (let left = most; left > 0; ) {
      let done = single(cpu) ? 0 : (bulk?.(cpu, insn, size, step, left) ?? 0);
      if (done === 0) {
        element(cpu, insn, size, step);
        done = 1;
      }
      advance(cpu, insn, RCX, -done);
      left -= done;
    }
    if (all > most) cpu.state.rip = insn.rip;
  };

/** The flags of left - right. */
function setCompared({ state }: Processor, left: bigint, right: bigint, size: Size): void {
  state.setU32(State.flagKind, FlagKind.SUB);
  state.setU64(State.flagA, left);
  state.setU64(State.flagB, right);
  state.setU64(State.flagResult, BigInt.asIntN(size * 8, left - right));
}
/** Elements of one page that were compared: how many, and the last two. */
interface Compared {
  readonly done: number;
  readonly x: bigint;
  readonly y: bigint;
}
/** Many elements at once, upwards: as far as they go on to be alike, or not; undefined where they must go one by one. */
function comparedBulk(
  cpu: Processor,
  insn: Insn,
  left: typeof RSI | typeof RAX,
  size: Size,
  most: number,
): Compared | undefined {
  if (size === 8) return undefined;
  // The source faults first, as element by element.
  let count = most;
  if (left === RSI) count = whole(cpu, insn, RSI, size, size, count, Access.READ);
  const from = found;
  if (left === RSI && from % size !== 0) return undefined;
  count = whole(cpu, insn, RDI, size, size, count, Access.READ);
  if (count === 0 || found % size !== 0) return undefined;
  const { u8, u16, i32 } = cpu.arena.views;
  const view = size === 4 ? i32 : size === 2 ? u16 : u8;
  const accumulated = Number(accumulator(cpu, size)) & (size === 4 ? -1 : size === 2 ? 0xffff : 0xff);
  const alike = insn.rep === 'rep';
  const second = found / size;
  const first = from / size;
  let i = 0;
  let x = accumulated;
  let y = 0;
  do {
    if (left === RSI) x = view[first + i]!;
    y = view[second + i]!;
    i++;
  } while (i < count && (x === y) === alike);
  const signed = (value: number) => BigInt.asIntN(size * 8, BigInt(value));
  return { done: i, x: signed(x), y: signed(y) };
}

/**
 * CMPS and SCAS. The flags are the last element's. A fault leaves them as they were before the first one (SDM volume
 * 2, REP), but on AMD's processors as the last element that was compared has left them.
 */
const compare =
  (left: typeof RSI | typeof RAX, size: Size): Helper =>
  (cpu, insn) => {
    const step = stepOf(cpu, size);
    const { rep } = insn;
    const all = rep === undefined ? 1 : repetitions(cpu, insn);
    if (all === 0) return clearUpper(cpu, insn);
    const most = single(cpu) ? 1 : Math.min(all, MOST);
    let x = 0n;
    let y = 0n;
    let done = 0;
    const isSingle = rep === undefined || single(cpu) || step < 0;
    do {
      const bulk = isSingle ? undefined : comparedBulk(cpu, insn, left, size, most - done);
      if (bulk === undefined) {
        x = left === RAX ? accumulator(cpu, size) : read(cpu, insn, RSI, size);
        y = read(cpu, insn, RDI, size);
      } else ({ x, y } = bulk);
      const count = bulk?.done ?? 1;
      if (left === RSI) advance(cpu, insn, RSI, step * count);
      advance(cpu, insn, RDI, step * count);
      if (rep !== undefined) advance(cpu, insn, RCX, -count);
      if (cpu.vendor === 'amd') setCompared(cpu, x, y, size);
      done += count;
    } while (done < most && (x === y) === (rep === 'rep'));
    setCompared(cpu, x, y, size);
    if (rep !== undefined && done < all && (x === y) === (rep === 'rep')) cpu.state.rip = insn.rip;
  };

const sizes = { b: 1, w: 2, d: 4, q: 8 } as const;
const each = (name: string, helper: (size: Size) => Helper): Helpers =>
  Object.fromEntries(Object.entries(sizes).map(([suffix, size]) => [name + suffix, helper(size)]));

export const strings: Helpers = {
  ...each('movs', (size) => move(movs, size)),
  ...each('stos', (size) => move(stos, size)),
  ...each('lods', (size) => move(lods, size)),
  ...each('cmps', (size) => compare(RSI, size)),
  ...each('scas', (size) => compare(RAX, size)),
};
