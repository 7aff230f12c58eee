/** The stacks of far transfers and of events: pushed and popped as a whole, so that a fault changes nothing. */

import { PAGE } from '../../arena.ts';
import { inLimit, Seg, type Segment } from '../processor/descriptors.ts';
import { raise, Vector } from '../processor/fault.ts';
import { canonical, low32, stackSize, wrapLinear } from '../processor/mode.ts';
import type { Processor } from '../processor/processor.ts';
import type { Rights } from '../processor/services.ts';
import { Access, MMIO } from '../processor/stage.ts';

const RSP = 4;

export interface StackOptions {
  readonly segment: Segment;
  readonly pointer: bigint;
  /** 64 has no segmentation. */
  readonly bits: 16 | 32 | 64;
  /** 'system' on the way to an inner privilege level. */
  readonly rights: Rights;
  /** The error code of #SS. */
  readonly code: number;
}

export class Stack {
  readonly #cpu: Processor;
  readonly #options: StackOptions;
  readonly #pushed: { linear: bigint; size: number; value: bigint }[] = [];
  /** The stack pointer as it is after what was pushed and popped. */
  pointer: bigint;

  constructor(cpu: Processor, options: StackOptions) {
    this.#cpu = cpu;
    this.#options = options;
    this.pointer = options.pointer;
  }

  /** The stack that the processor is on. */
  static current(cpu: Processor, code = 0): Stack {
    const bits = stackSize(cpu);
    const pointer = BigInt.asUintN(bits, cpu.state.gpr(RSP));
    return new Stack(cpu, { segment: cpu.segments[Seg.SS]!, pointer, bits, rights: 'cpl', code });
  }

  #move(by: bigint): void {
    this.pointer = BigInt.asUintN(this.#options.bits, this.pointer + by);
  }

  #linear(size: number): bigint {
    const { bits, segment, code } = this.#options;
    if (bits === 64) {
      const last = BigInt.asUintN(64, this.pointer + BigInt(size - 1));
      if (!canonical(this.pointer) || !canonical(last)) raise(Vector.SS, code);
      return this.pointer;
    }
    if (segment.unusable || !inLimit(segment, Number(this.pointer), size)) raise(Vector.SS, code);
    return wrapLinear(this.#cpu, segment.base + this.pointer);
  }

  /** Notes a push, and raises what it would raise. */
  push(value: bigint, size: number): void {
    this.#move(BigInt(-size));
    const linear = this.#linear(size);
    this.#cpu.memory.checkWrite(linear, size, this.#options.rights);
    this.#pushed.push({ linear, size, value });
  }
  /** The same of several of 8 bytes: at once where nobody watches and they lie in one page. */
  pushAll(values: readonly bigint[]): void {
    const { bits, rights } = this.#options;
    const bytes = values.length * 8;
    const first = this.pointer - BigInt(bytes);
    const inside = Number(first & 0xfffn);
    const together =
      bits === 64 && inside % 8 === 0 && inside + bytes <= PAGE && canonical(first) && !this.#cpu.mode.single;
    const host = together ? this.#cpu.memory.host(first, bytes, Access.WRITE, rights) : MMIO;
    if (host === MMIO) {
      for (const value of values) this.push(value, 8);
      return;
    }
    this.pointer = first;
    this.#together = { host, values };
  }
  /** What pushAll() has found a place for. */
  #together: { readonly host: number; readonly values: readonly bigint[] } | undefined;

  /** Writes what was pushed. */
  write(): void {
    const { rights } = this.#options;
    const { memory, arena } = this.#cpu;
    if (this.#together !== undefined) {
      const { host, values } = this.#together;
      let at = host / 8 + values.length;
      for (const value of values) arena.views.u64[--at] = value;
    }
    for (const { linear, size, value } of this.#pushed) {
      if (size === 8) memory.write64(linear, BigInt.asUintN(64, value), rights);
      else if (size === 4) memory.write32(linear, Number(low32(value)), rights);
      else memory.write16(linear, Number(value & 0xffffn), rights);
    }
  }

  pop(size: number): bigint {
    const linear = this.#linear(size);
    const { rights } = this.#options;
    const { memory } = this.#cpu;
    const value =
      size === 8
        ? memory.read64(linear, rights)
        : BigInt(size === 4 ? memory.read32(linear, rights) : memory.read16(linear, rights));
    this.#move(BigInt(size));
    return value;
  }
  skip(bytes: number): void {
    this.#move(BigInt(bytes));
  }

  /** Makes the pointer RSP: a stack of 16 bits leaves the rest of it, one of 32 clears the upper half. */
  commit(): void {
    setStackPointer(this.#cpu, this.pointer, this.#options.bits);
  }
}

export function setStackPointer(cpu: Processor, pointer: bigint, bits: 16 | 32 | 64): void {
  const old = cpu.state.gpr(RSP);
  cpu.state.setGpr(
    RSP,
    bits === 16 ? ((old >> 16n) << 16n) | (pointer & 0xffffn) : BigInt.asUintN(bits, pointer),
  );
}
