/** Processors that execute the same drawn kernel (kernel-play.ts), and must be the same wherever they are stopped. */
import { State } from '../../src/sim/cpu/processor/state.ts';
import { type Machine, MEMORY } from '../unit/sim-cpu-system.ts';
import { kernelMachine, Random, type Tier } from './kernel-play.ts';

/** Bytes of memory that a difference is looked for in at once. */
const memoryOf = ({ arena, ram }: Machine) => Buffer.from(arena.views.u8.buffer, ram, MEMORY);

/** All that a guest or the host could see. */
function seen({ cpu }: Machine) {
  const { state, segments, gdtr, idtr, ldtr, tr, cr0, cr2, cr3, cr4, efer, dr, debug, shadow } = cpu;
  const gpr = Array.from({ length: 16 }, (_, i) => state.gpr(i).toString(16));
  const { halted, nmiPending, nmiMasked, windowRequested, exception, interrupt, mode, alignment } = cpu;
  const rest = { halted, nmiPending, nmiMasked, windowRequested, exception, interrupt, alignment };
  const tables = { gdtr, idtr, ldtr, tr, cr0, cr2, cr3, cr4, efer, dr: [...dr], held: debug.held, shadow };
  const bases = segments.map((_, i) => state.u64(State.segmentBase + 8 * i));
  const selectors = segments.map((_, i) => state.u16(State.selectors + 2 * i));
  // Who is in a shadow may be told by the count alone, and is executed as if nobody watched until somebody asks.
  const { key: _key, single: _single, ...kind } = mode;
  return {
    count: state.count,
    rip: state.rip.toString(16),
    flags: state.flags.toString(16),
    gpr,
    segments: segments.map((one) => ({ ...one })),
    bases,
    selectors,
    msrs: [...cpu.msrs].sort(([a], [b]) => a - b),
    ...tables,
    ...rest,
    mode: kind,
  };
}

type Kind = 'slice' | string;
/** Executes so many instructions, or until something else stops it; loosely: to the end of a block. */
function goes({ cpu }: Machine, instructions: number, exactly = true): Kind {
  const end = cpu.state.count + BigInt(instructions);
  for (let patience = 0; patience < 100_000; patience++) {
    const left = Number(end - cpu.state.count);
    if (left <= 0) return 'slice';
    const { kind } = cpu.run(left, exactly);
    if (kind !== 'slice') return kind;
  }
  throw new Error('no instruction is completed');
}
/** The other goes first and ends where its blocks do; then the first goes as far. */
function goesLoosely(first: Machine, other: Machine, instructions: number): Kind[] {
  const kind = goes(other, instructions, false);
  const far = Number(other.cpu.state.count - first.cpu.state.count);
  const mine = far === 0 ? 'slice' : goes(first, far);
  if (mine !== 'slice') return [mine, kind];
  // What stops it before an instruction is met there; and a fault that was delivered is no instruction that was completed.
  if (kind !== 'slice') return [first.cpu.run(1, true).kind, kind];
  if (first.cpu.state.rip === other.cpu.state.rip) return [mine, kind];
  return [goes(first, 1), goes(other, 1)];
}

/** What the host does between two runs: the same to each. */
function meddle(random: Random, { cpu }: Machine): void {
  switch (random.below(11)) {
    case 0:
    case 9:
    case 10:
      cpu.windowRequested = random.below(2) === 0;
      break;
    case 1:
      cpu.nmiPending = Math.min(2, cpu.nmiPending + 1);
      break;
    case 2:
      cpu.debugging = { ...cpu.debugging, singleStep: random.below(3) === 0 };
      break;
    case 3: {
      // A breakpoint where it is now, with RF or without.
      const hardware =
        random.below(2) === 0 ? undefined : { addresses: [cpu.state.rip, 0n, 0n, 0n], dr7: 0x403n };
      cpu.debugging = { ...cpu.debugging, hardware };
      if (random.below(2) === 0) cpu.state.flags |= 0x1_0000;
      break;
    }
    case 4:
      cpu.dr[0] = cpu.state.rip;
      cpu.dr[7] = random.below(2) === 0 ? 0x400n : 0x402n;
      break;
    case 5:
      if ((cpu.state.eflags & 0x200) !== 0 && cpu.shadow === undefined)
        cpu.interrupt = { vector: 0x42, soft: false };
      break;
    case 6:
      cpu.state.flags |= 0x1_0000;
      break;
  }
  cpu.changed();
  cpu.enter(random.below(4) === 0);
}

export interface Play {
  readonly vendor: 'intel' | 'amd';
  readonly tiers: readonly Tier[];
  readonly instructions: number;
  /** The host does something between runs. */
  readonly meddles: boolean;
  compare(actual: unknown, expected: unknown, where: string): void;
}

/** Gives how many instructions were executed by each. */
export function play(seed: number, { vendor, tiers, instructions, meddles, compare }: Play): number {
  const machines = tiers.map((tier) => kernelMachine(seed, tier, vendor));
  const [first, ...others] = machines as [Machine, ...Machine[]];
  const random = new Random(seed ^ 0x7777);
  let done = 0;
  for (let run = 0; done < instructions; run++) {
    const slice = random.pick([random.below(40) + 1, random.below(40) + 1, 100 + random.below(400), 4000]);
    const before = Number(first.cpu.state.count);
    const isLoose = others.length === 1 && random.below(2) === 0;
    const kinds = isLoose
      ? goesLoosely(first, others[0]!, slice)
      : machines.map((machine) => goes(machine, slice));
    done += Math.max(1, Number(first.cpu.state.count) - before);
    const expected = seen(first);
    for (const [index, other] of others.entries()) {
      const where = `seed ${seed}, ${vendor}, ${tiers[index + 1]}, run ${run}, from ${before}`;
      compare([kinds[index + 1], seen(other)], [kinds[0], expected], where);
      const difference = memoryOf(first).compare(memoryOf(other));
      if (difference !== 0) compare(differences(other, first), [], `${where}: memory`);
    }
    if (!['slice', 'debug', 'interrupt-window', 'halt'].includes(kinds[0]!)) break;
    const what = random.u32();
    if (kinds[0] === 'interrupt-window') for (const { cpu } of machines) cpu.windowRequested = false;
    if (meddles) for (const machine of machines) meddle(new Random(what), machine);
  }
  return done;
}

/** The first places where memory differs. */
function differences(a: Machine, b: Machine): string[] {
  const [mine, theirs] = [memoryOf(a), memoryOf(b)];
  const found: string[] = [];
  for (let i = 0; i < mine.length && found.length < 8; i++)
    if (mine[i] !== theirs[i]) found.push(`${i.toString(16)}: ${mine[i]} ${theirs[i]}`);
  return found;
}
