/**
 * Cases with their results as lines of text: what one host's silicon did, for hosts that cannot ask it. A result is
 * written as what the instruction changed, so a recording holds only while the states that follow from seeds do.
 */
import { readFileSync, writeFileSync } from 'node:fs';
import { gunzipSync, gzipSync } from 'node:zlib';
import {
  type Case,
  formatCase,
  parseCase,
  partsOf,
  REGISTERS,
  type RegisterName,
  type State,
  stateOf,
} from './case.ts';
import { type ModeName, modes } from './modes.ts';
import { ORACLES, type Oracle } from './oracle.ts';
import type { Result } from './runner.ts';

export interface Recorded {
  readonly given: Case;
  readonly expected: Result;
}

const hex = (bytes: Uint8Array) => Buffer.from(bytes).toString('hex');
const unhex = (text: string) => Uint8Array.from(Buffer.from(text, 'hex'));
const equal = (a: Uint8Array, b: Uint8Array) => Buffer.compare(a, b) === 0;

/** `end|io|registers|fpu|memory|system`, of which the last are left out where they are empty. */
export function formatResult(result: Result, state: State): string {
  const registers = REGISTERS.flatMap((name, i) => {
    const value = result.registers[i]!;
    return value === state.registers[i] ? [] : [`${name}=${value.toString(16)}`];
  });
  const fpu = partsOf(state.fpu).flatMap(([name, at, size]) => {
    const [before, after] = [state.fpu, result.fpu].map((bytes) => bytes.subarray(at, at + size)) as [
      Uint8Array,
      Uint8Array,
    ];
    return equal(before, after) ? [] : [`${name}=${hex(after)}`];
  });
  const memory = result.memory.map(({ offset, bytes }) => `${offset.toString(16)}=${hex(bytes)}`);
  return [
    result.end,
    result.io.join(','),
    registers.join(' '),
    fpu.join(' '),
    memory.join(' '),
    result.system ?? '',
  ]
    .join('|')
    .replace(/\|+$/, '');
}

const pairs = (text: string | undefined): [string, string][] =>
  (text ?? '')
    .split(' ')
    .filter(Boolean)
    .map((pair) => pair.split('=') as [string, string]);

export function parseResult(text: string, state: State): Result {
  const [end, io, registers, fpu, memory, system] = text.split('|');
  const result = { registers: state.registers.slice(), fpu: state.fpu.slice() };
  for (const [name, value] of pairs(registers)) {
    result.registers[REGISTERS.indexOf(name as RegisterName)] = BigInt(`0x${value}`);
  }
  for (const [name, value] of pairs(fpu))
    result.fpu.set(unhex(value), partsOf(state.fpu).find(([other]) => other === name)![1]);
  return {
    ...result,
    end: end!,
    io: io ? io.split(',') : [],
    memory: pairs(memory).map(([offset, bytes]) => ({
      offset: Number.parseInt(offset, 16),
      bytes: unhex(bytes),
    })),
    system: system || undefined,
  };
}

/** A line for each case: the case, a tab, the result. */
export const recordLine = ({ given, expected }: Recorded): string =>
  `${formatCase(given)}\t${formatResult(expected, stateOf(given))}`;

export function* readRecording(path: string | URL): Generator<Recorded> {
  for (const line of gunzipSync(readFileSync(path)).toString().split('\n')) {
    if (line === '' || line.startsWith('#')) continue;
    const [text, result] = line.split('\t') as [string, string];
    const given = parseCase(text);
    yield { given, expected: parseResult(result, stateOf(given)) };
  }
}

/** A recording's first line: the mode, who executed the cases, on which processor. */
export interface About {
  readonly text: string;
  readonly mode: ModeName;
  readonly oracle: Oracle;
  /** Whose processor that is, or claims to be. */
  readonly vendor: 'intel' | 'amd';
}

export function aboutRecording(path: string | URL): About {
  const text = gunzipSync(readFileSync(path)).toString().split('\n', 1)[0]!.slice(2);
  const mode = modes.find((name) => text.startsWith(`${name} `));
  const oracle = ORACLES.find((name) => text.includes(` on ${name},`));
  if (mode === undefined || oracle === undefined)
    throw new Error(`${path} does not say who executed its cases: '${text}'`);
  return { text, mode, oracle, vendor: text.includes('GenuineIntel') ? 'intel' : 'amd' };
}

/** @param about what executed it, for who reads the file */
export const writeRecording = (path: string, about: string, lines: readonly string[]): void =>
  writeFileSync(path, gzipSync(`# ${about}\n${lines.join('\n')}\n`, { level: 9 }));
