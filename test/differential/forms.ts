/** The instruction forms under test, and what is known of the instruction in some bytes: both from iced-x86. */
import {
  Code,
  CodeExt,
  CpuidFeature,
  Decoder,
  DecoderOptions,
  EncodingKind,
  Instruction,
  MemorySizeExt,
  Mnemonic,
  type OpCodeInfo,
  OpKind,
  Register,
  RflagsBits,
} from 'iced-x86';
import { type Case, REGISTERS, type State, stateOf } from './case.ts';
import {
  approximate,
  changedByPvm,
  leftOutAtPrivilege0,
  neverCompared,
  undefinedResults,
} from './exclusions.ts';
import { hasAvx, isAmds, type ModeName, modeOf } from './modes.ts';
import { Place } from './places.ts';

/** The extensions that are under test, by CPUID feature as iced-x86 names them. */
const INTEGER = `INTEL8086 INTEL8086_ONLY INTEL186 INTEL286 INTEL286_ONLY INTEL386 INTEL486 X64 PAUSE CMOV MULTIBYTENOP
  PREFETCHW CX8 CMPXCHG16B POPCNT LZCNT BMI1 BMI2 ADX MOVBE CLFSH CLFLUSHOPT CET_IBT MSR SMAP FSGSBASE INVPCID SYSCALL
  SEP`;
const FLOATING = 'FPU FPU287 FPU387 SSE SSE2 SSE3 SSSE3 SSE4_1 SSE4_2 MMX FXSR';
const FEATURES: { readonly [privilege: number]: ReadonlySet<string> } = {
  // What x87, MMX and SSE compute does not depend on the privilege.
  0: new Set(INTEGER.split(/\s+/)),
  3: new Set(`${INTEGER} ${FLOATING}`.split(/\s+/)),
};
/** What a process of the host's has beside them. */
const WITH_AVX = new Set(
  `${INTEGER} ${FLOATING} AVX AVX2 FMA F16C XSAVE XSAVEOPT XSAVEC AES PCLMULQDQ SHA`.split(/\s+/),
);
const AMDS = new Set(['SSE4A']);
function featuresOf(mode: ModeName): ReadonlySet<string> {
  if (isAmds(mode)) return AMDS;
  return hasAvx(mode) ? WITH_AVX : FEATURES[modeOf(mode).privilege]!;
}

const nameOf = (code: Code): string => Code[code]!;
const mnemonicOf = (what: OpCodeInfo | Instruction): string => Mnemonic[what.mnemonic]!.toLowerCase();

/** Whether an instruction exists in a mode, by iced-x86's tables. */
function isOf(op: OpCodeInfo, mode: ModeName): boolean {
  const { bits, privilege } = modeOf(mode);
  if (bits === 64) return op.longMode;
  if (bits === 16) return op.realMode;
  return privilege === 3 ? op.compatibilityMode : op.protectedMode;
}

function isTested(code: Code, op: OpCodeInfo, mode: ModeName): boolean {
  if (!op.isInstruction || op.decoderOption !== DecoderOptions.None || op.fwait) return false;
  const { bits, privilege } = modeOf(mode);
  if (!op.isAvailableInMode(bits) || !isOf(op, mode)) return false;
  if (op.encoding !== EncodingKind.Legacy && op.encoding !== EncodingKind.VEX) return false;
  if (!(op.intelDecoder64 || op.amdDecoder64 || op.intelDecoder32 || op.amdDecoder32)) return false;
  // The encodings that are another instruction on AMD's processors, as REX.W LSS.
  if (privilege === 0 && bits === 64 && !op.amdDecoder64) return false;
  const leftOut = [neverCompared, privilege === 3 ? changedByPvm : leftOutAtPrivilege0];
  const names = [mnemonicOf(op), nameOf(code)];
  if (names.some((name) => leftOut.some((list) => list.has(name)))) return false;
  const instruction = new Instruction();
  instruction.code = code;
  const features = [...instruction.cpuidFeatures()].map((feature) => CpuidFeature[feature]!);
  instruction.free();
  if (op.encoding === EncodingKind.VEX && !hasAvx(mode) && !features.every((name) => name.startsWith('BMI')))
    return false;
  return features.every((name) => featuresOf(mode).has(name));
}

export interface Form {
  readonly code: Code;
  readonly name: string;
  readonly mnemonic: string;
  readonly op: OpCodeInfo;
}

const known = new Map<ModeName, readonly Form[]>();

/** Every form that is tested in a mode. */
export function formsOf(mode: ModeName): readonly Form[] {
  let forms = known.get(mode);
  if (forms === undefined) {
    const all = Object.values(Code).filter((code): code is Code => typeof code === 'number');
    forms = all.flatMap((code) => {
      const op = CodeExt.opCode(code);
      if (isTested(code, op, mode)) return [{ code, name: nameOf(code), mnemonic: mnemonicOf(op), op }];
      op.free();
      return [];
    });
    known.set(mode, forms);
  }
  return forms;
}

/** What a case's bytes are. */
export interface Inspected {
  /** iced-x86's name of the form; `INVALID` for what is none. */
  readonly form: string;
  readonly mode: ModeName;
  readonly privilege: 0 | 3;
  readonly mnemonic: string;
  readonly length: number;
  readonly text: string;
  readonly changesSegments: boolean;
  /** It may change MSRs, or debug registers, that KVM_GET_SREGS does not tell. */
  readonly changesMsrs: boolean;
  readonly changesDebugRegisters: boolean;
  /** It may access ports. */
  readonly doesIo: boolean;
  /** The vector of an INT, which pushes no error code. */
  readonly interrupt: number | undefined;
  /** No form: what iced-x86 cannot decode. */
  readonly isInvalid: boolean;
  /** It is what it is; an exception that says otherwise is the processor's. */
  readonly isValid: boolean;
  /** Single-precision results that are only near each other. */
  readonly isApproximate: boolean;
  readonly undefinedAddress: boolean;
  readonly undefinedFault: boolean;
  /** A mask over RFLAGS, and one over the x87's status word. */
  readonly undefinedFlags: number;
  readonly undefinedStatus: number;
  /** A register's name, `memory`, or nothing. */
  readonly undefinedDestination: string | undefined;
}

const FLAGS: readonly (readonly [name: keyof typeof RflagsBits, mask: number])[] = [
  ['CF', 0x1],
  ['PF', 0x4],
  ['AF', 0x10],
  ['ZF', 0x40],
  ['SF', 0x80],
  ['OF', 0x800],
  ['DF', 0x400],
  ['IF', 0x200],
  ['AC', 0x4_0000],
];
const CONDITIONS: readonly (readonly [name: keyof typeof RflagsBits, mask: number])[] = [
  ['C0', 0x100],
  ['C1', 0x200],
  ['C2', 0x400],
  ['C3', 0x4000],
];
const maskOf = (table: typeof FLAGS, bits: number) =>
  table.reduce((mask, [name, bit]) => mask | ((bits & RflagsBits[name]) !== 0 ? bit : 0), 0);

const SHIFTS = new Set(['shl', 'sal', 'shr', 'sar', 'shld', 'shrd', 'rol', 'ror', 'rcl', 'rcr']);
const SEGMENT_WRITERS = new Set([
  'wrfsbase',
  'wrgsbase',
  'swapgs',
  'retf',
  'iret',
  'iretd',
  'iretq',
  'callf',
  'jmpf',
  'lss',
  'lfs',
  'lgs',
  'lds',
  'les',
]);

/** The 64-bit register that another is a part of, as kvm_regs names it; undefined for those of other files. */
export function wholeRegister(register: Register): string | undefined {
  const order = [
    'rax',
    'rcx',
    'rdx',
    'rbx',
    'rsp',
    'rbp',
    'rsi',
    'rdi',
    'r8',
    'r9',
    'r10',
    'r11',
    'r12',
    'r13',
    'r14',
    'r15',
  ];
  if (register >= Register.AL && register <= Register.R15L) {
    const i = register - Register.AL;
    return order[i < 4 ? i : i - 4];
  }
  for (const first of [Register.AX, Register.EAX, Register.RAX])
    if (register >= first && register < first + 16) return order[register - first];
  return undefined;
}

const held = (state: State, register: Register): bigint | undefined => {
  const name = wholeRegister(register);
  return name === undefined
    ? undefined
    : state.registers[REGISTERS.indexOf(name as (typeof REGISTERS)[number])];
};

/** Width in bits of an operand. */
function widthOf(instruction: Instruction, operand: number): number {
  if (instruction.opKind(operand) !== OpKind.Register) return 8 * MemorySizeExt.size(instruction.memorySize);
  const register = instruction.opRegister(operand);
  if (register < Register.AX) return 8;
  if (register < Register.EAX) return 16;
  return register < Register.RAX ? 32 : 64;
}

function shiftCount(instruction: Instruction, state: State): number | undefined {
  const last = instruction.opCount - 1;
  const mask = widthOf(instruction, 0) === 64 ? 63 : 31;
  if (instruction.opKind(last) === OpKind.Immediate8) return instruction.immediate8 & mask;
  const cl = held(state, instruction.opRegister(last));
  return cl === undefined ? undefined : Number(cl & BigInt(mask));
}

function decode(given: Case, options: number): Instruction {
  const decoder = new Decoder(modeOf(given.mode).bits, given.code, DecoderOptions.AMD | options);
  const { cs } = modeOf(given.mode).segments;
  const rip = given.registers.find(([name]) => name === 'rip')?.[1] ?? BigInt(Place.start) - cs.base;
  decoder.ip = rip;
  const instruction = decoder.decode();
  decoder.free();
  return instruction;
}

/** Decodes a case's instruction. What is valid but for a prefix is named as what it would be without. */
export function inspect(given: Case): Inspected {
  const instruction = decode(given, DecoderOptions.None);
  const state = stateOf(given);
  const form = nameOf(instruction.code);
  const mnemonic = mnemonicOf(instruction);
  const changesSegments =
    SEGMENT_WRITERS.has(mnemonic) ||
    ((mnemonic === 'mov' || mnemonic === 'pop') &&
      instruction.opKind(0) === OpKind.Register &&
      instruction.opRegister(0) >= Register.ES &&
      instruction.opRegister(0) <= Register.GS);
  const width = instruction.opCount > 0 ? widthOf(instruction, 0) : 0;
  const isShift = SHIFTS.has(mnemonic);
  const listed = undefinedResults(mnemonic, {
    count: isShift ? shiftCount(instruction, state) : undefined,
    size: width,
  });
  const destination =
    instruction.opCount > 0 && instruction.opKind(0) === OpKind.Register
      ? wholeRegister(instruction.opRegister(0))
      : 'memory';
  const result: Inspected = {
    form,
    mode: given.mode,
    privilege: modeOf(given.mode).privilege,
    mnemonic,
    length: instruction.length,
    text: instruction.toString(),
    doesIo: /^(in|out)(s[bwd])?$/.test(mnemonic),
    changesMsrs: mnemonic === 'wrmsr' || mnemonic === 'swapgs',
    changesDebugRegisters: /^Mov_dr_/.test(form),
    interrupt: mnemonic === 'int' ? instruction.immediate8 : undefined,
    isInvalid: form === 'INVALID',
    isValid: form !== 'INVALID' && !mnemonic.startsWith('ud'),
    isApproximate: approximate.has(mnemonic),
    undefinedAddress: listed?.includes('address') ?? false,
    undefinedFault: listed?.includes('fault') ?? false,
    changesSegments,
    undefinedFlags:
      listed === undefined
        ? maskOf(FLAGS, instruction.rflagsUndefined)
        : FLAGS.reduce((mask, [name, bit]) => mask | (listed.includes(name) ? bit : 0), 0),
    undefinedStatus: maskOf(CONDITIONS, instruction.rflagsUndefined),
    undefinedDestination: listed?.includes('destination') ? destination : undefined,
  };
  instruction.free();
  return result;
}
