/** The house is held to its plan: which room of src/ may import which, and no file itself round a circle. Types count. */
import { readdirSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { describe, expect, it, test } from 'vitest';

const root = new URL('../../', import.meta.url).pathname;

/** What each file imports. */
type Arrows = ReadonlyMap<string, readonly string[]>;

/** Static imports and exports, imports for their effects, dynamic ones and those in types, as far as they are relative. */
const importing = [
  /^(?:import|export)\b[^;]*?\sfrom\s+'(\.[^']+)'/gm,
  /^import\s+'(\.[^']+)'/gm,
  /\bimport\(\s*'(\.[^']+)'/g,
];
const importsOf = (source: string): string[] =>
  importing.flatMap((pattern) => Array.from(source.matchAll(pattern), ([, module]) => module!));

const files = readdirSync(join(root, 'src'), { recursive: true, encoding: 'utf8' })
  .filter((name) => name.endsWith('.ts') && !name.endsWith('.d.ts'))
  .map((name) => join('src', name))
  .sort();
const all: Arrows = new Map(
  files.map((file) => {
    const targets = importsOf(readFileSync(join(root, file), 'utf8')).map((to) => join(dirname(file), to));
    return [file, targets.filter((target) => files.includes(target))];
  }),
);

/** A folder, and what is in it: folders and files, ground to top. What stands in one row does not know each other. */
interface Plan {
  readonly base: string;
  /** `.` is all files of the folder itself that have no row of their own. The longest name that fits is the room. */
  readonly rows: readonly (readonly string[])[];
}

const plans: readonly Plan[] = [
  {
    base: 'src',
    rows: [
      ['uapi'],
      ['host.ts', 'package.ts'],
      ['hypervisor'],
      ['kvm', 'sim', 'replay', 'lab', 'setup'],
      ['vmm'],
      ['probe'],
      ['core.ts', 'diagnostics.ts'],
      ['open.ts', 'simulator.ts'],
      // A program of its own, in a thread of its own.
      ['index.ts', 'vmm/pager/thread.ts'],
      ['cli'],
    ],
  },
  {
    base: 'src/sim',
    rows: [
      // The second stage is all that memory/ and the processor know of each other.
      ['webassembly.ts', 'cpu/processor/stage.ts'],
      ['arena.ts', 'shared-memory.ts'],
      ['memory', 'cpu'],
      ['kernel'],
      ['.'],
    ],
  },
  {
    base: 'src/sim/cpu',
    rows: [
      ['processor'],
      ['fp'],
      ['address'],
      ['segments'],
      ['integer'],
      ['sse'],
      ['x87'],
      ['avx'],
      ['system'],
      ['translate'],
      ['translate/functions'],
      ['translate/x87'],
      ['translate/lower'],
      ['.'],
    ],
  },
  {
    base: 'src/sim/kernel',
    rows: [['threads'], ['abi'], ['host'], ['vm'], ['state'], ['run'], ['vcpu'], ['ioctls']],
  },
];

/** What only these may import, beside the room itself: whoever wants a backend asks open.ts for it. */
const doors: readonly { readonly to: RegExp; readonly from: readonly string[] }[] = [
  { to: /^src\/kvm\//, from: ['src/kvm/', 'src/open.ts'] },
  { to: /^src\/sim\//, from: ['src/sim/', 'src/open.ts', 'src/simulator.ts'] },
  { to: /^src\/replay\/(?!index|errors)/, from: ['src/replay/', 'src/open.ts'] },
  { to: /^src\/(lab|setup)\//, from: ['src/lab/', 'src/setup/', 'src/cli/'] },
];

const isIn = (file: string, path: string): boolean => file === path || file.startsWith(`${path}/`);

/** The room of a file, and its row; undefined where it has none. */
function roomOf({ base, rows }: Plan, file: string): { room: string; row: number } | undefined {
  return rows
    .flatMap((rooms, row) => rooms.map((room) => ({ room, row })))
    .filter(({ room }) => (room === '.' ? dirname(file) === base : isIn(file, `${base}/${room}`)))
    .sort((a, b) => b.room.length - a.room.length)[0];
}

const HERE = 'test/unit/rooms.test.ts';

/** What is not as a plan has it, a sentence each. */
function departures(plan: Plan, arrows: Arrows): string[] {
  const { base } = plan;
  const said: string[] = [];
  const name = (room: string) => (room === '.' ? `the top of ${base}` : `${base}/${room}`);
  for (const [file, targets] of arrows) {
    if (!isIn(file, base)) continue;
    const own = roomOf(plan, file);
    if (own === undefined)
      said.push(`${file} is in no room of ${base}: give its folder a row in ${HERE}, and draw it`);
    for (const target of targets) {
      const other = isIn(target, base) ? roomOf(plan, target) : undefined;
      if (own === undefined || other === undefined || own.room === other.room || other.row < own.row)
        continue;
      said.push(
        `${file} imports ${target}, and ${name(other.room)} stands ${other.row > own.row ? 'above' : 'beside'} ` +
          `${name(own.room)}: say by an interface in the lower room what is needed, move what both need below both, ` +
          `or move the file`,
      );
    }
  }
  return said;
}

function forced(arrows: Arrows): string[] {
  return Array.from(arrows).flatMap(([file, targets]) =>
    targets.flatMap((target) =>
      doors
        .filter(({ to, from }) => to.test(target) && !from.some((path) => file.startsWith(path)))
        .map(
          ({ from }) =>
            `${file} imports ${target}, which only ${from.join(', ')} may: ask one of these for it`,
        ),
    ),
  );
}

/** The shortest ways from files back to themselves, each once. */
function circles(arrows: Arrows): string[] {
  const found = new Map<string, string>();
  for (const start of arrows.keys()) {
    const from = new Map<string, string>();
    const queue = [start];
    for (let file = queue.shift(); file !== undefined && !from.has(start); file = queue.shift())
      for (const target of arrows.get(file) ?? [])
        if (!from.has(target)) {
          from.set(target, file);
          queue.push(target);
        }
    if (!from.has(start)) continue;
    const way = [start];
    do way.unshift(from.get(way[0]!)!);
    while (way[0] !== start);
    const key = [...new Set(way)].sort().join();
    if (!found.has(key))
      found.set(
        key,
        `${way[0]} imports ${way.slice(1).join(', which imports ')}: let a part say by an interface what it needs of its ` +
          'whole, or put the types and the data that both need into a file below both',
      );
  }
  return [...found.values()];
}

test('no file of src/ imports itself round a circle, not for a type either', () => {
  expect(circles(all)).toEqual([]);
});

describe.each(plans)('the rooms of $base', (plan) => {
  it('import only rooms that stand below them', () => {
    expect(departures(plan, all)).toEqual([]);
  });

  it('are all there', () => {
    const taken = new Set(files.map((file) => isIn(file, plan.base) && roomOf(plan, file)?.room));
    expect(plan.rows.flat().filter((room) => !taken.has(room))).toEqual([]);
  });
});

test('a backend, the lab and the setup are imported only by those who choose them', () => {
  expect(forced(all)).toEqual([]);
});

test.each(plans.slice(1))('ARCHITECTURE.md draws the rooms of $base in this order', ({ rows }) => {
  const [, section] = /^## The simulator$(.*?)^## /ms.exec(
    readFileSync(join(root, 'ARCHITECTURE.md'), 'utf8'),
  )!;
  const drawn = Array.from(section!.matchAll(/^ {4}([\w/]+)\/ {2,}\S/gm), ([, room]) => room);
  const rooms = rows.flat().filter((room) => room !== '.' && !room.endsWith('.ts'));
  expect(drawn.join(' ')).toContain(rooms.join(' '));
});

describe('an arrow that is planted', () => {
  const planted = (from: string, to: string): Arrows => new Map([[from, [to]]]);

  it('is found in a circle, by the names of all its files', () => {
    const said = circles(
      new Map([
        ['src/a.ts', ['src/b.ts', 'src/c.ts']],
        ['src/b.ts', ['src/c.ts']],
        ['src/c.ts', ['src/d.ts']],
        ['src/d.ts', ['src/b.ts', 'src/e.ts']],
        ['src/e.ts', []],
      ]),
    );
    expect(said).toEqual([
      expect.stringMatching(
        /^src\/b\.ts imports src\/c\.ts, which imports src\/d\.ts, which imports src\/b\.ts: let a part/,
      ),
    ]);
    expect(circles(planted('src/a.ts', 'src/a.ts'))).toHaveLength(1);
  });

  it.each([
    ['src', 'src/vmm/bus.ts', 'src/cli/main.ts', /above src\/vmm/],
    ['src', 'src/kvm/device.ts', 'src/sim/index.ts', /beside src\/kvm/],
    ['src/sim', 'src/sim/memory/ram.ts', 'src/sim/cpu/cpu.ts', /beside src\/sim\/memory/],
    ['src/sim', 'src/sim/cpu/cpu.ts', 'src/sim/index.ts', /the top of src\/sim stands above src\/sim\/cpu/],
    [
      'src/sim/cpu',
      'src/sim/cpu/translate/ir.ts',
      'src/sim/cpu/translate/lower/index.ts',
      /above .*translate:/,
    ],
    ['src/sim/cpu', 'src/sim/cpu/processor/state.ts', 'src/sim/cpu/address/tlb.ts', /above .*processor:/],
    ['src/sim/kernel', 'src/sim/kernel/vm/vm.ts', 'src/sim/kernel/vcpu/vcpu.ts', /above .*kernel\/vm:/],
  ] as const)('is found among the rooms of %s: %s to %s', (base, from, to, where) => {
    const [said, ...more] = departures(plans.find((plan) => plan.base === base)!, planted(from, to));
    expect(said).toMatch(where);
    expect(said).toContain(`${from} imports ${to}`);
    expect(more).toEqual([]);
  });

  it('is found at a door, and a file in no room by its name', () => {
    expect(forced(planted('src/vmm/bus.ts', 'src/sim/index.ts'))).toEqual([
      'src/vmm/bus.ts imports src/sim/index.ts, which only src/sim/, src/open.ts, src/simulator.ts may: ask one of these for it',
    ]);
    const [said] = departures(plans[3]!, new Map([['src/sim/kernel/new/file.ts', []]]));
    expect(said).toMatch(/^src\/sim\/kernel\/new\/file\.ts is in no room of src\/sim\/kernel/);
  });

  it('is read from each form of an import', () => {
    const source = `import a from './a.ts';\nimport type {\n  B,\n} from './b.ts';\nexport * from './c.ts';
export { type D } from '../d.ts';\nimport './e.ts';\nconst f = await import(\n  './f.ts'\n);\ntype G = import('./g.ts').G;
import { h } from 'node:h';\n`;
    expect(importsOf(source).sort()).toEqual(
      ['./a.ts', './b.ts', './c.ts', '../d.ts', './e.ts', './f.ts', './g.ts'].sort(),
    );
  });
});
