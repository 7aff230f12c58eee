/**
 * FMA: a product and a sum with one rounding. The three digits of a name say which operands are multiplied with each other and
 * which is added: 132 is 1 * 3 + 2 (SDM volume 2, VFMADD132PD).
 */

import { type Float, read } from '../fp/float.ts';
import { fused } from '../fp/fused.ts';
import type { Width } from '../fp/native.ts';
import type { Helper, Helpers } from '../processor/helper.ts';
import { begin, bitsOf, end, env, formatOf, setBits } from '../sse/env.ts';
import { checkAvx, halvesOf, loadWide, storeWide, W, type Wide, X, Y, Z } from './operands.ts';

const negated = (a: Float): Float => ({ ...a, negative: !a.negative });

/** What of a lane has its sign changed: the product, the addend. */
export type Signs = (lane: number) => readonly [product: boolean, addend: boolean];
const OPERATIONS: { readonly [name: string]: Signs } = {
  fmadd: () => [false, false],
  fmsub: () => [false, true],
  fnmadd: () => [true, false],
  fnmsub: () => [true, true],
  fmaddsub: (lane) => [false, (lane & 1) === 0],
  fmsubadd: (lane) => [false, (lane & 1) === 1],
};
/** Which operands are the factors and the addend. */
const ORDERS: { readonly [digits: string]: readonly [number, number, number] } = {
  132: [0, 2, 1],
  213: [1, 0, 2],
  231: [1, 2, 0],
};
const WIDES: readonly Wide[] = [X, Y, Z];

/** NaNs keep their signs. */
const signed = (a: Float, change: boolean): Float => (change && a.kind < 3 ? negated(a) : a);

const fma =
  (signs: Signs, order: readonly [number, number, number], width: Width, scalar: boolean): Helper =>
  (cpu, insn) => {
    checkAvx(cpu);
    loadWide(cpu, insn, 0, X);
    loadWide(cpu, insn, 1, Y);
    loadWide(cpu, insn, 2, Z);
    const [a, b, c] = order.map((operand) => WIDES[operand]!) as [Wide, Wide, Wide];
    begin(cpu);
    const format = formatOf(width);
    const count = 128 / width;
    const halves = halvesOf(insn);
    W[0].i32.set(X[0].i32);
    for (let half = 0; half < halves; half++) {
      for (let i = 0; i < (scalar ? 1 : count); i++) {
        const [product, addend] = signs(i);
        const at = (wide: Wide) => read(env, format, bitsOf(width, wide[half]!, i));
        setBits(width, W[half]!, i, fused(env, format, signed(at(a), product), at(b), signed(at(c), addend)));
      }
    }
    end(cpu);
    storeWide(cpu, insn, W);
  };

const SUFFIXES: readonly (readonly [name: string, width: Width, scalar: boolean])[] = [
  ['ps', 32, false],
  ['pd', 64, false],
  ['ss', 32, true],
  ['sd', 64, true],
];

/** All of them, as something made of each. */
export const eachFma = <T>(
  of: (signs: Signs, order: readonly [number, number, number], width: Width, scalar: boolean) => T,
): { readonly [mnemonic: string]: T } =>
  Object.fromEntries(
    Object.entries(OPERATIONS).flatMap(([name, signs]) =>
      Object.entries(ORDERS).flatMap(([digits, order]) =>
        SUFFIXES.filter(([, , scalar]) => !scalar || !/(add|sub)(sub|add)/.test(name)).map(
          ([suffix, width, scalar]) =>
            [`v${name}${digits}${suffix}`, of(signs, order, width, scalar)] as const,
        ),
      ),
    ),
  );

export const avxFma: Helpers = eachFma(fma);
