/**
 * Random sequences of what a VMM and its guest do with memory: slots, attributes, guest_memfds, pre-faulting, and the
 * guest's own accesses. What each step gives is a line; two backends that agree give the same lines. A step's choices
 * never depend on what an earlier one gave, so the number of a sequence names it.
 */
import {
  Cap,
  Exit,
  exitName,
  type GuestMemfd,
  type GuestMemory,
  type Hypervisor,
  KvmError,
  MemFlag,
  MemoryAttribute,
} from '../../src/index.ts';
import { Hypercall, MapGpaRange } from '../../src/uapi/index.ts';
import { Agent } from '../support/agent.ts';
import {
  copy,
  increment,
  load8,
  load16,
  load32,
  load128,
  push,
  store8,
  store16,
  store32,
} from '../support/snippets.ts';
import { Random } from './random.ts';

const PAGE = 4096;
/** Where the slots are: above 4 GiB, so that an address which lost its upper half is found out. */
const AREA = 2 ** 32;
const PAGES = 8;
const SIZE = PAGES * PAGE;
const RAMS = 2;
const FILES = 3;
/** Slot 0 is the agent's. */
const SLOTS = [1, 2, 3];
const STEPS = 24;
/** An access has at most this many exits before it is given up. */
const MAX_EXITS = 100;
const FROM_DEVICE = 0x8877_6655_4433_2211n;

/** What the steps work on. */
class World implements Disposable {
  readonly agent: Agent;
  readonly rams: readonly GuestMemory[];
  readonly files: (GuestMemfd | undefined)[] = Array.from({ length: FILES }, () => undefined);
  /** The guest cannot go on. */
  over = false;

  constructor(hv: Hypervisor, type: number) {
    this.agent = Agent.boot(hv, { type, identity: AREA + 2 ** 21 });
    const { vm } = this.agent;
    if ((vm.checkExtension(Cap.EXIT_HYPERCALL) & (1 << Hypercall.MAP_GPA_RANGE)) !== 0)
      vm.enableCap({ cap: Cap.EXIT_HYPERCALL, args: [1 << Hypercall.MAP_GPA_RANGE] });
    this.rams = Array.from({ length: RAMS }, () => vm.allocate(SIZE));
  }

  /** No slots but the agent's, no files, nothing private, known bytes: but not all that KVM remembers is undone. */
  reset(): void {
    const { vm } = this.agent;
    for (const which of this.files.keys()) this.closeFile(which);
    for (const { slot } of vm.memoryMap.slots)
      if (slot !== 0) vm.setUserMemoryRegion2({ slot, memorySize: 0 });
    vm.trySetMemoryAttributes(AREA, 2 * SIZE, 0);
    this.rams.forEach((ram, which) => {
      for (let page = 0; page < PAGES; page++)
        ram.bytes.fill(0x10 * (which + 1) + page, page * PAGE, (page + 1) * PAGE);
    });
  }

  closeFile(which: number): void {
    this.files[which]?.close();
    this.files[which] = undefined;
  }

  [Symbol.dispose](): void {
    this.agent[Symbol.dispose]();
    for (const which of this.files.keys()) this.closeFile(which);
    for (const ram of this.rams) ram.close();
  }
}

/** A step: what it is, and what it gives. */
interface Step {
  readonly text: string;
  readonly take: (world: World) => string;
}

const hex = (value: number | bigint) => value.toString(16);

/** What a call gives: its value in hexadecimal, `ok`, or the errno's name. */
function answerOf(call: () => unknown): string {
  try {
    const given = call();
    return typeof given === 'number' || typeof given === 'bigint' ? hex(given) : 'ok';
  } catch (error) {
    if (error instanceof KvmError) return error.code;
    throw error;
  }
}

/** Where the guest got: its answer, after the exits on the way; or what it cannot get past. */
function follow(world: World, outcome: number): string {
  const { agent } = world;
  const { vcpu } = agent;
  const seen: string[] = [];
  for (let i = 0, result = outcome; i < MAX_EXITS; i++, result = vcpu.run(5000)) {
    if (agent.answered) return [...seen, hex(agent.answer)].join(' ');
    if (result === Exit.MMIO) {
      const { mmio } = vcpu;
      const at = `${hex(mmio.physAddr)}+${mmio.length}`;
      seen.push(mmio.isWrite ? `write ${at}=${hex(mmio.value)}` : `read ${at}`);
      if (!mmio.isWrite) mmio.value = FROM_DEVICE;
    } else if (result === Exit.HYPERCALL) {
      const [gpa, pages, attributes] = [0, 1, 2].map((n) => vcpu.hypercall.argNumber(n)) as [
        number,
        number,
        number,
      ];
      const to = (attributes & MapGpaRange.ENCRYPTED) !== 0 ? MemoryAttribute.PRIVATE : 0;
      const errno = answerOf(() =>
        agent.vm.setMemoryAttributes({ address: gpa, size: pages * PAGE, attributes: to }),
      );
      seen.push(`hypercall ${hex(gpa)} ${pages} ${attributes}: ${errno}`);
      vcpu.hypercall.ret = errno === 'ok' ? 0 : 1;
    } else if (result === Exit.MEMORY_FAULT) {
      const { flags, gpa, size } = vcpu.memoryFault;
      return [...seen, `fault ${flags} ${hex(gpa)}+${hex(size)}`].join(' ');
    } else {
      if (result !== Exit.FAULT && result !== Exit.AGAIN) world.over = true;
      return [...seen, exitName(result)].join(' ');
    }
  }
  world.over = true;
  return `${seen.length} exits: ${seen[0]} ... ${seen.at(-1)}`;
}

/** A multiple of a page as a rule, and sometimes none. */
const bytesOf = (random: Random, pages: number): number =>
  pages * PAGE + (random.oneIn(24) ? random.pick([1, 0x800, -1]) : 0);

/** An address of the area or just beside it. */
const address = (random: Random, size: number): number =>
  random.oneIn(4)
    ? AREA + PAGE * random.below(PAGES + 1) - random.below(size + 1)
    : AREA + PAGE * random.below(PAGES) + 8 * random.below(16);

function region(random: Random, second: boolean): Step {
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
  return {
    text: `region${second ? 2 : ''} ${slot}${addressSpace ? `/${addressSpace}` : ''} at ${hex(guestPhysAddr)}+${hex(memorySize)} flags ${flags} ram ${which}+${memoryPage} file ${file}+${hex(guestMemfdOffset)}`,
    take({ agent: { vm }, rams, files }) {
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

const guestStep = (text: string, begin: (agent: Agent) => number): Step => ({
  text,
  take(world) {
    if (world.over) return 'over';
    return follow(world, begin(world.agent));
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
const SNIPPETS = { load8, load16, load32, load128, store8, store16, store32, increment, copy, push };
function guestSnippet(random: Random): Step {
  const [name, code] = random.pick(Object.entries(SNIPPETS));
  const [rsi, rdi, rax] = [address(random, 16), address(random, 16), random.u64()];
  return guestStep(`${name} ${hex(rsi)} ${hex(rdi)} ${hex(rax)}`, (agent) =>
    agent.beginCode(code, { rsi, rdi, rax }),
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

/** What may come next, and how often. */
const STEP_KINDS: readonly (readonly [weight: number, make: (random: Random) => Step])[] = [
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
const TOTAL = STEP_KINDS.reduce((sum, [weight]) => sum + weight, 0);

function stepOf(random: Random): Step {
  let at = random.below(TOTAL);
  for (const [weight, make] of STEP_KINDS) {
    if (at < weight) return make(random);
    at -= weight;
  }
  throw new Error('weights');
}

/** Memory is there from the beginning, or most sequences would be about none. */
const FIRST: readonly ((random: Random) => Step)[] = [
  (random) => createFile(random, 0),
  (random) => createFile(random, 1),
  (random) => region(random, true),
  attributes,
];

/** What both memories hold at the end: a sum that any byte changes. */
const sums = (): Step[] =>
  Array.from({ length: RAMS }, (_, which) => ({
    text: `ram ${which}`,
    take({ rams }) {
      const { bytes } = rams[which]!;
      const words = new DataView(bytes.buffer, bytes.byteOffset, SIZE);
      let sum = 0;
      for (let at = 0; at < SIZE; at += 4) sum = (Math.imul(sum, 31) + words.getInt32(at, true)) | 0;
      return hex(sum >>> 0);
    },
  }));

export interface Line {
  readonly text: string;
  readonly result: string;
}

/** What a step gives; also where something throws that no backend should. */
function taken(step: Step, world: World): string {
  try {
    return step.take(world);
  } catch (error) {
    world.over = true;
    return `threw ${(error as Error).message}`;
  }
}

/** How many sequences share a VM: making one takes the kernel as long as many of them. */
const BLOCK = 20;

/** Sequences by their numbers. One depends on those before it in its block, for a VM remembers more than its slots. */
export class Sequences implements Disposable {
  readonly #hv: Hypervisor;
  readonly #type: number;
  readonly #seed: number;
  #world: World | undefined;
  #next = 0;

  constructor(hv: Hypervisor, type: number, seed: number) {
    this.#hv = hv;
    this.#type = type;
    this.#seed = seed;
  }

  run(number: number): Line[] {
    if (number !== this.#next || number % BLOCK === 0) this[Symbol.dispose]();
    if (number !== this.#next) for (let i = number - (number % BLOCK); i < number; i++) this.#run(i);
    this.#next = number + 1;
    return this.#run(number);
  }

  #run(number: number): Line[] {
    if (this.#world?.over) this[Symbol.dispose]();
    this.#world ??= new World(this.#hv, this.#type);
    const world = this.#world;
    const random = new Random(this.#seed, number);
    const steps = [
      ...FIRST.map((make) => make(random)),
      ...Array.from({ length: STEPS }, () => stepOf(random)),
    ];
    world.reset();
    return [...steps, ...sums()].map((step) => ({ text: step.text, result: taken(step, world) }));
  }

  [Symbol.dispose](): void {
    this.#world?.[Symbol.dispose]();
    this.#world = undefined;
  }
}
