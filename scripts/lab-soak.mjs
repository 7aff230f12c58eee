// Shows whether an emulated machine of several processors is to be trusted: boots the lab again and again, each time with a
// stress of what QEMU has to get right, and then with suites.
//
//   node scripts/lab-soak.mjs [--boots N] [--seconds N] [--cpus N] [--kernel NAME] [SUITE...]
//
// The stress has threads that run vCPUs, whose guests count: no count may be lost or come twice. Another thread makes and
// closes VMs with and without local APICs, which switches jump labels of KVM's on and off while the others execute them,
// and one has V8 compile functions and drop them. A boot fails if the stress does, if the machine ends, and if the kernel
// complains. Suites are files of vitest, each in a boot of its own. The addon and dist/ must be built (npm run setup).
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { isMainThread, parentPort, Worker, workerData } from 'node:worker_threads';

const self = fileURLToPath(import.meta.url);
const root = fileURLToPath(new URL('..', import.meta.url));
const HELP = `node scripts/lab-soak.mjs [options] [SUITE...]: boots of the lab, each with a stress of its processors, then suites

  --boots N       boots with the stress (default 20)
  --seconds N     how long each one's threads work (default 5)
  --cpus N        processors of the machine (default 2)
  --kernel NAME   which kernel (default vanilla)
`;

// --- in the lab --------------------------------------------------------------------------------------------------

const fixture = () => import('../test/faults/fixture.mjs');

/** What a thread does until its flag is set; each gives how often it did it. */
const threads = {
  /** A guest that counts, and tells each count. */
  async count(stopped) {
    const { boot, code, DEADLINE_MS, Exit, exitName } = await fixture();
    const { vcpu } = boot(code.count);
    let exits = 0;
    while (!stopped()) {
      for (let i = 0; i < 100; i++) {
        const reason = vcpu.run(DEADLINE_MS);
        const told = reason === Exit.IO ? vcpu.io.data[0] : undefined;
        if (told !== (++exits & 0xff))
          throw new Error(`count ${exits} came as ${told} (${exitName(reason)})`);
      }
    }
    return exits;
  },

  /** VMs with and without local APICs in the kernel. */
  async make(stopped) {
    const { boot, code, DEADLINE_MS, Exit, openHypervisor } = await fixture();
    let made = 0;
    while (!stopped()) {
      const hv = openHypervisor();
      const bare = boot(code.out, hv);
      if (bare.vcpu.run(DEADLINE_MS) !== Exit.IO) throw new Error('no exit for its port');
      const vm = hv.createVm();
      vm.createIrqchip();
      for (const object of [vm.createVcpu(), vm, bare.vcpu, bare.vm, bare.ram, hv]) object.close();
      made++;
    }
    return made;
  },

  /** Functions that V8 compiles, optimizes on another thread, and throws away. */
  async compile(stopped) {
    let made = 0;
    while (!stopped()) {
      const add = new Function(
        'n',
        `let sum = ${made}; for (let i = 0; i < n; i++) sum += i ^ ${made}; return sum;`,
      );
      let expected = made;
      for (let i = 0; i < 1000; i++) expected += i ^ made;
      for (let i = 0; i < 100; i++) {
        const sum = add(1000);
        if (sum !== expected) throw new Error(`${sum} instead of ${expected}`);
      }
      made++;
    }
    return made;
  },
};

/** States of the flag that the threads share. */
const BEGUN = 1;
const ENDED = 2;

const WORK = ['count', 'count', 'make', 'compile'];

/** Prints what each thread did. */
async function stress(seconds) {
  const flag = new Int32Array(new SharedArrayBuffer(4));
  let starting = WORK.length;
  const done = WORK.map(
    (work) =>
      new Promise((resolve, reject) => {
        const worker = new Worker(self, { workerData: { work, flag } });
        worker.on('message', (message) => {
          if (message !== 'ready') resolve(message);
          else if (--starting === 0) begin();
        });
        worker.once('error', reject).once('exit', (code) => reject(new Error(`${work} ended with ${code}`)));
      }),
  );
  const set = (value) => {
    Atomics.store(flag, 0, value);
    Atomics.notify(flag, 0);
  };
  const begin = () => {
    set(BEGUN);
    setTimeout(set, seconds * 1000, ENDED);
  };
  const counts = await Promise.all(done);
  if (counts.includes(0)) throw new Error(`a thread has done nothing: ${counts}`);
  process.stdout.write(`${WORK.map((work, index) => `${work} ${counts[index]}`).join(', ')}\n`);
}

// --- on the host -------------------------------------------------------------------------------------------------

/** What a kernel that is not well writes. */
const COMPLAINTS =
  /BUG:|WARNING:|Oops|general protection|soft lockup|rcu.*stall|Call Trace|segfault|unable to handle/;

async function soak(boots, suites, { cpus, kernel, seconds }) {
  const { LabError, runInLab } = await import('../dist/lab/index.js');
  const share = mkdtempSync(join(tmpdir(), 'vmexit-soak-'));
  const log = join(share, 'dmesg');
  const abort = new AbortController();
  for (const signal of ['SIGINT', 'SIGTERM']) process.once(signal, () => abort.abort());
  /** One boot; undefined if all is well, else what is not. */
  async function boot(name, args) {
    let output = '';
    const keep = (chunk) => {
      output = (output + chunk).slice(-4000);
    };
    let line = `${name}: `;
    let bad;
    try {
      const { status, bootMs, elapsedMs } = await runInLab({
        command: '/bin/sh',
        args: ['-c', '"$@"; status=$?; dmesg >"$LOG"; exit $status', 'sh', process.execPath, ...args],
        env: { LOG: log },
        cwd: root,
        ...{ share, timeoutMs: 30 * 60_000, signal: abort.signal },
        ...(kernel === undefined ? {} : { kernel }),
        cpus,
        onStart: (text) => {
          if (booted++ === 0) process.stdout.write(`${text}\n`);
        },
        onStdout: keep,
        onStderr: keep,
      });
      const complaint = readFileSync(log, 'utf8')
        .split('\n')
        .find((text) => COMPLAINTS.test(text));
      bad = status === 0 ? complaint : `ended with ${status}\n${output}`;
      line += `${(bootMs / 1000).toFixed(1)} s to boot, ${(elapsedMs / 1000).toFixed(1)} s in all`;
    } catch (error) {
      if (!(error instanceof LabError) || abort.signal.aborted) throw error;
      bad = error.message;
    }
    const told =
      bad === undefined
        ? output
            .trim()
            .split('\n')
            .filter((text) => /\S/.test(text))
            .slice(-WANTED)
        : [];
    process.stdout.write(`${line}: ${bad === undefined ? `well; ${told.join('; ')}` : `BAD: ${bad}`}\n`);
    return bad === undefined;
  }
  const WANTED = 4;
  let booted = 0;
  let failed = 0;
  try {
    for (let i = 1; i <= boots; i++)
      if (!(await boot(`boot ${i} of ${boots}`, [self, '--stress', String(seconds)]))) failed++;
    for (const suite of suites) {
      const vitest = join(root, 'node_modules', 'vitest', 'vitest.mjs');
      if (!(await boot(suite, [vitest, 'run', suite]))) failed++;
    }
  } finally {
    rmSync(share, { recursive: true, force: true });
  }
  process.stdout.write(`${boots} boots and ${suites.length} suites, ${failed} failed\n`);
  return failed === 0 ? 0 : 1;
}

function number(name, text) {
  const value = Number(text);
  if (Number.isInteger(value) && value >= 0) return value;
  process.stderr.write(`lab-soak: --${name} ${text}: it must be a number\n`);
  process.exit(2);
}

if (isMainThread) {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      help: { type: 'boolean', short: 'h' },
      boots: { type: 'string', default: '20' },
      seconds: { type: 'string', default: '5' },
      cpus: { type: 'string', default: '2' },
      kernel: { type: 'string' },
      stress: { type: 'string' }, // what runs in the lab
    },
  });
  if (values.help) process.stdout.write(HELP);
  else if (values.stress !== undefined) await stress(number('stress', values.stress));
  else {
    process.exitCode = await soak(number('boots', values.boots), positionals, {
      seconds: number('seconds', values.seconds),
      kernel: values.kernel,
      cpus: number('cpus', values.cpus),
    });
  }
} else {
  const { work, flag } = workerData;
  await fixture();
  parentPort.postMessage('ready');
  Atomics.wait(flag, 0, 0);
  parentPort.postMessage(await threads[work](() => Atomics.load(flag, 0) === ENDED));
}
