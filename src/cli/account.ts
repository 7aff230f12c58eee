/** The account of a run: which memory is in which state, which exits there were, what was converted. */
import type { Slot } from '../hypervisor/memory-map.ts';
import type { Vm } from '../hypervisor/vm.ts';
import { MemoryAttribute } from '../uapi/constants.ts';
import type { MemoryFaultCounters } from '../vmm/memory-faults.ts';
import type { PagerReport } from '../vmm/pager/options.ts';
import { bytes, type Style } from './text.ts';

interface Row {
  readonly start: number;
  readonly end: number;
  readonly isPrivate: boolean;
  readonly slot: Slot | undefined;
}

const hex = (address: number) => `0x${address.toString(16).padStart(8, '0')}`;

/** What is behind a slot for each state, and so what happens on an access. */
function behind(slot: Slot | undefined): string {
  if (slot === undefined) return 'no slot';
  const has = [slot.memory && 'memory', slot.guestMemfd && 'guest_memfd'].filter(Boolean);
  return `slot ${slot.slot}: ${has.join(' and ') || 'nothing'}`;
}

/** Runs of pages in one state, slot by slot, and what is private without a slot. */
function* rows({ memoryMap }: Vm): Generator<Row> {
  let end = memoryMap.end;
  for (const range of memoryMap.attributesWithin(0, Number.MAX_SAFE_INTEGER)) {
    if (range.value !== 0) end = Math.max(end, range.end);
  }
  for (const piece of memoryMap.pieces(0, end)) {
    for (const { start, end, value } of memoryMap.attributesWithin(piece.start, piece.end)) {
      const isPrivate = (value & MemoryAttribute.PRIVATE) !== 0;
      if (piece.slot !== undefined || isPrivate) yield { start, end, isPrivate, slot: piece.slot };
    }
  }
}

const PAGE = 4096;
/** How many pages a line draws one by one. */
const DRAWN = 16;

/** One sign a page, as far as there is room. */
const strip = (pages: number, sign: string) =>
  (sign.repeat(Math.min(pages, DRAWN)) + (pages > DRAWN ? '...' : '')).padEnd(DRAWN + 3);

/** Guest memory by state: one line for each run of pages. */
export function mapAccount(vm: Vm, style: Style): string {
  const lines = [...rows(vm)].map(({ start, end, isPrivate, slot }) => {
    const paint = isPrivate ? style.magenta : style.green;
    const drawn = paint(strip((end - start) / PAGE, isPrivate ? '#' : '-'));
    const state = paint(isPrivate ? 'private' : 'shared ');
    return `  ${hex(start)}  ${drawn}  ${bytes(end - start).padStart(9)}  ${state}  ${behind(slot)}`;
  });
  return [style.bold('Guest memory at the end (one sign a page)'), ...lines].join('\n');
}

/** What the exits of the guest most often are, in a few words. */
const meanings: { readonly [exit: string]: string } = {
  IO: 'port I/O: a byte for the serial port, mostly',
  MMIO: 'an access to memory that no slot has',
  HLT: 'the guest has halted',
  HYPERCALL: 'KVM_HC_MAP_GPA_RANGE: a conversion was asked for',
  MEMORY_FAULT: 'an access that KVM could not serve',
};

/** The exits by kind, the most frequent first. */
export function exitsAccount(exits: Readonly<Record<string, number>>, style: Style): string {
  const lines = Object.entries(exits)
    .sort(([, a], [, b]) => b - a)
    .map(
      ([name, count]) =>
        `  ${String(count).padStart(5)}  ${name.padEnd(13)} ${style.dim(meanings[name] ?? '')}`,
    );
  return [style.bold('Exits'), ...lines.map((line) => line.trimEnd())].join('\n');
}

/** What was converted, and what faults needed besides. */
export function conversionsAccount(counters: Readonly<MemoryFaultCounters>, style: Style): string {
  const { conversions, bytes: converted, memoryFaults, retries, refusals, stale } = counters;
  return [
    style.bold('Conversions'),
    `  ${String(conversions.toPrivate).padStart(5)}  to private, ${bytes(converted.toPrivate)}`,
    `  ${String(conversions.toShared).padStart(5)}  to shared, ${bytes(converted.toShared)}`,
    `  ${String(memoryFaults).padStart(5)}  memory faults, ${retries} of them solved by what the policy did, ${refusals} refused`,
    ...(stale > 0 ? [`  ${String(stale).padStart(5)}  pages that KVM took for devices', mapped anew`] : []),
  ].join('\n');
}

/** How a guest's memory has come while it ran, in a line. */
export function pagingAccount({ strategy, pages, zero, byCause, latency }: PagerReport): string {
  const count = (n: number, what: string) => (n === 0 ? [] : [`${n} ${what}`]);
  const { fault, kernel, prefetch, push, ensure, discard } = byCause;
  const came = [
    ...count(fault + kernel, 'as it touched them'),
    ...count(prefetch + push, 'behind'),
    ...count(ensure, 'for the VMM'),
    ...count(zero, 'zero'),
    ...count(discard, 'given back before'),
    ...count(pages - zero - fault - kernel - prefetch - push - ensure - discard, 'not needed'),
  ];
  const waits = latency.count === 0 ? '' : `; a fault waited ${latency.medianUs} us (median)`;
  return `memory by ${strategy}, ${pages} pages: ${came.join(', ')}${waits}`;
}
