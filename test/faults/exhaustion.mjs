// What a host has run out of: scenarios of exhaustion.test.ts.
import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, openSync, readdirSync, readFileSync } from 'node:fs';
import {
  boot,
  close,
  code,
  codeOf,
  collect,
  DEADLINE_MS,
  exitName,
  filesOpen,
  main,
  openHypervisor,
} from './fixture.mjs';

const limit = (...what) => execFileSync('prlimit', ['--pid', String(process.pid), ...what]);
const addressBytes = () =>
  Number(/VmSize:\s+(\d+)/.exec(readFileSync('/proc/self/status', 'utf8'))[1]) * 1024;
const codeOfPromise = async (promise) => {
  try {
    await promise;
    return 'ok';
  } catch (error) {
    return error.code ?? String(error);
  }
};

let made = 0;
/** Descriptors of KVM's and the package's. */
const ours = () => filesOpen(/kvm|vmexit|eventfd/);

/** What each step takes; what it gives is closed. */
const steps = {
  open: () => close(openHypervisor()),
  createVm: ({ hv }) => close(hv.createVm()),
  createVcpu: ({ vm }) => close(vm.createVcpu(++made)), // KVM keeps the id of one that was closed
  allocate: ({ vm }) => close(vm.allocate(4096)),
  createGuestMemfd: ({ vm }) => close(vm.createGuestMemfd(4096)),
  createEventFd: ({ hv }) => close(hv.createEventFd()),
  openMemory: ({ hv, memoryToken }) => close(hv.openMemory(memoryToken)),
  openEventFd: ({ hv, eventFdToken }) => close(hv.openEventFd(eventFdToken)),
  share: ({ vm, vcpu }) => [vm.share(), vcpu.share()],
  openVm: ({ hv, vmToken }) => close(hv.openVm(vmToken)),
  openVcpu: ({ hv, vcpuToken }) => close(hv.openVcpu(vcpuToken)),
  run: ({ vcpu }) => vcpu.run(DEADLINE_MS),
  start: ({ vcpu }) => vcpu.start([], { timeoutMs: DEADLINE_MS }),
  /** While its exit waits for an answer: who asks for it has to be told later. */
  pause: async ({ vcpu, hv }) => {
    let answer;
    const answered = new Promise((done) => (answer = done));
    let asks;
    const asked = new Promise((done) => (asks = done));
    const running = vcpu.start([{ handle: () => asks() ?? answered }]);
    await asked;
    const paused = vcpu.pause();
    answer(true);
    try {
      await paused;
      await hv.pause(vcpu.kickId);
      for (let i = 0; i < 2; i++) vcpu.resume();
    } finally {
      vcpu.stop();
      await running;
    }
  },
};

await main({
  /** Each step with no descriptor left, then with one, and so on until it is done. */
  async descriptors() {
    const all = boot(code.out);
    const { hv, vm, ram, vcpu } = all;
    const eventFd = hv.createEventFd();
    Object.assign(all, {
      memoryToken: ram.share(),
      eventFdToken: eventFd.share(),
      vmToken: vm.share(),
      vcpuToken: vcpu.share(),
    });
    // The vCPU's thread, and what Node opens when it first needs it.
    for (const step of Object.values(steps)) await codeOfPromise((async () => step(all))());
    await collect();
    const before = ours();
    limit(`--nofile=${readdirSync('/proc/self/fd').length + 16}:`);
    const fill = () => {
      const fillers = [];
      for (;;) {
        try {
          fillers.push(openSync('/dev/null'));
        } catch {
          return fillers;
        }
      }
    };
    const said = {};
    for (const [name, step] of Object.entries(steps)) {
      said[name] = [];
      for (let free = 0; said[name].at(-1) !== 'ok' && free < 8; free++) {
        const fillers = fill();
        for (const fd of fillers.splice(0, free)) closeSync(fd);
        said[name].push(await codeOfPromise((async () => step(all))()));
        for (const fd of fillers) closeSync(fd);
      }
    }
    await collect();
    const leaked = ours() - before;
    vcpu.complete(() => {});
    const after = exitName(vcpu.run(DEADLINE_MS));
    close(eventFd, vcpu, vm, ram, hv);
    return { backend: hv.backend, said, leaked, after };
  },

  /** RLIMIT_NPROC counts a user's threads, and binds all but root: this process becomes another user's. */
  async threads() {
    const { hv, vm, ram, vcpu } = boot(code.out);
    vcpu.run(DEADLINE_MS); // with the first KVM_RUN KVM begins a thread of its own, and gives EAGAIN without it
    // Root's, while this process is not: it gives the threads back.
    const giver = spawn('sh', ['-c', `read old; prlimit --pid ${process.pid} --nproc=$old: && echo done`], {
      stdio: ['pipe', 'pipe', 'inherit'],
    });
    const old = execFileSync('prlimit', ['--nproc', '--noheadings', '--raw', '--output=SOFT'], {
      encoding: 'latin1',
    });
    limit('--nproc=1:');
    process.setuid(65_534);
    const said = [await codeOfPromise(vcpu.start([])), await codeOfPromise(vcpu.start([]))];
    const ran = exitName(vcpu.run(DEADLINE_MS));
    giver.stdin.end(`${old.trim()}\n`);
    await once(giver.stdout, 'data');
    const after = exitName(await vcpu.start([], { timeoutMs: DEADLINE_MS }));
    close(vcpu, vm, ram, hv);
    return { backend: hv.backend, said, ran, after };
  },

  /** No address space for guest memory, nor for a thread's stack; the simulator has as much as it was made with. */
  async memory() {
    const { hv, vm, ram, vcpu } = boot(code.out);
    // The simulator's decoder is loaded when a vCPU is started first. One of KVM's would have its thread then.
    if (hv.backend === 'sim') await vcpu.start([], { timeoutMs: DEADLINE_MS });
    const before = ours();
    limit(`--as=${addressBytes() + 2 ** 30}:`, `--stack=${2 ** 40}:unlimited`);
    const fill = () => {
      const got = [];
      const end = codeOf(() => {
        while (got.length < 16) got.push(vm.allocate(2 ** 29));
      });
      close(...got);
      return [end, got.length];
    };
    const [allocate, got] = fill();
    const start = await codeOfPromise(vcpu.start([], { timeoutMs: DEADLINE_MS }));
    const run = exitName(vcpu.run(DEADLINE_MS));
    limit('--as=unlimited:', `--stack=${8 * 2 ** 20}:`);
    const leaked = ours() - before;
    const again = fill()[1] >= got;
    const after = exitName(await vcpu.start([], { timeoutMs: DEADLINE_MS }));
    close(vcpu, vm, ram, hv);
    return { backend: hv.backend, said: { allocate, start, run }, leaked, again, after };
  },
});
