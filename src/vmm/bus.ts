/** Who answers which ports, and which guest-physical addresses that no memory slot has: two buses of one kind. */
import { integer } from '../hypervisor/args.ts';
import { outOfRange } from '../hypervisor/errors.ts';

/**
 * What sits on a bus. Offsets are in bytes from its first address. An access has 1 to 8 bytes and lies within the
 * device's range.
 */
export interface Device {
  /** For people: errors and listings name the device by it. */
  readonly name: string;
  /** Fills `data` with what the guest reads. */
  read(offset: number, data: Uint8Array): void;
  /** Takes what the guest writes. `data` is the vCPU's own page: copy what is to be kept. */
  write(offset: number, data: Uint8Array): void;
}

interface Claim {
  readonly start: number;
  readonly end: number;
  readonly device: Device;
}

/** Accesses that no device has claimed, by direction. */
export interface Unclaimed {
  /** Reads that got all ones. */
  reads: number;
  /** Writes that were lost. */
  writes: number;
}

/**
 * Devices by address. What nobody claims behaves as an empty PC bus: reads give all ones, writes are lost, and both
 * are counted. An access that lies only partly in a device's range is claimed by nobody.
 * @example
 * ```ts
 * import { Bus, type Device, flatImage, guest, Machine, openHypervisor, RunLoop } from 'vmexit';
 *
 * // Counts how often it was read.
 * class Counter implements Device {
 *   readonly name = 'counter';
 *   reads = 0;
 *   read(_offset: number, data: Uint8Array): void {
 *     data.fill(0);
 *     data[0] = ++this.reads;
 *   }
 *   write(): void {
 *     this.reads = 0;
 *   }
 * }
 *
 * const hv = openHypervisor();
 * const machine = new Machine(hv, { memory: 0x10_0000 });
 * const code = guest(
 *   16,
 *   `
 *   e4 40 | in al, 0x40
 *   e4 40 | in al, 0x40
 *   e4 99 | in al, 0x99   # nobody's: all ones
 *   f4    | hlt
 *   `,
 * );
 * machine.load(flatImage(code.code, 'real'));
 * const counter = new Counter();
 * const ports = new Bus().attach(0x40, 1, counter);
 * await new RunLoop(machine.vcpu, { ports }).run({ timeoutMs: 5000 });
 * console.log(`${counter.reads} reads, ${ports.unclaimed.reads} of no device`);
 * machine.close();
 * hv.close();
 * // prints: 2 reads, 1 of no device
 * ```
 */
export class Bus {
  /** How many accesses found no device, so far. */
  readonly unclaimed: Unclaimed = { reads: 0, writes: 0 };
  readonly #claims: Claim[] = [];

  /**
   * Gives [start, start + size) to the device.
   * @param start the first port, or the first guest-physical address in bytes
   * @param size ports, or bytes
   * @returns the bus, to attach more
   * @throws RangeError ERR_KVM_INVALID_ARG when a part of it is another device's
   */
  attach(start: number, size: number, device: Device): this {
    const end = integer('start', start) + integer('size', size, undefined, 1);
    const other = this.#claims.find((claim) => claim.start < end && start < claim.end);
    if (other) throw outOfRange(`${device.name}: start`, start, `clear of what ${other.device.name} has`);
    this.#claims.push({ start, end, device });
    return this;
  }

  /** Fills `data` with what is at the address. @returns whether a device answered */
  read(address: number, data: Uint8Array): boolean {
    const claim = this.#find(address, data.length);
    if (claim) {
      claim.device.read(address - claim.start, data);
      return true;
    }
    data.fill(0xff);
    this.unclaimed.reads++;
    return false;
  }

  /** Gives `data` to what is at the address. @returns whether a device took it */
  write(address: number, data: Uint8Array): boolean {
    const claim = this.#find(address, data.length);
    if (claim) {
      claim.device.write(address - claim.start, data);
      return true;
    }
    this.unclaimed.writes++;
    return false;
  }

  #find(address: number, size: number): Claim | undefined {
    // A handful of devices: no tree is faster.
    for (const claim of this.#claims) {
      if (claim.start <= address && address + size <= claim.end) return claim;
    }
    return undefined;
  }
}
