// What is asked of a vCPU while it runs, thousands of times, on either backend: scenarios of vcpu-races.test.ts.
import { execFileSync, spawnSync } from 'node:child_process';
import { mkdtempSync, openSync, read, readSync, rmSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { isMainThread, parentPort, workerData } from 'node:worker_threads';
import { boot, code, DEADLINE_MS, Exit, exitName, inLab, main, openHypervisor } from './fixture.mjs';
import { Thread } from './thread.mjs';

/** The lab's machine is slow. */
const KICKS = inLab ? 1000 : 5000;
const turn = () => new Promise(setImmediate);
const codeOf = (call) => {
  try {
    return call();
  } catch (error) {
    return error.code ?? String(error);
  }
};
const readOne = (fd) => readSync(fd, Buffer.alloc(1));

/** Adds one, and wakes who waits for it. */
function count(words) {
  Atomics.add(words, 0, 1);
  Atomics.notify(words, 0);
}
/** Waits until the count is above: false when it is not in time. */
function above(words, value) {
  while (Atomics.load(words, 0) <= value)
    if (Atomics.wait(words, 0, value, DEADLINE_MS) === 'timed-out') return false;
  return true;
}

const workers = {
  /** Runs until something else than a kick ends it. */
  interrupted({ vcpu: token, words }) {
    const vcpu = openHypervisor().openVcpu(token);
    parentPort.postMessage('open');
    let exit = vcpu.run();
    for (; exit === Exit.INTERRUPTED; exit = vcpu.run()) count(words);
    parentPort.postMessage(exitName(exit));
    vcpu.close();
  },

  /** After each run it waits in a system call: the signal that has ended the run must not end that. */
  async reading({ vcpu: token, words, fifo }) {
    const vcpu = openHypervisor().openVcpu(token);
    const fd = openSync(fifo, 'r+');
    const told = new Set();
    parentPort.postMessage('open');
    for (let exit = vcpu.run(); exit !== Exit.STOPPED; exit = vcpu.run()) {
      told.add(`${exitName(exit)} ${codeOf(() => readOne(fd))}`);
      count(words);
    }
    parentPort.postMessage([...told]);
    vcpu.close();
  },

  /** Has nothing to do with any vCPU. */
  other({ fifo, words }) {
    const fd = openSync(fifo, 'r+');
    const told = new Set();
    parentPort.postMessage('open');
    while (Atomics.load(words, 1) === 0) {
      told.add(`read ${codeOf(() => readOne(fd))}`);
      told.add(`wait ${Atomics.wait(words, 2, 0, 1)}`);
      count(words);
    }
    parentPort.postMessage([...told]);
  },
};

const shared = () => new Int32Array(new SharedArrayBuffer(16));

const scenarios = {
  /** Each kick is asked for as soon as the one before has ended its run, so it comes at any point of the next. */
  async kicks() {
    const { hv, vcpu } = boot(code.spin);
    const words = shared();
    const thread = new Thread(import.meta.url, 'interrupted', { vcpu: vcpu.share(), words });
    await thread.next();
    let kicks = 0;
    do hv.kick(vcpu.kickId);
    while (above(words, kicks) && ++kicks < KICKS);
    hv.stop(vcpu.kickId);
    const end = await thread.next();
    await thread.ended;
    return { missing: KICKS - kicks, tooMany: Atomics.load(words, 0) - kicks, end };
  },

  /** Of a guest that never exits: what is lost would never be acknowledged. */
  async pauses() {
    const { vcpu } = boot(code.spin);
    const end = vcpu.start([]);
    let flags = 0;
    for (let i = 0; i < KICKS; i++) {
      if (i % 4 === 0) await turn();
      await vcpu.pause();
      if (vcpu.immediateExit) flags++;
      vcpu.resume();
    }
    vcpu.stop();
    return { flags, end: exitName(await end) };
  },

  async signals() {
    const folder = mkdtempSync(join(tmpdir(), 'vmexit-signals-'));
    const fifos = ['reading', 'other', 'pool'].map((name) => join(folder, name));
    execFileSync('mkfifo', fifos);
    const [toReading, toOther, toPool] = fifos.map((fifo) => openSync(fifo, 'r+'));
    const hv = openHypervisor();
    // The simulator sends no signals.
    const rounds = hv.backend === 'sim' ? 30 : KICKS / 5;
    const started = [boot(code.spin, hv), boot(code.out, hv)].map(({ vcpu }) => vcpu);
    const ears = { handle: (_, exit) => exit === Exit.IO };
    const ends = started.map((vcpu) => vcpu.start([ears]));
    const { vcpu } = boot(code.spin, hv);
    const words = shared();
    const reading = new Thread(import.meta.url, 'reading', { vcpu: vcpu.share(), words, fifo: fifos[0] });
    const otherWords = shared();
    const other = new Thread(import.meta.url, 'other', { words: otherWords, fifo: fifos[1] });
    await Promise.all([reading.next(), other.next()]);

    // The pool's threads wait in a read as well.
    const pool = new Set();
    let reads = 0;
    const readInPool = () =>
      new Promise((done) => {
        read(toPool, Buffer.alloc(1), 0, 1, null, (error, size) => {
          pool.add(error?.code ?? size);
          reads++;
          done();
        });
      });
    const children = new Set();
    for (let i = 0; i < rounds; i++) {
      const inPool = i % 10 === 0 ? readInPool() : undefined;
      for (const each of started) {
        each.kick();
        if (i % 3 === 0) await each.pause().then(() => each.resume());
      }
      hv.kick(vcpu.kickId);
      hv.pause(vcpu.kickId);
      hv.resume(vcpu.kickId);
      writeSync(toReading, 'x');
      if (!above(words, i)) throw new Error(`the worker stands still after ${i} kicks`);
      writeSync(toOther, 'x');
      if (inPool) {
        writeSync(toPool, 'x');
        await inPool;
      }
      if (i % (rounds / 10) === 0) {
        const kicks = setInterval(() => started[0].kick(), 1);
        const { status, error } = spawnSync('sleep', ['0.01']);
        clearInterval(kicks);
        children.add(error?.code ?? status);
      }
    }
    hv.stop(vcpu.kickId);
    writeSync(toReading, 'x');
    Atomics.store(otherWords, 1, 1);
    writeSync(toOther, 'x');
    const told = [await reading.next(), await other.next()];
    for (const each of started) each.stop();
    const stopped = (await Promise.all(ends)).map(exitName);
    rmSync(folder, { recursive: true });
    return { told, pool: [...pool], enough: reads === rounds / 10, children: [...children], stopped };
  },
};

if (isMainThread) await main(scenarios);
else await workers[workerData.does](workerData);
