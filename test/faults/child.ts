/**
 * Programs that may crash or hang run in a node of their own: then that is a failure of one case, and not the end of
 * the runner. A program is a .mjs file beside the tests that takes the name of a scenario and prints one line of JSON.
 */
import { fileURLToPath } from 'node:url';
import { describeEnd, type Ended, Program, type ProgramOptions } from '../support/program.ts';

export const pathOf = (file: string): string => fileURLToPath(new URL(file, import.meta.url));

/** Runs `node --expose-gc ARGS` to its end. */
export const node = (args: readonly string[], options?: ProgramOptions): Promise<Ended> =>
  new Program(['--expose-gc', ...args], options).end;

/** The JSON that a scenario printed. Fails with what it said if it did not come to its end. */
// biome-ignore lint/suspicious/noExplicitAny: each scenario has a shape of its own, which its case states.
export async function scenario(file: string, name: string, options?: ProgramOptions): Promise<any> {
  const ended = await node([pathOf(file), name], options);
  if (ended.status === 0) return JSON.parse(ended.stdout);
  throw new Error(`${name} ended with ${describeEnd(ended)}`);
}
