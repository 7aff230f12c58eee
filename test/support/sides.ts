/** The sides of a migration, each in a process of its own (faults/migration.mjs), and the guest that wanders. */
import { createHash } from 'node:crypto';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, onTestFinished } from 'vitest';
import type { BackendName } from '../../src/index.ts';
import { pathOf } from '../faults/child.ts';
import { PROGRAM_MS } from './limits.ts';
import { Program } from './program.ts';
import { wandered, wanderer } from './wanderer.ts';

export const PAGES = 256;
/** The program's own memory comes before the pages that it wanders over. */
export const RAM_PAGES = 256;
export const STEPS = 700;
/** How long a side waits whose silent peer is what the case is about, and any other. */
const SHORT_MS = 2000;
const LONG_MS = PROGRAM_MS;
export const limitFor = (says: RegExp): number =>
  /said nothing|has not (come|said)/.test(says.source) ? SHORT_MS : LONG_MS;

/** An address where nobody listens yet, for as long as the test lasts. */
export function fresh(): string {
  const folder = mkdtempSync(join(tmpdir(), 'vmexit-migration-'));
  onTestFinished(() => rmSync(folder, { recursive: true, force: true }));
  return `unix:${join(folder, 'socket')}`;
}
export const pathOfSocket = (address: string) => address.slice('unix:'.length);
const code = Buffer.from(wanderer.code).toString('hex');

// biome-ignore lint/suspicious/noExplicitAny: what is told has a shape of its own, which its case states.
export type Told = any;

/** A side of a migration in a process of its own, and what it tells. */
export class Side {
  readonly #program: Program;
  #read = 0;
  readonly #told: Told[] = [];

  constructor(options: object) {
    this.#program = new Program([pathOf('migration.mjs'), JSON.stringify(options)]);
  }

  /** What it tells of an event, once it does. @throws Error with all that it has told when it ends before */
  tells(event: string): Promise<Told> {
    return this.#program.until(({ stdout }) => {
      const end = stdout.lastIndexOf('\n') + 1;
      for (const line of stdout.slice(this.#read, end).split('\n'))
        if (line !== '') this.#told.push(JSON.parse(line));
      this.#read = end;
      return this.#told.find((told) => told.event === event);
    }, `it told of '${event}'`);
  }
  /** Its end, which must be a clean one. */
  async ends(): Promise<void> {
    const { signal, status, stderr } = await this.#program.end;
    expect({ signal, status, stderr }).toEqual({ status: 0, stderr: '' });
  }
  async dies(): Promise<void> {
    expect((await this.#program.end).signal).toBe('SIGKILL');
  }
  kill(): void {
    this.#program.kill('SIGKILL');
  }
}
export const sending = (backend: BackendName, to: string, more: object = {}) =>
  new Side({
    role: 'send',
    backend,
    to,
    code,
    pages: PAGES,
    steps: STEPS,
    stopAt: 300,
    timeoutMs: LONG_MS,
    ...more,
  });
export const receiving = (backend: BackendName, at: string, more: object = {}) =>
  new Side({ role: 'receive', backend, at, timeoutMs: LONG_MS, ...more });

/** What a guest that was never interrupted says and leaves. */
export function undisturbed(pages = PAGES, steps = STEPS) {
  const { sum, words } = wandered(pages, steps);
  const hash = createHash('sha256');
  for (const word of words) hash.update(new BigUint64Array([word]));
  return { reason: 'stop', sum: `${sum}`, words: hash.digest('hex') };
}
