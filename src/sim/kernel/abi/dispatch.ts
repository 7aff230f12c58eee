/**
 * From a request and its bytes to the row that serves it. What the kernel reads through a pointer is checked here as
 * the addon checks it, so that both backends refuse the same arguments with the same kind of error.
 */
import { wrongType } from '../../../hypervisor/errors.ts';
import { Errno } from '../../../uapi/errno.ts';
import {
  type ArrayRow,
  type Ioctl,
  type IoctlName,
  ioctls,
  type PointersRow,
  type SizedRow,
  type StructRow,
} from '../../../uapi/ioctls.ts';
import { type Input, type Struct, type Type, type Value, viewOf } from '../../../uapi/layout.ts';

export type Argument = number | bigint | Uint8Array | undefined;

/** What a handle stands for, from an offset on. */
export class PlaceOf {
  readonly object: object;
  readonly offset: number;

  constructor(object: object, offset: number) {
    this.object = object;
    this.offset = offset;
  }
}

/** A reference of a struct, with what its handle stands for. */
export type Given = null | Uint8Array | PlaceOf | object;

/** What a pointer to a struct points to. */
export class StructArgument<T extends Type = Type> {
  readonly bytes: Uint8Array;
  readonly view: DataView;
  readonly #type: T;

  constructor(type: T, bytes: Uint8Array) {
    this.#type = type;
    this.bytes = bytes;
    this.view = viewOf(bytes);
  }
  get value(): Value<T> {
    return this.#type.get(this.view, 0) as Value<T>;
  }
  /** What the kernel copies back. */
  answer(value: Input<Value<T>>): number {
    this.#type.set(this.view, 0, value);
    return 0;
  }
  /** A field of eight bytes, every bit exact. */
  raw(field: T extends Struct<infer F> ? keyof F & string : never): bigint {
    return this.view.getBigUint64((this.#type as unknown as Struct).fields[field]!.offset, true);
  }
}

/** What a struct says of its own length. */
function countIn(struct: Struct, name: string, view: DataView): number {
  const { offset, type } = struct.fields[name]!;
  return Number(type.get(view, offset));
}

/** A head that counts, and elements. */
export class ListArgument<E extends Type = Type> {
  readonly count: number;
  readonly #row: ArrayRow;
  readonly #view: DataView;

  constructor(row: ArrayRow, bytes: Uint8Array) {
    this.#row = row;
    this.#view = viewOf(bytes);
    this.count = countIn(row.struct, row.count, this.#view);
  }
  at(index: number): Value<E> {
    return this.#row.element.get(
      this.#view,
      this.#row.struct.size + index * this.#row.element.size,
    ) as Value<E>;
  }
  set(index: number, value: Input<Value<E>>): void {
    this.#row.element.set(this.#view, this.#row.struct.size + index * this.#row.element.size, value);
  }
  get all(): Value<E>[] {
    return Array.from({ length: this.count }, (_, i) => this.at(i));
  }
  /** Gives the whole list, or E2BIG with the count that it needs. */
  answer(values: readonly Input<Value<E>>[]): number {
    this.#row.struct.encodeInto(this.#view, { [this.#row.count]: values.length });
    if (this.count < values.length) return -Errno.E2BIG;
    for (const [i, value] of values.entries()) this.set(i, value);
    return 0;
  }
}

/** What the handler of a row is given. */
export type ArgumentOf<R> = R extends StructRow<infer T> | PointersRow<infer T>
  ? StructArgument<T>
  : // biome-ignore lint/suspicious/noExplicitAny: the head has any fields.
    R extends ArrayRow<any, infer E>
    ? ListArgument<E>
    : R extends SizedRow
      ? Uint8Array
      : R extends { kind: 'integer' }
        ? number
        : undefined;

export type Handlers<On, Result = number> = {
  readonly [N in IoctlName]?: (
    on: On,
    argument: ArgumentOf<(typeof ioctls)[N]>,
    given: readonly Given[],
  ) => Result;
};

type Handler<On, Result> = (on: On, argument: never, given: readonly Given[]) => Result;

/** Handlers of one kind of fd, by request. */
export class Table<On, Result = number> {
  readonly #rows: ReadonlyMap<number, readonly [Ioctl, Handler<On, Result>]>;

  constructor(handlers: Handlers<On, Result>) {
    this.#rows = new Map(
      Object.entries(handlers).map(([name, handler]) => {
        const row: Ioctl = ioctls[name as IoctlName];
        return [row.request, [row, handler as Handler<On, Result>]];
      }),
    );
  }

  /** -ENOTTY for what is not there, as a kernel gives that does not know it. */
  call(on: On, request: number, argument: Argument, given: readonly Given[] = []): Result | number {
    const found = this.#rows.get(request);
    if (found === undefined) return -Errno.ENOTTY;
    const [row, handler] = found;
    const most = row.kind === 'pointers' ? row.references.length : 0;
    if (given.length > most)
      throw wrongType(`${row.name}: the number of references`, given.length, `at most ${most}`);
    return handler(on, argumentFor(row, argument) as never, given);
  }
}

function argumentFor(row: Ioctl, argument: Argument): unknown {
  if (row.kind === 'none') return undefined;
  if (row.kind === 'integer') return integerOf(row.name, argument);
  if (!(argument instanceof Uint8Array)) throw wrongType(row.name, argument, 'a Uint8Array');
  if (row.kind === 'struct' || row.kind === 'pointers') {
    const { size } = row.struct;
    if (argument.length === size) return new StructArgument(row.struct, argument);
    throw wrongType(`${row.name}: the argument's length`, argument.length, `${size}`);
  }
  if (row.kind === 'sized') {
    const { least, most } = row;
    if (argument.length < least || argument.length > most)
      throw wrongType(`${row.name}: the argument's length`, argument.length, `${least} to ${most}`);
    const size = row.count === undefined ? 0 : countIn(row.struct, row.count, viewOf(argument));
    if (size <= argument.length) return argument;
    throw wrongType(`${row.name}: ${row.count}`, size, `at most the argument's ${argument.length}`);
  }
  const list = argument.length >= row.struct.size ? new ListArgument(row, argument) : undefined;
  if (list !== undefined && argument.length === row.struct.size + list.count * row.element.size) return list;
  throw wrongType(`${row.name}: the argument's length`, argument.length, 'that of its head and its elements');
}

/** The kernel's `unsigned long arg`. */
function integerOf(name: string, argument: Argument): number {
  if (typeof argument === 'bigint') return Number(BigInt.asUintN(64, argument));
  if (typeof argument !== 'number') throw wrongType(name, argument, 'a whole number');
  return argument;
}
