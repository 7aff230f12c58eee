/** SYSCALL, SYSENTER and their returns, SWAPGS, and the bases of FS and GS (SDM and APM, volumes 2 and 3). */

import { gprAt, readGpr, writeGpr } from '../address/operands.ts';
import { stepAsLeft } from '../processor/debug.ts';
import { flatCode, flatData, Seg } from '../processor/descriptors.ts';
import { raise, Vector } from '../processor/fault.ts';
import type { Helper, Helpers } from '../processor/helper.ts';
import {
  CR4,
  canonical,
  cpl,
  EFER,
  ia32e,
  longMode,
  low32,
  privileged,
  protectedMode,
} from '../processor/mode.ts';
import type { Processor } from '../processor/processor.ts';
import { Flag } from '../processor/state.ts';
import { setSegment } from '../segments/loads.ts';
import { Msr, msrValue } from './msrs.ts';

const RCX = 1;
const RDX = 2;
const RSP = 4;
const R11 = 11;

/** What SYSRET takes of R11 (SDM volume 2, SYSRET). */
const SYSRET_FLAGS = 0x3c_7fd7;

/** The selectors in STAR: of SYSCALL in bits 47:32, of SYSRET in bits 63:48. */
const starSelector = (cpu: Processor, shift: bigint) => Number((msrValue(cpu, Msr.STAR) >> shift) & 0xffffn);

function setFlags(cpu: Processor, value: number): void {
  cpu.state.flags = (value & ~(Flag.RF | Flag.VM)) | 2;
}

/** Intel's is 64-bit mode's alone; AMD's has compatibility mode (CSTAR) and legacy mode (STAR) too. */
const syscall: Helper = (cpu, insn) => {
  const { state } = cpu;
  if ((cpu.efer & EFER.SCE) === 0 || (cpu.vendor === 'intel' && !longMode(cpu)) || !protectedMode(cpu))
    raise(Vector.UD);
  const selector = starSelector(cpu, 32n);
  const { flags } = state;
  if (ia32e(cpu)) {
    const target = msrValue(cpu, longMode(cpu) ? Msr.LSTAR : Msr.CSTAR);
    state.setGpr(RCX, insn.next);
    state.setGpr(R11, BigInt(flags & ~Flag.RF));
    setFlags(cpu, flags & ~Number(low32(msrValue(cpu, Msr.FMASK))));
    state.rip = target;
    setSegment(cpu, Seg.CS, flatCode(selector & 0xfffc, 0, true));
  } else {
    state.setGpr(RCX, low32(insn.next));
    setFlags(cpu, flags & ~Flag.IF);
    state.rip = low32(msrValue(cpu, Msr.STAR));
    setSegment(cpu, Seg.CS, flatCode(selector & 0xfffc, 0, false));
  }
  setSegment(cpu, Seg.SS, flatData((selector & 0xfffc) + 8, 0));
  stepAsLeft(cpu);
};

const sysret =
  (wide: boolean): Helper =>
  (cpu) => {
    const { state, vendor } = cpu;
    const intel = vendor === 'intel';
    if ((cpu.efer & EFER.SCE) === 0 || (intel && !longMode(cpu))) raise(Vector.UD);
    if (!protectedMode(cpu) || cpl(cpu) !== 0) raise(Vector.GP, 0);
    const target = state.gpr(RCX);
    // Intel's faults here, at privilege level 0; AMD's at the first fetch of level 3.
    if (wide && intel && !canonical(target)) raise(Vector.GP, 0);
    const selector = starSelector(cpu, 48n);
    if (longMode(cpu)) setFlags(cpu, Number(state.gpr(R11) & BigInt(SYSRET_FLAGS)));
    else setFlags(cpu, state.flags | Flag.IF);
    setSegment(cpu, Seg.CS, flatCode(((wide ? selector + 16 : selector) & 0xffff) | 3, 3, wide));
    const ss = ((selector + 8) & 0xffff) | 3;
    // AMD's leaves SS's base, limit and attributes as they are, which Linux knows as a bug (SYSRET_SS_ATTRS).
    if (intel) setSegment(cpu, Seg.SS, flatData(ss, 3));
    else setSegment(cpu, Seg.SS, { ...cpu.segments[Seg.SS]!, selector: ss, dpl: 3 });
    state.rip = wide ? target : low32(target);
    stepAsLeft(cpu);
  };

/** AMD's processors have neither in long mode (APM volume 3, SYSENTER). */
function refuseInLongMode(cpu: Processor): void {
  if (cpu.vendor === 'amd' && ia32e(cpu)) raise(Vector.UD);
}

const sysenter: Helper = (cpu) => {
  const { state } = cpu;
  refuseInLongMode(cpu);
  const selector = Number(msrValue(cpu, Msr.SYSENTER_CS) & 0xfffcn);
  if (!protectedMode(cpu) || selector === 0) raise(Vector.GP, 0);
  const long = ia32e(cpu);
  const width = (value: bigint) => (long ? value : low32(value));
  setFlags(cpu, state.flags & ~Flag.IF);
  state.setGpr(RSP, width(msrValue(cpu, Msr.SYSENTER_ESP)));
  state.rip = width(msrValue(cpu, Msr.SYSENTER_EIP));
  setSegment(cpu, Seg.CS, flatCode(selector, 0, long));
  setSegment(cpu, Seg.SS, flatData(selector + 8, 0));
};

const sysexit =
  (wide: boolean): Helper =>
  (cpu) => {
    const { state } = cpu;
    refuseInLongMode(cpu);
    const selector = Number(msrValue(cpu, Msr.SYSENTER_CS) & 0xfffcn);
    if (!protectedMode(cpu) || cpl(cpu) !== 0 || selector === 0) raise(Vector.GP, 0);
    const [rsp, rip] = [state.gpr(RCX), state.gpr(RDX)];
    if (wide && (!canonical(rsp) || !canonical(rip))) raise(Vector.GP, 0);
    state.setGpr(RSP, wide ? rsp : low32(rsp));
    state.rip = wide ? rip : low32(rip);
    const code = selector + (wide ? 32 : 16);
    setSegment(cpu, Seg.CS, flatCode((code & 0xffff) | 3, 3, wide));
    setSegment(cpu, Seg.SS, flatData(((code + 8) & 0xffff) | 3, 3));
  };

const swapgs: Helper = (cpu) => {
  if (!longMode(cpu)) raise(Vector.UD);
  privileged(cpu);
  const gs = cpu.segments[Seg.GS]!;
  const kernel = msrValue(cpu, Msr.KERNEL_GS_BASE);
  cpu.msrs.set(Msr.KERNEL_GS_BASE, gs.base);
  setSegment(cpu, Seg.GS, { ...gs, base: kernel });
};

const readBase =
  (segment: number): Helper =>
  (cpu, insn) => {
    if (!longMode(cpu) || (cpu.cr4 & CR4.FSGSBASE) === 0) raise(Vector.UD);
    const { index, size } = gprAt(insn, 0);
    writeGpr(cpu, index, size, cpu.segments[segment]!.base);
  };
const writeBase =
  (segment: number): Helper =>
  (cpu, insn) => {
    if (!longMode(cpu) || (cpu.cr4 & CR4.FSGSBASE) === 0) raise(Vector.UD);
    const { index, size } = gprAt(insn, 0);
    const base = readGpr(cpu, index, size);
    if (!canonical(base)) raise(Vector.GP, 0);
    setSegment(cpu, segment, { ...cpu.segments[segment]!, base });
  };

const FS = 4;
const GS = 5;

export const baseReads: Helpers = { rdfsbase: readBase(FS), rdgsbase: readBase(GS) };
export const systemCallsEnding: Helpers = {
  syscall,
  sysret: sysret(false),
  sysretq: sysret(true),
  sysenter,
  sysexit: sysexit(false),
  sysexitq: sysexit(true),
  swapgs,
  wrfsbase: writeBase(FS),
  wrgsbase: writeBase(GS),
};
