/** The steps of random sequences: what a VMM and its guest do with memory. */
import { MemFlag, MemoryAttribute } from '../../src/index.ts';
import { Hypercall, MapGpaRange } from '../../src/uapi/index.ts';
import type { Agent } from '../support/agent.ts';
import type { Random } from './random.ts';
import { snippetNames } from './sequence-snippets.ts';
import {
  AREA,
  answerOf,
  BITMAPS,
  FILES,
  follow,
  hex,
  PAGE,
  PAGES,
  RAMS,
  SIZE,
  type World,
} from './sequence-world.ts';

/** Slot 0 is the agent's. */
const SLOTS = [1, 2, 3];

/** A step: what it is, and what it gives. */
export interface Step {
  readonly text: string;
  readonly take: (world: World) => string;
}

/** A multiple of a page as a rule, and sometimes none. */
const bytesOf = (random: Random, pages: number): number =>
  pages * PAGE + (random.oneIn(24) ? random.pick([1, 0x800, -1]) : 0);

/** An address of the area or just beside it. */
const address = (random: Random, size: number): number =>
  random.oneIn(4)
    ? AREA + PAGE * random.below(PAGES + 1) - random.below(size + 1)
    : AREA + PAGE * random.below(PAGES) + 8 * random.below(16);

function region(random: Random, second: boolean, userfault = false): Step {
  const slot = random.oneIn(32) ? random.pick([0, 32763, 32764, 4000]) : random.pick(SLOTS);
  const addressSpace = random.oneIn(48) ? random.pick([1, 2]) : 0;
  const start = random.below(PAGES);
  const pages = random.oneIn(10) ? 0 : 1 + random.below(PAGES - start);
  const which = random.oneIn(8) ? undefined : random.below(RAMS);
  const memoryPage = random.below(PAGES - pages + 1);
  const file = second && !random.oneIn(3) ? random.below(FILES) : undefined;
  const filePage = random.oneIn(2) ? start : random.below(PAGES);
  const flags = random.oneIn(6)
    ? random.pick([
        MemFlag.READONLY,
        MemFlag.LOG_DIRTY_PAGES,
        MemFlag.READONLY | MemFlag.LOG_DIRTY_PAGES,
        1 << 5,
      ])
    : 0;
  const guestPhysAddr = AREA + bytesOf(random, start);
  // Up to the end of what the memory has: more is the API's to refuse.
  const memorySize = Math.max(0, Math.min(bytesOf(random, pages), SIZE - memoryPage * PAGE));
  const guestMemfdOffset = Math.max(0, bytesOf(random, filePage));
  const bitmap = userfault && random.oneIn(2) ? random.below(BITMAPS) : undefined;
  return {
    text: `region${second ? 2 : ''} ${slot}${addressSpace ? `/${addressSpace}` : ''} at ${hex(guestPhysAddr)}+${hex(memorySize)} flags ${flags} ram ${which}+${memoryPage} file ${file}+${hex(guestMemfdOffset)}${bitmap === undefined ? '' : ` bitmap ${bitmap}`}`,
    take({ agent: { vm }, rams, files, bitmaps }) {
      const guestMemfd = file === undefined ? undefined : files[file];
      if (file !== undefined && guestMemfd === undefined) return 'no file';
      const given = {
        slot,
        addressSpace,
        flags,
        guestPhysAddr,
        memorySize,
        memory: which === undefined ? undefined : rams[which],
        memoryOffset: which === undefined ? 0 : memoryPage * PAGE,
      };
      return answerOf(() =>
        second
          ? vm.setUserMemoryRegion2({
              ...given,
              guestMemfd,
              guestMemfdOffset: guestMemfd ? guestMemfdOffset : 0,
              userfaultBitmap: bitmap === undefined ? undefined : bitmaps[bitmap],
            })
          : vm.setUserMemoryRegion(given),
      );
    },
  };
}

function attributes(random: Random): Step {
  const start = random.below(PAGES + 1);
  const size = Math.max(0, bytesOf(random, random.below(PAGES + 1)));
  const address = AREA + bytesOf(random, start);
  const value = random.oneIn(16) ? random.pick([1, 4, 16]) : random.below(2) * MemoryAttribute.PRIVATE;
  return {
    text: `attributes ${hex(address)}+${hex(size)} = ${value}`,
    take: ({ agent: { vm } }) => answerOf(() => vm.setMemoryAttributes({ address, size, attributes: value })),
  };
}

function createFile(random: Random, which = random.below(FILES)): Step {
  const size = Math.max(
    0,
    bytesOf(random, random.oneIn(16) ? 0 : random.oneIn(2) ? PAGES : 1 + random.below(PAGES)),
  );
  // A flag that no kernel has: MMAP and INIT_SHARED depend on its version.
  const flags = random.oneIn(16) ? random.pick([8, 16, 32, 64]) : 0;
  return {
    text: `file ${which} of ${hex(size)} flags ${flags}`,
    take: ({ agent: { vm }, files }) =>
      answerOf(() => {
        const made = vm.createGuestMemfd(size, flags);
        files[which]?.close();
        files[which] = made;
      }),
  };
}

function closeFile(random: Random): Step {
  const which = random.below(FILES);
  return {
    text: `close file ${which}`,
    take: (world) => answerOf(() => world.closeFile(which)),
  };
}

/** fallocate(2): FALLOC_FL_KEEP_SIZE allocates, with PUNCH_HOLE it discards; others are refused. */
function fallocate(random: Random): Step {
  const which = random.below(FILES);
  const mode = random.oneIn(12) ? random.pick([0, 2, 0x10]) : random.pick([1, 3, 3]);
  const offset = Math.max(0, bytesOf(random, random.below(PAGES + 1)));
  const size = Math.max(0, bytesOf(random, random.oneIn(12) ? 0 : 1 + random.below(PAGES)));
  return {
    text: `fallocate ${which} mode ${mode} ${hex(offset)}+${hex(size)}`,
    take: ({ files }) =>
      files[which] ? answerOf(() => files[which]!.fallocate(mode, offset, size)) : 'no file',
  };
}

function preFault(random: Random): Step {
  const gpa = AREA + bytesOf(random, random.below(PAGES + 1));
  const size = Math.max(0, bytesOf(random, random.below(PAGES + 1)));
  return {
    text: `pre-fault ${hex(gpa)}+${hex(size)}`,
    take: ({ agent: { vcpu } }) => answerOf(() => vcpu.preFaultMemory(gpa, size)),
  };
}

const guestStep = (text: string, begin: (agent: Agent, world: World) => number): Step => ({
  text,
  take(world) {
    if (world.over) return 'over';
    return follow(world, begin(world.agent, world));
  },
});

function guestRead(random: Random): Step {
  const at = address(random, 8);
  return guestStep(`read ${hex(at)}`, (agent) => agent.begin('read', { rdi: at }));
}
function guestWrite(random: Random): Step {
  const at = address(random, 8);
  const value = random.u64();
  return guestStep(`write ${hex(at)} ${hex(value)}`, (agent) =>
    agent.begin('write', { rdi: at, rsi: value }),
  );
}
/** Large enough to go over several pages of memory, and short where every byte may be an exit. */
function guestFill(random: Random): Step {
  const size = 1 + random.below(24);
  const at = address(random, size);
  const byte = random.below(256);
  return guestStep(`fill ${hex(at)}+${size} ${hex(byte)}`, (agent) =>
    agent.begin('fill', { rdi: at, rcx: size, rsi: byte }),
  );
}
function guestCheck(random: Random): Step {
  const size = 1 + random.below(24);
  const at = address(random, size);
  const byte = random.pick([0, 0x10 + random.below(PAGES)]);
  return guestStep(`check ${hex(at)}+${size} ${hex(byte)}`, (agent) =>
    agent.begin('check', { rdi: at, rcx: size, rsi: byte }),
  );
}
function guestSnippet(random: Random): Step {
  const name = random.pick(snippetNames);
  const [rsi, rdi, rax] = [address(random, 16), address(random, 16), random.u64()];
  return guestStep(`${name} ${hex(rsi)} ${hex(rdi)} ${hex(rax)}`, (agent, { snippets }) =>
    agent.beginCode(snippets[name], { rsi, rdi, rax }),
  );
}
/** A page of RET, written and then called. */
function guestExecute(random: Random): Step {
  const at = AREA + PAGE * random.below(PAGES) + 8 * random.below(16);
  return {
    text: `execute ${hex(at)}`,
    take(world) {
      if (world.over) return 'over';
      const written = follow(world, world.agent.begin('write', { rdi: at, rsi: 0xc3c3_c3c3_c3c3_c3c3n }));
      if (written.includes(' ') || world.over) return written;
      return follow(world, world.agent.begin('call', { r15: at }));
    },
  };
}
function guestHypercall(random: Random): Step {
  const start = AREA + PAGE * random.below(PAGES);
  const pages = 1 + random.below(PAGES);
  const to = random.pick([MapGpaRange.ENCRYPTED, MapGpaRange.DECRYPTED]);
  return guestStep(`hypercall ${hex(start)} ${pages} ${to}`, (agent) =>
    agent.beginHypercall(Hypercall.MAP_GPA_RANGE, start, pages, to),
  );
}

function hostWrite(random: Random): Step {
  const which = random.below(RAMS);
  const page = random.below(PAGES);
  const byte = random.below(256);
  return {
    text: `host writes ${which} page ${page} ${hex(byte)}`,
    take({ rams }) {
      rams[which]!.bytes.fill(byte, page * PAGE, page * PAGE + 256);
      return 'ok';
    },
  };
}
function hostDiscard(random: Random): Step {
  const which = random.below(RAMS);
  const page = random.below(PAGES);
  return {
    text: `host discards ${which} page ${page}`,
    take: ({ rams }) => answerOf(() => rams[which]!.discard(page * PAGE, PAGE)),
  };
}

/** USERFAULT of a slot on, with a bitmap or a null pointer, or off; and sometimes another change with it. */
function toggle(random: Random): Step {
  const among = random.below(SLOTS.length);
  const bitmap = random.oneIn(3) ? undefined : random.below(BITMAPS);
  const none = bitmap === undefined && random.oneIn(6) ? MemFlag.USERFAULT : 0;
  const changes = random.oneIn(8) ? random.pick([MemFlag.LOG_DIRTY_PAGES, MemFlag.READONLY]) : 0;
  const moved = random.oneIn(16) ? PAGE : 0;
  return {
    text: `userfault ${among} bitmap ${bitmap} flags ${none} ^${changes} moved ${moved}`,
    take({ agent: { vm }, bitmaps }) {
      const slots = vm.memoryMap.slots.filter(({ slot }) => slot !== 0);
      const slot = slots[among % slots.length];
      if (slot === undefined) return 'no slot';
      if (slot.guestMemfd?.closed) return 'no file';
      const { flags, start, end, memory, memoryOffset, guestMemfd, guestMemfdOffset } = slot;
      return answerOf(() =>
        vm.setUserMemoryRegion2({
          slot: slot.slot,
          flags: (flags & ~MemFlag.USERFAULT) ^ changes ^ none,
          guestPhysAddr: start + moved,
          memorySize: end - start,
          memory,
          memoryOffset,
          guestMemfd,
          guestMemfdOffset,
          userfaultBitmap: bitmap === undefined ? undefined : bitmaps[bitmap],
        }),
      );
    },
  };
}
function markPages(random: Random): Step {
  const which = random.below(BITMAPS);
  const sets = !random.oneIn(3);
  const first = random.below(PAGES);
  const count = random.oneIn(3) ? PAGES - first : 1 + random.below(PAGES - first);
  return {
    text: `${sets ? 'set' : 'release'} ${which} ${first}+${count}`,
    take({ bitmaps }) {
      if (sets) bitmaps[which]!.set(first, count);
      else bitmaps[which]!.release(first, count);
      return 'ok';
    },
  };
}
function serve(random: Random): Step {
  const on = random.oneIn(2);
  return {
    text: `serve ${on}`,
    take(world) {
      world.serves = on;
      return 'ok';
    },
  };
}

type Kinds = readonly (readonly [weight: number, make: (random: Random) => Step])[];

/** What may come next, and how often. */
const STEP_KINDS: Kinds = [
  [5, (random) => region(random, true)],
  [1, (random) => region(random, false)],
  [4, attributes],
  [2, createFile],
  [1, closeFile],
  [3, fallocate],
  [2, preFault],
  [5, guestRead],
  [5, guestWrite],
  [2, guestFill],
  [2, guestCheck],
  [3, guestSnippet],
  [1, guestExecute],
  [1, guestHypercall],
  [1, hostWrite],
  [1, hostDiscard],
];
/** And where there is userfault. */
const USERFAULT_KINDS: Kinds = [
  ...STEP_KINDS,
  [4, (random) => region(random, true, true)],
  [6, toggle],
  [7, markPages],
  [1, serve],
];
const total = (kinds: Kinds) => kinds.reduce((sum, [weight]) => sum + weight, 0);

export function stepOf(random: Random, userfault: boolean): Step {
  const kinds = userfault ? USERFAULT_KINDS : STEP_KINDS;
  let at = random.below(total(kinds));
  for (const [weight, make] of kinds) {
    if (at < weight) return make(random);
    at -= weight;
  }
  throw new Error('weights');
}

/** One slot for all of the area, as it will be toggled. */
function whole(random: Random): Step {
  const [slot, which] = [random.pick(SLOTS), random.below(RAMS)];
  const file = random.oneIn(2) ? undefined : random.below(FILES);
  return {
    text: `whole ${slot} ram ${which} file ${file}`,
    take({ agent: { vm }, rams, files }) {
      const guestMemfd = file === undefined ? undefined : files[file];
      const memory = rams[which]!;
      return answerOf(() => vm.setUserMemoryRegion2({ slot, guestPhysAddr: AREA, memory, guestMemfd }));
    },
  };
}

/** Memory is there from the beginning, or most sequences would be about none. */
export const firstSteps = (userfault: boolean): readonly ((random: Random) => Step)[] => [
  (random) => createFile(random, 0),
  (random) => createFile(random, 1),
  ...(userfault ? [whole, markPages] : [(random: Random) => region(random, true)]),
  attributes,
];
