// Whatever JS can make, as if at random: values for the hostile tests. The same seed gives the same values.
let state = 1;

export const seed = (value) => {
  state = value >>> 0 || 1;
};

const next = () => {
  state ^= state << 13;
  state ^= state >>> 17;
  state ^= state << 5;
  return state >>> 0;
};

/** From 0 to below `limit`. */
export const below = (limit) => Math.floor((next() / 2 ** 32) * limit);
export const chance = (probability) => next() < probability * 2 ** 32;
export const choice = (list) => list[below(list.length)];
export const u64 = () => (BigInt(next()) << 32n) | BigInt(next());

/** Thrown by traps and getters of hostile objects. The addon must never run one: it takes values, it coerces none. */
export class Sprung extends Error {}
const spring = () => {
  throw new Sprung();
};
const trapped = new Proxy({}, { get: spring, has: spring, getPrototypeOf: spring, ownKeys: spring });
const getters = Object.defineProperties(
  { [Symbol.toPrimitive]: spring, valueOf: spring, toString: spring },
  { length: { get: spring }, byteLength: { get: spring }, 0: { get: spring } },
);

export const numbers = [
  ...[0, -0, 1, -1, 2, 3, 4, 7, 8, 63, 64, 255, 256, 4095, 4096, 4097, 8192, 65_535, 65_536, 1.5, -4096],
  ...[
    2 ** 31 - 1,
    2 ** 31,
    -(2 ** 31),
    2 ** 32 - 1,
    2 ** 32,
    2 ** 32 + 1,
    2 ** 52,
    2 ** 53 - 1,
    2 ** 53,
    2 ** 63,
  ],
  ...[
    2 ** 64,
    -(2 ** 63),
    1e300,
    -1e300,
    5e-324,
    Number.NaN,
    Number.POSITIVE_INFINITY,
    Number.NEGATIVE_INFINITY,
  ],
];
export const bigints = [
  0n,
  1n,
  -1n,
  4096n,
  2n ** 31n,
  2n ** 32n,
  2n ** 52n,
  2n ** 63n - 1n,
  2n ** 63n,
  2n ** 64n - 1n,
];
export const hugeBigints = [2n ** 64n, -(2n ** 63n), -(2n ** 64n), 2n ** 200n, -(2n ** 200n)];

export const sizes = [
  0, 1, 4, 7, 8, 16, 24, 31, 32, 40, 64, 128, 144, 160, 216, 312, 416, 512, 1024, 4096, 8192, 65_536,
];

/** So many bytes: zero, random, or of the values that structs have. */
export function bytes(length) {
  const array = new Uint8Array(length);
  fill(array);
  return array;
}

function fill(array) {
  const view = new DataView(array.buffer, array.byteOffset, array.byteLength);
  const style = below(5);
  if (style === 0) return;
  for (let i = 0; i + 8 <= array.length; i += 8) {
    if (style === 1) view.setBigUint64(i, u64(), true);
    if (style === 2) view.setBigUint64(i, BigInt(below(16)) * 4096n, true);
    if (style === 3)
      view.setBigUint64(i, choice([0n, 1n, 8n, 4096n, 1n << 20n, 2n ** 63n, 2n ** 64n - 1n]), true);
    if (style === 4 && chance(0.3)) view.setUint32(i + 4 * below(2), below(300), true);
  }
}

function detached(length) {
  const array = bytes(length);
  structuredClone(array.buffer, { transfer: [array.buffer] });
  return array;
}

function resizable(length) {
  const buffer = new ArrayBuffer(length, { maxByteLength: length + 64 });
  const array = chance(0.5) ? new Uint8Array(buffer) : new Uint8Array(buffer, 0, length);
  buffer.resize(choice([0, length >> 1, length, length + 64]));
  return array;
}

class Derived extends Uint8Array {
  get length() {
    return spring();
  }
}

/** Views and buffers of every kind over `length` bytes, or as many as they still have. */
export const arrays = [
  (length) => bytes(length),
  (length) => bytes(length),
  (length) => bytes(length + 13).subarray(13),
  (length) => bytes(length + 1).subarray(0, length),
  (length) => Buffer.from(bytes(length)),
  detached,
  resizable,
  (length) => new Uint8Array(new SharedArrayBuffer(length)),
  (length) => new Derived(length),
  (length) => new Float64Array(length),
  (length) => new BigUint64Array(length >> 3),
  (length) => new Uint8ClampedArray(length),
  (length) => new Int8Array(length),
  (length) => new DataView(new ArrayBuffer(length)),
  (length) => new ArrayBuffer(length),
  (length) => new SharedArrayBuffer(length),
];

export const others = [
  undefined,
  null,
  true,
  false,
  '',
  'x',
  '/dev/kvm',
  'x'.repeat(70_000),
  Symbol('s'),
  () => 1,
];
export const objects = [
  {},
  [],
  [1, 2, 3],
  new Date(0),
  new Map(),
  /x/,
  trapped,
  getters,
  Promise.resolve(),
  class {},
  Symbol,
];
