/** What of two results must be equal, and how they differ. */
import { Fx, partsOf, REGISTERS, RFLAGS, Xs } from './case.ts';
import { isChanged } from './exclusions.ts';
import type { Inspected } from './forms.ts';
import type { Oracle } from './oracle.ts';
import type { Result } from './runner.ts';

/** A difference: where, and both values. */
export interface Difference {
  readonly where: string;
  readonly expected: string;
  readonly actual: string;
}

const RF = 0x1_0000;
/** The x87's condition code that tells of rounding. */
const C1 = 0x200;
const hex = (value: number | bigint) => value.toString(16);
const text = (bytes: Uint8Array) => Buffer.from(bytes).toString('hex');

/** RFLAGS's bits, for naming those that differ. */
const FLAG_NAMES: readonly (readonly [mask: number, name: string])[] = [
  [0x1, 'CF'],
  [0x4, 'PF'],
  [0x10, 'AF'],
  [0x40, 'ZF'],
  [0x80, 'SF'],
  [0x100, 'TF'],
  [0x200, 'IF'],
  [0x400, 'DF'],
  [0x800, 'OF'],
  [0x3000, 'IOPL'],
  [0x4000, 'NT'],
  [0x1_0000, 'RF'],
  [0x4_0000, 'AC'],
  [0x20_0000, 'ID'],
];
const flagNames = (mask: number) =>
  FLAG_NAMES.filter(([bit]) => (mask & bit) !== 0)
    .map(([, name]) => name)
    .join('+') || hex(mask);

/** @param oracle who says what is expected, and what it says of some instructions is not so elsewhere */
export function compare(
  expected: Result,
  actual: Result,
  what: Inspected,
  oracle: Oracle = 'silicon',
): Difference[] {
  // KVM's emulator gives up where it does not know an instruction.
  if (oracle === "KVM's emulator" && expected.end === 'INTERNAL_ERROR') return [];
  const occasion = { ...what, ends: [expected.end, actual.end] } as const;
  return differences(expected, actual, what).filter(({ where }) => !isChanged(oracle, occasion, where));
}

function differences(expected: Result, actual: Result, what: Inspected): Difference[] {
  if (what.isInvalid && expected.end !== '#6') return [];
  if (what.undefinedFault && [expected, actual].some(({ end }) => end.startsWith('#'))) return [];
  const found: Difference[] = [];
  const differ = (where: string, a: string, b: string) => {
    if (a !== b) found.push({ where, expected: a, actual: b });
  };
  if (!sameEnd(expected.end, actual.end, what)) differ('end', expected.end, actual.end);
  differ('io', expected.io.join(', '), actual.io.join(', '));
  const completed = !expected.end.startsWith('#');
  if (what.privilege === 0 || (completed && expected.system !== undefined && actual.system !== undefined))
    for (const [name, a, b] of pairsOf(expected.system, actual.system)) differ(name, a, b);
  REGISTERS.forEach((name, i) => {
    if (i === RFLAGS || (completed && name === what.undefinedDestination)) return;
    differ(name, hex(expected.registers[i]!), hex(actual.registers[i]!));
  });
  const flags = [expected, actual].map(({ registers }) => Number(registers[RFLAGS]!));
  // Undefined flags may be lost before a fault, too.
  const different = (flags[0]! ^ flags[1]!) & ~(what.undefinedFlags | (completed ? RF : 0));
  if (different !== 0) differ(flagNames(different), hex(flags[0]! & different), hex(flags[1]! & different));
  for (const [name, at, size] of partsOf(expected.fpu)) {
    if (name === 'bv') {
      // What is in its initial state silicon may or may not know to be (SDM volume 1, 13.6).
      const known = expected.fpu[at]! & ~initialParts(expected.fpu);
      differ(name, hex(known), hex(actual.fpu[at]! & ~initialParts(expected.fpu)));
      continue;
    }
    if (name === 'fsw' || (what.isApproximate && near(name, expected.fpu, actual.fpu, at))) continue;
    const [a, b] = [expected.fpu, actual.fpu].map((fpu) => fpu.subarray(at, at + size));
    if (Buffer.compare(a!, b!) !== 0) differ(name, text(a!), text(b!));
  }
  const status = [expected, actual].map(
    ({ fpu }) =>
      (fpu[Fx.fsw]! | (fpu[Fx.fsw + 1]! << 8)) & ~(what.undefinedStatus | (what.isApproximate ? C1 : 0)),
  );
  differ('fsw', hex(status[0]!), hex(status[1]!));
  if (!(completed && what.undefinedDestination === 'memory')) {
    const bytes = changedBytes(expected, actual);
    differ(
      'memory',
      bytes.map(([at, a]) => `${hex(at)}:${a}`).join(' '),
      bytes.map(([at, , b]) => `${hex(at)}:${b}`).join(' '),
    );
  }
  return found;
}

/** The bits of XSTATE_BV of what holds zeroes; x87's state is not looked at. */
const initialParts = (area: Uint8Array): number => {
  const isZero = (from: number, to: number) => area.subarray(from, to).every((byte) => byte === 0);
  return 1 | (isZero(Fx.xmm, Fx.end) ? 2 : 0) | (isZero(Xs.ymm, Xs.end) ? 4 : 0);
};

/** The values that two texts of system registers have for a name; what is not there did not change. */
function* pairsOf(expected = '', actual = ''): Generator<readonly [name: string, a: string, b: string]> {
  const [a, b] = [expected, actual].map(
    (text) => new Map(text.split(' ').map((pair) => pair.split('=') as [string, string])),
  ) as [Map<string, string>, Map<string, string>];
  for (const name of new Set([...a.keys(), ...b.keys()]))
    yield [name, a.get(name) ?? 'as before', b.get(name) ?? 'as before'];
}

/** A page fault where a PVM host has itself: it takes that for #GP. */
const UPPER_HALF = /^#14 error=[0-9a-f]+ address=ffff[89a-f]/;

/** A page fault at the end of the lower half, and one just above it: of an operand that lies on both sides. */
const EDGE = /^#14 error=[0-9a-f]+ address=(7fffffffff|8000000000)[0-9a-f]{2}$/;

/** How both ended, but for what docs/undefined-results.md says of it. */
function sameEnd(expected: string, actual: string, what: Inspected): boolean {
  if (expected === '#6' && (/^#1[23] error=0$/.test(actual) || UPPER_HALF.test(actual))) return what.isValid;
  if (EDGE.test(expected) && actual === '#13 error=0') return true;
  if (!what.undefinedAddress) return expected === actual;
  const page = (end: string) => end.replace(/[0-9a-f]{1,3}$/, '');
  return page(expected) === page(actual);
}

/** How far apart approximations of one number may be: in units in the last place, and relatively. */
const FEW_ULPS = 4n;
const TWICE_THE_ERROR = 3 * 2 ** -12;
/** Below it results become zero. */
const LEAST_NORMAL = 2 ** -126;

/** Whether a register's contents are as near as two approximations of one number are. */
function near(name: string, expected: Uint8Array, actual: Uint8Array, at: number): boolean {
  const [a, b] = [expected, actual].map((bytes) => new DataView(bytes.buffer, bytes.byteOffset + at)) as [
    DataView,
    DataView,
  ];
  if (name.startsWith('st')) {
    // Sign and exponent with the significand below them: neighbours are one apart.
    const ordinal = (view: DataView) =>
      (BigInt(view.getUint16(8, true)) << 63n) | (view.getBigUint64(0, true) & ~(1n << 63n));
    const apart = ordinal(a) - ordinal(b);
    return apart <= FEW_ULPS && apart >= -FEW_ULPS;
  }
  if (!/^[xy]mm/.test(name)) return false;
  return [0, 4, 8, 12].every((i) => {
    const [x, y] = [a.getFloat32(i, true), b.getFloat32(i, true)];
    return Object.is(x, y) || Math.abs(x - y) <= TWICE_THE_ERROR * Math.abs(x) + LEAST_NORMAL;
  });
}

/** The bytes of memory that are not equal, with what each has there: nothing where only the other has changed it. */
function changedBytes(
  expected: Result,
  actual: Result,
): (readonly [at: number, expected: string, actual: string])[] {
  const maps = [expected, actual].map(
    ({ memory }) =>
      new Map(
        memory.flatMap(({ offset, bytes }) => [...bytes].map((byte, i) => [offset + i, byte] as const)),
      ),
  );
  const offsets = [...new Set(maps.flatMap((map) => [...map.keys()]))].sort((a, b) => a - b);
  const at = (map: Map<number, number>, offset: number) =>
    map.get(offset)?.toString(16).padStart(2, '0') ?? '--';
  return offsets
    .map((offset) => [offset, at(maps[0]!, offset), at(maps[1]!, offset)] as const)
    .filter(([, a, b]) => a !== b);
}

export const shown = (found: readonly Difference[]): string =>
  found
    .map(({ where, expected, actual }) => `${where}: ${expected || 'nothing'} / ${actual || 'nothing'}`)
    .join('; ');
