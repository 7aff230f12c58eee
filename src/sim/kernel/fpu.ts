/** KVM_GET_FPU, KVM_GET_XSAVE, KVM_GET_XCRS and what sets them: x87 and SSE, in FXSAVE's format (SDM volume 1, 10.5.1). */
import { Errno } from '../../uapi/errno.ts';
import type { Input, Value } from '../../uapi/layout.ts';
import { viewOf } from '../../uapi/layout.ts';
import type { kvm_fpu, kvm_xcrs } from '../../uapi/x86.ts';
import type { Cpu } from '../cpu/cpu.ts';
import { State } from '../cpu/state.ts';

type Fpu = Value<typeof kvm_fpu>;

const REGISTERS = 8;
const XMM_REGISTERS = 16;
const REGISTER_SIZE = 16;
const X87_BYTES = 10;

/** Where things lie in the legacy region and in the header of an XSAVE area (SDM volume 1, 13.4). */
const Area = {
  fcw: 0,
  fsw: 2,
  ftw: 4,
  fop: 6,
  fip: 8,
  fdp: 16,
  mxcsr: 24,
  mxcsrMask: 28,
  st: 32,
  xmm: 160,
  bv: 512,
};
const LEGACY_SIZE = 512;
/** XCR0 and XSTATE_BV. */
const X87 = 1n;
const SSE = 2n;
export const XCR0_SUPPORTED = X87 | SSE;
const MXCSR_INIT = 0x1f80;
const MXCSR_MASK = 0xffff;
const FCW_INIT = 0x37f;

/** The tag word (SDM volume 1, 8.1.7): 11 empty, 10 special, 01 zero, 00 valid. */
const Tag = { VALID: 0, ZERO: 1, SPECIAL: 2, EMPTY: 3 } as const;

function tagOf(register: Uint8Array): number {
  const view = viewOf(register);
  const exponent = view.getUint16(8, true) & 0x7fff;
  const significand = view.getBigUint64(0, true);
  if (exponent === 0) return significand === 0n ? Tag.ZERO : Tag.SPECIAL;
  return exponent === 0x7fff || significand >> 63n === 0n ? Tag.SPECIAL : Tag.VALID;
}

/** FXSAVE has one bit a register: whether it is not empty. */
function abridged(ftw: number): number {
  let bits = 0;
  for (let i = 0; i < REGISTERS; i++) if (((ftw >> (2 * i)) & 3) !== Tag.EMPTY) bits |= 1 << i;
  return bits;
}

/** The registers lie by number in the state, and from the top of the stack on in FXSAVE. */
const register = (fsw: number, st: number): number => (((fsw >> 11) & 7) + st) % REGISTERS;

const stateBytes = ({ state, arena }: Cpu, offset: number, size: number): Uint8Array =>
  arena.views.u8.subarray(state.base + offset, state.base + offset + size);

/** The legacy region, in place. */
export function saveLegacy(cpu: Cpu, area: Uint8Array): void {
  const view = viewOf(area);
  const { state } = cpu;
  const fsw = state.u16(State.fsw);
  view.setUint16(Area.fcw, state.u16(State.fcw), true);
  view.setUint16(Area.fsw, fsw, true);
  view.setUint8(Area.ftw, abridged(state.u16(State.ftw)));
  view.setUint16(Area.fop, state.u16(State.fop), true);
  view.setBigUint64(Area.fip, state.u64(State.fip), true);
  view.setBigUint64(Area.fdp, state.u64(State.fdp), true);
  view.setUint32(Area.mxcsr, state.u32(State.mxcsr), true);
  view.setUint32(Area.mxcsrMask, MXCSR_MASK, true);
  for (let i = 0; i < REGISTERS; i++) {
    const from = State.x87 + register(fsw, i) * REGISTER_SIZE;
    area.set(stateBytes(cpu, from, X87_BYTES), Area.st + i * REGISTER_SIZE);
  }
  area.set(stateBytes(cpu, State.xmm, XMM_REGISTERS * REGISTER_SIZE), Area.xmm);
}

function loadX87(cpu: Cpu, area: Uint8Array): void {
  const view = viewOf(area);
  const { state } = cpu;
  const fsw = view.getUint16(Area.fsw, true);
  const present = view.getUint8(Area.ftw);
  state.setU16(State.fcw, view.getUint16(Area.fcw, true));
  state.setU16(State.fsw, fsw);
  state.setU16(State.fop, view.getUint16(Area.fop, true) & 0x7ff);
  state.setU64(State.fip, view.getBigUint64(Area.fip, true));
  state.setU64(State.fdp, view.getBigUint64(Area.fdp, true));
  let ftw = 0;
  for (let i = 0; i < REGISTERS; i++) {
    const at = register(fsw, i);
    const bytes = area.subarray(Area.st + i * REGISTER_SIZE, Area.st + i * REGISTER_SIZE + X87_BYTES);
    stateBytes(cpu, State.x87 + at * REGISTER_SIZE, X87_BYTES).set(bytes);
    ftw |= ((present >> at) & 1 ? tagOf(bytes) : Tag.EMPTY) << (2 * at);
  }
  state.setU16(State.ftw, ftw);
}

const loadXmm = (cpu: Cpu, bytes: Uint8Array): void =>
  stateBytes(cpu, State.xmm, XMM_REGISTERS * REGISTER_SIZE).set(bytes);

/** KVM_GET_FPU leaves mxcsr out, and KVM_SET_FPU does not read it. */
export function getFpu(cpu: Cpu): Input<Fpu> {
  const area = new Uint8Array(LEGACY_SIZE);
  saveLegacy(cpu, area);
  const view = viewOf(area);
  const registers = (at: number, count: number) =>
    Array.from({ length: count }, (_, i) => area.slice(at + i * REGISTER_SIZE, at + (i + 1) * REGISTER_SIZE));
  return {
    fpr: registers(Area.st, REGISTERS),
    fcw: view.getUint16(Area.fcw, true),
    fsw: view.getUint16(Area.fsw, true),
    ftwx: view.getUint8(Area.ftw),
    lastOpcode: view.getUint16(Area.fop, true),
    lastIp: view.getBigUint64(Area.fip, true),
    lastDp: view.getBigUint64(Area.fdp, true),
    xmm: registers(Area.xmm, XMM_REGISTERS),
  };
}

export function setFpu(cpu: Cpu, fpu: Fpu): number {
  const area = new Uint8Array(LEGACY_SIZE);
  const view = viewOf(area);
  view.setUint16(Area.fcw, fpu.fcw, true);
  view.setUint16(Area.fsw, fpu.fsw, true);
  view.setUint8(Area.ftw, fpu.ftwx);
  view.setUint16(Area.fop, fpu.lastOpcode, true);
  view.setBigUint64(Area.fip, fpu.lastIp, true);
  view.setBigUint64(Area.fdp, fpu.lastDp, true);
  for (const [i, bytes] of fpu.fpr.entries()) area.set(bytes, Area.st + i * REGISTER_SIZE);
  loadX87(cpu, area);
  for (const [i, bytes] of fpu.xmm.entries()) area.set(bytes, Area.xmm + i * REGISTER_SIZE);
  loadXmm(cpu, area.subarray(Area.xmm, Area.xmm + XMM_REGISTERS * REGISTER_SIZE));
  return 0;
}

export function getXsave(cpu: Cpu, area: Uint8Array): number {
  area.fill(0);
  saveLegacy(cpu, area);
  viewOf(area).setBigUint64(Area.bv, XCR0_SUPPORTED, true);
  return 0;
}

/** fpu_copy_uabi_to_guest_fpstate(): components whose bit is clear are as after FNINIT. */
export function setXsave(cpu: Cpu, area: Uint8Array): number {
  const view = viewOf(area);
  const present = view.getBigUint64(Area.bv, true);
  const mxcsr = view.getUint32(Area.mxcsr, true);
  if ((present & ~XCR0_SUPPORTED) !== 0n || (mxcsr & ~MXCSR_MASK) !== 0) return -Errno.EINVAL;
  const initial = new Uint8Array(LEGACY_SIZE);
  viewOf(initial).setUint16(Area.fcw, FCW_INIT, true);
  loadX87(cpu, (present & X87) !== 0n ? area : initial);
  const sse = (present & SSE) !== 0n;
  loadXmm(cpu, (sse ? area : initial).slice(Area.xmm, Area.xmm + XMM_REGISTERS * REGISTER_SIZE));
  cpu.state.setU32(State.mxcsr, sse ? mxcsr : MXCSR_INIT);
  return 0;
}

export const getXcrs = (cpu: Cpu, has: boolean): Input<Value<typeof kvm_xcrs>> =>
  has ? { nrXcrs: 1, xcrs: [{ xcr: 0, value: cpu.xcr0 }] } : { nrXcrs: 0 };

/** kvm_vcpu_ioctl_x86_set_xcrs(). */
export function setXcrs(cpu: Cpu, { nrXcrs, flags, xcrs }: Value<typeof kvm_xcrs>): number {
  if (nrXcrs > xcrs.length || flags !== 0) return -Errno.EINVAL;
  const xcr0 = xcrs.slice(0, nrXcrs).find(({ xcr }) => xcr === 0)?.value;
  if (xcr0 === undefined) return 0;
  if ((xcr0 & X87) === 0n || (xcr0 & ~XCR0_SUPPORTED) !== 0n) return -Errno.EINVAL;
  cpu.xcr0 = xcr0;
  return 0;
}
