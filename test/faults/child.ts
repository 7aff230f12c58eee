/**
 * Programs that may crash or hang run in a node of their own: then that is a failure of one case, and not the end of
 * the runner. A program is a .mjs file beside the tests that takes the name of a scenario and prints one line of JSON.
 */
import { spawn } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { type TestContext, it as test } from 'vitest';
import { openHypervisor, UnavailableError } from '../../src/index.ts';
import { inLab } from '../support/run.ts';

export interface Ending {
  readonly status: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** How long a program may take before it is killed. */
const LIMIT_MS = inLab ? 120_000 : 30_000;

export interface Options {
  readonly limitMs?: number;
}

export const pathOf = (file: string): string => fileURLToPath(new URL(file, import.meta.url));

/** Runs `node --expose-gc ARGS` to its end. */
export function node(args: readonly string[], { limitMs = LIMIT_MS }: Options = {}): Promise<Ending> {
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, ['--expose-gc', ...args], {
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    let stdout = '';
    let stderr = '';
    child.stdout.setEncoding('utf8').on('data', (text) => {
      stdout += text;
    });
    child.stderr.setEncoding('utf8').on('data', (text) => {
      stderr += text;
    });
    // A vCPU in KVM_RUN minds no other signal.
    const timer = setTimeout(() => child.kill('SIGKILL'), limitMs);
    child.on('error', reject);
    child.on('close', (status, signal) => {
      clearTimeout(timer);
      resolve({ status, signal, stdout, stderr });
    });
  });
}

/** The JSON that a scenario printed. Fails with what it said if it did not come to its end. */
// biome-ignore lint/suspicious/noExplicitAny: each scenario has a shape of its own, which its case states.
export async function scenario(file: string, name: string, options?: Options): Promise<any> {
  const { status, signal, stdout, stderr } = await node([pathOf(file), name], options);
  if (status === 0) return JSON.parse(stdout);
  throw new Error(`${name} ended with ${signal ?? `status ${status}`}\n${stdout}${stderr}`);
}

let unavailable: string | undefined;
try {
  openHypervisor({ backend: 'kvm' }).close();
} catch (error) {
  if (inLab || !(error instanceof UnavailableError)) throw error;
  unavailable = error.message;
}

/** A case that needs KVM; elsewhere it is skipped with the reason. */
export function it(
  sentence: string,
  shows: (context: TestContext) => Promise<void>,
  limitMs = LIMIT_MS,
): void {
  test(sentence, { timeout: limitMs + 10_000 }, async (context) => {
    context.skip(unavailable !== undefined, unavailable);
    await shows(context);
  });
}
