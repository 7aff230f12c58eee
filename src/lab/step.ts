/** One program of a build: run to its end, its output logged and counted, ended with all its children. */
import { spawn } from 'node:child_process';
import { writeSync } from 'node:fs';
import { cp } from 'node:fs/promises';
import { LabError } from './errors.ts';
import type { Report } from './progress.ts';

/** What the steps of one build share. */
export interface Work {
  readonly cache: string;
  /** All that the build makes, removed at its end. */
  readonly folder: string;
  readonly log: string;
  /** Where the log of the last failed step stays. */
  readonly failedLog: string;
  readonly fd: number;
  readonly jobs: number;
  readonly options: {
    readonly signal?: AbortSignal;
    readonly report?: Report;
    readonly onLine?: (line: string) => void;
  };
}

/** Only this, for an outer make or a shell may have variables that change what make builds. */
function buildEnvironment(): NodeJS.ProcessEnv {
  const { PATH, HOME, TMPDIR } = process.env;
  // What /proc/version says of who built the kernel is not this machine's name.
  return { PATH, HOME, TMPDIR, LC_ALL: 'C', KBUILD_BUILD_USER: 'vmexit', KBUILD_BUILD_HOST: 'lab' };
}

/** Runs one program of the build to its end, its output going to the log. */
export async function step(
  work: Work,
  stage: string,
  command: string,
  args: string[],
  { cwd, env }: { cwd?: string; env?: NodeJS.ProcessEnv } = {},
): Promise<void> {
  const { signal, report, onLine } = work.options;
  signal?.throwIfAborted();
  report?.(stage);
  writeSync(work.fd, `\n$ ${command} ${args.join(' ')}\n`);

  const child = spawn(command, args, {
    ...(cwd ? { cwd } : {}),
    env: env ?? buildEnvironment(),
    stdio: ['ignore', 'pipe', 'pipe'],
    // A group of its own, so that make's children end with it.
    detached: true,
  });
  let objects = 0;
  const read = (stream: NodeJS.ReadableStream) => {
    let rest = '';
    stream.on('data', (chunk: Buffer) => {
      writeSync(work.fd, chunk);
      const lines = (rest + chunk).split('\n');
      rest = lines.pop()!;
      for (const line of lines) {
        onLine?.(line);
        if (/^ {2}(CC|AS) /.test(line)) objects++;
      }
      report?.(stage, objects > 0 ? `${objects} object files` : undefined);
    });
  };
  read(child.stdout);
  read(child.stderr);

  const end = (name: NodeJS.Signals) => {
    try {
      if (child.pid) process.kill(-child.pid, name);
    } catch {
      // the group is gone already
    }
  };
  let killer: NodeJS.Timeout | undefined;
  const abort = () => {
    end('SIGTERM');
    killer = setTimeout(end, 5_000, 'SIGKILL');
  };
  const exit = () => end('SIGKILL');
  signal?.addEventListener('abort', abort, { once: true });
  process.once('exit', exit);
  try {
    const status = await new Promise<number | string>((resolve, reject) => {
      child.once('error', reject);
      child.once('close', (code, name) => resolve(code ?? name ?? 'unknown'));
    });
    signal?.throwIfAborted();
    if (status === 0) return;
    await cp(work.log, work.failedLog);
    throw new LabError(
      'ERR_LAB_BUILD',
      `${stage} failed: ${command} ended with ${status}\n  the log is ${work.failedLog}`,
    );
  } finally {
    clearTimeout(killer);
    signal?.removeEventListener('abort', abort);
    process.off('exit', exit);
  }
}
