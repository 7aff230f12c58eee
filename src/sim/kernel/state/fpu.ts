/** KVM_GET_FPU, KVM_GET_XSAVE, KVM_GET_XCRS and what sets them: x87 and SSE, in FXSAVE's format (SDM volume 1, 10.5.1). */
import { Errno } from '../../../uapi/errno.ts';
import type { Input, Value } from '../../../uapi/layout.ts';
import { viewOf } from '../../../uapi/layout.ts';
import type { kvm_fpu, kvm_xcrs } from '../../../uapi/x86.ts';
import { Area, Component, componentsOf, inUse, isXcr0 } from '../../cpu/avx/xsave.ts';
import type { Cpu } from '../../cpu/cpu.ts';
import { State } from '../../cpu/processor/state.ts';
import { MXCSR_MASK } from '../../cpu/sse/move.ts';
import { FXSAVE_SIZE, fxsaveImage, Image, loadFxsaveImage } from '../../cpu/x87/fxsave.ts';

type Fpu = Value<typeof kvm_fpu>;

const REGISTERS = 8;
const XMM_REGISTERS = 16;
const REGISTER_SIZE = 16;

/** XSTATE_BV, in the header of an XSAVE area (SDM volume 1, 13.4.2). */
const XSTATE_BV = 512;
const { X87, SSE, AVX, PKRU } = Component;
const MXCSR_INIT = 0x1f80;
const FCW_INIT = 0x37f;

/** KVM_GET_FPU leaves mxcsr out, and KVM_SET_FPU does not read it. */
export function getFpu(cpu: Cpu): Input<Fpu> {
  const area = fxsaveImage(cpu);
  const view = viewOf(area);
  const registers = (at: number, count: number) =>
    Array.from({ length: count }, (_, i) => area.slice(at + i * REGISTER_SIZE, at + (i + 1) * REGISTER_SIZE));
  return {
    fpr: registers(Image.st, REGISTERS),
    fcw: view.getUint16(Image.fcw, true),
    fsw: view.getUint16(Image.fsw, true),
    ftwx: view.getUint8(Image.ftw),
    lastOpcode: view.getUint16(Image.fop, true),
    lastIp: view.getBigUint64(Image.fip, true),
    lastDp: view.getBigUint64(Image.fdp, true),
    xmm: registers(Image.xmm, XMM_REGISTERS),
  };
}

export function setFpu(cpu: Cpu, fpu: Fpu): number {
  const area = fxsaveImage(cpu);
  const view = viewOf(area);
  view.setUint16(Image.fcw, fpu.fcw, true);
  view.setUint16(Image.fsw, fpu.fsw, true);
  view.setUint8(Image.ftw, fpu.ftwx);
  view.setUint16(Image.fop, fpu.lastOpcode, true);
  view.setBigUint64(Image.fip, fpu.lastIp, true);
  view.setBigUint64(Image.fdp, fpu.lastDp, true);
  for (const [i, bytes] of fpu.fpr.entries()) area.set(bytes, Image.st + i * REGISTER_SIZE);
  for (const [i, bytes] of fpu.xmm.entries()) area.set(bytes, Image.xmm + i * REGISTER_SIZE);
  loadFxsaveImage(cpu, area);
  return 0;
}

const upperHalves = ({ arena, state }: Cpu): Uint8Array =>
  arena.views.u8.subarray(state.base + State.ymm, state.base + State.ymm + Area.ymmSize);

export function getXsave(cpu: Cpu, area: Uint8Array): number {
  area.fill(0);
  area.set(fxsaveImage(cpu));
  area.set(upperHalves(cpu), Area.ymm);
  const keys = componentsOf(cpu.absent) & PKRU;
  if (keys !== 0n) viewOf(area).setUint32(Area.pkru, cpu.pkru, true);
  viewOf(area).setBigUint64(XSTATE_BV, X87 | SSE | (inUse(cpu) & AVX) | keys, true);
  return 0;
}

/** fpu_copy_uabi_to_guest_fpstate(): components whose bit is clear are as after FNINIT. */
export function setXsave(cpu: Cpu, area: Uint8Array): number {
  const view = viewOf(area);
  const present = view.getBigUint64(XSTATE_BV, true);
  const mxcsr = view.getUint32(Image.mxcsr, true);
  if ((present & ~componentsOf(cpu.absent)) !== 0n || (mxcsr & ~MXCSR_MASK) !== 0) return -Errno.EINVAL;
  const image = area.slice(0, FXSAVE_SIZE);
  if ((present & X87) === 0n) {
    image.fill(0, 0, Image.mxcsr).fill(0, Image.st, Image.xmm);
    viewOf(image).setUint16(Image.fcw, FCW_INIT, true);
  }
  if ((present & SSE) === 0n) {
    image.fill(0, Image.xmm);
    viewOf(image).setUint32(Image.mxcsr, MXCSR_INIT, true);
  }
  loadFxsaveImage(cpu, image);
  // KVM leaves it as it is where its bit is clear.
  if ((present & PKRU) !== 0n) cpu.setPkru(view.getUint32(Area.pkru, true));
  if ((present & AVX) === 0n) upperHalves(cpu).fill(0);
  else upperHalves(cpu).set(area.subarray(Area.ymm, Area.ymm + Area.ymmSize));
  return 0;
}

export const getXcrs = (cpu: Cpu, has: boolean): Input<Value<typeof kvm_xcrs>> =>
  has ? { nrXcrs: 1, xcrs: [{ xcr: 0, value: cpu.xcr0 }] } : { nrXcrs: 0 };

/** kvm_vcpu_ioctl_x86_set_xcrs(). */
export function setXcrs(cpu: Cpu, { nrXcrs, flags, xcrs }: Value<typeof kvm_xcrs>): number {
  if (nrXcrs > xcrs.length || flags !== 0) return -Errno.EINVAL;
  const xcr0 = xcrs.slice(0, nrXcrs).find(({ xcr }) => xcr === 0)?.value;
  if (xcr0 === undefined) return 0;
  if (!isXcr0(cpu, xcr0)) return -Errno.EINVAL;
  cpu.xcr0 = xcr0;
  cpu.changed();
  return 0;
}
