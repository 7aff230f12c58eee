/** Page tables of 4-level paging in guest memory (SDM volume 3, 4.5). */
import { integer, object, PAGE_SIZE as PAGE, pages } from '../hypervisor/args.ts';
import { outOfRange } from '../hypervisor/errors.ts';
import { type GuestMemory, guestMemory } from '../hypervisor/guest-memory.ts';
import { viewOf } from '../uapi/layout.ts';

const Entry = { PRESENT: 1n, WRITABLE: 2n, USER: 4n, LARGE: 1n << 7n, NX: 1n << 63n } as const;
/** What a table allows, its entries may still forbid. */
const TABLE = Entry.PRESENT | Entry.WRITABLE | Entry.USER;
const ADDRESS = 0x000f_ffff_ffff_f000n;
const ENTRIES = 512;
const GIB = 2 ** 30;

/** Pages by their size in bytes: how many levels of tables there are above them. */
const depths: { readonly [size: number]: number } = { [PAGE]: 4, [2 ** 21]: 3, [GIB]: 2 };
/** How far an entry of the table so many levels down reaches, in bits of the address. */
const shiftAt = (depth: number): number => 12 + 9 * (4 - depth);

/** Where the tables go. */
export interface PageTablesOptions {
  /** The guest-physical address of the first table, which is the root: a multiple of 4096. */
  readonly at: number;
  /** How much room there is, in bytes: a multiple of 4096; one table is 4096 bytes. Up to the memory's end without it. */
  readonly size?: number;
  /** The guest-physical address at which the memory begins: 0 without it. */
  readonly base?: number;
}

/** What is mapped, and how. */
export interface Mapping {
  /** The linear address: canonical, and a multiple of the page size. */
  readonly linear: number | bigint;
  /** The guest-physical address, a multiple of the page size: the linear one without it. */
  readonly physical?: number;
  /** Bytes, a multiple of the page size: one page without it. */
  readonly size?: number;
  /** 4096, which it is without this, 2 MiB, or 1 GiB where the processor has such pages. */
  readonly pageSize?: number;
  /** Whether privilege 3 may use the pages: no without it. */
  readonly user?: boolean;
  /** Whether they may be written (at privilege 0 CR0.WP decides): yes without it. */
  readonly writable?: boolean;
  /** Whether no code may be fetched from them, which EFER.NXE must allow: no without it. */
  readonly noExecute?: boolean;
}

/**
 * Page tables for long mode that are built in guest memory, a mapping at a time. What is not mapped is not present.
 * @example
 * ```ts
 * import { Machine, openHypervisor, PageTables } from 'vmexit';
 *
 * const hv = openHypervisor();
 * const machine = new Machine(hv, { memory: 0x10_0000 });
 * const tables = new PageTables(machine.memory, { at: 0x8_0000, size: 0x1_0000 });
 * tables.map({ linear: 0, size: 0x8_0000 }); // one to one, for privilege 0
 * tables.map({ linear: 0x4000_0000, physical: 0x6000, user: true, writable: false, noExecute: true });
 * machine.vcpu.changeSregs({ cr3: tables.root });
 * console.log(`${tables.count} tables`);
 * machine.close();
 * hv.close();
 * // prints: 6 tables
 * ```
 */
export class PageTables {
  readonly #memory: GuestMemory;
  readonly #at: number;
  readonly #base: number;
  readonly #limit: number;
  #next: number;

  /** @throws RangeError ERR_KVM_INVALID_ARG when there is no room for one table. Nothing is written then */
  constructor(memory: GuestMemory, options: PageTablesOptions) {
    const { base: from = 0 } = object('options', options);
    this.#memory = guestMemory('memory', memory);
    const base = pages('base', from);
    const at = pages('at', options.at, base + memory.size - PAGE, base);
    const room = base + memory.size - at;
    this.#base = base;
    this.#at = at;
    this.#limit = at + pages('size', options.size ?? room, room, PAGE);
    this.#next = at;
    this.#table();
  }

  /** The guest-physical address of the root: for CR3. */
  get root(): bigint {
    return BigInt(this.#at);
  }

  /** How many tables there are. */
  get count(): number {
    return (this.#next - this.#at) / PAGE;
  }

  /**
   * Maps pages, or maps them otherwise than before. Tables that are not there yet are made.
   * @throws RangeError ERR_KVM_INVALID_ARG for addresses and sizes that cannot be; when there is no room for another table, or
   *   a page of another size is in the way, with what comes before it mapped
   */
  map(mapping: Mapping): void {
    const { pageSize = PAGE, user = false, writable = true, noExecute = false } = object('mapping', mapping);
    const depth = depths[pageSize];
    if (depth === undefined)
      throw outOfRange('pageSize', pageSize, `one of ${Object.keys(depths).join(', ')}`);
    const linear = linearAddress(mapping.linear);
    if (linear % BigInt(pageSize) !== 0n)
      throw outOfRange('linear', mapping.linear, `a multiple of ${pageSize}`);
    // To the end of the half of the address space that it is in.
    const size = integer(
      'size',
      mapping.size ?? pageSize,
      2 ** 47 - Number(BigInt.asUintN(47, linear)),
      pageSize,
    );
    const physical = integer('physical', mapping.physical ?? Number(linear), 2 ** 52 - size);
    for (const [name, bytes] of [['physical', physical] as const, ['size', size] as const])
      if (bytes % pageSize !== 0) throw outOfRange(name, bytes, `a multiple of ${pageSize}`);
    const bits =
      Entry.PRESENT |
      (writable ? Entry.WRITABLE : 0n) |
      (user ? Entry.USER : 0n) |
      (noExecute ? Entry.NX : 0n) |
      (pageSize > PAGE ? Entry.LARGE : 0n);
    this.#fill(linear, physical, size / pageSize, depth, bits);
  }

  /**
   * Where the entry of a linear address is, guest-physical: of its page, or of the first table on the way that is not there.
   * For what map() does not do: accessed and dirty bits, reserved bits, an entry that is not present.
   */
  entryOf(linear: number | bigint): number {
    const address = linearAddress(linear);
    let table = this.#at;
    for (let depth = 1; ; depth++) {
      const at = table + 8 * indexOf(address, depth);
      const entry = this.#read(at);
      if (depth === 4 || (entry & Entry.PRESENT) === 0n || (depth > 1 && (entry & Entry.LARGE) !== 0n))
        return at;
      table = Number(entry & ADDRESS);
    }
  }

  /** A table at a time. */
  #fill(linear: bigint, physical: number, count: number, depth: number, bits: bigint): void {
    const pageSize = 1n << BigInt(shiftAt(depth));
    for (let done = 0; done < count; ) {
      const address = linear + BigInt(done) * pageSize;
      const table = this.#down(address, depth);
      const first = indexOf(address, depth);
      const some = Math.min(count - done, ENTRIES - first);
      const bytes = new Uint8Array(8 * some);
      const view = viewOf(bytes);
      for (let i = 0; i < some; i++)
        view.setBigUint64(8 * i, (BigInt(physical) + BigInt(done + i) * pageSize) | bits, true);
      this.#memory.write(table - this.#base + 8 * first, bytes);
      done += some;
    }
  }

  /** The table so many levels down that has this address. */
  #down(linear: bigint, depth: number): number {
    let table = this.#at;
    for (let level = 1; level < depth; level++) {
      const at = table + 8 * indexOf(linear, level);
      const entry = this.#read(at);
      if ((entry & Entry.PRESENT) === 0n) {
        table = this.#table();
        this.#write(at, BigInt(table) | TABLE);
      } else if (level > 1 && (entry & Entry.LARGE) !== 0n) {
        throw outOfRange('linear', linear, `where no page of ${2 ** shiftAt(level)} bytes is mapped already`);
      } else table = Number(entry & ADDRESS);
    }
    return table;
  }

  /** An empty one. */
  #table(): number {
    const at = this.#next;
    if (at + PAGE > this.#limit)
      throw outOfRange('size', this.#limit - this.#at, `more: ${this.count} tables fill it`);
    this.#memory.write(at - this.#base, new Uint8Array(PAGE));
    this.#next += PAGE;
    return at;
  }

  #read(at: number): bigint {
    return viewOf(this.#memory.read(at - this.#base, 8)).getBigUint64(0, true);
  }
  #write(at: number, entry: bigint): void {
    const bytes = new Uint8Array(8);
    viewOf(bytes).setBigUint64(0, entry, true);
    this.#memory.write(at - this.#base, bytes);
  }
}

/** Negative bigints are their two's complement. */
function linearAddress(linear: number | bigint): bigint {
  const address = BigInt.asUintN(64, typeof linear === 'bigint' ? linear : BigInt(integer('linear', linear)));
  if (BigInt.asUintN(64, BigInt.asIntN(48, address)) === address) return address;
  throw outOfRange('linear', linear, 'canonical: bits 63 to 47 alike');
}

const indexOf = (linear: bigint, depth: number): number =>
  Number((linear >> BigInt(shiftAt(depth))) & BigInt(ENTRIES - 1));
