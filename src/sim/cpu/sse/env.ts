/** MXCSR as an environment of the softfloat: taken at the start of an instruction, and its flags given back at the end. */

import { type Binary, firstNan } from '../fp/arithmetic.ts';
import { BEFORE, type Environment, Exception, F32, F64, Rounding, read } from '../fp/float.ts';
import { canTell, type Native, safeOperand, safeResult, type Width } from '../fp/native.ts';
import { raise, Vector } from '../processor/fault.ts';
import { CR4 } from '../processor/mode.ts';
import type { Processor } from '../processor/processor.ts';
import { State } from '../processor/state.ts';
import { type Lanes, R, whole } from './operands.ts';

export const env: Environment = {
  rounding: Rounding.NEAREST,
  masks: 0,
  flags: 0,
  denormalsAreZero: false,
  flushToZero: false,
  precision: 64,
  roundedUp: false,
};
/** To nearest, and a masked PE: what native arithmetic can do. */
let native = false;
/** PE is set already: nobody needs to know whether a result is inexact. */
let inexactAlready = false;

export function begin(cpu: Processor): void {
  const mxcsr = cpu.state.u32(State.mxcsr);
  env.rounding = (mxcsr >> 13) & 3;
  env.masks = (mxcsr >> 7) & 0x3f;
  env.flags = whole.active ? whole.flags : 0;
  env.denormalsAreZero = (mxcsr & 0x40) !== 0;
  env.flushToZero = (mxcsr & 0x8000) !== 0;
  native = (mxcsr & 0x7000) === 0x1000;
  inexactAlready = (mxcsr & Exception.PE) !== 0;
}

/** The flags of all lanes; unmasked ones raise, and the instruction stores nothing (SDM volume 1, 11.5.2-3). */
export function end(cpu: Processor): void {
  if (whole.active) {
    whole.flags = env.flags;
    return;
  }
  if (env.flags === 0) return;
  if ((env.flags & ~env.masks & BEFORE) !== 0) env.flags &= BEFORE;
  cpu.state.setU32(State.mxcsr, cpu.state.u32(State.mxcsr) | env.flags);
  if ((env.flags & ~env.masks) !== 0) raise((cpu.cr4 & CR4.OSXMMEXCPT) !== 0 ? Vector.XM : Vector.UD);
}

export const formatOf = (width: Width) => (width === 32 ? F32 : F64);
export const bitsOf = (width: Width, lanes: Lanes, i: number): bigint =>
  width === 32 ? BigInt(lanes.u32[i]!) : lanes.u64[i]!;
export function setBits(width: Width, lanes: Lanes, i: number, bits: bigint): void {
  if (width === 32) lanes.u32[i] = Number(bits);
  else lanes.u64[i] = bits;
}
export const numberOf = (width: Width, lanes: Lanes, i: number): number =>
  width === 32 ? lanes.f32[i]! : lanes.f64[i]!;

export type Compute = (width: Width, into: number, x: Lanes, i: number, y: Lanes, j: number) => void;

/** R[into] = x[i] op y[j]: natively where that is the same, else exactly. */
export const operation =
  (op: Native, exact: Binary): Compute =>
  (width, into, x, i, y, j) => {
    if (native) {
      const a = numberOf(width, x, i);
      const b = numberOf(width, y, j);
      if (safeOperand(width, a) && safeOperand(width, b)) {
        const wide = op.compute(a, b);
        const result = width === 64 ? wide : Math.fround(wide);
        if (safeResult(width, result) || (result === 0 && op.exactZero(a, b))) {
          if (inexactAlready || width === 32 || canTell(a, b, result)) {
            if (width === 64) R.f64[into] = result;
            else R.f32[into] = result;
            if (inexactAlready) return;
            if (width === 64 ? op.inexact64(a, b, result) : op.inexact32(a, b, result))
              env.flags |= Exception.PE;
            return;
          }
        }
      }
    }
    const format = formatOf(width);
    const left = read(env, format, bitsOf(width, x, i));
    const right = read(env, format, bitsOf(width, y, j));
    setBits(width, R, into, exact(env, format, left, right, firstNan));
  };
