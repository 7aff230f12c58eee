/** Random cases: a form, operands for it, and a state in which it does something. A seed and a number name each. */
import { Encoder, Instruction, OpCodeOperandKind as Kind, MemorySizeExt, OpKind, Register } from 'iced-x86';
import {
  bitsOf,
  type Case,
  FILLER,
  Fx,
  type ModeName,
  type Patch,
  Place,
  REGISTERS,
  type RegisterName,
  type State,
  stateOf,
} from './case.ts';
import { type Form, formsOf, inspect, wholeRegister } from './forms.ts';
import { integer64, Random } from './random.ts';

/** How often an encoding that cannot be is tried again with other operands. */
const ATTEMPTS = 20;
const U64 = (value: bigint) => BigInt.asUintN(64, value);
const PAGE = 0x1000;

/** A case while it is made. */
class Draft {
  readonly random: Random;
  readonly mode: ModeName;
  readonly form: Form;
  readonly wide: boolean;
  readonly registers = new Map<RegisterName, bigint>();
  readonly patches: Patch[] = [];
  readonly instruction = new Instruction();
  readonly state: State;
  readonly seed: number;
  rip: number = Place.start;
  /** Where the memory operand lies: linear. */
  target: bigint | undefined;

  constructor(random: Random, mode: ModeName, form: Form) {
    this.random = random;
    this.mode = mode;
    this.form = form;
    this.wide = bitsOf(mode) === 64;
    this.seed = random.u32();
    this.state = stateOf({ mode, code: new Uint8Array(), state: this.seed, registers: [], patches: [] });
    this.instruction.code = form.code;
  }

  register(name: RegisterName): bigint {
    return this.registers.get(name) ?? this.state.registers[REGISTERS.indexOf(name)]!;
  }
  set(name: RegisterName, value: bigint): void {
    this.registers.set(name, this.wide ? U64(value) : BigInt.asUintN(32, value));
  }
  /** What lies at a linear address, if the window has it. */
  offset(linear: bigint, size: number): number | undefined {
    const offset = Number(linear >= Place.alias ? linear - Place.alias : linear) - Place.data;
    return offset >= 0 && offset + size <= this.state.memory.length ? offset : undefined;
  }
  /** Puts bytes where the instruction will read them, if that is in the window. */
  patch(linear: bigint, bytes: Uint8Array): void {
    const offset = this.offset(linear, bytes.length);
    if (offset !== undefined) this.patches.push({ at: Place.data + offset, bytes });
  }
}

const word = (value: bigint, size: number): Uint8Array =>
  Uint8Array.from({ length: size }, (_, i) => Number((value >> BigInt(8 * i)) & 0xffn));

/** A linear address for an operand: as a rule where it can be read and written, often enough where it cannot. */
function operandAddress(draft: Draft, size: number, far: boolean): bigint {
  const { random } = draft;
  const room = Place.readOnly - Place.data;
  const low = (): number => {
    switch (random.below(32)) {
      case 0: // into the page that cannot be written
        return Place.readOnly - random.below(size + 1);
      case 1:
        return Place.readOnly + random.below(64);
      case 2: // before the first page
        return Place.data - random.below(size + 1);
      case 3:
        return Place.supervisor - random.below(size + 1);
      case 4:
        return random.pick([Place.code + 0x10, Place.codeEnd - 1, 0x10, 0xffff, Place.supervisor + 0x80]);
      case 5:
      case 6:
      case 7: // across a page
        return Place.data + PAGE - random.below(size + 1);
      case 8:
      case 9:
      case 10:
      case 11:
        return Place.data + random.below(room - size);
      default: // aligned
        return Place.data + 16 * random.below((room - size) >> 4);
    }
  };
  const address = BigInt(low());
  if (!far) return address;
  // The upper half is the host's own on PVM.
  if (random.oneIn(64)) return integer64(random) & 0xffff_7fff_ffff_ffffn;
  return random.oneIn(4) ? address + Place.alias : address;
}

/** Where a branch may go: into the filler, but not beside the instruction itself. */
function branchTarget(draft: Draft): bigint {
  const { random } = draft;
  for (;;) {
    const at = random.oneIn(2)
      ? draft.rip + random.below(256) - 128
      : Place.code + random.below(Place.codeEnd - Place.code);
    if (at < Place.code || at >= Place.codeEnd) continue;
    if (at < draft.rip - 1 || at > draft.rip + 15) return BigInt(at);
  }
}

const immediate = (random: Random): bigint => BigInt.asIntN(64, integer64(random));

const BASES: { readonly [bits: number]: Register } = { 32: Register.EAX, 64: Register.RAX };

/** Makes a memory operand, and sets the registers of its address so that it is at the target. */
function memoryOperand(draft: Draft, operand: number, size: number): void {
  const { random, instruction, wide } = draft;
  const addressBits = wide ? (random.oneIn(8) ? 32 : 64) : 32;
  const segment = random.oneIn(10)
    ? random.pick(wide ? [Register.FS, Register.GS] : [Register.ES, Register.SS, Register.FS])
    : undefined;
  draft.target ??= operandAddress(draft, size, addressBits === 64);
  const segmentBase =
    !wide || segment === undefined ? 0n : segment === Register.FS ? BigInt(Place.fsBase) : Place.gsBase;
  const offset = BigInt.asUintN(addressBits, draft.target - segmentBase);
  instruction.setOpKind(operand, OpKind.Memory);
  if (segment !== undefined) instruction.segmentPrefix = segment;

  const set = (register: Register, value: bigint) => {
    const name = wholeRegister(register) as RegisterName;
    const garbage = wide && addressBits === 32 ? random.u64() << 32n : 0n;
    draft.set(name, BigInt.asUintN(addressBits, value) | garbage);
  };
  const count = wide ? 16 : 8;
  const shape = random.below(8);
  if (shape === 0 && (addressBits === 32 || BigInt.asIntN(32, offset) === BigInt.asIntN(64, offset))) {
    instruction.memoryDisplSize = wide ? 8 : 4;
    if (wide && addressBits === 32) {
      memoryBaseOnly();
      return;
    }
    instruction.memoryDisplacement = offset;
    return;
  }
  if (shape === 1 && wide && segment === undefined && addressBits === 64 && draft.target < 1n << 31n) {
    instruction.memoryBase = Register.RIP;
    instruction.memoryDisplSize = 8;
    instruction.memoryDisplacement = draft.target;
    return;
  }
  if (shape < 5) {
    memoryBaseOnly();
    return;
  }

  const index = random.pick(Array.from({ length: count }, (_, i) => i).filter((i) => i !== 4));
  const base = random.oneIn(8) ? undefined : random.below(count);
  const scale = 1 << random.below(4);
  instruction.memoryIndex = BASES[addressBits]! + index;
  instruction.memoryIndexScale = scale;
  let displacement = smallDisplacement();
  if (base === undefined || base === index) {
    // One register, counted several times: the displacement takes up the remainder.
    const times = BigInt(base === undefined ? scale : scale + 1);
    const value = BigInt.asIntN(addressBits, offset - displacement) / times;
    displacement = BigInt.asIntN(addressBits, offset - value * times);
    set(BASES[addressBits]! + index, value);
  } else {
    const value = random.oneIn(2)
      ? BigInt(random.below(4096) - 2048)
      : draft.register(wholeRegister(BASES[addressBits]! + index) as RegisterName);
    set(BASES[addressBits]! + index, value);
    set(BASES[addressBits]! + base, offset - value * BigInt(scale) - displacement);
  }
  if (base !== undefined) instruction.memoryBase = BASES[addressBits]! + base;
  place(displacement, base === undefined);

  function memoryBaseOnly(): void {
    const register = BASES[addressBits]! + random.below(count);
    const displacement = smallDisplacement();
    instruction.memoryBase = register;
    set(register, offset - displacement);
    place(displacement, false);
  }
  function smallDisplacement(): bigint {
    const size = random.below(3);
    return size === 0 ? 0n : BigInt(size === 1 ? random.below(256) - 128 : random.u32() | 0);
  }
  function place(displacement: bigint, whole: boolean): void {
    const small = displacement >= -128n && displacement < 128n;
    instruction.memoryDisplSize =
      !whole && displacement === 0n && random.oneIn(2) ? 0 : !whole && small ? 1 : addressBits / 8;
    instruction.memoryDisplacement = displacement;
  }
}

const general = (first: Register, wide: boolean) => (random: Random) => first + random.below(wide ? 16 : 8);
const anyByte = (random: Random, wide: boolean) =>
  random.oneIn(2) || !wide
    ? Register.AL + random.below(8)
    : random.pick([
        Register.AL,
        Register.BL,
        Register.SPL,
        Register.DIL,
        Register.R8L,
        Register.R15L,
        Register.CL,
      ]);

/** What each kind of register operand may be. */
const REGISTER_KINDS: ReadonlyMap<Kind, (random: Random, wide: boolean) => Register> = new Map([
  ...[Kind.r8_or_mem, Kind.r8_reg, Kind.r8_opcode].map((kind) => [kind, anyByte] as const),
  ...[Kind.r16_or_mem, Kind.r16_reg, Kind.r16_reg_mem, Kind.r16_rm, Kind.r16_opcode].map(
    (kind) => [kind, (random: Random, wide: boolean) => general(Register.AX, wide)(random)] as const,
  ),
  ...[Kind.r32_or_mem, Kind.r32_reg, Kind.r32_reg_mem, Kind.r32_rm, Kind.r32_opcode, Kind.r32_vvvv].map(
    (kind) => [kind, (random: Random, wide: boolean) => general(Register.EAX, wide)(random)] as const,
  ),
  ...[Kind.r64_or_mem, Kind.r64_reg, Kind.r64_reg_mem, Kind.r64_rm, Kind.r64_opcode, Kind.r64_vvvv].map(
    (kind) => [kind, (random: Random, wide: boolean) => general(Register.RAX, wide)(random)] as const,
  ),
  ...[Kind.xmm_or_mem, Kind.xmm_reg, Kind.xmm_rm].map(
    (kind) => [kind, (random: Random, wide: boolean) => general(Register.XMM0, wide)(random)] as const,
  ),
  ...[Kind.mm_or_mem, Kind.mm_reg, Kind.mm_rm].map(
    (kind) => [kind, (random: Random) => Register.MM0 + random.below(8)] as const,
  ),
  [Kind.sti_opcode, (random) => Register.ST0 + random.below(8)],
  [Kind.st0, () => Register.ST0],
  [
    Kind.seg_reg,
    (random) => random.pick([Register.ES, Register.DS, Register.FS, Register.GS, Register.SS, Register.CS]),
  ],
  [Kind.cr_reg, (random) => Register.CR0 + random.pick([0, 2, 3, 4, 8])],
  [Kind.dr_reg, (random) => Register.DR0 + random.below(8)],
  [Kind.es, () => Register.ES],
  [Kind.cs, () => Register.CS],
  [Kind.ss, () => Register.SS],
  [Kind.ds, () => Register.DS],
  [Kind.fs, () => Register.FS],
  [Kind.gs, () => Register.GS],
  [Kind.al, () => Register.AL],
  [Kind.cl, () => Register.CL],
  [Kind.ax, () => Register.AX],
  [Kind.dx, () => Register.DX],
  [Kind.eax, () => Register.EAX],
  [Kind.rax, () => Register.RAX],
]);

const OR_MEMORY = new Set([
  Kind.r8_or_mem,
  Kind.r16_or_mem,
  Kind.r32_or_mem,
  Kind.r64_or_mem,
  Kind.xmm_or_mem,
  Kind.mm_or_mem,
]);

const IMMEDIATES: ReadonlyMap<Kind, OpKind> = new Map([
  [Kind.imm8, OpKind.Immediate8],
  [Kind.imm8_const_1, OpKind.Immediate8],
  [Kind.imm8sex16, OpKind.Immediate8to16],
  [Kind.imm8sex32, OpKind.Immediate8to32],
  [Kind.imm8sex64, OpKind.Immediate8to64],
  [Kind.imm16, OpKind.Immediate16],
  [Kind.imm32, OpKind.Immediate32],
  [Kind.imm32sex64, OpKind.Immediate32to64],
  [Kind.imm64, OpKind.Immediate64],
]);
const IMMEDIATE_BITS: ReadonlyMap<OpKind, number> = new Map([
  [OpKind.Immediate8, 8],
  [OpKind.Immediate8_2nd, 8],
  [OpKind.Immediate8to16, 8],
  [OpKind.Immediate8to32, 8],
  [OpKind.Immediate8to64, 8],
  [OpKind.Immediate16, 16],
  [OpKind.Immediate32, 32],
  [OpKind.Immediate32to64, 32],
  [OpKind.Immediate64, 64],
]);

const STRING_KINDS: ReadonlyMap<Kind, readonly [wide: OpKind, narrow: OpKind, register: RegisterName]> =
  new Map([
    [Kind.seg_rSI, [OpKind.MemorySegRSI, OpKind.MemorySegESI, 'rsi']],
    [Kind.es_rDI, [OpKind.MemoryESRDI, OpKind.MemoryESEDI, 'rdi']],
    [Kind.seg_rDI, [OpKind.MemorySegRDI, OpKind.MemorySegEDI, 'rdi']],
  ]);

function operand(draft: Draft, index: number, kind: Kind, addressBits: number, size: number): boolean {
  const { random, instruction, wide } = draft;
  const string = STRING_KINDS.get(kind);
  if (string !== undefined) {
    instruction.setOpKind(index, addressBits === 64 ? string[0] : string[1]);
    draft.set(string[2], operandAddress(draft, Math.max(size, 1), addressBits === 64));
    return true;
  }
  const immediateKind = IMMEDIATES.get(kind);
  if (immediateKind !== undefined) {
    const second =
      index > 0 && [OpKind.Immediate8, OpKind.Immediate16].includes(instruction.opKind(index - 1));
    const opKind = second ? OpKind.Immediate8_2nd : immediateKind;
    instruction.setOpKind(index, opKind);
    const bits = IMMEDIATE_BITS.get(opKind)!;
    const value = kind === Kind.imm8_const_1 ? 1n : immediate(random);
    const extended = BigInt.asIntN(bits, value);
    if (bits === 64 || opKind === OpKind.Immediate32to64 || opKind === OpKind.Immediate8to64)
      instruction.setImmediateI64(index, extended);
    else
      instruction.setImmediateI32(
        index,
        opKind === OpKind.Immediate8to16 || opKind === OpKind.Immediate8to32
          ? Number(extended)
          : Number(BigInt.asIntN(32, BigInt.asUintN(bits, value))),
      );
    return true;
  }
  if (kind === Kind.mem || (OR_MEMORY.has(kind) && random.oneIn(2))) {
    memoryOperand(draft, index, Math.max(size, 1));
    return true;
  }
  const register = REGISTER_KINDS.get(kind);
  if (register !== undefined) {
    instruction.setOpKind(index, OpKind.Register);
    instruction.setOpRegister(index, register(random, wide));
    return true;
  }
  switch (kind) {
    case Kind.mem_offs: {
      const bits = !wide || random.oneIn(4) ? 32 : 64;
      draft.target = operandAddress(draft, size, bits === 64);
      instruction.setOpKind(index, OpKind.Memory);
      instruction.memoryDisplSize = bits / 8;
      instruction.memoryDisplacement = draft.target;
      return true;
    }
    case Kind.seg_rBX_al: {
      const address = operandAddress(draft, 1, wide);
      instruction.setOpKind(index, OpKind.Memory);
      instruction.memoryBase = wide ? Register.RBX : Register.EBX;
      instruction.memoryIndex = Register.AL;
      draft.set('rbx', address - (draft.register('rax') & 0xffn));
      return true;
    }
    case Kind.br64_1:
    case Kind.br64_4:
      instruction.setOpKind(index, OpKind.NearBranch64);
      instruction.nearBranch64 =
        kind === Kind.br64_4 && random.oneIn(16)
          ? BigInt(random.u32() >>> 1)
          : shortTarget(draft, kind === Kind.br64_1);
      return true;
    case Kind.br32_1:
    case Kind.br32_4:
      instruction.setOpKind(index, OpKind.NearBranch32);
      instruction.nearBranch32 =
        kind === Kind.br32_4 && random.oneIn(16)
          ? random.u32()
          : Number(shortTarget(draft, kind === Kind.br32_1));
      return true;
    case Kind.br16_1:
    case Kind.br16_2:
      instruction.setOpKind(index, OpKind.NearBranch16);
      instruction.nearBranch16 = Number(shortTarget(draft, true) & 0xffffn);
      return true;
    default:
      return false;
  }
}

const shortTarget = (draft: Draft, short: boolean): bigint => {
  for (;;) {
    const target = branchTarget(draft);
    if (!short || Math.abs(Number(target) - draft.rip) < 110) return target;
  }
};

const equalHalves = (mnemonic: string) => mnemonic === 'cmpxchg8b' || mnemonic === 'cmpxchg16b';

/** What makes an instruction do more than fault: values of implicit operands, and of memory that it interprets. */
function prepare(draft: Draft): void {
  const { random, instruction, form, wide } = draft;
  const { mnemonic } = form;
  const addressed = (bytes: Uint8Array) => draft.target !== undefined && draft.patch(draft.target, bytes);
  const stackWord = (value: bigint) => draft.patch(draft.register('rsp'), word(value, wide ? 8 : 4));
  const selector = () =>
    BigInt(random.pick([0, 1, 3, 0x2b, 0x2b, 0x28, 0x23, 0x33, 0x10, 0x18, 0x50, 0xffff]));
  if (instruction.hasRepPrefix || instruction.hasRepnePrefix) {
    const small = random.oneIn(2) ? random.below(5) : random.below(40);
    draft.set('rcx', BigInt(small) | (random.oneIn(32) ? integer64(random) : 0n));
  }
  if (/^(in|out)s/.test(mnemonic)) draft.set('rcx', BigInt(random.below(8)));
  if (form.op.isStackInstruction && random.oneIn(5)) {
    const edge = random.pick([
      Place.data,
      Place.data + 4,
      Place.readOnly,
      Place.readOnly + 8,
      Place.supervisor,
      Place.data + PAGE + 4,
      Place.data + PAGE,
    ]);
    draft.set('rsp', BigInt(edge) + (wide && random.oneIn(3) ? Place.alias : 0n));
  }
  if (mnemonic === 'enter' || mnemonic === 'leave')
    draft.set('rbp', BigInt(Place.data + 0x600 + random.below(0x800)));
  if (mnemonic === 'div' || mnemonic === 'idiv') {
    if (random.oneIn(3)) return;
    const negative = mnemonic === 'idiv' && draft.register('rax') >> 63n !== 0n;
    if (random.oneIn(2)) draft.set('rax', BigInt(random.below(0x8000)));
    draft.set('rdx', negative && draft.registers.get('rax') === undefined ? -1n : 0n);
  }
  if (
    /^bt[crs]?$/.test(mnemonic) &&
    draft.target !== undefined &&
    instruction.opKind(1) === OpKind.Register &&
    !random.oneIn(8)
  ) {
    const name = wholeRegister(instruction.opRegister(1)) as RegisterName;
    if (!draft.registers.has(name)) draft.set(name, BigInt(random.below(4096) - 2048));
  }
  if (/^j(mp|cc)|^call/.test(mnemonic) && instruction.opKind(0) === OpKind.Register && !random.oneIn(6)) {
    draft.set(
      wholeRegister(instruction.opRegister(0)) as RegisterName,
      branchTarget(draft) + (wide && random.oneIn(4) ? Place.alias : 0n),
    );
  }
  if (/^(jmp|call)$/.test(mnemonic) && !random.oneIn(4)) addressed(word(branchTarget(draft), wide ? 8 : 4));
  if (mnemonic === 'ret' && !random.oneIn(6)) stackWord(branchTarget(draft));
  if (/^popf/.test(mnemonic)) stackWord(integer64(random) & ~0x100n);
  if (/^loop|^j[er]?cxz/.test(mnemonic) && random.oneIn(2)) draft.set('rcx', BigInt(random.below(3)));
  if (mnemonic === 'cmpxchg' && random.oneIn(2)) {
    // RAX as the destination is: the exchange happens.
    const from =
      instruction.opKind(0) === OpKind.Register ? wholeRegister(instruction.opRegister(0)) : undefined;
    if (from !== undefined) draft.set('rax', draft.register(from as RegisterName));
    else addressed(word(draft.register('rax'), 8));
  }
  if (equalHalves(mnemonic) && random.oneIn(2)) {
    const half = mnemonic === 'cmpxchg8b' ? 4 : 8;
    addressed(Uint8Array.of(...word(draft.register('rax'), half), ...word(draft.register('rdx'), half)));
  }
  if (mnemonic === 'ldmxcsr')
    addressed(word(BigInt(random.u32() & (random.oneIn(6) ? 0xffff_ffff : 0xffff)), 4));
  if (mnemonic === 'fxrstor' || mnemonic === 'fxrstor64') {
    if (draft.target !== undefined)
      draft.patch(draft.target + BigInt(Fx.mxcsr), word(BigInt(random.u32() & 0xffbf), 4));
  }
  if (/^pcmpestr/.test(mnemonic)) {
    for (const name of ['rax', 'rdx'] as const) draft.set(name, BigInt(random.below(40) - 20));
  }
  if (
    instruction.opCount > 0 &&
    instruction.opKind(0) === OpKind.Register &&
    (mnemonic === 'mov' || mnemonic === 'pop')
  ) {
    const to = instruction.opRegister(0);
    if (to < Register.ES || to > Register.GS) return;
    if (mnemonic === 'pop') stackWord(selector());
    else if (instruction.opKind(1) === OpKind.Register)
      draft.set(wholeRegister(instruction.opRegister(1)) as RegisterName, selector());
    else addressed(word(selector(), 2));
  }
}

function encode(draft: Draft): Uint8Array | undefined {
  const encoder = new Encoder(bitsOf(draft.mode));
  try {
    encoder.encode(draft.instruction, BigInt(draft.rip));
    return encoder.takeBuffer();
  } catch {
    return undefined; // operands that exclude each other: AH and R8, LOCK and a register
  } finally {
    encoder.free();
  }
}

const isCanonical = (address: bigint): boolean => BigInt.asUintN(64, BigInt.asIntN(48, address)) === address;

/** Prefixes that an assembler would not write: what is ignored, what changes the instruction, what makes it #UD. */
const PREFIXES = [0x66, 0x67, 0xf2, 0xf3, 0xf0, 0x2e, 0x36, 0x3e, 0x26, 0x64, 0x65];
const REX_PREFIXES = [0x40, 0x41, 0x44, 0x48, 0x4f];

function tryForm(random: Random, mode: ModeName, form: Form): Case | undefined {
  const draft = new Draft(random, mode, form);
  const { instruction } = draft;
  try {
    const { op } = form;
    if (random.oneIn(16)) draft.rip = Place.start + 0x800 - 1 - random.below(14); // across a page
    const addressBits = draft.wide && !random.oneIn(4) ? 64 : 32;
    const size = MemorySizeExt.size(op.memorySize);
    for (let i = 0; i < op.opCount; i++)
      if (!operand(draft, i, op.opKind(i), addressBits, size)) return undefined;
    if (op.canUseRepPrefix && random.oneIn(2)) instruction.hasRepPrefix = true;
    else if (op.canUseRepnePrefix && random.oneIn(2)) instruction.hasRepnePrefix = true;
    if (op.canUseLockPrefix && random.oneIn(3)) instruction.hasLockPrefix = true;
    prepare(draft);
    const encoded = encode(draft);
    if (encoded === undefined) return undefined;
    // REP before IN is none, but KVM's emulator reads ahead for it.
    const prefix =
      random.oneIn(24) && !/^(in|out)/.test(form.mnemonic)
        ? [random.pick(draft.wide ? [...PREFIXES, ...REX_PREFIXES] : PREFIXES)]
        : [];
    const registers = [...draft.registers];
    if (draft.rip !== Place.start) registers.push(['rip', BigInt(draft.rip)]);
    const code = Uint8Array.of(...prefix, ...encoded);
    if (!isCanonical(draft.register('rsp'))) return undefined;
    const made = { mode, code, state: draft.seed, registers, patches: draft.patches };
    // A prefix can make the instruction shorter; what is left over would be another.
    return { ...made, code: code.subarray(0, inspect(made).length) };
  } finally {
    instruction.free();
  }
}

/** The case with this number. Forms take turns, so that each gets as many. */
export function caseOf(
  mode: ModeName,
  seed: number,
  number: number,
  forms: readonly Form[] = formsOf(mode),
): Case {
  const random = new Random(seed, number);
  const form = forms[number % forms.length]!;
  for (let i = 0; i < ATTEMPTS; i++) {
    const made = tryForm(random, mode, form);
    if (made !== undefined && isFair(made, forms)) return made;
  }
  return { mode, code: Uint8Array.of(FILLER), state: 0, registers: [], patches: [] };
}

/** Whether a prefix has not made of it another instruction, one that is not to be compared. */
function isFair(made: Case, forms: readonly Form[]): boolean {
  const { form } = inspect(made);
  return (
    form === 'INVALID' ||
    forms.some(({ name }) => name === form) ||
    formsOf(made.mode).some(({ name }) => name === form)
  );
}
