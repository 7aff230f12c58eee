/**
 * Input and output in the middle of an instruction. What userspace must answer ends the instruction, which has
 * changed nothing then; when the answer is there it is executed again from its start, and is given what it asked
 * before. So the one that finishes it is the code that began it. Writes to memory need no answer: KVM writes the
 * registers back and then exits (arch/x86/kvm/x86.c, x86_emulate_instruction), so they wait until the end.
 */
import { alone, notEmulated } from './fault.ts';
import { Access, type Stop } from './stage.ts';

/** Thrown through the processor. */
export class IoStop {
  readonly stop: Stop;
  constructor(stop: Stop) {
    this.stop = stop;
  }
}

/** IN or OUT, which is all of its instruction that userspace has to do: what follows when it has. */
export interface PortAccess {
  readonly stop: Extract<Stop, { readonly kind: 'io' }>;
  /** Where execution goes on. */
  readonly next: bigint;
}

/** Bytes of one exit: the emulator's fragments (arch/x86/kvm/x86.c, emulator_read_write). */
const FRAGMENT = 8;

export class IoLog {
  /** How the instruction is executed: undefined in translated code, which does no I/O. */
  mode: 'alone' | 'emulated' | undefined;
  readonly #answers: (Uint8Array | bigint)[] = [];
  #position = 0;
  readonly writes: Stop[] = [];
  /** KVM's emulator gives up where the instruction comes to write. */
  refusesWrites = false;
  /** Offers the kernel a write, and gives whether it is done by that: KVM's own buses (kvm_io_bus_write()). */
  bus: (write: Stop) => boolean = () => false;
  /** The instruction that waits for userspace, where it need not be executed again. */
  port: PortAccess | undefined;
  /** The last access to where there is no memory. */
  gpa = 0;
  access: Access = Access.READ;

  /** Translated code has come to MMIO, and has left: its instruction is KVM's emulator's. */
  isDemanded = false;

  /** What a load of the instruction asks, which goes no further: what an IoStop is where nothing has to be thrown. */
  waiting: Stop | undefined;

  /** Nothing of the instruction was answered yet. */
  get empty(): boolean {
    return this.#answers.length === 0;
  }
  begin(mode: 'alone' | 'emulated'): void {
    this.mode = mode;
    this.refusesWrites = false;
    this.#position = 0;
    if (this.writes.length > 0) this.writes.length = 0;
  }
  /** @param data bytes are copied: they may be where the next answer will be */
  answer(data: Uint8Array | bigint): void {
    this.#answers.push(typeof data === 'bigint' ? data : new Uint8Array(data));
  }
  /** The instruction is done, or has faulted. */
  end(): void {
    this.mode = undefined;
    if (this.#answers.length > 0) this.#answers.length = 0;
  }

  #ask(stop: Stop): Uint8Array | bigint {
    if (this.#position < this.#answers.length) return this.#answers[this.#position++]!;
    throw new IoStop(stop);
  }

  /** Leaves translated code: for what only an instruction by itself may do. */
  demand(mode: 'alone' | 'emulated'): void {
    if (this.mode === mode || this.mode === 'emulated') return;
    alone.mode = mode;
    throw alone;
  }

  /** As demand(), of an access to where there is no memory. */
  demandEmulation(gpa: number, access: Access): void {
    this.gpa = gpa;
    this.access = access;
    this.demand('emulated');
  }

  /** Reads from where there is no memory. The bytes lie in one page. */
  read(gpa: number, size: number): Uint8Array {
    const data = new Uint8Array(size);
    for (let done = 0; done < size; done += FRAGMENT) {
      const part = Math.min(FRAGMENT, size - done);
      const answer = this.#ask({ kind: 'mmio', write: false, gpa: gpa + done, data: new Uint8Array(part) });
      data.set((answer as Uint8Array).subarray(0, part), done);
    }
    return data;
  }
  /**
   * The same of one fragment, for who looks at `waiting` then.
   * @param into gets what was answered
   * @returns false where nothing was
   */
  readTo(into: Uint8Array, gpa: number, size: number): boolean {
    if (this.#position < this.#answers.length) {
      const answer = this.#answers[this.#position++] as Uint8Array;
      for (let i = 0; i < size; i++) into[i] = answer[i] ?? 0;
      return true;
    }
    this.waiting = { kind: 'mmio', write: false, gpa, data: new Uint8Array(size) };
    return false;
  }
  write(gpa: number, data: Uint8Array, size = data.length): void {
    if (this.refusesWrites) throw notEmulated;
    for (let done = 0; done < size; done += FRAGMENT) {
      const part = new Uint8Array(Math.min(FRAGMENT, size - done));
      for (let i = 0; i < part.length; i++) part[i] = data[done + i]!;
      this.writes.push({ kind: 'mmio', write: true, gpa: gpa + done, data: part, follows: done > 0 });
    }
  }
  /** What the kernel takes is no exit; of an access what it takes from its beginning on (vcpu_mmio_write()). */
  settle(): void {
    if (this.writes.length === 0) return;
    if (this.writes.length === 1) {
      if (this.bus(this.writes[0]!)) this.writes.pop();
      return;
    }
    let taken = false;
    const left = this.writes.filter((stop) => {
      const follows = stop.kind === 'mmio' && stop.follows === true;
      taken = (taken || !follows) && this.bus(stop);
      return !taken;
    });
    this.writes.splice(0, this.writes.length, ...left);
  }

  /** IN and INS: `count` elements of `size` bytes. String instructions are the emulator's. */
  input(port: number, size: 1 | 2 | 4, count: number, string = false): Uint8Array {
    this.demand(string ? 'emulated' : 'alone');
    const data = new Uint8Array(size * count);
    return this.#ask({ kind: 'io', write: false, port, size, count, data }) as Uint8Array;
  }
  /** OUT stops at the instruction (fast_pio_out); OUTS after it. */
  output(port: number, size: 1 | 2 | 4, data: Uint8Array, string = false): void {
    this.demand(string ? 'emulated' : 'alone');
    const stop: Stop = { kind: 'io', write: true, port, size, count: data.length / size, data };
    if (string) this.writes.push(stop);
    else if (!this.empty || !this.bus(stop)) this.#ask(stop);
  }
  /** A failed RDMSR or WRMSR: gives what RDMSR reads. */
  msr(write: boolean, index: number, data: bigint, reason: number): bigint {
    this.demand('alone');
    return this.#ask({ kind: 'msr', write, index, data, reason }) as bigint;
  }
  /** VMCALL and VMMCALL: gives what RAX becomes. */
  hypercall(number: bigint, args: readonly bigint[], longMode: boolean): bigint {
    this.demand('alone');
    return this.#ask({ kind: 'hypercall', number, args, longMode }) as bigint;
  }
}
