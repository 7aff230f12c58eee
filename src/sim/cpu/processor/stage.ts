/**
 * Where the simulated kernel and the simulated processor meet: what the processor asks of the second stage of
 * translation, and what it stops for. Neither side knows more of the other than this.
 */

/** What an access is, as the second stage needs it. */
export const Access = { READ: 0, WRITE: 1, FETCH: 2 } as const;
export type Access = (typeof Access)[keyof typeof Access];

/** There is no memory: the access is I/O. */
export const MMIO = -1;
/** KVM_RUN must end, and the second stage knows with what; the instruction must not happen. */
export const FAULT = -2;
/** Of the first stage: the exception is in guestFault (fault.ts). */
export const GUEST_FAULT = -3;

/** Guest-physical to host: the kernel's part of translation. */
export interface SecondStage {
  /**
   * Where in the arena the 4 KiB page with this guest-physical address begins, faulted in if need be; MMIO where no
   * slot is, and for writes to a read-only slot; or FAULT.
   * @param wants what the guest's page tables ask for, in VMs whose guests choose; undefined in others
   */
  page(gpa: number, access: Access, wants: boolean | undefined): number;
  /** For emulated accesses, which use the shared copy whatever the attributes say: as page(), but it never faults. */
  sharedPage(gpa: number, access: Access): number;
}

/** How the guest's page tables choose between private and shared memory, if they do. */
export interface GuestChoice {
  /** The bit of an entry's physical address. */
  readonly bit: number;
  /** SNP's C-bit: 1 is private. TDX's shared bit: 1 is shared. */
  readonly set: 'private' | 'shared';
}

/** What a VM asks of its guests' RDMSR and WRMSR. */
export interface MsrPolicy {
  /** The failures that stop the processor, as MsrExitReason bits; for others the guest gets #GP(0). */
  readonly exits: number;
  /** Whether the guest may access the register at all. */
  allows(index: number, write: boolean): boolean;
}

/** Why the processor does not go on. `rip` is where KVM leaves it for each. */
export type Stop =
  /** Memory-mapped or port I/O in the middle of an instruction: answered by finish(). */
  | {
      readonly kind: 'io';
      readonly write: boolean;
      readonly port: number;
      readonly size: 1 | 2 | 4;
      readonly count: number;
      readonly data: Uint8Array;
    }
  | {
      readonly kind: 'mmio';
      readonly write: boolean;
      readonly gpa: number;
      readonly data: Uint8Array;
      /** It goes on with an access that another stop began. */
      readonly follows?: boolean;
    }
  | {
      readonly kind: 'hypercall';
      readonly number: bigint;
      readonly args: readonly bigint[];
      readonly longMode: boolean;
    }
  /** RDMSR or WRMSR that has failed, and whose failure somebody wants: `reason` is a MsrExitReason bit. */
  | {
      readonly kind: 'msr';
      readonly write: boolean;
      readonly index: number;
      readonly data: bigint;
      readonly reason: number;
    }
  /** The second stage gave FAULT: the instruction has not happened. */
  | { readonly kind: 'fault' }
  | { readonly kind: 'halt' }
  /** CR8 has become lower than it was. */
  | { readonly kind: 'lower-priority' }
  /** A triple fault. */
  | { readonly kind: 'shutdown' }
  /** The guest can take an interrupt, and somebody waits for that. */
  | { readonly kind: 'interrupt-window' }
  /** KVM_GUESTDBG_*: a step or a breakpoint that userspace asked for. */
  | {
      readonly kind: 'debug';
      readonly exception: number;
      readonly pc: bigint;
      readonly dr6: bigint;
      readonly dr7: bigint;
    }
  /** What the model cannot do. */
  | { readonly kind: 'internal-error'; readonly suberror: number; readonly data: readonly bigint[] }
  /** Its time slice is over: look at kicks and the deadline, then go on. */
  | { readonly kind: 'slice' };
