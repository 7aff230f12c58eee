/** What makes an instruction do more than fault. */
import { OpKind, Register } from 'iced-x86';
import { Fx, type RegisterName, Xs } from './case.ts';
import { branchTarget, type Draft, word } from './draft.ts';
import { wholeRegister } from './forms.ts';
import { PAGE, Place } from './places.ts';
import { integer64 } from './random.ts';
import { selector } from './selectors.ts';

const equalHalves = (mnemonic: string) => mnemonic === 'cmpxchg8b' || mnemonic === 'cmpxchg16b';

/** What makes an instruction do more than fault: values of implicit operands, and of memory that it interprets. */
export function prepare(draft: Draft): void {
  const { random, instruction, form, wide } = draft;
  const { mnemonic } = form;
  const addressed = (bytes: Uint8Array) => draft.target !== undefined && draft.patch(draft.target, bytes);
  const size = (wide ? 64 : form.op.operandSize || draft.mode.bits) / 8;
  const stackWord = (value: bigint) => draft.patch(draft.stackTop, word(value, size));
  if (instruction.hasRepPrefix || instruction.hasRepnePrefix) {
    const small = random.oneIn(2) ? random.below(5) : random.below(40);
    const great = random.oneIn(32) && draft.mode.bits !== 16;
    draft.set('rcx', BigInt(small) | (great ? integer64(random) : 0n));
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
    const far = wide && random.oneIn(3) ? Place.alias : 0n;
    draft.set('rsp', BigInt(edge) - draft.base(Register.SS) + far);
  }
  if (mnemonic === 'enter' || mnemonic === 'leave')
    draft.set('rbp', BigInt(Place.data + 0x600 + random.below(0x800)) - draft.base(Register.SS));
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
      draft.instructionPointer(branchTarget(draft)) + (wide && random.oneIn(4) ? Place.alias : 0n),
    );
  }
  if (/^(jmp|call)$/.test(mnemonic) && (draft.mode.privilege === 0 || !random.oneIn(4)))
    addressed(word(draft.instructionPointer(branchTarget(draft)), size));
  if (mnemonic === 'ret' && !random.oneIn(6)) stackWord(draft.instructionPointer(branchTarget(draft)));
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
  if (/^x(save|rstor)/.test(mnemonic)) prepareXsave(draft);
  if (/^v?pcmpestr/.test(mnemonic)) {
    for (const name of ['rax', 'rdx'] as const) draft.set(name, BigInt(random.below(40) - 20));
  }
  if (
    instruction.opCount > 0 &&
    instruction.opKind(0) === OpKind.Register &&
    (mnemonic === 'mov' || mnemonic === 'pop')
  ) {
    const to = instruction.opRegister(0);
    if (to < Register.ES || to > Register.GS) return;
    if (mnemonic === 'pop') stackWord(selector(draft));
    else if (instruction.opKind(1) === OpKind.Register)
      draft.set(wholeRegister(instruction.opRegister(1)) as RegisterName, selector(draft));
    else addressed(word(selector(draft), 2));
  }
}

/** Components of XCR0 beyond AVX, which the host may have and the simulator has not. */
const BEYOND = 0x2e0n;

/** An area that is aligned, with a header that says something; and not more than x87, SSE and AVX. */
function prepareXsave(draft: Draft): void {
  const { random } = draft;
  draft.set('rax', (random.u64() & ~BEYOND) | BigInt(random.below(8)));
  draft.set('rdx', BigInt(random.u32() & 0x7fff_ffff));
  if (draft.target === undefined) return;
  const put = (offset: number, bytes: Uint8Array) => draft.patch(draft.target! + BigInt(offset), bytes);
  if (random.oneIn(12)) return;
  put(Fx.mxcsr, word(BigInt(random.u32() & 0xffff), 4));
  if (random.oneIn(4)) put(Xs.header - 48, new Uint8Array(48 + 64));
  const present = BigInt(random.below(8));
  const compacted = random.oneIn(2) ? (1n << 63n) | present | BigInt(random.below(8)) : 0n;
  const header = new Uint8Array(64);
  header.set(word(present | (random.oneIn(20) ? 8n : 0n), 8));
  header.set(word(compacted | (random.oneIn(20) ? 1n : 0n), 8), 8);
  if (random.oneIn(20)) header[16 + random.below(48)] = 1;
  put(Xs.header, header);
}
