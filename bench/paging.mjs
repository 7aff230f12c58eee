// Demand paging beside paging_bench.c: one vCPU reads a word of each of many pages, which come from a buffer.
import { Exit, enterLongMode, guest, openHypervisor, Pager } from '../dist/index.js';
import { expect, MIB, nanoseconds } from './support.mjs';

const PAGE = 4096;
const CODE = 0x1000;
const TABLES = 0x1_0000;
const AREA = 0x4000_0000;
const WARM_UP = 64;

const touching = guest(
  64,
  `
48 03 07             | again: add rax, [rdi]
48 81 c7 00 10 00 00 |        add rdi, 0x1000
48 39 f7             |        cmp rdi, rsi
75 f1                |        jne again
e7 f4                |        out 0xf4, eax
`,
);

/** Of so many pages: the number of each, from 1, in its first word. */
function numbered(pages) {
  const bytes = new Uint8Array(new SharedArrayBuffer(pages * PAGE));
  const words = new Uint32Array(bytes.buffer);
  for (let page = 0; page < pages; page++) words[(page * PAGE) / 4] = page + 1;
  return bytes;
}

/** Privilege 3 of 64-bit mode, where every host's KVM runs code on the processor. */
function enterUserMode(hv, vcpu, ram) {
  vcpu.setCpuid2(hv.getSupportedCpuid());
  enterLongMode(vcpu, ram, { tables: TABLES, identity: 4 * 2 ** 30 });
  const { cs, ds, es, ss } = vcpu.getSregs();
  const outer = (segment) => ({ ...segment, dpl: 3, selector: segment.selector | 3 });
  vcpu.changeSregs({ cs: outer(cs), ds: outer(ds), es: outer(es), ss: outer(ss) });
}

/** One pager for all rounds, each on pages of its own: a VMM pages for long, not many times for a moment. */
const paging = (strategy, batch) => (count, rounds) => {
  const pages = WARM_UP + count * rounds;
  const hv = openHypervisor({ backend: 'kvm' });
  const vm = hv.createVm();
  // In a VM, memory that its kernel has never used costs a page fault of its host's: C uses the same few pages again.
  const used = vm.allocate(2 * pages * PAGE);
  used.bytes.fill(1);
  used.close();
  const ram = vm.allocate(MIB);
  vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memory: ram });
  ram.write(CODE, touching.code);
  const vcpu = vm.createVcpu(0);
  enterUserMode(hv, vcpu, ram);
  const area = vm.allocate(pages * PAGE);
  vm.setUserMemoryRegion({ slot: 1, guestPhysAddr: AREA, memory: area });
  const source = { kind: 'buffer', bytes: numbered(pages) };
  const pager = Pager.start(hv, vm, { memories: [area], source, strategy, prefetch: false, batch });

  const touch = (first, end) => {
    const [rdi, rsi] = [AREA + first * PAGE, AREA + end * PAGE];
    vcpu.setRegs({ rip: CODE, rflags: 0x3002, rdi, rsi });
    const start = process.hrtime.bigint();
    for (let exit = vcpu.run(); exit !== Exit.IO; exit = vcpu.run()) {
      expect(pager.handle(vcpu, exit) === true, `exit ${exit}`);
    }
    const ns = nanoseconds(start, end - first);
    expect(vcpu.io.value === (((first + 1 + end) * (end - first)) / 2) % 2 ** 32, 'it read something else');
    return ns;
  };
  touch(0, WARM_UP);
  let next = WARM_UP;
  const round = () => {
    next += count;
    return touch(next - count, next);
  };
  const close = () => {
    // The pager's thread counts a page after the guest has it.
    const { strategy: chosen, present } = pager.report;
    expect(chosen === strategy && present >= pages - batch, `${present} of ${pages} pages by ${chosen}`);
    pager[Symbol.dispose]();
    for (const object of [vcpu, vm, area, ram, hv]) object.close();
  };
  return Object.assign(round, { close });
};

const bench = (strategy, batch) => ({
  what: `a page that the guest touches, from a buffer, ${batch} at a time`,
  prepare: paging(strategy, batch),
  program: 'paging_bench.c',
  args: (count) => [strategy, String(count), String(batch)],
  count: 2048,
  // V8 compiles what has run some thousand times: so many faults are 40 rounds.
  warmUp: 40,
  target: { ratio: 1 / 0.9 },
  needs: [strategy],
});

export const benches = {
  userfault: bench('userfault', 1),
  'userfault-16': bench('userfault', 16),
  userfaultfd: bench('userfaultfd', 1),
  'userfaultfd-16': bench('userfaultfd', 16),
};
