/** AES and PCLMULQDQ (SDM volume 1, 12.13; FIPS 197). A state is 16 bytes, column by column. */
import type { Helpers } from '../processor/helper.ts';
import { A, B, binary, R } from './operands.ts';

/** A product in GF(2^8) with the polynomial of AES. */
function product(a: number, b: number): number {
  let sum = 0;
  for (let factor = a, rest = b; rest > 0; rest >>= 1) {
    if (rest & 1) sum ^= factor;
    factor = (factor << 1) ^ (factor & 0x80 ? 0x11b : 0);
  }
  return sum;
}
const products = (by: number): Uint8Array => Uint8Array.from({ length: 256 }, (_, x) => product(x, by));

/** The S-box, of FIPS 197, 5.1.1: inverses, and an affine transformation; and its inverse. */
function boxes(): { readonly forth: Uint8Array; readonly back: Uint8Array } {
  const forth = new Uint8Array(256);
  const back = new Uint8Array(256);
  // 3 is a generator, and 0xf6 its inverse: p and q go through all elements but 0, and stay inverse to each other.
  let [p, q] = [1, 1];
  do {
    p = product(p, 3);
    q = product(q, 0xf6);
    const spread = q | (q << 8);
    forth[p] = q ^ (spread >> 7) ^ (spread >> 6) ^ (spread >> 5) ^ (spread >> 4) ^ 0x63;
  } while (p !== 1);
  forth[0] = 0x63;
  for (const [x, y] of forth.entries()) back[y] = x;
  return { forth, back };
}

const box = boxes();
/** Rows of the matrices of MixColumns, by what each byte of a column is multiplied with. */
const MIX = [2, 3, 1, 1].map(products);
const UNMIX = [14, 11, 13, 9].map(products);

const state = new Uint8Array(16);

/** ShiftRows or its inverse, and SubBytes or its, of A: both orders are the same. */
function substitute(table: Uint8Array, direction: 1 | -1): void {
  for (let i = 0; i < 16; i++) {
    const row = i & 3;
    state[i] = table[A.u8[row + 4 * (((i >> 2) + direction * row) & 3)]!]!;
  }
}
function mix(from: Uint8Array, matrix: readonly Uint8Array[]): void {
  for (let column = 0; column < 16; column += 4) {
    for (let row = 0; row < 4; row++) {
      let sum = 0;
      for (let i = 0; i < 4; i++) sum ^= matrix[(i - row) & 3]![from[column + i]!]!;
      R.u8[column + row] = sum;
    }
  }
}
function addKey(): void {
  for (let i = 0; i < 4; i++) R.i32[i]! ^= B.i32[i]!;
}

const word = (x: number): number =>
  box.forth[x & 0xff]! |
  (box.forth[(x >>> 8) & 0xff]! << 8) |
  (box.forth[(x >>> 16) & 0xff]! << 16) |
  (box.forth[x >>> 24]! << 24);

export const aes: Helpers = {
  aesenc: binary(() => {
    substitute(box.forth, 1);
    mix(state, MIX);
    addKey();
  }),
  aesenclast: binary(() => {
    substitute(box.forth, 1);
    R.u8.set(state);
    addKey();
  }),
  aesdec: binary(() => {
    substitute(box.back, -1);
    mix(state, UNMIX);
    addKey();
  }),
  aesdeclast: binary(() => {
    substitute(box.back, -1);
    R.u8.set(state);
    addKey();
  }),
  aesimc: binary(() => mix(B.u8, UNMIX)),
  aeskeygenassist: binary((_, constant) => {
    for (const at of [1, 3]) {
      const substituted = word(B.u32[at]!);
      R.i32[at - 1] = substituted;
      R.i32[at] = ((substituted >>> 8) | (substituted << 24)) ^ constant;
    }
  }),
  /** A product without carries, of one half of each operand. */
  pclmulqdq: binary((_, which) => {
    const a = which & 1 ? 2 : 0;
    const b = which & 0x10 ? 2 : 0;
    const [low, high] = [A.u32[a]!, A.u32[a + 1]!];
    const sum = [0, 0, 0, 0];
    for (let bit = 0; bit < 64; bit++) {
      if (((B.u32[b + (bit >> 5)]! >>> (bit & 31)) & 1) === 0) continue;
      const by = bit & 31;
      const at = bit >> 5;
      sum[at]! ^= low << by;
      sum[at + 1]! ^= by === 0 ? high : (high << by) | (low >>> (32 - by));
      if (by !== 0) sum[at + 2]! ^= high >>> (32 - by);
    }
    R.i32.set(sum);
  }),
};
