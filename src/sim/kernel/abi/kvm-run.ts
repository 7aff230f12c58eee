/** A vCPU's kvm_run as the kernel writes it: api.rst, "The kvm_run structure". */
import { IoDirection } from '../../../uapi/constants.ts';
import type { Dialect } from '../../../uapi/dialects.ts';
import { Errno } from '../../../uapi/errno.ts';
import { Exit } from '../../../uapi/exit.ts';
import { EXIT_OFFSET, exitArms, kvm_run, PIO_PAGE_OFFSET, SYNC_REGS_OFFSET } from '../../../uapi/kvm-run.ts';
import { type Input, type Struct, size64, type Type, type Value, viewOf } from '../../../uapi/layout.ts';
import { kvm_sync_regs } from '../../../uapi/x86.ts';
import { PAGE } from '../../arena.ts';
import type { Stop } from '../../cpu/processor/stage.ts';
import type { Failure } from '../../memory/vm-memory.ts';
import { sharedMemory } from '../../shared-memory.ts';

/** kvm_run, the page of port data, and the one for the ring of coalesced writes: KVM_GET_VCPU_MMAP_SIZE. */
export const MMAP_SIZE = 3 * PAGE;
const PIO_DATA = PIO_PAGE_OFFSET * PAGE;
const PIO = exitArms.io.fields;
const MMIO = exitArms.mmio.fields;
const MMIO_DATA = EXIT_OFFSET + MMIO.data.offset;
const MSR = exitArms.msr.fields;
const HYPERCALL_RET = EXIT_OFFSET + exitArms.hypercall.fields.ret.offset;

/** Bytes that are copied one by one sooner than by a call. */
const FEW = 8;
const TWO32 = 2 ** 32;
const CR8_MAX = 15;

const head = kvm_run.fields;
const sets = kvm_sync_regs.fields;
type Sets = Value<typeof kvm_sync_regs>;

/** A stop that ends KVM_RUN. */
type Exiting = Exclude<Stop, { kind: 'slice' | 'fault' }>;
type Writers = {
  readonly [K in Exiting['kind']]: (run: KvmRun, stop: Extract<Exiting, { kind: K }>) => number;
};

/** Write the exit's arm, and give its reason. */
const writers: Writers = {
  io: (run, stop) => run.tellPort(stop),
  mmio: (run, stop) => run.tellMmio(stop),
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
  /** The first bytes of port data, and the data of MMIO. */
  readonly #port: Uint8Array;
  readonly #mmio: Uint8Array;

  /** @param memory that another thread has made */
  constructor(memory: ArrayBufferLike = sharedMemory(MMAP_SIZE)) {
    this.bytes = new Uint8Array(memory);
    this.#view = viewOf(this.bytes);
    this.#port = this.bytes.subarray(PIO_DATA, PIO_DATA + FEW);
    this.#mmio = this.bytes.subarray(MMIO_DATA, MMIO_DATA + MMIO.data.type.size);
  }

  // What each run looks at, and what it leaves: by a view, since going by the layout's types costs as much as all the rest.

  set flags(flags: number) {
    this.#view.setUint16(head.flags.offset, flags, true);
  }
  get immediateExit(): boolean {
    return this.#view.getUint8(head.immediateExit.offset) !== 0;
  }
  get requestInterruptWindow(): boolean {
    return this.#view.getUint8(head.requestInterruptWindow.offset) !== 0;
  }
  get exitReason(): number {
    return this.#view.getUint32(head.exitReason.offset, true);
  }
  set exitReason(reason: number) {
    this.#view.setUint32(head.exitReason.offset, reason, true);
  }
  get kvmValidRegs(): number {
    return size64.get(this.#view, head.kvmValidRegs.offset);
  }
  get kvmDirtyRegs(): number {
    return size64.get(this.#view, head.kvmDirtyRegs.offset);
  }
  set kvmDirtyRegs(sets: number) {
    size64.set(this.#view, head.kvmDirtyRegs.offset, sets);
  }
  /** Undefined where bits are set that the register has not. */
  get cr8(): number | undefined {
    const low = this.#view.getUint32(head.cr8.offset, true);
    return low > CR8_MAX || this.#view.getUint32(head.cr8.offset + 4, true) !== 0 ? undefined : low;
  }
  /** post_kvm_run_save(). */
  save(interrupts: boolean, ready: boolean, cr8: number, apicBase: bigint): void {
    const view = this.#view;
    view.setUint8(head.ifFlag.offset, interrupts ? 1 : 0);
    view.setUint8(head.readyForInterruptInjection.offset, ready ? 1 : 0);
    view.setUint32(head.cr8.offset, cr8, true);
    view.setUint32(head.cr8.offset + 4, 0, true);
    view.setBigUint64(head.apicBase.offset, apicBase, true);
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
    this.exitReason = reason;
    return reason;
  }
  tellPort({ write, port, size, count, data }: Extract<Exiting, { kind: 'io' }>): number {
    const view = this.#view;
    view.setUint8(EXIT_OFFSET + PIO.direction.offset, write ? IoDirection.OUT : IoDirection.IN);
    view.setUint8(EXIT_OFFSET + PIO.size.offset, size);
    view.setUint16(EXIT_OFFSET + PIO.port.offset, port, true);
    view.setUint32(EXIT_OFFSET + PIO.count.offset, count, true);
    view.setUint32(EXIT_OFFSET + PIO.dataOffset.offset, PIO_DATA, true);
    view.setUint32(EXIT_OFFSET + PIO.dataOffset.offset + 4, 0, true);
    if (write) this.#put(PIO_DATA, data);
    return Exit.IO;
  }
  tellMmio({ write, gpa, data }: Extract<Exiting, { kind: 'mmio' }>): number {
    const view = this.#view;
    view.setUint32(EXIT_OFFSET + MMIO.physAddr.offset, gpa % TWO32, true);
    view.setUint32(EXIT_OFFSET + MMIO.physAddr.offset + 4, Math.floor(gpa / TWO32), true);
    view.setUint32(EXIT_OFFSET + MMIO.len.offset, data.length, true);
    view.setUint8(EXIT_OFFSET + MMIO.isWrite.offset, write ? 1 : 0);
    // Of a read what stood there is kept.
    if (write) this.#put(MMIO_DATA, data);
    return Exit.MMIO;
  }
  #put(at: number, data: Uint8Array): void {
    if (data.length > FEW) this.bytes.set(data, at);
    else for (let i = 0; i < data.length; i++) this.bytes[at + i] = data[i]!;
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

  /**
   * What userspace answers to a stop: what a hypercall or RDMSR gives, or what was read: at least so many bytes, in place.
   */
  answer(stop: Stop): Uint8Array | bigint {
    if (stop.kind === 'hypercall') return this.#view.getBigUint64(HYPERCALL_RET, true);
    if (stop.kind === 'msr') return this.#view.getBigUint64(EXIT_OFFSET + MSR.data.offset, true);
    if (stop.kind !== 'io') return this.#mmio;
    const size = stop.data.length;
    return size > FEW ? this.bytes.subarray(PIO_DATA, PIO_DATA + size) : this.#port;
  }
}

const EFAULT = -Errno.EFAULT;
const EHWPOISON = -Errno.EHWPOISON;
