/** The two forms of a task-state segment, as tables of offsets (SDM volume 3, figures 8-2 and 8-10). */

import { Seg, type Segment, System } from '../processor/descriptors.ts';

export interface TssLayout {
  /** The least that a segment must have. */
  readonly bytes: number;
  /** Bytes of a register. */
  readonly word: 2 | 4;
  readonly ip: number;
  readonly flags: number;
  /** Eight, in the order of the encodings. */
  readonly registers: number;
  /** Those that a switch saves and loads, in the order in which KVM loads them (emulate.c, load_state_from_tss32()). */
  readonly segments: readonly (readonly [index: number, offset: number])[];
  readonly ldt: number;
  readonly cr3: number | undefined;
  /** The word whose bit 0 asks for a debug exception. */
  readonly trap: number | undefined;
}

const TSS32: TssLayout = {
  bytes: 0x68,
  word: 4,
  ip: 32,
  flags: 36,
  registers: 40,
  segments: [
    [Seg.ES, 72],
    [Seg.CS, 76],
    [Seg.SS, 80],
    [Seg.DS, 84],
    [Seg.FS, 88],
    [Seg.GS, 92],
  ],
  ldt: 96,
  cr3: 28,
  trap: 100,
};

/** It knows nothing of FS and GS, which stay as they are, as they do with KVM. */
const TSS16: TssLayout = {
  bytes: 0x2c,
  word: 2,
  ip: 14,
  flags: 16,
  registers: 18,
  segments: [
    [Seg.ES, 34],
    [Seg.CS, 36],
    [Seg.SS, 38],
    [Seg.DS, 40],
  ],
  ldt: 42,
  cr3: undefined,
  trap: undefined,
};

export const isTss16 = ({ type }: Segment): boolean => type === System.TSS16 || type === System.TSS16_BUSY;
export const layoutOf = (segment: Segment): TssLayout => (isTss16(segment) ? TSS16 : TSS32);
