/** Values over ranges of guest-physical addresses: sorted, disjoint, neighbours with equal values merged. */
export interface Range {
  /** Bytes; the first address in the range. */
  readonly start: number;
  /** Bytes; the first address after it. */
  readonly end: number;
}

/** A range of addresses and the value that all of them have. */
export interface ValueRange<T> extends Range {
  /** What every address of the range has. */
  readonly value: T;
}

/**
 * Kept as two parallel arrays: `#starts[i]` begins a range that lasts to the next start and has `#values[i]`. The
 * first start is 0, so a lookup is one binary search.
 */
export class RangeMap<T> {
  readonly #starts: number[] = [0];
  readonly #values: T[];

  /** @param initial what every address has at first */
  constructor(initial: T) {
    this.#values = [initial];
  }

  /** The index of the range that holds the address. */
  #find(address: number): number {
    let low = 0;
    let high = this.#starts.length;
    while (high - low > 1) {
      const middle = (low + high) >>> 1;
      if (this.#starts[middle]! <= address) low = middle;
      else high = middle;
    }
    return low;
  }

  /** The value at an address. */
  at(address: number): T {
    return this.#values[this.#find(address)]!;
  }

  /** Whether the whole of [start, end) has the value. */
  is(start: number, end: number, value: T): boolean {
    const first = this.#find(start);
    return this.#values[first] === value && (this.#starts[first + 1] ?? Number.POSITIVE_INFINITY) >= end;
  }

  /** Gives [start, end) the value. An empty range changes nothing. */
  set(start: number, end: number, value: T): void {
    if (end <= start) return;
    const first = this.#find(start);
    const last = this.#find(end - 1);
    if (first === last && this.#setWithin(first, start, end, value)) return;
    const before = this.#starts[first]! < start ? this.#values[first] : this.#values[first - 1];
    const after = this.#values[last]!;
    const lastEnd = this.#starts[last + 1];

    const starts: number[] = [];
    const values: T[] = [];
    if (this.#starts[first]! < start) {
      starts.push(this.#starts[first]!);
      values.push(this.#values[first]!);
    }
    if (start === 0 || before !== value) {
      starts.push(start);
      values.push(value);
    }
    if (lastEnd === undefined || end < lastEnd) {
      if (after !== value) {
        starts.push(end);
        values.push(after);
      }
      this.#starts.splice(first, last - first + 1, ...starts);
      this.#values.splice(first, last - first + 1, ...values);
    } else {
      // The range ends where the next begins: they merge when their values are equal.
      const drop = this.#values[last + 1] === value ? 1 : 0;
      this.#starts.splice(first, last - first + 1 + drop, ...starts);
      this.#values.splice(first, last - first + 1 + drop, ...values);
    }
  }

  /** The two changes that conversions back and forth are made of, without making arrays. Gives whether it was one. */
  #setWithin(at: number, start: number, end: number, value: T): boolean {
    const old = this.#values[at]!;
    if (old === value) return true;
    const from = this.#starts[at]!;
    const to = this.#starts[at + 1];
    if (from < start && (to === undefined || end < to)) {
      this.#starts.splice(at + 1, 0, start, end);
      this.#values.splice(at + 1, 0, value, old);
      return true;
    }
    if (
      from === start &&
      to === end &&
      at > 0 &&
      this.#values[at - 1] === value &&
      this.#values[at + 1] === value
    ) {
      this.#starts.splice(at, 2);
      this.#values.splice(at, 2);
      return true;
    }
    return false;
  }

  /** The parts of [start, end), in order. */
  *within(start: number, end: number): Generator<ValueRange<T>> {
    for (let i = this.#find(start); i < this.#starts.length && this.#starts[i]! < end; i++) {
      const from = Math.max(this.#starts[i]!, start);
      const to = Math.min(this.#starts[i + 1] ?? Number.POSITIVE_INFINITY, end);
      if (from < to) yield { start: from, end: to, value: this.#values[i]! };
    }
  }
}
