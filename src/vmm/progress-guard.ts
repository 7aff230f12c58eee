/**
 * Tells a fault that repeats from a guest that gets on. api.rst (KVM_EXIT_MEMORY_FAULT) encourages userspace "to
 * guard against repeatedly receiving the same error/annotated fault".
 */
import { integer } from '../hypervisor/args.ts';
import type { Regs } from '../hypervisor/regs.ts';
import type { Vcpu } from '../hypervisor/vcpu.ts';

interface Last {
  gpa: number;
  /** Read from the second fault in a row at one address on: most faults never cost the ioctl. */
  regs: Regs | undefined;
  repeats: number;
}

export class ProgressGuard {
  /** How often the same fault may come. */
  readonly limit: number;
  readonly #last = new WeakMap<Vcpu, Last>();

  /** @param limit 1 to 2^32-1 */
  constructor(limit: number) {
    this.limit = integer('maxRepeats', limit, 0xffff_ffff, 1);
  }

  /**
   * To be asked at each fault: how often it has come again. The same fault is one at the same address with every
   * register as it was: the same instruction has run into it again, even if the memory was converted back and forth
   * in between.
   */
  repeats(vcpu: Vcpu, gpa: number): number {
    const last = this.#last.get(vcpu);
    if (last === undefined) {
      this.#last.set(vcpu, { gpa, regs: undefined, repeats: 0 });
      return 0;
    }
    if (last.gpa !== gpa) {
      last.gpa = gpa;
      last.regs = undefined;
      last.repeats = 0;
      return 0;
    }
    const regs = vcpu.getRegs();
    const before = last.regs;
    last.regs = regs;
    if (before !== undefined) last.repeats = same(before, regs) ? last.repeats + 1 : 0;
    return last.repeats;
  }
}

const same = (a: Regs, b: Regs): boolean => {
  for (const name in a) if (a[name as keyof Regs] !== b[name as keyof Regs]) return false;
  return true;
};
