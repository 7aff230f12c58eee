// Several threads: scenarios of threads.test.ts. The workers are this file too.
import { execFileSync } from 'node:child_process';
import {
  closeSync,
  constants,
  copyFileSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readSync,
  rmSync,
  writeSync,
} from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { isMainThread, parentPort, Worker, workerData } from 'node:worker_threads';
import {
  boot,
  code,
  codeOf,
  collect,
  DEADLINE_MS,
  exitName,
  inLab,
  main,
  native,
  openHypervisor,
  requests,
  tick,
} from './fixture.mjs';

const fds = () => readdirSync('/proc/self/fd').length;

// --- what a worker does ------------------------------------------------------------------------------------------

/** `flags`: shared words by which the threads tell each other how far they are. */
const workers = {
  runToHalt() {
    const { hv, vm, ram, vcpu } = boot(code.halt);
    const exit = exitName(vcpu.run(DEADLINE_MS));
    for (const object of [vcpu, ram, vm, hv]) object.close();
    parentPort.postMessage(exit);
  },

  /** Runs without a deadline: only a kick ends it. */
  spin({ flags }) {
    const { vcpu } = boot(code.spin);
    parentPort.postMessage(vcpu.kickId);
    Atomics.store(flags, 0, 1);
    const exit = exitName(vcpu.run());
    parentPort.postMessage(exit);
  },

  /** Runs for ever, whatever ends a run. */
  spinAlways({ flags }) {
    const { vcpu } = boot(code.spin);
    parentPort.postMessage(vcpu.kickId);
    Atomics.store(flags, 0, 1);
    for (;;) vcpu.run();
  },

  /** Waits to be kicked, and only then runs. */
  kickedBeforeRun({ flags }) {
    const { vcpu } = boot(code.spin);
    parentPort.postMessage(vcpu.kickId);
    Atomics.wait(flags, 0, 0);
    const first = exitName(vcpu.run()); // for ever, if the kick is lost
    parentPort.postMessage([first, exitName(vcpu.run(20))]);
  },

  /** Many short runs, and between them a system call that a stray signal would interrupt: read(2) of a pipe. */
  shortRuns({ flags, fifo, rounds }) {
    const { vcpu } = boot(code.out);
    const pipe = openSync(fifo, 'r');
    const exits = {};
    let interrupted = 0;
    parentPort.postMessage(vcpu.kickId);
    for (let i = 0; i < rounds; i++) {
      const exit = exitName(vcpu.run(i % 3 === 0 ? DEADLINE_MS : undefined));
      exits[exit] = (exits[exit] ?? 0) + 1;
      if (i % 32 !== 0) continue;
      Atomics.store(flags, 0, i + 1);
      try {
        readSync(pipe, new Uint8Array(1));
      } catch (error) {
        if (error.code !== 'EINTR') throw error;
        interrupted++;
        readSync(pipe, new Uint8Array(1));
      }
    }
    closeSync(pipe);
    Atomics.store(flags, 0, -1);
    parentPort.postMessage({ exits, interrupted });
  },

  /** Deadlines so short that they and the kicks of the other thread come together. */
  deadlinesAndKicks({ flags, rounds }) {
    const { vcpu } = boot(code.spin);
    const exits = {};
    parentPort.postMessage(vcpu.kickId);
    for (let i = 0; i < rounds; i++) {
      const exit = exitName(vcpu.run(0.02 + (i % 20) / 100));
      exits[exit] = (exits[exit] ?? 0) + 1;
    }
    Atomics.store(flags, 0, -1);
    // The other thread has stopped: at most one kick is left over.
    Atomics.wait(flags, 1, 0);
    vcpu.run(1);
    parentPort.postMessage({ exits, last: exitName(vcpu.run(1)) });
  },

  /** A vCPU that nobody runs. */
  idle() {
    const all = boot(code.halt);
    all.vcpu.run(DEADLINE_MS);
    parentPort.postMessage(all.vcpu.kickId);
    setInterval(() => all, 1000);
  },

  shared({ token, flags }) {
    const hv = openHypervisor();
    const ram = hv.openMemory(token);
    const seen = ram.bytes[4096];
    ram.bytes[8192] = 77;
    parentPort.postMessage(seen);
    Atomics.wait(flags, 0, 0); // until the other thread has closed its own
    parentPort.postMessage([ram.bytes[4096], ram.bytes[8192], ram.bytes.length]);
  },

  /** Leaves the bytes of its memory, which it does not close, to the other thread. */
  transferring() {
    const { bytes } = openHypervisor().createVm().allocate(65_536);
    const moved = bytes.buffer.transfer();
    parentPort.postMessage(moved, [moved]);
  },

  stale({ token }) {
    const hv = openHypervisor();
    parentPort.postMessage(codeOf(() => hv.openMemory(token)));
  },
};

// --- what the scenarios do ---------------------------------------------------------------------------------------

const self = fileURLToPath(import.meta.url);

/** A worker, and its messages one by one. */
function start(role, data = {}) {
  const flags = new Int32Array(new SharedArrayBuffer(8));
  const worker = new Worker(self, { workerData: { role, flags, ...data } });
  const messages = [];
  const waiting = [];
  let failure;
  worker.on('message', (message) => {
    if (waiting.length > 0) waiting.shift().resolve(message);
    else messages.push(message);
  });
  worker.on('error', (error) => {
    failure = error;
    for (const { reject } of waiting) reject(error);
  });
  const next = () =>
    new Promise((resolve, reject) => {
      if (messages.length > 0) resolve(messages.shift());
      else if (failure !== undefined) reject(failure);
      else waiting.push({ resolve, reject });
    });
  const ended = new Promise((resolve) => worker.once('exit', resolve));
  return { worker, flags, next, ended };
}

/** Waits until the word is no longer 0, with the event loop alive. */
async function until(flags, index) {
  while (Atomics.load(flags, index) === 0) await tick();
}

const scenarios = {
  async severalWorkers() {
    const exits = [];
    for (let round = 0; round < 3; round++) {
      const all = Array.from({ length: 4 }, () => start('runToHalt'));
      exits.push(...(await Promise.all(all.map(({ next }) => next()))));
      await Promise.all(all.map(({ ended }) => ended));
    }
    const { vcpu } = boot(code.halt);
    exits.push(exitName(vcpu.run(DEADLINE_MS)));
    return exits;
  },

  /** Another build of the addon in the same process: the same code under another name. */
  async anotherBuild() {
    const folder = mkdtempSync(join(tmpdir(), 'vmexit-'));
    const copy = join(folder, 'other.node');
    copyFileSync(fileURLToPath(new URL('../../build/Release/vmexit.node', import.meta.url)), copy);
    const other = createRequire(import.meta.url)(copy);
    rmSync(folder, { recursive: true });
    const { vcpu } = boot(code.spin); // here the first has its signal
    const foreign = other.open('/dev/kvm');
    const codes = ['fd', 'buffer', 'close', 'runner'].map((name) => {
      try {
        native[name](foreign);
        return 'taken';
      } catch (error) {
        return error.code;
      }
    });
    const vm = other.create(foreign, requests.KVM_CREATE_VM, 0);
    const ram = other.allocate(0x1_0000);
    new Uint8Array(other.buffer(ram)).set(code.spin, 0xfff0);
    const region = new DataView(new ArrayBuffer(32));
    region.setBigUint64(8, 0xffff_0000n, true); // where the reset vector is
    region.setBigUint64(16, 0x1_0000n, true);
    other.ioctl(vm, requests.KVM_SET_USER_MEMORY_REGION, new Uint8Array(region.buffer), [
      { memory: ram, offset: 0 },
    ]);
    const run = other.runner(other.create(vm, requests.KVM_CREATE_VCPU, 0));
    return { codes, deadlines: [exitName(vcpu.run(20)), run(20), exitName(vcpu.run(20)), run(20)] };
  },

  async kickEndsSpin() {
    const { next, flags, ended } = start('spin');
    const id = await next();
    await until(flags, 0);
    const found = native.kick(id);
    const exit = await next();
    await ended;
    return { found, exit, afterwards: native.kick(id) };
  },

  async kickIsNotLost() {
    const { next, flags, ended } = start('kickedBeforeRun');
    const hv = openHypervisor();
    const found = hv.kick(await next());
    Atomics.store(flags, 0, 1);
    Atomics.notify(flags, 0);
    const exits = await next();
    await ended;
    return { found, exits };
  },

  /** In one thread, and two kicks are one. */
  async kickOneself() {
    const { vcpu } = boot(code.spin);
    vcpu.kick();
    vcpu.kick();
    return [exitName(vcpu.run()), exitName(vcpu.run(20))];
  },

  /** A kick does not replace an exit: it waits for a run that it can interrupt. */
  async kickWaitsForARun() {
    const { vcpu } = boot(code.out);
    const first = exitName(vcpu.run(DEADLINE_MS));
    vcpu.kick();
    return [first, exitName(vcpu.run(DEADLINE_MS)), exitName(vcpu.run(DEADLINE_MS))];
  },

  /** A read-modify-write of memory-mapped I/O exits twice, and immediate_exit does not come between. */
  async kickBetweenTwoExits() {
    const { vcpu } = boot(code.increment);
    const first = exitName(vcpu.run(DEADLINE_MS));
    vcpu.mmio.value = 1;
    vcpu.kick();
    return [first, ...[1, 2, 3].map(() => exitName(vcpu.run(DEADLINE_MS)))];
  },

  async storm() {
    const folder = mkdtempSync(join(tmpdir(), 'vmexit-'));
    const fifo = join(folder, 'fifo');
    execFileSync('mkfifo', [fifo]);
    const pipe = openSync(fifo, constants.O_RDWR | constants.O_NONBLOCK);
    const rounds = inLab ? 1600 : 20_000;
    const { next, flags, ended } = start('shortRuns', { fifo, rounds });
    const id = await next();
    let kicks = 0;
    let answered = 0;
    for (let at = 0; at >= 0; at = Atomics.load(flags, 0)) {
      for (let i = 0; i < 5; i++, kicks++) native.kick(id);
      Atomics.wait(flags, 1, 0, 0.02); // lets the other thread have the processor, where there is but one
      if (at > answered) {
        writeSync(pipe, new Uint8Array(1));
        answered = at;
      }
    }
    const result = await next();
    await ended;
    closeSync(pipe);
    rmSync(folder, { recursive: true });
    return { ...result, kicks, rounds };
  },

  async deadlinesAndKicks() {
    const rounds = inLab ? 500 : 5000;
    const { next, flags, ended } = start('deadlinesAndKicks', { rounds });
    const id = await next();
    let kicks = 0;
    while (Atomics.load(flags, 0) === 0) {
      native.kick(id);
      const pause = process.hrtime.bigint() + BigInt(20_000 + (kicks++ % 50) * 4000);
      while (process.hrtime.bigint() < pause);
      if (kicks % 1000 === 0) await tick();
    }
    Atomics.store(flags, 1, 1);
    Atomics.notify(flags, 1);
    const result = await next();
    await ended;
    return { ...result, kicks, rounds };
  },

  /** Deadlines that pass, and that do not. */
  async deadlines() {
    const spinning = boot(code.spin).vcpu;
    const exiting = boot(code.out).vcpu;
    const took = (timeoutMs) => {
      const start = process.hrtime.bigint();
      const exit = exitName(spinning.run(timeoutMs));
      return { timeoutMs, exit, ms: Number(process.hrtime.bigint() - start) / 1e6 };
    };
    const passed = [5e-324, 1e-7, 0.001, 1, 50, 200].map(took);
    // One that did not pass leaves nothing behind that could end a later run.
    const exits = new Set();
    for (let i = 0; i < 5; i++) {
      exiting.run(10); // on a busy machine it may pass all the same
      const later = process.hrtime.bigint() + 20_000_000n;
      while (process.hrtime.bigint() < later) exits.add(exitName(exiting.run()));
    }
    return { passed, exits: [...exits], longest: exitName(exiting.run(2 ** 31 - 1)) };
  },

  async terminateIdle() {
    const ended = [];
    for (let i = 0; i < 3; i++) {
      const { worker, next } = start('idle');
      const id = await next();
      const alive = native.kick(id);
      await worker.terminate();
      await collect();
      ended.push({ alive, afterwards: native.kick(id), fds: fds() });
    }
    const { vcpu } = boot(code.halt);
    return { ended, exit: exitName(vcpu.run(DEADLINE_MS)) };
  },

  /** terminate() alone cannot end a KVM_RUN; with a kick it does. */
  async terminateRunning() {
    const { worker, next, flags } = start('spinAlways');
    const id = await next();
    await until(flags, 0);
    const terminated = worker.terminate();
    const kicked = native.kick(id);
    return { code: await terminated, kicked, afterwards: native.kick(id) };
  },

  async sharedMemory() {
    const hv = openHypervisor();
    const vm = hv.createVm();
    const ram = vm.allocate(65_536);
    ram.bytes[4096] = 55;
    const { next, flags, ended } = start('shared', { token: ram.share() });
    const seen = await next();
    const written = ram.bytes[8192];
    ram.close();
    Atomics.store(flags, 0, 1);
    Atomics.notify(flags, 0);
    const kept = await next();
    await ended;
    return { seen, written, kept };
  },

  /** ArrayBuffer.prototype.transfer() makes a buffer that Node lets go to other threads. */
  async transferred() {
    if (ArrayBuffer.prototype.transfer === undefined) {
      return 'there is no ArrayBuffer.prototype.transfer() (since Node 22)';
    }
    const { next, ended } = start('transferring');
    let bytes = new Uint8Array(await next());
    await ended;
    for (let i = 0; i < bytes.length; i += 4096) bytes[i] = 9;
    const usable = bytes.every((byte, i) => byte === (i % 4096 === 0 ? 9 : 0));
    bytes = undefined;
    await collect();
    return { usable };
  },

  /** The token of memory that is closed: its number is free, then another file's, then another memory's. */
  async staleToken() {
    const hv = openHypervisor();
    const vm = hv.createVm();
    const ram = vm.allocate(4096);
    const token = ram.share();
    ram.close();
    const tried = async () => {
      const { next, ended } = start('stale', { token });
      const code = await next();
      await ended;
      return code;
    };
    const free = codeOf(() => hv.openMemory(token));
    const file = openSync('/dev/null', 'r');
    const another = [file === token.fd, await tried()];
    closeSync(file);
    const memory = vm.allocate(4096);
    return { free, another, memory: [memory.share().fd === token.fd, await tried()] };
  },
};

if (isMainThread) await main(scenarios);
else await workers[workerData.role](workerData);
