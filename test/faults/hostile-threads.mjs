// The storm of hostile-native.mjs in several threads at once, each with a seed of its own. They tell each other their tokens, so
// each opens VMs, vCPUs, memories and eventfds of the others, and kicks, pauses and stops their vCPUs.
//
//   node --expose-gc hostile-threads.mjs SEED CALLS THREADS
//
// CALLS are those of each thread. It prints what each has printed.
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import { Worker } from 'node:worker_threads';

const [, , SEED, CALLS, THREADS] = process.argv;
const storm = fileURLToPath(new URL('hostile-native.mjs', import.meta.url));
// Inodes have more than 32 bits.
const board = new Float64Array(new SharedArrayBuffer(8 * 64));

const threads = Array.from({ length: Number(THREADS) }, async (_, i) => {
  const argv = [String(Number(SEED) + i), CALLS];
  const worker = new Worker(storm, { argv, workerData: { board } });
  const [status] = await once(worker, 'exit');
  return status;
});
if ((await Promise.all(threads)).some((status) => status !== 0)) process.exitCode = 1;
