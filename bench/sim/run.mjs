// The simulator's benchmarks: medians of several rounds in one run, and beside them the same guest on this host's
// KVM, at privilege 3, where there is one. npm run bench:sim [-- --only NAME] [--rounds N] [--json]
import { spawnSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import {
  Exit,
  enterLongMode,
  guest,
  loadGuest,
  MemoryFaultService,
  openHypervisor,
  VmType,
} from '../../dist/index.js';
import { compile, expect, MIB, main, median, packageEntry, resident } from '../support.mjs';

const RAM_SIZE = 16 * MIB;
const TABLES = 0x1_0000;
const STACK = 0xf0_0000;
const LIMIT_MS = 120_000;
const IOPL3 = 0x3002;
const ITERATIONS = 100_000_000n;
/** IA32_TIME_STAMP_COUNTER: in the simulator it counts instructions. */
const TSC = 0x10;

const loop = guest(
  64,
  `
48 01 d8       | again: add rax, rbx
48 31 c2       |        xor rdx, rax
48 89 17       |        mov [rdi], rdx
48 8b 37       |        mov rsi, [rdi]
48 01 f0       |        add rax, rsi
4c 8d 44 48 05 |        lea r8, [rax + rcx * 2 + 5]
48 83 e9 01    |        sub rcx, 1
75 e6          |        jnz again
e7 f4          |        out 0xf4, eax
f4             |        hlt
`,
);

/** A guest in 64-bit mode at privilege 3, where a host's KVM runs it on the silicon whatever its kind. */
function boot(backend, image, regs = {}) {
  const hv = openHypervisor({ backend });
  const vm = hv.createVm();
  const ram = vm.allocate(RAM_SIZE);
  vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memory: ram });
  for (const { address, data } of image.segments) ram.write(address, data);
  const vcpu = vm.createVcpu(0);
  vcpu.setCpuid2(hv.getSupportedCpuid());
  enterLongMode(vcpu, ram, { tables: TABLES, identity: 2 ** 30 });
  const { cs, ds, es, ss } = vcpu.getSregs();
  const outer = (segment) => ({ ...segment, dpl: 3, selector: segment.selector | 3 });
  vcpu.changeSregs({ cs: outer(cs), ds: outer(ds), es: outer(es), ss: outer(ss) });
  vcpu.setRegs({ rip: image.entry, rsp: STACK - 8, rflags: IOPL3, ...regs });
  const close = () => {
    for (const object of [vcpu, vm, ram, hv]) object.close();
  };
  return { vcpu, close };
}

/** Runs a guest to its OUT: the milliseconds, the instructions (on the simulator), and what it found. */
function toOutput(backend, image, regs) {
  const { vcpu, close } = boot(backend, image, regs);
  const count = () => (backend === 'sim' ? vcpu.getMsrs([TSC])[0].data : 0n);
  const before = count();
  const start = performance.now();
  const exit = vcpu.run(LIMIT_MS);
  const ms = performance.now() - start;
  expect(exit === Exit.IO, `${backend} ended with ${exit}`);
  const result = { ms, instructions: Number(count() - before), value: vcpu.io.value };
  close();
  return result;
}

function program(name, image, regs, target, { rounds }) {
  const results = { sim: [], kvm: [] };
  const answers = new Set();
  for (let i = 0; i < rounds; i++) {
    for (const backend of ['sim', 'kvm']) {
      if (backend === 'kvm' && !hasKvm) continue;
      const result = toOutput(backend, image, regs);
      answers.add(result.value);
      results[backend].push(result);
    }
  }
  expect(answers.size === 1, `${name}: results ${[...answers]}`);
  const instructions = results.sim[0].instructions;
  const ms = median(results.sim.map(({ ms }) => ms));
  const kvmMs = hasKvm ? median(results.kvm.map(({ ms }) => ms)) : undefined;
  const mips = instructions / ms / 1000;
  const beside = kvmMs === undefined ? '' : `, ${(ms / kvmMs).toFixed(2)} times KVM's ${kvmMs.toFixed(0)} ms`;
  return {
    text: `${(instructions / 1e6).toFixed(0)} M instructions in ${ms.toFixed(0)} ms: ${mips.toFixed(0)} MIPS${beside}`,
    target: `at least ${target} MIPS`,
    met: mips >= target,
    figures: { instructions, ms, mips, kvmMs },
  };
}

function mixed(options) {
  const flags =
    '-O2 -ffreestanding -nostdlib -static -fno-pie -no-pie -mno-red-zone -fno-stack-protector -fcf-protection=none';
  const link = '-Wl,-Ttext=0x100000,-z,noseparate-code,--build-id=none';
  const elf = compile(options.folder, 'sim/mixed.c', [...flags.split(' '), link]);
  return program('mixed', loadGuest(elf), {}, 100, options);
}

/** From the start of a process to its guest's first exit, beside a process that does nothing. */
function coldStart({ folder, rounds }) {
  const script = join(folder, 'cold.mjs');
  const package_ = JSON.stringify(packageEntry);
  writeFileSync(
    script,
    `import { enterRealMode, openHypervisor } from ${package_};
const vm = openHypervisor({ backend: 'sim' }).createVm();
const ram = vm.allocate(65536);
vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memory: ram });
ram.write(0x1000, Uint8Array.of(0xe6, 0x80, 0xf4));
const vcpu = vm.createVcpu(0);
enterRealMode(vcpu);
vcpu.setRegs({ rip: 0x1000, rflags: 2 });
process.exit(vcpu.run(1000) === ${Exit.IO} ? 0 : 1);
`,
  );
  const took = (args) => {
    const start = performance.now();
    expect(spawnSync(process.execPath, args).status === 0, 'a cold start');
    return performance.now() - start;
  };
  const differences = [];
  for (let i = 0; i < 2 * rounds + 1; i++) differences.push(-took(['-e', '0']) + took([script]));
  const more = median(differences);
  return {
    text: `a guest's first exit comes ${more.toFixed(0)} ms after node -e 0 has ended`,
    target: 'at most 150 ms',
    met: more <= 150,
    figures: { more },
  };
}

/** A guest that touches private pages where nothing private is; each is shared, and it goes on. */
const touching = guest(
  64,
  `
48 8b 07             | again: mov rax, [rdi]
48 81 c7 00 10 00 00 |        add rdi, 0x1000
48 39 f7             |        cmp rdi, rsi
75 f1                |        jne again
e7 f4                |        out 0xf4, eax
`,
);

/** Many rounds, since V8 compiles what serves faults as it sees more of them: what is cold is told beside it. */
function faults({ rounds }) {
  const PAGES = 2048;
  const AREA = 0x4_0000_0000 / 16; // 1 GiB
  const times = [];
  for (let i = 0; i < 20 * rounds; i++) {
    const hv = openHypervisor({ backend: 'sim' });
    const vm = hv.createVm({ type: VmType.SW_PROTECTED });
    const ram = vm.allocate(MIB);
    const area = vm.allocate(PAGES * 4096);
    vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memory: ram });
    vm.setUserMemoryRegion({ slot: 1, guestPhysAddr: AREA, memory: area });
    vm.setMemoryAttributes({ address: AREA, size: PAGES * 4096, attributes: 8 });
    ram.write(0x1000, touching.code);
    const vcpu = vm.createVcpu(0);
    vcpu.setCpuid2(hv.getSupportedCpuid());
    enterLongMode(vcpu, ram, { tables: TABLES, identity: 2 * 2 ** 30 });
    vcpu.setRegs({ rip: 0x1000, rsp: 0x8000, rflags: 2, rdi: AREA, rsi: AREA + PAGES * 4096 });
    const service = new MemoryFaultService(vm, { policy: () => 'allow' });
    let served = 0;
    const start = performance.now();
    for (;;) {
      const exit = vcpu.run(LIMIT_MS);
      if (exit === Exit.IO) break;
      expect(exit === Exit.MEMORY_FAULT && service.handle(vcpu, exit), `exit ${exit}`);
      served++;
    }
    times.push(((performance.now() - start) * 1000) / served);
    expect(served === PAGES, `${served} faults`);
    for (const object of [vcpu, vm, ram, area, hv]) object.close();
  }
  const us = median(times);
  const [firstUs] = times;
  return {
    text: `a memory fault, its conversion and the retry: ${us.toFixed(2)} us; of the first ${PAGES}: ${firstUs.toFixed(2)} us`,
    target: 'at most 5 us',
    met: us <= 5,
    figures: { us, firstUs },
  };
}

function memory() {
  const hv = openHypervisor({ backend: 'sim' });
  const vm = hv.createVm();
  const before = resident('VmRSS');
  const ram = vm.allocate(2 ** 30);
  vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memory: ram });
  const more = resident('VmRSS') - before;
  return {
    text: `1 GiB of guest memory, untouched: ${more} kB resident`,
    target: 'none (at most 4 MiB of noise)',
    met: more < 4096,
    figures: { residentKb: more },
  };
}

const flat = { entry: 0x10_0000, segments: [{ address: 0x10_0000, data: loop.code }] };

const benches = {
  loop: (options) =>
    program('loop', flat, { rbx: 0x1234_5678_9abcn, rdi: 0x20_0000, rcx: ITERATIONS }, 1000, options),
  mixed,
  cold: coldStart,
  faults,
  memory,
};

let hasKvm = true;
try {
  openHypervisor({ backend: 'kvm' }).close();
} catch {
  hasKvm = false;
}

await main('npm run bench:sim', benches, 5, (_, bench, options) => {
  const { text, target, met, figures } = bench(options);
  return {
    text: `${text}   (target ${target}: ${met ? 'met' : 'MISSED'})`,
    figures: { ...figures, met },
  };
});
