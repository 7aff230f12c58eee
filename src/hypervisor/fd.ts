/** One open file descriptor of a backend, and the ways in which a row of the ioctl table is issued on it. */
import type { ArrayRow, Ioctl, PointersRow, SizedRow, StructRow } from '../uapi/ioctls.ts';
import { type Input, type Struct, type Value, viewOf } from '../uapi/layout.ts';
import type { Integer } from './args.ts';
import {
  type Backend,
  type BackendName,
  type Handle,
  isHandle,
  type Reference,
  VCPU_RUNNING,
} from './backend.ts';
import { diagnostics } from './diagnostics.ts';
import { closed, KvmError, outOfRange, VmexitError, wrongType } from './errors.ts';
import { remedy } from './remedies.ts';

/** What KVM_GET_CPUID2 and its like are asked for first; they answer E2BIG when there are more. */
const FIRST_GUESS = 128;
const E2BIG = -7;

/** An ioctl that is made again and again, with its argument in place. */
export interface Kept {
  readonly bytes: Uint8Array;
  /** Gives the kernel's result. @throws KvmError as Fd.call() */
  issue(): number;
}

/** As the ways to read and write a struct have it. */
interface InPlace extends Kept {
  readonly view: DataView;
  /** The argument as words of 64 bits. */
  readonly words: BigUint64Array;
  /** A value is being written to it, by code of a caller maybe. */
  busy: boolean;
}

export class Fd {
  readonly backend: Backend;
  readonly #what: string;
  readonly #label: string;
  readonly #refuses: ((what: string) => VmexitError | undefined) | undefined;
  #handle: Handle | undefined;
  /** Undefined for what was used once; false where it cannot be had. */
  readonly #inPlace = new Map<Ioctl, InPlace | false | undefined>();

  /**
   * @param what how errors name it, as in `this vCPU was closed`
   * @param label how it is told from others of its kind, as in `vCPU 0`
   * @param refuses what this thread may not do with it: asked with an ioctl's name, or with a method's
   */
  constructor(
    backend: Backend,
    handle: Handle,
    what: string,
    label = what,
    refuses?: (what: string) => VmexitError | undefined,
  ) {
    this.backend = backend;
    this.#handle = handle;
    this.#what = what;
    this.#label = label;
    this.#refuses = refuses;
  }

  isOwned(what: string): boolean {
    return this.#refuses?.(what) === undefined;
  }
  /** @throws VmexitError ERR_KVM_NOT_OWNER where that is not this thread's to do */
  owned(what: string): void {
    const refusal = this.#refuses?.(what);
    if (refusal !== undefined) throw refusal;
  }

  get closed(): boolean {
    return this.#handle === undefined;
  }

  /** @throws VmexitError ERR_KVM_CLOSED */
  get handle(): Handle {
    if (this.#handle === undefined) throw closed(this.#what);
    return this.#handle;
  }

  close(): void {
    if (this.#handle === undefined) return;
    this.backend.close(this.#handle);
    this.#inPlace.clear();
    this.#handle = undefined;
  }

  /** The ioctl with its argument in place, from its second use on: undefined for the first, and where there is none. */
  #placeFor(row: StructRow): InPlace | undefined {
    this.owned(row.name);
    const place = this.#inPlace.get(row);
    if (place === undefined) this.#prepare(row);
    else if (place && !place.busy) return place;
    return undefined;
  }
  #prepare(row: StructRow): void {
    if (!this.#inPlace.has(row)) {
      this.#inPlace.set(row, undefined);
      return;
    }
    if (this.backend.prepare === undefined) {
      this.#inPlace.set(row, false);
      return;
    }
    const { bytes, issue } = this.keep(row);
    const words = new BigUint64Array(bytes.buffer, bytes.byteOffset, bytes.length >>> 3);
    this.#inPlace.set(row, { bytes, view: viewOf(bytes), words, issue, busy: false });
  }

  /** An ioctl for one who keeps its argument where it is, on any backend. */
  keep(row: StructRow): Kept {
    const prepared = this.backend.prepare?.(this.handle, row.request);
    const isReady = typeof prepared === 'object';
    const bytes = isReady ? prepared.bytes : new Uint8Array(row.struct.size);
    const issue = () => {
      const fast = isReady && this.#handle !== undefined && !diagnostics.ioctl.hasSubscribers;
      const result = fast ? prepared.issue() : this.issue(row, bytes);
      if (result < 0) throw failed(result, row, bytes, this.backend.name);
      return result;
    };
    return { bytes, issue };
  }

  /** Any ioctl as the backend has it: gives the kernel's result, or a negated errno. */
  issue(row: Ioctl, argument?: Integer | Uint8Array, references?: readonly Reference[]): number {
    const { handle } = this;
    this.owned(row.name);
    if (!diagnostics.ioctl.hasSubscribers)
      return this.backend.ioctl(handle, row.request, argument, references);
    const begun = performance.now();
    const result = this.backend.ioctl(handle, row.request, argument, references);
    this.#tell(row, argument, result, begun);
    return result;
  }

  #tell(row: Ioctl, argument: Integer | Uint8Array | undefined, result: number, begun: number): void {
    const us = (performance.now() - begun) * 1000;
    const { name } = row;
    diagnostics.ioctl.publish({ name, on: this.#label, argument: decoded(row, argument), result, us });
  }

  /** Any ioctl with its raw argument. @throws KvmError with the errno, and a remedy where one is known */
  call(row: Ioctl, argument?: Integer | Uint8Array, references?: readonly Reference[]): number {
    const result = this.issue(row, argument, references);
    if (result < 0) throw failed(result, row, argument, this.backend.name);
    return result;
  }

  /** An ioctl that makes a file descriptor. */
  create(row: Ioctl, argument: Integer | Uint8Array, references?: readonly Reference[]): Handle {
    this.owned(row.name);
    const begun = diagnostics.ioctl.hasSubscribers ? performance.now() : undefined;
    const result = this.backend.create(this.handle, row.request, argument, references);
    if (begun !== undefined) this.#tell(row, argument, isHandle(result) ? 0 : result, begun);
    if (!isHandle(result)) throw failed(result, row, argument, this.backend.name);
    return result;
  }

  /** @param decode a faster way than the layout's, where there is one */
  read<T extends StructRow>(
    row: T,
    decode?: (words: BigUint64Array) => Value<T['struct']>,
  ): Value<T['struct']> {
    const place = row.dir === 'read' ? this.#placeFor(row) : undefined;
    if (place !== undefined) {
      place.issue();
      return decode?.(place.words) ?? row.struct.get(place.view, 0);
    }
    return lend(row.struct.size, (data, view) => {
      this.call(row, data);
      return row.struct.get(view, 0);
    });
  }

  /** @param put a faster way than the layout's, where there is one; it gives whether it could */
  write<T extends StructRow>(
    row: T,
    value: Input<Value<T['struct']>>,
    put?: (words: BigUint64Array, value: Input<Value<T['struct']>>) => boolean,
  ): number {
    const place = this.#placeFor(row);
    if (place !== undefined) {
      place.busy = true;
      try {
        if (put?.(place.words, value) !== true) {
          place.bytes.fill(0);
          encode(row, place.view, value);
        }
        return place.issue();
      } finally {
        place.busy = false;
      }
    }
    return lend(row.struct.size, (data, view) => {
      encode(row, view, value);
      return this.call(row, data);
    });
  }

  /** Writes the struct and gives it as the kernel left it. */
  exchange<T extends StructRow>(row: T, value: Input<Value<T['struct']>>): Value<T['struct']> {
    return lend(row.struct.size, (data, view) => {
      encode(row, view, value);
      this.call(row, data);
      return row.struct.get(view, 0);
    });
  }

  /** Writes a struct with what it refers to, in the order of the row; gives the kernel's result. */
  refer<T extends PointersRow>(
    row: T,
    value: Input<Value<T['struct']>>,
    references: readonly Reference[],
  ): number {
    return lend(row.struct.size, (data, view) => {
      encode(row, view, value);
      return this.call(row, data, references);
    });
  }

  /** As refer(), and gives the struct as the kernel left it; what it refers to stays as it was given. */
  ask<T extends PointersRow>(
    row: T,
    value: Input<Value<T['struct']>>,
    references: readonly Reference[] = [],
  ): Value<T['struct']> {
    return lend(row.struct.size, (data, view) => {
      encode(row, view, value);
      const result = this.issue(row, data, references);
      if (result < 0) throw failed(result, row, data, this.backend.name);
      return row.struct.get(view, 0) as Value<T['struct']>;
    });
  }

  /** Reads by one row and writes by the other what it read, with the given fields changed. */
  change<T extends StructRow>(from: StructRow, to: T, value: Input<Value<T['struct']>>): void {
    lend(to.struct.size, (data, view) => {
      this.call(from, data);
      encode(to, view, value);
      this.call(to, data);
    });
  }

  /** The elements of a list whose length only the kernel knows. */
  readList<T extends ArrayRow>(row: T): Value<T['element']>[] {
    let count = FIRST_GUESS;
    for (;;) {
      const data = listOf(row, [], count);
      const result = this.issue(row, data);
      const found = countIn(row, data);
      if (result >= 0) return elementsIn(row, data, found);
      if (result !== E2BIG || count >= row.max) throw failed(result, row, data, this.backend.name);
      count = Math.min(Math.max(found, count * 2), row.max);
    }
  }

  /** Writes a list; gives the kernel's result and the elements as it left them. @param head its other fields */
  exchangeList<T extends ArrayRow>(
    row: T,
    elements: readonly Input<Value<T['element']>>[],
    head: Input<Value<T['struct']>> = {} as never,
  ): { result: number; elements: Value<T['element']>[] } {
    if (!Array.isArray(elements)) throw wrongType(row.name, elements, 'an array');
    if (elements.length > row.max)
      throw outOfRange(`${row.name}: the length`, elements.length, `at most ${row.max}`);
    const data = listOf(row, elements, elements.length, head);
    const result = this.call(row, data);
    return { result, elements: elementsIn(row, data, elements.length) };
  }

  /** The bytes of a struct whose size a capability tells. */
  readSized(row: SizedRow, size: number): Uint8Array<ArrayBuffer> {
    const data = new Uint8Array(Math.max(size, row.least));
    if (row.count !== undefined) row.struct.set(viewOf(data), 0, { [row.count]: data.length });
    this.call(row, data);
    return data;
  }
}

interface Spare {
  readonly bytes: Uint8Array<ArrayBuffer>;
  readonly view: DataView;
}

const SPARE_SIZE = 4096;
const spares: Spare[] = [];

/**
 * Lends zeroed bytes for one ioctl's argument. What V8 makes anew for so many bytes lies outside its heap, and is a
 * reason to collect when guest memory was made just before. Several are out at once when a getter in a caller's
 * value issues an ioctl of its own.
 */
export function lend<R>(size: number, use: (data: Uint8Array<ArrayBuffer>, view: DataView) => R): R {
  let spare = size <= SPARE_SIZE ? spares.pop() : undefined;
  if (spare === undefined) {
    const bytes = new Uint8Array(Math.max(size, SPARE_SIZE));
    spare = { bytes, view: viewOf(bytes) };
  }
  try {
    return use(spare.bytes.subarray(0, size).fill(0), spare.view);
  } finally {
    if (spare.bytes.length === SPARE_SIZE) spares.push(spare);
  }
}

function encode<T extends StructRow | PointersRow>(
  row: T,
  view: DataView,
  value: Input<Value<T['struct']>>,
): void {
  if ('fields' in row.struct && (typeof value !== 'object' || value === null)) {
    throw wrongType(row.name, value, `an object with fields of struct ${(row.struct as Struct).name}`);
  }
  row.struct.set(view, 0, value);
}

function countIn(row: ArrayRow, data: Uint8Array): number {
  const field = row.struct.fields[row.count]!;
  return Number(field.type.get(viewOf(data), field.offset));
}

function listOf(
  row: ArrayRow,
  elements: readonly unknown[],
  count: number,
  head: object = {},
): Uint8Array<ArrayBuffer> {
  const data = new Uint8Array(row.struct.size + count * row.element.size);
  const view = viewOf(data);
  row.struct.set(view, 0, { ...head, [row.count]: count });
  elements.forEach((element, i) => {
    row.element.set(view, row.struct.size + i * row.element.size, element);
  });
  return data;
}

function elementsIn<T extends ArrayRow>(row: T, data: Uint8Array, count: number): Value<T['element']>[] {
  const view = viewOf(data);
  return Array.from({ length: count }, (_, i) =>
    row.element.get(view, row.struct.size + i * row.element.size),
  );
}

/** An argument as a person reads it. */
function decoded(row: Ioctl, argument: Integer | Uint8Array | undefined): unknown {
  if (!(argument instanceof Uint8Array)) return argument;
  if (row.kind === 'array')
    return elementsIn(row, argument, Math.min(countIn(row, argument), roomIn(row, argument)));
  if (row.kind === 'struct' || row.kind === 'pointers') return row.struct.get(viewOf(argument), 0);
  return argument.slice();
}
const roomIn = (row: ArrayRow, data: Uint8Array): number =>
  Math.floor((data.length - row.struct.size) / row.element.size);

/** The error of a failed ioctl, with what can be told about its argument. */
export const failed = (
  result: number,
  row: Ioctl,
  argument?: Integer | Uint8Array,
  backend?: BackendName,
): KvmError | VmexitError =>
  result === VCPU_RUNNING
    ? new VmexitError('ERR_KVM_VCPU_RUNNING', `${row.name}: ${RUNNING}`)
    : new KvmError(result, 'ioctl', row.name, remedy(row.name, result, argument, backend));

const RUNNING =
  'this vCPU is in a run, by another thread or by start(); pause() it before, and resume() it afterwards';
