/**
 * A processor for tests of the floating-point and vector helpers: registers, 512 bytes of memory, and nothing else.
 * Its state before a case follows from the case's number, so that a recording needs to hold only what changed.
 */

import { readFileSync } from 'node:fs';
import * as iced from 'iced-x86';
import { Arena } from '../../src/sim/arena.ts';
import { GuestFault, Vector } from '../../src/sim/cpu/processor/fault.ts';
import type { Insn } from '../../src/sim/cpu/processor/insn.ts';
import type { Processor } from '../../src/sim/cpu/processor/processor.ts';
import { CpuState } from '../../src/sim/cpu/processor/state.ts';
import { sse } from '../../src/sim/cpu/sse/index.ts';
import { Decoder } from '../../src/sim/cpu/translate/decode.ts';
import { fxsaveImage, loadFxsaveImage } from '../../src/sim/cpu/x87/fxsave.ts';
import { x87 } from '../../src/sim/cpu/x87/index.ts';

export const helpers = { ...x87, ...sse };
export const CODE = 0x1000_0000n;
/** Where memory begins; RBX and RDI point there. */
export const DATA = 0x2000_0000n;
export const MEMORY = 512;
const FXSAVE = 512;
/** RAX, RCX, RDX and RFLAGS, the image, the memory. */
export const STATE = 32 + FXSAVE + MEMORY;

/** Pseudorandom numbers: the same for the same number, here and wherever cases were recorded. */
export function randomOf(seed: number) {
  let state = (seed * 2_654_435_761 + 12_345) >>> 0;
  const next = () => {
    state = (state + 0x6d2b_79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return (t ^ (t >>> 14)) >>> 0;
  };
  const below = (limit: number) => Math.floor((next() / 2 ** 32) * limit);
  const pick = <T>(values: readonly T[]): T => values[below(values.length)]!;
  const wide = () => (BigInt(next()) << 32n) | BigInt(next());
  return { below, pick, wide };
}
type Random = ReturnType<typeof randomOf>;

/** A number of so many exponent and fraction bits, more often than not a special one. */
function number({ below, pick, wide }: Random, exponentBits: number, fractionBits: number): bigint {
  const most = 2 ** exponentBits - 1;
  const bias = (most - 1) / 2;
  const near = bias + below(40) - 20;
  const exponent = pick([0, 0, 1, 2, bias, bias + 1, most - 1, most, near, near, near, below(most)]);
  const ones = (1n << BigInt(fractionBits)) - 1n;
  const fraction = pick([0n, 0n, 1n, ones, (ones >> 1n) + 1n, wide(), wide(), wide() & ~0xfffffn]) & ones;
  return (
    (BigInt(below(2)) << BigInt(exponentBits + fractionBits)) |
    (BigInt(exponent) << BigInt(fractionBits)) |
    fraction
  );
}
function extended(random: Random): bigint {
  const { below } = random;
  const bits = number(random, 15, 63);
  const [head, fraction] = [bits >> 63n, bits & ((1n << 63n) - 1n)];
  const integer = (head & 0x7fffn) === 0n ? below(8) === 0 : below(30) !== 0;
  return (head << 64n) | (integer ? 1n << 63n : 0n) | fraction;
}

/** The state before case `seed`. */
export function stateOf(seed: number): Uint8Array {
  const random = randomOf(seed);
  const { below, pick, wide } = random;
  const bytes = new Uint8Array(STATE);
  const view = new DataView(bytes.buffer);
  for (const at of [0, 8, 16])
    view.setBigUint64(at, pick([0n, 1n, 5n, 1n << 63n, 0xffff_fffdn, wide()]), true);
  view.setUint32(24, 0x202 | (below(0x1000) & 0x8d5), true);
  const image = 32;
  const fcw = pick([0x37f, 0x37f, 0x340 | below(64), 0x7f | (below(16) << 8)]);
  let fsw = (below(8) << 11) | pick([0, below(0x8000) & 0x4700]) | (below(64) & fcw);
  if (below(30) === 0) fsw |= below(64);
  if ((fsw & ~fcw & 0x3f) !== 0) fsw |= 0x8080;
  view.setUint16(image, fcw, true);
  view.setUint16(image + 2, fsw, true);
  view.setUint8(image + 4, pick([0xff, 0x7f, below(256), below(256), 0]));
  view.setUint32(
    image + 24,
    pick([0x1f80, 0x1fa0, 0x1f80 | (below(4) << 13), (below(0x400) << 6) | below(64)]),
    true,
  );
  for (let i = 0; i < 8; i++) {
    const bits = extended(random);
    view.setBigUint64(image + 32 + 16 * i, bits & 0xffff_ffff_ffff_ffffn, true);
    view.setUint16(image + 40 + 16 * i, Number(bits >> 64n), true);
  }
  const style = below(4);
  for (let at = image + 160; at < STATE; at += 8) {
    if (at >= image + 416 && at < image + FXSAVE) continue;
    if (style === 0)
      view.setBigUint64(at, wide() & pick([0xffff_ffff_ffff_ffffn, 0x0303_0303_0303_0303n]), true);
    else if (style === 1) {
      view.setUint32(at, Number(number(random, 8, 23)), true);
      view.setUint32(at + 4, Number(number(random, 8, 23)), true);
    } else view.setBigUint64(at, number(random, 11, 52), true);
  }
  for (let at = image + FXSAVE; style === 3 && at < STATE; at += 16) {
    const bits = extended(random);
    view.setBigUint64(at, bits & 0xffff_ffff_ffff_ffffn, true);
    view.setUint16(at + 8, Number(bits >> 64n), true);
  }
  return bytes;
}

/** What a signal handler would be told of an exception. */
const signals: { readonly [vector: number]: string } = {
  [Vector.UD]: 'ILL',
  [Vector.MF]: 'FPE',
  [Vector.XM]: 'FPE',
  [Vector.GP]: 'SEGV',
  [Vector.NM]: 'SEGV',
};

export class Machine {
  readonly arena = new Arena();
  readonly state = new CpuState(this.arena);
  readonly bytes = new Uint8Array(MEMORY + 1024);
  readonly #view = new DataView(this.bytes.buffer);
  readonly #decoder = new Decoder(() => iced);
  cr0 = 0x8005_0033;
  cr4 = 0x600;
  efer = 0x500;
  vendor: 'amd' | 'intel' = 'amd';
  readonly segments = Array.from({ length: 6 }, () => ({ selector: 0, base: 0n, l: 1 }));
  readonly #at = (linear: bigint) => Number(linear - DATA);
  readonly memory = {
    read8: (at: bigint) => this.#view.getUint8(this.#at(at)),
    read16: (at: bigint) => this.#view.getUint16(this.#at(at), true),
    read32: (at: bigint) => this.#view.getUint32(this.#at(at), true),
    read64: (at: bigint) => this.#view.getBigUint64(this.#at(at), true),
    readBytes: (at: bigint, size: number) => this.bytes.slice(this.#at(at), this.#at(at) + size),
    write8: (at: bigint, value: number) => this.#view.setUint8(this.#at(at), value),
    write16: (at: bigint, value: number) => this.#view.setUint16(this.#at(at), value, true),
    write32: (at: bigint, value: number) => this.#view.setUint32(this.#at(at), value, true),
    write64: (at: bigint, value: bigint) => this.#view.setBigUint64(this.#at(at), value, true),
    writeBytes: (at: bigint, bytes: Uint8Array) => this.bytes.set(bytes, this.#at(at)),
    checkWrite: () => {},
  };
  readonly mode = { bits: 64 };

  get processor(): Processor {
    return this as unknown as Processor;
  }

  load(bytes: Uint8Array): void {
    const view = new DataView(bytes.buffer, bytes.byteOffset, STATE);
    for (const i of [0, 1, 2]) this.state.setGpr(i, view.getBigUint64(8 * i, true));
    this.state.setGpr(3, DATA);
    this.state.setGpr(7, DATA);
    this.state.flags = view.getUint32(24, true);
    loadFxsaveImage(this.processor, bytes.subarray(32, 32 + FXSAVE));
    this.bytes.fill(0);
    this.bytes.set(bytes.subarray(32 + FXSAVE, STATE));
  }
  save(): Uint8Array {
    const bytes = new Uint8Array(STATE);
    const view = new DataView(bytes.buffer);
    for (const i of [0, 1, 2]) view.setBigUint64(8 * i, this.state.gpr(i), true);
    view.setUint32(24, this.state.flags, true);
    bytes.set(fxsaveImage(this.processor), 32);
    bytes.set(this.bytes.subarray(0, MEMORY), 32 + FXSAVE);
    return bytes;
  }

  decode(code: Uint8Array): Insn {
    const insns = this.#decoder.decode(code, 64, CODE, () => false);
    if (typeof insns === 'string') throw new Error(`${Buffer.from(code).toString('hex')} is ${insns}`);
    return insns[0]!;
  }
  /** Executes one instruction; gives the vector of its exception, if it raises one. */
  execute(code: string): number | undefined {
    const insn = this.decode(Buffer.from(code, 'hex'));
    try {
      helpers[insn.mnemonic]!(this.processor, insn);
      return undefined;
    } catch (error) {
      if (!(error instanceof GuestFault)) throw error;
      return error.vector;
    }
  }
  signal(code: string): string | undefined {
    const vector = this.execute(code);
    return vector === undefined ? undefined : signals[vector];
  }
}

/** The parts of a state that a case can change: name, offset, bytes. The pointers are not among them. */
const parts: readonly (readonly [string, number, number])[] = [
  ['rax', 0, 8],
  ['rcx', 8, 8],
  ['rdx', 16, 8],
  ['flags', 24, 4],
  ['fcw', 32, 2],
  ['fsw', 34, 2],
  ['ftw', 36, 1],
  ['mxcsr', 56, 4],
  ...Array.from({ length: 8 }, (_, i) => [`st${i}`, 64 + 16 * i, 10] as const),
  ...Array.from({ length: 16 }, (_, i) => [`xmm${i}`, 192 + 16 * i, 16] as const),
  ...Array.from({ length: MEMORY / 16 }, (_, i) => [`m${i}`, 32 + FXSAVE + 16 * i, 16] as const),
];

/** What differs, as `name=value` in hexadecimal. */
export function changes(before: Uint8Array, after: Uint8Array): string {
  const part = (bytes: Uint8Array, at: number, size: number) =>
    Buffer.from(bytes.subarray(at, at + size))
      .reverse()
      .toString('hex')
      .replace(/^0+(?=.)/, '');
  return parts
    .filter(([, at, size]) => part(before, at, size) !== part(after, at, size))
    .map(([name, at, size]) => `${name}=${part(after, at, size)}`)
    .join(' ');
}

export interface Recorded {
  readonly form: string;
  readonly code: string;
  readonly seed: number;
  readonly signal: string | undefined;
  readonly changes: string;
}
/** Lines of "form code seed signal|- changes...", what one processor did (its model is in the first line). */
export function recorded(name: string): Recorded[] {
  const text = readFileSync(new URL(`./fixtures/${name}`, import.meta.url), 'utf8');
  return text
    .split('\n')
    .filter((line) => line !== '' && !line.startsWith('#'))
    .map((line) => {
      const [form, code, seed, signal, ...rest] = line.split(' ');
      return {
        form: form!,
        code: code!,
        seed: Number(seed),
        signal: signal === '-' ? undefined : signal,
        changes: rest.join(' '),
      };
    });
}
