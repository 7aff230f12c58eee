/** Blocks of code as records for the interpreter: what code is from its first execution until it is hot. */

import { PAGE } from '../../arena.ts';
import { joined } from '../processor/halves.ts';
import type { Insn } from '../processor/insn.ts';
import { LONGEST } from '../processor/insn.ts';
import { canonical } from '../processor/mode.ts';
import type { Mode } from '../processor/modes.ts';
import type { Processor } from '../processor/processor.ts';
import { Builder } from './builder.ts';
import { ClosureUnit } from './closures.ts';
import type { Decoder } from './decode.ts';
import { Encoding } from './forms.ts';
import { Fixed, Interpreter } from './interpreter.ts';
import type { End } from './ir.ts';
import { type Form, Forms, type KnownForms, NO_TEMPLATE, type Placed, variantOf } from './known.ts';
import type { Lower } from './lowering.ts';
import type { CallTarget } from './ops.ts';
import { fieldOf } from './patterns.ts';
import { bytePlaceOf, placeOf } from './places.ts';
import { familyKey } from './prepared.ts';
import { Header, Record } from './records.ts';
import { CONTINUES, DONE, helpersOf, templateModule, templateOf } from './template.ts';
import { LEFT } from './wasm-function.ts';
import type { Callee } from './wasm-module.ts';

/** Instructions of a block at most. */
export const BLOCK = 32;

/** So many templates are compiled together, and sooner where records that wait for one were executed so often. */
const Batch = { most: 32, patience: 64 } as const;

interface Closures {
  readonly unit: ClosureUnit;
  readonly gives: number;
  /** There will be a template. */
  readonly waits: boolean;
}

export interface ColdBlock {
  readonly block: number;
  /** Bytes. */
  readonly length: number;
}

export class Cold {
  readonly interpreter: Interpreter;
  /** How many templates are compiled together. */
  batch: number = Batch.most;
  readonly #cpu: Processor;
  readonly #decoder: Decoder;
  readonly #lower: Lower;
  readonly #segment: CallTarget;
  readonly #encoding = new Encoding();
  readonly #forms: Forms;
  /** What has no template, and what it gives: CONTINUES, DONE or LEFT. */
  readonly #closures = new Map<number, Closures>();
  /** Templates that are still to be compiled. */
  #module = templateModule();
  #waiting: Placed[] = [];
  #impatience = 0;

  constructor(cpu: Processor, decoder: Decoder, lower: Lower, segment: CallTarget, heat: number) {
    this.#cpu = cpu;
    this.#decoder = decoder;
    this.#lower = lower;
    this.#segment = segment;
    this.interpreter = new Interpreter(
      cpu,
      heat,
      (record) => this.#insnOf(record),
      (record) => this.#helpersOf(record),
      (record) => this.#execute(record >>> 0), // WebAssembly's are signed
    );
    this.#forms = new Forms(decoder.prepared, this.interpreter);
  }

  /** Undefined where the engine compiles no module at once, as in a browser's main thread. */
  static create(...of: ConstructorParameters<typeof Cold>): Cold | undefined {
    try {
      return new Cold(...of);
    } catch (error) {
      if (!(error instanceof RangeError)) throw error;
      return undefined;
    }
  }

  /** What a record was made of: its page has not changed since. */
  #insnOf(record: number): Insn {
    const { mode, arena } = this.#cpu;
    const { u8, u32, u64 } = arena.views;
    const host = u32[(record + Record.host) / 4]!;
    const end = host - (host % PAGE) + PAGE;
    const bytes = u8.slice(host, Math.min(host + LONGEST, end));
    const decoded = this.#decoder.decode(bytes, mode.bits, u64[(record + Record.rip) / 8]!, () => false);
    if (typeof decoded === 'string') throw new Error(`an instruction that is ${decoded} by now`);
    return decoded[0]!;
  }

  /** The helpers of its template, which was prepared. */
  #helpersOf(record: number): readonly Callee[] {
    const { mode, arena } = this.#cpu;
    const { u8, u32 } = arena.views;
    const host = u32[(record + Record.host) / 4]!;
    this.#encoding.read(u8, host, host + LONGEST, mode.bits, 0, 0);
    const insn = this.interpreter.insnOf(record);
    return helpersOf(mode, insn, this.#encoding.hasRegister, this.#segment, this.#lower);
  }

  /** All blocks are gone. */
  forget(): void {
    this.#closures.clear();
    for (const placed of this.#waiting) placed.waiting.length = 0;
    this.interpreter.forget();
    if (!this.interpreter.isFull) return;
    this.interpreter.forgetTemplates();
    this.#forms.forget();
    this.#module = templateModule();
    this.#waiting = [];
  }

  #execute(record: number): number {
    this.#cpu.sync();
    const { unit, gives, waits } = this.#closures.get(record)!;
    if (waits && ++this.#impatience >= Batch.patience) this.#compile();
    unit.execute();
    return gives;
  }

  /** Makes functions of the templates that wait. */
  #compile(): void {
    const { interpreter } = this;
    const waiting = this.#waiting;
    const module = this.#module;
    this.#module = templateModule();
    this.#waiting = [];
    this.#impatience = 0;
    const keys = waiting.map(({ key }) => key);
    if (keys.length === 0) return;
    if (!interpreter.compile(module, keys)) {
      // An engine may refuse large modules alone: from now on each has its own, and what waits is met anew.
      this.batch = 1;
      this.#forms.forget();
      return;
    }
    const { i32 } = this.#cpu.arena.views;
    for (const placed of waiting) {
      placed.place = interpreter.placeOf(placed.key);
      for (const record of placed.waiting) {
        i32[(record + Record.template) / 4] = placed.place!;
        this.#closures.delete(record);
      }
      placed.waiting.length = 0;
    }
  }

  /**
   * The block that begins at a place in the arena, up to `most` bytes; undefined where its first instruction is not whole
   * there, or is none.
   */
  decode(mode: Mode, rip: bigint, host: number, most: number): ColdBlock | undefined {
    const { interpreter } = this;
    const block = interpreter.allocate(BLOCK);
    if (block === undefined) return undefined;
    const { u8, u16, u32, i32 } = this.#cpu.arena.views;
    const forms = this.#forms.of(mode);
    const encoding = this.#encoding;
    const long = mode.bits === 64;
    let ripLow = Number(rip & 0xffff_ffffn) | 0;
    let ripHigh = Number(rip >> 32n) | 0;
    let at = host;
    const end = host + most;
    let record = block + Header.bytes;
    let count = 0;
    let ends = false;
    while (count < BLOCK && at < end && !ends) {
      let placed: Placed | undefined;
      let form: Form | undefined;
      if (encoding.read(u8, at, end, mode.bits, ripLow, ripHigh)) {
        const known = forms.get(encoding.form);
        if (known !== NO_TEMPLATE) {
          form = known;
          if (form?.one !== undefined) placed = form.one;
          else {
            placed =
              form?.several.get(variantOf(form!, encoding)) ??
              this.#learn(mode, forms, at, joined(ripLow, ripHigh));
            const learned = forms.get(encoding.form);
            form = learned === NO_TEMPLATE ? undefined : learned;
          }
        }
        if (placed !== undefined && this.#branchesAway(mode, placed)) placed = undefined;
      }
      let { length, nextLow, nextHigh } = encoding;
      const r = record / 4;
      if (placed !== undefined && form !== undefined) {
        i32[r + Record.template / 4] = placed.place ?? Fixed.closures;
        i32[r + Record.insn / 4] = 0;
        i32[r + Record.immediate / 4] = encoding.immLow;
        i32[r + Record.immediate / 4 + 1] = encoding.immHigh;
        i32[r + Record.displacement / 4] = encoding.low;
        i32[r + Record.displacement / 4 + 1] = encoding.high;
        const { rm, register, legacy } = encoding;
        const h = record / 2;
        u16[h + Record.rm / 2] = form.byteRm ? bytePlaceOf(rm, legacy) : placeOf(rm);
        u16[h + Record.register / 2] = form.byteRegister ? bytePlaceOf(register, legacy) : placeOf(register);
        u16[h + Record.base / 2] = placeOf(encoding.base);
        u16[h + Record.index / 2] = placeOf(encoding.index);
        i32[r + Record.scale / 4] = encoding.scale;
        ends = placed.ends;
      }
      if (placed?.place === undefined) {
        const address = joined(ripLow, ripHigh);
        const decoded = this.#decoder.decode(
          u8.slice(at, Math.min(at + LONGEST, end)),
          mode.bits,
          address,
          () => false,
        );
        if (typeof decoded === 'string') break;
        placed?.waiting.push(record);
        const insn = decoded[0]!;
        const builder = new Builder(mode, this.#segment);
        builder.begin(insn);
        this.#lower(builder, insn);
        ends = builder.end !== undefined;
        const finish: End = builder.end ?? { kind: 'goto', target: insn.next };
        const unit = { rip: address, insns: [insn], nodes: builder.finish(finish), end: finish };
        const gives = !ends ? CONTINUES : finish.kind === 'left' ? LEFT : DONE;
        const waits = placed !== undefined;
        this.#closures.set(record, { unit: new ClosureUnit(this.#cpu, unit, record), gives, waits });
        i32[r + Record.template / 4] = Fixed.closures;
        i32[r + Record.insn / 4] = interpreter.keep(insn);
        length = insn.length;
        nextLow = Number(insn.next & 0xffff_ffffn) | 0;
        nextHigh = Number(insn.next >> 32n) | 0;
      }
      i32[r + Record.at / 4] = count;
      u32[r + Record.block / 4] = block;
      u32[r + Record.host / 4] = at;
      i32[r + Record.rip / 4] = ripLow;
      i32[r + Record.rip / 4 + 1] = ripHigh;
      i32[r + Record.next / 4] = nextLow;
      i32[r + Record.next / 4 + 1] = nextHigh;
      ripLow = nextLow;
      ripHigh = long ? nextHigh : 0;
      at += length;
      count++;
      record += Record.bytes;
    }
    if (count === 0) return undefined;
    if (!ends) {
      const r = record / 4;
      i32[r + Record.template / 4] = Fixed.end;
      i32[r + Record.rip / 4] = ripLow;
      i32[r + Record.rip / 4 + 1] = ripHigh;
      record += Record.bytes;
    }
    u32[(block + Header.count) / 4] = count;
    interpreter.cool(block);
    interpreter.take(record - block);
    return { block, length: at - host };
  }

  /** A near branch to where execution cannot go on faults there, which is not the template's. */
  #branchesAway(mode: Mode, { ends }: Placed): boolean {
    const { isBranch, immLow, immHigh } = this.#encoding;
    if (!ends || !isBranch) return false;
    if (mode.bits === 64) return !canonical(joined(immLow, immHigh));
    return immLow >>> 0 > mode.codeLimit;
  }

  /** The form in the encoding is met for the first time: or so are its registers, or its immediate. */
  #learn(mode: Mode, forms: KnownForms, at: number, rip: bigint): Placed | undefined {
    const encoding = this.#encoding;
    const { form, hasRegister } = encoding;
    const none = () => {
      forms.set(form, NO_TEMPLATE, true);
      return undefined;
    };
    const bytes = this.#cpu.arena.views.u8.slice(at, at + encoding.length);
    const decoded = this.#decoder.decode(bytes, mode.bits, rip, () => false);
    if (typeof decoded === 'string' || this.#decoder.pattern(mode.bits, form) === undefined) return none();
    const insn = decoded[0]!;
    const template = templateOf(mode, insn, hasRegister, this.#segment, this.#lower, this.#module);
    if (template === undefined) return none();
    const { registers, compares, immediate, counts, ends, vectors } = template;
    let known = forms.get(form) as Form | undefined;
    const bytePlaces = insn.operands.map(
      (operand, i) => operand.kind === 'gpr' && operand.size === 1 && fieldOf(insn, i, hasRegister),
    );
    const variant = variantOf(template, encoding);
    const key = [
      this.#decoder.key,
      familyKey(mode),
      ...(vectors ? [mode.x87, mode.sse, mode.avx] : []),
      form,
      variant,
    ].join();
    const placed: Placed = { key, ends, place: this.interpreter.placeOf(key), waiting: [] };
    if (placed.place !== undefined) this.#module.drop();
    else {
      this.#waiting.push(placed);
      if (this.#waiting.length >= this.batch) this.#compile();
      if (this.batch === 1 && placed.place === undefined) return none();
    }
    if (known === undefined) {
      known = {
        byteRm: bytePlaces.includes('rm'),
        byteRegister: bytePlaces.includes('register'),
        registers,
        compares,
        immediate,
        counts,
        one: registers || compares || immediate || counts !== 0 ? undefined : placed,
        several: new Map(),
      };
      forms.set(form, known, vectors);
    }
    known.several.set(variant, placed);
    return placed;
  }
}
