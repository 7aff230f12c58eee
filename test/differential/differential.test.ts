/** A few thousand random instructions, live: the simulator against KVM; and that a difference would be told. */
import { describe, expect, it } from 'vitest';
import { type BackendName, type Hypervisor, openHypervisor, type SimulatedHost } from '../../src/index.ts';
import { inLab } from '../support/limits.ts';
import { type Case, FPU_PARTS, formatCase, parseCase, REGISTERS, stateOf } from './case.ts';
import { compare, shown } from './compare.ts';
import { formsOf, inspect } from './forms.ts';
import { caseOf } from './generate.ts';
import { type ModeName, modeOf, modes } from './modes.ts';
import { type Oracle, oracleOf, vendor } from './oracle.ts';
import { ProcessOracle, whyNoProcess } from './process.ts';
import { formatResult, parseResult } from './recording.ts';
import { type Result, Runner } from './runner.ts';

const CASES = 5_000;
const SEED = 1;

/** The backend, or why this host has none. */
function opened(name: BackendName, simulated: SimulatedHost = {}): Hypervisor | string {
  try {
    return openHypervisor({ backend: name as 'kvm', simulated });
  } catch (error) {
    return `${name}: ${(error as Error).message}`;
  }
}
const real = opened('kvm');
const kvm = inLab ? "kvm: the lab's processor is emulated, and no oracle at privilege 3" : real;
const sim = opened('sim');
/** The simulator as a processor of the host's maker: they differ in what a prefix does to a near branch, and in more. */
const simLikeHost = opened('sim', { vendor });
/** At privilege 0 a host's oracle is not the silicon; in the lab a case takes 30 ms. */
const SYSTEM_CASES = inLab ? 200 : 1_000;
const systemModes = modes.filter((name) => modeOf(name).privilege === 0);

const run = (runner: Runner, given: Case): Result => runner.run(given, inspect(given));

/** The cases that end differently, as a difference is shown. */
function differences(oracle: Runner, backend: Runner, count: number, mode: ModeName = 'long3'): string[] {
  const found: string[] = [];
  for (let i = 0; i < count; i++) {
    const given = caseOf(mode, SEED, i);
    const judge = oracleOf(oracle.hv, mode) as Oracle;
    const different = compare(run(oracle, given), run(backend, given), inspect(given), judge);
    if (different.length > 0) found.push(`${formatCase(given)} ${inspect(given).text}: ${shown(different)}`);
  }
  return found;
}

describe('one random instruction', () => {
  it('does on the simulator what it does on the silicon', (context) => {
    if (typeof kvm === 'string') return context.skip(kvm);
    if (typeof simLikeHost === 'string') return context.skip(simLikeHost);
    using oracle = new Runner(kvm);
    using backend = new Runner(simLikeHost);
    expect(simLikeHost.backend).toBe('sim');
    expect(differences(oracle, backend, CASES)).toEqual([]);
  }, 120_000);

  it('does on the simulator what it does in a process of the host', (context) => {
    const lacking = inLab ? 'process: emulated in the lab' : whyNoProcess();
    if (lacking !== undefined) return context.skip(lacking);
    if (typeof simLikeHost === 'string') return context.skip(simLikeHost);
    using oracle = new ProcessOracle();
    using backend = new Runner(simLikeHost);
    const forms = formsOf('long3').filter(({ name }) => /^P.*_xmm_xmmm128/.test(name));
    expect(forms.length).toBeGreaterThan(90);
    const cases = Array.from({ length: 1000 }, (_, i) => caseOf('long3', SEED, i, forms));
    const found = [...oracle.run(cases)].filter(
      ({ given, expected }) => compare(expected, run(backend, given), inspect(given)).length > 0,
    );
    expect(found.map(({ given }) => formatCase(given))).toEqual([]);
  }, 60_000);

  it.for(systemModes)(
    'does on the simulator what it does on the oracle (%s)',
    { timeout: 120_000 },
    (mode, context) => {
      if (typeof real === 'string') return context.skip(real);
      if (typeof sim === 'string') return context.skip(sim);
      if (mode === 'paged32' && oracleOf(real, mode) === "KVM's emulator")
        return context.skip('kvm: PVM has paging in long mode only');
      using oracle = new Runner(real);
      using backend = new Runner(sim);
      expect(sim.backend).toBe('sim');
      expect(differences(oracle, backend, SYSTEM_CASES, mode)).toEqual([]);
    },
  );

  it('does the same again on the same silicon', (context) => {
    if (typeof kvm === 'string') return context.skip(kvm);
    expect(kvm.backend).toBe('kvm');
    using oracle = new Runner(kvm);
    using other = new Runner(kvm);
    expect(differences(oracle, other, 1000)).toEqual([]);
  }, 60_000);
});

describe('a case', () => {
  it.for([
    ['long3', 1300],
    ['long0', 800],
    ['protected32', 650],
    ['real16', 650],
  ] as const)('is one of every form (%s)', ([mode, least]) => {
    const forms = formsOf(mode);
    expect(forms.length).toBeGreaterThan(least);
    const made = forms.map((_, i) => caseOf(mode, SEED, i));
    expect(made.filter(({ state }) => state === 0)).toEqual([]);
  });

  it('is the same for the same seed and number, and survives being written down', () => {
    for (let i = 0; i < 500; i++) {
      const given = caseOf('long3', SEED, i);
      expect(formatCase(caseOf('long3', SEED, i))).toBe(formatCase(given));
      expect(parseCase(formatCase(given))).toEqual(given);
    }
  });
});

describe('a difference', () => {
  const given = parseCase('long3 90 1');
  const nop = inspect(given);
  const before = stateOf(given);
  const result = (): Result => ({
    ...before,
    end: 'completed',
    io: [],
    memory: [],
    system: undefined,
    registers: before.registers.slice(),
    fpu: before.fpu.slice(),
  });

  it('in any register is told', () => {
    expect(compare(result(), result(), nop)).toEqual([]);
    for (let i = 0; i < REGISTERS.length; i++) {
      const altered = result();
      altered.registers[i]! ^= 1n;
      expect(compare(result(), altered, nop)).toHaveLength(1);
    }
  });

  it('in any part of the x87 and SSE state is told', () => {
    for (const [name, at, size] of FPU_PARTS) {
      const altered = result();
      altered.fpu[at + size - 1]! ^= 0x80;
      expect(compare(result(), altered, nop).map(({ where }) => where)).toEqual([name]);
    }
  });

  it('in memory, in ports, in segments and in how it ended is told', () => {
    const altered: Result[] = [
      { ...result(), memory: [{ offset: 8, bytes: Uint8Array.of(1) }] },
      { ...result(), io: ['out 80 1x1 00'] },
      { ...result(), system: 'ds=0:0' },
      { ...result(), end: '#6' },
    ];
    for (const other of altered) {
      const same = { ...result(), system: other.system === undefined ? undefined : 'ds=2b:0' };
      expect(compare(same, other, nop)).toHaveLength(1);
    }
  });

  it('is told where another instruction was executed', (context) => {
    if (typeof kvm === 'string') return context.skip(kvm);
    using runner = new Runner(kvm);
    const add = parseCase('long3 4801d8 5');
    const adc = parseCase('long3 4811d8 5 rflags=203');
    const found = compare(run(runner, add), run(runner, adc), inspect(add));
    expect(found.map(({ where }) => where)).toContain('rax');
  });

  it('in a flag that the instruction leaves undefined is none', () => {
    const shift = parseCase('long3 48c1e005 1'); // shl rax, 5: OF and AF
    const what = inspect(shift);
    const altered = result();
    altered.registers[REGISTERS.indexOf('rflags')]! ^= 0x810n;
    expect(compare(result(), altered, what)).toEqual([]);
    altered.registers[REGISTERS.indexOf('rflags')]! ^= 0x1n;
    expect(compare(result(), altered, what)).toHaveLength(1);
  });
});

describe('a recorded result', () => {
  it('is what was written down', (context) => {
    if (typeof kvm === 'string') return context.skip(kvm);
    using runner = new Runner(kvm);
    for (let i = 0; i < 500; i++) {
      const given = caseOf('long3', 3, i);
      const expected = run(runner, given);
      const state = stateOf(given);
      expect(compare(expected, parseResult(formatResult(expected, state), state), inspect(given))).toEqual(
        [],
      );
    }
  });
});
