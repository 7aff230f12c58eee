/**
 * Hardware memory errors, made by the kernel's own injection (Documentation/mm/hwpoison.rst). They take physical memory
 * from the whole machine, so only in the lab, whose machine is thrown away. The simulator makes them when it is told.
 */
import { closeSync, existsSync, openSync, readSync, writeFileSync } from 'node:fs';
import type { Hypervisor } from '../../src/index.ts';
import { inLab } from './limits.ts';

const CORRUPT = '/sys/kernel/debug/hwpoison/corrupt-pfn';
const PAGE_FLAGS = '/proc/kpageflags';
/** KPF_UNEVICTABLE (include/uapi/linux/kernel-page-flags.h): what a guest_memfd's pages are, and few others. */
const UNEVICTABLE = 1 << 18;
const CHUNK = 2 ** 20;

/** Why it cannot be done here. */
export function noPoison({ backend }: Hypervisor): string | undefined {
  if (backend === 'sim') return undefined;
  if (!inLab) return 'hardware memory errors are injected in the lab only';
  return [CORRUPT, PAGE_FLAGS].filter((file) => !existsSync(file)).map((file) => `there is no ${file}`)[0];
}

/** The numbers of all page frames that cannot be evicted. */
function unevictable(): Set<number> {
  const frames = new Set<number>();
  const words = new Uint32Array(CHUNK / 4);
  const file = openSync(PAGE_FLAGS, 'r');
  for (let first = 0; ; first += CHUNK / 8) {
    const bytes = readSync(file, words);
    for (let i = 0; i < bytes / 4; i += 2) if ((words[i]! & UNEVICTABLE) !== 0) frames.add(first + i / 2);
    if (bytes < CHUNK) break;
  }
  closeSync(file);
  return frames;
}

/** A page frame that the allocation took for a guest_memfd. No table tells which: the frame is mapped nowhere. */
export function frameTakenBy(allocate: () => void): number {
  const before = unevictable();
  allocate();
  for (const frame of unevictable()) if (!before.has(frame)) return frame;
  throw new Error('no page frame became unevictable');
}

/** Marks the frame as bad. Its guest_memfd keeps it, which the kernel's injection takes for a failure: EBUSY. */
export function poison(frame: number): void {
  try {
    writeFileSync(CORRUPT, `${frame}`);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EBUSY') throw error;
  }
}
