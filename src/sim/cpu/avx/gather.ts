/**
 * Gathers: lanes from addresses that a vector of indices gives, where the mask's sign is set. A lane that is done has its mask
 * cleared, so that an instruction which faults goes on where it was; the mask is zero in the end (SDM volume 2, VPGATHERDD).
 */
import { linearAddress } from '../address/addressing.ts';
import { raise, Vector } from '../processor/fault.ts';
import type { Helper, Helpers } from '../processor/helper.ts';
import type { Insn, Memory } from '../processor/insn.ts';
import type { Processor } from '../processor/processor.ts';
import { copyIn, copyOut, xmmOffset } from '../sse/operands.ts';
import { checkAvx, isWide, W, type Wide, X, Y, ymmOffset } from './operands.ts';

const fileIndex = (insn: Insn, at: number) => (insn.operands[at] as { readonly index: number }).index;

/** A register whole, whatever the instruction calls it. */
function loadRegister(cpu: Processor, index: number, into: Wide): void {
  copyIn(cpu, xmmOffset(index), 4, into[0]);
  copyIn(cpu, ymmOffset(index), 4, into[1]);
}
function storeRegister(cpu: Processor, index: number, from: Wide): void {
  copyOut(cpu, xmmOffset(index), 4, from[0]);
  copyOut(cpu, ymmOffset(index), 4, from[1]);
}

function addressAt(
  cpu: Processor,
  insn: Insn,
  memory: Memory,
  bits: 32 | 64,
  lane: number,
  size: number,
): bigint {
  const { base, scale, displacement, segment } = memory;
  const half = Y[lane < 128 / bits ? 0 : 1]!;
  const index = bits === 32 ? BigInt(half.i32[lane & 3]!) : half.i64[lane & 1]!;
  const sum = displacement + (base === undefined ? 0n : cpu.state.gpr(base)) + index * BigInt(scale);
  return linearAddress(cpu, segment, BigInt.asUintN(insn.addressSize * 8, sum), size, false);
}

const gather =
  (indexBits: 32 | 64, bits: 32 | 64): Helper =>
  (cpu, insn) => {
    checkAvx(cpu);
    const memory = insn.operands[1] as Memory;
    const [to, mask, indices] = [fileIndex(insn, 0), fileIndex(insn, 2), memory.index!];
    if (to === mask || to === indices || mask === indices) raise(Vector.UD);
    const whole = isWide(insn.operands[0]) || insn.code.includes('vm64y');
    // As many lanes as fit the destination, and as there are indices.
    const room = (isWide(insn.operands[0]) ? 256 : 128) / bits;
    const lanes = Math.min(room, (whole ? 256 : 128) / indexBits);
    loadRegister(cpu, to, W);
    loadRegister(cpu, mask, X);
    loadRegister(cpu, indices, Y);
    const view = bits === 32 ? 'i32' : 'i64';
    const perHalf = 128 / bits;
    const size = bits / 8;
    // What is above the destination's and the mask's lanes becomes zero.
    const above = (wide: Wide, from: number) => {
      for (let at = from * size; at < 32; at++) wide[at < 16 ? 0 : 1]!.u8[at & 15] = 0;
    };
    let isLoaded = false;
    const length = (whole ? 32 : 16) / size;
    const finish = (done: number) => {
      above(W, done);
      above(X, done);
      if (isLoaded) storeRegister(cpu, to, W);
      storeRegister(cpu, mask, X);
    };
    for (let i = 0; i < length; i++) {
      const masks = X[i < perHalf ? 0 : 1]!;
      if (bits === 32) masks.i32[i % perHalf]! >>= 31;
      else masks.i64[i % perHalf]! >>= 63n;
    }
    for (let i = 0; i < lanes; i++) {
      const half = i < perHalf ? 0 : 1;
      const masks = X[half]!;
      if (masks[view][i % perHalf]! < 0) {
        let value: number | bigint;
        try {
          const linear = addressAt(cpu, insn, memory, indexBits, i, size);
          value = bits === 32 ? cpu.memory.read32(linear) : cpu.memory.read64(linear);
        } catch (fault) {
          // Silicon has the masks of the other lanes filled by their signs then, too.
          finish(length);
          throw fault;
        }
        isLoaded = true;
        if (bits === 32) W[half]!.u32[i % perHalf] = value as number;
        else W[half]!.u64[i % perHalf] = value as bigint;
      }
      if (bits === 32) masks.i32[i % perHalf] = 0;
      else masks.i64[i % perHalf] = 0n;
    }
    isLoaded = true;
    finish(lanes);
  };

export const avxGather: Helpers = {
  vpgatherdd: gather(32, 32),
  vpgatherdq: gather(32, 64),
  vpgatherqd: gather(64, 32),
  vpgatherqq: gather(64, 64),
  vgatherdps: gather(32, 32),
  vgatherdpd: gather(32, 64),
  vgatherqps: gather(64, 32),
  vgatherqpd: gather(64, 64),
};
