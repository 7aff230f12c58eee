// Kicks between threads that have simulators of their own: scenarios of kick-ids.test.ts. The workers are this file too. The
// package is imported late, for that is what is looked at.
import { isMainThread, parentPort, Worker, workerData } from 'node:worker_threads';

const vmexit = () => import('../../dist/index.js');
const SPIN = 'jmp';
const code = { [SPIN]: [0xeb, 0xfe], halt: [0xf4] };
const DEADLINE_MS = 60_000;

/** A vCPU of the simulator that spins or halts. */
async function boot(name) {
  const { openHypervisor } = await vmexit();
  const hv = openHypervisor({ backend: 'sim' });
  const vm = hv.createVm();
  const memory = vm.allocate(0x1000);
  vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memory });
  memory.write(0, Uint8Array.from(code[name]));
  const vcpu = vm.createVcpu(0);
  const { cs } = vcpu.getSregs();
  vcpu.changeSregs({ cs: { ...cs, base: 0n, selector: 0 } });
  vcpu.setRegs({ rip: 0, rflags: 2 });
  return { hv, vcpu };
}

/** A worker: it tells the number of its vCPU, runs it when it is told so, and kicks whom it is told to. */
function start(name) {
  const worker = new Worker(new URL(import.meta.url), { workerData: name });
  const next = () => new Promise((resolve, reject) => worker.once('message', resolve).once('error', reject));
  return {
    first: next(),
    end: () => worker.terminate(),
    ask(request) {
      const answer = next();
      worker.postMessage(request);
      return answer;
    },
  };
}

async function work() {
  const { hv, vcpu } = await boot(workerData);
  parentPort.on('message', ({ kick }) => {
    const answer = () => {
      if (kick === undefined) return vcpu.run(DEADLINE_MS);
      try {
        return hv.kick(kick);
      } catch (error) {
        return `${error.code}: ${error.message}`;
      }
    };
    parentPort.postMessage(answer());
  });
  parentPort.postMessage(vcpu.kickId);
}

const scenarios = {
  /** The main thread has imported the package, and opened nothing. */
  async earlyWorker() {
    const { openHypervisor } = await vmexit();
    const worker = start(SPIN);
    const id = await worker.first;
    const ran = worker.ask({});
    const hv = openHypervisor({ backend: 'sim' });
    const found = hv.kick(id);
    const exit = await ran;
    await worker.end();
    return { found, exit };
  },

  /** The main thread never imports it: neither worker's table is the other's. */
  async strangers() {
    const [one, other] = [start('halt'), start('halt')];
    const ids = await Promise.all([one.first, other.first]);
    const kicks = [];
    for (const kick of [ids[1], ids[0]]) kicks.push(await one.ask({ kick }));
    const exits = [await one.ask({}), await other.ask({})];
    await Promise.all([one.end(), other.end()]);
    return { same: ids[0] === ids[1], kicks, exits };
  },
};

if (isMainThread) console.log(JSON.stringify(await scenarios[process.argv[2]]()));
else await work();
