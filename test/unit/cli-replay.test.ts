/** vmexit run --record and vmexit replay: a run again, without what it ran on. */
import { readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { guest } from '../../src/index.ts';
import { onEach } from '../support/host.ts';
import { type Ran, scratchFolder, startVmexit, vmexit } from './cli-vmexit.ts';

const scratch = scratchFolder();
const recording = join(scratch.path, 'recording');

/** Sends the low bits of the time to the serial port, as letters, and ends with status 42. */
const tells = guest(
  16,
  `
     ba f8 03 |       mov dx, 0x3f8
     b9 08 00 |       mov cx, 8
     51       | next: push cx
     52       |       push dx
     0f 31    |       rdtsc
     5a       |       pop dx
     59       |       pop cx
     24 0f    |       and al, 15
     04 41    |       add al, 'A'
     ee       |       out dx, al
     e2 f3    |       loop next
     b0 0a    |       mov al, 10
     ee       |       out dx, al
     b0 2a    |       mov al, 42
     e6 f4    |       out 0xf4, al
`,
);
/** Prompts, and goes on for ever. */
const spins = guest(
  16,
  `
     ba f8 03 |       mov dx, 0x3f8
     b0 3e    |       mov al, '>'
     ee       |       out dx, al
     eb fe    | here: jmp here
`,
);
const crashes = guest(
  64,
  `
     48 bb 88 77 66 55 44 33 22 11 | mov rbx, 0x1122334455667788
     48 8b 03                      | mov rax, [rbx]
`,
);

const program = (name: string, { code }: { readonly code: Uint8Array }): string => scratch.file(name, code);
const account = ({ stdout }: Ran) => {
  const { elapsedMs, ...rest } = JSON.parse(stdout) as { elapsedMs: number };
  expect(elapsedMs).toBeGreaterThan(0);
  return rest;
};

describe('vmexit replay', () => {
  onEach('prints what the guest printed, and ends as the run ended, without the guest’s file', (hv) => {
    const file = program('tells', tells);
    const ran = vmexit(['run', file, '--backend', hv.backend, '--record', recording]);
    expect([ran.status, ran.stderr]).toEqual([42, '']);
    expect(ran.stdout).toMatch(/^[A-P]{8}\n$/);
    rmSync(file);
    expect(vmexit(['replay', recording])).toEqual(ran);
  });

  it('gives the account of the run, and the trace that it would have had', () => {
    const file = program('tells', tells);
    const [first, second] = [join(scratch.path, 'first'), join(scratch.path, 'second')];
    const options = ['--backend', 'sim', '--trace', first, '--record', recording, '--json'];
    const ran = vmexit(['run', file, ...options]);
    const replayed = vmexit(['replay', recording, '--json', '--trace', second]);
    expect([account(replayed), replayed.stderr]).toEqual([account(ran), ran.stderr]);
    expect(readFileSync(second, 'utf8')).toBe(readFileSync(first, 'utf8'));
    expect(account(ran)).toMatchObject({ backend: 'sim', status: 42, exits: { IO: 10 } });
  });

  it('runs several processors in the order in which they ran', () => {
    const file = program('tells', tells);
    const options = ['--backend', 'sim', '--cpus', '2', '--record', recording];
    const ran = vmexit(['run', file, ...options]);
    expect([ran.status, ran.stdout.length]).toEqual([42, expect.any(Number)]);
    expect(vmexit(['replay', recording])).toEqual(ran);
  });

  it('ends by the time limit where the run did, in no time', () => {
    const ran = vmexit([
      'run',
      program('spins', spins),
      '--backend',
      'sim',
      '--timeout',
      '0.4',
      '--record',
      recording,
    ]);
    expect(ran).toMatchObject({ status: 124, stdout: '>' });
    expect(vmexit(['replay', recording])).toEqual(ran);
  });

  it('reports the crash that the run reported', () => {
    const file = program('crashes', crashes);
    const ran = vmexit(['run', file, '--mode', 'long', '--backend', 'sim', '--record', recording]);
    expect(ran.status).toBe(1);
    expect(ran.stderr).toMatch(/SHUTDOWN[\s\S]*rbx 0*1122334455667788/i);
    expect(vmexit(['replay', recording])).toEqual(ran);
  });

  it('ends as a run that Ctrl-C has ended', async () => {
    const args = ['run', program('spins', spins), '--backend', 'sim', '--record', recording];
    const running = startVmexit(args);
    await running.says(/>/);
    running.kill('SIGINT');
    expect(await running.end).toMatchObject({ status: 130 });
    expect(vmexit(['replay', recording])).toMatchObject({ status: 130, stdout: '>', stderr: '' });
  });

  it('says where a recording was cut off, with status 1', () => {
    vmexit(['run', program('tells', tells), '--backend', 'sim', '--record', recording]);
    const whole = readFileSync(recording);
    const { status, stderr } = vmexit(['replay', scratch.file('cut', whole.subarray(0, whole.length - 100))]);
    expect(status).toBe(1);
    expect(stderr).toMatch(
      /^vmexit: the replay ends after record \d+: the recording was cut off there, and /,
    );
    expect(stderr.trimEnd().split('\n')).toHaveLength(1);
  });

  it('refuses what is no recording, with status 1', () => {
    const { status, stderr } = vmexit(['replay', program('spins', spins)]);
    expect([status, stderr]).toEqual([
      1,
      expect.stringMatching(/^vmexit: recording .*: it is no recording of vmexit\n$/),
    ]);
  });
});

it.each([
  ['--private', [], /--record takes no --private: KVM keeps no log of private memory/],
  ['--trace-instructions', ['--trace', 'x'], /--record takes no --trace-instructions: it has exits/],
])('vmexit run --record refuses %s by name', (option, more, message) => {
  const { status, stderr } = vmexit(['run', 'guest', '--record', recording, option, ...more]);
  expect(status).toBe(2);
  expect(stderr).toMatch(message);
});
