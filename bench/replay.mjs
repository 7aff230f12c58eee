// What a recording costs: exits a second of a guest that writes to a port and to its memory, bare, recorded, and replayed.
//
//   node bench/replay.mjs [EXITS] [kvm|sim]
import { mkdtempSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Exit, flatImage, guest, Machine, openHypervisor, openReplay } from '../dist/index.js';

const exits = Number(process.argv[2] ?? 20_000);
const backend = process.argv[3] ?? 'auto';
const ROUNDS = 3;

const writes = guest(
  16,
  `
  e6 10    | next: out 0x10, al
  a2 00 90 |       mov [0x9000], al
  fe c0    |       inc al
  eb f7    |       jmp next
  `,
);

/** Exits a second. */
function rate(hv, view) {
  const machine = new Machine(hv, { memory: 64 * 2 ** 20 });
  machine.load(flatImage(writes.code, 'real'));
  if (view) machine.memory.bytes;
  const { vcpu } = machine;
  const begun = performance.now();
  for (let i = 0; i < exits; i++) {
    const exit = vcpu.run(60_000);
    if (exit !== Exit.IO) throw new Error(`exit ${exit} came`);
  }
  const seconds = (performance.now() - begun) / 1000;
  machine.close();
  hv.close();
  return Math.round(exits / seconds);
}

const folder = mkdtempSync(join(tmpdir(), 'vmexit-bench-'));
const record = join(folder, 'recording');
const rates = {
  bare: [],
  recorded: [],
  replayed: [],
  'recorded, with a view': [],
  'replayed, with a view': [],
};
const bytes = {};
try {
  for (let round = 0; round < ROUNDS; round++) {
    rates.bare.push(rate(openHypervisor({ backend }), false));
    for (const view of [false, true]) {
      const suffix = view ? ', with a view' : '';
      rates[`recorded${suffix}`].push(rate(openHypervisor({ backend, record }), view));
      bytes[`recorded${suffix}`] = statSync(record).size / exits;
      const replay = openReplay(record);
      rates[`replayed${suffix}`].push(rate(replay.hypervisor, view));
      replay.close();
    }
  }
} finally {
  rmSync(folder, { recursive: true });
}
for (const [name, found] of Object.entries(rates)) {
  const median = found.toSorted((a, b) => a - b)[ROUNDS >> 1];
  const size = bytes[name] === undefined ? '' : `, ${bytes[name].toFixed(1)} bytes an exit`;
  console.log(`${name}: ${median} exits/s (${found.join(', ')})${size}`);
}
