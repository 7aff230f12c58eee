// vCPUs on threads of their own, and in several threads: scenarios of vcpu-threads.test.ts. The workers are this file too.
import { spawnSync } from 'node:child_process';
import { isMainThread, parentPort, workerData } from 'node:worker_threads';
import {
  Bus,
  boot,
  close,
  code,
  codeOf,
  collect,
  DEADLINE_MS,
  Exit,
  exitName,
  flatImage,
  guest,
  inLab,
  Machine,
  main,
  openHypervisor,
  RunLoops,
  tick,
} from './fixture.mjs';
import { Thread } from './thread.mjs';

/** The lab's machine is slow. */
const ROUNDS = inLab ? 100 : 300;
const pass = (ms) => new Promise((done) => setTimeout(done, ms));
const limit = (aborted = false) => {
  const aborter = new AbortController();
  if (aborted) aborter.abort();
  return { signal: aborter.signal, abort: () => aborter.abort() };
};
const rejection = async (promise) => {
  try {
    return exitName(await promise);
  } catch (error) {
    return error.code ?? String(error);
  }
};

// --- what a worker does ------------------------------------------------------------------------------------------

const workers = {
  /** Runs until stop(), and tells how many exits there were. */
  count({ vcpu: token }) {
    const vcpu = openHypervisor().openVcpu(token);
    parentPort.postMessage('open');
    let exits = 0;
    for (let exit; ; exits++) {
      exit = vcpu.run();
      if (exit !== Exit.IO) {
        parentPort.postMessage([exits, exitName(exit)]);
        break;
      }
    }
    vcpu.close();
  },

  /** Runs without ever coming back. */
  spin({ vcpu: token }) {
    const vcpu = openHypervisor().openVcpu(token);
    parentPort.postMessage('open');
    vcpu.run();
  },

  /** What of a VM belongs to the thread that has made it. */
  owned({ vm: token }) {
    const hv = openHypervisor();
    const vm = hv.openVm(token);
    parentPort.postMessage([
      codeOf(() => vm.setUserMemoryRegion({ slot: 0 })),
      codeOf(() => vm.createVcpu(7)),
      codeOf(() => vm.memoryMap),
      codeOf(() => vm.setup),
      codeOf(() => vm.share()),
      codeOf(() => vm.checkExtension(3)),
    ]);
    close(vm, hv);
  },
};

// --- scenarios ---------------------------------------------------------------------------------------------------

const scenarios = {
  async ends() {
    const { hv, vm, ram, vcpu } = boot(code.halt);
    const ends = [exitName(await vcpu.runAsync(DEADLINE_MS))];
    vcpu.setRegs({ rip: 0x1000, rflags: 2 });
    ends.push(exitName(await vcpu.start([], { timeoutMs: DEADLINE_MS })));
    ram.write(0x1000, Uint8Array.from(code.spin));
    vcpu.setRegs({ rip: 0x1000, rflags: 2 });
    ends.push(exitName(await vcpu.runAsync(20)), exitName(await vcpu.start([], { timeoutMs: 20 })));
    const aborter = new AbortController();
    setTimeout(() => aborter.abort(), 20);
    ends.push(exitName(await vcpu.start([], { signal: aborter.signal })));
    ends.push(exitName(await vcpu.start([], { signal: aborter.signal })));
    const started = vcpu.start([]);
    vcpu.stop();
    ends.push(exitName(await started));
    const closed = rejection(vcpu.start([]));
    await tick();
    close(vcpu, ram, vm, hv);
    return [...ends, await closed];
  },

  /** A limit that was met while an exit was served is that run's alone. */
  async leftovers() {
    const { hv, vm, ram, vcpu } = boot(code.out);
    const during = (act, then) => ({
      async handle() {
        await act();
        return then();
      },
    });
    const fails = () => {
      throw Object.assign(new Error('no'), { code: 'ERR_OWN' });
    };
    const ends = [];
    for (const then of [() => false, fails, () => true]) {
      const { signal, abort } = limit();
      ends.push(await rejection(vcpu.start([during(abort, then)], { signal })));
      ends.push(exitName(await vcpu.start([])));
      ends.push(await rejection(vcpu.start([during(() => pass(30), then)], { timeoutMs: 20 })));
      ends.push(exitName(vcpu.run(DEADLINE_MS)));
    }
    const { signal } = limit(true);
    const { rip } = vcpu.getRegs();
    let exits = 0;
    ends.push(exitName(await vcpu.start([{ handle: () => ++exits > 0 }], { signal })));
    const still = exits === 0 && rip <= vcpu.getRegs().rip;
    close(vcpu, ram, vm, hv);
    return { ends, still };
  },

  /** Of a user whose queue of signals is full. */
  async signals() {
    const { hv, vm, ram, vcpu } = boot(code.spin);
    spawnSync('prlimit', ['--pid', `${process.pid}`, '--sigpending=0:0'], { stdio: 'inherit' });
    const ends = [];
    for (const act of [() => vcpu.kick(), () => vcpu.stop()]) {
      const running = vcpu.runAsync();
      await pass(20);
      act();
      ends.push(exitName(await running));
    }
    const running = vcpu.runAsync();
    await pass(20);
    await vcpu.pause();
    vcpu.getRegs();
    vcpu.resume();
    vcpu.kick();
    ends.push(exitName(await running));
    ends.push(await rejection(vcpu.runAsync(20)));
    const closed = rejection(vcpu.runAsync());
    await pass(20);
    const backend = hv.backend;
    close(vcpu, ram, vm, hv);
    return { backend, ends, closed: await closed };
  },

  async refusals() {
    const { hv, vm, ram, vcpu } = boot(code.spin);
    const running = vcpu.runAsync();
    // Before its first slice, too.
    await vcpu.pause();
    vcpu.resume();
    await pass(20);
    const calls = [
      () => vcpu.getRegs(),
      () => vcpu.getRegs(),
      () => vcpu.getRegs(),
      () => vcpu.setRegs({ rax: 1 }),
      () => vcpu.getMsrs([0x10]),
      () => vcpu.getCpuid2(),
      () => vcpu.run(1),
    ];
    const refused = [...calls.map(codeOf), await rejection(vcpu.runAsync(1))];
    await vcpu.pause();
    const standing = calls.slice(0, -1).map(codeOf);
    vcpu.resume();
    await pass(20);
    refused.push(codeOf(calls[0]));
    await vcpu.pause();
    standing.push(codeOf(calls[0]));
    vcpu.resume();
    vcpu.kick();
    const kicked = exitName(await running);
    close(vcpu, ram, vm, hv);
    return { refused, standing, kicked };
  },

  async handlers() {
    const { hv, vm, ram, vcpu } = boot(code.out);
    let seen = 0;
    const port = {
      handle: (_, exit) => {
        if (exit !== Exit.IO || ++seen > 100) return false;
        return seen % 10 === 0 ? pass(1).then(() => true) : true;
      },
    };
    const end = exitName(await vcpu.start([{ handle: () => false }, port]));
    const thrown = await rejection(
      vcpu.start([
        {
          handle() {
            throw Object.assign(new Error('no'), { code: 'ERR_OWN' });
          },
        },
      ]),
    );
    let looped = 0;
    for await (const exit of vcpu) if (exit !== Exit.IO || ++looped === 50) break;
    const stopped = [];
    setTimeout(() => vcpu.stop(), 5);
    for await (const exit of vcpu) stopped.push(exit);
    close(vcpu, ram, vm, hv);
    return { end, seen, thrown, looped, onlyPorts: stopped.every((exit) => exit === Exit.IO) };
  },

  /** A pause at any moment is acknowledged, and nothing moves until resume(). */
  async pauses() {
    const { hv, vm, ram, vcpu } = boot(code.count);
    let exits = 0;
    const started = vcpu.start([{ handle: () => ++exits > 0 }]);
    let moved = 0;
    let pending = 0;
    for (let i = 0; i < ROUNDS; i++) {
      if (i % 3 === 0) await tick();
      await vcpu.pause();
      const { rip } = vcpu.getRegs();
      const before = ram.read(0x2000, 1)[0];
      if (i % 10 === 0) await pass(1);
      if (ram.read(0x2000, 1)[0] !== before || vcpu.getRegs().rip !== rip) moved++;
      // Of an OUT that was served it is behind; it may be at one that it has only counted.
      if (rip === 0x1007n && (exits & 0xff) === before) pending++;
      vcpu.resume();
    }
    const tooOften = codeOf(() => vcpu.resume());
    const first = vcpu.pause();
    await Promise.all([first, vcpu.pause()]);
    vcpu.resume();
    const counted = exits;
    await pass(5);
    const still = exits === counted;
    vcpu.kick();
    vcpu.resume();
    for (const late = Date.now() + DEADLINE_MS; exits === counted && Date.now() < late; ) await pass(1);
    const goesOn = exits > counted;
    vcpu.stop();
    const end = exitName(await started);
    // Undone before it was acknowledged, before the first run, and under a deadline.
    const other = vm.createVcpu(1);
    await other.pause();
    const waits = exitName(await other.runAsync(20));
    other.resume();
    const undone = vcpu.pause();
    vcpu.resume();
    await undone;
    close(other, vcpu, ram, vm, hv);
    return { moved, pending, tooOften, still, goesOn, end, waits };
  },

  /** A read-modify-write of memory-mapped I/O exits twice: the pause comes behind both. */
  async completes() {
    const { hv, vm, ram, vcpu } = boot(code.increment);
    const exits = [];
    let paused;
    const end = vcpu.start([
      {
        handle(_, exit) {
          exits.push(`${exitName(exit)} ${vcpu.mmio.isWrite ? 'write' : 'read'} ${vcpu.mmio.data[0]}`);
          if (!vcpu.mmio.isWrite) {
            vcpu.mmio.data[0] = 41;
            paused ??= vcpu.pause();
          }
          return true;
        },
      },
    ]);
    while (paused === undefined) await tick();
    await paused;
    const here = [...exits];
    const immediate = vcpu.immediateExit;
    vcpu.stop();
    vcpu.resume();
    await end;
    close(vcpu, ram, vm, hv);
    return { here, immediate };
  },

  async worker() {
    const { hv, vm, ram, vcpu } = boot(code.out);
    const thread = new Thread(import.meta.url, 'count', { vcpu: vcpu.share() });
    await thread.next();
    // It tells that it is about to run: all pauses may be over before it does.
    while (codeOf(() => vcpu.getRegs()) === 'ok') await tick();
    let moved = 0;
    for (let i = 0; i < ROUNDS; i++) {
      if (i % 3 === 0) await tick();
      await vcpu.pause();
      const { rip } = vcpu.getRegs();
      if (vcpu.getRegs().rip !== rip) moved++;
      vcpu.resume();
    }
    hv.stop(vcpu.kickId);
    const [exits, end] = await thread.next();
    await thread.ended;
    const back = codeOf(() => vcpu.getRegs());
    const owned = new Thread(import.meta.url, 'owned', { vm: vm.share() });
    const codes = await owned.next();
    await owned.ended;
    close(vcpu, ram, vm);
    return { moved, ran: exits > 0, end, back, codes, gone: await hv.pause(vcpu.kickId) };
  },

  async terminated() {
    const { hv, vm, ram, vcpu } = boot(code.spin);
    const thread = new Thread(import.meta.url, 'spin', { vcpu: vcpu.share() });
    await thread.next();
    await pass(20);
    await thread.worker.terminate();
    await collect();
    close(vcpu, ram, vm, hv);
    return true;
  },

  async loops() {
    const hv = openHypervisor();
    const machine = new Machine(hv, { memory: 0x10_0000, cpus: 4 });
    const says = guest(16, '88 d0 | mov al, dl\ne6 10 | out 0x10, al\nf4 | hlt');
    machine.load(flatImage(says.code, 'real'));
    const heard = [];
    const ears = { name: 'ears', read() {}, write: (_, [number]) => void heard.push(number) };
    const loops = new RunLoops(machine.vcpus, { ports: new Bus().attach(0x10, 1, ears) });
    const end = await loops.run({ timeoutMs: DEADLINE_MS });
    const again = await loops.run({ timeoutMs: DEADLINE_MS });
    // Some leave memory: the one that spins is stopped. (An exception without a handler is no crash on every host: KVM's
    // emulator does not look at the limit of the vectors in real mode.)
    const strays = guest(16, '84 d2 | test dl, dl\n74 fe | here: jz here\nea 10 00 ff ff | jmp 0xffff:0x10');
    machine.load(flatImage(strays.code, 'real'));
    const stray = await new RunLoops(machine.vcpus).run({ timeoutMs: DEADLINE_MS });
    close(machine, hv);
    return {
      end,
      again,
      heard: heard.sort(),
      exits: loops.exits,
      halted: loops.halted,
      stray: stray.reason,
    };
  },

  /** The process ends while vCPUs run; so does a handler that throws where nobody catches it. */
  async exits() {
    const { vcpu } = boot(code.spin);
    vcpu.start([]);
    const { vcpu: other } = boot(code.spin);
    const thread = new Thread(import.meta.url, 'spin', { vcpu: other.share() });
    await thread.next();
    setTimeout(() => {
      process.stdout.write('"exiting"\n');
      process.exit(0);
    }, 50);
    await new Promise(() => {});
  },

  async forgotten() {
    for (let i = 0; i < 20; i++) {
      const { vcpu } = boot(i % 2 ? code.spin : code.halt);
      if (i % 4 < 2) vcpu.runAsync(5).catch(() => {});
      else await vcpu.runAsync(5);
    }
    await pass(50);
    await collect();
    return true;
  },
};

if (isMainThread) await main(scenarios);
else workers[workerData.does](workerData);
