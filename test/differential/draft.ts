/** A case while it is made, and the addresses that it draws from. */
import { Instruction, Register } from 'iced-x86';
import { type Patch, REGISTERS, type RegisterName, type State, stateOf, type VectorName } from './case.ts';
import type { Form } from './forms.ts';
import { controlOf } from './machine.ts';
import { type Mode, type ModeName, modeOf, type SegmentName } from './modes.ts';
import { PAGE, Place } from './places.ts';
import { integer64, type Random } from './random.ts';

const U64 = (value: bigint) => BigInt.asUintN(64, value);

const SEGMENTS: ReadonlyMap<Register, SegmentName> = new Map([
  [Register.ES, 'es'],
  [Register.CS, 'cs'],
  [Register.SS, 'ss'],
  [Register.DS, 'ds'],
  [Register.FS, 'fs'],
  [Register.GS, 'gs'],
]);

/** A case while it is made. */
export class Draft {
  readonly random: Random;
  readonly name: ModeName;
  readonly mode: Mode;
  readonly form: Form;
  readonly wide: boolean;
  readonly registers = new Map<RegisterName | VectorName, bigint>();
  readonly patches: Patch[] = [];
  readonly instruction = new Instruction();
  readonly state: State;
  readonly seed: number;
  /** Where the instruction lies: linear, as are all addresses here. */
  rip: number = Place.start;
  /** Where the memory operand lies: linear. */
  target: bigint | undefined;

  constructor(random: Random, name: ModeName, form: Form) {
    this.random = random;
    this.name = name;
    this.mode = modeOf(name);
    this.form = form;
    this.wide = this.mode.bits === 64;
    this.seed = random.u32();
    this.state = stateOf({
      mode: name,
      code: new Uint8Array(),
      state: this.seed,
      registers: [],
      patches: [],
    });
    this.instruction.code = form.code;
  }

  register(name: RegisterName): bigint {
    return this.registers.get(name) ?? this.state.registers[REGISTERS.indexOf(name)]!;
  }
  set(name: RegisterName, value: bigint): void {
    this.registers.set(name, this.wide ? U64(value) : BigInt.asUintN(32, value));
  }
  /** Sets the low bits of a register that an address of this size uses; what is above is not to matter. */
  setLow(name: RegisterName, bits: number, value: bigint): void {
    const garbage = this.mode.bits > bits || (bits === 16 && this.random.oneIn(4)) ? this.random.u64() : 0n;
    this.set(name, BigInt.asUintN(bits, value) | ((garbage >> BigInt(bits)) << BigInt(bits)));
  }
  /** Where a segment begins; in 64-bit mode only two of them begin anywhere. */
  base(segment: Register): bigint {
    const name = SEGMENTS.get(segment)!;
    return this.wide && !/^[fg]s$/.test(name) ? 0n : this.mode.segments[name].base;
  }
  get stackTop(): bigint {
    const pointer = this.register('rsp');
    return this.base(Register.SS) + (this.mode.bits === 16 ? pointer & 0xffffn : pointer);
  }
  /** What a control register holds. */
  control(number: number): bigint {
    const registers = controlOf(this.name);
    return [registers.cr0, 0n, 0n, registers.cr3, registers.cr4][number] ?? 0n;
  }
  /** What RIP is at a linear address. */
  instructionPointer(linear: bigint): bigint {
    return linear - this.base(Register.CS);
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

/** A number as memory has it. */
export const word = (value: bigint, size: number): Uint8Array =>
  Uint8Array.from({ length: size }, (_, i) => Number((value >> BigInt(8 * i)) & 0xffn));

/** A linear address for an operand: as a rule where it can be read and written, often enough where it cannot. */
export function operandAddress(draft: Draft, size: number, far: boolean): bigint {
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
        if (draft.mode.privilege === 0 && !draft.wide && random.oneIn(2))
          // at the limits of segments
          return random.pick([Place.data + 0x1_0000, Place.supervisor + 0x800]) - random.below(size + 1);
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
  // An area of XSAVE, which is to have room.
  const isArea = /^x(save|rstor)/.test(draft.form.mnemonic);
  const area = isArea ? Place.data + 64 * random.below(64) : 0;
  const address = BigInt(isArea && !random.oneIn(8) ? area : low());
  if (!far) return address;
  // The upper half is the host's own on PVM.
  if (random.oneIn(64)) return integer64(random) & 0xffff_7fff_ffff_ffffn;
  return random.oneIn(4) ? address + Place.alias : address;
}

/** Where a branch may go: into the filler, but not beside the instruction itself. */
export function branchTarget(draft: Draft): bigint {
  const { random } = draft;
  for (;;) {
    const at = random.oneIn(2)
      ? draft.rip + random.below(256) - 128
      : Place.code + random.below(Place.codeEnd - Place.code);
    if (at < Place.code || at >= Place.codeEnd) continue;
    if (at < draft.rip - 1 || at > draft.rip + 15) return BigInt(at);
  }
}

export const shortTarget = (draft: Draft, short: boolean): bigint => {
  for (;;) {
    const target = branchTarget(draft);
    if (!short || Math.abs(Number(target) - draft.rip) < 110) return target;
  }
};
