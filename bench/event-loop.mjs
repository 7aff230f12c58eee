// What a guest that never exits costs the event loop beside it: how long an HTTP request takes to a server in the
// VMM's own process, by how long RunLoop's slices are. The client is a process of its own.
//   node bench/event-loop.mjs [kvm|sim]
import { fork } from 'node:child_process';
import { once } from 'node:events';
import { createServer, get } from 'node:http';
import { fileURLToPath } from 'node:url';
import { flatImage, Machine, openHypervisor, RunLoop } from 'vmexit';

const REQUESTS = 100;
const SLICES_MS = [1, 2, 5, 10, 50];
const [, , backend = 'auto', port] = process.argv;

const request = () =>
  new Promise((done, fail) => {
    const started = performance.now();
    // Its own connection: accepting one takes a turn of the event loop more.
    get({ port, agent: false }, (response) => {
      response.resume().on('end', () => done(performance.now() - started));
    }).on('error', fail);
  });

async function client() {
  const times = [];
  for (let i = 0; i < REQUESTS; i++) times.push(await request());
  process.send(times.sort((a, b) => a - b));
  process.disconnect();
}

async function measure(hv, sliceMs) {
  const server = createServer((_, response) => response.end('here')).listen(0, '127.0.0.1');
  await once(server, 'listening');
  const asks = fork(fileURLToPath(import.meta.url), [backend, server.address().port]);
  const answered = once(asks, 'message');
  const ended = new AbortController();
  let told = 0;
  const line = (times) => {
    const at = (part) => times[Math.floor(part * (times.length - 1))].toFixed(1).padStart(8);
    console.log(`${String(sliceMs ?? 'no guest').padStart(8)} ${at(0.5)} ${at(0.95)} ${told}`);
    ended.abort();
  };
  answered.then(([times]) => line(times));
  if (sliceMs === undefined) await answered;
  else {
    const machine = new Machine(hv, { memory: 2 ** 20 });
    machine.load(flatImage(Uint8Array.of(0xeb, 0xfe), 'long')); // again: jmp again
    await new RunLoop(machine.vcpu, { sliceMs, onSlice: () => told++ }).run({ signal: ended.signal });
  }
  server.close();
}

if (port !== undefined) await client();
else {
  const hv = openHypervisor({ backend });
  console.log(`${hv.backend}, ${REQUESTS} requests each, milliseconds\n   slice   median  of 95 %  slices`);
  for (const sliceMs of [undefined, ...SLICES_MS]) await measure(hv, sliceMs);
}
