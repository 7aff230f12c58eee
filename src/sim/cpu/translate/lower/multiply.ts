/** Multiplication and division (SDM volume 1, 5.1.2). */

import {
  divideError,
  signedQuotient,
  signedRemainder,
  unsignedQuotient,
  unsignedRemainder,
} from '../../integer/arithmetic.ts';
import type { Size } from '../../processor/insn.ts';
import type { Builder } from '../builder.ts';
import type { Node } from '../ir.ts';
import type { Lower, Lowerings } from '../lowering.ts';
import { pack } from './arithmetic.ts';

const RAX = 0;
const RDX = 2;
const MIN64 = -(1n << 63n);

/** CF and OF: the product does not fit. SF, ZF, AF and PF are undefined. */
function setOverflow(b: Builder, size: Size, low: Node, overflow: Node): void {
  b.flagsOf(size, low, pack(b, overflow, overflow));
}
/** The high 64 bits of a signed product: the unsigned ones, less what a negative factor is too much. */
function highSigned(b: Builder, x: Node, y: Node): Node {
  const where = (sign: Node, value: Node) => b.op('and64', [b.op('sar64', [sign, b.const64(63n)]), value]);
  const high = b.op('mulhu64', [x, y]);
  return b.op('sub64', [b.op('sub64', [high, where(x, y)]), where(y, x)]);
}

/** The accumulator and its extension, which for bytes is AH. */
function writeDouble(b: Builder, size: Size, low: Node, high: Node): void {
  b.setGpr(RAX, size, low);
  if (size === 1) b.setGpr(RAX, 1, high, true);
  else b.setGpr(RDX, size, high);
}
const high = (b: Builder, size: Size) => (size === 1 ? b.gpr(RAX, 1, true) : b.gpr(RDX, size));
/** The part of an `l` that lies above `size`. */
const upper = (b: Builder, size: Size, value: Node) =>
  b.truncate(size, b.op('shr64', [value, b.const64(BigInt(size * 8))]));

const mul: Lower = (b) => {
  const size = b.sizeOf(0);
  const x = b.zeroExtend(size, 8, b.gpr(RAX, size));
  const y = b.zeroExtend(size, 8, b.read(0));
  const product = b.op('mul64', [x, y]);
  const low = b.truncate(size, product);
  const over = size === 8 ? b.op('mulhu64', [x, y]) : upper(b, size, product);
  writeDouble(b, size, low, over);
  setOverflow(b, size, low, b.op('eqz32', [b.isZero(size, over)]));
};

/** A signed product: its low part, its high part when that is asked for, and whether it does not fit into the low one. */
function signedProduct(
  b: Builder,
  size: Size,
  left: Node,
  right: Node,
): { low: Node; high: () => Node; over: Node } {
  const x = b.signExtend(size, 8, left);
  const y = b.signExtend(size, 8, right);
  const product = b.op('mul64', [x, y]);
  const low = b.truncate(size, product);
  if (size !== 8) {
    return {
      low,
      high: () => upper(b, size, product),
      over: b.op('ne64', [product, b.signExtend(size, 8, low)]),
    };
  }
  const above = highSigned(b, x, y);
  const sign = b.op('sar64', [low, b.const64(63n)]);
  return { low, high: () => above, over: b.op('ne64', [above, sign]) };
}
const imul: Lower = (b, { operands }) => {
  const size = b.sizeOf(0);
  if (operands.length === 1) {
    const product = signedProduct(b, size, b.gpr(RAX, size), b.read(0));
    writeDouble(b, size, product.low, product.high());
    return setOverflow(b, size, product.low, product.over);
  }
  const [left, right] = operands.length === 2 ? [0, 1] : [1, 2];
  const { low, over } = signedProduct(b, size, b.read(left), b.read(right, size));
  b.write(0, low);
  setOverflow(b, size, low, over);
};
/** The high part is written last: both may be the same register. */
const mulx: Lower = (b) => {
  const size = b.sizeOf(0);
  const x = b.zeroExtend(size, 8, b.gpr(RDX, size));
  const y = b.zeroExtend(size, 8, b.read(2));
  const product = b.op('mul64', [x, y]);
  const above = size === 8 ? b.op('mulhu64', [x, y]) : upper(b, size, product);
  b.write(1, b.truncate(size, product));
  b.write(0, above);
};

/** DIV and IDIV leave the flags, which are undefined, as they were. */
const div: Lower = (b) => {
  const size = b.sizeOf(0);
  const divisor = b.read(0);
  const above = high(b, size);
  const tooLarge = b.op('eqz32', [b.ltu(size, above, divisor)]);
  b.callIf(tooLarge, divideError); // a divisor of 0 among them
  if (size === 8) {
    const low = b.gpr(RAX, 8);
    const long = b.op('eqz32', [b.isZero(8, above)]);
    const quotient = b.askIf(long, b.op('divu64', [low, divisor]), unsignedQuotient, above, low, divisor);
    const remainder = b.askIf(long, b.op('remu64', [low, divisor]), unsignedRemainder, above, low, divisor);
    return writeDouble(b, 8, quotient, remainder);
  }
  const y = b.op('zext', [divisor]);
  const x = dividend(b, size, above);
  const part = (op: 'divu64' | 'remu64') => b.truncate(size, b.op(op, [x, y]));
  writeDouble(b, size, part('divu64'), part('remu64'));
};
/** Of up to 64 bits: an `l`. */
function dividend(b: Builder, size: 1 | 2 | 4, above: Node): Node {
  const high = b.op('shl64', [b.op('zext', [above]), b.const64(BigInt(size * 8))]);
  return b.op('or64', [high, b.op('zext', [b.gpr(RAX, size)])]);
}

const idiv: Lower = (b) => {
  const size = b.sizeOf(0);
  const divisor = b.signExtend(size, 8, b.read(0));
  const above = high(b, size);
  const low = b.gpr(RAX, size);
  const x =
    size === 8
      ? low
      : b.op('sar64', [b.op('shl64', [dividend(b, size, above), unused(b, size)]), unused(b, size)]);
  // What WebAssembly traps at: x / 0 and MIN64 / -1, neither of which has a quotient that fits.
  const smallest = b.op('and32', [
    b.op('eq64', [x, b.const64(MIN64)]),
    b.op('eq64', [divisor, b.const64(-1n)]),
  ]);
  const none = b.op('eqz64', [divisor]);
  if (size === 8) {
    const long = b.op('ne64', [above, b.op('sar64', [low, b.const64(63n)])]);
    const short = b.op('eqz32', [long]);
    b.callIf(b.op('or32', [none, b.op('and32', [smallest, short])]), divideError);
    const safe = b.select(8, smallest, b.const64(1n), divisor);
    const quotient = b.askIf(long, b.op('divs64', [x, safe]), signedQuotient, above, low, divisor);
    const remainder = b.askIf(long, b.op('rems64', [x, safe]), signedRemainder, above, low, divisor);
    return writeDouble(b, 8, quotient, remainder);
  }
  b.callIf(b.op('or32', [none, smallest]), divideError);
  const quotient = b.op('divs64', [x, divisor]);
  const result = b.truncate(size, quotient);
  b.callIf(b.op('ne64', [quotient, b.signExtend(size, 8, result)]), divideError);
  writeDouble(b, size, result, b.truncate(size, b.op('rems64', [x, divisor])));
};
/** Bits of an `l` above a dividend. */
const unused = (b: Builder, size: Size) => b.const64(BigInt(64 - size * 16));

export const multiply: Lowerings = { mul, imul, mulx, div, idiv };
