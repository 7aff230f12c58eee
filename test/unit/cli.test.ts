import { spawnSync } from 'node:child_process';
import { closeSync, cpSync, existsSync, mkdirSync, openSync, readFileSync, symlinkSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it, vi } from 'vitest';
import { UsageError } from '../../src/cli/args.ts';
import { demo } from '../../src/cli/demo.ts';
import { probe } from '../../src/cli/probe.ts';
import { run } from '../../src/cli/run.ts';
import { features } from '../../src/index.ts';
import { noAddon, onKvm, onLinux, whyNot } from '../support/host.ts';
import { main, root, scratchFolder, vmexit } from './cli-vmexit.ts';

const scratch = scratchFolder();
const commands = ['probe', 'run', 'demo', 'lab'];
const { version } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as { version: string };

describe('vmexit', () => {
  it('tells its commands and its version on stdout', () => {
    for (const option of ['--help', '-h', 'help']) {
      const { status, stdout, stderr } = vmexit([option]);
      expect([status, stderr]).toEqual([0, '']);
      for (const name of commands) expect(stdout).toMatch(new RegExp(`^  vmexit ${name} +\\w`, 'm'));
    }
    for (const option of ['--version', '-V']) {
      expect(vmexit([option])).toEqual({ status: 0, stdout: `${version}\n`, stderr: '' });
    }
  });

  it.each(commands)('%s has help on stdout', (name) => {
    const { status, stdout, stderr } = vmexit(name === 'run' ? ['help', name] : [name, '--help']);
    expect([status, stderr]).toEqual([0, '']);
    expect(stdout).toMatch(new RegExp(`^vmexit ${name}\\b`));
    for (const line of stdout.split('\n')) expect(line.length).toBeLessThanOrEqual(120);
  });

  it.each([
    [[], /^vmexit: a command is missing: probe, run, snapshot, .*lab \(vmexit --help\)$/],
    [['fly'], /^vmexit: there is no command 'fly': there is probe, run, snapshot, .*lab/],
    [['help', 'fly'], /^vmexit: there is no command 'fly'/],
    [['toString'], /^vmexit: there is no command 'toString'/],
    [['--fly'], /^vmexit: Unknown option '--fly' \(vmexit --help\)$/],
    [['probe', '--fly'], /^vmexit: probe: Unknown option '--fly' \(vmexit probe --help\)$/],
  ])('%j is wrong usage: one line on stderr, status 2', (args, says) => {
    const { status, stdout, stderr } = vmexit(args);
    expect([status, stdout]).toEqual([2, '']);
    expect(stderr.trimEnd()).toMatch(says);
    expect(stderr.split('\n')).toHaveLength(2);
  });

  it.each([
    [probe, ['x'], /^'x' is one argument too many$/],
    [probe, ['--require', 'flying'], /there is no feature 'flying'; there is real-mode, .*private-memory/],
    [probe, ['--require'], /^--require needs a value$/],
    [probe, ['--backend', 'xen'], /^--backend is 'xen'; it must be auto or kvm or sim$/],
    [run, [], /^<guest> is missing$/],
    [run, ['a', 'b'], /^'b' is one argument too many$/],
    [run, ['a', '--memory', '12Q'], /^--memory is '12Q'; it must be a size such as 64M or 1G$/],
    [run, ['a', '--memory=-1'], /^--memory is '-1'/],
    [run, ['a', '--timeout', '0'], /^--timeout is '0'; it must be a number of seconds above 0$/],
    [run, ['a', '--timeout', '1s'], /^--timeout is '1s'/],
    [run, ['a', '--timeout', '-1'], /^--timeout is '-1'; it must be a number of seconds above 0$/],
    [run, ['a', '--timeout'], /^--timeout needs a value$/],
    [run, ['a', '--trace', '--json'], /^--trace needs a value; one that begins with '-' goes behind '='$/],
    [run, ['a', '--mode', 'virtual'], /^--mode is 'virtual'; it must be real or long$/],
    [run, ['a', '--at', '7c00h'], /^--at is '7c00h'; it must be an address such as 0x7c00$/],
    [run, ['--restore', 'a', '--at', '1'], /^--at is in the snapshot/],
    [run, ['a', '--backend', 'xen'], /^--backend is 'xen'; it must be auto or kvm/],
    [run, ['a', '--json=yes'], /does not take an argument/],
    [demo, ['--fly'], /^Unknown option '--fly'/],
  ])('a command refuses wrong usage before it does anything (%#: %j)', async (command, args, says) => {
    const error = await command(args).catch((error: unknown) => error);
    expect(error).toBeInstanceOf(UsageError);
    expect((error as Error).message).toMatch(says);
  });

  onLinux('says in one line that its output cannot be written', (context) => {
    context.skip(!existsSync('/dev/full'), 'there is no /dev/full here');
    const full = openSync('/dev/full', 'w');
    const { status, stderr } = spawnSync(process.execPath, [main, '--help'], {
      stdio: ['ignore', full, 'pipe'],
    });
    closeSync(full);
    expect(status).toBe(1);
    expect(stderr.toString()).toMatch(/^vmexit: standard output cannot be written: ENOSPC.*\n$/);
  });

  it('shows where an error comes from only when it is asked to', () => {
    const missing = ['run', join(scratch.path, 'nothing')];
    const plain = vmexit(missing);
    expect(plain).toEqual({ status: 1, stdout: '', stderr: `vmexit: ${missing[1]} does not exist\n` });
    for (const debugged of [
      vmexit([...missing, '--debug']),
      vmexit(missing, { env: { VMEXIT_DEBUG: '1' } }),
    ]) {
      expect(debugged.status).toBe(1);
      expect(debugged.stderr).toMatch(/\n {4}at .*loadGuest/);
    }
  });
});

describe('vmexit probe', () => {
  const kvmHere = whyNot('kvm') === undefined;

  it('prints one JSON object: the host, KVM, its VM types, features and capabilities', () => {
    const { status, stdout, stderr } = vmexit(['probe', '--json']);
    expect([status, stderr]).toEqual([0, '']);
    const report = JSON.parse(stdout);
    expect(Object.keys(report)).toEqual(['host', 'kvm', 'vmTypes', 'features', 'capabilities']);
    expect(report.kvm.available).toBe(kvmHere);
    expect(report.features.map(({ name }: { name: string }) => name)).toEqual(Object.keys(features));
    for (const { available, reason } of report.features) expect(available).toBe(reason === undefined);
  });

  it('prints a table for people, without colours where nobody looks', () => {
    const { status, stdout } = vmexit(['probe']);
    expect(status).toBe(0);
    expect(stdout).toMatch(new RegExp(`^Host\\n {2}kernel +${process.platform} `));
    expect(stdout).not.toContain('\x1b');
    if (kvmHere) expect(stdout).toMatch(/^ {2}long-mode +yes {2}runs a guest in 64-bit mode$/m);
    for (const line of stdout.split('\n')) expect(line.length).toBeLessThanOrEqual(120);
    expect(vmexit(['probe'], { env: { FORCE_COLOR: '1' } }).stdout).toContain('\x1b[1mHost');
    expect(vmexit(['probe'], { env: { FORCE_COLOR: '1', NO_COLOR: '1' } }).stdout).not.toContain('\x1b');
  });

  it('ends with status 1 and the reason when something required is missing', () => {
    const lacking = vmexit(['probe', '--require', 'long-mode,userfault']);
    expect([lacking.status, lacking.stdout]).toEqual([1, '']);
    // One cause is told once.
    expect(lacking.stderr).toMatch(
      kvmHere
        ? /^vmexit: this host lacks userfault: \S/
        : /^vmexit: this host lacks long-mode, userfault: \S/,
    );
    expect(lacking.stderr.split('\n')).toHaveLength(2);
  });

  it('asks the simulator, or whichever guests would run on', async () => {
    const [out, err] = [process.stdout, process.stderr].map((stream) =>
      vi.spyOn(stream, 'write').mockReturnValue(true),
    );
    try {
      expect(await probe(['--backend', 'sim', '--require', 'irqchip,long-mode'])).toBe(1);
      expect(await probe(['--backend', 'auto', '--json'])).toBe(0);
      expect(err!.mock.calls).toEqual([
        [
          expect.stringMatching(
            /^vmexit: the simulator lacks irqchip: .*ENOTTY: the simulator has no interrupt contr/,
          ),
        ],
      ]);
      const { kvm } = JSON.parse(String(out!.mock.calls[0]![0]));
      expect(kvm).toMatchObject({ available: true, backend: kvmHere ? 'kvm' : 'sim' });
      expect(kvm.fallback === undefined).toBe(kvmHere);
    } finally {
      vi.restoreAllMocks();
    }
  });

  onKvm('ends with status 0 when all that is required is there', () => {
    expect(vmexit(['probe', '--require', 'long-mode, real-mode'])).toEqual({
      status: 0,
      stdout: 'this host has long-mode, real-mode\n',
      stderr: '',
    });
    const both = vmexit(['probe', '--json', '--require', 'userfault']);
    expect(both.status).toBe(1);
    expect(JSON.parse(both.stdout).kvm.available).toBe(true);
  });

  onLinux('is of use without KVM: it says what is missing and what to do', () => {
    const device = join(scratch.path, 'no-kvm');
    const { status, stdout } = vmexit(['probe', '--device', device]);
    expect(status).toBe(0);
    expect(stdout).toMatch(/KVM +not available: \S*no-kvm does not exist: \S/);
    expect(stdout).toMatch(/npx vmexit lab build/);
    const required = vmexit(['probe', '--device', device, '--require', 'long-mode']);
    expect(required.status).toBe(1);
    expect(required.stderr).toMatch(/this host lacks long-mode: \S*no-kvm does not exist/);
    if (noAddon !== undefined) return;
    expect(vmexit(['probe', '--device', '/dev/null']).stdout).toMatch(
      /\/dev\/null cannot be opened as KVM: it is another device \(1:3/,
    );
  });

  onLinux('is of use without the addon, and so are the others: they say how to build it', () => {
    const clone = join(scratch.path, 'clone');
    mkdirSync(clone);
    for (const part of ['dist', 'lab', 'package.json'])
      cpSync(join(root, part), join(clone, part), { recursive: true });
    symlinkSync(join(root, 'node_modules'), join(clone, 'node_modules'));
    const options = { main: join(clone, 'dist/cli/main.js') };
    // A device that is there for everybody: without one, that is what is told of.
    const { status, stdout } = vmexit(['probe', '--device', '/dev/null'], options);
    expect(status).toBe(0);
    expect(stdout.replace(/\s+/g, ' ')).toMatch(
      /KVM not available: the addon is not built .* npx vmexit setup builds it/,
    );
    const json = vmexit(['probe', '--json', '--device', '/dev/null'], options);
    expect(JSON.parse(json.stdout).kvm.reason).toBe('addon');
    const why = '(the addon is not built|/dev/kvm (does not exist|may not be opened|cannot be opened))';
    const hlt = scratch.file('hlt.bin', Uint8Array.of(0xf4));
    const onKvm = vmexit(['run', '--backend', 'kvm', hlt], options);
    expect(onKvm.status).toBe(69);
    expect(onKvm.stderr).toMatch(new RegExp(`^vmexit: ${why}`));
    const run = vmexit(['run', hlt], options);
    expect(run.status).toBe(0);
    expect(run.stderr).toMatch(new RegExp(`^vmexit: sim: ${why}`));
    expect(run.stderr).not.toContain('VMEXIT_ADDON');
    const demo = vmexit(['demo'], options);
    expect(demo.status).toBe(0);
    expect(demo.stdout).toMatch(new RegExp(`^A guest on the simulator\\nand not on this host's KVM: ${why}`));
    expect(demo.stdout).toContain('Goodbye!');
  });
});
