/** Runs the command as a user does: the compiled one, in a process of its own. */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll } from 'vitest';
import { PROGRAM_MS } from '../support/limits.ts';
import { Program } from '../support/program.ts';

export const root = fileURLToPath(new URL('../../', import.meta.url));
export const main = join(root, 'dist/cli/main.js');

/** Without what the tests' own environment says about colours and debugging. */
const { FORCE_COLOR: _, NO_COLOR: __, VMEXIT_DEBUG: ___, ...environment } = process.env;

export interface Ran {
  /** Undefined when a signal ended it. */
  readonly status: number | undefined;
  readonly stdout: string;
  readonly stderr: string;
}

export interface Options {
  readonly env?: Readonly<Record<string, string>>;
  /** Another main.js. */
  readonly main?: string;
}

export function vmexit(args: readonly string[], { env = {}, main: program = main }: Options = {}): Ran {
  const { status, stdout, stderr, error } = spawnSync(process.execPath, [program, ...args], {
    encoding: 'latin1',
    env: { ...environment, ...env },
    timeout: PROGRAM_MS,
    killSignal: 'SIGKILL',
  });
  if (error) throw error;
  return { status: status ?? undefined, stdout, stderr };
}

/** One that goes on while the test does something. */
export const startVmexit = (args: readonly string[]): Program =>
  new Program([main, ...args], { env: environment });

/** A folder for the test file's own files, removed after it. */
export function scratchFolder(): { path: string; file(name: string, content: Uint8Array | string): string } {
  const path = mkdtempSync(join(tmpdir(), 'vmexit-cli-'));
  afterAll(() => rmSync(path, { recursive: true }));
  return {
    path,
    file(name, content) {
      const file = join(path, name);
      writeFileSync(file, content);
      return file;
    },
  };
}
