/** SHA-1 and SHA-256 (SDM volume 2, SHA1RNDS4 to SHA256RNDS2). Element 0 of a register is its lowest 32 bits. */
import type { Helpers } from '../processor/helper.ts';
import { State } from '../processor/state.ts';
import { A, B, binary, R } from './operands.ts';

const left = (x: number, by: number): number => (x << by) | (x >>> (32 - by));
const right = (x: number, by: number): number => (x >>> by) | (x << (32 - by));

const choose = (x: number, y: number, z: number): number => (x & y) ^ (~x & z);
const parity = (x: number, y: number, z: number): number => x ^ y ^ z;
const majority = (x: number, y: number, z: number): number => (x & y) ^ (x & z) ^ (y & z);

/** SHA-1's functions and constants (FIPS 180-4, 4.1.1 and 4.2.1), by bits 1:0 of the immediate. */
const ROUNDS = [
  { mix: choose, k: 0x5a82_7999 },
  { mix: parity, k: 0x6ed9_eba1 },
  { mix: majority, k: 0x8f1b_bcdc },
  { mix: parity, k: 0xca62_c1d6 },
] as const;

/** FIPS 180-4, 4.1.2: sigma 0 and 1, of words of the schedule. */
const sigma0 = (x: number): number => right(x, 7) ^ right(x, 18) ^ (x >>> 3);
const sigma1 = (x: number): number => right(x, 17) ^ right(x, 19) ^ (x >>> 10);
/** The same of the working variables. */
const sum0 = (x: number): number => right(x, 2) ^ right(x, 13) ^ right(x, 22);
const sum1 = (x: number): number => right(x, 6) ^ right(x, 11) ^ right(x, 25);

const XMM0 = State.xmm;

export const sha: Helpers = {
  sha1rnds4: binary((_, imm) => {
    const { mix, k } = ROUNDS[(imm & 3) as 0 | 1 | 2 | 3];
    let [a, b, c, d, e] = [A.i32[3]!, A.i32[2]!, A.i32[1]!, A.i32[0]!, 0];
    // E is in the topmost word already: the program adds it there by SHA1NEXTE.
    for (let i = 3; i >= 0; i--) {
      const next = (mix(b, c, d) + left(a, 5) + B.i32[i]! + e + k) | 0;
      [a, b, c, d, e] = [next, a, left(b, 30), c, d];
    }
    R.i32.set([d, c, b, a]);
  }),
  sha1nexte: binary(() => {
    R.i32.set(B.i32);
    R.i32[3] = B.i32[3]! + left(A.i32[3]!, 30);
  }),
  sha1msg1: binary(() => {
    R.i32[3] = A.i32[1]! ^ A.i32[3]!;
    R.i32[2] = A.i32[0]! ^ A.i32[2]!;
    R.i32[1] = B.i32[3]! ^ A.i32[1]!;
    R.i32[0] = B.i32[2]! ^ A.i32[0]!;
  }),
  sha1msg2: binary(() => {
    const w16 = left(A.i32[3]! ^ B.i32[2]!, 1);
    R.i32[0] = left(A.i32[0]! ^ w16, 1);
    R.i32[1] = left(A.i32[1]! ^ B.i32[0]!, 1);
    R.i32[2] = left(A.i32[2]! ^ B.i32[1]!, 1);
    R.i32[3] = w16;
  }),
  sha256msg1: binary(() => {
    for (let i = 0; i < 4; i++) R.i32[i] = A.i32[i]! + sigma0(i < 3 ? A.i32[i + 1]! : B.i32[0]!);
  }),
  sha256msg2: binary(() => {
    const w16 = (A.i32[0]! + sigma1(B.i32[2]!)) | 0;
    const w17 = (A.i32[1]! + sigma1(B.i32[3]!)) | 0;
    R.i32.set([w16, w17, A.i32[2]! + sigma1(w16), A.i32[3]! + sigma1(w17)]);
  }),
  sha256rnds2: binary((_size, _imm, cpu) => {
    let [a, b, c, d] = [B.i32[3]!, B.i32[2]!, A.i32[3]!, A.i32[2]!];
    let [e, f, g, h] = [B.i32[1]!, B.i32[0]!, A.i32[1]!, A.i32[0]!];
    for (let i = 0; i < 2; i++) {
      const added = (choose(e, f, g) + sum1(e) + (cpu.state.u32(XMM0 + 4 * i) | 0) + h) | 0;
      const next = (added + majority(a, b, c) + sum0(a)) | 0;
      [a, b, c, d, e, f, g, h] = [next, a, b, c, (added + d) | 0, e, f, g];
    }
    R.i32.set([f, e, b, a]);
  }),
};
