/** Memory operands of all addressing modes, of 16, 32 and 64 bits. */
import { OpKind, Register } from 'iced-x86';
import type { RegisterName } from './case.ts';
import { type Draft, operandAddress } from './draft.ts';
import { wholeRegister } from './forms.ts';

/** The first of the general registers, by their size. */
export const FIRST: { readonly [bits: number]: Register } = {
  16: Register.AX,
  32: Register.EAX,
  64: Register.RAX,
};

/** Base and index as 16-bit addresses have them (SDM volume 2, table 2-1). */
const PAIRS: readonly (readonly [base: Register | undefined, index: Register | undefined])[] = [
  [Register.BX, Register.SI],
  [Register.BX, Register.DI],
  [Register.BP, Register.SI],
  [Register.BP, Register.DI],
  [Register.SI, undefined],
  [Register.DI, undefined],
  [Register.BP, undefined],
  [Register.BX, undefined],
];

/** The segments that a prefix may name to some effect. */
export const overrides = ({ wide, mode }: Draft): readonly Register[] => {
  if (wide) return [Register.FS, Register.GS];
  const usual = [Register.ES, Register.SS, Register.FS];
  return mode.privilege === 3 ? usual : [...usual, Register.CS, Register.DS, Register.GS];
};

interface Shape {
  readonly base: Register | undefined;
  readonly index: Register | undefined;
  readonly scale: number;
}

function shapeOf({ random, wide }: Draft, addressBits: number): Shape {
  const none = { base: undefined, index: undefined, scale: 1 };
  const shape = random.below(8);
  if (shape === 0) return none;
  if (addressBits === 16) {
    const [base, index] = random.pick(PAIRS);
    return { base, index, scale: 1 };
  }
  const first = FIRST[addressBits]!;
  const count = wide ? 16 : 8;
  if (shape < 5) return { ...none, base: first + random.below(count) };
  const index = first + random.pick(Array.from({ length: count }, (_, i) => i).filter((i) => i !== 4));
  return {
    base: random.oneIn(8) ? undefined : first + random.below(count),
    index,
    scale: 1 << random.below(4),
  };
}

const usesStack = (base: Register | undefined, addressBits: number): boolean =>
  base !== undefined && [4, 5].includes(base - FIRST[addressBits]!);

/** Makes a memory operand, and sets the registers of its address so that it is at the target. */
export function memoryOperand(draft: Draft, operand: number, size: number, addressBits: number): void {
  const { random, instruction, wide } = draft;
  const override = random.oneIn(10) ? random.pick(overrides(draft)) : undefined;
  draft.target ??= operandAddress(draft, size, addressBits === 64);
  const { base, index, scale } = shapeOf(draft, addressBits);
  const segment = override ?? (usesStack(base, addressBits) ? Register.SS : Register.DS);
  const offset = BigInt.asUintN(addressBits, draft.target - draft.base(segment));
  const signed = (value: bigint) => BigInt.asIntN(addressBits, value);
  instruction.setOpKind(operand, OpKind.Memory);
  if (override !== undefined) instruction.segmentPrefix = override;
  const set = (register: Register, value: bigint) =>
    draft.setLow(wholeRegister(register) as RegisterName, addressBits, value);

  if (base === undefined && index === undefined) {
    if (wide && override === undefined && addressBits === 64 && random.oneIn(2) && offset < 1n << 31n)
      instruction.memoryBase = Register.RIP;
    else if (wide && BigInt.asIntN(32, offset) !== BigInt.asIntN(64, offset)) {
      instruction.memoryBase = Register.RAX;
      set(Register.RAX, offset);
      return;
    }
    instruction.memoryDisplSize = addressBits / 8;
    instruction.memoryDisplacement = offset;
    return;
  }
  let displacement = smallDisplacement();
  if (base !== undefined) instruction.memoryBase = base;
  if (index === undefined) set(base!, offset - displacement);
  else {
    instruction.memoryIndex = index;
    instruction.memoryIndexScale = scale;
    if (base === undefined || base === index) {
      // One register, counted several times: the displacement takes up the remainder.
      const times = BigInt(base === undefined ? scale : scale + 1);
      const value = signed(offset - displacement) / times;
      displacement = signed(offset - value * times);
      set(index, value);
    } else {
      const value = random.oneIn(2)
        ? BigInt(random.below(4096) - 2048)
        : signed(draft.register(wholeRegister(index) as RegisterName));
      set(index, value);
      set(base, offset - value * BigInt(scale) - displacement);
    }
  }
  const whole = base === undefined && addressBits !== 16;
  const small = displacement >= -128n && displacement < 128n;
  instruction.memoryDisplSize =
    !whole && displacement === 0n && random.oneIn(2)
      ? 0
      : !whole && small
        ? 1
        : Math.min(addressBits, 64) / 8;
  instruction.memoryDisplacement = displacement;

  function smallDisplacement(): bigint {
    const size = random.below(3);
    if (size === 0) return 0n;
    const bits = Math.min(addressBits, 32);
    return size === 1 ? BigInt(random.below(256) - 128) : BigInt.asIntN(bits, BigInt(random.u32()));
  }
}

/** Memory of which each element has an index of its own, in a vector register: as a rule near each other. */
export function vectorMemory(
  draft: Draft,
  operand: number,
  size: number,
  first: Register,
  indexBits: 32 | 64,
): void {
  const { random, instruction } = draft;
  const near = operandAddress(draft, size, true);
  const scale = 1 << random.below(4);
  const base = random.below(16);
  const index = random.below(16);
  const range = random.oneIn(8) ? 0x4000 : 0x400;
  const indices = (): bigint => {
    let lanes = 0n;
    for (let at = 0; at < 128; at += indexBits)
      lanes |= BigInt.asUintN(indexBits, BigInt(random.below(range) - range / 2)) << BigInt(at);
    return lanes;
  };
  draft.registers.set(`xmm${index}`, indices());
  if (first === Register.YMM0) draft.registers.set(`ymm${index}`, indices());
  instruction.setOpKind(operand, OpKind.Memory);
  instruction.memoryBase = Register.RAX + base;
  instruction.memoryIndex = first + index;
  instruction.memoryIndexScale = scale;
  instruction.memoryDisplSize = random.pick([1, 8]);
  const displacement = BigInt(random.below(200) - 100);
  instruction.memoryDisplacement = BigInt.asUintN(64, displacement);
  if (random.oneIn(10)) instruction.segmentPrefix = random.pick(overrides(draft));
  const segment = instruction.segmentPrefix === Register.None ? Register.DS : instruction.segmentPrefix;
  draft.set(wholeRegister(Register.RAX + base) as RegisterName, near - displacement - draft.base(segment));
}
