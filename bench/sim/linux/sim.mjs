// A Linux kernel on the simulator: node sim.mjs BZIMAGE INITRD MIB COMMAND_LINE. Its console comes out as it is written. By
// the kernel's own protocol (Documentation/arch/x86/boot.rst, "64-bit Boot Protocol"): no BIOS, no boot loader.
import { readFileSync, writeSync } from 'node:fs';
import { Bus, enterLongMode, openHypervisor, RunLoop, Serial } from '../../../dist/index.js';

const MIB = 2 ** 20;
const LIMIT_MS = 600_000;
const PARAMETERS = 0x1_0000;
const COMMAND_LINE = 0x2_0000;
const TABLES = 0x3_0000;
const STACK = 0x9_0000;
/** Where usable memory below 1 MiB ends, and begins again. */
const [LOW_END, HIGH_START] = [0x9_f000, 0x10_0000];
/** struct boot_params, and of it the setup header. */
const at = {
  ...{ e820Count: 0x1e8, setupSectors: 0x1f1, header: 0x202, loader: 0x210, flags: 0x211 },
  ...{ ramdisk: 0x218, ramdiskSize: 0x21c, commandLine: 0x228, preferred: 0x258, size: 0x260, e820: 0x2d0 },
};
const HEADER_START = 0x1f1;
const ENTRY_64 = 0x200;
/** CPUID's leaf of memory encryption (APM volume 3, E.4.17). */
const ENCRYPTION = 0x8000_001f;

/** Its registers, in BCD (MC146818): seconds to the year, the control registers, the century. */
const CLOCK = { 0: 0, 2: 0, 4: 0x12, 6: 7, 7: 1, 8: 1, 9: 0x26, 10: 0x26, 11: 2, 12: 0, 13: 0x80, 50: 0x20 };

const [kernelPath, initrdPath, mib, commandLine] = process.argv.slice(2);
const [kernel, initrd] = [readFileSync(kernelPath), readFileSync(initrdPath)];
const size = Number(mib) * MIB;
const hv = openHypervisor({ backend: 'sim' });
const vm = hv.createVm();
const ram = vm.allocate(size);
vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memory: ram });
const vcpu = vm.createVcpu(0);
// A guest that is told of memory encryption reads the MSRs of it, which only a VM of that type has.
vcpu.setCpuid2(hv.getSupportedCpuid().filter((entry) => entry.function !== ENCRYPTION));

const parameters = Buffer.alloc(4096);
const headerEnd = at.header + kernel[at.header - 1];
kernel.copy(parameters, HEADER_START, HEADER_START, headerEnd);
const load = Number(kernel.readBigUInt64LE(at.preferred));
ram.write(load, kernel.subarray((kernel[at.setupSectors] + 1) * 512));
const initrdAt = Math.floor((size - initrd.length) / 4096) * 4096;
ram.write(initrdAt, initrd);
ram.write(COMMAND_LINE, Buffer.from(`${commandLine}\0`));
parameters[at.loader] = 0xff;
parameters.writeUInt32LE(initrdAt, at.ramdisk);
parameters.writeUInt32LE(initrd.length, at.ramdiskSize);
parameters.writeUInt32LE(COMMAND_LINE, at.commandLine);
const usable = [
  [0, LOW_END],
  [HIGH_START, size],
];
parameters[at.e820Count] = usable.length;
for (const [i, [start, end]] of usable.entries()) {
  parameters.writeBigUInt64LE(BigInt(start), at.e820 + i * 20);
  parameters.writeBigUInt64LE(BigInt(end - start), at.e820 + i * 20 + 8);
  parameters.writeUInt32LE(1, at.e820 + i * 20 + 16);
}
ram.write(PARAMETERS, parameters);
enterLongMode(vcpu, ram, { tables: TABLES });
vcpu.setRegs({ rip: load + ENTRY_64, rsi: PARAMETERS, rsp: STACK, rflags: 2 });

const byte = new Uint8Array(1);
const ports = new Bus();
Serial.attach(ports, (value) => {
  byte[0] = value;
  writeSync(1, byte);
});
// A clock that stands still, with no update in progress: without one the kernel waits for the end of an update, in loops that
// count, and TCG's machine has one.
let register = 0;
ports.attach(0x70, 2, {
  name: 'the clock',
  read: (offset, data) => data.fill(offset === 1 ? (CLOCK[register] ?? 0) : 0xff),
  write(offset, data) {
    if (offset === 0) register = data[0] & 0x7f;
  },
});
const end = await new RunLoop(vcpu, { ports, sliceMs: 1000 }).run({ timeoutMs: LIMIT_MS });
// A HLT with interrupts on is the end here: nothing would wake it.
if (end.reason !== 'halt' || !end.waiting) {
  process.stderr.write(`the simulator's run ended with ${end.exit?.reason ?? end.reason}\n`);
  process.exit(1);
}
process.exit(0);
