/**
 * The first executor: blocks of records, whose templates are called one after the other, and from one block to the next
 * without JS. What has no template is executed by its closures.
 */
import { type Module, type Table, WebAssembly } from '../../webassembly.ts';
import type { Insn } from '../processor/insn.ts';
import type { Processor } from '../processor/processor.ts';
import { State } from '../processor/state.ts';
import type { Unit, Where } from '../processor/unit.ts';
import type { PreparedFamily } from './prepared.ts';
import { Header, Record } from './records.ts';
import { find, remember, targetAt } from './targets.ts';
import { DONE } from './template.ts';
import { ended, slow, type WasmUnit } from './wasm.ts';
import { Bytes, Wasm } from './wasm-bytes.ts';
import { type Callee, importsOf, type WasmModule } from './wasm-module.ts';

/** What run() gives beside what units give: the block is worth more. */
const HOT = 4;
/** Records are allocated so many bytes at a time. */
const CHUNK = 1 << 18;

/** Functions that are there from the start. */
export const Fixed = { closures: 0, end: 1, block: 2 } as const;

/**
 * Compiled forms, of all processors, and how many there are at most: some tens of KiB each. A guest can make them without
 * end, by immediates and by limits of segments.
 */
const MOST = 4096;
/** Templates in one module: their keys, in its functions' order. */
interface Batch {
  readonly module: Module;
  readonly helpers: WasmModule['helpers'];
  readonly keys: readonly string[];
}
const batches = new Map<string, Batch>();

export interface Operands {
  readonly rm: number;
  readonly register: number;
  readonly base: number;
  readonly index: number;
  readonly legacy: boolean;
}

export class Interpreter implements Unit {
  readonly #cpu: Processor;
  readonly #table: Table;
  readonly #run: (block: number) => number;
  readonly #imports: { readonly [name: string]: unknown };
  readonly #insns: (Insn | undefined)[] = [undefined];
  readonly #insnAt: (record: number) => Insn;
  readonly #helpersAt: (record: number) => readonly Callee[];
  readonly #prepared = new Map<PreparedFamily, number | undefined>();
  readonly #chunks: number[] = [];
  #at = 0;
  #room = 0;
  #functions = 3;
  /** Places that are free again. */
  readonly #free: number[] = [];
  readonly #units = new Map<number, WasmUnit>();
  readonly #places = new Map<string, number>();
  readonly #templates: number[] = [];

  /**
   * @param heat so often a block is executed, a power of two, before run() says that it is hot, and then again
   * @param insnAt decodes what a record was made of
   * @param helpersAt the helpers of its template
   * @param closures executes what has no template: CONTINUES, DONE or LEFT
   */
  constructor(
    cpu: Processor,
    heat: number,
    insnAt: (record: number) => Insn,
    helpersAt: (record: number) => readonly Callee[],
    closures: (record: number) => number,
  ) {
    this.#cpu = cpu;
    this.#helpersAt = helpersAt;
    this.#insnAt = insnAt;
    this.#table = new WebAssembly.Table({ initial: 64, element: 'anyfunc' });
    this.#imports = { m: cpu.arena.memory, b: cpu.state.base, ...slow(cpu) };
    const bytes = loopOf(cpu.state.base, heat);
    const instance = new WebAssembly.Instance(new WebAssembly.Module(bytes), {
      e: { m: cpu.arena.memory, t: this.#table, j: closures },
    });
    this.#run = instance.exports.r as (block: number) => number;
    this.#grow(); // beside the state page: in the middle of what is given out later it would divide that
    this.#table.set(Fixed.closures, instance.exports.j);
    this.#table.set(Fixed.end, instance.exports.n);
    this.#table.set(Fixed.block, instance.exports.b);
  }

  /** The table's place of a template, which every processor in such a mode can have; undefined where nobody has made it. */
  placeOf(key: string): number | undefined {
    const known = this.#places.get(key);
    if (known !== undefined) return known;
    const batch = batches.get(key);
    if (batch === undefined) return undefined;
    this.#instantiate(batch);
    return this.#places.get(key);
  }
  /** Compiles templates, one for each key; false where the engine refuses to do that at once. */
  compile(templates: WasmModule, keys: readonly string[]): boolean {
    let module: Module;
    try {
      module = new WebAssembly.Module(templates.bytes());
    } catch (error) {
      if (!(error instanceof RangeError)) throw error;
      return false;
    }
    if (batches.size >= MOST) batches.clear();
    const batch = { module, keys, helpers: templates.helpers };
    for (const key of keys) batches.set(key, batch);
    this.#instantiate(batch);
    return true;
  }
  /** A helper as a template calls it. */
  #called(helper: Callee): Callee {
    const cpu = this.#cpu;
    const { state } = cpu;
    return (record, ...values) => {
      cpu.sync();
      const insn = this.insnOf((record as number) >>> 0);
      state.rip = insn.rip;
      state.moved = false;
      return helper(cpu, insn, ...values);
    };
  }
  #instantiate({ module, helpers, keys }: Batch): void {
    const imports = {
      ...this.#imports,
      ...importsOf(this.#cpu, helpers, (helper) => this.#called(helper)),
    };
    const { exports } = new WebAssembly.Instance(module, { e: imports });
    for (const [index, key] of keys.entries()) {
      if (this.#places.has(key)) continue;
      const place = this.reserve();
      this.#table.set(place, exports[`r${index}`]);
      this.#places.set(key, place);
      this.#templates.push(place);
    }
  }

  /** Where the templates of a family are, from the first on; undefined where the engine refuses to compile them at once. */
  placeOfAll(family: PreparedFamily): number | undefined {
    if (!this.#prepared.has(family)) this.#prepared.set(family, this.#instantiateAll(family));
    return this.#prepared.get(family);
  }
  #instantiateAll(family: PreparedFamily): number | undefined {
    const place = this.#functions;
    const imports: { [name: string]: unknown } = { ...this.#imports, t: this.#table, p: place };
    for (const [index, which] of family.helpers.entries()) imports[`h${index}`] = this.#late(which);
    const last = place + family.functions;
    if (last > this.#table.length) this.#table.grow(2 * last - this.#table.length);
    try {
      new WebAssembly.Instance(family.module, { e: imports });
    } catch (error) {
      if (!(error instanceof RangeError)) throw error;
      return undefined;
    }
    this.#functions = last;
    return place;
  }
  /** One of the helpers of a prepared template: which it is is asked for when it is called first. */
  #late(which: number): Callee {
    let helper: Callee | undefined;
    return (record, ...values) => {
      helper ??= this.#called(this.#helpersAt((record as number) >>> 0)[which]!);
      return helper(record, ...values);
    };
  }

  // --- records -----------------------------------------------------------------------------------------------------

  /** Room for a block of so many instructions, or undefined where the arena is full. */
  allocate(instructions: number): number | undefined {
    const size = Header.bytes + (instructions + 1) * Record.bytes;
    if (size > this.#room && !this.#grow()) return undefined;
    return this.#at;
  }
  #grow(): boolean {
    const chunk = this.#cpu.arena.allocate(CHUNK);
    if (chunk === undefined) return false;
    this.#chunks.push(chunk);
    this.#at = chunk;
    this.#room = CHUNK;
    return true;
  }
  /** What of the room is used. */
  take(size: number): void {
    this.#at += size;
    this.#room -= size;
  }
  /** There are too many templates: somebody should call forgetTemplates(). */
  get isFull(): boolean {
    return this.#templates.length >= MOST;
  }
  /** When all blocks are gone. */
  forgetTemplates(): void {
    for (const place of this.#templates) this.release(place);
    this.#templates.length = 0;
    this.#places.clear();
  }

  /** All blocks are gone. */
  forget(): void {
    for (const chunk of this.#chunks) this.#cpu.arena.free(chunk, CHUNK);
    this.#chunks.length = 0;
    this.#insns.length = 1;
    this.#room = 0;
  }

  /** A number for an instruction that was decoded already. */
  keep(insn: Insn): number {
    return this.#insns.push(insn) - 1;
  }
  /** The instruction of a record, as iced-x86 decodes it. */
  insnOf(record: number): Insn {
    const { u32 } = this.#cpu.arena.views;
    const known = u32[(record + Record.insn) / 4]!;
    if (known !== 0) return this.#insns[known]!;
    const insn = this.#insnAt(record);
    u32[(record + Record.insn) / 4] = this.keep(insn);
    return insn;
  }

  /** A block that may be gone to from now on. */
  remember(low: number, high: number, block: number, global: boolean): void {
    remember(this.#cpu.state, low, high, block, global);
  }

  // --- units -------------------------------------------------------------------------------------------------------

  /** A place in the table of functions. */
  reserve(): number {
    const place = this.#free.pop() ?? this.#functions++;
    if (place >= this.#table.length) this.#table.grow(this.#table.length);
    return place;
  }
  /** A place that was reserved is not needed. */
  release(place: number): void {
    this.#free.push(place);
    this.#table.set(place, null);
  }
  /** The unit is executed for the blocks that it is entered at from now on. */
  enter(unit: WasmUnit, place: number): void {
    this.#table.set(place, unit.code);
    this.#units.set(unit.id, unit);
  }
  /** By what a block is executed from now on. */
  promote(block: number, place: number, argument: number): void {
    const { u32 } = this.#cpu.arena.views;
    u32[(block + Header.function) / 4] = place;
    u32[(block + Header.argument) / 4] = argument;
  }
  /** The block is executed by its records again, and cold. */
  cool(block: number): void {
    this.promote(block, Fixed.block, block);
    this.#cpu.arena.views.u32[(block + Header.heat) / 4] = 0;
  }
  /** Its blocks have cooled. */
  discard(unit: WasmUnit, place: number): void {
    this.#units.delete(unit.id);
    this.release(place);
  }

  /** How often a block was executed. */
  heatOf(block: number): number {
    return this.#cpu.arena.views.u32[(block + Header.heat) / 4]!;
  }

  /** Executes from a block on, whatever it is by now. */
  run(block: number): boolean {
    return ended(this.#cpu, this, this.#run(block));
  }

  where(record: number): Where {
    const { state, arena } = this.#cpu;
    const unit = state.u32(State.unit);
    if (unit !== 0) return this.#units.get(unit)!.where(record);
    const { u32, u64 } = arena.views;
    const block = u32[(record + Record.block) / 4]!;
    return {
      rip: u64[(record + Record.rip) / 8]!,
      next: u64[(record + Record.next) / 8]!,
      rest: u32[(block + Header.count) / 4]! - u32[(record + Record.at) / 4]!,
    };
  }
}

/**
 * What executes: `r` a target and those that follow, `b` one block of records. And two that are no instruction's template:
 * `j` calls closures, `n` ends a block without a jump.
 */
function loopOf(base: number, heat: number): Uint8Array {
  const module = new Bytes().op(0, 0x61, 0x73, 0x6d, 1, 0, 0, 0);
  module.section(1, new Bytes().u(1).op(0x60, 1, Wasm.i32, 1, Wasm.i32));
  const imports = new Bytes().u(3).name('e').name('m').op(2, 3).u(1).u(65_536);
  imports.name('e').name('t').op(1, 0x70, 0, 1);
  imports.name('e').name('j').op(0, 0);
  module.section(2, imports);
  const bodies = [runOf(base), blockOf(base, heat), callsOf(), endOf(base)];
  module.section(3, new Bytes().u(bodies.length).op(...bodies.map(() => 0)));
  const exported = new Bytes().u(bodies.length);
  for (const [i, name] of ['r', 'b', 'j', 'n'].entries()) exported.name(name).op(0, i + 1);
  module.section(7, exported);
  const code = new Bytes().u(bodies.length);
  for (const body of bodies) code.u(body.length).append(body);
  module.section(10, code);
  return module.all;
}

const CALL_INDIRECT = [0x11, 0, 0];

/** From a target to the next, until JS has to look. */
function runOf(base: number): Bytes {
  const [target, code, entry, rip] = [0, 1, 2, 3];
  const body = new Bytes().u(2).u(2).op(Wasm.i32).u(1).op(Wasm.i64);
  const get = (local: number) => body.op(Wasm.localGet).u(local);
  const state = (offset: number) => body.op(Wasm.i32Const, 0, Wasm.i64Load, 0).u(base + offset);
  body.op(Wasm.loop, Wasm.void);
  get(target);
  body.op(Wasm.i32Load, 0).u(Header.argument);
  get(target);
  body
    .op(Wasm.i32Load, 0)
    .u(Header.function)
    .op(...CALL_INDIRECT);
  body.op(Wasm.localTee).u(code).op(Wasm.if, Wasm.void);
  get(code);
  body.op(Wasm.return, Wasm.end);
  // Time to look around, or one that nobody knows.
  state(State.count);
  state(State.limit);
  body.op(0x5a, Wasm.if, Wasm.void, Wasm.i32Const, 0, Wasm.return, Wasm.end); // i64.ge_u
  state(State.rip);
  body.op(Wasm.localSet).u(rip);
  find(body, base, rip, entry);
  body.op(Wasm.if, Wasm.void);
  targetAt(body, base, entry);
  body.op(Wasm.localSet).u(target);
  return body.op(Wasm.br, 1, Wasm.end, Wasm.end, Wasm.i32Const, 0, Wasm.end);
}

/** One block: its instructions are counted, and executed one after the other. */
function blockOf(base: number, heat: number): Bytes {
  const [block, record, code] = [0, 1, 2];
  const body = new Bytes().u(1).u(2).op(Wasm.i32);
  const get = (local: number) => body.op(Wasm.localGet).u(local);
  const set = (local: number) => body.op(Wasm.localSet).u(local);
  const zero = () => body.op(Wasm.i32Const, 0);
  const field = (offset: number) => get(block).op(Wasm.i32Load, 0).u(offset);
  get(block);
  field(Header.heat);
  body.op(Wasm.i32Const, 1, 0x6a, Wasm.localTee).u(code);
  body.op(Wasm.i32Store, 0).u(Header.heat);
  get(code);
  body
    .op(Wasm.i32Const)
    .s(heat - 1)
    .op(0x71, 0x45); // and, eqz
  body.op(Wasm.if, Wasm.void, Wasm.i32Const, HOT, Wasm.return, Wasm.end);
  zero();
  zero();
  body.op(Wasm.i32Store, 0).u(base + State.unit);
  zero();
  zero();
  body.op(Wasm.i64Load, 0).u(base + State.count);
  field(Header.count);
  body
    .op(0xad, 0x7c, Wasm.i64Store, 0) // extend, add
    .u(base + State.count);
  get(block);
  body.op(Wasm.i32Const).s(Header.bytes).op(0x6a);
  set(record);
  body.op(Wasm.loop, Wasm.void);
  get(record);
  get(record);
  body
    .op(Wasm.i32Load, 0)
    .u(Record.template)
    .op(...CALL_INDIRECT);
  set(code);
  get(record);
  body.op(Wasm.i32Const).s(Record.bytes).op(0x6a);
  set(record);
  get(code);
  body.op(0x45, Wasm.brIf, 0, Wasm.end); // i32.eqz
  zero();
  get(code);
  get(code);
  body.op(Wasm.i32Const, DONE, 0x46, Wasm.select); // 0 for DONE, else the code
  return body.op(Wasm.end);
}
const callsOf = (): Bytes => new Bytes().u(0).op(Wasm.localGet, 0, Wasm.call, 0, Wasm.end);
/** RIP is the record's. */
const endOf = (base: number): Bytes =>
  new Bytes()
    .u(0)
    .op(Wasm.i32Const, 0, Wasm.localGet, 0, Wasm.i64Load, 0)
    .u(Record.rip)
    .op(Wasm.i64Store, 0)
    .u(base + State.rip)
    .op(Wasm.i32Const, DONE, Wasm.end);
