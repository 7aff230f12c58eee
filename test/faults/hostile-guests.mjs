// Random guests on the simulator: any bytes as code, any registers, page tables and descriptor tables. Whatever a
// guest does is an exit or an exception of its own. node test/faults/hostile-guests.mjs SEED GUESTS
import { Exit, enterLongMode, exitName, KvmError, openHypervisor, VmType } from '../../dist/index.js';

const [, , SEED = '1', GUESTS = '1000'] = process.argv;
const PAGE = 4096;
const RAM = 64 * PAGE;
const TABLES = 0x2_0000;
const DEADLINE_MS = 3;
/** A run that takes longer has ignored its deadline: the rest is what a busy machine may take. */
const LATE_MS = 30_000;
const EXITS = 20;

let state = Number(SEED) * 0x9e37_79b9 + 1;
const next = () => {
  state ^= state << 13;
  state ^= state >>> 17;
  state ^= state << 5;
  return state >>> 0;
};
const below = (n) => next() % n;
const chance = (p) => next() < p * 2 ** 32;
const choice = (list) => list[below(list.length)];
const u64 = () => (BigInt(next()) << 32n) | BigInt(next());

/** Values that sit at edges of checks. */
const addresses = [
  0n,
  0xfffn,
  0xffffn,
  0x1_0000n,
  BigInt(RAM - 1),
  0x7fff_ffff_ffffn,
  0x8000_0000_0000n,
  2n ** 64n - 1n,
  0xffff_8000_0000_0000n,
  0xf_ffff_ffffn,
];
const value = () => BigInt.asUintN(64, anyValue());
const anyValue = () =>
  chance(0.5) ? choice(addresses) + BigInt(below(16)) - 8n : chance(0.5) ? BigInt(below(RAM)) : u64();

/** Bytes that decode to something more often than random ones: prefixes, then an opcode of one of the maps. */
const prefixes = [0x66, 0x67, 0xf2, 0xf3, 0xf0, 0x2e, 0x36, 0x64, 0x65, 0x48, 0x4c, 0x49, 0x41];
const maps = [[], [0x0f], [0x0f, 0x38], [0x0f, 0x3a], [0x0f, 0x01], [0x0f, 0xae]];
function randomCode(bytes) {
  for (let i = 0; i < bytes.length; ) {
    while (chance(0.3) && i < bytes.length) bytes[i++] = choice(prefixes);
    for (const byte of choice(maps)) if (i < bytes.length) bytes[i++] = byte;
    const length = 1 + below(6);
    for (let j = 0; j < length && i < bytes.length; j++) bytes[i++] = below(256);
  }
}

const regs = [
  'rax',
  'rbx',
  'rcx',
  'rdx',
  'rsi',
  'rdi',
  'rsp',
  'rbp',
  'r8',
  'r9',
  'r10',
  'r11',
  'r12',
  'r13',
  'r14',
  'r15',
];
const RESERVED = 0x2n;
const FLAGS = 0x24_7fd5n; // all but VM, RF

/** It does not go on after these. */
const ends = new Set([Exit.SHUTDOWN, Exit.INTERNAL_ERROR, Exit.HLT]);

const counts = {};
const wrong = [];
const count = (what) => {
  counts[what] = (counts[what] ?? 0) + 1;
};

const hv = openHypervisor({ backend: 'sim' });
const cpuid = hv.getSupportedCpuid();

function segment(from) {
  return {
    ...from,
    base: chance(0.7) ? from.base : value() & 0xffff_ffffn,
    limit: chance(0.7) ? from.limit : next(),
    selector: chance(0.8) ? from.selector : below(0x1_0000) & ~3,
    type: chance(0.8) ? from.type : below(16),
    db: chance(0.9) ? from.db : below(2),
  };
}

/** Makes a VM, spoils it, and runs it until it has ended, or for some exits. */
function guest() {
  const type = chance(0.3) ? VmType.SW_PROTECTED : VmType.DEFAULT;
  const vm = hv.createVm({ type });
  const ram = vm.allocate(RAM);
  vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memory: ram });
  if (type === VmType.SW_PROTECTED && chance(0.5)) {
    vm.setMemoryAttributes({ address: below(64) * PAGE, size: (1 + below(8)) * PAGE, attributes: 8 });
  }
  const vcpu = vm.createVcpu(0);
  vcpu.setCpuid2(cpuid);
  const { bytes } = ram;
  randomCode(bytes.subarray(0, 0x4000));
  const mode = below(3);
  if (mode === 1) enterLongMode(vcpu, ram, { tables: TABLES, identity: 2 ** 30 });
  if (mode === 2) {
    vcpu.changeSregs({ cr0: 0x11n });
  }
  const sregs = vcpu.getSregs();
  const changes = {};
  for (const name of ['cs', 'ds', 'es', 'fs', 'gs', 'ss', 'tr', 'ldt']) {
    if (mode !== 1 || chance(0.1)) changes[name] = segment(sregs[name]);
  }
  if (mode === 2) changes.cs = { ...changes.cs, db: below(2), type: 11, base: 0n, limit: 0xffff_ffff, g: 1 };
  if (mode === 2 && chance(0.5)) changes.cr3 = BigInt(below(64) * PAGE);
  if (mode === 2 && chance(0.3)) changes.cr0 = 0x8000_0011n;
  if (chance(0.7)) changes.idt = { base: value(), limit: below(0x1_0000) };
  if (chance(0.7)) changes.gdt = { base: value(), limit: below(0x1_0000) };
  // A spoilt entry here and there, on every level of the tables.
  for (let i = below(8); i > 0; i--) {
    const at = TABLES + below(6 * PAGE);
    bytes[at] = below(256);
  }
  try {
    vcpu.setSregs({ ...sregs, ...changes });
  } catch (error) {
    if (!(error instanceof KvmError)) throw error;
    count('refused SET_SREGS');
  }
  vcpu.setRegs({
    ...Object.fromEntries(regs.map((name) => [name, value()])),
    rip: BigInt(below(0x4000)),
    rflags: (u64() & FLAGS & (chance(0.9) ? ~0x100n : ~0n)) | RESERVED,
  });
  if (chance(0.1)) vcpu.setGuestDebug({ control: 3, arch: { debugreg: new Array(8).fill(0n) } });
  try {
    for (let exits = 0; exits < EXITS; exits++) {
      const start = performance.now();
      const exit = vcpu.run(DEADLINE_MS);
      const took = performance.now() - start;
      if (took > LATE_MS) throw new Error(`a run of ${took} ms, and its deadline was ${DEADLINE_MS}`);
      count(exit < 0 ? 'deadline' : exitName(exit));
      if (ends.has(exit) || exit < 0) break;
    }
  } catch (error) {
    if (!(error instanceof KvmError)) throw error;
    count(error.code);
  } finally {
    for (const object of [vcpu, vm, ram]) object.close();
  }
}

for (let i = 0; i < Number(GUESTS); i++) {
  const before = state;
  try {
    guest();
  } catch (error) {
    if (wrong.length < 10)
      wrong.push(
        `guest ${i} (state ${before}): ${error?.stack ?? `${error?.constructor?.name} ${JSON.stringify(error)}`}`,
      );
  }
}
hv.close();
process.stdout.write(`${JSON.stringify({ guests: Number(GUESTS), counts, wrong })}\n`);
