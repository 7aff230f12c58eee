/** The devices that every small guest wants: a serial port to print on, and a port to end by. */
import { outOfRange } from '../hypervisor/errors.ts';
import type { Bus, Device } from './bus.ts';

/** COM1 of every PC, and how many ports an 8250 has. */
export const SERIAL_PORT = 0x3f8;
const SERIAL_PORTS = 8;

/** Where the debug-exit device is by custom; four ports, so that a 32-bit OUT is one write. */
export const DEBUG_EXIT_PORT = 0xf4;
const DEBUG_EXIT_PORTS = 4;

// PC16550D data sheet, 8.0 "Registers", by offset.
const Register = { DATA: 0, INTERRUPT_ENABLE: 1, INTERRUPT_ID: 2, LINE_CONTROL: 3, LINE_STATUS: 5 } as const;
const MODEM_STATUS = 6;
/** Divisor latch access: while set, the first two registers are the baud rate's divisor. */
const DLAB = 0x80;
/** Both the holding register and the shifter are empty: whatever the guest polls for, it may send. */
const TRANSMITTER_EMPTY = 0x60;
const NO_INTERRUPT = 0x01;
/** Carrier detect, data set ready, clear to send: somebody listens. */
const LISTENING = 0xb0;

/** Bytes of a Serial's state: its registers, and the divisor behind two of them. */
const SERIAL_STATE = SERIAL_PORTS + 2;

/** The transmitting half of an 8250: what the guest sends is given on at once; nothing is ever received. */
export class Serial implements Device {
  /** `serial port`. */
  readonly name = 'serial port';
  readonly #transmit: (byte: number) => void;
  // What the guest wrote and may read back; the rest of the registers follow from "always idle".
  readonly #registers = new Uint8Array(SERIAL_PORTS);
  readonly #divisor = new Uint8Array(2);

  /** @param transmit is given each byte, 0 to 255 */
  constructor(transmit: (byte: number) => void) {
    this.#transmit = transmit;
  }

  /** On the ports of COM1 unless others are given. @returns the port, for one-line set-ups */
  static attach(ports: Bus, transmit: (byte: number) => void, port = SERIAL_PORT): Serial {
    const serial = new Serial(transmit);
    ports.attach(port, SERIAL_PORTS, serial);
    return serial;
  }

  // A wide access is one of several bytes, as on the 8-bit bus that these chips were made for.
  /** The registers as an idle 8250 has them: always ready to send, nothing received. */
  read(offset: number, data: Uint8Array): void {
    for (let i = 0; i < data.length; i++) data[i] = this.#get(offset + i);
  }

  /** Gives on what the guest sends; other registers keep what is written. */
  write(offset: number, data: Uint8Array): void {
    for (let i = 0; i < data.length; i++) this.#set(offset + i, data[i]!);
  }

  /** What the guest has written into its registers, for a snapshot: state() of one is restore()d in another. */
  get state(): Uint8Array {
    return new Uint8Array([...this.#registers, ...this.#divisor]);
  }
  /** Takes over the state of another one. @throws RangeError ERR_KVM_INVALID_ARG for what is no serial port's state */
  restore(state: Uint8Array): void {
    if (state.length !== SERIAL_STATE)
      throw outOfRange("the serial port's state", state.length, `${SERIAL_STATE} bytes`);
    this.#registers.set(state.subarray(0, SERIAL_PORTS));
    this.#divisor.set(state.subarray(SERIAL_PORTS));
  }

  get #latched(): boolean {
    return (this.#registers[Register.LINE_CONTROL]! & DLAB) !== 0;
  }

  #get(register: number): number {
    if (register <= Register.INTERRUPT_ENABLE && this.#latched) return this.#divisor[register]!;
    if (register === Register.DATA) return 0;
    if (register === Register.INTERRUPT_ID) return NO_INTERRUPT;
    if (register === Register.LINE_STATUS) return TRANSMITTER_EMPTY;
    if (register === MODEM_STATUS) return LISTENING;
    return this.#registers[register]!;
  }

  #set(register: number, value: number): void {
    if (register <= Register.INTERRUPT_ENABLE && this.#latched) this.#divisor[register] = value;
    else if (register === Register.DATA) this.#transmit(value);
    else this.#registers[register] = value;
  }
}

/** A guest ends by writing here; what it writes is its status. */
export class DebugExit implements Device {
  /** `debug exit`. */
  readonly name = 'debug exit';
  /** What the guest has written last; undefined until then. */
  value: number | undefined;
  readonly #exit: (value: number) => void;

  /** @param exit is given what was written: 0 to 2^32-1 */
  constructor(exit: (value: number) => void) {
    this.#exit = exit;
  }

  /** On ports 0xf4 to 0xf7 unless others are given. */
  static attach(ports: Bus, exit: (value: number) => void, port = DEBUG_EXIT_PORT): DebugExit {
    const device = new DebugExit(exit);
    ports.attach(port, DEBUG_EXIT_PORTS, device);
    return device;
  }

  /** All zeroes. */
  read(_offset: number, data: Uint8Array): void {
    data.fill(0);
  }

  /** A write to the first port ends the guest with its value, little-endian; other ports take nothing. */
  write(offset: number, data: Uint8Array): void {
    if (offset !== 0) return;
    this.value = data.reduceRight((value, byte) => value * 256 + byte, 0);
    this.#exit(this.value);
  }
}
