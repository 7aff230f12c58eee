/**
 * What the instructions of a form (forms.ts) are, so that the next of them needs no iced-x86: an Insn but for what the
 * encoding's fields say. iced-x86 says what a form is when it is met for the first time, or was asked ahead (ahead.ts).
 */
import { joined } from '../processor/halves.ts';
import type { Insn, Operand, Size } from '../processor/insn.ts';
import { type Encoding, NONE } from './forms.ts';
import { bytePlaceOf, placeOf } from './places.ts';

/** The fields of an encoding that say which register an operand is. */
type Field = 'rm' | 'register';

type Part =
  | { readonly from: 'register'; readonly field: Field; readonly size: Size }
  | { readonly from: 'memory'; readonly segment: number; readonly size: number }
  /** Sign-extended to 64 bits, or so many bits without a sign. */
  | { readonly from: 'immediate'; readonly bits: number; readonly signed: boolean }
  | { readonly from: 'branch' }
  | { readonly from: 'far'; readonly bits: number }
  /** The form says which. */
  | { readonly from: 'form'; readonly operand: Exclude<Operand, { kind: 'mem' | 'imm' | 'near' | 'far' }> }
  /** Of string instructions. */
  | { readonly from: 'string'; readonly segment: number; readonly base: number; readonly size: number };

/** It can become JSON and be made of that again. */
export interface Pattern
  extends Pick<
    Insn,
    'mnemonic' | 'code' | 'addressSize' | 'operandSize' | 'segment' | 'wide' | 'lock' | 'rep'
  > {
  readonly parts: readonly Part[];
}

/** The encoding's field that says which register an operand is, by the form's name ("Add_rm64_r64"); none where the form says it. */
export function fieldOf(
  { code }: Pick<Insn, 'code'>,
  position: number,
  hasRegister: boolean,
): Field | undefined {
  const name = code.split('_')[position + 1] ?? '';
  if (/^rm\d/.test(name)) return 'rm';
  return /^r\d/.test(name) ? (hasRegister ? 'register' : 'rm') : undefined;
}

/** Operands of string instructions, which no encoding has. */
const STRING = /^(movs|cmps|stos|lods|scas|ins|outs)[bwdq]$/;

/**
 * The pattern of an instruction, if its operands are what the encoding's fields say.
 * @param signed of an operand that is an immediate: whether it is sign-extended
 * @param bits the same: its own bits
 */
export function patternOf(
  insn: Insn,
  encoding: Encoding,
  signed: (operand: number) => boolean,
  bits: (operand: number) => number,
): Pattern | undefined {
  if (insn.length !== encoding.length) return undefined;
  const parts: Part[] = [];
  for (const [i, operand] of insn.operands.entries()) {
    const part = partOf(insn, encoding, i, operand, signed, bits);
    if (part === undefined) return undefined;
    parts.push(part);
  }
  const { mnemonic, code, addressSize, segment, wide, lock, rep } = insn;
  return {
    mnemonic,
    code,
    addressSize,
    // Asked for when it matters: see the decoder.
    get operandSize() {
      return insn.operandSize;
    },
    segment,
    wide,
    lock,
    rep,
    parts,
  };
}

function partOf(
  insn: Insn,
  encoding: Encoding,
  i: number,
  operand: Operand,
  signed: (operand: number) => boolean,
  bits: (operand: number) => number,
): Part | undefined {
  switch (operand.kind) {
    case 'gpr': {
      const field = fieldOf(insn, i, encoding.hasRegister);
      if (field === undefined) return { from: 'form', operand };
      const { size } = operand;
      const register = encoding[field];
      const place = size === 1 ? bytePlaceOf(register, encoding.legacy) : placeOf(register);
      return place === operand.index * 8 + (operand.high ? 1 : 0)
        ? { from: 'register', field, size }
        : undefined;
    }
    case 'mem': {
      const { segment, size, base, index, scale, displacement } = operand;
      if (STRING.test(insn.mnemonic)) return { from: 'string', segment, base: base!, size };
      const isSame =
        (base ?? NONE) === encoding.base &&
        (index ?? NONE) === encoding.index &&
        (index === undefined || scale === 1 << encoding.scale) &&
        BigInt.asUintN(64, displacement) === joined(encoding.low, encoding.high);
      return isSame ? { from: 'memory', segment, size } : undefined;
    }
    case 'imm': {
      const part = { from: 'immediate', bits: bits(i), signed: signed(i) } as const;
      return immediate(encoding, part) === operand.value ? part : undefined;
    }
    case 'near':
      return operand.target === joined(encoding.immLow, encoding.immHigh) ? { from: 'branch' } : undefined;
    case 'far': {
      const part = { from: 'far', bits: bits(i) } as const;
      const { selector, offset } = far(encoding, part);
      return selector === operand.selector && offset === operand.offset ? part : undefined;
    }
    case 'held':
      return undefined;
    default:
      return { from: 'form', operand };
  }
}

function immediate(
  { immLow, immHigh }: Encoding,
  { bits, signed }: { bits: number; signed: boolean },
): bigint {
  const value = joined(immLow, immHigh);
  return signed ? BigInt.asIntN(64, value) : BigInt.asUintN(bits, value);
}

function far({ immLow, immHigh }: Encoding, { bits }: { bits: number }) {
  return { kind: 'far', selector: immHigh, offset: bits === 16 ? immLow & 0xffff : immLow >>> 0 } as const;
}

/** The instruction at RIP that the encoding was read of. */
export function insnOf(pattern: Pattern, encoding: Encoding, rip: bigint): Insn {
  const { mnemonic, code, addressSize, segment, wide, lock, rep, parts } = pattern;
  return {
    mnemonic,
    code,
    rip,
    next: joined(encoding.nextLow, encoding.nextHigh),
    length: encoding.length,
    fop: encoding.immLow,
    operands: parts.map((part) => operandOf(part, encoding)),
    addressSize,
    get operandSize() {
      return pattern.operandSize;
    },
    segment,
    wide,
    lock,
    rep,
  };
}

function operandOf(part: Part, encoding: Encoding): Operand {
  switch (part.from) {
    case 'register': {
      const { size } = part;
      const index = encoding[part.field];
      const high = size === 1 && encoding.legacy && index >= 4;
      return { kind: 'gpr', index: high ? index - 4 : index, size, high };
    }
    case 'memory': {
      const { base, index, scale, low, high } = encoding;
      return {
        kind: 'mem',
        segment: part.segment,
        base: base === NONE ? undefined : base,
        index: index === NONE ? undefined : index,
        scale: (1 << scale) as 1 | 2 | 4 | 8,
        displacement: BigInt.asIntN(64, joined(low, high)),
        size: part.size,
      };
    }
    case 'immediate':
      return { kind: 'imm', value: immediate(encoding, part) };
    case 'branch':
      return { kind: 'near', target: joined(encoding.immLow, encoding.immHigh) };
    case 'far':
      return far(encoding, part);
    case 'string': {
      const { segment, base, size } = part;
      return { kind: 'mem', segment, base, index: undefined, scale: 1, displacement: 0n, size };
    }
    default:
      return part.operand;
  }
}
