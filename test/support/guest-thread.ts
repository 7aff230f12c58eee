/**
 * A guest in a thread of its own, whose VMM is reached only by eventfds and kicks. Worker threads cannot run TypeScript,
 * so it uses what `npm run setup` compiled.
 */
import { existsSync } from 'node:fs';
import { Worker } from 'node:worker_threads';
import type { BackendName, EventFdToken } from '../../src/index.ts';
import type { Guest } from '../../src/vmm/guest.ts';
import { DEADLINE_MS } from './limits.ts';

const dist = new URL('../../dist/index.js', import.meta.url);

export interface ThreadOptions {
  readonly backend: BackendName;
  /** Of real mode, placed at the address. */
  readonly code: Guest;
  readonly at: number;
  /** What the guest's OUT to the port signals. */
  readonly door: { readonly token: EventFdToken; readonly port: number };
  /** What raises a line of the VM's in-kernel interrupt controllers, which it then has. */
  readonly bell?: { readonly token: EventFdToken; readonly gsi: number };
}

/** How the one run of the guest's ended. */
export interface ThreadEnd {
  readonly exit: string;
  /** Of Exit.IO. */
  readonly port: number | undefined;
  readonly value: number | undefined;
}

const source = `
  import('${dist}').then(({ openHypervisor, enterRealMode, exitName, Exit }) => {
    const { workerData, parentPort } = require('node:worker_threads');
    const { backend, code, at, door, bell, deadlineMs } = workerData;
    const hv = openHypervisor({ backend });
    const vm = hv.createVm();
    if (bell) vm.createIrqchip();
    const ram = vm.allocate(0x1_0000);
    vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memory: ram });
    ram.write(at, code);
    const vcpu = vm.createVcpu();
    enterRealMode(vcpu);
    vcpu.setRegs({ rip: at, rsp: 0x8000, rflags: 2 });
    vm.ioeventfd({ eventFd: hv.openEventFd(door.token), address: door.port, pio: true });
    if (bell) vm.irqfd({ eventFd: hv.openEventFd(bell.token), gsi: bell.gsi });
    parentPort.postMessage(vcpu.kickId);
    const exit = vcpu.run(deadlineMs);
    const { port, value } = exit === Exit.IO ? vcpu.io : {};
    parentPort.postMessage({ exit: exitName(exit), port, value });
    for (const opened of [vcpu, vm, ram, hv]) opened.close();
  });
`;

/** Starts it; `kickId` is its vCPU's, and `end` how its run ended. */
export async function guestThread({
  code,
  ...options
}: ThreadOptions): Promise<{ kickId: number; end: Promise<ThreadEnd> }> {
  if (!existsSync(dist)) throw new Error('dist/ is not there: npm run setup');
  const workerData = { ...options, code: code.code, deadlineMs: DEADLINE_MS };
  const worker = new Worker(source, { eval: true, workerData });
  const message = () =>
    new Promise<unknown>((resolve, reject) => {
      worker.once('message', resolve);
      worker.once('error', reject);
    });
  const kickId = (await message()) as number;
  return { kickId, end: message() as Promise<ThreadEnd> };
}
