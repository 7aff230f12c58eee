/** A VM's memory in several threads: its owner tells what it does, and each other thread does the same to its copy. */
import type { Arena } from '../arena.ts';
import { DirtyBits } from './dirty.ts';
import { GuestMemfdFile } from './guest-memfd.ts';
import { Counted, Mapping, type MemoryFile } from './host-memory.ts';
import type { Entry } from './journal.ts';
import type { Slot } from './slots.ts';
import type { Told, VmMemory } from './vm-memory.ts';

/** What a mapping is of in a thread that has not made it. Its owner keeps it as long as anybody has the VM. */
class Elsewhere extends Counted implements MemoryFile {
  readonly base: number | undefined;
  readonly size: number;
  constructor(base: number | undefined, size: number) {
    super();
    this.base = base;
    this.size = size;
  }
  protected free(): void {}
  fallocate(): number {
    throw new Error('no handle leads here');
  }
}

/** A mapping as an entry has it. */
type Place = readonly [base: number | null, size: number] | null;
const placeOf = (mapping: Mapping | undefined): Place =>
  mapping === undefined ? null : [mapping.base ?? null, mapping.size];
const mappingOf = (place: Place): Mapping | undefined =>
  place === null ? undefined : new Mapping(new Elsewhere(place[0] ?? undefined, place[1]), place[1]);

interface SlotEntry extends Omit<Slot, 'mapping' | 'guestMemfd' | 'userfaultBitmap' | 'dirty'> {
  readonly mapping: Place;
  readonly guestMemfd: number | null;
  readonly userfaultBitmap: Place;
  readonly dirty: readonly [base: number, size: number] | null;
}

/** The owner's side. */
export class Teller implements Told {
  readonly #memory: VmMemory;
  readonly #tell: (entry: Entry) => void;
  readonly #files = new Map<GuestMemfdFile, number>();

  constructor(memory: VmMemory, tell: (entry: Entry) => void) {
    this.#memory = memory;
    this.#tell = tell;
  }

  slot(id: number, slot: Slot | undefined): void {
    for (const entry of this.#slot(id, slot)) this.#tell(entry);
  }
  attributes(start: number, end: number, attributes: number): void {
    this.#tell(['attributes', start, end, attributes]);
  }
  zap(start: number, end: number): void {
    this.#tell(['zap', start, end]);
  }
  protect(start: number, end: number): void {
    this.#tell(['protect', start, end]);
  }
  fails(file: GuestMemfdFile): void {
    const number = this.#files.get(file);
    if (number !== undefined) this.#tell(['fails', number, file.failing]);
  }

  *#slot(id: number, slot: Slot | undefined): Generator<Entry> {
    if (slot === undefined) {
      yield ['slot', id, null];
      return;
    }
    const { guestMemfd: file, dirty } = slot;
    if (file !== undefined && !this.#files.has(file)) {
      this.#files.set(file, this.#files.size);
      yield ['file', this.#files.get(file), file.size, file.flags, file.place];
      yield ['fails', this.#files.get(file), file.failing];
    }
    const entry: SlotEntry = {
      ...slot,
      mapping: placeOf(slot.mapping),
      guestMemfd: file === undefined ? null : this.#files.get(file)!,
      userfaultBitmap: placeOf(slot.userfaultBitmap),
      dirty: dirty === undefined ? null : [dirty.base, dirty.size],
    };
    yield ['slot', id, entry];
  }

  /** What makes the memory as it is now, in a copy that has nothing. */
  *all(): Generator<Entry> {
    this.#files.clear();
    for (const slot of this.#memory.slots.all) yield* this.#slot(slot.id, slot);
    for (const { start, end, value } of this.#memory.attributes.all)
      if (value !== 0) yield ['attributes', start, end, value];
  }
}

/** What a copy does of what it is told, by the names of the entries. */
export class Copier {
  readonly #memory: VmMemory;
  readonly #arena: Arena;
  readonly #files = new Map<number, GuestMemfdFile>();
  readonly #converts: boolean;

  constructor(memory: VmMemory) {
    this.#memory = memory;
    this.#arena = memory.options.arena;
    this.#converts = memory.options.dialect.truth === 'allocation';
  }

  clear(): void {
    this.#memory.clear();
    this.#files.clear();
  }

  readonly file = (number: number, size: number, flags: number, place: number): void => {
    const file = GuestMemfdFile.copy(this.#arena, this.#memory, size, flags, this.#converts, place);
    this.#files.set(number, file);
  };
  readonly fails = (number: number, pages: [number, number][]): void => {
    this.#files.get(number)!.failing = pages;
  };
  readonly slot = (id: number, entry: SlotEntry | null): void => {
    if (entry === null) {
      this.#memory.copySlot(id, undefined);
      return;
    }
    const { dirty, guestMemfd } = entry;
    this.#memory.copySlot(id, {
      ...entry,
      mapping: mappingOf(entry.mapping)!,
      guestMemfd: guestMemfd === null ? undefined : this.#files.get(guestMemfd),
      userfaultBitmap: mappingOf(entry.userfaultBitmap),
      dirty: dirty === null ? undefined : new DirtyBits(this.#arena, ...dirty),
    });
  };
  readonly attributes = (start: number, end: number, attributes: number): void =>
    this.#memory.setAttributes(start, end, attributes);
  readonly zap = (start: number, end: number): void => this.#memory.zap(start, end);
  readonly protect = (start: number, end: number): void => this.#memory.protect(start, end);
}
