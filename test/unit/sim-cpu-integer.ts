/** A simulated processor with flat memory and without paging, for instructions given as bytes. */
import { createRequire } from 'node:module';
import { Arena } from '../../src/sim/arena.ts';
import { Cpu } from '../../src/sim/cpu/cpu.ts';
import { Seg } from '../../src/sim/cpu/processor/descriptors.ts';
import { GuestFault } from '../../src/sim/cpu/processor/fault.ts';
import { MMIO, type SecondStage } from '../../src/sim/cpu/processor/stage.ts';
import { ClosureUnit } from '../../src/sim/cpu/translate/closures.ts';
import { Decoder, type Iced } from '../../src/sim/cpu/translate/decode.ts';
import type { Block } from '../../src/sim/cpu/translate/ir.ts';
import { WasmUnit } from '../../src/sim/cpu/translate/wasm.ts';

const iced: Iced = createRequire(import.meta.url)('iced-x86');

export const Place = { code: 0x1_0000, data: 0x2_0000, stack: 0x3_0000, end: 0x10_0000 } as const;
const PAGE = 0x1000;
const EFER_LMA = 0x400;
const PE = 1;

export const modes = ['real', 'protected16', 'protected32', 'long'] as const;
export type Mode = (typeof modes)[number];
/** AX CX DX BX SP BP SI DI: the order of the encodings. */
export const R = { ax: 0, cx: 1, dx: 2, bx: 3, sp: 4, bp: 5, si: 6, di: 7 } as const;

export interface Options {
  readonly vendor?: 'amd' | 'intel';
  /** Pages, by their number, that no memory is behind. */
  readonly mmio?: readonly number[];
}

export class Machine {
  readonly cpu: Cpu;
  readonly #ram: number;

  constructor(mode: Mode, { vendor = 'intel', mmio = [] }: Options = {}) {
    const arena = new Arena();
    const ram = arena.allocate(Place.end)!;
    this.#ram = ram;
    const page = (gpa: number) => (gpa >= Place.end || mmio.includes(gpa / PAGE) ? MMIO : ram + gpa);
    const stage: SecondStage = { page, sharedPage: page };
    const cpu = new Cpu(arena, stage, { vendor, decoder: new Decoder(() => iced, vendor) });
    this.cpu = cpu;
    for (const [index, segment] of cpu.segments.entries()) {
      const code = index === Seg.CS;
      const wide = mode === 'long' || mode === 'protected32';
      const limit = wide ? 0xffff_ffff : 0xffff;
      // 16-bit segments of which each has its own 64 KiB, as far as there are places.
      const base = wide ? 0n : BigInt({ [Seg.CS]: Place.code, [Seg.SS]: Place.stack }[index] ?? Place.data);
      const db = mode === 'protected32' ? 1 : 0;
      Object.assign(segment, { base, limit, type: code ? 11 : 3, db, l: code && mode === 'long' ? 1 : 0 });
      Object.assign(segment, {
        selector: mode === 'real' ? Number(base >> 4n) : 8 * (index + 1),
        g: wide ? 1 : 0,
      });
    }
    if (mode !== 'real') cpu.cr0 |= PE;
    if (mode === 'long') cpu.efer |= EFER_LMA;
    cpu.changed();
    cpu.state.setLimit(2 ** 52);
    this.flat = mode === 'long' || mode === 'protected32';
    this.set(R.sp, this.flat ? BigInt(Place.stack + 0x800) : 0x800n);
  }
  /** Offsets are linear addresses. */
  readonly flat: boolean;

  get(register: number): bigint {
    return this.cpu.state.gpr(register);
  }
  set(register: number, value: bigint | number): void {
    this.cpu.state.setGpr(register, BigInt.asUintN(64, BigInt(value)));
  }
  get flags(): number {
    return this.cpu.state.flags;
  }
  set flags(value: number) {
    this.cpu.state.flags = value | 2;
  }
  get rip(): number {
    return Number(this.cpu.state.rip);
  }
  set rip(value: number) {
    this.cpu.state.rip = BigInt(value);
  }
  bytes(linear: number, size: number): number[] {
    return [...this.cpu.arena.views.u8.slice(this.#ram + linear, this.#ram + linear + size)];
  }
  /** As the host writes to guest memory. */
  poke(linear: number, bytes: readonly number[]): void {
    this.cpu.arena.views.u8.set(bytes, this.#ram + linear);
  }

  /** Puts code where RIP will be. */
  load(code: readonly number[]): void {
    this.rip = this.flat ? Place.code : 0;
    this.poke(Place.code, code);
    this.cpu.code.begin();
  }
  /** The block at RIP, in both executors. */
  block(): Block {
    return this.cpu.code.find().block;
  }
  closures = (block: Block) => new ClosureUnit(this.cpu, block).run();
  wasm = (block: Block) => WasmUnit.compile(this.cpu, [{ blocks: [block] }])[0]!.run(0);
  /** One instruction, by itself. */
  step(): void {
    this.cpu.code.execute(this.cpu.code.findSingle());
  }
  /** One instruction: nothing, or the exception that it raises, as `#13(0)`. RIP is where it stays or goes. */
  run(code: readonly number[]): string | undefined {
    this.load(code);
    const { rip } = this;
    try {
      this.step();
      return undefined;
    } catch (thrown) {
      if (!(thrown instanceof GuestFault)) throw thrown;
      this.rip = rip;
      return `#${thrown.vector}${thrown.errorCode === undefined ? '' : `(${thrown.errorCode})`}`;
    }
  }
  /** All that an instruction can change but memory. */
  state(): string {
    const registers = Array.from({ length: 16 }, (_, index) => this.get(index).toString(16));
    return `${registers.join(' ')} flags=${this.flags.toString(16)} rip=${this.rip.toString(16)}`;
  }
}
