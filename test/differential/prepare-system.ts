/** Preparation of what system instructions and far transfers read. */
import { OpKind, Register } from 'iced-x86';
import type { RegisterName } from './case.ts';
import { type Draft, word } from './draft.ts';
import { wholeRegister } from './forms.ts';
import { MSRS, RETURN_FLAGS } from './machine.ts';
import { Selector } from './modes.ts';
import { Place } from './places.ts';
import { integer64 } from './random.ts';
import { farTarget, selector } from './selectors.ts';

const join = (...parts: Uint8Array[]): Uint8Array => Uint8Array.from(parts.flatMap((part) => [...part]));

/** Bytes of one word of the instruction's far pointer or stack frame. */
const wordSize = ({ form, mode }: Draft): number =>
  (/1616$|16$/.test(form.name) ? 16 : /1664$/.test(form.name) ? 64 : form.op.operandSize || mode.bits) / 8;

function farPointer(draft: Draft): Uint8Array {
  const size = wordSize(draft);
  const [segment, offset] = farTarget(draft, 8 * size);
  return join(word(offset, size), word(segment, 2));
}

/** What IRET and RETF take from the stack: to privilege 3 as well, with every port permitted there. */
function frame(draft: Draft, withFlags: boolean): Uint8Array {
  const { random, mode } = draft;
  const size = wordSize(draft);
  // Elsewhere it would come back by way of a TSS that KVM marks busy, at which QEMU 7.2 ends.
  const outwards = mode.bits === 64 && random.oneIn(4);
  const [segment, offset] = farTarget(draft, 8 * size, mode.bits === 64);
  const code =
    outwards && random.oneIn(2) ? BigInt(random.pick([Selector.user32, Selector.user64])) : segment;
  const target = code === segment ? offset : BigInt(Place.code + 0x100 + random.below(0x100));
  const flags = (integer64(random) & RETURN_FLAGS.variable) | RETURN_FLAGS.fixed;
  const stack = outwards || mode.bits === 64 ? [draft.stackTop, outwards ? selectorOf(draft) : 0x18n] : [];
  return join(...[target, code, ...(withFlags ? [flags] : []), ...stack].map((value) => word(value, size)));
}
const selectorOf = (draft: Draft): bigint =>
  draft.random.oneIn(4) ? selector(draft) : BigInt(Selector.userData);

/** The value of a control register: what can change without ending the mode. */
const CONTROL: { readonly [name: number]: bigint } = {
  0: 0x2_003en, // MP, EM, TS, ET, NE; and a reserved bit
  2: ~0n,
  3: 0x18n, // PWT, PCD
  4: 0x100_008cn, // TSD, DE, MCE; and PKS, which nobody has
  8: 0x1fn,
};

function moveToSystem(draft: Draft, to: Register, from: RegisterName): void {
  const { random } = draft;
  if (to >= Register.CR0 && to <= Register.CR15) {
    const changes = CONTROL[to - Register.CR0] ?? 0n;
    const mask = random.oneIn(2) ? 1n << BigInt(random.below(25)) : random.u64();
    draft.set(from, draft.control(to - Register.CR0) ^ (changes & mask));
  } else if (to === Register.DR7 || to === Register.DR5)
    // No breakpoint of these may be enabled, nor the registers' own protection.
    draft.set(from, integer64(random) & (random.oneIn(2) ? 0xdc00n : 0xffff_dc00n));
}

const SEGMENT_LOADS = /^l[defgs]s$/;
const DESCRIPTOR_READERS = new Set(['lar', 'lsl', 'verr', 'verw', 'lldt', 'ltr', 'arpl']);

export function prepareSystem(draft: Draft): void {
  const { random, instruction, form } = draft;
  const { mnemonic } = form;
  if (draft.mode.privilege === 3) return;
  const addressed = (bytes: Uint8Array) => draft.target !== undefined && draft.patch(draft.target, bytes);
  const stack = (bytes: Uint8Array) => draft.patch(draft.stackTop, bytes);
  if (mnemonic === 'mov' && instruction.opCount === 2 && instruction.opKind(1) === OpKind.Register) {
    const name = wholeRegister(instruction.opRegister(1));
    const isGeneral = instruction.opRegister(0) < Register.CR0;
    if (name !== undefined && !isGeneral)
      moveToSystem(draft, instruction.opRegister(0), name as RegisterName);
  }
  if (mnemonic === 'lmsw' || DESCRIPTOR_READERS.has(mnemonic)) {
    const value = mnemonic === 'lmsw' ? BigInt(random.below(16) | 1) : selector(draft);
    const operand = mnemonic === 'lar' || mnemonic === 'lsl' ? 1 : 0;
    if (instruction.opKind(operand) !== OpKind.Register) addressed(word(value, 2));
    else {
      const name = wholeRegister(instruction.opRegister(operand)) as RegisterName;
      draft.set(name, value | (random.oneIn(2) ? random.u64() << 16n : 0n));
    }
  }
  if (mnemonic === 'callf' || mnemonic === 'jmpf') addressed(farPointer(draft));
  if (SEGMENT_LOADS.test(mnemonic))
    addressed(join(word(random.u64(), wordSize(draft)), word(selector(draft), 2)));
  if (mnemonic === 'retf') stack(frame(draft, false));
  if (/^iret/.test(mnemonic)) stack(frame(draft, true));
  if (/^(rd|wr)msr$/.test(mnemonic)) {
    draft.set('rcx', BigInt(random.oneIn(16) ? random.u32() : random.pick(MSRS)));
    if (random.oneIn(2)) draft.set('rdx', BigInt(random.pick([0, 0, 0x7fff, 0xffff_8000])));
  }
  if (mnemonic === 'invpcid') {
    draft.set(wholeRegister(instruction.opRegister(0)) as RegisterName, BigInt(random.below(5)));
    addressed(join(word(random.oneIn(4) ? random.u64() : 0n, 8), word(integer64(random), 8)));
  }
}
