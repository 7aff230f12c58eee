// What run() costs where a guest does next to nothing: an exit after another, and a VM that is made for one.
import { Exit, enterRealMode, guest, openHypervisor } from '../../dist/index.js';
import { expect, MIB, median } from '../support.mjs';
import { turn } from './children.mjs';

const CODE = 0x1000;
const LIMIT_MS = 10_000;
const COUNT = 100_000;
const MACHINES = 200;
/** Behind guest memory, so that a write there is MMIO. */
const DEVICE = MIB;

const out = guest(
  16,
  `
e6 80 | again: out 0x80, al
eb fc |        jmp again
`,
);
const store = guest(
  16,
  `
67 88 03 | again: mov [ebx], al
eb fb    |        jmp again
`,
);

function boot({ code }) {
  const hv = openHypervisor({ backend: 'sim' });
  const vm = hv.createVm();
  const ram = vm.allocate(MIB);
  vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memory: ram });
  ram.write(CODE, code);
  const vcpu = vm.createVcpu(0);
  enterRealMode(vcpu);
  const { ds } = vcpu.getSregs();
  vcpu.changeSregs({ ds: { ...ds, limit: 0xffff_ffff, g: 1 } });
  vcpu.setRegs({ rip: CODE, rflags: 2, rbx: DEVICE });
  const close = () => {
    for (const object of [vcpu, vm, ram, hv]) object.close();
  };
  return { vcpu, close };
}

/** Microseconds an exit. */
function perExit(code, wanted) {
  const { vcpu, close } = boot(code);
  const start = performance.now();
  for (let i = 0; i < COUNT; i++) expect(vcpu.run(LIMIT_MS) === wanted);
  const us = ((performance.now() - start) * 1000) / COUNT;
  close();
  return us;
}

/** Microseconds for a VM that is made, runs to its first exit, and is closed. */
function perMachine() {
  const start = performance.now();
  for (let i = 0; i < MACHINES; i++) {
    const { vcpu, close } = boot(out);
    expect(vcpu.run(LIMIT_MS) === Exit.IO);
    close();
  }
  return ((performance.now() - start) * 1000) / MACHINES;
}

export async function exits({ rounds }) {
  const times = { out: [], mmio: [], machine: [] };
  for (let i = 0; i < rounds; i++) {
    await turn();
    times.out.push(perExit(out, Exit.IO));
    times.mmio.push(perExit(store, Exit.MMIO));
    times.machine.push(perMachine());
  }
  const us = Object.fromEntries(Object.entries(times).map(([name, of]) => [name, median(of)]));
  return {
    text:
      `run() to an OUT: ${us.out.toFixed(2)} us; to an MMIO write: ${us.mmio.toFixed(2)} us; ` +
      `a VM made, run to its first exit and closed: ${us.machine.toFixed(0)} us`,
    figures: us,
  };
}
