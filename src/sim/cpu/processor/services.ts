/** What the rest of a processor asks of its memory and of its translated code, which are made above it. */
import type { Access } from './stage.ts';

/** Whose rights an access has. */
export type Rights = 'cpl' | 'system';

/**
 * Memory as instructions see it. Linear addresses are unsigned bigints, or two halves for translated code; values are
 * unsigned, and those of load and store are the micro-ops' (signed). All of them throw GuestFault and SecondStageFault.
 */
export interface LinearMemory {
  /** The guest-physical address of the last access that came to MMIO. */
  readonly physical: number;
  /** Whether the page of the last fetch is global. */
  readonly global: boolean;
  /** Where an operand that lies in one page lies in the arena, or MMIO. */
  host(linear: bigint, size: number, access: Access, rights?: Rights): number;

  /** The same with an address in halves. */
  hostAt(low: number, high: number, size: number, access: Access): number;

  /** @param waits the caller looks at IoLog.waiting: what is to be asked is there, and is not thrown */
  load32(linear: bigint, size: number, write: boolean, stack: boolean, waits?: boolean): number;
  load64(linear: bigint, write: boolean, stack: boolean, waits?: boolean): bigint;
  store32(linear: bigint, value: number, size: number, stack: boolean): void;
  store64(linear: bigint, value: bigint, stack: boolean): void;
  /** The same with an address in halves. `quiet`: a fault of the second stage, or what waits, sets State.trap, and nothing is thrown. */
  load32At(low: number, high: number, size: number, write: boolean, stack: boolean, quiet: boolean): number;
  load64At(low: number, high: number, write: boolean, stack: boolean, quiet: boolean): bigint;
  store32At(low: number, high: number, value: number, size: number, stack: boolean, quiet: boolean): void;
  store64At(low: number, high: number, value: bigint, stack: boolean, quiet: boolean): void;
  /** Raises #GP(0) where 16 bytes are not aligned (SDM volume 3, 6.15). */
  checkAligned(low: number, high: number, stack: boolean): void;

  read8(linear: bigint, rights?: Rights): number;
  read16(linear: bigint, rights?: Rights): number;
  read32(linear: bigint, rights?: Rights): number;
  read64(linear: bigint, rights?: Rights): bigint;
  write8(linear: bigint, value: number, rights?: Rights): void;
  write16(linear: bigint, value: number, rights?: Rights): void;
  write32(linear: bigint, value: number, rights?: Rights): void;
  write64(linear: bigint, value: bigint, rights?: Rights): void;
  /** Implicit accesses of the system's: descriptor tables, TSS, IDT, stacks of inner rings. */
  readSystem8(linear: bigint): number;
  readSystem16(linear: bigint): number;
  readSystem32(linear: bigint): number;
  readSystem64(linear: bigint): bigint;
  writeSystem8(linear: bigint, value: number): void;
  writeSystem16(linear: bigint, value: number): void;
  writeSystem32(linear: bigint, value: number): void;
  writeSystem64(linear: bigint, value: bigint): void;
  readBytes(linear: bigint, size: number, rights?: Rights): Uint8Array;
  writeBytes(linear: bigint, bytes: Uint8Array, rights?: Rights): void;
  /** Faults as a write would, and changes nothing. */
  checkWrite(linear: bigint, size: number, rights?: Rights): void;

  /** Forgets every translation. */
  flush(): void;
  /** Forgets all but those of global pages. */
  flushLocal(): void;
  /** Forgets those of one page. */
  flushPage(low: number): void;
  /** Forgets those to guest-physical [start, end). Gives whether there was code's among them. */
  flushPhysical(start: number, end: number): boolean;
  /** Forgets those for writing, of all or to a page of the arena: it has got code in it, or is read-only now. */
  flushWrites(host?: number): void;
}

/** A page of the arena that has code in it. */
export interface PageWithCode {
  /** Where it begins in the arena. */
  readonly host: number;
  /** The mask of its code in the arena, where translated code reads it; undefined when the arena is full. */
  readonly map: number | undefined;
  /** How many bytes from an offset on are no code's: to the end of the page, or fewer. */
  clear(offset: number): number;
}

/** What was translated. Places are the arena's. */
export interface TranslatedCode {
  /** Linear addresses may mean other pages now. */
  flush(): void;
  /** So may all but those of global pages, or those of one page. */
  flushLocal(): void;
  flushPage(low: number): void;
  /** Translated code goes on in the mode that the processor is in. */
  settle(): void;
  /** Everything starts anew. */
  forget(): void;
  /** The page's record, if there is code in it. */
  pageOf(host: number): PageWithCode | undefined;
  /** How many bytes from a place on, of one page, are no code's. */
  clear(host: number): number;
  /** The code at a place is not what memory has any more. */
  invalidate(host: number): void;
}
