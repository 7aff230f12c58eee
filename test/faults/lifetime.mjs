// Who keeps what alive: scenarios of lifetime.test.ts.

import { spawnSync } from 'node:child_process';
import { randomFill } from 'node:crypto';
import { once } from 'node:events';
import { readdirSync, readFileSync, readlinkSync, statSync } from 'node:fs';
import { Worker } from 'node:worker_threads';
import {
  boot,
  Cap,
  COUNTER,
  code,
  codeOf,
  collect,
  DEADLINE_MS,
  Exit,
  inLab,
  main,
  native,
  openHypervisor,
  requests,
  tick,
} from './fixture.mjs';

const MIB = 2 ** 20;
const fds = () => readdirSync('/proc/self/fd').length;
/** A line of /proc/self/status, in kB. */
const status = (field) =>
  Number(new RegExp(`${field}:\\s+(\\d+) kB`).exec(readFileSync('/proc/self/status', 'utf8'))[1]);

/** The process's open files by what they are: [number, link]. */
const openFiles = () =>
  readdirSync('/proc/self/fd').flatMap((fd) => {
    try {
      return [[Number(fd), readlinkSync(`/proc/self/fd/${fd}`)]];
    } catch {
      return []; // the listing's own
    }
  });
const ofKvm = ([, link]) => /kvm|vmexit/.test(link);
/** Node opens a few files of its own when it needs them first. */
const eventFdsAndVms = () => openFiles().filter(([, link]) => /kvm|\[eventfd\]/.test(link)).length;

function* permutations(list) {
  if (list.length === 0) yield [];
  for (const first of list) {
    for (const rest of permutations(list.filter((other) => other !== first))) {
      yield [first, ...rest];
    }
  }
}

await main({
  /** The guest counts in memory that JS has closed, while other memory is mapped and filled. */
  closedUnderSlot() {
    const { vm, ram, vcpu } = boot(code.count);
    ram.bytes[COUNTER] = 40;
    vcpu.run(DEADLINE_MS);
    const before = vcpu.io.value;
    ram.close();
    const others = Array.from({ length: 64 }, () => vm.allocate(0x1_0000));
    for (const other of others) other.bytes.fill(0xee);
    const counted = [1, 2, 3].map(() => (vcpu.run(DEADLINE_MS) === Exit.IO ? vcpu.io.value : 'no exit'));
    const spoilt = others.filter((other) => other.bytes.some((byte) => byte !== 0xee)).length;
    return { before, counted, spoilt };
  },

  /** As above, with the VM closed as well, and everything but the vCPU collected. */
  async onlyTheVcpuIsLeft() {
    const vcpu = (() => {
      const { hv, vm, ram, vcpu } = boot(code.count);
      hv.close();
      vm.close();
      ram.close();
      return vcpu;
    })();
    await collect();
    const hv = openHypervisor();
    const vm = hv.createVm();
    const others = Array.from({ length: 64 }, () => vm.allocate(0x1_0000));
    for (const other of others) other.bytes.fill(0xee);
    const counted = [1, 2, 3].map(() => (vcpu.run(DEADLINE_MS) === Exit.IO ? vcpu.io.value : 'no exit'));
    return { counted, spoilt: others.filter((other) => other.bytes.some((byte) => byte !== 0xee)).length };
  },

  async viewsAfterClose() {
    const { ram, vcpu } = boot(code.halt);
    const views = [ram.bytes, ram.bytes.subarray(4096, 8192), vcpu.raw.bytes];
    const open = views.map((view) => view.length);
    ram.close();
    vcpu.close();
    const closed = views.map((view) => view.length);
    await collect();
    return { open, closed, afterCollection: views.map((view) => view.length), read: views[0][0] ?? null };
  },

  /** The ring of a vCPU is a mapping of its file, which would keep the VM. */
  async ringIsGivenBack() {
    const mapped = () =>
      readFileSync('/proc/self/maps', 'latin1')
        .split('\n')
        .filter((line) => /kvm-vcpu/.test(line)).length;
    const make = () => {
      const hv = openHypervisor();
      const vm = hv.createVm();
      vm.enableCap({ cap: Cap.DIRTY_LOG_RING_ACQ_REL, args: [16_384n] });
      const vcpu = vm.createVcpu();
      const { entries } = vcpu.dirtyRing;
      return { hv, vm, vcpu, entries };
    };
    const { hv, vm, vcpu, entries } = make();
    const open = mapped();
    for (const object of [vm, hv, vcpu]) object.close();
    const closed = mapped();
    make();
    await collect();
    return { entries, open, closed, collected: mapped() };
  },

  /** A view that is all that is left of its memory. */
  async viewOutlivesObjects() {
    const view = (() => {
      const hv = openHypervisor();
      const ram = hv.createVm().allocate(MIB);
      ram.bytes[MIB - 1] = 7;
      return ram.bytes;
    })();
    await collect();
    view[0] = 9;
    return { length: view.length, first: view[0], last: view.at(-1), open: openFiles().filter(ofKvm).length };
  },

  /** Every order of closing, each twice, and one use of each afterwards. */
  closeInAnyOrder() {
    const before = fds();
    const codes = new Set();
    let orders = 0;
    for (const order of permutations(['hv', 'vm', 'vcpu', 'ram', 'secret'])) {
      const all = boot(code.halt);
      all.secret = secretOf(all.vm);
      for (const name of order) {
        all[name].close();
        all[name].close();
        all[name][Symbol.dispose]();
      }
      codes.add(codeOf(() => all.hv.getApiVersion()));
      codes.add(codeOf(() => all.vm.createVcpu(1)));
      codes.add(codeOf(() => all.vcpu.run(1)));
      codes.add(codeOf(() => all.vcpu.io.port));
      codes.add(codeOf(() => all.vcpu.getRegs()));
      codes.add(codeOf(() => all.ram.bytes));
      codes.add(codeOf(() => all.secret.punchHole(0, 4096)));
      orders++;
    }
    return { orders, codes: [...codes], leaked: fds() - before };
  },

  async closeOnExec() {
    const { vm } = boot(code.halt);
    const secret = secretOf(vm);
    const files = openFiles().filter(ofKvm);
    const kept = files.filter(([fd]) => {
      const flags = /flags:\s+(\d+)/.exec(readFileSync(`/proc/self/fdinfo/${fd}`, 'utf8'))[1];
      return (Number.parseInt(flags, 8) & 0o2000000) === 0;
    });
    const child = spawnSync('ls', ['-l', '/proc/self/fd'], { encoding: 'utf8' });
    return {
      files: files.map(([, link]) => link.replace(/\d+/g, 'N')),
      guestMemfd: secret.closed === false,
      kept,
      inherited: child.stdout.split('\n').filter((line) => /kvm|vmexit/.test(line)),
    };
  },

  thousandRounds() {
    const before = fds();
    for (let i = 0; i < (inLab ? 100 : 1000); i++) {
      const { hv, vm, ram, vcpu } = boot(code.halt);
      const secret = secretOf(vm);
      for (const object of [hv, vm, vcpu, ram, secret]) object.close();
    }
    return { leaked: fds() - before };
  },

  /** The same without a single close(): the garbage collector's finalizers close. */
  async droppedWithoutClose() {
    const before = fds();
    for (let i = 0; i < 200; i++) {
      boot(code.halt);
      if (i % 50 === 49) await collect();
    }
    await collect();
    return { leaked: fds() - before };
  },

  untouchedMemory() {
    const { vm, vcpu } = boot(code.count);
    const blocks = () =>
      openFiles()
        .filter(([, link]) => link.startsWith('/memfd:vmexit'))
        .map(([fd]) => statSync(`/proc/self/fd/${fd}`).blocks)
        .at(-1);
    const resident = () => ({ VmRSS: status('VmRSS'), RssShmem: status('RssShmem') });
    const start = resident();
    const ram = vm.allocate(1024 * MIB);
    vm.setUserMemoryRegion({ slot: 1, guestPhysAddr: 2 ** 30, memory: ram });
    const { bytes } = ram;
    vcpu.run(DEADLINE_MS);
    const end = resident();
    const untouched = blocks();
    bytes[512 * MIB] = 1;
    return {
      kB: { VmRSS: end.VmRSS - start.VmRSS, RssShmem: end.RssShmem - start.RssShmem },
      length: bytes.length,
      untouched,
      touched: blocks(),
    };
  },

  /** One page, four views of it: host, guest, the file, another mapping of the file. */
  neverCopied() {
    const { hv, ram, vcpu } = boot(code.count);
    const again = hv.openMemory(ram.share());
    const seen = [];
    for (const value of [10, 200]) {
      ram.bytes[COUNTER] = value;
      vcpu.run(DEADLINE_MS);
      seen.push([vcpu.io.value, ram.bytes[COUNTER], again.bytes[COUNTER]]);
    }
    const { bytes } = ram;
    return { seen, sameView: bytes === ram.bytes };
  },

  /** close() gives the pages back at once, not when the event loop or the garbage collector comes by. */
  closeGivesBack() {
    const before = status('RssShmem');
    const kept = [];
    let most = 0;
    for (let i = 0; i < 16; i++) {
      const { hv, vm, vcpu } = boot(code.halt);
      const ram = vm.allocate(32 * MIB);
      vm.setUserMemoryRegion({ slot: 1, guestPhysAddr: 2 ** 30, memory: ram });
      ram.bytes.fill(1);
      most = Math.max(most, status('RssShmem') - before);
      for (const object of [ram, vm, hv, vcpu]) object.close();
      kept.push(ram, vm, hv, vcpu);
    }
    return { mostKB: most, leftKB: status('RssShmem') - before };
  },

  /** Another thread writes to the memory while it is closed, and after. */
  async asynchronousWork() {
    const hv = openHypervisor();
    const vm = hv.createVm();
    const ram = vm.allocate(512 * MIB);
    const vcpu = vm.createVcpu();
    const done = [ram.bytes, vcpu.raw.bytes].map(
      (view) => new Promise((resolve) => randomFill(view, (error) => resolve(error === null))),
    );
    for (const object of [ram, vcpu, vm]) object.close();
    await tick();
    globalThis.gc();
    const filled = await Promise.all(done);
    await collect();
    return { filled };
  },

  /**
   * Thousands, in VMs that signal them or are signalled, closed or left to the collector, watched or not. Those that are
   * left at the end have nobody who waits: this process ends all the same.
   */
  async eventFds() {
    const hv = openHypervisor();
    const before = eventFdsAndVms();
    const told = { irqfds: 0, ioeventfds: 0 };
    // What a round leaves is nobody's then.
    const play = (closes) => {
      const vm = hv.createVm();
      const hasIrqchip = codeOf(() => vm.createIrqchip()) === 'ok';
      for (let i = 0; i < 100; i++) {
        const eventFd = hv.createEventFd();
        const same = hv.openEventFd(eventFd.share());
        vm.ioeventfd({ eventFd, address: 0x1000 + i, pio: i % 2 === 0 });
        if (hasIrqchip) vm.irqfd({ eventFd: same, gsi: i % 24 });
        if (i % 3 === 0) same.watch(() => {});
        eventFd.signal();
        if (i % 4 === 0) eventFd.close();
        if (i % 4 <= 1) same.close();
        same.closed || same.watch(undefined);
      }
      told.irqfds += vm.setup.irqfds;
      told.ioeventfds += vm.setup.ioeventfds;
      if (closes) vm.close();
    };
    for (let round = 0; round < 20; round++) {
      play(round % 2 === 0);
      await collect();
    }
    await collect();
    const leaked = eventFdsAndVms() - before;
    const left = hv.createEventFd();
    left.watch(() => {});
    left.watch(undefined);
    left.signal();
    await left.wait();
    return { ...told, leaked };
  },

  /** A thread ends in the middle of it all: by itself, and by terminate(). */
  async threadWithEventFdsEnds() {
    const hv = openHypervisor();
    const before = eventFdsAndVms();
    const source = `
      import(${JSON.stringify(new URL('../../dist/index.js', import.meta.url).href)}).then(({ openHypervisor }) => {
        const { parentPort, workerData } = require('node:worker_threads');
        const hv = openHypervisor();
        const vm = hv.createVm();
        const own = hv.createEventFd();
        const shared = hv.openEventFd(workerData.token);
        for (const [at, eventFd] of [own, shared].entries()) {
          vm.ioeventfd({ eventFd, address: at, pio: true });
          eventFd.watch(() => {});
          eventFd.wait();
        }
        shared.signal();
        parentPort.postMessage(own.share());
        if (workerData.exits) process.exit();
      });
    `;
    const errnos = [];
    for (const exits of [true, false]) {
      const mine = hv.createEventFd();
      const worker = new Worker(source, { eval: true, workerData: { token: mine.share(), exits } });
      const ended = new Promise((resolve) => worker.once('exit', resolve));
      const [token] = await once(worker, 'message');
      if (!exits) await worker.terminate();
      await ended;
      errnos.push(codeOf(() => hv.openEventFd(token)));
      mine.signal();
      mine.close();
    }
    await collect();
    return { errnos, leaked: eventFdsAndVms() - before };
  },

  /** The handle is gone, its run function is not. */
  async runFunctionAlone() {
    const system = native.open('/dev/kvm');
    const run = (() => {
      const vm = native.create(system, requests.KVM_CREATE_VM, 0);
      return native.runner(native.create(vm, requests.KVM_CREATE_VCPU, 0));
    })();
    await collect();
    return { result: run(100), open: openFiles().filter(ofKvm).length };
  },
});

/** A guest_memfd, or something else to close where this KVM has none. */
function secretOf(vm) {
  try {
    return vm.createGuestMemfd(4096);
  } catch (error) {
    if (error.errno === undefined) throw error;
    const stand = vm.allocate(4096);
    return Object.assign(stand, { punchHole: (at, size) => stand.discard(at, size) });
  }
}
