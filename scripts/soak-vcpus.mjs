// A soak of several vCPUs: exits and conversions by the hundred thousand, half of the vCPUs start()ed and half in workers, with
// pauses in between. What the process holds must be flat at the end, and no write of the guest's may be lost.
//
//   node scripts/soak-vcpus.mjs [options]
//   node dist/cli/main.js lab run -- node scripts/soak-vcpus.mjs --exits 50000 --conversions 5000
//
// dist/ must be built (npm run setup).
import { openSync, readdirSync, readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { isMainThread, parentPort, Worker, workerData } from 'node:worker_threads';
import {
  AskOwner,
  Exit,
  exitName,
  flatImage,
  guest,
  Machine,
  MemoryFaultService,
  MemoryOwner,
  missing,
  openHypervisor,
} from '../dist/index.js';

const HELP = `node scripts/soak-vcpus.mjs [options]: several vCPUs under load, with what the process holds flat at the end

  --backend NAME     auto, kvm or sim (default auto)
  --exits N          over all vCPUs (default 1000000)
  --conversions N    of a page, private or shared, among these exits (default 100000); none where there is no private memory
  --vcpus N          every second one in a worker, the others start()ed (default 4)
  --plant LEAK       leaks a descriptor or memory now and then, which must be found: fd or heap
`;
const PAGE = 4096;
const MEMORY = 4 * 2 ** 20;
const PAGES = 2 * 2 ** 20;
/** A word that ends the guest. */
const STOP = 2 ** 20;
const SAMPLES = 20;
const PORT = 0x10;

/**
 * What may be more at the end than in the middle: bytes, and lines of /proc/self/maps. `maps` are those of files and of KVM's, and
 * `anonymous` those of V8's heaps, which come and go.
 */
const SLACK = {
  resident: 16 * 2 ** 20,
  heap: 2 * 2 ** 20,
  external: 2 ** 18,
  locked: 0,
  maps: 0,
  anonymous: 128,
  fds: 0,
  threads: 0,
};
const NAMED = /[0-9] +(?:\/|anon_inode)/;

/**
 * Until the word at r11 is set: has its page converted, finds in that copy what it has counted there, counts, and exits r8 times
 * more. rsi: how often. r10 is 0 where nothing is to be converted.
 */
const program = guest(
  64,
  `
       45 31 e4       |        xor r12d, r12d
       4d 85 d2       | again: test r10, r10
       74 27          |        jz skip
       b8 0c 00 00 00 |        mov eax, 12
       48 89 fb       |        mov rbx, rdi
       b9 01 00 00 00 |        mov ecx, 1
       41 83 f4 10    |        xor r12d, 0x10
       44 89 e2       |        mov edx, r12d
       0f 01 d9       |        vmmcall
       48 85 c0       |        test rax, rax
       75 26          |        jnz bad
       48 89 f0       |        mov rax, rsi
       48 d1 e8       |        shr rax, 1
       48 39 07       |        cmp [rdi], rax
       75 1b          |        jne bad
       48 ff 07       | skip:  inc qword ptr [rdi]
       4d 89 c1       |        mov r9, r8
       4d 85 c9       | outs:  test r9, r9
       74 07          |        jz next
       e6 10          |        out 0x10, al
       49 ff c9       |        dec r9
       eb f4          |        jmp outs
       48 ff c6       | next:  inc rsi
       49 83 3b 00    |        cmp qword ptr [r11], 0
       74 b9          |        je again
       f4             | bad:   hlt
`,
);

// --- a vCPU in a worker ----------------------------------------------------------------------------------------------

function work({ token, owner, words, index }) {
  const hv = openHypervisor({ backend: token.backend });
  const vcpu = hv.openVcpu(token.vcpu);
  const asking = AskOwner.connect(hv, owner);
  let exit = vcpu.run();
  for (; ; exit = vcpu.run()) {
    if (exit === Exit.IO && vcpu.io.port === PORT) Atomics.add(words, index, 1);
    else if (asking.handle(vcpu, exit)) Atomics.add(words, index, 1);
    else if (exit !== Exit.INTERRUPTED && exit !== Exit.AGAIN) break;
  }
  for (const opened of [asking, vcpu, hv]) opened.close();
  parentPort.postMessage(exitName(exit));
}

// --- the main thread -------------------------------------------------------------------------------------------------

setFlagsFromString('--expose-gc');
const gc = runInNewContext('gc');
const countOf = (folder) => readdirSync(folder).length;

function sample() {
  gc();
  const status = readFileSync('/proc/self/status', 'latin1');
  const kib = (name) => 1024 * Number(new RegExp(`^${name}:\\s+(\\d+)`, 'm').exec(status)?.[1] ?? 0);
  const maps = readFileSync('/proc/self/maps', 'latin1').trimEnd().split('\n');
  const { heapUsed, external } = process.memoryUsage();
  return {
    resident: kib('VmRSS'),
    heap: heapUsed,
    external,
    locked: kib('VmLck') + kib('VmPin'),
    maps: maps.filter((line) => NAMED.test(line)).length,
    anonymous: maps.filter((line) => !NAMED.test(line)).length,
    fds: countOf('/proc/self/fd'),
    threads: countOf('/proc/self/task'),
  };
}

function options() {
  const text = { type: 'string' };
  const { values } = parseArgs({
    options: {
      help: { type: 'boolean', short: 'h' },
      backend: { ...text, default: 'auto' },
      exits: { ...text, default: '1000000' },
      conversions: { ...text, default: '100000' },
      vcpus: { ...text, default: '4' },
      plant: text,
    },
  });
  const { help, backend, plant } = values;
  if (help) {
    process.stdout.write(HELP);
    process.exit(0);
  }
  const number = (name, least) => {
    const value = Number(values[name]);
    if (!Number.isSafeInteger(value) || value < least)
      throw new RangeError(`--${name} is ${values[name]}; it must be a whole number from ${least} on`);
    return value;
  };
  if (plant !== undefined && !Object.hasOwn(plants, plant))
    throw new RangeError(`--plant is ${plant}; it must be one of ${Object.keys(plants).join(', ')}`);
  const numbers = {
    exits: number('exits', 1),
    conversions: number('conversions', 0),
    vcpus: number('vcpus', 1),
  };
  return { backend, plant, ...numbers };
}

const kept = [];
const plants = {
  fd: () => kept.push(openSync('/dev/null')),
  heap: () => kept.push(Array.from({ length: 600_000 }, (_, i) => i + 0.5)),
};

const tell = (line) => process.stdout.write(`soak: ${line}\n`);
const turn = (ms) => new Promise((done) => setTimeout(done, ms));

async function soak({ backend, exits, conversions, vcpus: count, plant }) {
  const hv = openHypervisor({ backend });
  const lacks = missing(hv, ['private-memory', 'map-gpa-range'])[0];
  const converts = lacks === undefined && conversions > 0;
  /** Of one round of the guest's. */
  const perRound = converts ? Math.max(1, Math.round(exits / conversions)) : 10;
  const total = converts ? Math.max(exits, conversions * perRound) : exits;
  tell(`${hv.backend}, ${count} vCPUs, ${total} exits, ${converts ? conversions : 0} conversions`);
  if (lacks) tell(`no conversions: ${lacks.reason}`);

  const machine = new Machine(hv, { memory: MEMORY, cpus: count, privateMemory: converts });
  const { vcpus } = machine;
  machine.load(flatImage(program.code, 'long'));
  const pageOf = ({ id }) => PAGES + id * PAGE;
  for (const vcpu of vcpus)
    vcpu.setRegs({
      ...vcpu.getRegs(),
      rdi: pageOf(vcpu),
      rsi: 0,
      r8: perRound - (converts ? 1 : 0),
      r10: converts ? 1 : 0,
      r11: STOP,
    });
  const service = new MemoryFaultService(machine.vm, { policy: () => 'allow', discard: 'none' });
  const owner = new MemoryOwner(hv, { vcpus, handlers: [service] });
  const words = new Int32Array(new SharedArrayBuffer(4 * count));
  const done = () => words.reduce((sum, value) => sum + value, 0);

  const started = (vcpu, index) => {
    const add = (is) => is && ++words[index] > 0;
    const handle = (_, exit) =>
      add(service.handle(vcpu, exit) || (exit === Exit.IO && vcpu.io.port === PORT));
    return vcpu.start([{ handle }]).then(exitName);
  };
  const inWorker = (vcpu, index) =>
    new Promise((ended, failed) => {
      const token = { backend: hv.backend, vcpu: vcpu.share() };
      const worker = new Worker(fileURLToPath(import.meta.url), {
        workerData: { token, owner: owner.token, words, index },
      });
      worker.once('message', (end) => worker.once('exit', () => ended(end)));
      worker.once('error', failed);
    });

  let interrupted = false;
  process.once('SIGINT', () => {
    interrupted = true;
    for (const vcpu of vcpus) vcpu.stop();
  });
  const begun = performance.now();
  let ended = 0;
  let wake;
  const ends = vcpus.map(async (vcpu, i) => {
    await (i % 2 === 0 ? started(vcpu, i) : inWorker(vcpu, i));
    ended++;
    wake?.();
  });
  /** Until all of these stand still, or one has ended: whose last exit nobody has served never stands still. */
  const standing = (some) =>
    new Promise((done) => {
      wake = done;
      Promise.all(some.map((vcpu) => vcpu.pause())).then(done);
      if (ended > 0) done();
    });
  const samples = [];
  let pauses = 0;
  for (;;) {
    await turn(20);
    if (ended > 0) break;
    const paused = vcpus.filter(() => Math.random() < 0.5);
    await standing(paused);
    for (const vcpu of paused) vcpu.resume();
    pauses += paused.length;
    if (plant) plants[plant]();
    if (done() < ((samples.length + 1) * total) / SAMPLES) continue;
    // All of them run still, so that one sample can be compared with another.
    await standing(vcpus);
    // What is closed by the event loop is closed then.
    await turn(0);
    await turn(0);
    samples.push(sample());
    for (const vcpu of vcpus) vcpu.resume();
    if (ended > 0) break;
    const seconds = (performance.now() - begun) / 1000;
    const { resident, maps, fds, threads } = samples.at(-1);
    const held = `${(resident / 2 ** 20).toFixed(0)} MiB, ${maps} mappings, ${fds} descriptors, ${threads} threads`;
    const line = `${((100 * done()) / total).toFixed(0)} %, ${(done() / seconds).toFixed(0)} exits/s; ${held}`;
    if (process.stdout.isTTY) process.stdout.write(`\r\x1b[Ksoak: ${line}`);
    else if (samples.length % 5 === 0) tell(line);
    if (done() >= total) break;
  }
  const whole = ended === 0;
  machine.memory.write(STOP, Uint8Array.of(1));
  if (process.stdout.isTTY) process.stdout.write('\r\x1b[K');
  const seconds = (performance.now() - begun) / 1000;
  await Promise.all(ends);

  const wrong = [];
  if (!interrupted) {
    if (!whole)
      wrong.push('a vCPU has ended by itself: a conversion was refused, or what it had counted was lost');
    for (const [index, vcpu] of vcpus.entries()) {
      const rounds = Number(vcpu.getRegs().rsi);
      if (words[index] !== rounds * perRound)
        wrong.push(
          `vCPU ${index} has exited ${rounds * perRound} times, and ${words[index]} of them were served`,
        );
      // The host sees the shared copy.
      const shared = converts ? Math.floor(rounds / 2) : rounds;
      const counted = new DataView(machine.memory.read(pageOf(vcpu), 8).buffer).getUint32(0, true);
      if (counted !== shared)
        wrong.push(`vCPU ${index} has counted ${counted} in its shared page, and not ${shared}`);
    }
    wrong.push(...flat(samples));
  }
  owner.close();
  machine.close();
  hv.close();
  const { conversions: made } = service.counters;
  tell(
    `${done()} exits (${(done() / seconds).toFixed(0)}/s), ${made.toPrivate + made.toShared} conversions, ${pauses} pauses in ${seconds.toFixed(1)} s`,
  );
  for (const line of wrong) tell(`FAILED: ${line}`);
  if (interrupted) tell('interrupted');
  return interrupted ? 130 : wrong.length > 0 ? 1 : 0;
}

/**
 * What has grown in the second half: before, code is compiled and caches fill. All samples of its end must be above all of
 * its beginning: whatever comes and goes is no leak.
 */
function flat(samples) {
  const half = samples.slice(Math.floor(samples.length / 2));
  if (half.length < 2) return ['too few samples were taken to tell what has grown: more exits are needed'];
  const [first, last] = [half.slice(0, half.length / 2), half.slice(half.length / 2)];
  return Object.entries(SLACK).flatMap(([name, slack]) => {
    const before = Math.max(...first.map((sample) => sample[name]));
    const after = Math.min(...last.map((sample) => sample[name]));
    tell(`${name}: ${half[0][name]} in the middle, ${half.at(-1)[name]} at the end`);
    return after > before + slack
      ? [`${name} has grown by ${after - before}, where ${slack} is allowed`]
      : [];
  });
}

if (!isMainThread) work(workerData);
else {
  try {
    process.exitCode = await soak(options());
  } catch (error) {
    process.stderr.write(`soak: ${error.message}\n`);
    process.exitCode = 2;
  }
}
