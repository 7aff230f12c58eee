// Missing pages of guest memory, served by another thread: scenarios of userfaultfd.test.ts. The workers are this
// file too.
import {
  closeSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { open as openAsync } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { isMainThread, parentPort, Worker, workerData } from 'node:worker_threads';
import {
  boot,
  codeOf,
  collect,
  DEADLINE_MS,
  enterLongMode,
  exitName,
  main,
  openHypervisor,
  tick,
} from './fixture.mjs';

const PAGE = 4096;
const PAGES = 128;
/** Where the guests have the memory whose pages are missing. */
const AREA = 0x2_0000;
/** How long a page takes to come that a run waits for in any case. */
const LATER_MS = 1000;

/** What is in a page when it has come. */
const contents = (offset) => 1 + ((offset / PAGE) & 0x7f);
function filled(offset, pages = 1) {
  const bytes = new Uint8Array(pages * PAGE);
  for (let at = 0; at < bytes.length; at += PAGE) bytes.fill(contents(offset + at), at, at + PAGE);
  return bytes;
}
const fds = () => readdirSync('/proc/self/fd').length;

/** Real-mode code, with ds and es at AREA. */
const inArea = (...bytes) => [0xb8, 0x00, 0x20, 0x8e, 0xd8, 0x8e, 0xc0, ...bytes];
const code = {
  reads: inArea(0xa0, 0x00, 0x30, 0xe6, 0x10), //                      mov al, [0x3000] ; out 0x10, al
  jumps: inArea(0xea, 0x00, 0x10, 0x00, 0x20), //                      jmp 0x2000:0x1000
  outputs: inArea(0xbe, 0x00, 0x50, 0xba, 0x10, 0x00, 0x6e), //        mov si, 0x5000 ; mov dx, 0x10 ; outsb
  inputs: inArea(0xbf, 0x07, 0x60, 0xba, 0x10, 0x00, 0x6c, 0xf4), //   mov di, 0x6007 ; mov dx, 0x10 ; insb ; hlt
  stores: [
    ...inArea(0xbe, 0x00, 0x70, 0x31, 0xff), //                        mov si, 0x7000 ; xor di, di
    ...[0xb8, 0x00, 0xb0, 0x8e, 0xc0, 0xa4], //                        mov ax, 0xb000 ; mov es, ax ; movsb
  ],
};

// --- what a worker does ------------------------------------------------------------------------------------------

const workers = {
  /** Serves every page that somebody waits for. */
  serve({ token }) {
    const faults = openHypervisor().openUserfaultfd(token);
    const served = [];
    faults.watch(() => {
      for (const offset of faults.read()) served.push([offset, faults.copy(offset, filled(offset))]);
    });
    parentPort.on('message', () => parentPort.postMessage(served));
    parentPort.postMessage('ready');
  },

  /** Kicks who waits, and brings the page once `came[0]` is not 0, or in any case after `laterMs`; then `came[1]` is 1. */
  late({ token, kickId, came, laterMs }) {
    const hv = openHypervisor();
    const faults = hv.openUserfaultfd(token);
    let first = true;
    faults.watch(() => {
      const waiting = faults.read();
      // A thread with a signal pending looks again and again: its fault may be gone before it is read.
      if (!first || waiting.length === 0) return;
      first = false;
      if (kickId !== undefined) hv.kick(kickId);
      const bring = () => {
        Atomics.store(came, 1, 1);
        for (const offset of waiting) faults.copy(offset, filled(offset));
      };
      const later = laterMs && setTimeout(bring, laterMs);
      const look = setInterval(() => {
        if (Atomics.load(came, 0) === 0 && Atomics.load(came, 1) === 0) return;
        clearInterval(look);
        clearTimeout(later);
        if (Atomics.load(came, 1) === 0) bring();
      }, 5);
    });
    parentPort.postMessage('ready');
  },

  /** Brings nothing: closes what is the last userfaultfd of the memory. */
  close({ token }) {
    const faults = openHypervisor().openUserfaultfd(token);
    faults.watch(() => faults.close());
    parentPort.postMessage('ready');
  },

  watch({ token }) {
    const faults = openHypervisor().openUserfaultfd(token);
    faults.watch(() => {});
    parentPort.postMessage('ready');
  },
};

async function start(role, data) {
  const worker = new Worker(fileURLToPath(import.meta.url), { workerData: { role, ...data } });
  const next = () =>
    new Promise((resolve, reject) => {
      worker.once('message', resolve);
      worker.once('error', reject);
    });
  await next();
  return { worker, next };
}

// --- guests ------------------------------------------------------------------------------------------------------

/** A guest about to run the code, and beside its RAM a memory of which every page is missing. */
function bootMissing(bytes) {
  const machine = boot(bytes);
  const area = machine.vm.allocate(PAGES * PAGE);
  machine.vm.setUserMemoryRegion({ slot: 1, guestPhysAddr: AREA, memory: area });
  return { ...machine, area, faults: area.userfaultfd() };
}

/** The same at privilege 3 of 64-bit mode: there the processor makes the access on every host, and not KVM for it. */
function bootOuter() {
  const machine = bootMissing([0x8a, 0x04, 0x25, 0x00, 0x30, 0x02, 0x00, 0xe6, 0x10]); // mov al, [0x23000] ; out 0x10, al
  const { hv, vcpu, ram } = machine;
  vcpu.setCpuid2(hv.getSupportedCpuid());
  enterLongMode(vcpu, ram, { tables: 0x4000, identity: 2 ** 30 });
  const { cs, ds, es, ss } = vcpu.getSregs();
  const outer = (segment) => ({ ...segment, dpl: 3, selector: segment.selector | 3 });
  vcpu.changeSregs({ cs: outer(cs), ds: outer(ds), es: outer(es), ss: outer(ss) });
  vcpu.setRegs({ rip: 0x1000, rsp: 0x3000, rflags: 0x3002 });
  return machine;
}

async function served(machine) {
  const { vcpu, faults } = machine;
  const { worker, next } = await start('serve', { token: faults.share() });
  return {
    ...machine,
    run: () => exitName(vcpu.run(DEADLINE_MS)),
    async end() {
      const list = next();
      worker.postMessage('list');
      const pages = await list;
      await worker.terminate();
      faults.close();
      return pages;
    },
  };
}

const output = (bytes) => async () => {
  const { run, vcpu, end } = await served(bootMissing(bytes));
  return { exit: run(), value: vcpu.io.value, pages: await end() };
};

/** @param laterMs without it the page comes only when the first run has ended */
async function interrupted(machine, how, laterMs) {
  const { vcpu, faults } = machine;
  const kickId = how === 'kick' ? vcpu.kickId : undefined;
  const came = new Int32Array(new SharedArrayBuffer(8));
  const { worker } = await start('late', { token: faults.share(), kickId, came, laterMs });
  const exits = [exitName(vcpu.run(how === 'kick' ? DEADLINE_MS : 50))];
  const waited = Atomics.load(came, 1) === 1;
  Atomics.store(came, 0, 1);
  exits.push(exitName(vcpu.run(DEADLINE_MS)));
  await worker.terminate();
  faults.close();
  return { exits, waited, value: vcpu.io.value };
}

const anyMemory = (pages = PAGES) => {
  const hv = openHypervisor();
  const memory = hv.createVm().allocate(pages * PAGE);
  return { hv, memory };
};

/** The code of the error, or what the call gives. */
const resultOf = (call) => {
  let result;
  const code = codeOf(() => {
    result = call();
  });
  return code === 'ok' ? result : code;
};

const scenarios = {
  reads: output(code.reads),
  outputs: output(code.outputs),

  async fetches() {
    const machine = bootMissing(code.jumps);
    const { run, end } = await served(machine);
    run(); // what comes is no program: only the page counts
    return (await end())[0];
  },

  async inputs() {
    const { run, vcpu, area, end } = await served(bootMissing(code.inputs));
    const exits = [run()];
    vcpu.io.value = 0x77;
    exits.push(run());
    return { exits, bytes: [...area.bytes.subarray(0x6006, 0x6009)], pages: await end() };
  },

  async stores() {
    const { run, vcpu, end } = await served(bootMissing(code.stores));
    return { exit: run(), byte: vcpu.mmio.data[0], pages: await end() };
  },

  /** read(2) of a file into guest memory. */
  async systemCall() {
    const folder = mkdtempSync(join(tmpdir(), 'vmexit-userfaultfd-'));
    const path = join(folder, 'file');
    writeFileSync(path, 'abc');
    const file = openSync(path, 'r');
    const { memory } = anyMemory();
    const { end } = await served({ faults: memory.userfaultfd() });
    const read = readSync(file, memory.bytes.subarray(PAGE + 1, PAGE + 4));
    const bytes = [...memory.bytes.subarray(PAGE, PAGE + 5)];
    closeSync(file);
    rmSync(folder, { recursive: true });
    return { read, bytes, pages: await end() };
  },

  kickGuest: () => interrupted(bootOuter(), 'kick'),
  deadlineGuest: () => interrupted(bootOuter(), 'deadline'),
  kickEmulated: () => interrupted(bootMissing(code.outputs), 'kick', LATER_MS),

  async closeWakes() {
    const { vcpu, faults } = bootMissing(code.reads);
    const { worker } = await start('close', { token: faults.share() });
    faults.close();
    const exit = exitName(vcpu.run(DEADLINE_MS));
    await worker.terminate();
    return { exit, value: vcpu.io.value };
  },

  /** 64 pages at once, of which one is there already. */
  batches() {
    const { memory } = anyMemory();
    const faults = memory.userfaultfd();
    const all = faults.copy(0, filled(0, 64));
    const there = faults.copy(70 * PAGE, filled(70 * PAGE));
    const batch = faults.copy(64 * PAGE, new Uint8Array(64 * PAGE).fill(0xff));
    const rest = faults.zero(71 * PAGE, 57 * PAGE);
    const at = (page) => memory.bytes[page * PAGE];
    return {
      results: [all, there, batch, rest, faults.zero(0, PAGE), faults.wake(0, PAGE)],
      bytes: [at(0), at(63), at(64), at(69), at(70), at(71), at(127)],
      waiting: faults.read(),
    };
  },

  sharedSource() {
    const { memory } = anyMemory();
    const faults = memory.userfaultfd();
    const bytes = new Uint8Array(new SharedArrayBuffer(3 * PAGE)).fill(0x33);
    return [faults.copy(0, bytes.subarray(PAGE)), memory.bytes[2 * PAGE - 1]];
  },

  /** Pages that are given back are missing again. */
  async discarded() {
    const { memory } = anyMemory();
    const faults = memory.userfaultfd();
    faults.copy(0, new Uint8Array(PAGE).fill(0xee));
    memory.discard(0, PAGE);
    const { end } = await served({ faults });
    const value = memory.bytes[0];
    return { value, pages: await end() };
  },

  refusals() {
    const { hv, memory } = anyMemory();
    const faults = memory.userfaultfd();
    const page = new Uint8Array(PAGE);
    const attempts = {
      again: () => memory.userfaultfd(),
      itself: () => faults.copy(0, memory.bytes.subarray(0, PAGE)),
      odd: () => faults.copy(1, page),
      short: () => faults.copy(0, page.subarray(1)),
      none: () => faults.copy(0, page.subarray(0, 0)),
      beyond: () => faults.copy((PAGES - 1) * PAGE, new Uint8Array(2 * PAGE)),
      list: () => faults.copy(0, [1]),
      words: () => faults.copy(0, new Uint32Array(1024)),
      watch: () => faults.watch(1),
      backend: () => hv.openUserfaultfd({ ...faults.share(), backend: 'sim' }),
      noFile: () => hv.openUserfaultfd({ ...faults.share(), fd: 999_999 }),
      otherFile: () => hv.openUserfaultfd({ ...faults.share(), fd: memory.share().fd }),
      otherInode: () => hv.openUserfaultfd({ ...faults.share(), inode: 1 }),
      base: () => hv.openUserfaultfd({ ...faults.share(), base: 1n << 47n }),
      size: () => hv.openUserfaultfd({ ...faults.share(), size: 1 }),
    };
    const codes = Object.fromEntries(Object.entries(attempts).map(([name, call]) => [name, resultOf(call)]));
    const token = faults.share();
    const elsewhere = hv.openUserfaultfd({ ...token, base: token.base + BigInt(token.size) });
    // By no more than a page: bytes that lie in what a token claims are refused, wherever this process has them.
    const larger = hv.openUserfaultfd({ ...token, size: token.size + PAGE });
    const wild = [
      elsewhere.copy(0, page),
      elsewhere.zero(PAGE, PAGE),
      larger.copy(token.size, page),
      larger.copy(0, page),
    ];
    faults.close();
    const closedArguments = { copy: [0, page], zero: [0, PAGE], wake: [0, PAGE] };
    const closed = ['copy', 'zero', 'wake', 'read', 'watch', 'share'].map((name) =>
      codeOf(() => faults[name](...(closedArguments[name] ?? []))),
    );
    return { codes, wild, closed };
  },

  /** The memory goes first: what serves it finds nothing to copy into. */
  memoryGone() {
    const { hv, memory } = anyMemory();
    const faults = memory.userfaultfd();
    const opened = hv.openUserfaultfd(faults.share());
    memory.close();
    const kept = faults.copy(0, filled(0));
    faults.close();
    return [kept, opened.copy(PAGE, filled(PAGE))];
  },

  /** Without any privilege; the kernel's setting decides whether that is enough. */
  unprivileged() {
    const { memory } = anyMemory();
    if (process.getuid() === 0) process.setuid(65_534);
    let message = 'ok';
    try {
      memory.userfaultfd();
    } catch (error) {
      message = error.message;
    }
    const anybody = readFileSync('/proc/sys/vm/unprivileged_userfaultfd', 'utf8').trim() === '1';
    return { anybody, message };
  },

  // --- the event loop ---

  /** Several callbacks one after the other: the last counts. Ends by itself when nothing is watched any more. */
  async watches() {
    const { memory } = anyMemory();
    const faults = memory.userfaultfd();
    const access = await accessElsewhere(memory);
    const seen = [];
    const called = new Promise((resolve) => {
      faults.watch(() => seen.push('first'));
      faults.watch(undefined);
      faults.watch(() => seen.push('second'));
      faults.watch(() => {
        seen.push('third', ...faults.read());
        faults.watch(undefined);
        resolve();
      });
    });
    access.begin();
    await called;
    seen.push(faults.zero(0, PAGE));
    await access.end();
    faults.watch(() => {});
    faults.close();
    return seen;
  },

  /** A callback that throws, then one that closes what it watches. */
  async throwsInCallback() {
    const { memory } = anyMemory();
    const faults = memory.userfaultfd();
    const access = await accessElsewhere(memory);
    const caught = new Promise((resolve) => process.once('uncaughtException', resolve));
    faults.watch(() => {
      throw new Error('mine');
    });
    access.begin();
    const { message } = await caught;
    let calls = 0;
    const done = new Promise((resolve) => {
      faults.watch(() => {
        calls++;
        faults.read();
        faults.copy(0, filled(0));
        faults.close();
        resolve();
      });
    });
    await done;
    await access.end();
    await tick();
    return { message, calls };
  },

  /** Watches that nobody ends: of workers that are terminated or end by themselves, and of this process. */
  async leftOver() {
    const { memory } = anyMemory();
    const faults = memory.userfaultfd();
    const before = fds();
    for (let i = 0; i < 3; i++) {
      const { worker } = await start('watch', { token: faults.share() });
      await worker.terminate();
    }
    await collect();
    const after = fds();
    faults.watch(() => {});
    setTimeout(() => process.exit(0), 10);
    return { more: after - before };
  },
};

/** An access to the memory's first page in a thread of libuv's: read(2) waits there, and not here. */
async function accessElsewhere({ bytes }) {
  const file = await openAsync('/dev/zero');
  let reading;
  return {
    begin() {
      reading = file.read(bytes, 0, 1);
    },
    async end() {
      await reading;
      await file.close();
    },
  };
}

if (isMainThread) await main(scenarios);
else workers[workerData.role](workerData);
