/**
 * Shifts and rotates (SDM volume 1, 5.1.5, and volume 2 for the flags). Their counts are taken modulo 32, or 64 for
 * operands of 8 bytes; a count of 0 leaves the flags. OF is told for every count as for a count of 1.
 */

import type { Size } from '../../processor/insn.ts';
import type { Builder } from '../builder.ts';
import { type Node, typeOf } from '../ir.ts';
import type { Lower, Lowerings } from '../lowering.ts';
import { pack, top } from './arithmetic.ts';

/** A count. Its node has the type of the operand. */
interface Count {
  readonly node: Node;
  /** Undefined for a count in CL. */
  readonly isZero: boolean | undefined;
}
function countOf(b: Builder, size: Size, index: number): Count {
  const mask = size === 8 ? 63 : 31;
  if (b.operand(index).kind === 'imm') return b.count(index, size, mask);
  return {
    node: b.and(size, b.zeroExtend(1, size, b.read(index, 1)), b.constant(size, mask)),
    isZero: undefined,
  };
}
/** In 32 or 64 bits, of which operands of 1 and 2 bytes are the low part. Counts are modulo that. */
const wide = (b: Builder, size: Size) => ({
  shl: (a: Node, count: Node) => b.op(size === 8 ? 'shl64' : 'shl32', [a, count]),
  shr: (a: Node, count: Node) => b.op(size === 8 ? 'shr64' : 'shr32', [a, count]),
  sar: (a: Node, count: Node) => b.op(size === 8 ? 'sar64' : 'sar32', [a, count]),
  rol: (a: Node, count: Node) => b.op(size === 8 ? 'rol64' : 'rol32', [a, count]),
});
/** Bit 0, as an `i`. */
const lowest = (b: Builder, value: Node) =>
  b.op('and32', [typeOf(value) === 'l' ? b.op('wrap', [value]) : value, b.const32(1)]);
const bit = (b: Builder, size: Size, value: Node, index: number) =>
  lowest(b, index === 0 ? value : wide(b, size).shr(value, b.constant(size, index)));
/** The exclusive or of the two highest bits: OF after shifts and rotates to the right. */
const topsDiffer = (b: Builder, size: Size, value: Node) =>
  top(b, size, b.xor(size, value, b.shl(size, value, b.constant(size, 1))));
const isNot0 = (b: Builder, size: Size, value: Node) => b.op('eqz32', [b.isZero(size, value)]);

/** What a shift gives: the result, and the bit that went out last. */
type Shift = (
  b: Builder,
  size: Size,
  value: Node,
  count: Node,
) => { readonly result: Node; readonly cf: Node };

const left: Shift = (b, size, value, count) => {
  const { shl, shr } = wide(b, size);
  const result = b.shl(size, value, count);
  // Bit `size * 8` of what is shifted; where there is none, bit -count, counted from the top.
  if (size < 4) return { result, cf: bit(b, 4, shl(value, count), size * 8) };
  return { result, cf: lowest(b, shr(value, b.sub(size, b.constant(size, 0), count))) };
};
const right: Shift = (b, size, value, count) => ({
  result: b.shr(size, value, count),
  cf: lowest(b, wide(b, size).shr(value, b.sub(size, count, b.constant(size, 1)))),
});
const arithmeticRight: Shift = (b, size, value, count) => ({
  result: b.sar(size, value, count),
  cf: lowest(b, wide(b, size).sar(b.extend(size, value), b.sub(size, count, b.constant(size, 1)))),
});

const intoTop = (b: Builder, size: Size, result: Node, cf: Node) => b.op('xor32', [top(b, size, result), cf]);

const shift =
  (how: Shift, overflow: (b: Builder, size: Size, result: Node, cf: Node) => Node): Lower =>
  (b) => {
    const size = b.sizeOf(0);
    const count = countOf(b, size, 1);
    let cf: Node;
    b.modify(
      0,
      (value) => {
        const shifted = how(b, size, value, count.node);
        cf = shifted.cf;
        return shifted.result;
      },
      (_, result) => {
        if (count.isZero === true) return;
        const packed = pack(b, cf, overflow(b, size, result, cf));
        if (count.isZero === false) b.flagsOf(size, result, packed);
        else b.flagsOfIf(isNot0(b, size, count.node), size, result, packed);
      },
    );
  };

/** CF and OF from `flags`, but only where the count is not 0. */
function setRotated(b: Builder, size: Size, { node, isZero }: Count, flags: { CF: Node; OF: Node }): void {
  if (isZero === true) return;
  if (isZero === false) return void b.setCarries(flags);
  const moved = isNot0(b, size, node);
  const kept = (name: 'CF' | 'OF') => b.select(4, moved, flags[name], b.flag(name));
  b.setCarries({ CF: kept('CF'), OF: kept('OF') });
}

/** Operands of 1 and 2 bytes are repeated to 4, and then rotate as 4 bytes do. */
function rotated(b: Builder, size: Size, value: Node, count: Node): Node {
  const { rol, shl } = wide(b, size);
  if (size === 1) return b.truncate(1, rol(b.op('mul32', [value, b.const32(0x0101_0101)]), count));
  if (size === 2) return b.truncate(2, rol(b.op('or32', [value, shl(value, b.const32(16))]), count));
  return rol(value, count);
}
const negative = (b: Builder, size: Size, count: Node) =>
  b.op(size === 8 ? 'sub64' : 'sub32', [b.constant(size, 0), count]);

const rol: Lower = (b) => {
  const size = b.sizeOf(0);
  const count = countOf(b, size, 1);
  b.modify(
    0,
    (value) => rotated(b, size, value, count.node),
    (_, result) => {
      const cf = bit(b, size, result, 0);
      setRotated(b, size, count, { CF: cf, OF: intoTop(b, size, result, cf) });
    },
  );
};
const ror: Lower = (b) => {
  const size = b.sizeOf(0);
  const count = countOf(b, size, 1);
  b.modify(
    0,
    (value) => rotated(b, size, value, negative(b, size, count.node)),
    (_, result) => setRotated(b, size, count, { CF: top(b, size, result), OF: topsDiffer(b, size, result) }),
  );
};

/** RCL and RCR rotate CF and the operand together, in an `l` where both fit. */
function throughCarry(b: Builder, size: 1 | 2 | 4, value: Node, count: Node, toLeft: boolean): Rotated {
  const { shl, shr } = wide(b, 8);
  const bits = size * 8;
  const all = b.op('or64', [
    b.op('zext', [value]),
    shl(b.op('zext', [b.flag('CF')]), b.const64(BigInt(bits))),
  ]);
  const back = b.op('sub64', [b.const64(BigInt(bits + 1)), count]);
  const moved = b.op('or64', toLeft ? [shl(all, count), shr(all, back)] : [shr(all, count), shl(all, back)]);
  return { result: b.truncate(size, moved), cf: bit(b, 8, moved, bits) };
}
function throughCarry64(b: Builder, value: Node, count: Node, toLeft: boolean): Rotated {
  const { shl, shr } = wide(b, 8);
  const one = b.const64(1n);
  const carry = b.op('zext', [b.flag('CF')]);
  const less = b.op('sub64', [count, one]);
  const back = negative(b, 8, count); // 64 - count: shifts are modulo 64
  const parts = toLeft
    ? [shl(value, count), shl(carry, less), shr(shr(value, one), back)]
    : [shr(value, count), shl(carry, back), shl(shl(value, one), back)];
  const result = parts.reduce((x, y) => b.op('or64', [x, y]));
  return {
    result: b.select(8, isNot0(b, 8, count), result, value),
    cf: lowest(b, shr(value, toLeft ? back : less)),
  };
}
interface Rotated {
  readonly result: Node;
  readonly cf: Node;
}
const rotateThroughCarry =
  (toLeft: boolean): Lower =>
  (b) => {
    const size = b.sizeOf(0);
    const given = countOf(b, size, 1);
    // 9 and 17 bits rotate more than once around.
    const around = size === 1 ? 9 : size === 2 ? 17 : undefined;
    const wideCount = b.zeroExtend(size, 8, given.node);
    const node = around === undefined ? wideCount : b.op('remu64', [wideCount, b.const64(BigInt(around))]);
    const count = { node, isZero: around === undefined ? given.isZero : undefined };
    let cf: Node;
    b.modify(
      0,
      (value) => {
        const moved =
          size === 8 ? throughCarry64(b, value, node, toLeft) : throughCarry(b, size, value, node, toLeft);
        cf = moved.cf;
        return moved.result;
      },
      (_, result) => {
        const of = toLeft ? intoTop(b, size, result, cf) : topsDiffer(b, size, result);
        setRotated(b, 8, count, { CF: cf, OF: of });
      },
    );
  };

/**
 * SHLD and SHRD. More than 16 bits of 2 bytes are undefined: the destination follows on the source once more, as
 * Intel's processors have it.
 */
const double =
  (toLeft: boolean): Lower =>
  (b) => {
    const size = b.sizeOf(0);
    const count = countOf(b, size, 2);
    const source = b.read(1);
    const { shl, shr } = wide(b, 8);
    const n = b.zeroExtend(size, 8, count.node);
    const joined = (...parts: Node[]) =>
      parts
        .map((part) => b.op('zext', [part]))
        .reduce((high, low) => b.op('or64', [shl(high, b.const64(BigInt(size * 8))), low]));
    const move = (value: Node) => {
      if (size === 8) {
        const back = negative(b, 8, n);
        const moved = toLeft ? [shl(value, n), shr(source, back)] : [shr(value, n), shl(source, back)];
        return b.select(8, isNot0(b, 8, n), b.op('or64', moved), value);
      }
      if (toLeft) {
        const all = size === 2 ? joined(value, source, value) : joined(value, source);
        return b.truncate(size, shr(shl(all, n), b.const64(32n)));
      }
      return b.truncate(size, shr(size === 2 ? joined(value, source, value) : joined(source, value), n));
    };
    b.modify(0, move, (before, result) => {
      if (count.isZero === true) return;
      const out = toLeft
        ? b.op('sub64', [b.const64(BigInt(size * 8)), n])
        : b.op('sub64', [n, b.const64(1n)]);
      const cf = lowest(b, shr(b.zeroExtend(size, 8, before), out));
      const packed = pack(b, cf, top(b, size, b.xor(size, result, before)));
      if (count.isZero === false) b.flagsOf(size, result, packed);
      else b.flagsOfIf(isNot0(b, 8, n), size, result, packed);
    });
  };

/** BMI2's, which leave the flags. */
const plain =
  (how: 'shl' | 'shr' | 'sar'): Lower =>
  (b) => {
    const size = b.sizeOf(0);
    const count = b.and(size, b.read(2), b.constant(size, size * 8 - 1));
    b.write(0, b[how](size, b.read(1), count));
  };
const rorx: Lower = (b) => {
  const size = b.sizeOf(0);
  b.write(0, rotated(b, size, b.read(1), negative(b, size, countOf(b, size, 2).node)));
};

const shl = shift(left, intoTop);

export const shifts: Lowerings = {
  shl,
  sal: shl,
  shr: shift(right, topsDiffer),
  sar: shift(arithmeticRight, (b) => b.const32(0)),
  rol,
  ror,
  rcl: rotateThroughCarry(true),
  rcr: rotateThroughCarry(false),
  shld: double(true),
  shrd: double(false),
  shlx: plain('shl'),
  shrx: plain('shr'),
  sarx: plain('sar'),
  rorx,
};
