/**
 * The host's own processor as an oracle of privilege 3, without KVM: a program of Linux (process.c) executes the cases. It has
 * what the host's kernel enables, AVX's registers among it.
 */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { type Case, REGISTERS, RIP, type State, stateOf } from './case.ts';
import { rights } from './machine.ts';
import { modeOf } from './modes.ts';
import { PAGE, Place, WINDOW } from './places.ts';
import { changes, type Result } from './runner.ts';

/** As process.c has them. */
const LONGEST = 16;
const FPU = 832;
const INPUT = 8 * REGISTERS.length + LONGEST + 8 + FPU + WINDOW;
const OUTPUT = 8 * (REGISTERS.length + 3) + FPU + WINDOW;
/** Cases in one life of the program. */
const BATCH = 500;
const XSTATE_BV = 512;
const X87_AND_SSE = 3n;

const WITH_ERROR = new Set([8, 10, 11, 12, 13, 14, 17]);
/** Of a page fault's error code: the page is there. */
const PRESENT = 1n;

/** Why this host has no such oracle; undefined where it has. */
export function whyNoProcess(): string | undefined {
  if (process.platform !== 'linux' || process.arch !== 'x64') return 'process: not Linux on x86-64';
  return spawnSync('cc', ['--version']).status === 0 ? undefined : 'process: no C compiler (cc)';
}

export class ProcessOracle implements Disposable {
  readonly #folder = mkdtempSync(join(tmpdir(), 'vmexit-process-'));
  readonly #program = join(this.#folder, 'process');

  constructor() {
    const source = fileURLToPath(new URL('process.c', import.meta.url));
    // No vector register is used, and no word of the thread's own storage, while a case's registers are there.
    const options = [
      '-O2',
      '-mno-red-zone',
      '-fno-stack-protector',
      '-mgeneral-regs-only',
      '-fcf-protection=none',
    ];
    const { status, stderr, error } = spawnSync('cc', [...options, '-o', this.#program, source]);
    if (status !== 0) throw new Error(`cc process.c: ${error ?? stderr}`);
  }

  /** What the cases do; all are of 64-bit mode at privilege 3. */
  *run(cases: Iterable<Case>): Generator<{ readonly given: Case; readonly expected: Result }> {
    let batch: Case[] = [];
    for (const given of cases) {
      if (modeOf(given.mode).bits !== 64 || modeOf(given.mode).privilege !== 3)
        throw new RangeError(`a process executes no case of mode ${given.mode}`);
      batch.push(given);
      if (batch.length < BATCH) continue;
      yield* this.#batch(batch);
      batch = [];
    }
    yield* this.#batch(batch);
  }

  *#batch(cases: readonly Case[]): Generator<{ readonly given: Case; readonly expected: Result }> {
    const states = cases.map(stateOf);
    for (let from = 0; from < cases.length; ) {
      const input = Buffer.concat(cases.slice(from).map((given, i) => encode(given, states[from + i]!)));
      const { stdout, signal, status } = spawnSync(this.#program, { input, maxBuffer: OUTPUT * BATCH });
      const count = Math.floor(stdout.length / OUTPUT);
      for (let i = 0; i < count; i++) {
        const output = stdout.subarray(i * OUTPUT, (i + 1) * OUTPUT);
        yield { given: cases[from + i]!, expected: decode(output, states[from + i]!) };
      }
      from += count;
      if (from === cases.length) return;
      const { registers, fpu } = states[from]!;
      const end = `threw ${signal ?? `status ${status}`}`;
      yield {
        given: cases[from]!,
        expected: { end, io: [], registers, fpu, memory: [], system: undefined },
      };
      from++;
    }
  }

  [Symbol.dispose](): void {
    rmSync(this.#folder, { recursive: true });
  }
}

function encode({ code }: Case, { registers, fpu, memory }: State): Uint8Array {
  const bytes = new Uint8Array(INPUT);
  const view = new DataView(bytes.buffer);
  let at = 0;
  for (const value of registers) {
    view.setBigUint64(at, value, true);
    at += 8;
  }
  bytes.set(code, at);
  view.setBigUint64(at + LONGEST, BigInt(code.length), true);
  at += LONGEST + 8;
  bytes.set(fpu, at);
  if (fpu.length < FPU) view.setBigUint64(at + XSTATE_BV, X87_AND_SSE, true);
  bytes.set(memory, at + FPU);
  return bytes;
}

/** The same place where everything is once. */
const lowOf = (address: bigint): number => Number(address >= Place.alias ? address - Place.alias : address);

/**
 * A page fault's error code as the other oracles' machine has it: what is the supervisor's there is not there at all in a process;
 * and of the upper half Linux tells a program that it were there.
 */
function errorOf(error: bigint, address: bigint): bigint {
  if (address >> 47n !== 0n) return error & ~PRESENT;
  const low = lowOf(address);
  const isThere = low < Place.reachEnd && rights(low & -PAGE) !== 0n;
  return isThere ? error | PRESENT : error;
}

function decode(output: Uint8Array, state: State): Result {
  const view = new DataView(output.buffer, output.byteOffset);
  const word = (i: number) => view.getBigUint64(8 * i, true);
  const count = REGISTERS.length;
  const registers = BigUint64Array.from(REGISTERS, (_, i) => word(i));
  const vector = Number(word(count));
  let error = word(count + 1);
  const address = word(count + 2);
  const at = 8 * (count + 3);
  const memory = changes(state.memory, output.subarray(at + FPU, at + FPU + WINDOW));
  const fpu = output.slice(at, at + state.fpu.length);
  const moved = registers[RIP] !== state.registers[RIP];
  const rip = lowOf(registers[RIP]!);
  // The filler is OUT, which is #GP in a process.
  const isFiller = moved && vector === 13 && error === 0n && rip >= Place.code && rip < Place.codeEnd;
  if (isFiller) return { end: 'completed', io: [], registers, fpu, memory, system: undefined };
  if (vector === 14) error = errorOf(error, address);
  const code = WITH_ERROR.has(vector) ? ` error=${error.toString(16)}` : '';
  const where = vector === 14 ? ` address=${address.toString(16)}` : '';
  return { end: `#${vector}${code}${where}`, io: [], registers, fpu, memory, system: undefined };
}
