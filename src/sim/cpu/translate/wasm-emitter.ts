/** From blocks of micro-ops to the code of one WebAssembly function, with their loops inside. */

import type { Insn } from '../processor/insn.ts';
import type { Processor } from '../processor/processor.ts';
import { State } from '../processor/state.ts';
import type { Block, Node } from './ir.ts';
import { Header } from './records.ts';
import { find, targetAt } from './targets.ts';
import { Wasm } from './wasm-bytes.ts';
import { FunctionEmitter, LEFT, Local } from './wasm-function.ts';
import type { WasmModule } from './wasm-module.ts';

export class Emitter extends FunctionEmitter {
  readonly #cpu: Processor;
  readonly #blocks: readonly Block[];
  readonly #index: ReadonlyMap<bigint, number>;
  readonly #unit: number;
  readonly #function: number;
  readonly #helperIndex = new Map<string, number>();
  readonly #insnIds = new Map<Insn, number>();
  readonly #helperIds = new Map<unknown, number>();
  /** Of the current block: how many instructions come before it in the unit. */
  #first = 0;

  /**
   * @param user the code has the user's rights
   * @param unit its number in State.unit
   * @param place where its function is in the table of functions
   */
  constructor(
    cpu: Processor,
    module: WasmModule,
    user: boolean,
    blocks: readonly Block[],
    unit: number,
    place: number,
  ) {
    super(module, user, cpu.state.base);
    this.#cpu = cpu;
    this.#blocks = blocks;
    this.#unit = unit;
    this.#function = place;
    this.#index = new Map(blocks.map(({ rip }, index) => [rip, index]));
  }

  /** Writes the unit's function. */
  write(): void {
    const { code } = this;
    const count = this.#blocks.length;
    this.stateAddress();
    code.op(Wasm.i32Const).s(this.#unit);
    this.store(Wasm.i32Store, State.unit);
    code.op(Wasm.loop, Wasm.void);
    for (let i = 0; i < count; i++) code.op(Wasm.block, Wasm.void);
    code
      .op(Wasm.localGet)
      .u(Local.parameter)
      .op(Wasm.brTable)
      .u(count - 1);
    for (let i = 0; i < count; i++) code.u(i);
    for (let i = 0; i < count; i++) {
      code.op(Wasm.end);
      this.#block(this.#blocks[i]!, i);
      this.#first += this.#blocks[i]!.insns.length;
    }
    code.op(Wasm.end).op(Wasm.i32Const, 0);
  }

  #block(block: Block, index: number): void {
    const { code } = this;
    const { end, nodes } = block;
    this.begin(nodes, end);
    // A block that leads to itself loops without the table.
    const again = end.kind === 'branch' && (end.taken === block.rip || end.next === block.rip);
    if (again) code.op(Wasm.loop, Wasm.void);
    const outer = this.#blocks.length - 1 - index + (again ? 1 : 0);

    this.stateAddress();
    this.load(Wasm.i64Load, State.count);
    code.op(Wasm.localTee).u(Local.high);
    this.stateAddress();
    this.load(Wasm.i64Load, State.limit);
    code.op(0x5a, Wasm.if, Wasm.void); // i64.ge_u
    this.#exit(block.rip);
    code.op(Wasm.end);
    this.stateAddress();
    code.op(Wasm.localGet).u(Local.high).op(Wasm.i64Const).s(block.insns.length).op(0x7c);
    this.store(Wasm.i64Store, State.count);

    for (const node of nodes) this.node(node);

    switch (end.kind) {
      case 'goto':
        this.#goto(end.target, outer);
        break;
      case 'branch':
        this.value(end.condition);
        if (again) {
          if (end.next === block.rip) code.op(0x45); // i32.eqz
          code.op(Wasm.brIf).u(0);
          this.#goto(end.next === block.rip ? end.taken : end.next, outer);
        } else {
          code.op(Wasm.if, Wasm.void);
          this.#goto(end.taken, outer + 1);
          code.op(Wasm.else);
          this.#goto(end.next, outer + 1);
          code.op(Wasm.end);
        }
        break;
      case 'dynamic':
        this.#dynamic(end.target, outer);
        break;
      case 'left':
        code.op(Wasm.i32Const, LEFT, Wasm.return);
    }
    if (again) code.op(Wasm.end);
  }

  /** Into this unit where the target is known to be in it, else out: whoever called looks for it once more. */
  #dynamic(target: Node, depth: number): void {
    const { code } = this;
    const { base } = this.#cpu.state;
    this.value(target);
    code.op(Wasm.localSet).u(Local.high);
    find(code, base, Local.high, Local.entry);
    code.op(Wasm.if, Wasm.void);
    targetAt(code, base, Local.entry);
    code.op(Wasm.localTee).u(Local.entry).op(Wasm.i32Load, 0).u(Header.function);
    code.op(Wasm.i32Const).s(this.#function).op(0x46, Wasm.if, Wasm.void);
    code.op(Wasm.localGet).u(Local.entry).op(Wasm.i32Load, 0).u(Header.argument);
    code
      .op(Wasm.localSet)
      .u(Local.parameter)
      .op(Wasm.br)
      .u(depth + 2)
      .op(Wasm.end, Wasm.end);
    this.stateAddress();
    code.op(Wasm.localGet).u(Local.high);
    this.store(Wasm.i64Store, State.rip);
    code.op(Wasm.i32Const, 0, Wasm.return);
  }
  /** To a block of this unit, or out. `depth` is that of the outer loop. */
  #goto(target: bigint, depth: number): void {
    const index = this.#index.get(target);
    if (index === undefined) {
      this.#exit(target);
      return;
    }
    this.code.op(Wasm.i32Const).s(index).op(Wasm.localSet).u(Local.parameter).op(Wasm.br).u(depth);
  }
  #exit(rip: bigint): void {
    this.stateAddress();
    this.code.op(Wasm.i64Const).s64(BigInt.asIntN(64, rip));
    this.store(Wasm.i64Store, State.rip);
    this.code.op(Wasm.i32Const, 0, Wasm.return);
  }

  protected mark(node: Node): void {
    this.stateAddress();
    this.code.op(Wasm.i32Const).s(this.#first + node.at);
    this.store(Wasm.i32Store, State.at);
  }

  protected helper({ args, row, detail }: Node): { readonly index: number; before(): void } {
    const insn = detail.insn!;
    const id = (map: Map<unknown, number>, key: unknown) => {
      if (!map.has(key)) map.set(key, map.size);
      return map.get(key)!;
    };
    const shape = args.map((arg) => arg.row.result).join('');
    const key = `${id(this.#insnIds as Map<unknown, number>, insn)}/${id(this.#helperIds, detail.helper)}/${shape}/${row.result}`;
    let index = this.#helperIndex.get(key);
    if (index === undefined) {
      const cpu = this.#cpu;
      const { state } = cpu;
      const helper = detail.helper!;
      const call = (...values: unknown[]) => {
        cpu.sync();
        state.rip = insn.rip;
        state.moved = false;
        return helper(cpu, insn, ...values);
      };
      index = this.module.helper(shape, row.result, call);
      this.#helperIndex.set(key, index);
    }
    return { index, before: nothing };
  }
}
const nothing = () => {};
