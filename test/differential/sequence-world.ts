/** What random sequences of memory ioctls and guest accesses work on, and how the guest's accesses end. */
import {
  Cap,
  Exit,
  exitName,
  type GuestMemfd,
  type GuestMemory,
  type Hypervisor,
  KvmError,
  MemoryAttribute,
  MemoryFaultFlag,
  type UserfaultBitmap,
} from '../../src/index.ts';
import { Hypercall, MapGpaRange } from '../../src/uapi/index.ts';
import { Agent } from '../support/agent.ts';
import { type Processor, snippets } from './sequence-snippets.ts';

export const PAGE = 4096;
/** Where the slots are: above 4 GiB, so that an address which lost its upper half is found out. */
export const AREA = 2 ** 32;
export const PAGES = 8;
export const SIZE = PAGES * PAGE;
export const RAMS = 2;
export const FILES = 3;
export const BITMAPS = 2;
/** An access has at most this many exits before it is given up. */
const MAX_EXITS = 100;
const FROM_DEVICE = 0x8877_6655_4433_2211n;

/** What the steps work on. */
export class World implements Disposable {
  readonly agent: Agent;
  readonly rams: readonly GuestMemory[];
  readonly files: (GuestMemfd | undefined)[] = Array.from({ length: FILES }, () => undefined);
  /** None without userfault. */
  readonly bitmaps: readonly UserfaultBitmap[];
  /** Whether a userfault is served at once: the page's bit cleared, and the guest run on. */
  serves = false;
  /** The guest cannot go on. */
  over = false;

  readonly snippets: (typeof snippets)[Processor];

  constructor(hv: Hypervisor, type: number, processor: Processor, userfault: boolean) {
    this.snippets = snippets[processor];
    this.agent = Agent.boot(hv, { type, identity: AREA + 2 ** 21 });
    const { vm } = this.agent;
    if ((vm.checkExtension(Cap.EXIT_HYPERCALL) & (1 << Hypercall.MAP_GPA_RANGE)) !== 0)
      vm.enableCap({ cap: Cap.EXIT_HYPERCALL, args: [1 << Hypercall.MAP_GPA_RANGE] });
    this.rams = Array.from({ length: RAMS }, () => vm.allocate(SIZE));
    this.bitmaps = Array.from({ length: userfault ? BITMAPS : 0 }, () => vm.createUserfaultBitmap(PAGES));
  }

  /** No slots but the agent's, no files, nothing private, known bytes: but not all that KVM remembers is undone. */
  reset(): void {
    const { vm } = this.agent;
    for (const which of this.files.keys()) this.closeFile(which);
    for (const { slot } of vm.memoryMap.slots)
      if (slot !== 0) vm.setUserMemoryRegion2({ slot, memorySize: 0 });
    vm.trySetMemoryAttributes(AREA, 2 * SIZE, 0);
    for (const bitmap of this.bitmaps) bitmap.release(0, PAGES);
    this.serves = false;
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
    for (const bitmap of this.bitmaps) bitmap.close();
  }
}

export const hex = (value: number | bigint) => value.toString(16);

/** What a call gives: its value in hexadecimal, `ok`, or the errno's name. */
export function answerOf(call: () => unknown): string {
  try {
    const given = call();
    return typeof given === 'number' || typeof given === 'bigint' ? hex(given) : 'ok';
  } catch (error) {
    if (error instanceof KvmError) return error.code;
    throw error;
  }
}

/** Whether it was a userfault; its bit is clear then. */
function release({ agent }: World, flags: number, gpa: number): boolean {
  const slot = agent.vm.memoryMap.slotAt(gpa);
  if ((flags & MemoryFaultFlag.USERFAULT) === 0 || slot?.userfaultBitmap === undefined) return false;
  slot.userfaultBitmap.release((gpa - slot.start) / PAGE);
  return true;
}

/** Where the guest got: its answer, after the exits on the way; or what it cannot get past. */
export function follow(world: World, outcome: number): string {
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
      if (world.serves && release(world, flags, gpa)) {
        seen.push(`served ${flags} ${hex(gpa)}+${hex(size)}`);
        continue;
      }
      return [...seen, `fault ${flags} ${hex(gpa)}+${hex(size)}`].join(' ');
    } else {
      if (result !== Exit.FAULT && result !== Exit.AGAIN) world.over = true;
      return [...seen, exitName(result)].join(' ');
    }
  }
  world.over = true;
  return `${seen.length} exits: ${seen[0]} ... ${seen.at(-1)}`;
}
