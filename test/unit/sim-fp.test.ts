import { describe, expect, it } from 'vitest';
import {
  add,
  type Binary,
  compare,
  convert,
  divide,
  firstNan,
  fromInteger,
  largerNan,
  multiply,
  Relation,
  remainder,
  squareRoot,
  subtract,
  toInteger,
  toIntegral,
} from '../../src/sim/cpu/fp/arithmetic.ts';
import {
  bitLength,
  type Environment,
  Exception,
  F32,
  F64,
  F80,
  type Format,
  indefinite,
  Rounding,
  unpack,
} from '../../src/sim/cpu/fp/float.ts';
import {
  canTell,
  type Native,
  nativeAdd,
  nativeDivide,
  nativeMultiply,
  nativeRoot,
  nativeSubtract,
  safeOperand,
  safeResult,
  type Width,
} from '../../src/sim/cpu/fp/native.ts';
import { randomOf } from './sim-fp-machine.ts';

const environment = (overrides: Partial<Environment> = {}): Environment => ({
  rounding: Rounding.NEAREST,
  masks: 0x3f,
  flags: 0,
  denormalsAreZero: false,
  flushToZero: false,
  precision: 64,
  roundedUp: false,
  ...overrides,
});

const view = new DataView(new ArrayBuffer(8));
const bitsOf = (width: Width, value: number): bigint => {
  if (width === 64) view.setFloat64(0, value);
  else view.setFloat32(0, value);
  return width === 64 ? view.getBigUint64(0) : BigInt(view.getUint32(0));
};
const numberOf = (width: Width, bits: bigint): number => {
  if (width === 64) view.setBigUint64(0, bits);
  else view.setUint32(0, Number(bits));
  return width === 64 ? view.getFloat64(0) : view.getFloat32(0);
};
const formatOf = (width: Width): Format => (width === 64 ? F64 : F32);

/** Encodings of which many are special, denormal, or near to each other. */
function operands(width: Width, seed: number, count: number): bigint[] {
  const { below, pick, wide } = randomOf(seed);
  const format = formatOf(width);
  return Array.from({ length: count }, () => {
    const exponent = pick([
      0,
      0,
      1,
      format.biasedMask,
      format.biasedMask - 1,
      below(format.biasedMask),
      format.maxExponent + below(9) - 4,
    ]);
    const fraction = pick([0n, 1n, format.storedMask, wide(), wide(), wide() << 30n]) & format.storedMask;
    return (below(2) ? format.sign : 0n) | (BigInt(exponent) << BigInt(format.stored)) | fraction;
  });
}

const squareRootOfSecond: Binary = (env, format, _, b) => squareRoot(env, format, b);
const operations: readonly { name: string; exact: Binary; native: Native }[] = [
  { name: 'addition', exact: add, native: nativeAdd },
  { name: 'subtraction', exact: subtract, native: nativeSubtract },
  { name: 'multiplication', exact: multiply, native: nativeMultiply },
  { name: 'division', exact: divide, native: nativeDivide },
  { name: 'square root', exact: squareRootOfSecond, native: nativeRoot },
];

describe('the softfloat', () => {
  it.each(operations)("is JavaScript's own arithmetic in binary64 to nearest: $name", ({ exact, native }) => {
    const all = operands(64, 1, 6000);
    for (let i = 0; i + 1 < all.length; i += 2) {
      const [a, b] = [all[i]!, all[i + 1]!];
      const got = exact(environment(), F64, unpack(F64, a), unpack(F64, b), firstNan);
      expect(numberOf(64, got), `${a.toString(16)} ${b.toString(16)}`).toBe(
        native.compute(numberOf(64, a), numberOf(64, b)),
      );
    }
  });

  it.each(operations)('is binary64 rounded once more in binary32 to nearest: $name', ({ exact, native }) => {
    const all = operands(32, 2, 6000);
    for (let i = 0; i + 1 < all.length; i += 2) {
      const [a, b] = [all[i]!, all[i + 1]!];
      const wide = native.compute(numberOf(32, a), numberOf(32, b));
      // Denormal results would be rounded twice.
      if (wide !== 0 && Math.abs(wide) < 2 ** -126) continue;
      const got = exact(environment(), F32, unpack(F32, a), unpack(F32, b), firstNan);
      expect(numberOf(32, got), `${a.toString(16)} ${b.toString(16)}`).toBe(Math.fround(wide));
    }
  });

  it.each(operations)(
    'tells with native arithmetic what it tells exactly, PE included: $name',
    ({ exact, native }) => {
      let natively = 0;
      for (const width of [32, 64] as const) {
        const all = operands(width, 3, 8000);
        for (let i = 0; i + 1 < all.length; i += 2) {
          const [a, b] = [numberOf(width, all[i]!), numberOf(width, all[i + 1]!)];
          if (!safeOperand(width, a) || !safeOperand(width, b)) continue;
          const wide = native.compute(a, b);
          const result = width === 64 ? wide : Math.fround(wide);
          if (!safeResult(width, result) && !(result === 0 && native.exactZero(a, b))) continue;
          if (width === 64 && !canTell(a, b, result)) continue;
          natively++;
          const inexact = width === 64 ? native.inexact64(a, b, result) : native.inexact32(a, b, result);
          const env = environment();
          const format = formatOf(width);
          const bits = exact(env, format, unpack(format, all[i]!), unpack(format, all[i + 1]!), firstNan);
          expect([bits, env.flags], `${a} ${b}`).toEqual([bitsOf(width, result), inexact ? Exception.PE : 0]);
        }
      }
      expect(natively).toBeGreaterThan(500);
    },
  );

  it('rounds to both sides of an inexact result, and to the nearer of them', () => {
    const all = operands(64, 4, 3000);
    for (let i = 0; i + 1 < all.length; i += 2) {
      const [a, b] = [unpack(F64, all[i]!), unpack(F64, all[i + 1]!)];
      const by = (rounding: number) => {
        const env = environment({ rounding });
        return {
          value: numberOf(64, divide(env, F64, a, b, firstNan)),
          inexact: (env.flags & Exception.PE) !== 0,
        };
      };
      const [nearest, down, up, toZero] = [by(0), by(1), by(2), by(3)];
      if (Number.isNaN(nearest.value)) continue;
      if (!nearest.inexact)
        expect([down.value, up.value, toZero.value]).toEqual([nearest.value, nearest.value, nearest.value]);
      else {
        expect(down.value).toBeLessThan(up.value);
        expect([down.value, up.value]).toContain(nearest.value);
        expect(toZero.value).toBe(Math.abs(down.value) < Math.abs(up.value) ? down.value : up.value);
      }
    }
  });

  it('finds tininess after rounding', () => {
    const least = unpack(F64, 1n << 52n);
    const justBelowOne = unpack(F64, bitsOf(64, 1 - 2 ** -53));
    const env = environment();
    // Rounded with an unbounded exponent this is below the least normal number, although it is delivered as that.
    expect(multiply(env, F64, least, justBelowOne, firstNan)).toBe(1n << 52n);
    expect(env.flags).toBe(Exception.UE | Exception.PE);
    // This rounds up to the least normal number already with an unbounded exponent.
    const almost = unpack(F64, bitsOf(64, 1 + 2 ** -52));
    const other = environment();
    const product = multiply(other, F64, unpack(F64, (1n << 52n) - 1n), almost, firstNan);
    expect([product, other.flags]).toEqual([1n << 52n, Exception.DE | Exception.PE]);
  });

  it('flushes tiny results to zero when told, and only while UE is masked', () => {
    const [a, b] = [unpack(F32, 1n << 23n), unpack(F32, bitsOf(32, -0.5))];
    const flushed = environment({ flushToZero: true });
    expect([multiply(flushed, F32, a, b, firstNan), flushed.flags]).toEqual([
      F32.sign,
      Exception.UE | Exception.PE,
    ]);
    const exact = environment();
    expect([multiply(exact, F32, a, b, firstNan), exact.flags]).toEqual([F32.sign | (1n << 22n), 0]);
    const unmasked = environment({ flushToZero: true, masks: 0x2f });
    multiply(unmasked, F32, a, b, firstNan);
    expect(unmasked.flags).toBe(Exception.UE);
  });

  it.each([
    ['to nearest', Rounding.NEAREST, 0x7f80_0000n, 0xff80_0000n],
    ['down', Rounding.DOWN, 0x7f7f_ffffn, 0xff80_0000n],
    ['up', Rounding.UP, 0x7f80_0000n, 0xff7f_ffffn],
    ['to zero', Rounding.ZERO, 0x7f7f_ffffn, 0xff7f_ffffn],
  ])('overflows %s to infinity or to the greatest number', (_, rounding, positive, negative) => {
    const greatest = unpack(F32, 0x7f7f_ffffn);
    for (const [sign, expected] of [
      [1, positive],
      [-1, negative],
    ] as const) {
      const env = environment({ rounding });
      expect(multiply(env, F32, greatest, unpack(F32, bitsOf(32, 2 * sign)), firstNan)).toBe(expected);
      expect(env.flags).toBe(Exception.OE | Exception.PE);
    }
  });

  it('answers with the first NaN for SSE, quieted, and with the larger for the x87', () => {
    const [snan, qnan, one] = [
      unpack(F32, 0x7f80_0001n),
      unpack(F32, 0xffc0_1234n),
      unpack(F32, 0x3f80_0000n),
    ];
    const sum = (a: typeof one, b: typeof one, choose = firstNan) => {
      const env = environment();
      return [add(env, F32, a, b, choose), env.flags];
    };
    expect(sum(snan, qnan)).toEqual([0x7fc0_0001n, Exception.IE]);
    expect(sum(qnan, snan)).toEqual([0xffc0_1234n, Exception.IE]);
    expect(sum(one, qnan)).toEqual([0xffc0_1234n, 0]);
    expect(sum(snan, qnan, largerNan)).toEqual([0xffc0_1234n, Exception.IE]);
    expect(sum(unpack(F32, 0x7fc0_0005n), unpack(F32, 0x7fc0_0009n), largerNan)).toEqual([0x7fc0_0009n, 0]);
    expect(sum(unpack(F32, 0x7f80_0000n), unpack(F32, 0xff80_0000n))).toEqual([
      indefinite(F32),
      Exception.IE,
    ]);
  });

  it('notes denormal operands after NaNs and invalid operands, and none in vain', () => {
    const [denormal, nan, zero] = [unpack(F64, 1n), unpack(F64, 0x7ff8n << 48n), unpack(F64, 0n)];
    const flags = (op: Binary, a: typeof nan, b: typeof nan) => {
      const env = environment();
      op(env, F64, a, b, firstNan);
      return env.flags;
    };
    expect(flags(add, denormal, nan)).toBe(0);
    expect(flags(divide, denormal, zero)).toBe(Exception.ZE);
    expect(flags(add, denormal, zero)).toBe(Exception.DE);
  });

  it('knows the numbers that only the 80-bit format can hold, and refuse to be used', () => {
    const unnormal = (0x4000n << 64n) | 1n;
    const pseudoDenormal = 1n << 63n;
    const env = environment();
    expect(add(env, F80, unpack(F80, unnormal), unpack(F80, 0n), largerNan)).toBe(indefinite(F80));
    expect(env.flags).toBe(Exception.IE);
    const env2 = environment();
    expect(add(env2, F80, unpack(F80, pseudoDenormal), unpack(F80, 0n), largerNan)).toBe(
      (1n << 64n) | pseudoDenormal,
    );
    expect(env2.flags).toBe(Exception.DE);
  });

  it('narrows the significand of an 80-bit result to the precision that is asked for', () => {
    const third = (precision: number) => {
      const env = environment({ precision });
      const [one, three] = [fromInteger(env, F80, 1n), fromInteger(env, F80, 3n)];
      return divide(env, F80, unpack(F80, one), unpack(F80, three), largerNan) & 0xffff_ffff_ffff_ffffn;
    };
    expect(third(64)).toBe(0xaaaa_aaaa_aaaa_aaabn);
    expect(third(53)).toBe(0xaaaa_aaaa_aaaa_a800n);
    expect(third(24)).toBe(0xaaaa_ab00_0000_0000n);
  });

  it("leaves JavaScript's remainder, however far the exponents are apart", () => {
    const all = operands(64, 5, 800);
    for (let i = 0; i + 1 < all.length; i += 2) {
      const divisor = unpack(F64, all[i + 1]!);
      let dividend = convert(environment(), F80, unpack(F64, all[i]!));
      const wanted = numberOf(64, all[i]!) % numberOf(64, all[i + 1]!);
      // In steps, as a program calls FPREM until C2 is clear.
      for (let step = 0; ; step++) {
        expect(step).toBeLessThan(70);
        const { result, quotient } = remainder(
          environment(),
          F80,
          unpack(F80, dividend),
          divisor,
          Rounding.ZERO,
        );
        dividend = result;
        if (quotient !== undefined) break;
      }
      const got = numberOf(64, convert(environment(), F64, unpack(F80, dividend)));
      expect(got, `${all[i]!.toString(16)} ${all[i + 1]!.toString(16)}`).toBe(wanted);
    }
  });

  it('converts to integers by the rounding mode, and to the indefinite what does not fit', () => {
    const half = unpack(F64, bitsOf(64, 2.5));
    const to = (rounding: number) => toInteger(environment(), 32, half, rounding);
    expect([0, 1, 2, 3].map(to)).toEqual([2n, 2n, 3n, 2n]);
    const convertTo = (value: number, bits: number) => {
      const env = environment();
      return [toInteger(env, bits, unpack(F64, bitsOf(64, value))), env.flags];
    };
    expect(convertTo(2147483647.4, 32)).toEqual([0x7fff_ffffn, Exception.PE]);
    expect(convertTo(2147483647.5, 32)).toEqual([0x8000_0000n, Exception.IE]);
    expect(convertTo(-2147483648.5, 32)).toEqual([0x8000_0000n, Exception.PE]);
    expect(convertTo(Number.NaN, 64)).toEqual([1n << 63n, Exception.IE]);
    expect(convertTo(1e300, 64)).toEqual([1n << 63n, Exception.IE]);
    expect(convertTo(-1, 16)).toEqual([0xffffn, 0]);
  });

  it('rounds to integral values and keeps the sign of zero', () => {
    const integral = (value: number, rounding: number) =>
      numberOf(64, toIntegral(environment(), F64, unpack(F64, bitsOf(64, value)), rounding));
    for (const value of [0.5, -0.5, 1.5, 2.5, -2.5, 1e15 + 0.5, 2 ** 60, -0, 1e-320]) {
      expect(integral(value, Rounding.DOWN)).toBe(Math.floor(value));
      expect(integral(value, Rounding.UP)).toBe(Math.ceil(value));
      expect(integral(value, Rounding.ZERO)).toBe(Math.trunc(value));
    }
    expect([0.5, 1.5, 2.5, -0.5].map((value) => integral(value, Rounding.NEAREST))).toEqual([0, 2, 2, -0]);
  });

  it('compares as JavaScript does, and NaNs as unordered', () => {
    const all = operands(64, 6, 4000);
    for (let i = 0; i + 1 < all.length; i += 2) {
      const [a, b] = [numberOf(64, all[i]!), numberOf(64, all[i + 1]!)];
      const got = compare(environment(), unpack(F64, all[i]!), unpack(F64, all[i + 1]!), true);
      const wanted =
        a < b ? Relation.LESS : a > b ? Relation.GREATER : a === b ? Relation.EQUAL : Relation.UNORDERED;
      expect(got, `${a} ${b}`).toBe(wanted);
    }
  });

  it('counts the bits of numbers of any size', () => {
    for (const bits of [1, 2, 53, 54, 64, 128, 1023, 1024, 1025, 40_000]) {
      expect([bitLength(1n << BigInt(bits - 1)), bitLength((1n << BigInt(bits)) - 1n)]).toEqual([bits, bits]);
    }
  });
});
