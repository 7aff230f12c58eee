/** Hostile input: nothing from JS may end the process. */
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect } from 'vitest';
import { onKvm as test } from '../support/host.ts';
import { inLab, PATIENCE } from '../support/limits.ts';
import { node, pathOf, scenario } from './child.ts';

const CALLS = inLab ? 10_000 : 100_000;
const CALLS_OF_EACH = inLab ? 2000 : 20_000;
const SEED = process.env.VMEXIT_SEED ?? '1';
/** Of the long ones. */
const LIMIT_MS = 900_000 * PATIENCE;

const run = (name: string) => scenario('hostile.mjs', name);

describe('the addon', () => {
  test(
    `survives ${CALLS} hostile calls (VMEXIT_SEED=${SEED}), and every error it throws is typed`,
    async () => {
      const folder = mkdtempSync(join(tmpdir(), 'vmexit-hostile-'));
      const log = join(folder, 'call');
      const { status, signal, stdout, stderr } = await node(
        [pathOf('hostile-native.mjs'), SEED, String(CALLS), log],
        { limitMs: LIMIT_MS },
      );
      const last = readFileSync(log, 'utf8').trim();
      rmSync(folder, { recursive: true });
      expect({ status, signal }, `seed ${SEED}, in the call ${last}\n${stderr}`).toEqual({
        status: 0,
        signal: undefined,
      });

      const result = JSON.parse(stdout);
      expect(result.calls).toBe(CALLS);
      expect(result.wrong).toEqual([]);
      // The storm is one: it gets past the addon's checks, and into guests.
      expect(result.accepted.length).toBeGreaterThan(20);
      expect(result.runs).toBeGreaterThan(CALLS / 200);
      expect(result.fds).toBeLessThan(64);
      expect(result.maxRssMiB).toBeLessThan(512);
    },
    LIMIT_MS,
  );

  test(
    `survives ${CALLS_OF_EACH} hostile calls of each of three threads at once, which use each other’s VMs and vCPUs`,
    async () => {
      const args = [pathOf('hostile-threads.mjs'), SEED, String(CALLS_OF_EACH), '3'];
      const { status, signal, stdout, stderr } = await node(args, { limitMs: LIMIT_MS });
      expect({ status, signal }, `seed ${SEED}\n${stderr}`).toEqual({ status: 0, signal: undefined });
      const results = stdout
        .trim()
        .split('\n')
        .map((line) => JSON.parse(line));
      expect(results.map(({ calls, wrong }) => ({ calls, wrong }))).toEqual(
        Array(3).fill({ calls: CALLS_OF_EACH, wrong: [] }),
      );
      for (const { runs } of results) expect(runs).toBeGreaterThan(CALLS_OF_EACH / 200);
    },
    LIMIT_MS,
  );

  test('gives back what a setter on Error.prototype throws', async () => {
    expect(await run('setters')).toBeGreaterThan(100);
  });

  test('throws its errors at the end of the stack too', async () => {
    expect(await run('deepStack')).toBe(true);
  });

  test('refuses an argument of 4 GiB without copying it', async () => {
    const { codes, maxRssMiB } = await run('hugeArgument');
    expect(codes).toEqual(Array(3).fill('ERR_KVM_INVALID_ARG'));
    expect(maxRssMiB).toBeLessThan(512);
  });

  test('opens no path with a NUL in it, and gives the errno for what is no KVM', async () => {
    const { nul, long, folder, device } = await run('paths');
    expect(nul).toBe('ERR_KVM_INVALID_ARG');
    expect({ long, folder, device }).toEqual({ long: -36, folder: -21, device: -25 });
  });

  test('refuses the capability whose argument is an address to write to', async () => {
    expect(await run('pointers')).toEqual({ code: 'ERR_KVM_INVALID_ARG', target: 0 });
  });
});

describe('the package', () => {
  test(
    `gives a typed error for wrong arguments of every method (VMEXIT_SEED=${SEED})`,
    async () => {
      const calls = inLab ? 4000 : 40_000;
      const args = [pathOf('hostile-api.mjs'), SEED, String(calls)];
      const { status, stdout, stderr } = await node(args, { limitMs: LIMIT_MS });
      expect(status, stderr).toBe(0);
      const { thrown, members, untyped } = JSON.parse(stdout);
      expect(untyped).toEqual({});
      expect(members).toBeGreaterThan(100);
      expect(thrown).toBeGreaterThan(calls / 4);
    },
    LIMIT_MS,
  );

  test('says what the host has run out of, and goes on when there is some again', async () => {
    const { memory, files, after } = await run('limits');
    expect(memory).toBe('KvmError mmap failed with ENOMEM: the host cannot map 4294967296 bytes');
    expect(files[0]).toMatch(/^KvmError memfd_create failed with EMFILE: too many files/);
    expect(files[1]).toMatch(/^KvmError KVM_CREATE_VCPU failed with EMFILE/);
    expect(files[2]).toMatch(/^UnavailableError .*EMFILE/);
    expect(after).toBe('ok');
  });

  test('makes VMs while signals come all the time', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'vmexit-profile-'));
    const profiler = ['--cpu-prof', '--cpu-prof-interval=50', `--cpu-prof-dir=${folder}`];
    const { status, stdout, stderr } = await node([...profiler, pathOf('hostile.mjs'), 'signals']);
    rmSync(folder, { recursive: true });
    expect(status, stderr).toBe(0);
    const { count, exits } = JSON.parse(stdout);
    expect(count).toBe(inLab ? 50 : 300);
    expect(['IO', 'INTERRUPTED']).toEqual(expect.arrayContaining(exits));
  });
});

describe('a vCPU', () => {
  test('survives any bytes in kvm_run', async () => {
    expect(await run('kvmRunPage')).toContain('ok');
  });
});
