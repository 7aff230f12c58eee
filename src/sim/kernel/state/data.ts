/** What a vCPU is, as its parts know it: what reads its state, what shares it with other threads and what runs it. */
import type { Cpu } from '../../cpu/cpu.ts';
import type { DirtyRing } from '../../memory/dirty.ts';
import type { KvmRun } from '../abi/kvm-run.ts';
import type { KickWord } from '../threads/kicks.ts';
import type { KvmVm } from '../vm/vm.ts';

export interface VcpuData {
  readonly vm: KvmVm;
  readonly id: number;
  readonly cpu: Cpu;
  readonly run: KvmRun;
  readonly kick: KickWord;
  /** KVM_CAP_DIRTY_LOG_RING. */
  readonly ring: DirtyRing | undefined;
  /** cpu.exception has been raised and not yet been delivered: KVM_SET_REGS takes it back. */
  exceptionPending: boolean;
  /** KVM_RUN was called: CPUID stands. */
  hasRun: boolean;
  /** What KVM_RUN returns where the second stage gave FAULT: a negated errno, or 0. */
  failed: number;
}
