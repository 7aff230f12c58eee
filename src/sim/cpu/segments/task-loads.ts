/** What a new task's selectors become: the checks of SDM volume 3, table 8-1, which raise #TS where others raise #GP. */

import {
  type Descriptor,
  flatSegment,
  isCode,
  isConforming,
  isNull,
  isWritableData,
  rpl,
  Seg,
  type Segment,
  System,
  segmentOf,
  selectorCode,
  Type,
} from '../processor/descriptors.ts';
import { raise, Vector } from '../processor/fault.ts';
import type { Processor } from '../processor/processor.ts';
import { markAccessed, nulled, readDescriptor, setSegment } from './loads.ts';

/** A selector whose descriptor has not been looked at. SS's DPL is the privilege level all the same. */
export const unloaded = (selector: number, level: number): Segment =>
  flatSegment({ selector, dpl: level, type: 3, limit: 0, g: 0, db: 0, present: 0, unusable: 1 });

export function loadTaskLdt(cpu: Processor, selector: number, ext: number): void {
  if (isNull(selector)) return;
  const code = selectorCode(selector, ext);
  const local = (selector & 4) !== 0;
  const descriptor = local ? undefined : readDescriptor(cpu, selector);
  if (descriptor === undefined || descriptor.s || descriptor.type !== System.LDT) raise(Vector.TS, code);
  if (!descriptor.present) raise(Vector.TS, code);
  cpu.ldtr = segmentOf(selector, descriptor);
}

/** Whether a descriptor may be in a segment register of a task at a privilege level. */
function fits(index: number, selector: number, level: number, descriptor: Descriptor): boolean {
  const { s, type, dpl } = descriptor;
  if (!s) return false;
  if (index === Seg.CS) {
    if (!isCode(descriptor)) return false;
    return isConforming(descriptor) ? dpl <= level : dpl === level;
  }
  if (index === Seg.SS) return isWritableData(descriptor) && rpl(selector) === level && dpl === level;
  if ((type & (Type.CODE | Type.READABLE)) === Type.CODE) return false;
  return (isCode(descriptor) && isConforming(descriptor)) || (rpl(selector) <= dpl && level <= dpl);
}

/** Loads a register of the new task, whose privilege level is `level`. */
export function loadTaskSegment(
  cpu: Processor,
  index: number,
  selector: number,
  level: number,
  ext: number,
): void {
  const needed = index === Seg.CS || index === Seg.SS;
  const code = selectorCode(selector, ext);
  if (isNull(selector)) {
    if (needed) raise(Vector.TS, code);
    setSegment(cpu, index, nulled(cpu, index, selector));
    return;
  }
  const descriptor = readDescriptor(cpu, selector);
  if (descriptor === undefined || !fits(index, selector, level, descriptor)) raise(Vector.TS, code);
  if (!descriptor.present) raise(index === Seg.SS ? Vector.SS : Vector.NP, code);
  markAccessed(cpu, descriptor);
  setSegment(cpu, index, segmentOf(selector, descriptor));
}
