/** Loading segment registers, with the checks of SDM volume 3, 5.5 to 5.8. */

import {
  type Descriptor,
  descriptorOf,
  flatSegment,
  isCode,
  isConforming,
  isNull,
  isWritableData,
  nullStack,
  rpl,
  Seg,
  type Segment,
  segmentOf,
  selectorCode,
  Type,
} from '../processor/descriptors.ts';
import { raise, Vector } from '../processor/fault.ts';
import { cpl, longMode, protectedMode, virtual8086, wrapLinear } from '../processor/mode.ts';
import type { Processor } from '../processor/processor.ts';

/** The descriptor that a selector names, or undefined beyond its table's limit. `size` is 16 for system descriptors of 64-bit mode. */
export function readDescriptor(cpu: Processor, selector: number, size: 8 | 16 = 8): Descriptor | undefined {
  const local = (selector & 4) !== 0;
  if (local && (cpu.ldtr.unusable || !cpu.ldtr.present || isNull(cpu.ldtr.selector))) return undefined;
  const { base, limit } = local ? cpu.ldtr : cpu.gdtr;
  const offset = selector & 0xfff8;
  if (offset + size - 1 > limit) return undefined;
  const linear = wrapLinear(cpu, base + BigInt(offset));
  return descriptorOf(
    cpu.memory.readSystem32(linear),
    cpu.memory.readSystem32(wrapLinear(cpu, linear + 4n)),
    linear,
  );
}

/** The accessed flag of a code or data descriptor. To be called when nothing but this can fault any more. */
export function markAccessed(cpu: Processor, { s, type, hi, linear }: Descriptor): void {
  if (!s || (type & Type.ACCESSED) !== 0) return;
  cpu.memory.writeSystem8(wrapLinear(cpu, linear + 5n), ((hi >>> 8) & 0xff) | Type.ACCESSED);
}

/** A data segment register after a null selector: AMD's processors keep base and limit (APM volume 2, 4.5.1), Intel's do not. */
export function nulled(cpu: Processor, index: number, selector: number): Segment {
  const old = cpu.segments[index]!;
  const kept =
    cpu.vendor === 'amd' && index >= Seg.FS ? { base: old.base, limit: old.limit } : { base: 0n, limit: 0 };
  return flatSegment({ selector, ...kept, type: 0, s: 0, g: 0, db: 0, present: 0, unusable: 1 });
}

/** What a selector is in virtual-8086 mode, CS too (SDM volume 3, 27.3.1.2; emulate.c, __load_segment_descriptor()). */
export const virtualSegment = (selector: number): Segment =>
  flatSegment({ selector, base: BigInt(selector << 4), limit: 0xffff, g: 0, db: 0, type: 3, dpl: 3 });

/** Loads a selector in real mode: the base alone changes, so that unreal mode keeps its limits. Or in virtual-8086 mode. */
export function realSegment(cpu: Processor, index: number, selector: number): Segment {
  if (virtual8086(cpu)) return virtualSegment(selector);
  const old = cpu.segments[index]!;
  const base = BigInt(selector << 4);
  if (!old.unusable) return { ...old, selector, base };
  return flatSegment({ selector, base, limit: 0xffff, g: 0, db: 0, type: index === Seg.CS ? 11 : 3 });
}

/** Assigns a segment register. Translated code sees it at once. */
export function setSegment(cpu: Processor, index: number, segment: Segment): void {
  cpu.segments[index] = segment;
  cpu.mirrorSegment(index);
}

/**
 * A stack segment for a privilege level, by the checks of MOV SS (SDM volume 2, MOV); far returns and gates have the
 * same ones with another vector.
 * @param vector of all but "not present", which is #SS
 */
export function stackSegment(
  cpu: Processor,
  selector: number,
  level: number,
  vector: number = Vector.GP,
  ext = 0,
): { segment: Segment; descriptor: Descriptor } {
  const code = selectorCode(selector, ext);
  const descriptor = readDescriptor(cpu, selector);
  if (descriptor === undefined) raise(vector, code);
  if (rpl(selector) !== level || !isWritableData(descriptor) || descriptor.dpl !== level) raise(vector, code);
  if (!descriptor.present) raise(Vector.SS, code);
  return { segment: segmentOf(selector, descriptor), descriptor };
}

/** What ES, SS, DS, FS or GS become (SDM volume 2, MOV). The descriptor is marked when nothing can fault any more. */
function loaded(cpu: Processor, index: number, selector: number): Segment {
  if (!protectedMode(cpu) || virtual8086(cpu)) return realSegment(cpu, index, selector);
  const level = cpl(cpu);
  if (index === Seg.SS) {
    if (isNull(selector)) {
      if (!longMode(cpu) || level === 3 || rpl(selector) !== level) raise(Vector.GP, 0);
      return nullStack(level, selector);
    }
    const { segment, descriptor } = stackSegment(cpu, selector, level);
    markAccessed(cpu, descriptor);
    return segment;
  }
  if (isNull(selector)) return nulled(cpu, index, selector);
  const code = selectorCode(selector);
  const descriptor = readDescriptor(cpu, selector);
  if (descriptor === undefined) raise(Vector.GP, code);
  const { s, type, dpl, present } = descriptor;
  if (!s || (type & (Type.CODE | Type.READABLE)) === Type.CODE) raise(Vector.GP, code);
  const guarded = !isCode(descriptor) || !isConforming(descriptor);
  if (guarded && (rpl(selector) > dpl || level > dpl)) raise(Vector.GP, code);
  if (!present) raise(Vector.NP, code);
  markAccessed(cpu, descriptor);
  return segmentOf(selector, descriptor);
}

/** Loads ES, SS, DS, FS or GS; raises before it changes anything. */
export function loadSegment(cpu: Processor, index: number, selector: number): void {
  setSegment(cpu, index, loaded(cpu, index, selector));
}

/**
 * On the way to an outer privilege level, data segments that it may not have become null (SDM volume 2, RET). Their
 * attributes stay, as KVM_GET_SREGS shows on AMD's virtualization.
 */
export function dropInnerSegments(cpu: Processor, level: number): void {
  for (const index of [Seg.ES, Seg.DS, Seg.FS, Seg.GS]) {
    const old = cpu.segments[index]!;
    const guarded = (old.type & Type.CODE) === 0 || (old.type & Type.CONFORMING) === 0;
    if (old.unusable || !guarded || old.dpl >= level) continue;
    setSegment(cpu, index, { ...old, selector: 0, present: 0, unusable: 1 });
  }
}
