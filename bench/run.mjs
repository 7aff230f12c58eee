// The benchmarks: each beside C that does the same work (kvm_bench.c), in alternate rounds of one run. What counts
// is the median of each side's rounds, and their ratio or difference. npm run bench [-- --only NAME] [--json]
import { execFileSync } from 'node:child_process';
import {
  Exit,
  enterRealMode,
  guest,
  MemFlag,
  MemoryFaultService,
  missing,
  openHypervisor,
  VmType,
} from '../dist/index.js';
import { Cap, Hypercall } from '../dist/uapi/index.js';
import { benches as paging } from './paging.mjs';
import { benches as registers } from './registers.mjs';
import { benches as restore } from './restore.mjs';
import { compile, expect, MIB, main, median, nanoseconds, resident } from './support.mjs';

const RAM_SIZE = 64 * MIB;
const AREA = 0x4000_0000;
const AREA_SIZE = 2 * MIB;
const LOGGED_SIZE = 2 ** 30;
const CODE = 0x1000;

const pio = guest(
  16,
  `
e6 80 | again: out 0x80, al
eb fc |        jmp again
`,
);
const converting = guest(
  16,
  `
66 b8 0c 00 00 00 | again: mov eax, 12
66 ba 10 00 00 00 |        mov edx, 16
0f 01 d9          |        vmmcall
66 b8 0c 00 00 00 |        mov eax, 12
66 31 d2          |        xor edx, edx
0f 01 d9          |        vmmcall
eb e3             |        jmp again
`,
);

const writing = guest(
  16,
  `
 66 bb 00 00 00 00    | again: mov ebx, 0
 66 b9 00 04 00 00    |        mov ecx, 1024
 67 88 03             | next:  mov [ebx], al
 66 81 c3 00 00 10 00 |        add ebx, 0x100000
 66 49                |        dec ecx
 75 f2                |        jnz next
 e6 80                |        out 0x80, al
 eb e2                |        jmp again
`,
);

/** Programs the master PIC with vectors from 0x20 on and automatic ends of interrupt, says that it is ready, and waits. */
const waits = guest(
  16,
  `
 b0 11 |        mov al, 0x11
 e6 20 |        out 0x20, al
 b0 20 |        mov al, 0x20
 e6 21 |        out 0x21, al
 b0 04 |        mov al, 4
 e6 21 |        out 0x21, al
 b0 03 |        mov al, 3
 e6 21 |        out 0x21, al
 b0 00 |        mov al, 0
 e6 21 |        out 0x21, al
 e6 f2 |        out 0xf2, al
 fb    |        sti
 f4    | again: hlt
 eb fd |        jmp again
`,
);
const handler = guest(
  16,
  `
 e6 f1 | out 0xf1, al
 cf    | iret
`,
);
const rings = guest(
  16,
  `
 e6 f2 | again: out 0xf2, al
 e6 f1 |        out 0xf1, al
 eb fa |        jmp again
`,
);
const HANDLER = 0x1100;
const LINE = 4;
const READY_PORT = 0xf2;
const HANDLER_PORT = 0xf1;

function boot(code, { type = 0, regs = {}, irqchip = false } = {}) {
  const hv = openHypervisor();
  const vm = hv.createVm({ type });
  const ram = vm.allocate(RAM_SIZE);
  vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memory: ram });
  ram.write(CODE, code);
  if (irqchip) vm.createIrqchip();
  const vcpu = vm.createVcpu(0);
  enterRealMode(vcpu);
  vcpu.setRegs({ rip: CODE, rflags: 2, ...regs });
  const close = () => {
    vcpu.close();
    vm.close();
    ram.close();
    hv.close();
  };
  return { hv, vm, ram, vcpu, close };
}

// Each of these makes its VM, and gives what runs a round on it: a VMM runs one vCPU for long, not many for a moment.

function exits() {
  const { vcpu } = boot(pio.code);
  const { io } = vcpu;
  expect(vcpu.run() === Exit.IO);
  return (count) => {
    let sum = 0;
    const start = process.hrtime.bigint();
    for (let i = 0; i < count; i++) {
      expect(vcpu.run() === Exit.IO && io.direction === 1);
      sum += io.port + io.size + io.count + io.value;
    }
    const ns = nanoseconds(start, count);
    expect(sum === count * (0x80 + 1 + 1));
    return ns;
  };
}

function immediate() {
  const { vcpu } = boot(pio.code);
  expect(vcpu.run() === Exit.IO);
  vcpu.immediateExit = true;
  vcpu.run();
  return (count) => {
    const start = process.hrtime.bigint();
    for (let i = 0; i < count; i++) expect(vcpu.run() === Exit.INTERRUPTED);
    return nanoseconds(start, count);
  };
}

const firstExit = () => (count) => {
  const elapsed = [];
  for (let i = 0; i < count; i++) {
    const start = process.hrtime.bigint();
    const { vcpu, close } = boot(pio.code);
    expect(vcpu.run() === Exit.IO);
    elapsed.push(nanoseconds(start, 1));
    close();
  }
  return median(elapsed);
};

const convert = (pages) => () => {
  const { vm, vcpu } = boot(converting.code, { type: VmType.SW_PROTECTED, regs: { rbx: AREA, rcx: pages } });
  const area = vm.allocate(AREA_SIZE);
  const secret = vm.createGuestMemfd(AREA_SIZE);
  vm.setUserMemoryRegion2({ slot: 1, guestPhysAddr: AREA, memory: area, guestMemfd: secret });
  vm.enableCap({ cap: Cap.EXIT_HYPERCALL, args: [1 << Hypercall.MAP_GPA_RANGE] });
  const service = new MemoryFaultService(vm);
  let converted = 0;
  return (count) => {
    const start = process.hrtime.bigint();
    for (let i = 0; i < count; i++) expect(service.handle(vcpu, vcpu.run()));
    const ns = nanoseconds(start, count);
    const { conversions, discardFailures } = service.counters;
    converted += count;
    expect(conversions.toPrivate + conversions.toShared === converted && discardFailures === 0);
    return ns;
  };
};

/**
 * Only the call is measured: not the guest that writes between two of them, nor what an emulated processor forgets of a
 * process's pages when it has run a guest. So the log of another slot is read first, on both sides.
 */
function dirtyLog() {
  const { vm, vcpu } = boot(writing.code);
  const sregs = vcpu.getSregs();
  vcpu.setSregs({ ...sregs, ds: { ...sregs.ds, base: AREA, limit: 0xffff_ffff, g: 1 } });
  const memory = vm.allocate(LOGGED_SIZE);
  vm.setUserMemoryRegion({ slot: 1, guestPhysAddr: AREA, memory, flags: MemFlag.LOG_DIRTY_PAGES });
  const page = vm.allocate(4096);
  const flags = MemFlag.LOG_DIRTY_PAGES;
  vm.setUserMemoryRegion({ slot: 2, guestPhysAddr: AREA + LOGGED_SIZE, memory: page, flags });
  const log = new Uint8Array(LOGGED_SIZE / 4096 / 8);
  return (count) => {
    let elapsed = 0n;
    for (let i = -1; i < count; i++) {
      expect(vcpu.run() === Exit.IO);
      vm.getDirtyLog(2, 0, log);
      const start = process.hrtime.bigint();
      vm.getDirtyLog(1, 0, log);
      if (i >= 0) elapsed += process.hrtime.bigint() - start;
      expect(log[0] === 1 && log.at(-32) === 1 && log[1] === 0);
    }
    return Number(elapsed) / count;
  };
}

function irqfd() {
  const { hv, vm, ram, vcpu } = boot(waits.code, { irqchip: true, regs: { rsp: 0x8000 } });
  ram.write(HANDLER, handler.code);
  ram.write(4 * (0x20 + LINE), new Uint8Array(Uint16Array.of(HANDLER, 0).buffer));
  const bell = hv.createEventFd();
  vm.irqfd({ eventFd: bell, gsi: LINE });
  const { io } = vcpu;
  expect(vcpu.run() === Exit.IO && io.port === READY_PORT);
  return (count) => {
    const start = process.hrtime.bigint();
    for (let i = 0; i < count; i++) {
      bell.signal();
      expect(vcpu.run() === Exit.IO && io.port === HANDLER_PORT);
    }
    return nanoseconds(start, count);
  };
}

function ioeventfd() {
  const { hv, vm, vcpu } = boot(rings.code);
  const door = hv.createEventFd();
  vm.ioeventfd({ eventFd: door, address: READY_PORT, pio: true });
  const { io } = vcpu;
  const run = () => expect(vcpu.run() === Exit.IO && io.port === HANDLER_PORT);
  return (count) =>
    new Promise((resolve) => {
      let left = count;
      const start = process.hrtime.bigint();
      door.watch((rung) => {
        expect(rung === 1);
        if (--left > 0) return run();
        door.watch(undefined);
        resolve(nanoseconds(start, count));
      });
      run();
    });
}

// target: what the project promises, if it does. `more`: nanoseconds above C. `ratio`: of JS's time to C's. `program` and `args`:
// the C side, kvm_bench.c with the name and the count where they are not given. `warmUp`: rounds before the first one.
const benches = {
  pio: { what: 'a port exit, its fields read', prepare: exits, count: 20_000, target: { more: 100 } },
  immediate: {
    what: 'the cheapest return of KVM_RUN',
    prepare: immediate,
    count: 50_000,
    target: { more: 100 },
  },
  open: {
    what: 'open, VM, vCPU, 64 MiB, first exit',
    prepare: firstExit,
    count: 30,
    target: { ratio: 1.2 },
  },
  'convert-4k': {
    what: 'a conversion of 4 KiB that the guest asks for',
    prepare: convert(1),
    count: 3_000,
    target: { ratio: 1 / 0.95 },
    needs: ['private-memory', 'map-gpa-range'],
  },
  'convert-2m': {
    what: 'a conversion of 2 MiB that the guest asks for',
    prepare: convert(512),
    count: 3_000,
    target: { ratio: 1 / 0.95 },
    needs: ['private-memory', 'map-gpa-range'],
  },
  ...registers,
  'dirty-log': {
    what: 'KVM_GET_DIRTY_LOG of 1 GiB with 1024 dirty pages',
    prepare: dirtyLog,
    count: 100,
    target: { ratio: 1.1 },
    needs: ['dirty-log'],
  },
  irqfd: {
    what: "an irqfd's signal, to the exit of the guest's handler",
    prepare: irqfd,
    count: 5_000,
    needs: ['irqchip'],
  },
  ioeventfd: {
    what: "a guest's write to an ioeventfd, to the callback in the event loop",
    prepare: ioeventfd,
    count: 5_000,
  },
  ...paging,
  ...restore,
  memory: { what: 'what 1 GiB of guest memory that nobody has touched takes of the host' },
};

function memory() {
  const files = ['RssAnon', 'RssFile', 'RssShmem'];
  const hv = openHypervisor();
  const vm = hv.createVm();
  const before = resident(...files);
  const ram = vm.allocate(2 ** 30);
  vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memory: ram });
  const residentKb = resident(...files) - before;
  return { text: `1 GiB of guest memory, untouched: ${residentKb} kB resident`, figures: { residentKb } };
}

async function compare(
  name,
  { prepare, count, warmUp = 0, program = 'kvm_bench.c', args = () => [name, String(count)] },
  options,
) {
  const path = compile(options.folder, program);
  const round = prepare(count, warmUp + options.rounds + 1);
  for (let i = 0; i < warmUp; i++) await round(count);
  const c = [];
  const js = [];
  for (let i = 0; i <= options.rounds; i++) {
    const first = Number(execFileSync(path, args(count), { encoding: 'utf8' }));
    const second = await round(count);
    if (i === 0) continue; // warms up: code is compiled, pages are faulted in
    c.push(first);
    js.push(second);
  }
  round.close?.();
  const differences = js.map((ns, i) => ns - c[i]);
  return {
    c: median(c),
    js: median(js),
    more: median(differences),
    ratio: median(js.map((ns, i) => ns / c[i])),
  };
}

async function measure(name, bench, options) {
  if (name === 'memory') return memory();
  if (bench.run) return bench.run(options);
  const hv = openHypervisor({ backend: 'kvm' });
  const [lack] = missing(hv, bench.needs ?? []);
  hv.close();
  if (lack) return { text: `skipped: ${lack.reason}`, figures: { skipped: lack.reason } };
  const { c, js, more, ratio } = await compare(name, bench, options);
  const { target, what } = bench;
  const met = target && (target.more === undefined ? ratio <= target.ratio : more <= target.more);
  const wanted =
    target?.more === undefined ? `at most ${target?.ratio.toFixed(3)}` : `at most +${target.more} ns`;
  const judged = target ? `target ${wanted}: ${met ? 'met' : 'MISSED'}   ` : '';
  const text =
    `C ${c.toFixed(0).padStart(9)} ns   vmexit ${js.toFixed(0).padStart(9)} ns   ` +
    `${more >= 0 ? '+' : ''}${more.toFixed(0)} ns, ${ratio.toFixed(3)} of C's time   ` +
    `${judged}(${what})`;
  return { text, figures: { c, js, more, ratio, target, met } };
}

await main('npm run bench', benches, 11, measure);
