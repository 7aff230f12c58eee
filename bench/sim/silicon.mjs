// Programs on the simulator, and beside it on this host's KVM, at privilege 3, where that runs them on the silicon whatever its
// kind.
import { Exit, enterLongMode, guest, loadGuest, openHypervisor } from '../../dist/index.js';
import { compile, expect, MIB, median } from '../support.mjs';
import { turn } from './children.mjs';

const RAM_SIZE = 16 * MIB;
const TABLES = 0x1_0000;
const STACK = 0xf0_0000;
const LIMIT_MS = 120_000;
const IOPL3 = 0x3002;
const ITERATIONS = 100_000_000n;
/** IA32_TIME_STAMP_COUNTER: in the simulator it counts instructions. */
const TSC = 0x10;

const hot = guest(
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

/** A guest in 64-bit mode at privilege 3. */
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

function hasKvm() {
  try {
    openHypervisor({ backend: 'kvm' }).close();
    return true;
  } catch {
    return false;
  }
}

async function program(name, image, regs, target, { rounds }) {
  const backends = hasKvm() ? ['sim', 'kvm'] : ['sim'];
  const results = { sim: [], kvm: [] };
  const answers = new Set();
  for (let i = 0; i < rounds; i++) {
    for (const backend of backends) {
      await turn();
      const result = toOutput(backend, image, regs);
      answers.add(result.value);
      results[backend].push(result);
    }
  }
  expect(answers.size === 1, `${name}: results ${[...answers]}`);
  const instructions = results.sim[0].instructions;
  const ms = median(results.sim.map(({ ms }) => ms));
  const kvmMs = results.kvm.length > 0 ? median(results.kvm.map(({ ms }) => ms)) : undefined;
  const mips = instructions / ms / 1000;
  const beside = kvmMs === undefined ? '' : `, ${(ms / kvmMs).toFixed(2)} times KVM's ${kvmMs.toFixed(0)} ms`;
  return {
    text: `${(instructions / 1e6).toFixed(0)} M instructions in ${ms.toFixed(0)} ms: ${mips.toFixed(0)} MIPS${beside}`,
    target: `at least ${target} MIPS`,
    met: mips >= target,
    figures: { instructions, ms, mips, kvmMs },
  };
}

const flat = { entry: 0x10_0000, segments: [{ address: 0x10_0000, data: hot.code }] };
export const loop = (options) =>
  program('loop', flat, { rbx: 0x1234_5678_9abcn, rdi: 0x20_0000, rcx: ITERATIONS }, 1000, options);

export function mixed(options) {
  const flags =
    '-O2 -ffreestanding -nostdlib -static -fno-pie -no-pie -mno-red-zone -fno-stack-protector -fcf-protection=none';
  const link = '-Wl,-Ttext=0x100000,-z,noseparate-code,--build-id=none';
  const elf = compile(options.folder, 'sim/mixed.c', [...flags.split(' '), link]);
  return program('mixed', loadGuest(elf), {}, 100, options);
}
