// A program of the benchmarks on the simulator: node sim.mjs IMAGE MIB [peak]. What it writes to port 0xe9 comes out at once; `peak`
// has the process tell at the end how much it had resident at most, in KiB.
import { readFileSync, writeSync } from 'node:fs';
import { Exit, enterProtectedMode, openHypervisor } from '../../../dist/index.js';
import { LOADED, place } from './multiboot.mjs';

const MARKS = 0xe9;
const END = 0xf4;
const LIMIT_MS = 600_000;

const [path, mib, peak] = process.argv.slice(2);
const size = Number(mib) * 2 ** 20;
const hv = openHypervisor({ backend: 'sim' });
const vm = hv.createVm();
const ram = vm.allocate(size);
vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memory: ram });
const vcpu = vm.createVcpu(0);
vcpu.setCpuid2(hv.getSupportedCpuid());
enterProtectedMode(vcpu, ram, { tables: size - 4096 });
vcpu.setRegs({
  rip: place(readFileSync(path), (address, bytes) => ram.write(address, bytes)),
  rax: LOADED,
  rflags: 2,
});

const { io } = vcpu;
const byte = new Uint8Array(1);
for (;;) {
  const exit = vcpu.run(LIMIT_MS);
  if (exit === Exit.MMIO) continue;
  if (exit !== Exit.IO) {
    process.stderr.write(`the simulator's run ended with ${exit}\n`);
    process.exit(1);
  }
  if (io.port === MARKS) {
    byte[0] = io.value;
    writeSync(1, byte);
  } else if (io.port === END) {
    if (peak !== undefined) writeSync(1, `peak ${process.resourceUsage().maxRSS}\n`);
    process.exit(0);
  }
}
