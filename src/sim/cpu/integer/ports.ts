/** Port I/O (SDM volume 1, chapter 19). How strings are split is KVM's (arch/x86/kvm/emulate.c, em_in and em_out). */

import { PAGE } from '../../arena.ts';
import { addressOf } from '../address/addressing.ts';
import { notePortAccess } from '../processor/debug.ts';
import type { Helper, Helpers } from '../processor/helper.ts';
import type { Insn } from '../processor/insn.ts';
import type { PortAccess } from '../processor/io.ts';
import type { Processor } from '../processor/processor.ts';
import { checkPorts } from '../segments/tss.ts';
import { advance, isDown, operandAt, repetitions } from './strings.ts';

const RAX = 0;
const RDX = 2;
const RSI = 6;
const RDI = 7;
/** The most that one exit reads ahead, in bytes (struct read_cache). */
const READ_AHEAD = 1024;

type PortSize = 1 | 2 | 4;

/** The port that operand `index` names: an immediate, or DX. */
function portOf(cpu: Processor, { operands }: Insn, index: number): number {
  const operand = operands[index]!;
  return operand.kind === 'imm' ? Number(operand.value) : cpu.state.u16(RDX * 8);
}
const sizeOf = ({ operands }: Insn, index: number) => (operands[index] as { size: PortSize }).size;

/** What IN makes of RAX. */
function setAccumulator(cpu: Processor, size: number, data: Uint8Array): void {
  for (let i = 0; i < size; i++) cpu.state.setU8(RAX * 8 + i, data[i] ?? 0);
  if (size === 4) cpu.state.setU32(RAX * 8 + 4, 0);
}
const input: Helper = (cpu, insn) => {
  const size = sizeOf(insn, 0);
  const port = portOf(cpu, insn, 1);
  checkPorts(cpu, port, size);
  notePortAccess(cpu, port, size);
  if (isLast(cpu)) {
    const data = new Uint8Array(size);
    wait(cpu, insn, { kind: 'io', write: false, port, size, count: 1, data });
  } else setAccumulator(cpu, size, cpu.io.input(port, size, 1));
};
const output: Helper = (cpu, insn) => {
  const size = sizeOf(insn, 1);
  const port = portOf(cpu, insn, 0);
  checkPorts(cpu, port, size);
  notePortAccess(cpu, port, size);
  const data = new Uint8Array(size);
  for (let i = 0; i < size; i++) data[i] = cpu.state.u8(RAX * 8 + i);
  if (!isLast(cpu)) return cpu.io.output(port, size, data);
  const stop = { kind: 'io', write: true, port, size, count: 1, data } as const;
  if (!cpu.io.bus(stop)) wait(cpu, insn, stop);
};

/** The instruction ends its block, and nobody looks at what it does as it does it. */
const isLast = ({ io, mode }: Processor): boolean => io.mode === undefined && !mode.single;

/** Stops before the instruction (arch/x86/kvm/x86.c, kvm_fast_pio): all that is left of it is finishPort()'s. */
function wait(cpu: Processor, insn: Insn, stop: PortAccess['stop']): void {
  cpu.io.port = { stop, next: insn.next };
  cpu.stop = stop;
  cpu.state.rip = insn.rip;
  cpu.state.counted--;
  cpu.shadow = undefined; // it is over with this instruction, which counts for begun
}
/** Userspace has answered (complete_fast_pio_in(), complete_fast_pio_out()). */
export function finishPort(cpu: Processor, { stop, next }: PortAccess, data: Uint8Array): void {
  if (!stop.write) setAccumulator(cpu, stop.size, data);
  cpu.state.rip = next;
  cpu.state.counted++;
}

/** Elements that one exit reads: no more than there are bytes to the end of the destination's page, and one at least. */
function ahead(cpu: Processor, { addressSize }: Insn, size: PortSize, left: number): number {
  const offset = Number(BigInt.asUintN(addressSize * 8, cpu.state.gpr(RDI)) & BigInt(PAGE - 1));
  const room = isDown(cpu) ? offset : PAGE - offset;
  const most = Math.max(Math.min(room, READ_AHEAD / size), 1);
  return Math.min(left, most);
}
/** Page by page, so that the first is written when the second faults (arch/x86/kvm/x86.c, emulator_read_write). */
function writePages(cpu: Processor, linear: bigint, data: Uint8Array): void {
  for (let done = 0; done < data.length; ) {
    const at = linear + BigInt(done);
    const end = done + PAGE - Number(at & BigInt(PAGE - 1));
    cpu.memory.writeBytes(at, data.subarray(done, end));
    done = end;
  }
}
/** INS. Userspace may have changed RCX: the count is what it says when the data is there. */
const inputString: Helper = (cpu, insn) => {
  const { size } = operandAt(insn, RDI) as { size: PortSize };
  const port = portOf(cpu, insn, 1);
  const left = insn.rep === undefined ? 1 : repetitions(cpu, insn);
  checkPorts(cpu, port, size);
  notePortAccess(cpu, port, size);
  if (left === 0) return;
  cpu.io.demand('emulated');
  const count = ahead(cpu, insn, size, left);
  const answer = cpu.io.input(port, size, count, true);
  const data = new Uint8Array(count * size);
  data.set(answer.subarray(0, data.length));
  // A port has been read when its data cannot be written. Downwards, elements are written one by one.
  const down = isDown(cpu);
  const at = operandAt(insn, RDI);
  const part = down ? size : data.length;
  for (let done = 0; done < data.length; done += part) {
    const linear = addressOf(cpu, { ...at, displacement: BigInt(-done) }, insn, part, true);
    writePages(cpu, linear, data.subarray(done, done + part));
  }
  advance(cpu, insn, RDI, (down ? -size : size) * count);
  finish(cpu, insn, count, left);
};
/** OUTS: one element for each exit. */
const outputString: Helper = (cpu, insn) => {
  const at = operandAt(insn, RSI);
  const size = at.size as PortSize;
  const port = portOf(cpu, insn, 0);
  const left = insn.rep === undefined ? 1 : repetitions(cpu, insn);
  checkPorts(cpu, port, size);
  notePortAccess(cpu, port, size);
  if (left === 0) return;
  cpu.io.demand('emulated');
  const data = cpu.memory.readBytes(addressOf(cpu, at, insn, size, false), size);
  cpu.io.output(port, size, data, true);
  advance(cpu, insn, RSI, isDown(cpu) ? -size : size);
  finish(cpu, insn, 1, left);
};
function finish(cpu: Processor, insn: Insn, done: number, left: number): void {
  if (insn.rep === undefined) return;
  advance(cpu, insn, 1, -done);
  if (done !== left) cpu.state.rip = insn.rip;
}

const sizes = ['b', 'w', 'd'];
const each = (name: string, helper: Helper): Helpers =>
  Object.fromEntries(sizes.map((suffix) => [name + suffix, helper]));

/** Those that do some elements and come back for the rest. */
export const stringIo: Helpers = { ...each('ins', inputString), ...each('outs', outputString) };
export const io: Helpers = { in: input, out: output };
