/** Random cases: a form, operands for it, and a state in which it does something. A seed and a number name each. */
import { Encoder, MemorySizeExt } from 'iced-x86';
import { type Case, FILLER } from './case.ts';
import { Draft } from './draft.ts';
import { type Form, formsOf, inspect } from './forms.ts';
import type { ModeName } from './modes.ts';
import { operand } from './operands.ts';
import { Place } from './places.ts';
import { prepare } from './prepare.ts';
import { prepareSystem } from './prepare-system.ts';
import { Random } from './random.ts';

/** How often an encoding that cannot be is tried again with other operands. */
const ATTEMPTS = 20;

function encode(draft: Draft): Uint8Array | undefined {
  const encoder = new Encoder(draft.mode.bits);
  try {
    encoder.encode(draft.instruction, draft.instructionPointer(BigInt(draft.rip)));
    return encoder.takeBuffer();
  } catch {
    return undefined; // operands that exclude each other: AH and R8, LOCK and a register
  } finally {
    encoder.free();
  }
}

const isCanonical = (address: bigint): boolean => BigInt.asUintN(64, BigInt.asIntN(48, address)) === address;

/** As a rule the mode's own. */
function addressSize({ random, mode }: Draft): number {
  if (mode.bits === 64) return random.oneIn(6) ? 32 : 64;
  if (mode.bits === 16) return random.oneIn(3) ? 32 : 16;
  return mode.privilege === 0 && random.oneIn(6) ? 16 : 32;
}

/** Prefixes that an assembler would not write: what is ignored, what changes the instruction, what makes it #UD. */
const PREFIXES = [0x66, 0x67, 0xf2, 0xf3, 0xf0, 0x2e, 0x36, 0x3e, 0x26, 0x64, 0x65];
const LOCK = 0xf0;
/** LOCK makes CR0 CR8 on AMD's processors, not in KVM's emulator; before BTS of a register it ends QEMU 7.2. */
const LOCK_MISTAKEN = /^(mov|bt[crs])$/;
const REX_PREFIXES = [0x40, 0x41, 0x44, 0x48, 0x4f];

function tryForm(random: Random, mode: ModeName, form: Form): Case | undefined {
  const draft = new Draft(random, mode, form);
  const { instruction } = draft;
  try {
    const { op } = form;
    if (random.oneIn(16)) draft.rip = Place.start + 0x800 - 1 - random.below(14); // across a page
    const addressBits = addressSize(draft);
    const size = MemorySizeExt.size(op.memorySize);
    for (let i = 0; i < op.opCount; i++)
      if (!operand(draft, i, op.opKind(i), addressBits, size)) return undefined;
    if (op.canUseRepPrefix && random.oneIn(2)) instruction.hasRepPrefix = true;
    else if (op.canUseRepnePrefix && random.oneIn(2)) instruction.hasRepnePrefix = true;
    const mayLock = op.canUseLockPrefix && !(draft.target === undefined && LOCK_MISTAKEN.test(form.mnemonic));
    if (mayLock && random.oneIn(3)) instruction.hasLockPrefix = true;
    prepare(draft);
    prepareSystem(draft);
    const encoded = encode(draft);
    if (encoded === undefined) return undefined;
    // REP before IN is none, but KVM's emulator reads ahead for it.
    const prefixes = draft.wide ? [...PREFIXES, ...REX_PREFIXES] : PREFIXES;
    const prefix = random.oneIn(24) && !/^(in|out)/.test(form.mnemonic) ? [random.pick(prefixes)] : [];
    // REX counts only right before the opcode, but QEMU 7.2 forgets that.
    if (REX_PREFIXES.includes(prefix[0]!) && PREFIXES.includes(encoded[0]!) && draft.mode.privilege === 0)
      return undefined;
    if (prefix[0] === LOCK && draft.mode.privilege === 0 && LOCK_MISTAKEN.test(form.mnemonic))
      return undefined;
    const registers = [...draft.registers];
    if (draft.rip !== Place.start) registers.push(['rip', draft.instructionPointer(BigInt(draft.rip))]);
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
