/**
 * What of a processor is fields, as cells of eight bytes that threads share. They are written when a thread is done with the
 * processor, and only if something has changed; the rest of its state is in the arena anyway.
 */

import type { Segment, Table } from './descriptors.ts';
import type { Processor } from './processor.ts';

const SHADOWS = [undefined, 'sti', 'mov-ss'] as const;
const SEGMENT = [
  'selector',
  'limit',
  'type',
  's',
  'dpl',
  'present',
  'avl',
  'l',
  'db',
  'g',
  'unusable',
] as const satisfies (keyof Segment)[];
const CPUID = ['function', 'index', 'flags', 'eax', 'ebx', 'ecx', 'edx'] as const;

/** Cells, one after the other. */
class Cells {
  readonly #numbers: Float64Array;
  readonly #bits: BigUint64Array;
  #at = 0;

  constructor(memory: ArrayBufferLike, offset: number) {
    this.#numbers = new Float64Array(memory, offset);
    this.#bits = new BigUint64Array(memory, offset);
  }
  put(value: number | boolean): void {
    this.#numbers[this.#at++] = Number(value);
  }
  putBits(value: bigint): void {
    this.#bits[this.#at++] = value;
  }
  get(): number {
    return this.#numbers[this.#at++]!;
  }
  getBits(): bigint {
    return this.#bits[this.#at++]!;
  }
}

/** What can be compared with what it was: values, and objects that are never changed in place. Into an array that is there. */
function collect(cpu: Processor, into: unknown[]): void {
  const { debug } = cpu;
  let i = 0;
  for (const one of cpu.segments) into[i++] = one;
  for (const value of cpu.dr) into[i++] = value;
  into[i++] = cpu.ldtr;
  into[i++] = cpu.tr;
  into[i++] = cpu.gdtr;
  into[i++] = cpu.idtr;
  into[i++] = cpu.cr0;
  into[i++] = cpu.cr2;
  into[i++] = cpu.cr3;
  into[i++] = cpu.cr4;
  into[i++] = cpu.cr8;
  into[i++] = cpu.efer;
  into[i++] = cpu.xcr0;
  into[i++] = cpu.pkru;
  into[i++] = cpu.msrs.changes;
  into[i++] = cpu.cpuid;
  into[i++] = cpu.exception;
  into[i++] = cpu.interrupt;
  into[i++] = cpu.nmiPending;
  into[i++] = cpu.nmiMasked;
  into[i++] = cpu.shadow;
  into[i++] = cpu.halted;
  into[i++] = debug.hits;
  into[i++] = debug.stepLost;
  into[i++] = debug.held;
  into[i++] = cpu.debugging;
}

export class SharedFields {
  readonly #cpu: Processor;
  readonly #memory: ArrayBufferLike;
  readonly #offset: number;
  #last: unknown[] = [];
  #now: unknown[] = [];

  /** @param offset where its cells begin */
  constructor(cpu: Processor, memory: ArrayBufferLike, offset: number) {
    this.#cpu = cpu;
    this.#memory = memory;
    this.#offset = offset;
  }

  /** Writes them, if one is not what it was. */
  store(): void {
    const [last, now] = [this.#last, this.#now];
    collect(this.#cpu, now);
    let i = 0;
    while (i < now.length && now[i] === last[i]) i++;
    if (i === now.length) return;
    [this.#last, this.#now] = [now, last];
    this.#write(new Cells(this.#memory, this.#offset));
  }
  load(): void {
    this.#read(new Cells(this.#memory, this.#offset));
    collect(this.#cpu, this.#last);
  }

  #write(cells: Cells): void {
    const cpu = this.#cpu;
    const segment = (one: Segment) => {
      for (const name of SEGMENT) cells.put(one[name]);
      cells.putBits(one.base);
    };
    const table = ({ base, limit }: Table) => {
      cells.putBits(base);
      cells.put(limit);
    };
    for (const one of [...cpu.segments, cpu.ldtr, cpu.tr]) segment(one);
    table(cpu.gdtr);
    table(cpu.idtr);
    for (const value of [cpu.cr0, cpu.cr4, cpu.cr8, cpu.efer, cpu.pkru]) cells.put(value);
    for (const value of [cpu.cr2, cpu.cr3, cpu.xcr0, ...cpu.dr]) cells.putBits(value);
    const { exception, interrupt, debug, debugging } = cpu;
    cells.put(exception?.vector ?? -1);
    cells.put(exception?.errorCode ?? -1);
    cells.put(exception?.payload !== undefined);
    cells.putBits(exception?.payload ?? 0n);
    cells.put(interrupt?.vector ?? -1);
    cells.put(interrupt?.soft ?? false);
    for (const value of [cpu.nmiPending, cpu.nmiMasked, cpu.halted, SHADOWS.indexOf(cpu.shadow)])
      cells.put(value);
    cells.putBits(debug.hits);
    cells.put(debug.stepLost);
    cells.putBits(debug.held);
    cells.put(debugging.singleStep);
    cells.put(debugging.softwareBreakpoints);
    cells.put(debugging.hardware !== undefined);
    for (let i = 0; i < 4; i++) cells.putBits(debugging.hardware?.addresses[i] ?? 0n);
    cells.putBits(debugging.hardware?.dr7 ?? 0n);
    cells.put(cpu.cpuid.length);
    for (const entry of cpu.cpuid) for (const name of CPUID) cells.put(entry[name]);
    cells.put(cpu.msrs.size);
    for (const [index, value] of cpu.msrs) {
      cells.put(index);
      cells.putBits(value);
    }
  }

  #read(cells: Cells): void {
    const cpu = this.#cpu;
    const segment = (): Segment => {
      const one = Object.fromEntries(SEGMENT.map((name) => [name, cells.get()]));
      return { ...one, base: cells.getBits() } as Segment;
    };
    const table = (): Table => ({ base: cells.getBits(), limit: cells.get() });
    for (let i = 0; i < cpu.segments.length; i++) cpu.segments[i] = segment();
    cpu.ldtr = segment();
    cpu.tr = segment();
    cpu.gdtr = table();
    cpu.idtr = table();
    [cpu.cr0, cpu.cr4, cpu.cr8, cpu.efer] = [cells.get(), cells.get(), cells.get(), cells.get()];
    cpu.pkru = cells.get();
    [cpu.cr2, cpu.cr3, cpu.xcr0] = [cells.getBits(), cells.getBits(), cells.getBits()];
    for (let i = 0; i < cpu.dr.length; i++) cpu.dr[i] = cells.getBits();
    const [vector, errorCode, hasPayload, payload] = [cells.get(), cells.get(), cells.get(), cells.getBits()];
    cpu.exception =
      vector < 0
        ? undefined
        : {
            vector,
            errorCode: errorCode < 0 ? undefined : errorCode,
            payload: hasPayload ? payload : undefined,
          };
    const [interrupt, soft] = [cells.get(), cells.get()];
    cpu.interrupt = interrupt < 0 ? undefined : { vector: interrupt, soft: soft !== 0 };
    cpu.nmiPending = cells.get();
    cpu.nmiMasked = cells.get() !== 0;
    cpu.halted = cells.get() !== 0;
    cpu.shadow = SHADOWS[cells.get()];
    Object.assign(cpu.debug, {
      hits: cells.getBits(),
      stepLost: cells.get() !== 0,
      held: cells.getBits(),
    });
    const [singleStep, softwareBreakpoints, hardware] = [cells.get(), cells.get(), cells.get()];
    const addresses = Array.from({ length: 4 }, () => cells.getBits());
    const dr7 = cells.getBits();
    cpu.debugging = {
      singleStep: singleStep !== 0,
      softwareBreakpoints: softwareBreakpoints !== 0,
      hardware: hardware ? { addresses, dr7 } : undefined,
    };
    cpu.cpuid = Array.from({ length: cells.get() }, () => {
      const entry = Object.fromEntries(CPUID.map((name) => [name, cells.get()]));
      return entry as unknown as (typeof cpu.cpuid)[number];
    });
    const count = cells.get();
    cpu.msrs.clear();
    for (let i = 0; i < count; i++) cpu.msrs.set(cells.get(), cells.getBits());
  }
}
