/** What of a VM goes by eventfds: interrupts that come by one, and the guest's writes that go to one. */
import { IoeventfdFlag, IrqfdFlag } from '../uapi/constants.ts';
import { ioctls } from '../uapi/ioctls.ts';
import { type Integer, integer, object, u32 } from './args.ts';
import type { Handle } from './backend.ts';
import { outOfRange, wrongType } from './errors.ts';
import { EventFd } from './event-fd.ts';
import { VmMemory } from './vm-memory.ts';

/** An interrupt that comes by an EventFd: KVM_IRQFD. */
export interface Irqfd {
  /** Each signal raises the interrupt. KVM takes the counts. */
  readonly eventFd: EventFd;
  /** Which interrupt: a line of createIrqchip()'s controllers, or what the GSI routing makes of the number. */
  readonly gsi: number;
  /**
   * Makes it a level-triggered interrupt (KVM_CAP_IRQFD_RESAMPLE, since 3.9): the line stays high until the guest ends
   * the interrupt (EOI), which lowers it and signals this one; newer kernels do so also where the guest unmasks the line. A
   * device that still wants service signals `eventFd` again.
   */
  readonly resample?: EventFd | undefined;
}

/** The guest's writes that signal an EventFd, and are no exits: KVM_IOEVENTFD. */
export interface Ioeventfd {
  /** Each such write adds 1. */
  readonly eventFd: EventFd;
  /** Guest-physical, in bytes; or the number of the port. */
  readonly address: number;
  /**
   * Bytes that are written: 1, 2, 4 or 8. 0, which it is without it: however many, of ports since 3.10
   * (KVM_CAP_IOEVENTFD_NO_LENGTH), of memory since 4.4 (KVM_CAP_IOEVENTFD_ANY_LENGTH).
   */
  readonly length?: 0 | 1 | 2 | 4 | 8;
  /** The address is that of a port (OUT), and not of memory-mapped I/O; false without it. */
  readonly pio?: boolean;
  /** Only writes of this value, of `length` bytes, from 0 to 2^64 - 1; any without it. Other values exit as before. */
  readonly datamatch?: Integer | undefined;
}

const MAX_U64 = 2n ** 64n - 1n;

function handleOf(name: string, eventFd: EventFd): Handle {
  if (eventFd instanceof EventFd) return eventFd.fd.handle;
  throw wrongType(name, eventFd, 'an EventFd, which Hypervisor.createEventFd() makes');
}

function u64(name: string, value: Integer): bigint {
  if (typeof value === 'number') return BigInt(integer(name, value));
  if (typeof value !== 'bigint') throw wrongType(name, value, 'a whole number from 0 to 2^64 - 1');
  if (value < 0n || value > MAX_U64) throw outOfRange(name, value, 'from 0 to 2^64 - 1');
  return value;
}

/** The part of a Vm that is about eventfds. */
export abstract class VmEvents extends VmMemory {
  /** The kernel allows each EventFd one interrupt of a VM. */
  readonly #irqfds = new Map<EventFd, number>();
  #ioeventfds = 0;

  /** For VmSetup. The kernel ends an irqfd when the last EventFd of its counter is closed. */
  protected get eventFds(): { readonly irqfds: number; readonly ioeventfds: number } {
    const irqfds = [...this.#irqfds.keys()].filter(({ closed, shared }) => !closed || shared).length;
    return { irqfds, ioeventfds: this.#ioeventfds };
  }

  /**
   * KVM_IRQFD (since 2.6.32): signals of an EventFd become interrupts, from any thread, while the guest runs or waits in
   * HLT, and without a call of the VMM's. It ends with removeIrqfd(), with the VM, or when the EventFd was closed in all
   * threads.
   * @throws KvmError EINVAL without createIrqchip(), or with `resample` on a split one; EBUSY for an EventFd that has an
   *   interrupt of this VM already; ENOTTY in the simulator. TypeError, RangeError ERR_KVM_INVALID_ARG; VmexitError
   *   ERR_KVM_CLOSED
   */
  irqfd(irqfd: Irqfd): void {
    this.#irqfd(irqfd, 0);
    this.#irqfds.set(irqfd.eventFd, irqfd.gsi);
  }

  /**
   * Takes an irqfd back (KVM_IRQFD_FLAG_DEASSIGN). Where there is none, nothing happens.
   * @param irqfd its `eventFd` and `gsi`
   * @throws TypeError, RangeError ERR_KVM_INVALID_ARG; VmexitError ERR_KVM_CLOSED; KvmError as irqfd()
   */
  removeIrqfd(irqfd: Irqfd): void {
    this.#irqfd(irqfd, IrqfdFlag.DEASSIGN);
    if (this.#irqfds.get(irqfd.eventFd) === irqfd.gsi) this.#irqfds.delete(irqfd.eventFd);
  }

  #irqfd(irqfd: Irqfd, flags: number): void {
    const { eventFd, gsi, resample } = object('irqfd', irqfd);
    const references = [handleOf('eventFd', eventFd)];
    if (resample !== undefined) references.push(handleOf('resample', resample));
    const value = { gsi: u32('gsi', gsi), flags: flags | (resample === undefined ? 0 : IrqfdFlag.RESAMPLE) };
    this.fd.refer(ioctls.KVM_IRQFD, value, references);
  }

  /**
   * KVM_IOEVENTFD (since 2.6.32): guest writes to an address signal an EventFd, and the guest runs on without an exit. Reads
   * exit as before. It stays, and with it what it signals, until removeIoeventfd() or the end of the VM, also when the
   * EventFd was closed.
   * @throws KvmError EEXIST where another ioeventfd answers to some of the same writes; EINVAL for another length, and for a
   *   datamatch without a length. TypeError, RangeError ERR_KVM_INVALID_ARG; VmexitError ERR_KVM_CLOSED
   */
  ioeventfd(ioeventfd: Ioeventfd): void {
    this.#ioeventfd(ioeventfd, 0);
    this.#ioeventfds++;
  }

  /**
   * Takes an ioeventfd back (KVM_IOEVENTFD_FLAG_DEASSIGN): from now on such writes exit.
   * @param ioeventfd as it was given, with the same EventFd or another of its counter
   * @throws KvmError ENOENT where there is none like it; TypeError, RangeError ERR_KVM_INVALID_ARG; VmexitError
   *   ERR_KVM_CLOSED
   */
  removeIoeventfd(ioeventfd: Ioeventfd): void {
    this.#ioeventfd(ioeventfd, IoeventfdFlag.DEASSIGN);
    this.#ioeventfds--;
  }

  #ioeventfd(ioeventfd: Ioeventfd, deassign: number): void {
    const { eventFd, address, length = 0, pio = false, datamatch } = object('ioeventfd', ioeventfd);
    const matching = datamatch === undefined ? 0 : IoeventfdFlag.DATAMATCH;
    const value = {
      addr: integer('address', address),
      len: u32('length', length),
      datamatch: datamatch === undefined ? 0n : u64('datamatch', datamatch),
      flags: deassign | matching | (pio ? IoeventfdFlag.PIO : 0),
    };
    this.fd.refer(ioctls.KVM_IOEVENTFD, value, [handleOf('eventFd', eventFd)]);
  }
}
