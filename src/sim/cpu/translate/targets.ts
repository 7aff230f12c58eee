/**
 * Where execution may go on without JS: a table by RIP, in the processor's state page, of what was found there last. An
 * entry names a target in the arena, which says by which function of the table of functions, and with what argument, it
 * is executed: a block's header is one.
 */
import { PAGE } from '../../arena.ts';
import { type CpuState, State } from '../processor/state.ts';
import { type Bytes, Wasm } from './wasm-bytes.ts';

/** RIP, the generation that the entry holds for (State.generation or State.globals), and the target. */
const Entry = { bytes: 16, generation: 8, target: 12 } as const;
export const ENTRIES = 131_072;

/** Where a RIP is looked for, by its low half: here, and in code.ts. */
export const slotOf = (low: number): number => (low ^ (low >>> 12)) & (ENTRIES - 1);

/** From now on, in this generation, the RIP with these halves has this target. */
export function remember(state: CpuState, low: number, high: number, target: number, global: boolean): void {
  const { u32 } = state.arena.views;
  const { base } = state;
  const offset = slotOf(low) * Entry.bytes;
  const at = (base + State.targets + offset) / 4;
  const generation = u32[(base + (global ? State.globals : State.generation)) / 4]!;
  // Whoever comes back from an exit finds it as it left it.
  if (
    u32[at + Entry.target / 4] === target &&
    u32[at + Entry.generation / 4] === generation &&
    u32[at] === low &&
    u32[at + 1] === high
  )
    return;
  state.written.add(offset - (offset % PAGE));
  u32[at] = low;
  u32[at + 1] = high;
  u32[at + Entry.generation / 4] = generation;
  u32[at + Entry.target / 4] = target;
}

/** Nothing is known. */
export function forgetTargets({ arena, base, written }: CpuState): void {
  for (const page of written) {
    const start = base + State.targets + page;
    arena.views.u8.fill(0, start, start + PAGE);
  }
  written.clear();
}
/** From now on nothing goes to this target by the RIP with this lower half. */
export function revoke(state: CpuState, low: number, target: number): void {
  const { u32 } = state.arena.views;
  const at = (state.base + State.targets + slotOf(low) * Entry.bytes) / 4;
  if (u32[at + Entry.target / 4] === target) u32[at + Entry.generation / 4] = 0;
}

/**
 * Code that looks for the RIP in a local (i64): leaves whether it is known, and its entry's offset in another local (i32),
 * with which targetAt() loads the target.
 */
export function find(code: Bytes, base: number, rip: number, entry: number): void {
  const get = (local: number) => code.op(Wasm.localGet).u(local);
  get(rip);
  get(rip);
  code.op(Wasm.i64Const).s(12).op(0x88, 0x85, 0xa7); // shr_u, xor, wrap
  code
    .op(Wasm.i32Const)
    .s(ENTRIES - 1)
    .op(0x71, Wasm.i32Const)
    .s(Math.log2(Entry.bytes))
    .op(0x74, Wasm.localTee) // and, shl
    .u(entry)
    .op(Wasm.i64Load, 0)
    .u(base + State.targets);
  get(rip);
  code.op(0x51); // i64.eq
  for (const current of [State.generation, State.globals]) {
    get(entry);
    code.op(Wasm.i32Load, 0).u(base + State.targets + Entry.generation);
    code
      .op(Wasm.i32Const, 0, Wasm.i32Load, 0)
      .u(base + current)
      .op(0x46); // i32.eq
  }
  code.op(0x72, 0x71); // or, and
}
export function targetAt(code: Bytes, base: number, entry: number): void {
  code
    .op(Wasm.localGet)
    .u(entry)
    .op(Wasm.i32Load, 0)
    .u(base + State.targets + Entry.target);
}
