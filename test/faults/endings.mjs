// How processes and threads end while vCPUs run, and what they start meanwhile: scenarios of endings.test.ts. The workers are
// this file too.
import { exec, fork, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { isMainThread, parentPort, Worker, workerData } from 'node:worker_threads';
import {
  boot,
  close,
  code,
  codeOf,
  collect,
  DEADLINE_MS,
  Exit,
  enterRealMode,
  exitName,
  filesOpen,
  main,
  openHypervisor,
  tick,
} from './fixture.mjs';

const self = fileURLToPath(import.meta.url);
const forever = () => new Promise(() => {});
const endOf = async (promise) => {
  try {
    return exitName(await promise);
  } catch (error) {
    return error.code ?? error.message;
  }
};
/** Descriptors of KVM's and the package's that are open here; none on the simulator. */
const ours = () => filesOpen(/kvm|vmexit/);
/** Another vCPU of the VM, about to run the same code. */
const sibling = (vm, id) => {
  const vcpu = vm.createVcpu(id);
  enterRealMode(vcpu);
  vcpu.setRegs({ rip: 0x1000, rflags: 2 });
  return vcpu;
};
/** A worker that has said that it is there. What it throws may come before anybody has heard that. */
async function worker(does, data, hears) {
  const thread = new Worker(self, { workerData: { does, ...data } });
  if (hears !== undefined) thread.on('error', hears);
  const ended = new Promise((done) => thread.once('exit', done));
  const [said] = await once(thread, 'message');
  return { thread, said, ended };
}

const workers = {
  spin({ vcpu: token }) {
    const vcpu = openHypervisor().openVcpu(token);
    parentPort.postMessage('open');
    parentPort.postMessage(exitName(vcpu.run()));
    vcpu.close();
  },
  /** The exception is in the middle of its loop. */
  throws({ vcpu: token }) {
    const vcpu = openHypervisor().openVcpu(token);
    parentPort.postMessage('open');
    for (let exits = 0; ; exits++) {
      vcpu.run(DEADLINE_MS);
      if (exits === 10) throw new Error("the worker's own");
    }
  },
  /** Has a VM of its own, and tells every 50 exits; without exits it never comes back. */
  owns({ bytes }) {
    const { vcpu } = boot(bytes);
    parentPort.postMessage(vcpu.kickId);
    for (let exits = 1; vcpu.run() === Exit.IO; exits++) if (exits % 50 === 0) parentPort.postMessage(exits);
  },
};

/** vCPUs on threads of their own and one in a worker; none of them comes back. An emulated processor is slow enough with two. */
async function busy(ids = [1]) {
  const { hv, vm, ram, vcpu: elsewhere } = boot(code.spin);
  const here = ids.map((id) => sibling(vm, id));
  const ends = here.map((vcpu) => endOf(vcpu.start([])));
  return { hv, vm, ram, here, elsewhere, ends, spinning: await worker('spin', { vcpu: elsewhere.share() }) };
}

const scenarios = {
  /** The VM first, then its vCPUs; the one in a worker is that worker's too. */
  async closes() {
    const before = ours();
    const { hv, vm, ram, here, elsewhere, ends, spinning } = await busy([1, 2, 3]);
    const { kickId } = elsewhere;
    close(vm, ram, hv);
    const running = here.map((vcpu) => codeOf(() => vcpu.getRegs()));
    close(...here, elsewhere);
    const closed = await Promise.all(ends);
    const [[end]] = await Promise.all([
      once(spinning.thread, 'message'),
      openHypervisor().stop(kickId),
      spinning.ended,
    ]);
    await collect();
    return { running, closed, end, leaked: ours() - before };
  },

  /** Whoever serves an exit closes everything under it. */
  async closesInside() {
    const before = ours();
    const ends = [];
    for (const how of [(done) => done, (done) => Promise.resolve(done), (done) => tick().then(() => done)]) {
      const { hv, vm, ram, vcpu } = boot(code.out);
      const handle = () => {
        close(vcpu, vm, ram, hv);
        return how(true);
      };
      ends.push(await endOf(vcpu.start([{ handle }])));
    }
    const { hv, vm, ram, vcpu } = boot(code.out);
    const loop = async () => {
      for await (const _ of vcpu) close(vcpu, vm, ram, hv);
    };
    ends.push(await endOf(loop()));
    await collect();
    return { ends, leaked: ours() - before };
  },

  // What follows ends the process, unless the test does.

  async handlerThrows() {
    await busy();
    const handle = () => {
      throw new Error('of a handler');
    };
    boot(code.out).vcpu.start([{ handle }]);
    await forever();
  },
  async handlerRejects() {
    await busy();
    const handle = () => tick().then(() => Promise.reject(new Error('of a handler')));
    boot(code.out).vcpu.start([{ handle }]);
    await forever();
  },
  async loopThrows() {
    await busy();
    const loop = async () => {
      for await (const _ of boot(code.out).vcpu) throw new Error('of a loop');
    };
    loop();
    await forever();
  },
  async timerThrows() {
    await busy();
    setTimeout(() => {
      throw new Error('of a timer');
    });
    await forever();
  },
  async workerThrows() {
    await busy();
    const { vcpu } = boot(code.out);
    await worker('throws', { vcpu: vcpu.share() });
    await forever();
  },
  async waits() {
    await busy();
    process.stdout.write('running\n');
    await forever();
  },

  /** The same, heard: the vCPU is as the exit left it, and the others run on. */
  async isHeard() {
    const { ends, here, elsewhere, spinning, ...rest } = await busy();
    const { vcpu } = boot(code.out);
    const heard = [];
    process.once('uncaughtException', ({ message }) => heard.push(message));
    const handle = () => {
      throw new Error('of a handler');
    };
    vcpu.start([{ handle }]);
    while (heard.length < 1) await tick();
    vcpu.complete(() => {});
    const hears = ({ message }) => heard.push(message);
    const { ended } = await worker('throws', { vcpu: vcpu.share() }, hears);
    await ended;
    // In the simulator the access belongs to the processor of a thread until that is known to be gone.
    while (codeOf(() => vcpu.run(DEADLINE_MS)) === 'EBUSY') await tick();
    const again = [exitName(vcpu.outcome), exitName(await vcpu.runAsync(DEADLINE_MS))];
    const running = here.map((one) => codeOf(() => one.getRegs()));
    for (const one of [...here, elsewhere]) one.stop();
    await spinning.ended;
    close(...here, elsewhere, ...Object.values(rest));
    return { heard, again, running, ends: await Promise.all(ends) };
  },

  /** A listener of SIGTERM has its turn while vCPUs run, and shuts down in order. */
  async listens() {
    const { ends, here, elsewhere, spinning } = await busy();
    const asked = once(process, 'SIGTERM');
    process.stdout.write('running\n');
    await asked;
    for (const one of [...here, elsewhere]) one.stop();
    await spinning.ended;
    process.stdout.write(`${await Promise.all(ends)}\n`);
    process.exit();
  },

  /** Children of every kind, and one that has a VM of its own. */
  async children() {
    const beside = await busy();
    const { vcpu } = boot(code.out);
    let exits = 0;
    const started = endOf(vcpu.start([{ handle: () => ++exits > 0 }]));
    const listing = 'ls -l /proc/self/fd';
    const inherited = [spawnSync('sh', ['-c', listing], { encoding: 'utf8' }).stdout];
    const goesOn = [];
    const progress = async () => {
      const seen = exits;
      for (let i = 0; i < 1000 && exits === seen; i++) await new Promise((done) => setTimeout(done, 5));
      goesOn.push(exits > seen);
    };
    await progress();
    inherited.push((await promisify(exec)(listing)).stdout);
    await progress();
    const child = fork(self, ['child'], { stdio: ['ignore', 'ignore', 'inherit', 'ipc'] });
    const ended = once(child, 'exit');
    const [own] = await once(child, 'message');
    const [status] = await ended;
    await progress();
    vcpu.stop();
    const running = beside.here.map((one) => codeOf(() => one.getRegs()));
    for (const one of [...beside.here, beside.elsewhere]) one.stop();
    await beside.spinning.ended;
    const ends = await Promise.all([started, ...beside.ends]);
    const ofKvm = inherited.join('').match(/kvm|vmexit/g);
    return { ofKvm, goesOn, own, status, running, ends };
  },
  /** For a process with test/support/forks.c: children that exec nothing, while a vCPU runs on a thread and one in a worker. */
  async forks() {
    const beside = await busy();
    const served = [1, 2].map(() => codeOf(() => process.kill(0x7ffffffe, 0)));
    const running = beside.here.map((one) => codeOf(() => one.getRegs()));
    for (const one of [...beside.here, beside.elsewhere]) one.stop();
    await beside.spinning.ended;
    return { served, running, ends: await Promise.all(beside.ends) };
  },
  async child() {
    const { vcpu } = boot(code.out);
    process.send({ exit: exitName(await vcpu.runAsync(DEADLINE_MS)), onKvm: ours() > 0 });
    process.disconnect();
  },

  /** Each worker has an environment, and so an addon, of its own: one is terminated in KVM_RUN, the other goes on. */
  async environments() {
    const before = ours();
    const rounds = [];
    for (let round = 0; round < 2; round++) {
      const goes = await worker('owns', { bytes: code.out });
      const spins = await worker('owns', { bytes: code.spin });
      await once(goes.thread, 'message');
      await spins.thread.terminate();
      await once(goes.thread, 'message');
      await once(goes.thread, 'message');
      rounds.push(openHypervisor().stop(goes.said));
      await goes.ended;
    }
    await collect();
    return { rounds, leaked: ours() - before };
  },
};

if (isMainThread) await main(scenarios);
else workers[workerData.does](workerData);
