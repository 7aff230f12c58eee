// vCPUs on threads of their own, each figure beside C that does the same (vcpus_bench.c), in turns of one run: what an exit
// costs by each way to run a vCPU, two vCPUs beside one, how soon a pause is acknowledged, and what a guest costs the
// event loop. On the simulator there is no C.
//   node bench/vcpus.mjs [--only exits|two|pause|delay] [--backend auto|kvm|sim] [--rounds N] [--count EXITS]
//        [--pauses N] [--seconds N] [--json]
import { execFileSync } from 'node:child_process';
import { availableParallelism, loadavg } from 'node:os';
import { openHypervisor } from '../dist/index.js';
import { compile, main } from './support.mjs';
import { delay } from './vcpus/delay.mjs';
import { exits, two } from './vcpus/exits.mjs';
import { pause } from './vcpus/pauses.mjs';

const inLab = process.env.VMEXIT_LAB === '1';
const benches = {
  exits: { what: 'an exit, its fields read', run: exits },
  two: { what: 'two vCPUs of a VM beside one', run: two },
  pause: { what: 'pause(), until the vCPU stands still', run: pause },
  delay: { what: 'the delay of the event loop', run: delay },
};
const options = {
  backend: { is: 'auto|kvm|sim', value: 'auto' },
  count: { is: 'EXITS', value: inLab ? '4000' : '5000' },
  pauses: { is: 'N', value: '10000' },
  seconds: { is: 'N', value: '60' },
};

function backendOf(asked) {
  const hv = openHypervisor({ backend: asked });
  hv.close();
  return hv.backend;
}

function peerIn(folder) {
  const program = compile(folder, 'vcpus_bench.c');
  const samples = (...args) =>
    execFileSync(program, args.map(String), { encoding: 'utf8', maxBuffer: 2 ** 26 })
      .trim()
      .split('\n')
      .map(Number);
  const way = (...args) => Object.assign(() => samples(...args)[0], { isPeer: true });
  return { way, samples };
}

function progress(text) {
  if (process.stderr.isTTY) process.stderr.write(`\r\x1b[K${text}`);
}

async function measure(_name, { what, run }, values) {
  const backend = backendOf(values.backend);
  const load = loadavg()[0];
  const { text, figures } = await run({
    backend,
    progress,
    rounds: values.rounds,
    peer: backend === 'kvm' ? peerIn(values.folder) : undefined,
    judged: backend === 'kvm' && inLab ? 'lab' : backend,
    ...{ count: Number(values.count), pauses: Number(values.pauses), seconds: Number(values.seconds) },
  });
  progress('');
  const kind = {
    kvm: inLab ? "the lab's KVM" : "this host's KVM",
    sim: 'the simulator, without C beside it',
  }[backend];
  const loads = [load, loadavg()[0]].map((one) => one.toFixed(1)).join(' to ');
  return { text: `${what}: ${kind}, ${availableParallelism()} processors, load ${loads}${text}\n`, figures };
}

await main('node bench/vcpus.mjs', benches, 11, measure, options);
