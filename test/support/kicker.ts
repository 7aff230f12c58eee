/** Another thread that kicks a vCPU. Worker threads cannot run TypeScript, so it uses what `npm run setup` compiled. */
import { existsSync } from 'node:fs';
import { Worker } from 'node:worker_threads';

const dist = new URL('../../dist/index.js', import.meta.url);

/** Data of the worker: the backend, Vcpu.kickId, milliseconds to wait before the kick. */
const source = `
  import('${dist}').then(({ openHypervisor }) => {
    const { workerData, parentPort } = require('node:worker_threads');
    const hv = openHypervisor({ backend: workerData.backend });
    parentPort.postMessage('ready');
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, workerData.afterMs);
    const there = hv.kick(workerData.kickId);
    hv.close();
    parentPort.postMessage(there);
  });
`;

/** A thread that is ready to kick, after a time; `kicked` tells whether there was such a vCPU. */
export async function kicker(
  backend: string,
  kickId: number,
  afterMs: number,
): Promise<{ kicked: Promise<boolean> }> {
  if (!existsSync(dist)) throw new Error('dist/ is not there: npm run setup');
  const worker = new Worker(source, { eval: true, workerData: { backend, kickId, afterMs } });
  const message = () =>
    new Promise<unknown>((resolve, reject) => {
      worker.once('message', resolve);
      worker.once('error', reject);
    });
  await message();
  return { kicked: message() as Promise<boolean> };
}
