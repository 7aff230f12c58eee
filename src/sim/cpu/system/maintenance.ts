/** Caches, translations, clocks and waiting (SDM volume 2): what a processor without caches does for them. */

import { addressOf } from '../address/addressing.ts';
import { gprAt, readGpr, touch, uncheckedLinear, writeGpr } from '../address/operands.ts';
import { inUse, isXcr0 } from '../avx/xsave.ts';
import { raise, Vector } from '../processor/fault.ts';
import { has } from '../processor/features.ts';
import type { Helper, Helpers } from '../processor/helper.ts';
import { CR4, canonical, cpl, longMode, low32, privileged } from '../processor/mode.ts';
import type { Processor } from '../processor/processor.ts';
import { ARITHMETIC, Flag } from '../processor/state.ts';
import { Msr, msrValue, readTsc } from './msrs.ts';

const RAX = 0;
const RCX = 1;
const RDX = 2;

/** Nothing is cached: the privilege is checked, and that is all. */
const writeBack: Helper = (cpu) => privileged(cpu);

/** Flushing a line faults as a read of it does. */
const flushLine: Helper = (cpu, insn) => {
  const memory = insn.operands[0];
  if (memory?.kind === 'mem') touch(cpu, addressOf(cpu, memory, insn, 1, false));
};

/**
 * KVM gives up MONITOR and MWAIT to guests that lack them as instructions that do nothing
 * (KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS, which is on without userspace's doing).
 */
const wait: Helper = (cpu) => {
  if (cpl(cpu) !== 0) raise(Vector.UD);
};

const invlpg: Helper = (cpu, insn) => {
  privileged(cpu);
  const linear = uncheckedLinear(cpu, insn);
  if (!longMode(cpu) || canonical(linear)) cpu.flushTlbPage(linear);
};

/** SDM volume 2, INVPCID. Translations are not tagged: types forget more than is asked for, which cannot be told. */
const invpcid: Helper = (cpu, insn) => {
  if (!has(cpu, 'INVPCID')) raise(Vector.UD);
  privileged(cpu);
  const { index, size } = gprAt(insn, 0);
  const type = readGpr(cpu, index, size);
  const memory = insn.operands[1];
  if (memory?.kind !== 'mem') raise(Vector.UD);
  const linear = addressOf(cpu, memory, insn, 16, false);
  const descriptor = cpu.memory.read64(linear);
  const address = cpu.memory.read64(BigInt.asUintN(64, linear + 8n));
  const pcid = descriptor & 0xfffn;
  if (type > 3n || descriptor >> 12n !== 0n) raise(Vector.GP, 0);
  if (type === 0n && !canonical(address)) raise(Vector.GP, 0);
  if (type < 2n && pcid !== 0n && (cpu.cr4 & CR4.PCIDE) === 0) raise(Vector.GP, 0);
  if (type === 0n) cpu.flushTlbPage(address);
  else if (type === 2n) cpu.flushTlb();
  else cpu.flushTlbLocal();
};

function timeStamp(cpu: Processor): void {
  if ((cpu.cr4 & CR4.TSD) !== 0 && cpl(cpu) !== 0) raise(Vector.GP, 0);
  const now = readTsc(cpu);
  cpu.state.setGpr(RAX, low32(now));
  cpu.state.setGpr(RDX, now >> 32n);
}

/** SDM volume 2, RDPKRU and WRPKRU. */
function keyRegister(cpu: Processor): void {
  if ((cpu.cr4 & CR4.PKE) === 0) raise(Vector.UD);
  if (low32(cpu.state.gpr(RCX)) !== 0n) raise(Vector.GP, 0);
}

export const maintenance: Helpers = {
  wbinvd: writeBack,
  wbnoinvd: writeBack,
  invd: writeBack,
  clflush: flushLine,
  clflushopt: flushLine,
  clwb: flushLine,
  monitor: wait,
  mwait: wait,
  rdtsc: timeStamp,
  rdtscp(cpu) {
    if (!has(cpu, 'RDTSCP')) raise(Vector.UD);
    timeStamp(cpu);
    cpu.state.setGpr(RCX, msrValue(cpu, Msr.TSC_AUX));
  },
  rdpid(cpu, insn) {
    if (!has(cpu, 'RDPID')) raise(Vector.UD);
    const { index, size } = gprAt(insn, 0);
    writeGpr(cpu, index, size, msrValue(cpu, Msr.TSC_AUX));
  },
  /** MPERF and APERF, which both count instructions; there are no others (APM volume 3). */
  rdpru(cpu) {
    const { state } = cpu;
    if ((cpu.cr4 & CR4.TSD) !== 0 && cpl(cpu) !== 0) raise(Vector.UD);
    const isThere = low32(state.gpr(RCX)) <= 1n;
    const value = isThere ? cpu.completed : 0n;
    state.setGpr(RAX, low32(value));
    state.setGpr(RDX, BigInt.asUintN(32, value >> 32n));
    state.flags = (state.flags & ~ARITHMETIC) | (isThere ? Flag.CF : 0);
  },
  rdpkru(cpu) {
    keyRegister(cpu);
    cpu.state.setGpr(RAX, BigInt(cpu.pkru));
    cpu.state.setGpr(RDX, 0n);
  },
  /** Only data's translations follow from it, and each access looks for its own: execution may go on in its block. */
  wrpkru(cpu) {
    keyRegister(cpu);
    if (low32(cpu.state.gpr(RDX)) !== 0n) raise(Vector.GP, 0);
    cpu.setPkru(Number(low32(cpu.state.gpr(RAX))));
  },
  /** There are no performance counters (arch/x86/kvm/pmu.c, kvm_pmu_rdpmc). */
  rdpmc: () => raise(Vector.GP, 0),
  /** With 1 in ECX: which of the components are not in their initial states (SDM volume 1, 13.6). */
  xgetbv(cpu) {
    if ((cpu.cr4 & CR4.OSXSAVE) === 0) raise(Vector.UD);
    const index = low32(cpu.state.gpr(RCX));
    if (index > (cpu.absent.has('xgetbv1') ? 0n : 1n)) raise(Vector.GP, 0);
    const value = index === 0n ? cpu.xcr0 : cpu.xcr0 & inUse(cpu);
    cpu.state.setGpr(RAX, low32(value));
    cpu.state.setGpr(RDX, value >> 32n);
  },
};

export const maintenanceEnding: Helpers = {
  invlpg,
  invpcid,
  xsetbv(cpu) {
    if ((cpu.cr4 & CR4.OSXSAVE) === 0) raise(Vector.UD);
    privileged(cpu);
    const { state } = cpu;
    const value = low32(state.gpr(RAX)) | (low32(state.gpr(RDX)) << 32n);
    if (low32(state.gpr(RCX)) !== 0n || !isXcr0(cpu, value)) raise(Vector.GP, 0);
    cpu.xcr0 = value;
  },
};
