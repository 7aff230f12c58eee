/** What a user gets: a clone without anything built, the tarball that npm packs of it, and a project that installs that. */
import { spawnSync } from 'node:child_process';
import { cpSync, mkdirSync, mkdtempSync, readdirSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

export const root = fileURLToPath(new URL('../../', import.meta.url));

/** A command that takes longer hangs. */
const LIMIT_MS = 600_000;

export interface Ran {
  readonly status: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** Runs a command without what npm and vitest have put into the environment of these tests. */
export function run(cwd: string, command: string, args: readonly string[], env: NodeJS.ProcessEnv = {}): Ran {
  const own = Object.entries(process.env).filter(
    ([name]) => !/^(npm_|VITEST|NODE_ENV$|NODE_OPTIONS$)/i.test(name),
  );
  const { status, stdout, stderr, error } = spawnSync(command, args, {
    cwd,
    encoding: 'utf8',
    env: { ...Object.fromEntries(own), ...env },
    timeout: LIMIT_MS,
    killSignal: 'SIGKILL',
  });
  if (error) throw error;
  return { status, stdout, stderr };
}

/** The same, of a command that must succeed: what it printed. */
export function must(cwd: string, command: string, args: readonly string[], env?: NodeJS.ProcessEnv): string {
  const { status, stdout, stderr } = run(cwd, command, args, env);
  if (status === 0) return stdout;
  throw new Error(`${command} ${args.join(' ')} ended with ${status}\n${stdout}${stderr}`);
}

/** npm writes the first of these files last. */
const INSTALL =
  '[ node_modules/.package-lock.json -nt package-lock.json ] || npm ci --ignore-scripts --loglevel=error';

/**
 * Where what these tests work with is installed, when it is needed first: it has a package.json of its own. Test files
 * that run at the same time wait for the one that installs.
 */
export function installTools(): string {
  const folder = join(root, 'test', 'package', 'tools');
  must(folder, 'flock', ['package.json', 'sh', '-c', INSTALL]);
  return join(folder, 'node_modules');
}

/** A folder for all of it, that is gone when it is disposed. */
export class Workplace implements Disposable {
  readonly path = mkdtempSync(join(tmpdir(), 'vmexit-package-'));

  /** A PATH with node and nothing else: no npm, no compiler. */
  readonly bare = join(this.path, 'bin');

  constructor() {
    mkdirSync(this.bare);
    symlinkSync(process.execPath, join(this.bare, 'node'));
  }

  /** The files that git has or would take, as they are now, and nothing that was built from them. */
  clone(): string {
    const folder = join(this.path, 'clone');
    const files = must(root, 'git', ['ls-files', '-co', '--exclude-standard', '-z'])
      .split('\0')
      .filter(Boolean);
    for (const file of files) cpSync(join(root, file), join(folder, file));
    return folder;
  }

  /** The tarball that `npm pack` makes of a folder; of this clone as it is built now with --ignore-scripts. */
  pack(folder: string, ...flags: readonly string[]): string {
    must(folder, 'npm', ['pack', '--pack-destination', this.path, ...flags]);
    return join(this.path, readdirSync(this.path).find((name) => name.endsWith('.tgz'))!);
  }

  emptyProject(name: string): string {
    const folder = join(this.path, name);
    mkdirSync(folder);
    writeFileSync(join(folder, 'package.json'), '{ "private": true, "type": "module" }\n');
    return folder;
  }

  /** A project with the package in it. */
  project(tarball: string): string {
    const folder = this.emptyProject('project');
    must(folder, 'npm', ['install', '--ignore-scripts', '--no-audit', '--no-fund', tarball]);
    return folder;
  }

  [Symbol.dispose](): void {
    rmSync(this.path, { recursive: true, force: true });
  }
}
