/**
 * struct kvm_regs by hand: a VMM reads and writes it at most of its exits, and the layout's loop over fields takes five
 * times as long. Words of 64 bits, in the order of the struct.
 */
import type { Input, Value } from '../uapi/layout.ts';
import type { kvm_regs } from '../uapi/x86.ts';

/** The general registers, rip and rflags (struct kvm_regs): bigints of 64 bits. */
export type Regs = Value<typeof kvm_regs>;

export function readRegs(words: BigUint64Array): Regs {
  return {
    rax: words[0]!,
    rbx: words[1]!,
    rcx: words[2]!,
    rdx: words[3]!,
    rsi: words[4]!,
    rdi: words[5]!,
    rsp: words[6]!,
    rbp: words[7]!,
    r8: words[8]!,
    r9: words[9]!,
    r10: words[10]!,
    r11: words[11]!,
    r12: words[12]!,
    r13: words[13]!,
    r14: words[14]!,
    r15: words[15]!,
    rip: words[16]!,
    rflags: words[17]!,
  };
}

/** Gives whether it was written: a number or what is out of range is left to the layout, which also names it. */
function put(words: BigUint64Array, at: number, value: unknown): number {
  if (typeof value !== 'bigint') return 0;
  words[at] = value;
  return words[at] === value ? 1 : 0;
}

/**
 * Writes all eighteen. Gives whether it could: not when one is missing, is no bigint, or is none of kvm_regs. Getters of the
 * caller's have run before anything is written.
 */
export function writeRegs(words: BigUint64Array, regs: Input<Regs>): boolean {
  if (typeof regs !== 'object' || regs === null || Object.keys(regs).length !== 18) return false;
  const { rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8 } = regs;
  const { r9, r10, r11, r12, r13, r14, r15, rip, rflags } = regs;
  const written =
    put(words, 0, rax) +
    put(words, 1, rbx) +
    put(words, 2, rcx) +
    put(words, 3, rdx) +
    put(words, 4, rsi) +
    put(words, 5, rdi) +
    put(words, 6, rsp) +
    put(words, 7, rbp) +
    put(words, 8, r8) +
    put(words, 9, r9) +
    put(words, 10, r10) +
    put(words, 11, r11) +
    put(words, 12, r12) +
    put(words, 13, r13) +
    put(words, 14, r14) +
    put(words, 15, r15) +
    put(words, 16, rip) +
    put(words, 17, rflags);
  return written === 18;
}
