/** A run written down: one JSON object a line, one line for each exit and for each thing the VMM did about memory. */
import { closeSync, openSync, writeSync } from 'node:fs';
import type { Vcpu } from '../hypervisor/vcpu.ts';
import { exitName } from '../uapi/exit.ts';
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
 * lines from 1, `ms` is the time since the trace was begun. An exit is written after it was served, so what the VMM
 * answered is in it; what it did about memory for that exit follows.
 */
export class Trace implements Disposable {
  readonly #fd: number;
  readonly #begun = performance.now();
  readonly #waiting: object[] = [];
  #seq = 0;
  #text = '';
  #open = true;

  /** @param path a file, made anew. @throws the error of open(2) */
  constructor(path: string) {
    this.#fd = openSync(path, 'w');
  }

  /** An exit of the vCPU's, after it was served. A RunLoop's onExit. */
  exit(vcpu: Vcpu): void {
    const { reason, outcome, runFlags, ...fields } = vcpu.exit;
    const { io, mmio } = vcpu;
    if (reason === 'IO') Object.assign(fields, { dataOffset: undefined, data: io.data });
    if (reason === 'MMIO') Object.assign(fields, { data: mmio.data.subarray(0, mmio.length) });
    this.#line({ exit: exitName(outcome), ...fields, ...(runFlags ? { runFlags } : {}) });
    for (const event of this.#waiting.splice(0)) this.#line(event);
  }

  /** What the memory-fault service did: its `trace`. Written after the exit that it belongs to. */
  memory({ cause, ...fields }: MemoryEvent): void {
    this.#waiting.push({ memory: cause, ...fields });
  }

  #line(fields: object): void {
    const ms = Math.round((performance.now() - this.#begun) * 1000) / 1000;
    this.#text += `${JSON.stringify({ seq: ++this.#seq, ms, ...fields }, plain)}\n`;
    if (this.#text.length >= BUFFER) this.flush();
  }

  /** Writes out what is buffered. */
  flush(): void {
    if (this.#text !== '') writeSync(this.#fd, this.#text);
    this.#text = '';
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

  [Symbol.dispose](): void {
    this.close();
  }
}
