/** Operands for an instruction form: registers, immediates, branch targets, memory. */
import { OpCodeOperandKind as Kind, OpKind, Register } from 'iced-x86';
import type { RegisterName } from './case.ts';
import { type Draft, operandAddress, shortTarget } from './draft.ts';
import { FIRST, memoryOperand, overrides, vectorMemory } from './memory-operands.ts';
import { integer64, type Random } from './random.ts';
import { farTarget } from './selectors.ts';

const immediate = (random: Random): bigint => BigInt.asIntN(64, integer64(random));

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
  ...[Kind.xmm_vvvv, Kind.xmm_is4, Kind.xmm_is5].map(
    (kind) => [kind, (random: Random) => Register.XMM0 + random.below(16)] as const,
  ),
  ...[Kind.ymm_or_mem, Kind.ymm_reg, Kind.ymm_rm, Kind.ymm_vvvv, Kind.ymm_is4, Kind.ymm_is5].map(
    (kind) => [kind, (random: Random) => Register.YMM0 + random.below(16)] as const,
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
  [Kind.cr_reg, (random, wide) => Register.CR0 + random.pick(wide ? [0, 2, 3, 4, 8] : [0, 2, 3, 4])],
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
  Kind.ymm_or_mem,
  Kind.mm_or_mem,
]);

/** Memory with a vector of indices, by the width of one. */
const VSIB: ReadonlyMap<Kind, readonly [first: Register, bits: 32 | 64]> = new Map([
  [Kind.mem_vsib32x, [Register.XMM0, 32] as const],
  [Kind.mem_vsib64x, [Register.XMM0, 64] as const],
  [Kind.mem_vsib32y, [Register.YMM0, 32] as const],
  [Kind.mem_vsib64y, [Register.YMM0, 64] as const],
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

/** Operands of string instructions by the address's size, with their segment and register. */
const STRING_KINDS: ReadonlyMap<
  Kind,
  readonly [kinds: { readonly [bits: number]: OpKind }, segment: Register, register: RegisterName]
> = new Map([
  [
    Kind.seg_rSI,
    [
      { 16: OpKind.MemorySegSI, 32: OpKind.MemorySegESI, 64: OpKind.MemorySegRSI },
      Register.DS,
      'rsi',
    ] as const,
  ],
  [
    Kind.es_rDI,
    [{ 16: OpKind.MemoryESDI, 32: OpKind.MemoryESEDI, 64: OpKind.MemoryESRDI }, Register.ES, 'rdi'] as const,
  ],
  [
    Kind.seg_rDI,
    [
      { 16: OpKind.MemorySegDI, 32: OpKind.MemorySegEDI, 64: OpKind.MemorySegRDI },
      Register.DS,
      'rdi',
    ] as const,
  ],
]);

/** Makes an operand of this kind; false for kinds that no form under test has. */
export function operand(draft: Draft, index: number, kind: Kind, addressBits: number, size: number): boolean {
  const { random, instruction, wide } = draft;
  const string = STRING_KINDS.get(kind);
  if (string !== undefined) {
    const [kinds, usual, register] = string;
    instruction.setOpKind(index, kinds[addressBits]!);
    const segment = usual === Register.DS && random.oneIn(8) ? random.pick(overrides(draft)) : usual;
    if (segment !== usual) instruction.segmentPrefix = segment;
    const linear = operandAddress(draft, Math.max(size, 1), addressBits === 64);
    draft.setLow(register, addressBits, linear - draft.base(segment));
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
    memoryOperand(draft, index, Math.max(size, 1), addressBits);
    return true;
  }
  const vsib = VSIB.get(kind);
  if (vsib !== undefined) {
    vectorMemory(draft, index, Math.max(size, 1), ...vsib);
    return true;
  }
  const register = REGISTER_KINDS.get(kind);
  if (register !== undefined) {
    instruction.setOpKind(index, OpKind.Register);
    instruction.setOpRegister(index, register(random, wide));
    return true;
  }
  switch (kind) {
    case Kind.mem_offs:
      draft.target = operandAddress(draft, size, addressBits === 64);
      instruction.setOpKind(index, OpKind.Memory);
      instruction.memoryDisplSize = addressBits / 8;
      instruction.memoryDisplacement = BigInt.asUintN(addressBits, draft.target - draft.base(Register.DS));
      return true;
    case Kind.seg_rBX_al: {
      const address = operandAddress(draft, 1, addressBits === 64) - draft.base(Register.DS);
      instruction.setOpKind(index, OpKind.Memory);
      instruction.memoryBase = FIRST[addressBits]! + (Register.BX - Register.AX);
      instruction.memoryIndex = Register.AL;
      draft.setLow('rbx', addressBits, address - (draft.register('rax') & 0xffn));
      return true;
    }
    case Kind.farbr2_2:
    case Kind.farbr4_2: {
      const [selector, offset] = farTarget(draft, kind === Kind.farbr2_2 ? 16 : 32);
      instruction.farBranchSelector = Number(selector);
      if (kind === Kind.farbr2_2) {
        instruction.setOpKind(index, OpKind.FarBranch16);
        instruction.farBranch16 = Number(offset & 0xffffn);
      } else {
        instruction.setOpKind(index, OpKind.FarBranch32);
        instruction.farBranch32 = Number(offset);
      }
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
          : Number(draft.instructionPointer(shortTarget(draft, kind === Kind.br32_1)));
      return true;
    case Kind.br16_1:
    case Kind.br16_2:
      instruction.setOpKind(index, OpKind.NearBranch16);
      instruction.nearBranch16 = Number(
        draft.instructionPointer(shortTarget(draft, kind === Kind.br16_1)) & 0xffffn,
      );
      return true;
    default:
      return false;
  }
}
