// Memory faults of several vCPUs' threads, which the owner of the memory serves: scenarios of memory-owner.test.ts. The workers are
// this file too.
import { isMainThread, parentPort, workerData } from 'node:worker_threads';
import {
  AskOwner,
  close,
  DEADLINE_MS,
  exitName,
  flatImage,
  guest,
  Machine,
  MemoryAttribute,
  MemoryFaultService,
  MemoryOwner,
  main,
  openHypervisor,
  tick,
  VmType,
} from './fixture.mjs';
import { Thread } from './thread.mjs';

const workers = {
  /** Has its memory faults served by their owner. */
  ask({ vcpu: token, owner }) {
    const hv = openHypervisor({ needs: ['private-memory'] });
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
};

const scenarios = {
  /** Memory faults of vCPUs in workers, served by the thread that owns the memory. */
  async owner() {
    const hv = openHypervisor({ needs: ['private-memory'] });
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
    const hv = openHypervisor({ needs: ['private-memory'] });
    const machine = new Machine(hv, { memory: 0x4_0000, type: VmType.SW_PROTECTED });
    machine.load(flatImage(Uint8Array.of(0xfe, 0x06, 0x00, 0x80, 0xf4), 'real')); // inc byte [0x8000]; hlt
    machine.vm.setMemoryAttributes({ address: 0x8000, size: 4096, attributes: MemoryAttribute.PRIVATE });
    const service = new MemoryFaultService(machine.vm, { policy: () => 'allow' });
    const wakes = {
      async handle() {
        for (let i = 0; i < 3; i++) while (Atomics.notify(words, 0) === 0) await tick();
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
    const hv = openHypervisor({ needs: ['private-memory'] });
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
};

if (isMainThread) await main(scenarios);
else workers[workerData.does](workerData);
