/**
 * C struct layouts as data. Offsets follow the x86-64 psABI (every field at a multiple of its alignment, the
 * struct padded to that of its widest field); a test holds each of them against the compiler.
 */

/** How one value lies in memory, and how it is read and written. All KVM structs are little-endian here. */
export interface Type<T = unknown> {
  /** Bytes that a value takes. */
  readonly size: number;
  /** The multiple of bytes at which C places it in a struct. */
  readonly align: number;
  /** In a struct: the earlier field that this one shares its bytes with (C's anonymous union). */
  readonly over?: string;
  /** Reads the value that begins at byte `at` of the view. */
  get(view: DataView, at: number): T;
  /**
   * Writes the value from byte `at` of the view on.
   * @throws TypeError, RangeError ERR_KVM_INVALID_ARG for what it cannot hold
   */
  set(view: DataView, at: number, value: T): void;
}

/** The JS value that a type reads and writes. */
export type Value<X> = X extends Type<infer T> ? T : never;

/** What may be given for a value: 64-bit integers as number or bigint, any fields of a struct. */
export type Input<T> = T extends bigint | number
  ? number | bigint
  : T extends Uint8Array
    ? Uint8Array
    : T extends readonly (infer E)[]
      ? readonly Input<E>[]
      : T extends object
        ? { readonly [K in keyof T]?: Input<T[K]> | undefined }
        : T;

const LE = true;

function integer(
  size: 1 | 2 | 4,
  signed: boolean,
  get: Type<number>['get'],
  put: Type<number>['set'],
): Type<number> {
  const low = signed ? -(2 ** (size * 8 - 1)) : 0;
  const high = low + 2 ** (size * 8) - 1;
  return {
    size,
    align: size,
    get,
    set(view, at, value) {
      put(view, at, inRange(value, low, high));
    },
  };
}

const CODE = 'ERR_KVM_INVALID_ARG';
/** An error about a value that a field cannot hold, with the code that all errors of arguments have here. */
const invalid = (
  ErrorType: RangeErrorConstructor | TypeErrorConstructor,
  value: unknown,
  why: string,
  cause?: unknown,
): Error => {
  const shown = typeof value === 'object' && value !== null ? 'an object' : String(value);
  return Object.assign(new ErrorType(`${shown}${why}`, cause ? { cause } : undefined), { code: CODE });
};

/** The number, if it is an integer in the range. */
function inRange(value: number | bigint, low: number, high: number): number {
  const number = typeof value === 'bigint' ? Number(value) : value;
  if (Number.isInteger(number) && number >= low && number <= high) return number;
  throw invalid(RangeError, value, ` is not an integer from ${low} to ${high}`);
}

/** An unsigned 8-bit integer (C's __u8), as a number. */
export const u8 = integer(
  1,
  false,
  (view, at) => view.getUint8(at),
  (view, at, value) => view.setUint8(at, value),
);
/** An unsigned 16-bit integer (C's __u16), as a number. */
export const u16 = integer(
  2,
  false,
  (view, at) => view.getUint16(at, LE),
  (view, at, value) => view.setUint16(at, value, LE),
);
/** A signed 16-bit integer (C's __s16), as a number. */
export const i16 = integer(
  2,
  true,
  (view, at) => view.getInt16(at, LE),
  (view, at, value) => view.setInt16(at, value, LE),
);
/** An unsigned 32-bit integer (C's __u32), as a number. */
export const u32 = integer(
  4,
  false,
  (view, at) => view.getUint32(at, LE),
  (view, at, value) => view.setUint32(at, value, LE),
);
/** A signed 32-bit integer (C's __s32), as a number. */
export const i32 = integer(
  4,
  true,
  (view, at) => view.getInt32(at, LE),
  (view, at, value) => view.setInt32(at, value, LE),
);

/** The bigint, if 64 bits hold it. Negative ones stand for their two's complement: -1n is every bit set. */
function in64(value: number | bigint): bigint {
  if (typeof value !== 'bigint' && !Number.isInteger(value)) {
    throw invalid(typeof value === 'number' ? RangeError : TypeError, value, ' is not an integer');
  }
  const big = BigInt(value);
  if (big >= -(1n << 63n) && big < 1n << 64n) return big;
  throw invalid(RangeError, big, ' does not fit in 64 bits');
}

/**
 * A 64-bit value that may use every bit: a register, an MSR, a hypercall argument, a virtual address. Written
 * from a bigint or an integral number.
 */
export const u64: Type<bigint> = {
  size: 8,
  align: 8,
  get: (view, at) => view.getBigUint64(at, LE),
  set: (view, at, value) => view.setBigUint64(at, in64(value), LE),
};

/** A signed 64-bit value, as a bigint. Written from a bigint or an integral number. */
export const i64: Type<bigint> = {
  size: 8,
  align: 8,
  get: (view, at) => view.getBigInt64(at, LE),
  set: (view, at, value) => view.setBigInt64(at, in64(value), LE),
};

/**
 * A 64-bit value that the kernel keeps below 2^53: a guest-physical address (52 bits on x86), a size, a flag word
 * with few bits. Exact as a JS number; reading one does not allocate. A greater value is read rounded.
 */
export const size64: Type<number> = {
  size: 8,
  align: 8,
  get: (view, at) => view.getUint32(at + 4, LE) * 0x1_0000_0000 + view.getUint32(at, LE),
  set(view, at, value) {
    const number = inRange(value, 0, Number.MAX_SAFE_INTEGER);
    view.setUint32(at, number % 0x1_0000_0000, LE);
    view.setUint32(at + 4, Math.floor(number / 0x1_0000_0000), LE);
  },
};

/** `count` values of one type; a shorter value writes only its own elements. */
export function array<T>(type: Type<T>, count: number): Type<T[]> {
  return {
    size: type.size * count,
    align: type.align,
    get: (view, at) => Array.from({ length: count }, (_, i) => type.get(view, at + i * type.size)),
    set(view, at, value) {
      if (!Array.isArray(value))
        throw invalid(TypeError, value, ` is not an array of up to ${count} elements`);
      if (value.length > count) throw invalid(RangeError, value.length, ` elements in an array of ${count}`);
      value.forEach((element, i) => {
        type.set(view, at + i * type.size, element);
      });
    },
  };
}

/** `size` bytes as a Uint8Array. Reading gives a copy. */
export function bytes(size: number): Type<Uint8Array> {
  return {
    size,
    align: 1,
    get: (view, at) => new Uint8Array(view.buffer, view.byteOffset + at, size).slice(),
    set(view, at, value) {
      if (!(value instanceof Uint8Array))
        throw invalid(TypeError, value, ` is not a Uint8Array of up to ${size} bytes`);
      if (value.length > size) throw invalid(RangeError, value.length, ` bytes in a field of ${size}`);
      new Uint8Array(view.buffer, view.byteOffset + at, size).set(value);
    },
  };
}

/** A field in the same place as an earlier one: a member of C's anonymous union. Writing both, the later wins. */
export const over = <X extends Type<never> | Type<unknown>>(field: string, type: X): X => ({
  ...type,
  over: field,
});

/** Where a field lies in its struct, and its type. */
export interface Field<T = unknown> {
  /** Bytes from the struct's start. */
  readonly offset: number;
  /** How it is read and written. */
  readonly type: Type<T>;
}

type Fields = Record<string, Type<never> | Type<unknown>>;
type Values<F extends Fields> = { -readonly [K in keyof F]: Value<F[K]> };

/** A C struct: how all of it is read and written, and where its fields are. */
export interface Struct<F extends Fields = Fields> extends Type<Values<F>> {
  /** The kernel's name, without `struct`; of a nameless one the place where it is declared: `kvm_run.io`. */
  readonly name: string;
  /** Its fields by name, for reading or writing one alone. */
  readonly fields: { readonly [K in keyof F]: Field<Value<F[K]>> };
  /** A fresh, zeroed struct with the given fields set. An unknown or out-of-range field is named in the error. */
  encode(value: Input<Values<F>>): Uint8Array<ArrayBuffer>;
  /** As encode(), into zeroed bytes at the start of the view. */
  encodeInto(view: DataView, value: Input<Values<F>>): void;
  /** Reads a struct from its first bytes: a new object, with a copy of everything. */
  decode(data: Uint8Array): Values<F>;
}

const aligned = (offset: number, align: number) => Math.ceil(offset / align) * align;

/** A struct by C's layout rules: fields in order. Field names are the kernel's in camelCase. */
export function struct<F extends Fields>(name: string, members: F): Struct<F> {
  return layout(name, members, false);
}

/** A union: every field at offset 0. Reading one gives every arm, so read it by `fields` instead. */
export function union<F extends Fields>(name: string, members: F): Struct<F> {
  return layout(name, members, true);
}

function layout<F extends Fields>(name: string, members: F, overlaid: boolean): Struct<F> {
  const fields: Record<string, Field> = {};
  let end = 0;
  let align = 1;
  for (const [key, member] of Object.entries(members)) {
    const type = member as Type<unknown>;
    const shared = type.over === undefined ? undefined : fields[type.over]!.offset;
    const offset = overlaid ? 0 : (shared ?? aligned(end, type.align));
    fields[key] = { offset, type };
    end = Math.max(end, offset + type.size);
    align = Math.max(align, type.align);
  }
  const size = aligned(end, align);
  const entries = Object.entries(fields).map(([key, { offset, type }]) => ({ key, offset, type }));
  const byName = new Map(entries.map((entry) => [entry.key, entry]));

  const get = (view: DataView, at: number) => {
    const value: Record<string, unknown> = {};
    for (const { key, offset, type } of entries) value[key] = type.get(view, at + offset);
    return value;
  };
  const set = (view: DataView, at: number, value: Record<string, unknown>) => {
    if (typeof value !== 'object' || value === null) {
      throw invalid(TypeError, value, ` is not an object with fields of ${name}`);
    }
    for (const key of Object.keys(value)) {
      const field = byName.get(key);
      if (field === undefined) {
        const known = [...byName.keys()].join(', ');
        throw invalid(TypeError, name, ` has no field ${key}; its fields are ${known}`);
      }
      const given = value[key];
      if (given === undefined) continue;
      try {
        field.type.set(view, at + field.offset, given);
      } catch (cause) {
        if ((cause as { code?: unknown } | undefined)?.code !== CODE) throw cause; // a getter's of the caller
        const ErrorType = cause instanceof TypeError ? TypeError : RangeError;
        throw invalid(ErrorType, name, `.${key}: ${(cause as Error).message}`, cause);
      }
    }
  };
  return {
    name,
    size,
    align,
    fields: fields as Struct<F>['fields'],
    get: get as Struct<F>['get'],
    set: set as Struct<F>['set'],
    encode(value) {
      const data = new Uint8Array(size);
      set(new DataView(data.buffer), 0, value as Record<string, unknown>);
      return data;
    },
    encodeInto: (view, value) => set(view, 0, value as Record<string, unknown>),
    decode: (data) => get(viewOf(data), 0) as Values<F>,
  };
}

/** A DataView over the same bytes. */
export const viewOf = (data: Uint8Array): DataView =>
  new DataView(data.buffer, data.byteOffset, data.byteLength);
