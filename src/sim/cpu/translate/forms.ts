/**
 * The encodings of the common instructions (SDM volume 2, appendix A): how long one is, which of its fields it has, and a
 * number for all the rest, its form. It is what code that is executed a few times costs to decode; what is not in these
 * tables is iced-x86's, which also says what a form means (template.ts).
 */
import { LONGEST } from '../processor/insn.ts';

/** What follows an opcode. */
const MODRM = 1;
/** The register field of ModRM is a part of the opcode. */
const GROUP = 2;
/** Immediates of one byte, of the operand's size but four bytes at most, of the operand's size, of two bytes. */
const IMM8 = 4;
const IMMZ = 8;
const IMMV = 16;
const IMM16 = 32;
/** A branch's displacement of one byte, or of the operand's size. */
const REL8 = 64;
const RELZ = 128;
/** The opcode's low bits are a register. */
const LOW = 256;
/** It has an encoding in these tables. */
const KNOWN = 512;
/** An immediate of one byte where ModRM's register field is 0 or 1: TEST in group 3. */
const TEST8 = 1024;
const TESTZ = 2048;
/** Only with a register in ModRM, only with memory. */
const REGISTER = 4096;
const MEMORY = 8192;
/** In 64-bit mode, in all others. */
const LONG = 16_384;
const LEGACY = 32_768;
/** The register field of ModRM is one of another file, which the form has; REX.R would make it another. */
const FILE = 131_072;
/** An offset of the operand's size, and a selector. */
const FAR = 262_144;
/** The x87's: a register in ModRM is a part of the opcode, and what FOP gets takes the place of an immediate. */
const X87 = 65_536;

type Rows = { readonly [opcodes: string]: number };

/** Opcodes in hexadecimal, "50-57" for several. */
const oneByte: Rows = {
  ...Object.fromEntries(
    [0, 8, 0x10, 0x18, 0x20, 0x28, 0x30, 0x38].flatMap((first) => [
      [`${first.toString(16)}-${(first + 3).toString(16)}`, MODRM],
      [(first + 4).toString(16), IMM8],
      [(first + 5).toString(16), IMMZ],
    ]),
  ),
  '40-4f': LOW | LEGACY,
  '50-5f': LOW,
  '63': MODRM | LONG,
  '68': IMMZ,
  '69': MODRM | IMMZ,
  '6a': IMM8,
  '6b': MODRM | IMM8,
  '70-7f': REL8,
  '80': MODRM | GROUP | IMM8,
  '81': MODRM | GROUP | IMMZ,
  '83': MODRM | GROUP | IMM8,
  '84-8b': MODRM,
  '8c-8c': MODRM | GROUP | FILE,
  '8d': MODRM | MEMORY,
  '8e': MODRM | GROUP | FILE,
  '90': 0,
  '91-97': LOW,
  '98-99': 0,
  '9b-9d': 0,
  'a4-a7': 0,
  a8: IMM8,
  a9: IMMZ,
  'aa-af': 0,
  'b0-b7': LOW | IMM8,
  'b8-bf': LOW | IMMV,
  'c0-c1': MODRM | GROUP | IMM8,
  c2: IMM16,
  c3: 0,
  c6: MODRM | GROUP | IMM8,
  c7: MODRM | GROUP | IMMZ,
  c9: 0,
  'cc-cc': 0,
  'cd-cd': IMM8,
  cf: 0,
  'd0-d3': MODRM | GROUP,
  'd8-df': MODRM | GROUP | X87,
  'e0-e3': REL8,
  'e4-e7': IMM8,
  'e8-e9': RELZ,
  ea: IMMZ | FAR | LEGACY,
  eb: REL8,
  'ec-ef': 0,
  'f4-f5': 0,
  f6: MODRM | GROUP | TEST8,
  f7: MODRM | GROUP | TESTZ,
  'f8-fd': 0,
  'fe-ff': MODRM | GROUP,
};
/** Behind 0F. */
const twoBytes: Rows = {
  '00-00': MODRM | GROUP,
  '01': MODRM | GROUP | MEMORY,
  '05': 0,
  '07': 0,
  '0b': 0,
  '18-1f': MODRM | GROUP,
  '20-23': MODRM | GROUP | REGISTER | FILE,
  '30-32': 0,
  '34-35': 0,
  '40-4f': MODRM,
  '80-8f': RELZ,
  '90-9f': MODRM,
  a2: 0,
  a3: MODRM,
  a4: MODRM | IMM8,
  a5: MODRM,
  ab: MODRM,
  ac: MODRM | IMM8,
  'ad-ad': MODRM,
  ae: MODRM | GROUP | REGISTER,
  af: MODRM,
  'b0-b1': MODRM,
  b3: MODRM,
  'b6-b8': MODRM,
  ba: MODRM | GROUP | IMM8,
  'bb-bf': MODRM,
  'c0-c1': MODRM,
  c3: MODRM | MEMORY,
  c7: MODRM | GROUP | MEMORY,
  'c8-cf': LOW,
};

function tableOf(rows: Rows): Uint32Array {
  const table = new Uint32Array(256);
  for (const [opcodes, flags] of Object.entries(rows)) {
    const [first, last = first] = opcodes.split('-').map((digits) => Number.parseInt(digits, 16)) as [
      number,
      number?,
    ];
    table.fill(flags | KNOWN, first, last + 1);
  }
  return table;
}
const ONE = tableOf(oneByte);
const TWO = tableOf(twoBytes);

const ES = 0;
const SS = 2;
const DS = 3;
/** By the prefixes 26, 2E, 36, 3E, 64 and 65. */
const NO_SEGMENT = 6;

/** An absent register, base or index. */
export const NONE = 16;

const TWO_32 = 2 ** 32;

/** One instruction's encoding: read() fills it. Addresses are halves, signed. */
export class Encoding {
  length = 0;
  /** All that is not in the other fields: the same number means the same instruction on other operands. */
  form = 0;
  /** The operand in ModRM's r/m, or in the opcode's low bits; the one in ModRM's register field. Not with REX: see high. */
  rm = NONE;
  register = NONE;
  /** Without REX, byte registers 4 to 7 are AH to BH. */
  legacy = false;
  base = NONE;
  index = NONE;
  /** The scale as a count of bits. */
  scale = 0;
  /** Displacement, with RIP where it is relative to that. */
  low = 0;
  high = 0;
  /** Immediate, sign-extended; or where a branch goes; or a far one's offset and selector; or the opcode as the x87 keeps it. */
  immLow = 0;
  immHigh = 0;
  /** ModRM's register field is an operand; the immediate is where a near branch goes. */
  hasRegister = false;
  isBranch = false;
  /** RIP of the next instruction. */
  nextLow = 0;
  nextHigh = 0;

  /**
   * @param at where the instruction begins in `bytes`
   * @param end where they end
   * @returns whether it is one of these tables', and whole
   */
  read(
    bytes: Uint8Array,
    at: number,
    end: number,
    bits: 16 | 32 | 64,
    ripLow: number,
    ripHigh: number,
  ): boolean {
    const limit = Math.min(end, at + LONGEST);
    let pos = at;
    let byte = bytes[pos++]!;
    let prefixes = 0; // 66 67 F0 F2 F3
    let override = NO_SEGMENT;
    for (; ; byte = bytes[pos++]!) {
      if (byte === 0x66) prefixes |= 1;
      else if (byte === 0x67) prefixes |= 2;
      else if (byte === 0xf0) prefixes |= 4;
      else if (byte === 0xf2) prefixes = (prefixes & ~16) | 8;
      else if (byte === 0xf3) prefixes = (prefixes & ~8) | 16;
      else if ((byte & 0xe7) === 0x26) override = (byte >> 3) & 3;
      else if ((byte & 0xfe) === 0x64) override = byte & 7;
      else break;
      if (pos >= limit) return false;
    }
    let rex = 0;
    if (bits === 64 && (byte & 0xf0) === 0x40) {
      rex = byte;
      byte = bytes[pos++]!;
    }
    let opcode = byte;
    let flags: number;
    if (byte === 0x0f) {
      byte = bytes[pos++]!;
      opcode = byte | 0x100;
      flags = TWO[byte]!;
    } else flags = ONE[byte]!;
    if ((flags & KNOWN) === 0 || pos > limit) return false;
    if ((flags & (bits === 64 ? LEGACY : LONG)) !== 0) return false;
    if (opcode === 0x90 && (rex & 1) !== 0) return false; // XCHG R8

    const wide = (rex & 8) !== 0;
    const size = wide ? 3 : (bits === 16) !== ((prefixes & 1) !== 0) ? 1 : 2;
    const address =
      bits === 64 ? ((prefixes & 2) !== 0 ? 2 : 3) : (bits === 16) !== ((prefixes & 2) !== 0) ? 1 : 2;
    this.hasRegister = (flags & MODRM) !== 0 && (flags & GROUP) === 0;
    this.isBranch = (flags & (REL8 | RELZ)) !== 0;
    this.legacy = rex === 0;
    this.rm = NONE;
    this.register = NONE;
    this.base = NONE;
    this.index = NONE;
    this.scale = 0;
    this.low = 0;
    this.high = 0;
    this.immLow = 0;
    this.immHigh = 0;
    let segment = override;
    let extra = 0;
    let isMemory = 0;
    let stack = 0;
    let relative = false;
    if ((flags & MODRM) !== 0) {
      const modrm = bytes[pos++]!;
      const mod = modrm >> 6;
      const field = (modrm >> 3) & 7;
      if ((flags & GROUP) !== 0) extra = field;
      if ((flags & FILE) !== 0 && (rex & 4) !== 0) return false;
      this.register = field | ((rex & 4) << 1);
      if (mod === 3) {
        if ((flags & MEMORY) !== 0) return false;
        if ((flags & X87) !== 0) stack = modrm & 7;
        this.rm = (modrm & 7) | ((rex & 1) << 3);
        segment = override === NO_SEGMENT ? NO_SEGMENT : 7;
      } else {
        if ((flags & REGISTER) !== 0 || address === 1) return false;
        // It is ignored; below ES stands for the first four.
        if (bits === 64 && override === ES) return false;
        // An override that is ignored: the operand is in SS or not by its base alone.
        if ((flags & X87) !== 0 && bits === 64 && override < 4) return false;
        isMemory = 1;
        let base = modrm & 7;
        let size32 = mod === 2;
        if (base === 4) {
          const sib = bytes[pos++]!;
          base = sib & 7;
          const index = ((sib >> 3) & 7) | ((rex & 2) << 2);
          if (index !== 4) {
            this.index = index;
            this.scale = sib >> 6;
          }
          if (base === 5 && mod === 0) {
            base = NONE;
            size32 = true;
          }
        } else if (base === 5 && mod === 0) {
          base = NONE;
          size32 = true;
          relative = bits === 64;
        }
        if (base !== NONE) {
          if (segment === NO_SEGMENT && (base === 4 || base === 5)) segment = SS;
          base |= (rex & 1) << 3;
          if (base > 7 && override === NO_SEGMENT) segment = DS;
          this.base = base;
        }
        if (segment === NO_SEGMENT) segment = DS;
        // In 64-bit mode the first four have no base, and only a stack fault tells them apart.
        if (bits === 64 && segment !== SS && segment < 4 && override === NO_SEGMENT) segment = ES;
        if (size32) {
          this.low = bytes[pos]! | (bytes[pos + 1]! << 8) | (bytes[pos + 2]! << 16) | (bytes[pos + 3]! << 24);
          pos += 4;
        } else if (mod === 1) this.low = (bytes[pos++]! << 24) >> 24;
        this.high = bits === 64 && address === 2 ? 0 : this.low >> 31;
      }
      if ((flags & X87) !== 0) this.immLow = ((opcode & 7) << 8) | modrm;
      if (flags >= TEST8 && (flags & (TEST8 | TESTZ)) !== 0 && field < 2)
        flags |= (flags & TEST8) !== 0 ? IMM8 : IMMZ;
    } else if ((flags & LOW) !== 0) {
      this.rm = (opcode & 7) | ((rex & 1) << 3);
      opcode = (opcode & ~7) | 1; // 90 is NOP
    }
    // In 64-bit mode AMD's processors heed 66 before a near branch, and Intel's do not.
    if ((flags & (REL8 | RELZ)) !== 0 && (prefixes & 1) !== 0) return false;
    if ((flags & (IMM8 | REL8)) !== 0) this.immLow = (bytes[pos++]! << 24) >> 24;
    else if ((flags & IMM16) !== 0) {
      this.immLow = bytes[pos]! | (bytes[pos + 1]! << 8);
      pos += 2;
    } else if ((flags & (IMMZ | IMMV | RELZ)) !== 0) {
      if (size === 1) {
        this.immLow = ((bytes[pos]! | (bytes[pos + 1]! << 8)) << 16) >> 16;
        pos += 2;
      } else {
        this.immLow =
          bytes[pos]! | (bytes[pos + 1]! << 8) | (bytes[pos + 2]! << 16) | (bytes[pos + 3]! << 24);
        pos += 4;
      }
    }
    if ((opcode & ~1) === 0xd0) this.immLow = 1; // a shift by one
    this.immHigh = this.immLow >> 31;
    if ((flags & IMMV) !== 0 && size === 3) {
      this.immHigh = bytes[pos]! | (bytes[pos + 1]! << 8) | (bytes[pos + 2]! << 16) | (bytes[pos + 3]! << 24);
      pos += 4;
    }
    if ((flags & FAR) !== 0) {
      this.immHigh = bytes[pos]! | (bytes[pos + 1]! << 8);
      pos += 2;
    }
    if (pos > limit) return false;
    this.length = pos - at;
    const next = (ripLow >>> 0) + this.length;
    this.nextLow = next | 0;
    this.nextHigh = bits === 64 ? (ripHigh + (next >= TWO_32 ? 1 : 0)) | 0 : 0;
    if (relative) {
      const sum = (this.nextLow >>> 0) + this.low;
      this.high = (this.nextHigh + Math.floor(sum / TWO_32)) | 0;
      this.low = sum | 0;
      if (address === 2) this.high = 0;
    }
    if ((flags & (REL8 | RELZ)) !== 0) {
      const sum = (this.nextLow >>> 0) + this.immLow;
      this.immHigh = bits === 64 ? (this.nextHigh + Math.floor(sum / TWO_32)) | 0 : 0;
      this.immLow = bits === 16 ? sum & 0xffff : sum | 0;
    }
    this.form =
      opcode |
      (extra << 9) |
      (isMemory << 12) |
      ((size - 1) << 13) |
      ((address - 1) << 15) |
      (prefixes << 17) |
      (segment << 22) |
      (wide ? 1 << 25 : 0) |
      (stack << 26);
    return true;
  }
}
