// Memory: private pages that a guest touches and what serves them, guest memory that nobody touches, and what is held of
// code that is new each time.
import { Exit, enterLongMode, guest, MemoryFaultService, openHypervisor, VmType } from '../../dist/index.js';
import { expect, MIB, median, resident } from '../support.mjs';
import { turn, watch } from './children.mjs';
import { image } from './images.mjs';
import { machines } from './machines.mjs';

const TABLES = 0x1_0000;
const LIMIT_MS = 120_000;
const PAGES = 2048;
const AREA = 2 ** 30;

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

function serveAll() {
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
  const us = ((performance.now() - start) * 1000) / served;
  expect(served === PAGES, `${served} faults`);
  for (const object of [vcpu, vm, ram, area, hv]) object.close();
  return us;
}

/** Many rounds, since V8 compiles what serves faults as it sees more of them: what is cold is told beside it. */
export async function conversions({ rounds }) {
  const times = [];
  for (let i = 0; i < 20 * rounds; i++) {
    await turn();
    times.push(serveAll());
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

export function untouched() {
  const hv = openHypervisor({ backend: 'sim' });
  const vm = hv.createVm();
  const before = resident('VmRSS');
  const ram = vm.allocate(2 ** 30);
  vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memory: ram });
  const more = resident('VmRSS') - before;
  for (const object of [vm, ram, hv]) object.close();
  return {
    text: `1 GiB of guest memory, untouched: ${more} kB resident`,
    target: 'none (at most 4 MiB of noise)',
    met: more < 4096,
    figures: { residentKb: more },
  };
}

/** The most that the process of a program had resident, in MiB, before the program ended. */
async function most(name, folder) {
  const command = [...machines.sim64.command(image(name, 64, folder)), 'peak'];
  const { output } = await watch(command, LIMIT_MS, () => false);
  const [, kb] = /^peak (\d+)$/m.exec(output) ?? [];
  expect(kb !== undefined, `${name} came to no end`);
  return kb / 1024;
}

export async function translations({ folder }) {
  const [some, many] = [await most('recursion', folder), await most('fresh', folder)];
  return {
    text: `a process with a small program: ${some.toFixed(0)} MiB resident at most; with much code that is new each time: ${many.toFixed(0)} MiB`,
    figures: { someMib: some, manyMib: many },
  };
}
