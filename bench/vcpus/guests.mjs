// The guests of bench/vcpus.mjs, and a worker that runs the vCPU of one in its synchronous loop. The worker is this file too.
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import { isMainThread, parentPort, Worker, workerData } from 'node:worker_threads';
import { Exit, enterRealMode, guest, openHypervisor } from '../../dist/index.js';
import { expect, MIB, nanoseconds } from '../support.mjs';

const CODE = 0x1000;

export const exiting = guest(
  16,
  `
e6 80 | again: out 0x80, al
eb fc |        jmp again
`,
);
export const spinning = guest(
  16,
  `
eb fe | again: jmp again
`,
);

/** A VM whose vCPUs all run the same code. */
export function boot(backend, { code }, count = 1) {
  const hv = openHypervisor({ backend });
  const vm = hv.createVm();
  const ram = vm.allocate(MIB);
  vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memory: ram });
  ram.write(CODE, code);
  const vcpus = Array.from({ length: count }, (_, id) => {
    const vcpu = vm.createVcpu(id);
    enterRealMode(vcpu);
    vcpu.setRegs({ rip: CODE, rflags: 2 });
    return vcpu;
  });
  const close = () => {
    for (const object of [...vcpus, vm, ram, hv]) object.close();
  };
  return { vcpu: vcpus[0], vcpus, close };
}

/** Reads an exit's fields: what each side does with it. */
export function read({ io }, exit) {
  const isOurs = exit === Exit.IO && io.direction === 1;
  expect(isOurs && io.port + io.size + io.count + io.value === 0x80 + 1 + 1, `exit ${exit}`);
}

/** So many exits in the synchronous loop: nanoseconds of each. */
export function synchronous(vcpu, count) {
  const start = process.hrtime.bigint();
  for (let i = 0; i < count; i++) read(vcpu, vcpu.run());
  return nanoseconds(start, count);
}

/** A vCPU that a worker runs. */
export class Remote {
  #worker;

  constructor(backend, vcpu) {
    this.#worker = new Worker(fileURLToPath(import.meta.url), {
      workerData: { backend, token: vcpu.share() },
    });
  }

  /** So many exits: nanoseconds of each, by the worker's clock. */
  async exits(count) {
    this.#worker.postMessage(count);
    const [ns] = await once(this.#worker, 'message');
    return ns;
  }

  /** Runs until the vCPU is stopped; resolves when it has begun. */
  async run() {
    this.#worker.postMessage(Number.POSITIVE_INFINITY);
    await once(this.#worker, 'message');
  }

  end = () => this.#worker.terminate();
}

if (!isMainThread && workerData?.token !== undefined) {
  const vcpu = openHypervisor({ backend: workerData.backend }).openVcpu(workerData.token);
  parentPort.on('message', (count) => {
    if (Number.isFinite(count)) return parentPort.postMessage(synchronous(vcpu, count));
    parentPort.postMessage(0);
    for (let exit = vcpu.run(); exit !== Exit.STOPPED; exit = vcpu.run()) read(vcpu, exit);
  });
}
