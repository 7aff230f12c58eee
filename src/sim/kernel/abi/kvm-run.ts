/** A vCPU's kvm_run as the kernel writes it: api.rst, "The kvm_run structure". */
import { IoDirection } from '../../../uapi/constants.ts';
import type { Dialect } from '../../../uapi/dialects.ts';
import { Errno } from '../../../uapi/errno.ts';
import { Exit } from '../../../uapi/exit.ts';
import { EXIT_OFFSET, exitArms, kvm_run, PIO_PAGE_OFFSET, SYNC_REGS_OFFSET } from '../../../uapi/kvm-run.ts';
import { type Input, type Struct, type Type, type Value, viewOf } from '../../../uapi/layout.ts';
import { kvm_sync_regs } from '../../../uapi/x86.ts';
import { PAGE } from '../../arena.ts';
import type { Stop } from '../../cpu/processor/stage.ts';
import type { Failure } from '../../memory/vm-memory.ts';
import { sharedMemory } from '../../shared-memory.ts';

/** kvm_run, the page of port data, and the one for the ring of coalesced writes: KVM_GET_VCPU_MMAP_SIZE. */
export const MMAP_SIZE = 3 * PAGE;
const PIO_DATA = PIO_PAGE_OFFSET * PAGE;
const MMIO_DATA = EXIT_OFFSET + exitArms.mmio.fields.data.offset;
const MSR = exitArms.msr.fields;
const HYPERCALL_RET = EXIT_OFFSET + exitArms.hypercall.fields.ret.offset;

const head = kvm_run.fields;
type Head = Value<typeof kvm_run>;
const sets = kvm_sync_regs.fields;
type Sets = Value<typeof kvm_sync_regs>;

/** A stop that ends KVM_RUN. */
type Exiting = Exclude<Stop, { kind: 'slice' | 'fault' }>;
type Writers = {
  readonly [K in Exiting['kind']]: (run: KvmRun, stop: Extract<Exiting, { kind: K }>) => number;
};

/** Write the exit's arm, and give its reason. */
const writers: Writers = {
  io(run, { write, port, size, count, data }) {
    const direction = write ? IoDirection.OUT : IoDirection.IN;
    run.arm(exitArms.io, { direction, size, port, count, dataOffset: PIO_DATA });
    if (write) run.bytes.set(data, PIO_DATA);
    return Exit.IO;
  },
  mmio(run, { write, gpa, data }) {
    run.arm(exitArms.mmio, {
      physAddr: gpa,
      len: data.length,
      isWrite: write ? 1 : 0,
      ...(write && { data }),
    });
    return Exit.MMIO;
  },
  hypercall(run, { number, args, longMode }) {
    run.arm(exitArms.hypercall, { nr: number, args: args.slice(0, 6), flags: longMode ? 1 : 0 });
    return Exit.HYPERCALL;
  },
  msr(run, { write, index, data, reason }) {
    run.arm(exitArms.msr, { error: 0, pad: new Uint8Array(7), reason, index, data });
    return write ? Exit.X86_WRMSR : Exit.X86_RDMSR;
  },
  halt: () => Exit.HLT,
  'lower-priority': () => Exit.SET_TPR,
  shutdown: () => Exit.SHUTDOWN,
  'interrupt-window': () => Exit.IRQ_WINDOW_OPEN,
  debug(run, { exception, pc, dr6, dr7 }) {
    run.arm(exitArms.debug, { arch: { exception, pc, dr6, dr7 } });
    return Exit.DEBUG;
  },
  'internal-error'(run, { suberror, data }) {
    run.arm(exitArms.internal, { suberror, ndata: data.length, data });
    return Exit.INTERNAL_ERROR;
  },
};

export class KvmRun {
  /** What userspace maps. */
  readonly bytes: Uint8Array;
  readonly #view: DataView;

  /** @param memory that another thread has made */
  constructor(memory: ArrayBufferLike = sharedMemory(MMAP_SIZE)) {
    this.bytes = new Uint8Array(memory);
    this.#view = viewOf(this.bytes);
  }

  get<K extends keyof Head>(field: K): Head[K] {
    const { offset, type } = head[field] as { offset: number; type: Type };
    return type.get(this.#view, offset) as Head[K];
  }
  set<K extends keyof Head>(field: K, value: Head[K]): void {
    const { offset, type } = head[field] as { offset: number; type: Type };
    type.set(this.#view, offset, value);
  }

  /** One of the sets of registers that travel without an ioctl. */
  getSet<K extends keyof Sets>(name: K): Sets[K] {
    const { offset, type } = sets[name] as { offset: number; type: Type };
    return type.get(this.#view, SYNC_REGS_OFFSET + offset) as Sets[K];
  }
  putSet<K extends keyof Sets>(name: K, value: Input<Sets[K]>): void {
    const { offset, type } = sets[name] as { offset: number; type: Type };
    type.set(this.#view, SYNC_REGS_OFFSET + offset, value);
  }

  /** An arm of the exit union; what is left out keeps what stood there. */
  arm<S extends Struct>(arm: S, value: Input<Value<S>>): void {
    arm.set(this.#view, EXIT_OFFSET, value);
  }

  /** Tells of a stop; gives the exit reason. */
  tell(stop: Exiting): number {
    const reason = (writers[stop.kind] as (run: KvmRun, stop: Exiting) => number)(this, stop);
    this.set('exitReason', reason);
    return reason;
  }

  /**
   * Tells why an access did not succeed, as the dialect does, and gives what KVM_RUN returns: a negated errno, or 0
   * where the ABI tells of it beside success. An ABI without a word for poisoned pages says nothing of them.
   */
  tellFault({ errno, fault }: Failure, dialect: Dialect): number {
    const { result, poisonedResult } = dialect.signal;
    const known = errno !== EHWPOISON || poisonedResult !== null;
    if (fault === undefined || !known) return known ? errno! : EFAULT;
    const { gpa, size } = fault;
    dialect.encode(this.#view, {
      flags: { private: fault.private, userfault: fault.userfault, unknown: 0n },
      gpa,
      size,
    });
    return errno ?? result;
  }

  /** Whether userspace refuses the access to an MSR: any value of kvm_run.msr.error but 0. */
  get msrRefused(): boolean {
    return this.#view.getUint8(EXIT_OFFSET + MSR.error.offset) !== 0;
  }

  /** What userspace answers to a stop: the bytes that were read, or what a hypercall or RDMSR gives. */
  answer(stop: Stop): Uint8Array | bigint {
    if (stop.kind === 'hypercall') return this.#view.getBigUint64(HYPERCALL_RET, true);
    if (stop.kind === 'msr') return this.#view.getBigUint64(EXIT_OFFSET + MSR.data.offset, true);
    const at = stop.kind === 'io' ? PIO_DATA : MMIO_DATA;
    const size = stop.kind === 'io' || stop.kind === 'mmio' ? stop.data.length : 0;
    return this.bytes.slice(at, at + size);
  }
}

const EFAULT = -Errno.EFAULT;
const EHWPOISON = -Errno.EHWPOISON;
