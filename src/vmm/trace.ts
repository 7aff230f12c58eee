/** A run written down: one JSON object a line, one line for each exit and for each thing the VMM did about memory. */
import { closeSync, openSync, writeSync } from 'node:fs';
import type { SecondStageEvent } from '../hypervisor/backend.ts';
import { VmexitError } from '../hypervisor/errors.ts';
import type { Vcpu } from '../hypervisor/vcpu.ts';
import { exitName } from '../uapi/exit.ts';
import type { Instruction } from './disassemble.ts';
import { exceptionName, type GuestException } from './exceptions.ts';
import type { MemoryEvent } from './memory-faults.ts';

/** Written out in pieces of this many characters, so that an exit does not cost a system call. */
const BUFFER = 64 * 1024;

/** bigint and bytes as hex, for JSON has neither. */
const plain = (_key: string, value: unknown): unknown => {
  if (typeof value === 'bigint') return `0x${value.toString(16)}`;
  if (value instanceof Uint8Array) return Buffer.from(value).toString('hex');
  return value;
};

/**
 * Lines as in `{"seq":1,"ms":0.4,"exit":"IO","direction":"out","port":1016,"size":1,"count":1,"data":"48"}` and
 * `{"seq":9,"ms":2.1,"memory":"hypercall","gpa":1048576,"size":4096,"action":"private","result":0}`. `seq` counts
 * lines from 1, `ms` is the time since the trace was begun. The simulator's guests have a time of their own: there it
 * is `insns`, the instructions that were completed, so that the same run gives the same bytes. An exit is written
 * after it was served, so what the VMM answered is in it; what it did about memory for that exit follows.
 *
 * What a vCPU that is observed does between its exits: `{"seq":2,"insns":0,"secondStage":"fetch","gpa":4096,...}`,
 * `{"seq":3,"insns":0,"instruction":"mov dx, 0x3f8","rip":"0x1000","bytes":"baf803"}` before it executes,
 * `{"seq":7,"insns":4,"lacks":"VEX_Vaddps_ymm_ymm_ymmm256"}` where the simulator has no such instruction,
 * `{"seq":8,"insns":4,"exception":"#PF","errorCode":2,"rip":"0x100a","address":"0x8000"}` for each exception.
 */
export class Trace implements Disposable {
  readonly #path: string;
  readonly #fd: number;
  readonly #begun = performance.now();
  readonly #waiting: object[] = [];
  /** When something was last written, for what waits when the trace is closed. */
  #time: object = {};
  #seq = 0;
  #text = '';
  #open = true;

  /** @param path a file, made anew. @throws the error of open(2) */
  constructor(path: string) {
    this.#path = path;
    this.#fd = openSync(path, 'w');
  }

  /** An exit of the vCPU's, after it was served. A RunLoop's onExit. */
  exit(vcpu: Vcpu): void {
    const { reason, outcome, runFlags, ...fields } = vcpu.exit;
    const { io, mmio } = vcpu;
    if (reason === 'IO') Object.assign(fields, { dataOffset: undefined, data: io.data });
    if (reason === 'MMIO') Object.assign(fields, { data: mmio.data.subarray(0, mmio.length) });
    this.#at(vcpu).#line({ exit: exitName(outcome), ...fields, ...(runFlags ? { runFlags } : {}) });
    for (const event of this.#waiting.splice(0)) this.#line(event);
  }

  /** Where a vCPU begins: its instruction pointer, and those of its general registers that are not 0. */
  begin(vcpu: Vcpu): void {
    const { rip, rflags, ...general } = vcpu.getRegs();
    const set = Object.fromEntries(Object.entries(general).filter(([, value]) => value !== 0n));
    this.#at(vcpu).#line({ registers: { rip, rflags, ...set } });
  }

  // An Observer's.
  /** Writes a line: an instruction is about to be executed. For the observer of a simulated vCPU. */
  instruction(vcpu: Vcpu, { rip, bytes, text }: Instruction): void {
    this.#at(vcpu).#line({ instruction: text, rip, bytes });
  }
  /** Writes a line: a second-stage translation found nothing mapped. For the observer of a simulated vCPU. */
  secondStage(vcpu: Vcpu, { access, ...fields }: SecondStageEvent): void {
    this.#at(vcpu).#line({ secondStage: access, ...fields });
  }
  /** Writes a line: the guest raises an exception. For the observer of a simulated vCPU. */
  exception(vcpu: Vcpu, { vector, ...fields }: GuestException): void {
    this.#at(vcpu).#line({ exception: exceptionName(vector), ...fields });
  }
  /**
   * Writes a line: the guest wants what the simulated processor lacks. For the observer of a simulated vCPU.
   */
  lacking(vcpu: Vcpu, what: string): void {
    this.#at(vcpu).#line({ lacks: what });
  }

  /** What the memory-fault service did: its `trace`. Written after the exit that it belongs to. */
  memory({ cause, ...fields }: MemoryEvent): void {
    this.#waiting.push({ memory: cause, ...fields });
  }

  #at({ completed, id }: Vcpu): this {
    const time =
      completed === undefined
        ? { ms: Math.round((performance.now() - this.#begun) * 1000) / 1000 }
        : { insns: Number(completed) };
    this.#time = id === 0 ? time : { ...time, vcpu: id };
    return this;
  }

  #line(fields: object): void {
    this.#text += `${JSON.stringify({ seq: ++this.#seq, ...this.#time, ...fields }, plain)}\n`;
    if (this.#text.length >= BUFFER) this.flush();
  }

  /** Writes out what is buffered. @throws VmexitError ERR_KVM_TRACE, with the errno; what was buffered is lost then */
  flush(): void {
    const text = this.#text;
    this.#text = '';
    try {
      if (text !== '') writeSync(this.#fd, text);
    } catch (cause) {
      const { code } = cause as NodeJS.ErrnoException;
      throw new VmexitError('ERR_KVM_TRACE', `the trace ${this.#path} cannot be written (${code})`, {
        cause,
      });
    }
  }

  /** Idempotent. */
  close(): void {
    if (!this.#open) return;
    this.#open = false;
    try {
      for (const event of this.#waiting.splice(0)) this.#line(event);
      this.flush();
    } finally {
      closeSync(this.#fd);
    }
  }

  /** As close(): for `using`. */
  [Symbol.dispose](): void {
    this.close();
  }
}
