/**
 * XSAVE and its kin (SDM volume 1, chapter 13): which of x87, SSE, AVX and PKRU are saved where, and the forms of the area. The
 * upper halves lie at the same place in both forms, as nothing that could be left out lies before them.
 */
import { addressOf } from '../address/addressing.ts';
import { raise, Vector } from '../processor/fault.ts';
import { find } from '../processor/features.ts';
import type { Helper, Helpers } from '../processor/helper.ts';
import type { Insn } from '../processor/insn.ts';
import { CR0, CR4, low32 } from '../processor/mode.ts';
import type { Processor } from '../processor/processor.ts';
import { State } from '../processor/state.ts';
import { MXCSR_MASK } from '../sse/move.ts';
import {
  type FpuHolder,
  FXSAVE_SIZE,
  fxsaveImage,
  Image,
  instructionsImage,
  loadInstructionsImage,
  xmmCount,
} from '../x87/fxsave.ts';

/** Components, as XCR0, XSTATE_BV and XCOMP_BV have them. */
export const Component = { X87: 1n, SSE: 2n, AVX: 4n, PKRU: 0x200n } as const;
const { X87, SSE, AVX, PKRU } = Component;
/** What a processor has of them. */
export const componentsOf = (absent: ReadonlySet<string>): bigint =>
  X87 | SSE | (absent.has('avx') ? 0n : AVX) | (absent.has('pku') ? 0n : PKRU);
/** The header behind FXSAVE's image, and what lies behind that. */
export const Area = {
  header: 512,
  xcompBv: 520,
  reserved: 528,
  ymm: 576,
  ymmSize: 256,
  pkru: 832,
  pkruSize: 8,
} as const;
const COMPACTED = 1n << 63n;

const MXCSR_INIT = 0x1f80;
const FCW_INIT = 0x37f;
const RAX = 0;
const RDX = 2;
const LEAF = 0xd;

/** Where PKRU is in the compacted form. */
const compactedPkru = (components: bigint): number => ((components & AVX) !== 0n ? Area.pkru : Area.ymm);
/** The bytes that components need in the standard form of the area. */
export function areaSize(components: bigint): number {
  if ((components & PKRU) !== 0n) return Area.pkru + Area.pkruSize;
  return (components & AVX) !== 0n ? Area.pkru : Area.ymm;
}
/** The same in the compacted form. */
export const compactedSize = (components: bigint): number =>
  compactedPkru(components) + ((components & PKRU) !== 0n ? Area.pkruSize : 0);

/** What a guest may have in XCR0: by its CPUID (arch/x86/kvm/cpuid.c, cpuid_get_supported_xcr0). */
const allowed = (cpu: Processor): bigint => {
  const entry = find(cpu.cpuid, LEAF, 0);
  return (BigInt((entry?.eax ?? 0) >>> 0) & componentsOf(cpu.absent)) | X87;
};
/** x87 always, and AVX with SSE only (SDM volume 1, 13.3). */
export const isXcr0 = (cpu: Processor, value: bigint): boolean =>
  (value & X87) !== 0n && (value & ~allowed(cpu)) === 0n && ((value & AVX) === 0n || (value & SSE) !== 0n);

const isZero = (bytes: Uint8Array) => bytes.every((byte) => byte === 0);
const upperHalves = ({ arena, state }: FpuHolder): Uint8Array =>
  arena.views.u8.subarray(state.base + State.ymm, state.base + State.ymm + Area.ymmSize);

/** An image in which everything is as after a reset, but for MXCSR. */
function isInitialX87(image: Uint8Array): boolean {
  const fcw = image[Image.fcw]! | (image[Image.fcw + 1]! << 8);
  return (
    fcw === FCW_INIT &&
    isZero(image.subarray(Image.fsw, Image.mxcsr)) &&
    isZero(image.subarray(Image.st, Image.xmm))
  );
}
/** The components that are not in their initial states; MXCSR is none of SSE's. */
export function inUse(cpu: FpuHolder & { readonly pkru: number }): bigint {
  const image = fxsaveImage(cpu);
  return (
    (isInitialX87(image) ? 0n : X87) |
    (isZero(image.subarray(Image.xmm)) ? 0n : SSE) |
    (isZero(upperHalves(cpu)) ? 0n : AVX) |
    (cpu.pkru === 0 ? 0n : PKRU)
  );
}

/** How many registers a mode has. */
const ymmBytes = (cpu: Processor) => 16 * xmmCount(cpu);

/** The area's address, and the components that the instruction is about. */
function begin(cpu: Processor, insn: Insn, isWrite: boolean): { linear: bigint; requested: bigint } {
  if ((cpu.cr4 & CR4.OSXSAVE) === 0) raise(Vector.UD);
  if ((cpu.cr0 & CR0.TS) !== 0) raise(Vector.NM);
  const operand = insn.operands[0]!;
  if (operand.kind !== 'mem') throw new TypeError(`${insn.code} without its memory operand`);
  const linear = addressOf(cpu, operand, insn, Area.ymm, isWrite);
  if ((linear & 63n) !== 0n) raise(Vector.GP, 0);
  const mask = low32(cpu.state.gpr(RAX)) | (low32(cpu.state.gpr(RDX)) << 32n);
  return { linear, requested: mask & cpu.xcr0 };
}

interface Form {
  /** What is in its initial state is not written. */
  readonly optimized: boolean;
  readonly compacted: boolean;
}

const save =
  ({ optimized, compacted }: Form, wide: boolean): Helper =>
  (cpu, insn) => {
    const { linear, requested } = begin(cpu, insn, true);
    const at = (offset: number) => BigInt.asUintN(64, linear + BigInt(offset));
    const used = inUse(cpu) & requested;
    // With another MXCSR than the initial one SSE is saved in the compacted form.
    const isMxcsrInitial = cpu.state.u32(State.mxcsr) === MXCSR_INIT;
    const present = used | (compacted && !isMxcsrInitial ? requested & SSE : 0n);
    const written = optimized ? present : requested;
    const image = instructionsImage(cpu, wide);
    const pieces: (readonly [offset: number, bytes: Uint8Array])[] = [];
    if ((written & X87) !== 0n) {
      pieces.push([0, image.subarray(0, Image.mxcsr)], [Image.st, image.subarray(Image.st, Image.xmm)]);
    }
    const mxcsr = compacted ? written & SSE : requested & (SSE | AVX);
    if (mxcsr !== 0n) pieces.push([Image.mxcsr, image.subarray(Image.mxcsr, Image.st)]);
    if ((written & SSE) !== 0n)
      pieces.push([Image.xmm, image.subarray(Image.xmm, Image.xmm + ymmBytes(cpu))]);
    if ((written & AVX) !== 0n) pieces.push([Area.ymm, upperHalves(cpu).slice(0, ymmBytes(cpu))]);
    if ((written & PKRU) !== 0n) {
      const rights = new DataView(new ArrayBuffer(Area.pkruSize));
      rights.setUint32(0, cpu.pkru, true);
      pieces.push([compacted ? compactedPkru(requested) : Area.pkru, new Uint8Array(rights.buffer)]);
    }
    const header = new DataView(new ArrayBuffer(compacted ? 16 : 8));
    pieces.push([Area.header, new Uint8Array(header.buffer)]);
    for (const [offset, bytes] of pieces) cpu.memory.checkWrite(at(offset), bytes.length);
    if (compacted) {
      header.setBigUint64(0, present, true);
      header.setBigUint64(8, requested | COMPACTED, true);
    } else {
      const before = cpu.memory.readBytes(at(Area.header), 8);
      const kept = new DataView(before.buffer).getBigUint64(0, true) & ~requested;
      header.setBigUint64(0, kept | used, true);
    }
    for (const [offset, bytes] of pieces) cpu.memory.writeBytes(at(offset), bytes);
  };

const restore =
  (wide: boolean): Helper =>
  (cpu, insn) => {
    const { linear, requested } = begin(cpu, insn, false);
    const legacy = cpu.memory.readBytes(linear, Area.ymm);
    const view = new DataView(legacy.buffer);
    const present = view.getBigUint64(Area.header, true);
    const components = view.getBigUint64(Area.xcompBv, true);
    const compacted = (components & COMPACTED) !== 0n;
    if (compacted) {
      if ((components & ~COMPACTED & ~cpu.xcr0) !== 0n || (present & ~components) !== 0n) raise(Vector.GP, 0);
      if (!isZero(legacy.subarray(Area.reserved))) raise(Vector.GP, 0);
    } else if ((present & ~cpu.xcr0) !== 0n || !isZero(legacy.subarray(Area.xcompBv, Area.xcompBv + 16)))
      raise(Vector.GP, 0);
    const takesMxcsr = compacted ? (requested & present & SSE) !== 0n : (requested & (SSE | AVX)) !== 0n;
    if (takesMxcsr && (view.getUint32(Image.mxcsr, true) & ~MXCSR_MASK) !== 0) raise(Vector.GP, 0);
    const upper =
      (requested & present & AVX) !== 0n
        ? cpu.memory.readBytes(BigInt.asUintN(64, linear + BigInt(Area.ymm)), ymmBytes(cpu))
        : undefined;
    const rights =
      (requested & present & PKRU) !== 0n
        ? cpu.memory.read32(
            BigInt.asUintN(64, linear + BigInt(compacted ? compactedPkru(components) : Area.pkru)),
          )
        : 0;

    // What is not asked for stays: it is taken from the image as it is.
    const image = legacy.slice(0, FXSAVE_SIZE);
    const current = instructionsImage(cpu, wide);
    const take = (component: bigint, from: number, to: number) => {
      if ((requested & component) === 0n) image.set(current.subarray(from, to), from);
      else if ((present & component) === 0n) image.fill(0, from, to);
    };
    take(X87, 0, Image.mxcsr);
    take(X87, Image.st, Image.xmm);
    take(SSE, Image.xmm, FXSAVE_SIZE);
    const of = new DataView(image.buffer);
    if ((requested & ~present & X87) !== 0n) of.setUint16(Image.fcw, FCW_INIT, true);
    if (!takesMxcsr) {
      const initial = compacted && (requested & SSE) !== 0n;
      of.setUint32(Image.mxcsr, initial ? MXCSR_INIT : cpu.state.u32(State.mxcsr), true);
    }
    const pointers = [State.fip, State.fdp].map((offset) => [offset, cpu.state.u64(offset)] as const);
    const others = [State.fop, State.fcs, State.fds].map(
      (offset) => [offset, cpu.state.u16(offset)] as const,
    );
    loadInstructionsImage(cpu, image, wide);
    if ((requested & X87) === 0n) {
      for (const [offset, value] of pointers) cpu.state.setU64(offset, value);
      for (const [offset, value] of others) cpu.state.setU16(offset, value);
    }
    if ((requested & PKRU) !== 0n) cpu.setPkru(rights);
    if ((requested & AVX) === 0n) return;
    const ymm = upperHalves(cpu);
    if (upper === undefined) ymm.fill(0, 0, ymmBytes(cpu));
    else ymm.set(upper);
  };

const plain: Form = { optimized: false, compacted: false };
const optimized: Form = { optimized: true, compacted: false };
const compacted: Form = { optimized: true, compacted: true };

export const xsave: Helpers = {
  xsave: save(plain, false),
  xsave64: save(plain, true),
  xsaveopt: save(optimized, false),
  xsaveopt64: save(optimized, true),
  xsavec: save(compacted, false),
  xsavec64: save(compacted, true),
  xrstor: restore(false),
  xrstor64: restore(true),
};
