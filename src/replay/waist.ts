/** What recorder and replay know of the calls at the waist: how arguments lie in a record, and what is refused. */
import type { Handle, Observer, Reference } from '../hypervisor/backend.ts';
import { type Ioctl, ioctls } from '../uapi/ioctls.ts';
import { EXIT_OFFSET, kvm_run } from '../uapi/kvm-run.ts';
import { viewOf } from '../uapi/layout.ts';
import { hex } from '../uapi/text.ts';
import { decoded, encoded, HandleId, sameBytes, type Value } from './codec.ts';
import type { Entry } from './records.ts';

/** By the full number of the request. */
export const rows: ReadonlyMap<number, Ioctl> = new Map(
  Object.values(ioctls).map((row) => [row.request, row]),
);

type Argument = number | bigint | Uint8Array | undefined;

/** What the kernel only writes is no part of what the VMM gives. */
export const argumentOf = (row: Ioctl | undefined, argument: Argument): Value =>
  argument instanceof Uint8Array && row?.dir === 'read' ? argument.length : argument;

/** A reference by its numbers. */
export const referenceOf = (reference: Reference, idOf: (handle: Handle) => HandleId): Value => {
  if (reference === null || reference instanceof Uint8Array) return reference;
  return 'memory' in reference ? [idOf(reference.memory), reference.offset] : idOf(reference as Handle);
};

const touching: ReadonlySet<Ioctl | undefined> = new Set<Ioctl>([
  ioctls.KVM_RUN,
  ioctls.KVM_PRE_FAULT_MEMORY,
  ioctls.KVM_RESET_DIRTY_RINGS,
]);
/** Whether the ioctl changes a kvm_run or a ring. */
export const touchesPages = (row: Ioctl | undefined): boolean => touching.has(row);

/** What an observer is told of. */
export const observerNames = (observer: Observer | undefined): (keyof Observer)[] =>
  (['instruction', 'secondStage', 'exception', 'lacking'] as const).filter(
    (name) => observer?.[name] !== undefined,
  );

const FALLOC_PUNCH_HOLE = 2;
const MADV_REMOVE = 9;
/** What makes zeroes of a part of guest memory. */
export const discards = {
  fallocate: (mode: number): boolean => (mode & FALLOC_PUNCH_HOLE) !== 0,
  madvise: (advice: number): boolean => advice === MADV_REMOVE,
};

const ENCRYPTED = 'an encrypted guest: what it holds is not seen here';
const refused: ReadonlyMap<Ioctl | undefined, string> = new Map<Ioctl, string>([
  [ioctls.KVM_CREATE_GUEST_MEMFD, 'private memory (KVM_CREATE_GUEST_MEMFD): KVM keeps no log of such a slot'],
  [ioctls.KVM_MEMORY_ENCRYPT_OP, `${ENCRYPTED} (KVM_MEMORY_ENCRYPT_OP)`],
  [ioctls.KVM_MEMORY_ENCRYPT_REG_REGION, `${ENCRYPTED} (KVM_MEMORY_ENCRYPT_REG_REGION)`],
  [ioctls.KVM_MEMORY_ENCRYPT_UNREG_REGION, `${ENCRYPTED} (KVM_MEMORY_ENCRYPT_UNREG_REGION)`],
]);
/** What of this ioctl no replay could have; undefined where it can. */
export function refusal(row: Ioctl | undefined, references: readonly Reference[]): string | undefined {
  const always = refused.get(row);
  if (always !== undefined) return always;
  if (row === ioctls.KVM_ENABLE_CAP && references[1])
    return `${ENCRYPTED} (KVM_ENABLE_CAP of another VM's context)`;
  const places = references.some((reference) => reference !== null && 'memory' in reference);
  if (places && row?.name.startsWith('KVM_XEN_'))
    return `memory that KVM writes without a log (${row.name} with an address of the host)`;
  return undefined;
}

/** A handle in words, by what made it. */
export type NameOf = (id: HandleId) => string;

/** `KVM_SET_REGS of vCPU 0`. */
export function describe({ kind, given }: Pick<Entry, 'kind' | 'given'>, nameOf: NameOf): string {
  const values = decoded(given);
  const [first, second] = values;
  const on = first instanceof HandleId ? ` of ${nameOf(first)}` : '';
  if (kind === 'ioctl' || kind === 'create')
    return `${rows.get(second as number)?.name ?? `ioctl ${second}`}${on}`;
  if (kind === 'input') return `input('${first}')`;
  if (kind === 'done') return `the end of a run${on}`;
  if (kind === 'ready') return `the callback${on}`;
  if (kind === 'observed') return `an observer's ${second}()${on}`;
  if (kind === 'runBegin') return `run${on}`;
  return `${kind}${on}`;
}

/** Where two lists of what was given differ, in words: what the recording has, and what came. */
export function difference(
  { kind, given }: Pick<Entry, 'kind' | 'given'>,
  came: Uint8Array,
  nameOf: NameOf,
): readonly [expected: string, came: string] {
  const [a, b] = [decoded(given), decoded(came)];
  const at = a.findIndex((value, i) => !same(value, b[i]));
  const [expected, found] = [a[at], b[at]];
  if (kind === 'run' || kind === 'runBegin' || kind === 'start' || (kind === 'ioctl' && at === 4))
    return pages(expected as Value[], found as Value[]);
  const row = kind === 'ioctl' || kind === 'create' ? rows.get(a[1] as number) : undefined;
  if (
    row !== undefined &&
    at === 2 &&
    'struct' in row &&
    expected instanceof Uint8Array &&
    found instanceof Uint8Array
  )
    return fields(row, expected, found);
  return [words(expected, nameOf), words(found, nameOf)];
}

const same = (a: Value, b: Value): boolean => sameBytes(encoded([a]), encoded([b]));

function words(value: Value, nameOf: NameOf): string {
  if (value instanceof HandleId) return nameOf(value);
  if (value instanceof Uint8Array) return value.length > 64 ? `${value.length} bytes` : hexBytes(value);
  if (Array.isArray(value)) return `[${value.map((item) => words(item, nameOf)).join(', ')}]`;
  if (typeof value === 'object' && value !== null)
    return `{${Object.entries(value)
      .map(([name, item]) => `${name}: ${words(item, nameOf)}`)
      .join(', ')}}`;
  return typeof value === 'number' && value > 4095 ? hex(value) : String(value);
}
const hexBytes = (bytes: Uint8Array): string =>
  bytes.length === 0 ? 'nothing' : Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join(' ');

/** The fields of a struct that differ. */
function fields(
  row: Extract<Ioctl, { struct: unknown }>,
  a: Uint8Array,
  b: Uint8Array,
): readonly [string, string] {
  const value = (bytes: Uint8Array) =>
    flat(bytes.length >= row.struct.size ? row.struct.get(viewOf(bytes), 0) : bytes);
  const [x, y] = [value(a), value(b)];
  const names = Object.keys(x).filter((name) => x[name] !== y[name]);
  const list = (from: { readonly [name: string]: string }) =>
    names.map((name) => `${name} ${from[name]}`).join(', ');
  // Behind the struct, as the elements of a list are.
  return names.length > 0 ? [list(x), list(y)] : [`${a.length} bytes`, `${b.length} other ones`];
}
function flat(value: unknown, path = '', into: { [name: string]: string } = {}): { [name: string]: string } {
  if (typeof value === 'object' && value !== null && !(value instanceof Uint8Array)) {
    for (const [name, item] of Object.entries(value)) flat(item, path ? `${path}.${name}` : name, into);
  } else {
    into[path] =
      value instanceof Uint8Array
        ? hexBytes(value)
        : typeof value === 'string'
          ? value
          : hex(value as number);
  }
  return into;
}

/** What the VMM has written to kvm_run, or to a ring. */
function pages(a: readonly Value[], b: readonly Value[]): readonly [string, string] {
  const bytes = (list: readonly Value[]) => {
    const at = new Map<string, readonly [number, number]>();
    for (const [, ...changes] of list as (readonly [HandleId, ...Value[]])[])
      for (let i = 0; i < changes.length; i += 2)
        (changes[i + 1] as Uint8Array).forEach((byte, j) => {
          const offset = (changes[i] as number) + j;
          at.set(String(offset), [offset, byte]);
        });
    return at;
  };
  const [x, y] = [bytes(a), bytes(b)];
  const key = [...x.keys(), ...y.keys()].find((offset) => x.get(offset)?.[1] !== y.get(offset)?.[1]);
  if (key === undefined) return ['as it is', 'another page'];
  const offset = Number(key);
  const text = (found: readonly [number, number] | undefined) =>
    `${placeOf(offset)} ${found === undefined ? 'as it was' : `0x${found[1].toString(16)}`}`;
  return [text(x.get(key)), text(y.get(key))];
}

const PAGE = 4096;
/** A byte of a vCPU's mapping, by its field. */
function placeOf(offset: number): string {
  if (offset >= PAGE) return `byte ${offset - PAGE} of the port's data`;
  const field = Object.entries(kvm_run.fields).findLast(([, field]) => field.offset <= offset);
  if (offset >= EXIT_OFFSET && offset < EXIT_OFFSET + 256)
    return `byte ${offset - EXIT_OFFSET} of the exit's fields`;
  return field ? `kvm_run.${field[0]}` : `byte ${offset} of kvm_run`;
}
