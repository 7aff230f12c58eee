/**
 * Bytes in, an Insn out: by the pattern of its form where that is known, else by iced-x86, which nothing else in the simulator
 * knows. That is loaded when it is needed first: it takes longer than all that a small guest does.
 */
import type * as iced from 'iced-x86';
import { highHalf, lowHalf } from '../processor/halves.ts';
import type { Insn, Operand } from '../processor/insn.ts';
import { Encoding } from './forms.ts';
import { insnOf, type Pattern, patternOf } from './patterns.ts';
import type { Prepared } from './prepared.ts';

/** The module iced-x86, which is handed in: its npm build needs Node to load. */
export type Iced = typeof iced;

const PREFIXES = new Set([0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65, 0x66, 0x67, 0xf0, 0xf2, 0xf3]);
const DS = 3;
const ES = 0;
const RSI = 6;
const RDI = 7;

type Register = Exclude<Operand, { kind: 'mem' | 'imm' | 'near' | 'far' }>;

const legacy = ['ax', 'cx', 'dx', 'bx', 'sp', 'bp', 'si', 'di'];
const segments = ['es', 'cs', 'ss', 'ds', 'fs', 'gs'];

/** A register by its name in lower case. */
function register(name: string): Register | undefined {
  const gpr = (index: number, size: 1 | 2 | 4 | 8, high = false): Register => ({
    kind: 'gpr',
    index,
    size,
    high,
  });
  if (segments.includes(name)) return { kind: 'segment', index: segments.indexOf(name) };
  if (/^[abcd]h$/.test(name)) return gpr('acdb'.indexOf(name[0]!), 1, true);
  if (/^[abcd]l$/.test(name)) return gpr('acdb'.indexOf(name[0]!), 1);
  if (/^(sp|bp|si|di)l$/.test(name)) return gpr(legacy.indexOf(name.slice(0, 2)), 1);
  if (legacy.includes(name)) return gpr(legacy.indexOf(name), 2);
  if (/^[er]..$/.test(name) && legacy.includes(name.slice(1)))
    return gpr(legacy.indexOf(name.slice(1)), name[0] === 'e' ? 4 : 8);
  const numbered = /^(r|xmm|ymm|mm|st|cr|dr|tr)(\d+)([lwd]?)$/.exec(name);
  if (numbered === null) return undefined;
  const [, file, digits, suffix] = numbered;
  const index = Number(digits);
  if (file === 'r') return gpr(index, suffix === 'l' ? 1 : suffix === 'w' ? 2 : suffix === 'd' ? 4 : 8);
  return { kind: file as 'xmm', index };
}

/** What iced-x86 calls otherwise than CPUID's leaves are called here (system/claims.ts). Absent, LZCNT is BSR, and TZCNT BSF. */
const RENAMED: { readonly [name: string]: string } = { cmpxchg16b: 'cx16' };
/** A processor without these executes what it always did. */
const IGNORED: ReadonlySet<string> = new Set(['lzcnt', 'prefetchw']);
/** The mnemonic of an instruction that the processor is without: no table has it. */
const ABSENT = 'absent';

/** iced-x86, and what it is asked with. */
class Oracle {
  readonly iced: Iced;
  readonly instruction: iced.Instruction;
  readonly registers: readonly (Register | undefined)[];
  readonly kinds: { readonly [kind: number]: string };
  readonly options: number;

  constructor(module: Iced, vendor: 'amd' | 'intel' | 'kvm', absent: ReadonlySet<string>) {
    const { AMD, NoMPFX_0FBC, NoMPFX_0FBD, NoLahfSahf64, None } = module.DecoderOptions;
    this.options =
      { amd: AMD, intel: None, kvm: NoMPFX_0FBC | NoMPFX_0FBD }[vendor] |
      (absent.has('bmi1') ? NoMPFX_0FBC : 0) |
      (absent.has('abm') ? NoMPFX_0FBD : 0) |
      (absent.has('lahf') ? NoLahfSahf64 : 0);
    this.iced = module;
    this.instruction = new module.Instruction();
    const registers: (Register | undefined)[] = [];
    for (const [name, value] of Object.entries(module.Register)) {
      if (typeof value === 'number') registers[value] = register(name.toLowerCase());
    }
    this.registers = registers;
    this.kinds = module.OpKind as unknown as { readonly [kind: number]: string };
  }
}

export class Decoder {
  readonly #load: () => Iced;
  #oracle: Oracle | undefined;
  readonly #encoding = new Encoding();
  /** By form. */
  readonly #patterns = {
    16: new Map<number, Pattern | undefined>(),
    32: new Map<number, Pattern | undefined>(),
    64: new Map<number, Pattern | undefined>(),
  };
  /** What is known of forms before any is met. */
  readonly prepared: Prepared | undefined;
  readonly #mnemonics = new Map<number, string>();
  readonly #operandSizes = new Map<number, number>();

  /** Then near branches heed an operand-size prefix in 64-bit mode. */
  readonly #amd: boolean;

  #emulators: Decoder | undefined;

  readonly vendor: 'amd' | 'intel' | 'kvm';

  /** One for all decoders that decode alike. */
  readonly key: string;
  /** By iced-x86's numbers of forms: whether the processor is without it. */
  readonly #isAbsent = new Map<number, boolean>();
  readonly #absent: ReadonlySet<string>;

  /**
   * @param load gives iced-x86
   * @param vendor or `kvm`: as KVM's emulator decodes
   * @param absent features that the processor is without: their instructions are none
   */
  constructor(
    load: () => Iced,
    vendor: 'amd' | 'intel' | 'kvm' = 'intel',
    absent: ReadonlySet<string> = new Set(),
    prepared?: Prepared,
  ) {
    this.vendor = vendor;
    this.key = [vendor, ...[...absent].sort()].join('-');
    this.#absent = absent;
    this.#load = load;
    this.#amd = vendor === 'amd';
    this.prepared = prepared;
  }
  get #asked(): Oracle {
    this.#oracle ??= new Oracle(this.#load(), this.vendor, this.#absent);
    return this.#oracle;
  }

  /** KVM's emulator decodes branches and far pointers as Intel's processors do, on AMD's too; and LZCNT and TZCNT as BSR and BSF. */
  get emulators(): Decoder {
    this.#emulators ??= new Decoder(this.#load, 'kvm', this.#absent);
    return this.#emulators;
  }

  /** A thread's first instruction costs some fifty milliseconds, in which iced-x86 makes its tables: to have it behind one. */
  prepare(): void {
    const { Decoder: Of, DecoderOptions } = this.#asked.iced;
    const decoder = new Of(64, Uint8Array.of(0x90), DecoderOptions.None);
    decoder.decodeOut(this.#asked.instruction);
    decoder.free();
  }

  /** What the form of an encoding that was read in code of so many bits is, where that is known. */
  pattern(bits: 16 | 32 | 64, form: number): Pattern | undefined {
    const patterns = this.#patterns[bits];
    const known = patterns.get(form);
    if (known !== undefined || this.prepared === undefined || patterns.has(form)) return known;
    const pattern = this.prepared.pattern(bits, form);
    patterns.set(form, pattern);
    return pattern;
  }

  /**
   * The instructions from the start of `bytes` on: as long as `more` says so, and they are whole. When there is none,
   * gives whether more bytes would have helped ('short') or the bytes are no instruction ('invalid').
   */
  decode(
    bytes: Uint8Array,
    bits: 16 | 32 | 64,
    rip: bigint,
    more: (insn: Insn) => boolean,
  ): Insn[] | 'short' | 'invalid' {
    const encoding = this.#encoding;
    const insns: Insn[] = [];
    for (let start = 0; start < bytes.length; ) {
      const at = rip + BigInt(start);
      const isRead = encoding.read(bytes, start, bytes.length, bits, lowHalf(at), highHalf(at));
      const pattern = isRead ? this.pattern(bits, encoding.form) : undefined;
      let insn: Insn | 'short' | 'invalid';
      if (pattern !== undefined) insn = insnOf(pattern, encoding, at);
      else {
        insn = this.ask(bytes, start, bits, at);
        if (typeof insn === 'string') return insns.length > 0 ? insns : insn;
        if (isRead) this.#patterns[bits].set(encoding.form, this.#patternOf(insn));
      }
      insns.push(insn);
      start += insn.length;
      if (!more(insn)) break;
    }
    return insns.length === 0 ? 'short' : insns;
  }
  /** The instruction at a place in the bytes, by iced-x86. */
  ask(bytes: Uint8Array, start: number, bits: 16 | 32 | 64, rip: bigint): Insn | 'short' | 'invalid' {
    const { iced: module, instruction, options } = this.#asked;
    const decoder = new module.Decoder(bits, bytes, options);
    try {
      decoder.position = start;
      decoder.ip = rip;
      decoder.decodeOut(instruction);
      if (!instruction.isInvalid) return this.#convert(bytes, start, bits, rip);
      return decoder.lastError === module.DecoderError.NoMoreBytes ? 'short' : 'invalid';
    } finally {
      decoder.free();
    }
  }
  /** Of the instruction that iced-x86 has decoded last, which is in the encoding too. */
  #patternOf(insn: Insn): Pattern | undefined {
    const { instruction, kinds } = this.#asked;
    const kind = (operand: number) => kinds[instruction.opKind(operand)]!;
    return patternOf(
      insn,
      this.#encoding,
      (operand) => kind(operand).includes('to'),
      (operand) => Number(/\d+/.exec(kind(operand))?.[0]),
    );
  }

  #convert(bytes: Uint8Array, start: number, bits: 16 | 32 | 64, rip: bigint): Insn {
    const from = this.#asked.instruction;
    const { length, code } = from;
    let sizePrefix = false;
    let addressPrefix = false;
    let at = start;
    // REX counts only where the opcode follows it (SDM volume 2, 2.2.1).
    let rex = 0;
    for (; ; at++) {
      const byte = bytes[at]!;
      if (byte === 0x66) sizePrefix = true;
      if (byte === 0x67) addressPrefix = true;
      if (bits === 64 && (byte & 0xf0) === 0x40) rex = byte;
      else if (PREFIXES.has(byte)) rex = 0;
      else break;
    }
    const wide = (rex & 8) !== 0;
    const byPrefix = wide ? 8 : (bits === 16) !== sizePrefix ? 2 : 4;
    const operands: Operand[] = [];
    for (let i = 0; i < from.opCount; i++) operands.push(this.#operand(i, bits));
    const sizeOf = this.#operandSize;
    return {
      mnemonic: this.#lacks(code) ? ABSENT : this.#named(this.#mnemonic(from.mnemonic)),
      code: this.#asked.iced.Code[code]!,
      rip,
      // EIP goes beyond 0xffff in 16-bit code too, where only branches cut it; the segment's limit ends it.
      next: BigInt.asUintN(bits === 64 ? 64 : 32, rip + BigInt(length)),
      length,
      fop: ((bytes[at]! & 7) << 8) | bytes[at + 1]!,
      operands,
      addressSize: bits === 64 ? (addressPrefix ? 4 : 8) : (bits === 16) !== addressPrefix ? 2 : 4,
      get operandSize() {
        return (sizeOf(code) || byPrefix) as 2 | 4 | 8;
      },
      segment: from.hasSegmentPrefix ? this.#asked.registers[from.segmentPrefix]!.index : DS,
      wide,
      lock: from.hasLockPrefix,
      rep: from.hasRepnePrefix ? 'repne' : from.hasRepPrefix ? 'rep' : undefined,
    };
  }

  /** A prefix of LOOPE's or LOOPNE's that the architecture ignores is their condition on AMD's processors. */
  #named(mnemonic: string): string {
    if (this.#amd && (mnemonic === 'loope' || mnemonic === 'loopne')) {
      if (this.#asked.instruction.hasRepnePrefix) return 'loopne';
      if (this.#asked.instruction.hasRepPrefix) return 'loope';
    }
    return mnemonic;
  }

  /** Whether the form that was decoded belongs to what the processor is without. */
  #lacks(code: number): boolean {
    const absent = this.#absent;
    if (absent.size === 0) return false;
    let lacks = this.#isAbsent.get(code);
    if (lacks === undefined) {
      lacks = [...this.#asked.instruction.cpuidFeatures()].some((number) => {
        const name = this.#asked.iced.CpuidFeature[number]!.toLowerCase();
        return !IGNORED.has(name) && absent.has(RENAMED[name] ?? name);
      });
      this.#isAbsent.set(code, lacks);
    }
    return lacks;
  }

  #mnemonic(mnemonic: number): string {
    let name = this.#mnemonics.get(mnemonic);
    if (name === undefined) {
      name = this.#asked.iced.Mnemonic[mnemonic]!.toLowerCase();
      this.#mnemonics.set(mnemonic, name);
    }
    return name;
  }

  /**
   * Bytes that the form itself says, or 0. Asked for where it matters only: the first answer takes the decoder as long as
   * all that a small guest does.
   */
  readonly #operandSize = (code: number): number => {
    let size = this.#operandSizes.get(code);
    if (size === undefined) {
      const info = this.#asked.iced.CodeExt.opCode(code);
      size = info.operandSize / 8;
      info.free();
      this.#operandSizes.set(code, size);
    }
    return size;
  };

  #operand(index: number, bits: 16 | 32 | 64): Operand {
    const from = this.#asked.instruction;
    const kind = this.#asked.kinds[from.opKind(index)]!;
    if (kind === 'Register')
      return this.#asked.registers[from.opRegister(index)] ?? { kind: 'unknown', index: 0 };
    if (kind.startsWith('NearBranch')) return { kind: 'near', target: from.nearBranchTarget };
    if (kind === 'FarBranch16')
      return { kind: 'far', selector: from.farBranchSelector, offset: from.farBranch16 };
    if (kind === 'FarBranch32')
      return { kind: 'far', selector: from.farBranchSelector, offset: from.farBranch32 };
    if (kind === 'Immediate8_2nd') return { kind: 'imm', value: BigInt(from.immediate8_2nd) };
    if (kind.startsWith('Immediate')) {
      const value = from.immediate(index);
      return { kind: 'imm', value: kind.includes('to') ? BigInt.asIntN(64, value) : value };
    }
    // AMD's processors read 4 bytes for MOVSXD of 2 as well.
    const widened = this.#amd && from.code === this.#asked.iced.Code.Movsxd_r16_rm16;
    const size = widened ? 4 : this.#asked.iced.MemorySizeExt.size(from.memorySize);
    if (kind !== 'Memory') {
      // The implicit operands of string instructions: [seg:SI] or [ES:DI], of any address size.
      const source = kind.startsWith('MemorySeg');
      const base = kind.endsWith('SI') ? RSI : RDI;
      const segment = source
        ? from.hasSegmentPrefix
          ? this.#asked.registers[from.segmentPrefix]!.index
          : DS
        : ES;
      return { kind: 'mem', segment, base, index: undefined, scale: 1, displacement: 0n, size };
    }
    const relative = from.isIpRelMemoryOperand;
    const base = relative ? undefined : this.#asked.registers[from.memoryBase];
    const at = this.#asked.registers[from.memoryIndex];
    return {
      kind: 'mem',
      segment: this.#asked.registers[from.memorySegment]!.index,
      base: base?.index,
      index: at?.index,
      scale: at === undefined ? 1 : (from.memoryIndexScale as 1 | 2 | 4 | 8),
      displacement: relative
        ? BigInt.asIntN(64, from.ipRelMemoryAddress)
        : BigInt.asIntN(bits === 64 ? 64 : 32, from.memoryDisplacementU64),
      size,
    };
  }
}
