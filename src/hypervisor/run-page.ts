/**
 * A vCPU's kvm_run, live: what KVM_RUN left there is read in place, and what the VMM answers is written in place.
 * The objects are made once, and reading a number from one allocates nothing.
 */

import { MemoryFaultFlag } from '../uapi/constants.ts';
import { type Dialect, dialects } from '../uapi/dialects.ts';
import { EXIT_OFFSET, exitArms, kvm_run, SYNC_REGS_OFFSET } from '../uapi/kvm-run.ts';
import type { Value } from '../uapi/layout.ts';
import { size64, u8, u16, u32, u64, viewOf } from '../uapi/layout.ts';
import { kvm_sync_regs } from '../uapi/x86.ts';
import { closed, outOfRange } from './errors.ts';
import { type ExitArms, exitArmsOf } from './exit-arms.ts';

const head = kvm_run.fields;
const at = <F extends Record<string, { offset: number }>>(arm: { fields: F }): { [K in keyof F]: number } =>
  Object.fromEntries(
    Object.entries(arm.fields).map(([name, field]) => [name, EXIT_OFFSET + field.offset]),
  ) as { [K in keyof F]: number };
const IO = at(exitArms.io);
const MMIO = at(exitArms.mmio);
const FAULT = at(exitArms.memoryFault);
const CALL = at(exitArms.hypercall);
const EOI = at(exitArms.eoi);
const SYNC = kvm_sync_regs.fields;

/** KVM_EXIT_IO: port I/O. `count` elements of `size` bytes each; an IN waits for the VMM to write them. */
export class IoExit {
  readonly #page: RunPage;
  /** What was given last: making a view costs as much as the rest of an exit's fields. */
  #data: Uint8Array = new Uint8Array(0);
  /** Made by RunPage: use `vcpu.io`. */
  constructor(page: RunPage) {
    this.#page = page;
  }
  /** IoDirection.IN or OUT. */
  get direction(): number {
    return this.#page.view.getUint8(IO.direction);
  }
  /** Bytes of one element: 1, 2 or 4. */
  get size(): number {
    return this.#page.view.getUint8(IO.size);
  }
  /** The port, 0 to 0xffff. */
  get port(): number {
    return this.#page.view.getUint16(IO.port, true);
  }
  /** Elements; above 1 for INS and OUTS with REP. */
  get count(): number {
    return this.#page.view.getUint32(IO.count, true);
  }
  /** The elements' bytes, `size * count` of them: read an OUT's, write an IN's. */
  get data(): Uint8Array {
    const { bytes } = this.#page;
    const offset = this.#offset();
    const length = this.size * this.count;
    const last = this.#data;
    const isSame = last.length === length && last.byteOffset === bytes.byteOffset + offset;
    if (!isSame) this.#data = bytes.subarray(offset, offset + length);
    return this.#data;
  }
  /** The first element. */
  get value(): number {
    const view = this.#page.view;
    const offset = this.#offset();
    const size = this.size;
    return size === 1
      ? view.getUint8(offset)
      : size === 2
        ? view.getUint16(offset, true)
        : view.getUint32(offset, true);
  }
  set value(value: number) {
    const type = this.size === 1 ? u8 : this.size === 2 ? u16 : u32;
    type.set(this.#page.view, this.#offset(), value);
  }
  #offset(): number {
    const offset = size64.get(this.#page.view, IO.dataOffset);
    if (offset + 4 <= this.#page.bytes.length) return offset;
    // What another exit left in the union.
    throw outOfRange('io.dataOffset', offset, 'inside kvm_run, as it is after Exit.IO');
  }
}

/** KVM_EXIT_MMIO: an access to guest-physical memory that no slot has. */
export class MmioExit {
  readonly #page: RunPage;
  readonly #data: Uint8Array;
  /** Made by RunPage: use `vcpu.mmio`. */
  constructor(page: RunPage) {
    this.#page = page;
    this.#data = page.bytes.subarray(MMIO.data, MMIO.data + exitArms.mmio.fields.data.type.size);
  }
  /** Bytes. */
  get physAddr(): number {
    return size64.get(this.#page.view, MMIO.physAddr);
  }
  /** Bytes, 1 to 8. */
  get length(): number {
    return this.#page.view.getUint32(MMIO.len, true);
  }
  /** Whether the guest writes; false for a read, which waits for `data` or `value` to be set. */
  get isWrite(): boolean {
    return this.#page.view.getUint8(MMIO.isWrite) !== 0;
  }
  /** All eight bytes, of which the first `length` count. A read waits for the VMM to write them. */
  get data(): Uint8Array {
    this.#page.check();
    return this.#data;
  }
  /** The bytes as one little-endian number. Setting it answers a read. */
  get value(): bigint {
    return BigInt.asUintN(8 * Math.min(this.length, 8), u64.get(this.#page.view, MMIO.data));
  }
  set value(value: number | bigint) {
    u64.set(this.#page.view, MMIO.data, value as bigint);
  }
}

/**
 * KVM_EXIT_MEMORY_FAULT: the guest-physical range [gpa, gpa + size) and why KVM could not map it. In mainline's words,
 * whatever the ABI: the arms of all three have their fields at the same places, and only the flags differ.
 */
export class MemoryFaultExit {
  readonly #page: RunPage;
  readonly #dialect: Dialect;
  /** Made by RunPage: use `vcpu.memoryFault`. */
  constructor(page: RunPage, dialect: Dialect) {
    this.#page = page;
    this.#dialect = dialect;
  }
  /** MemoryFaultFlag bits, and whatever a newer kernel adds. */
  get flags(): number {
    if (this.#dialect === dialects.mainline) return size64.get(this.#page.view, FAULT.flags);
    const word = this.#page.view.getUint32(FAULT.flags, true);
    const { private: bit } = this.#dialect.bits;
    return ((word & ~bit & ~MemoryFaultFlag.PRIVATE) | (this.isPrivate ? MemoryFaultFlag.PRIVATE : 0)) >>> 0;
  }
  /** Bytes. */
  get gpa(): number {
    return size64.get(this.#page.view, FAULT.gpa);
  }
  /** Bytes; not always one page. */
  get size(): number {
    return size64.get(this.#page.view, FAULT.size);
  }
  /** Whether the access was to private memory. */
  get isPrivate(): boolean {
    return (this.#page.view.getUint32(FAULT.flags, true) & this.#dialect.bits.private) !== 0;
  }
}

/** KVM_EXIT_HYPERCALL. The guest receives `ret` in RAX when it runs on. */
export class HypercallExit {
  readonly #page: RunPage;
  /** Made by RunPage: use `vcpu.hypercall`. */
  constructor(page: RunPage) {
    this.#page = page;
  }
  /** One of Hypercall: KVM hands on only numbers that it knows. */
  get nr(): number {
    return size64.get(this.#page.view, CALL.nr);
  }
  /** Argument 0 to 5, as the guest gave it: any 64 bits. */
  arg(index: number): bigint {
    if (!(Number.isInteger(index) && index >= 0 && index < 6)) throw outOfRange('index', index, '0 to 5');
    return this.#page.view.getBigUint64(CALL.args + 8 * index, true);
  }
  /** As arg(), as a number: exact below 2^53, and no less than that above. Allocates nothing. */
  argNumber(index: number): number {
    if (!(Number.isInteger(index) && index >= 0 && index < 6)) throw outOfRange('index', index, '0 to 5');
    return size64.get(this.#page.view, CALL.args + 8 * index);
  }
  /** HypercallFlag bits (KVM_EXIT_HYPERCALL_*). */
  get flags(): number {
    return size64.get(this.#page.view, CALL.flags);
  }
  get ret(): bigint {
    return u64.get(this.#page.view, CALL.ret);
  }
  /** A negative errno is written as its two's complement. */
  set ret(value: number | bigint) {
    if (typeof value === 'number' && value === (value | 0)) {
      this.#page.view.setInt32(CALL.ret, value, true);
      this.#page.view.setInt32(CALL.ret + 4, value >> 31, true);
    } else {
      u64.set(this.#page.view, CALL.ret, value as bigint);
    }
  }
}

/**
 * KVM_EXIT_IOAPIC_EOI: the guest has ended a level-triggered interrupt of the VMM's I/O APIC (Cap.SPLIT_IRQCHIP). If the
 * line of a redirection entry with this vector is still raised, the interrupt is to be sent again.
 */
export class EoiExit {
  readonly #page: RunPage;
  /** Made by RunPage: use `vcpu.eoi`. */
  constructor(page: RunPage) {
    this.#page = page;
  }
  /** The vector, 16 to 255. */
  get vector(): number {
    return this.#page.view.getUint8(EOI.vector);
  }
}

/** The registers that KVM_RUN copies out and in without an ioctl (KVM_CAP_SYNC_REGS; api.rst, "kvm_valid_regs"). */
export class SyncRegsArea {
  readonly #page: RunPage;
  /** Made by RunPage: use `vcpu.syncRegs`. */
  constructor(page: RunPage) {
    this.#page = page;
  }
  /** SyncRegs bits: what KVM_RUN copies out when it returns. Unknown bits make it fail with EINVAL. */
  get valid(): number {
    return size64.get(this.#page.view, head.kvmValidRegs.offset);
  }
  set valid(bits: number) {
    size64.set(this.#page.view, head.kvmValidRegs.offset, bits);
  }
  /** SyncRegs bits: what KVM_RUN takes in before it enters the guest, and then clears. */
  get dirty(): number {
    return size64.get(this.#page.view, head.kvmDirtyRegs.offset);
  }
  set dirty(bits: number) {
    size64.set(this.#page.view, head.kvmDirtyRegs.offset, bits);
  }
  /**
   * The general registers, as the last run() copied them out if `valid` has REGS. To change them, set them
   * and then REGS in `dirty`. Reading gives a copy.
   */
  get regs(): Value<typeof SYNC.regs.type> {
    return SYNC.regs.type.get(this.#page.view, SYNC_REGS_OFFSET + SYNC.regs.offset);
  }
  set regs(value: Value<typeof SYNC.regs.type>) {
    SYNC.regs.type.set(this.#page.view, SYNC_REGS_OFFSET + SYNC.regs.offset, value);
  }
  /** The special registers, likewise with SREGS. */
  get sregs(): Value<typeof SYNC.sregs.type> {
    return SYNC.sregs.type.get(this.#page.view, SYNC_REGS_OFFSET + SYNC.sregs.offset);
  }
  set sregs(value: Value<typeof SYNC.sregs.type>) {
    SYNC.sregs.type.set(this.#page.view, SYNC_REGS_OFFSET + SYNC.sregs.offset, value);
  }
  /** Pending and injected events, likewise with EVENTS. */
  get events(): Value<typeof SYNC.events.type> {
    return SYNC.events.type.get(this.#page.view, SYNC_REGS_OFFSET + SYNC.events.offset);
  }
  set events(value: Value<typeof SYNC.events.type>) {
    SYNC.events.type.set(this.#page.view, SYNC_REGS_OFFSET + SYNC.events.offset, value);
  }
}

/**
 * A vCPU's struct kvm_run (api.rst, "The kvm_run structure"), read and written in place. After the vCPU is
 * closed, reading or writing a field throws VmexitError ERR_KVM_CLOSED.
 */
export class RunPage {
  readonly #view: DataView;
  readonly #bytes: Uint8Array;
  #open = true;
  #arms: ExitArms | undefined;

  /** The fields of Exit.IO. */
  readonly io: IoExit;
  /** The fields of Exit.MMIO. */
  readonly mmio: MmioExit;
  /** The fields of Exit.MEMORY_FAULT and Exit.MEMORY_POISONED. */
  readonly memoryFault: MemoryFaultExit;
  /** The fields of Exit.HYPERCALL. */
  readonly hypercall: HypercallExit;
  /** The field of Exit.IOAPIC_EOI. */
  readonly eoi: EoiExit;
  /** kvm_valid_regs, kvm_dirty_regs and the registers that they speak of (KVM_CAP_SYNC_REGS). */
  readonly syncRegs: SyncRegsArea;

  /** @param page the vCPU's whole mapping: kvm_run, the page of port data, the ring of coalesced writes */
  constructor(page: Uint8Array, dialect: Dialect = dialects.mainline) {
    if (page.length < kvm_run.size)
      throw outOfRange("kvm_run's size", page.length, `at least ${kvm_run.size}`);
    this.#bytes = page;
    this.#view = viewOf(page);
    this.io = new IoExit(this);
    this.mmio = new MmioExit(this);
    this.memoryFault = new MemoryFaultExit(this, dialect);
    this.hypercall = new HypercallExit(this);
    this.eoi = new EoiExit(this);
    this.syncRegs = new SyncRegsArea(this);
  }

  /** A view on a page that is unmapped would throw a bare TypeError. @throws VmexitError ERR_KVM_CLOSED */
  check(): void {
    if (!this.#open) throw closed('vCPU');
  }

  /**
   * A view of the whole mapping, for fields that have no property here.
   * @throws VmexitError ERR_KVM_CLOSED
   */
  get view(): DataView {
    if (!this.#open) throw closed('vCPU');
    return this.#view;
  }

  /**
   * The whole mapping: kvm_run, the page of port data, the ring of coalesced writes.
   * @throws VmexitError ERR_KVM_CLOSED
   */
  get bytes(): Uint8Array {
    if (!this.#open) throw closed('vCPU');
    return this.#bytes;
  }

  /**
   * Every arm of the exit union by its name in `exitArms` of `vmexit/uapi`, in place: `arms.tprAccess.rip` after
   * Exit.TPR_ACCESS, `arms.systemEvent.type` after Exit.SYSTEM_EVENT. Which one holds follows from the outcome of the run;
   * only what KVM takes an answer from can be written. A number above 32 bits is a bigint; a list is a copy.
   */
  get arms(): ExitArms {
    this.#arms ??= exitArmsOf(this);
    return this.#arms;
  }

  /** Called by Vcpu.close(): the page is unmapped then. */
  close(): void {
    this.#open = false;
  }

  /** exit_reason as it stands: meaningful only beside the outcome that run() gave. */
  get exitReason(): number {
    return this.view.getUint32(head.exitReason.offset, true);
  }
  set exitReason(reason: number) {
    u32.set(this.view, head.exitReason.offset, reason);
  }

  /** kvm_run.immediate_exit: see Vcpu.immediateExit. */
  get immediateExit(): boolean {
    return this.view.getUint8(head.immediateExit.offset) !== 0;
  }
  set immediateExit(on: boolean) {
    this.view.setUint8(head.immediateExit.offset, on ? 1 : 0);
  }

  /**
   * kvm_run.request_interrupt_window: ends run() with Exit.IRQ_WINDOW_OPEN once the guest can take an
   * interrupt. The VMM sets and clears it.
   */
  get requestInterruptWindow(): boolean {
    return this.view.getUint8(head.requestInterruptWindow.offset) !== 0;
  }
  set requestInterruptWindow(on: boolean) {
    this.view.setUint8(head.requestInterruptWindow.offset, on ? 1 : 0);
  }

  /**
   * kvm_run.ready_for_interrupt_injection, as the last run() left it: whether Vcpu.interrupt() may be called.
   */
  get readyForInterruptInjection(): boolean {
    return this.view.getUint8(head.readyForInterruptInjection.offset) !== 0;
  }
  /** kvm_run.if_flag, as the last run() left it: whether the guest has interrupts enabled (RFLAGS.IF). */
  get ifFlag(): boolean {
    return this.view.getUint8(head.ifFlag.offset) !== 0;
  }
  /** kvm_run.flags, as the last run() left it: RunFlag bits. */
  get flags(): number {
    return this.view.getUint16(head.flags.offset, true);
  }
  /** kvm_run.cr8: the task priority. Without an in-kernel interrupt controller KVM_RUN takes it from here. */
  get cr8(): bigint {
    return this.view.getBigUint64(head.cr8.offset, true);
  }
  set cr8(value: bigint) {
    u64.set(this.view, head.cr8.offset, value);
  }
  /** kvm_run.apic_base: IA32_APIC_BASE as the last run() left it. */
  get apicBase(): bigint {
    return this.view.getBigUint64(head.apicBase.offset, true);
  }
}
