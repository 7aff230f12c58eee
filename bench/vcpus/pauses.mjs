// How long pause() takes: from the call to the vCPU that stands still, while it runs.
import { Exit } from '../../dist/index.js';
import { median } from '../support.mjs';
import { boot, exiting, Remote, read, spinning } from './guests.mjs';

/** Between two pauses: the guest runs again. */
const REST_MS = 1;
const rest = () => new Promise((done) => setTimeout(done, REST_MS));
const TARGET_NS = 50_000;

async function pauses(vcpu, count) {
  const samples = [];
  for (let i = 0; i < count; i++) {
    await rest();
    const start = process.hrtime.bigint();
    await vcpu.pause();
    samples.push(Number(process.hrtime.bigint() - start));
    vcpu.resume();
  }
  return samples;
}

async function started(backend, code) {
  const { vcpu, close } = boot(backend, code);
  const handler = {
    handle(_, exit) {
      if (exit === Exit.STOPPED) return false;
      read(vcpu, exit);
      return true;
    },
  };
  const ended = vcpu.start([handler]);
  return {
    vcpu,
    async end() {
      vcpu.stop();
      await ended;
      close();
    },
  };
}

async function inWorker(backend) {
  const { vcpu, close } = boot(backend, exiting);
  const remote = new Remote(backend, vcpu);
  await remote.run();
  return {
    vcpu,
    async end() {
      vcpu.stop();
      await remote.end();
      close();
    },
  };
}

const loads = {
  spins: { what: 'a guest that spins, started', prepare: (backend) => started(backend, spinning) },
  handoff: { what: 'a guest that exits, started', prepare: (backend) => started(backend, exiting) },
  exits: { what: 'a guest that exits, in a worker', prepare: inWorker },
};

const micro = (ns) => (ns / 1000).toFixed(1).padStart(9);

export async function pause({ backend, peer, pauses: total, rounds, progress }) {
  const each = Math.ceil(total / rounds);
  const lines = [`  ${''.padEnd(44)}    median      99 %     worst (us)`];
  const figures = {};
  for (const [name, { what, prepare }] of Object.entries(loads)) {
    const { vcpu, end } = await prepare(backend);
    await pauses(vcpu, 50);
    const found = { js: [], c: [] };
    for (let round = 0; round < rounds; round++) {
      progress(`pause, ${what}: round ${round + 1} of ${rounds}`);
      // A vCPU that stands still leaves the processors to C.
      await vcpu.pause();
      if (peer) found.c.push(...peer.samples('pause', name, each));
      vcpu.resume();
      found.js.push(...(await pauses(vcpu, each)));
    }
    await end();
    for (const [side, samples] of Object.entries(found)) {
      if (samples.length === 0) continue;
      const sorted = samples.toSorted((a, b) => a - b);
      const at = (part) => sorted[Math.floor(part * (sorted.length - 1))];
      const middle = median(sorted);
      const target =
        side === 'js'
          ? `   of ${sorted.length}; target at most 50: ${middle <= TARGET_NS ? 'met' : 'MISSED'}`
          : '';
      const text = side === 'js' ? what : '  C, the same';
      lines.push(`  ${text.padEnd(44)} ${micro(middle)} ${micro(at(0.99))} ${micro(at(1))}${target}`);
      figures[side === 'js' ? name : `${name}, C`] = { median: middle, p99: at(0.99), worst: at(1) };
    }
  }
  return { text: ['', ...lines].join('\n'), figures };
}
