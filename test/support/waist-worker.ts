/**
 * A thread that opens a vCPU of the simulator's by its token and does with it what it is told. Worker threads cannot run
 * TypeScript, so what it needs is bundled first.
 */
import { randomUUID } from 'node:crypto';
import { rmSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { Worker } from 'node:worker_threads';
import { rolldown } from 'rolldown';
import type { SharedVcpu } from '../../src/hypervisor/backend.ts';
import { DEADLINE_MS } from './limits.ts';

const root = join(import.meta.dirname, '..', '..');

/** The module `waist.ts` as JavaScript, until dispose() is called. */
export async function bundledWaist(): Promise<{ url: string; dispose(): void }> {
  const file = join(root, 'build', 'test', `waist-${randomUUID()}.mjs`);
  const bundle = await rolldown({
    input: join(root, 'test', 'support', 'waist.ts'),
    platform: 'node',
    external: [/^node:/, /iced-packed\.js$/, 'iced-x86', 'vmexit'],
  });
  await bundle.write({ file, format: 'esm', codeSplitting: false });
  return { url: pathToFileURL(file).href, dispose: () => rmSync(file, { force: true }) };
}

/**
 * What the thread can be told to do. A word of `words` is where it says how far it is, and another where it waits for who
 * answers a fault.
 */
const program = (url: string) => `
import { parentPort, workerData } from 'node:worker_threads';
import { Errno, Exit, getRegs, simulator } from '${url}';
const { token, deadlineMs, words } = workerData;
const backend = simulator();
const vcpu = backend.openVcpu(token);
if (typeof vcpu === 'number') throw new Error('openVcpu() gave ' + vcpu);
const run = backend.runner(vcpu);
const page = new DataView(backend.bytes(vcpu).buffer);
const tell = (at, value) => { Atomics.store(words, at, value); Atomics.notify(words, at); };
const doings = {
  /** Runs until it ends otherwise than by I/O; gives how, and after how many exits. */
  run({ timeoutMs = deadlineMs }) {
    let exits = 0;
    let end = run(timeoutMs);
    while (end === Exit.IO) {
      exits++;
      tell(0, exits);
      end = run(timeoutMs);
    }
    return { end, exits };
  },
  once: ({ timeoutMs = deadlineMs }) => run(timeoutMs),
  /** As run(); a memory fault is told, and somebody else answers it. */
  faulting({ timeoutMs = deadlineMs }) {
    let faults = 0;
    for (;;) {
      const end = run(timeoutMs);
      if (end !== -Errno.EFAULT || page.getUint32(8, true) !== Exit.MEMORY_FAULT) return { end, faults };
      faults++;
      const before = Atomics.load(words, 1);
      parentPort.postMessage({ fault: Number(page.getBigUint64(40, true)) });
      if (Atomics.wait(words, 1, before, deadlineMs) === 'timed-out') return { end: 'nobody answers', faults };
    }
  },
  starts: ({ timeoutMs = deadlineMs }) => new Promise((resolve) => {
    const { start } = backend.starter(vcpu, (end) => (end === Exit.IO ? start(timeoutMs) : resolve(end)));
    start(timeoutMs);
  }),
  regs: () => getRegs(backend, vcpu),
  ioctl: ({ request, bytes }) => [backend.ioctl(vcpu, request, bytes), bytes],
  vm({ request, argument, vm }) {
    const handle = backend.openVm(vm);
    if (typeof handle === 'number') return handle;
    const result = backend.ioctl(handle, request, argument);
    backend.close(handle);
    return result;
  },
  close: () => backend.close(vcpu),
};
parentPort.on('message', async ({ does, ...given }) => {
  tell(2, 1);
  parentPort.postMessage({ done: await doings[does](given) });
});
parentPort.postMessage('ready');
`;

export class WaistWorker {
  readonly worker: Worker;
  /** How many exits there were; what a fault's answer changes; whether it has begun. */
  readonly words = new Int32Array(new SharedArrayBuffer(16));
  /** Called with the address of each memory fault. */
  onFault: (gpa: number) => void = () => {};
  readonly #messages: unknown[] = [];
  #waits: ((message: unknown) => void) | undefined;
  #failed: unknown;

  private constructor(url: string, token: SharedVcpu) {
    const source = `data:text/javascript,${encodeURIComponent(program(url))}`;
    const workerData = { token, deadlineMs: DEADLINE_MS, words: this.words };
    this.worker = new Worker(new URL(source), { workerData });
    this.worker.on('message', (message: unknown) => {
      const fault = (message as { fault?: number }).fault;
      if (fault !== undefined) this.onFault(fault);
      else if (this.#waits !== undefined) this.#waits(message);
      else this.#messages.push(message);
    });
    this.worker.on('error', (error) => {
      this.#failed = error;
      this.#waits?.({ error });
    });
  }

  static async open(url: string, token: SharedVcpu): Promise<WaistWorker> {
    const made = new WaistWorker(url, token);
    await made.#next();
    return made;
  }

  async #next(): Promise<unknown> {
    if (this.#failed !== undefined) throw this.#failed;
    const message =
      this.#messages.shift() ??
      (await new Promise<unknown>((resolve) => {
        this.#waits = resolve;
      }));
    this.#waits = undefined;
    const { error } = message as { error?: unknown };
    if (error !== undefined) throw error;
    return message;
  }

  /** Tells it what to do; gives what came of it. */
  async does<T>(what: string, given: object = {}): Promise<T> {
    Atomics.store(this.words, 2, 0);
    this.worker.postMessage({ does: what, ...given });
    return ((await this.#next()) as { done: T }).done;
  }
  /** The fault is answered. */
  answer(): void {
    Atomics.add(this.words, 1, 1);
    Atomics.notify(this.words, 1);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.worker.terminate();
  }
}
