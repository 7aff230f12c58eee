/** The XSAVE area in standard form, as <asm/sigcontext.h> and KVM_GET_XSAVE have it (SDM volume 1, 10.5.1 and 13.4). */
import { array, bytes, struct, u16, u32, u64 } from './layout.ts';

/**
 * What FXSAVE writes, and XSAVE first: the x87 and SSE registers. `twd` has one bit a register, set where it is not
 * empty; `rip` and `rdp` are the pointers of the last x87 instruction, with their selectors in the upper halves where they
 * were saved by 32-bit code. Of each register of `stSpace` the first ten bytes count.
 */
export const fpstate = struct('_fpstate_64', {
  cwd: u16,
  swd: u16,
  twd: u16,
  fop: u16,
  rip: u64,
  rdp: u64,
  mxcsr: u32,
  mxcsrMask: u32,
  stSpace: array(bytes(16), 8),
  xmmSpace: array(bytes(16), 16),
  reserved2: array(u32, 12),
  reserved3: array(u32, 12),
});

/** Which components of the area hold something: the others are in their first state, whatever their bytes are. */
export const xstateHeader = struct('_header', {
  xfeatures: u64,
  reserved1: array(u64, 2),
  reserved2: array(u64, 5),
});

/** AVX's component: the upper halves of the YMM registers. */
export const ymmhState = struct('_ymmh_state', { ymmhSpace: array(bytes(16), 16) });

/** The area with AVX's component, the upper halves of the YMM registers. More may follow, where CPUID leaf 0xD says. */
export const xstate = struct('_xstate', {
  fpstate,
  xstateHdr: xstateHeader,
  ymmh: ymmhState,
});
