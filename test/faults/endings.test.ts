/**
 * How processes and threads end while vCPUs run, and what they start meanwhile, on whichever backend this host has. The
 * programs are in endings.mjs.
 */
import { describe, expect, it } from 'vitest';
import { noCompiler, notLinux, whyNot } from '../support/host.ts';
import { TEST_MS } from '../support/limits.ts';
import { Preload } from '../support/preload.ts';
import { Program } from '../support/program.ts';
import { node, pathOf, scenario } from './child.ts';

const run = (name: string) => scenario('endings.mjs', name);
const test = (sentence: string, shows: () => Promise<void>) => it(sentence, shows, TEST_MS);

const RUNNING = 'ERR_KVM_VCPU_RUNNING';
const CLOSED = 'ERR_KVM_CLOSED';

describe('while vCPUs run', () => {
  test('a VM may be closed, and then they; one that a worker has too runs on there', async () => {
    expect(await run('closes')).toEqual({
      running: Array(3).fill(RUNNING),
      closed: Array(3).fill(CLOSED),
      end: 'STOPPED',
      leaked: 0,
    });
  });

  test('who serves an exit may close all that is under it', async () => {
    expect(await run('closesInside')).toEqual({ ends: Array(4).fill(CLOSED), leaked: 0 });
  });

  for (const [name, where, message] of [
    ['handlerThrows', 'a handler', 'of a handler'],
    ['handlerRejects', 'what a handler has promised', 'of a handler'],
    ['loopThrows', "an iterator's loop", 'of a loop'],
    ['timerThrows', 'a timer', 'of a timer'],
    ['workerThrows', "a worker's loop", "the worker's own"],
  ] as const) {
    test(`an exception that nobody catches, from ${where}, ends the process and is told`, async () => {
      const { status, signal, stdout, stderr } = await node([pathOf('endings.mjs'), name]);
      expect({ status, signal, stdout }, stderr).toEqual({ status: 1, signal: undefined, stdout: '' });
      expect(stderr).toContain(`Error: ${message}`);
    });
  }

  test('an exception that is heard ends no other vCPU, and its own runs on when asked to', async () => {
    expect(await run('isHeard')).toEqual({
      heard: ['of a handler', "the worker's own"],
      again: ['IO', 'IO'],
      running: [RUNNING],
      ends: ['STOPPED'],
    });
  });

  for (const signal of ['SIGTERM', 'SIGINT'] as const) {
    test(`${signal} ends the process where nobody listens`, async () => {
      const program = new Program(['--expose-gc', pathOf('endings.mjs'), 'waits']);
      await program.says(/running/);
      program.kill(signal);
      const ended = await program.end;
      expect({ status: ended.status, signal: ended.signal }, ended.hung).toEqual({
        status: undefined,
        signal,
      });
    });
  }

  test('a listener of SIGTERM has its turn, and shuts down in order', async () => {
    const program = new Program(['--expose-gc', pathOf('endings.mjs'), 'listens']);
    await program.says(/running/);
    program.kill('SIGTERM');
    const { status, stdout } = await program.end;
    expect({ status, stdout }).toEqual({ status: 0, stdout: 'running\nSTOPPED\n' });
  });

  test('children are started in every way: they inherit nothing, and may have VMs of their own', async () => {
    const { own, ...rest } = await run('children');
    expect(own).toEqual({ exit: 'IO', onKvm: whyNot('kvm') === undefined });
    expect(rest).toEqual({
      ofKvm: null,
      goesOn: [true, true, true],
      status: 0,
      running: [RUNNING],
      ends: Array(2).fill('STOPPED'),
    });
  });

  it('a library may fork without exec: the child is served by no vCPU, and ends', async (context) => {
    const why = notLinux ?? noCompiler;
    context.skip(why !== undefined, why);
    using preload = new Preload('forks');
    expect(await scenario('endings.mjs', 'forks', { env: preload.env })).toEqual({
      served: ['ok', 'ok'],
      running: [RUNNING],
      ends: ['STOPPED'],
    });
  });

  test('of two environments with VMs of their own one may be terminated: the other goes on', async () => {
    expect(await run('environments')).toEqual({ rounds: [true, true], leaked: 0 });
  });
});
