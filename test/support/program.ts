/** A program in a process of its own. What waits for its words ends with it, and then says what it had printed. */
import { type ChildProcessByStdio, spawn } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import type { Readable } from 'node:stream';
import { onTestFinished } from 'vitest';
import { PROGRAM_MS } from './limits.ts';

export interface Ended {
  /** Undefined when a signal ended it. */
  readonly status: number | undefined;
  /** The signal that ended it, if one did. */
  readonly signal: NodeJS.Signals | undefined;
  readonly stdout: string;
  readonly stderr: string;
  /** Where its threads stood when its time was over and it was killed. */
  readonly hung?: string | undefined;
}

export interface ProgramOptions {
  /** The program; this node without it. */
  readonly command?: string;
  readonly env?: NodeJS.ProcessEnv;
  readonly cwd?: string;
  /** After so many milliseconds it is killed. */
  readonly limitMs?: number;
}

export class Program {
  /** What it has printed up to now, a character a byte. */
  stdout = '';
  stderr = '';
  /** When it has ended, and its output with it. */
  readonly end: Promise<Ended>;
  readonly child: ChildProcessByStdio<null, Readable, Readable>;
  #ended: Ended | undefined;
  #hung: string | undefined;
  /** Called whenever something was printed, and at the end. */
  readonly #listeners = new Set<() => void>();

  /** Starts it, within a test: with that it is killed. */
  constructor(args: readonly string[], options: ProgramOptions = {}) {
    const { command = process.execPath, env = process.env, cwd, limitMs = PROGRAM_MS } = options;
    this.child = spawn(command, args, { env, cwd, stdio: ['ignore', 'pipe', 'pipe'] });
    const watchdog = setTimeout(() => {
      this.#hung = `after ${limitMs} ms its threads stood in ${stacksOf(this.child.pid)}`;
      // A vCPU in KVM_RUN minds no other signal.
      this.child.kill('SIGKILL');
    }, limitMs).unref();
    onTestFinished(() => {
      this.child.kill('SIGKILL');
    });
    for (const name of ['stdout', 'stderr'] as const) {
      this.child[name].setEncoding('latin1').on('data', (text: string) => {
        this[name] += text;
        this.#tell();
      });
    }
    this.end = new Promise((resolve, reject) => {
      this.child.on('error', reject);
      this.child.on('close', (status, signal) => {
        clearTimeout(watchdog);
        const { stdout, stderr } = this;
        const how = { status: status ?? undefined, signal: signal ?? undefined };
        this.#ended = { ...how, stdout, stderr, hung: this.#hung };
        resolve(this.#ended);
        this.#tell();
      });
    });
  }

  #tell(): void {
    for (const listener of this.#listeners) listener();
  }

  /** What `find` finds in what it has printed, once it does. @throws Error with all of it when it ends before */
  async until<T>(find: (program: this) => T | undefined, what: string): Promise<T> {
    for (;;) {
      const found = find(this);
      if (found !== undefined) return found;
      if (this.#ended !== undefined) throw new Error(`it ended before ${what}: ${describeEnd(this.#ended)}`);
      await new Promise<void>((resolve) => {
        const listener = () => {
          this.#listeners.delete(listener);
          resolve();
        };
        this.#listeners.add(listener);
      });
    }
  }

  /** The words, once it has printed them. @throws Error with what it has printed when it ends before */
  says(words: RegExp, where: 'stdout' | 'stderr' = 'stdout'): Promise<RegExpExecArray> {
    return this.until((program) => words.exec(program[where]) ?? undefined, `it said ${words} on ${where}`);
  }

  kill(signal: NodeJS.Signals): void {
    this.child.kill(signal);
  }
}

export const describeEnd = ({ status, signal, stdout, stderr, hung }: Ended): string =>
  `${signal ?? `status ${status}`}${hung === undefined ? '' : `; ${hung}`}\nstdout: ${stdout}\nstderr: ${stderr}`;

/** The innermost functions of the kernel that each of its threads is in; only root may know. */
function stacksOf(pid: number | undefined): string {
  const tasks = `/proc/${pid}/task`;
  try {
    const stacks = readdirSync(tasks).map((tid) => {
      const name = readFileSync(`${tasks}/${tid}/comm`, 'latin1').trim();
      const functions = readFileSync(`${tasks}/${tid}/stack`, 'latin1').match(/\w+(?=\+0x)/g) ?? [
        'user mode',
      ];
      return `${name}: ${functions.slice(0, 5).join(' < ')}`;
    });
    return [...new Set(stacks)].join(', ');
  } catch (error) {
    return `what cannot be known (${(error as Error).message})`;
  }
}
