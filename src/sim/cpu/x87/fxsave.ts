/**
 * The 512 bytes of FXSAVE (SDM volume 1, 10.5.1): the instructions, and the image as the kernel's KVM_GET_FPU,
 * KVM_GET_XSAVE and their counterparts need it.
 */
import { addressOf } from '../address/addressing.ts';
import { raise, Vector } from '../processor/fault.ts';
import type { Helper, Helpers } from '../processor/helper.ts';
import type { Insn } from '../processor/insn.ts';
import { CR0 } from '../processor/mode.ts';
import type { Processor } from '../processor/processor.ts';
import { State } from '../processor/state.ts';
import { MXCSR_MASK } from '../sse/move.ts';
import { fromBytes, initialize, setControlWord, toBytes } from './move.ts';
import { Fsw, in64BitMode, physical, register, setRegister, summarize } from './stack.ts';

/** Where things lie in the image (SDM volume 1, 10.5.1.1), which is also the legacy region of an XSAVE area. */
export const Image = {
  fcw: 0,
  fsw: 2,
  ftw: 4,
  fop: 6,
  fip: 8,
  /** The upper half of fip in the form without REX.W; so with fds. */
  fcs: 12,
  fdp: 16,
  fds: 20,
  mxcsr: 24,
  mxcsrMask: 28,
  st: 32,
  xmm: 160,
} as const;
export const FXSAVE_SIZE = 512;

const MXCSR_RESET = 0x1f80;

/** What of the processor the image is made of; a whole Processor is one. */
export type FpuHolder = Pick<Processor, 'state' | 'arena'>;

/** As after power-up and after FNINIT, with MXCSR's reset value. XMM and YMM registers become zeroes. */
export function resetFpu(cpu: FpuHolder): void {
  initialize(cpu as Processor);
  cpu.state.setU32(State.mxcsr, MXCSR_RESET);
  const { u8 } = cpu.arena.views;
  u8.fill(0, cpu.state.base + State.xmm, cpu.state.base + State.x87 + 128);
  u8.fill(0, cpu.state.base + State.ymm, cpu.state.base + State.ymm + 256);
}

/** The abridged tag word: a bit for each physical register that is not empty. */
function abridged(ftw: number): number {
  let bits = 0;
  for (let i = 0; i < 8; i++) if (((ftw >> (2 * i)) & 3) !== 3) bits |= 1 << i;
  return bits;
}
function unabridged(bits: number): number {
  let ftw = 0;
  for (let i = 0; i < 8; i++) if (((bits >> i) & 1) === 0) ftw |= 3 << (2 * i);
  return ftw;
}

/** The image with pointers of 64 bits and all of XMM0-15. */
export function fxsaveImage(cpu: FpuHolder): Uint8Array {
  const { state } = cpu;
  const processor = cpu as Processor;
  const bytes = new Uint8Array(FXSAVE_SIZE);
  const view = new DataView(bytes.buffer);
  view.setUint16(Image.fcw, state.u16(State.fcw), true);
  view.setUint16(Image.fsw, state.u16(State.fsw), true);
  view.setUint8(Image.ftw, abridged(state.u16(State.ftw)));
  view.setUint16(Image.fop, state.u16(State.fop), true);
  view.setBigUint64(Image.fip, state.u64(State.fip), true);
  view.setBigUint64(Image.fdp, state.u64(State.fdp), true);
  view.setUint32(Image.mxcsr, state.u32(State.mxcsr), true);
  view.setUint32(Image.mxcsrMask, MXCSR_MASK, true);
  for (let i = 0; i < 8; i++) {
    bytes.set(toBytes(register(processor, physical(processor, i)), 10), Image.st + 16 * i);
  }
  const xmm = state.base + State.xmm;
  bytes.set(cpu.arena.views.u8.subarray(xmm, xmm + 256), Image.xmm);
  return bytes;
}

/**
 * Takes the state from an image of fxsaveImage's form; MXCSR's reserved bits are dropped, as KVM's ioctls do. The form
 * has no selectors, and makes them zeroes.
 */
export function loadFxsaveImage(cpu: FpuHolder, bytes: Uint8Array): void {
  loadImage(cpu, bytes, 16);
}

function loadImage(cpu: FpuHolder, bytes: Uint8Array, xmmCount: number): void {
  const { state } = cpu;
  const processor = cpu as Processor;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  setControlWord(processor, view.getUint16(Image.fcw, true));
  state.setU16(State.fsw, view.getUint16(Image.fsw, true));
  state.setU16(State.ftw, unabridged(view.getUint8(Image.ftw)));
  state.setU16(State.fop, view.getUint16(Image.fop, true) & 0x7ff);
  state.setU64(State.fip, view.getBigUint64(Image.fip, true));
  state.setU16(State.fcs, 0);
  state.setU64(State.fdp, view.getBigUint64(Image.fdp, true));
  state.setU16(State.fds, 0);
  state.setU32(State.mxcsr, view.getUint32(Image.mxcsr, true) & MXCSR_MASK);
  for (let i = 0; i < 8; i++) {
    const at = Image.st + 16 * i;
    setRegister(processor, physical(processor, i), fromBytes(bytes.subarray(at, at + 10)));
  }
  cpu.arena.views.u8.set(bytes.subarray(Image.xmm, Image.xmm + 16 * xmmCount), state.base + State.xmm);
  summarize(processor);
}

export const xmmCount = (cpu: Processor): number => (in64BitMode(cpu) ? 16 : 8);

/** The address, of 512 bytes that must be aligned to 16; neither form waits for pending exceptions. */
function imageAddress(cpu: Processor, insn: Insn, isWrite: boolean): bigint {
  if ((cpu.cr0 & (CR0.EM | CR0.TS)) !== 0) raise(Vector.NM);
  const operand = insn.operands[0]!;
  if (operand.kind !== 'mem') throw new TypeError(`${insn.code} without its memory operand`);
  const linear = addressOf(cpu, operand, insn, FXSAVE_SIZE, isWrite);
  if ((linear & 15n) !== 0n) raise(Vector.GP, 0);
  return linear;
}

/** Without REX.W the pointers have 32 bits and a selector. */
const selectors = [
  [Image.fcs, State.fcs],
  [Image.fds, State.fds],
] as const;
export function instructionsImage(cpu: Processor, wide: boolean): Uint8Array {
  const bytes = fxsaveImage(cpu);
  const view = new DataView(bytes.buffer);
  if (!wide) for (const [at, selector] of selectors) view.setUint32(at, cpu.state.u16(selector), true);
  // AMD's processors give the pointers of pending exceptions only, and zeroes otherwise.
  const pending = (cpu.state.u16(State.fsw) & Fsw.ES) !== 0;
  if (cpu.vendor === 'amd' && !pending) bytes.fill(0, Image.fop, Image.mxcsr);
  return bytes;
}
const save =
  (wide: boolean): Helper =>
  (cpu, insn) => {
    const linear = imageAddress(cpu, insn, true);
    const bytes = instructionsImage(cpu, wide);
    // What lies behind the registers is the program's.
    cpu.memory.writeBytes(linear, bytes.subarray(0, Image.xmm + 16 * xmmCount(cpu)));
  };

const restore =
  (wide: boolean): Helper =>
  (cpu, insn) => {
    const linear = imageAddress(cpu, insn, false);
    const bytes = cpu.memory.readBytes(linear, FXSAVE_SIZE).slice();
    const view = new DataView(bytes.buffer);
    if ((view.getUint32(Image.mxcsr, true) & ~MXCSR_MASK) !== 0) raise(Vector.GP, 0);
    loadInstructionsImage(cpu, bytes, wide);
  };

/** From an image of instructionsImage()'s form, which is changed. */
export function loadInstructionsImage(cpu: Processor, bytes: Uint8Array, wide: boolean): void {
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  const [fcs, fds] = selectors.map(([at]) => (wide ? 0 : view.getUint16(at, true)));
  if (!wide) for (const [at] of selectors) view.setUint32(at, 0, true);
  loadImage(cpu, bytes, xmmCount(cpu));
  cpu.state.setU16(State.fcs, fcs!);
  cpu.state.setU16(State.fds, fds!);
}

export const fxsave: Helpers = {
  fxsave: save(false),
  fxsave64: save(true),
  fxrstor: restore(false),
  fxrstor64: restore(true),
};
