// vCPUs on threads of their own, and in several threads: scenarios of vcpu-threads.test.ts. The workers are this file too.
import { spawnSync } from 'node:child_process';
import { isMainThread, parentPort, workerData } from 'node:worker_threads';
import {
  AskOwner,
  Bus,
  boot,
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
  MemoryAttribute,
  MemoryFaultService,
  MemoryOwner,
  main,
  openHypervisor,
  RunLoops,
  VmType,
} from './fixture.mjs';
import { Thread } from './thread.mjs';

/** The lab's machine is slow. */
const ROUNDS = inLab ? 100 : 300;
const pass = (ms) => new Promise((done) => setTimeout(done, ms));
const turn = () => new Promise(setImmediate);
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
const close = (...objects) => {
  for (const object of objects) object.close();
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

  /** Has its memory faults served by their owner. */
  ask({ vcpu: token, owner }) {
    const hv = openHypervisor();
    const vcpu = hv.openVcpu(token);
    const asking = AskOwner.connect(hv, owner);
    const exits = [];
    try {
      do exits.push(exitName(vcpu.run(DEADLINE_MS)));
      while (asking.handle(vcpu, vcpu.outcome));
    } catch (error) {
      exits.push(error.code, error.message);
    }
    parentPort.postMessage(exits);
    close(asking, vcpu, hv);
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
    await turn();
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
    const standing = calls.map(codeOf);
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
      if (i % 3 === 0) await turn();
      await vcpu.pause();
      const { rip } = vcpu.getRegs();
      const before = ram.read(0x2000, 1)[0];
      if (i % 10 === 0) await pass(1);
      if (ram.read(0x2000, 1)[0] !== before || vcpu.getRegs().rip !== rip) moved++;
      // Behind the OUT, and not at it.
      if (rip === 0x1007n) pending++;
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
    while (paused === undefined) await turn();
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
    let moved = 0;
    for (let i = 0; i < ROUNDS; i++) {
      if (i % 3 === 0) await turn();
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

  /** Memory faults of vCPUs in workers, served by the thread that owns the memory. */
  async owner() {
    const hv = openHypervisor();
    const machine = new Machine(hv, { memory: 0x4_0000, type: VmType.SW_PROTECTED, cpus: 3 });
    machine.load(flatImage(Uint8Array.of(0xfe, 0x06, 0x00, 0x80, 0xf4), 'real')); // inc byte [0x8000]; hlt
    const run = async (policy) => {
      machine.vm.setMemoryAttributes({ address: 0x8000, size: 4096, attributes: MemoryAttribute.PRIVATE });
      const service = new MemoryFaultService(machine.vm, { policy: () => policy });
      const owner = new MemoryOwner(hv, { vcpus: machine.vcpus, handlers: [service] });
      const ends = [];
      for (const vcpu of machine.vcpus) {
        vcpu.setRegs({ ...vcpu.getRegs(), rip: 0x1000 });
        const thread = new Thread(import.meta.url, 'ask', { vcpu: vcpu.share(), owner: owner.token });
        ends.push(await thread.next());
        await thread.ended;
      }
      owner.close();
      return { ends, faults: service.counters.memoryFaults };
    };
    const denied = await run('deny');
    const allowed = await run('allow');
    const count = machine.memory.read(0x8000, 1)[0];
    close(machine, hv);
    return { denied, allowed, count };
  },

  /** Whoever waits for its answer is woken by what is not one, as a notification of the answer before is that comes late. */
  async woken() {
    const hv = openHypervisor();
    const machine = new Machine(hv, { memory: 0x4_0000, type: VmType.SW_PROTECTED });
    machine.load(flatImage(Uint8Array.of(0xfe, 0x06, 0x00, 0x80, 0xf4), 'real')); // inc byte [0x8000]; hlt
    machine.vm.setMemoryAttributes({ address: 0x8000, size: 4096, attributes: MemoryAttribute.PRIVATE });
    const service = new MemoryFaultService(machine.vm, { policy: () => 'allow' });
    const wakes = {
      async handle() {
        for (let i = 0; i < 3; i++) while (Atomics.notify(words, 0) === 0) await turn();
        return false;
      },
    };
    const owner = new MemoryOwner(hv, { vcpus: machine.vcpus, handlers: [wakes, service] });
    const words = new Int32Array(owner.token.memory);
    const thread = new Thread(import.meta.url, 'ask', { vcpu: machine.vcpu.share(), owner: owner.token });
    const exits = await thread.next();
    await thread.ended;
    close(owner, machine, hv);
    return exits;
  },

  /** All of them meet each page's fault before any of them is served. */
  async crowd() {
    const hv = openHypervisor();
    const cpus = 4;
    const pages = 8;
    const machine = new Machine(hv, { memory: 0x10_0000, type: VmType.SW_PROTECTED, cpus });
    const walks = guest(
      16,
      `
 8e d8          | again: mov ds, ax
 f0 ff 06 00 00 |        lock inc word ptr [0]
 05 00 01       |        add ax, 0x100
 e2 f4          |        loop again
 f4             |        hlt
`,
    );
    machine.load(flatImage(walks.code, 'real'), { rax: 0x4000, rcx: pages });
    machine.vm.setMemoryAttributes({
      address: 0x4_0000,
      size: pages * 4096,
      attributes: MemoryAttribute.PRIVATE,
    });
    const shared = [];
    const policy = ({ gpa }) => {
      shared.push((gpa - 0x4_0000) / 4096);
      return 'allow';
    };
    const service = new MemoryFaultService(machine.vm, { policy });
    let waiting = [];
    const gate = {
      handle() {
        const open = new Promise((done) => waiting.push(() => done(false)));
        if (waiting.length === cpus) {
          const all = waiting;
          waiting = [];
          for (const each of all) each();
        }
        return open;
      },
    };
    const owner = new MemoryOwner(hv, { vcpus: machine.vcpus, handlers: [gate, service] });
    const threads = machine.vcpus.map(
      (vcpu) => new Thread(import.meta.url, 'ask', { vcpu: vcpu.share(), owner: owner.token }),
    );
    const ends = await Promise.all(threads.map((thread) => thread.next()));
    await Promise.all(threads.map(({ ended }) => ended));
    const counted = Array.from({ length: pages }, (_, i) => machine.memory.read(0x4_0000 + i * 4096, 1)[0]);
    const { memoryFaults, retries } = service.counters;
    close(owner, machine, hv);
    const once = shared.every((page, i) => page === i) && shared.length === pages;
    return { ends: ends.map((exits) => exits.at(-1)), once, memoryFaults, retries, counted };
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
    // One crashes: the others, which spin, are stopped.
    const crash = guest(16, '84 d2 | test dl, dl\n74 fe | here: jz here\n0f 0b | ud2');
    machine.load(flatImage(crash.code, 'real'));
    for (const vcpu of machine.vcpus) vcpu.changeSregs({ idt: { base: 0n, limit: 0 } });
    const crashed = await new RunLoops(machine.vcpus).run({ timeoutMs: DEADLINE_MS });
    close(machine, hv);
    return {
      end,
      again,
      heard: heard.sort(),
      exits: loops.exits,
      halted: loops.halted,
      crashed: crashed.reason,
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
