/**
 * A case: one instruction, and the state in which it executes. All of the state follows from a number, but for what
 * the instruction's operands need; so a case is one line of text.
 */
import { Image } from '../../src/sim/cpu/x87/fxsave.ts';
import { hasAvx, type ModeName, modeOf, modes } from './modes.ts';
import { Place, WINDOW } from './places.ts';
import { DOUBLE, extended, float, integer64, Random, SINGLE, vector } from './random.ts';

/** As kvm_regs has them. */
export const REGISTERS = [
  'rax',
  'rbx',
  'rcx',
  'rdx',
  'rsi',
  'rdi',
  'rsp',
  'rbp',
  'r8',
  'r9',
  'r10',
  'r11',
  'r12',
  'r13',
  'r14',
  'r15',
  'rip',
  'rflags',
] as const;
export type RegisterName = (typeof REGISTERS)[number];
/** Of a vector register, which a case may give as well: the low half, and what is above. */
export type VectorName = `xmm${number}` | `ymm${number}`;
export const RIP = REGISTERS.indexOf('rip');
export const RFLAGS = REGISTERS.indexOf('rflags');
const RDX = REGISTERS.indexOf('rdx');
export const RSP = REGISTERS.indexOf('rsp');

/** What stands around the instruction: `out dx, al`, which ends the case wherever execution goes. */
export const FILLER = 0xee;

export interface Patch {
  readonly at: number;
  readonly bytes: Uint8Array;
}

export interface Case {
  readonly mode: ModeName;
  readonly code: Uint8Array;
  /** The seed of the state. */
  readonly state: number;
  /** Registers that are not as the seed has them; `rip` among them is where the instruction lies. */
  readonly registers: readonly (readonly [RegisterName | VectorName, bigint])[];
  /** Memory that is not as the seed has it, by linear address. */
  readonly patches: readonly Patch[];
}

export interface State {
  /** In the order of REGISTERS. */
  readonly registers: BigUint64Array;
  /** FXSAVE's image, without what is beyond XMM15 (SDM volume 1, 10.5.1); where there is AVX, the XSAVE area to YMM15's upper half. */
  readonly fpu: Uint8Array;
  /** The window's content. */
  readonly memory: Uint8Array;
}

/** FXSAVE's image as far as KVM tells it of every guest: to the end of XMM15. */
export const Fx = { ...Image, end: Image.xmm + 16 * 16 } as const;

/** What follows in the XSAVE area (SDM volume 1, 13.4). */
export const Xs = { header: 512, ymm: 576, end: 576 + 16 * 16 } as const;

/** The parts of the image that are compared, by name: all but the pointers (docs/undefined-results.md). */
export const FPU_PARTS: readonly (readonly [name: string, at: number, size: number])[] = [
  ['fcw', Fx.fcw, 2],
  ['fsw', Fx.fsw, 2],
  ['ftw', Fx.ftw, 1],
  ['mxcsr', Fx.mxcsr, 4],
  ...Array.from({ length: 8 }, (_, i) => [`st${i}`, Fx.st + 16 * i, 10] as const),
  ...Array.from({ length: 16 }, (_, i) => [`xmm${i}`, Fx.xmm + 16 * i, 16] as const),
];

/** The same where there is AVX: XSTATE_BV and the upper halves. */
const EXTENDED_PARTS: typeof FPU_PARTS = [
  ...FPU_PARTS,
  ['bv', Xs.header, 8],
  ...Array.from({ length: 16 }, (_, i) => [`ymm${i}`, Xs.ymm + 16 * i, 16] as const),
];
export const partsOf = (fpu: Uint8Array): typeof FPU_PARTS =>
  fpu.length > Fx.end ? EXTENDED_PARTS : FPU_PARTS;

const Flag = { fixed: 0x202, arithmetic: 0x8d5, IF: 0x200, DF: 0x400, IOPL: 0x3000 };
const MASKS = 0x3f;

/** Memory that all cases draw from, each at another offset. Longer than the window by what offsets there are. */
const pool = (() => {
  const OFFSETS = 4096;
  const bytes = new Uint8Array(WINDOW + 16 * OFFSETS);
  const view = new DataView(bytes.buffer);
  const random = new Random(0x6d65_6d6f);
  for (let at = 0; at < bytes.length; at += 16) {
    switch (random.below(8)) {
      case 0: // addresses of code and of data
        view.setBigUint64(at, BigInt(Place.code + random.below(0x2000)), true);
        view.setBigUint64(at + 8, BigInt(Place.data + random.below(WINDOW)), true);
        break;
      case 1:
        extended(random, view, at);
        break;
      case 2: // packed decimal
        view.setBigUint64(at, random.u64() & 0x7777_7777_7777_7777n, true);
        view.setBigUint64(at + 8, random.u64() & 0x8777n, true);
        break;
      case 3:
        view.setBigUint64(at, float(random, DOUBLE), true);
        view.setUint32(at + 8, Number(float(random, SINGLE)), true);
        break;
      default:
        vector(random, view, at);
    }
  }
  return bytes;
})();

export function stateOf(given: Case): State {
  const random = new Random(given.state, 0x7374_6174);
  const { bits, privilege, segments } = modeOf(given.mode);
  const wide = bits === 64;
  const registers = new BigUint64Array(REGISTERS.length);
  for (let i = 0; i < 16; i++) {
    const value = integer64(random);
    registers[i] = wide ? value : i < 8 ? value & 0xffff_ffffn : 0n;
  }
  registers[RSP] = BigInt(
    Place.data + 0x400 + 16 * random.below(0x80) + (random.oneIn(8) ? random.below(16) : 0),
  );
  if (!wide) registers[RSP]! -= segments.ss.base;
  registers[RIP] = BigInt(Place.start) - segments.cs.base;
  registers[RFLAGS] = BigInt(Flag.fixed | (random.u32() & Flag.arithmetic) | (random.oneIn(6) ? Flag.DF : 0));

  if (privilege === 0) {
    // KVM goes on differently after an OUT to port 0x7e (KVM_X86_QUIRK_OUT_7E_INC_RIP).
    if ((registers[RDX]! & 0xffffn) === 0x7en) registers[RDX]! ^= 1n;
    registers[RFLAGS]! ^= BigInt(random.pick([0, Flag.IF]) | (random.u32() & Flag.IOPL));
    // With a stack of 16 bits the upper half of ESP is not part of the address.
    if (bits === 16 && random.oneIn(4)) registers[RSP]! |= BigInt(random.u32() & 0xffff) << 16n;
  }

  const fpu = new Uint8Array(hasAvx(given.mode) ? Xs.end : Fx.end);
  const view = new DataView(fpu.buffer);
  const masks = random.oneIn(8) ? random.below(64) : MASKS;
  const precision = random.oneIn(4) ? random.pick([0x000, 0x200]) : 0x300;
  const rounding = random.oneIn(3) ? random.below(4) << 10 : 0;
  view.setUint16(Fx.fcw, 0x40 | masks | precision | rounding, true);
  // An exception that is flagged and not masked waits to be raised: then the summary bit is set as well.
  const flags = random.oneIn(4) ? random.below(128) & (random.oneIn(8) ? 0x7f : masks | 0x40) : 0;
  const pending = (flags & MASKS & ~masks) !== 0 ? 0x8080 : 0;
  view.setUint16(Fx.fsw, flags | pending | (random.below(8) << 11) | (random.u32() & 0x4700), true);
  view.setUint8(Fx.ftw, random.oneIn(3) ? random.below(256) : 0xff);
  const simdMasks = random.oneIn(8) ? random.below(64) : MASKS;
  const simdFlags = random.oneIn(3) ? random.below(64) : 0;
  const control = random.oneIn(3)
    ? (random.below(4) << 13) | (random.below(2) << 15) | (random.below(2) << 6)
    : 0;
  view.setUint32(Fx.mxcsr, (simdMasks << 7) | simdFlags | control, true);
  for (let i = 0; i < 8; i++) {
    const at = Fx.st + 16 * i;
    if (random.oneIn(4)) {
      // As MMX leaves them (SDM volume 1, 9.2.1).
      view.setBigUint64(at, integer64(random), true);
      view.setUint16(at + 8, 0xffff, true);
    } else extended(random, view, at);
  }
  for (let i = 0; i < (wide ? 16 : 8); i++) vector(random, view, Fx.xmm + 16 * i);

  const from = 16 * random.below(4096);
  const memory = pool.slice(from, from + WINDOW);
  if (hasAvx(given.mode)) {
    // Where a component is in its initial state the processor may know that (SDM volume 1, 13.6).
    const initial = random.oneIn(16);
    view.setBigUint64(Xs.header, initial ? 3n : 7n, true);
    if (!initial) for (let i = 0; i < 16; i++) vector(random, view, Xs.ymm + 16 * i);
  }
  for (const [name, value] of given.registers) {
    const vectorNumber = /^([xy])mm(\d+)$/.exec(name);
    if (vectorNumber === null) registers[REGISTERS.indexOf(name as RegisterName)] = value;
    else {
      const upper = vectorNumber[1] === 'y';
      const at = (upper ? Xs.ymm : Fx.xmm) + 16 * Number(vectorNumber[2]);
      view.setBigUint64(at, BigInt.asUintN(64, value), true);
      view.setBigUint64(at + 8, value >> 64n, true);
      if (upper) view.setBigUint64(Xs.header, 7n, true);
    }
  }
  for (const { at, bytes } of given.patches) memory.set(bytes, at - Place.data);
  return { registers, fpu, memory };
}

const hex = (bytes: Uint8Array) => Buffer.from(bytes).toString('hex');
const unhex = (text: string) => Uint8Array.from(Buffer.from(text, 'hex'));

/** `long3 4801d8 1a2b rcx=5 @30010=0011`. */
export function formatCase(given: Case): string {
  return [
    given.mode,
    hex(given.code),
    given.state.toString(16),
    ...given.registers.map(([name, value]) => `${name}=${value.toString(16)}`),
    ...given.patches.map(({ at, bytes }) => `@${at.toString(16)}=${hex(bytes)}`),
  ].join(' ');
}

export function parseCase(text: string): Case {
  const [mode, code, state, ...rest] = text.trim().split(/\s+/);
  if (!(modes as readonly string[]).includes(mode!) || code === undefined || state === undefined)
    throw new RangeError(`not a case: '${text}'`);
  const pairs = rest.map((pair) => pair.split('=') as [string, string]);
  return {
    mode: mode as ModeName,
    code: unhex(code),
    state: Number.parseInt(state, 16),
    registers: pairs
      .filter(([name]) => !name.startsWith('@'))
      .map(([name, value]) => [name as RegisterName, BigInt(`0x${value}`)]),
    patches: pairs
      .filter(([name]) => name.startsWith('@'))
      .map(([name, value]) => ({ at: Number.parseInt(name.slice(1), 16), bytes: unhex(value) })),
  };
}
