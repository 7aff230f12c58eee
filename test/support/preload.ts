/** A library of test/support that stands between a program and libc (LD_PRELOAD), in a folder of its own. */
import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

export const support = (name: string): string => fileURLToPath(new URL(name, import.meta.url));

export class Preload {
  /** For what the program and the test exchange. */
  readonly folder: string;
  /** Of a program that has the library. */
  readonly env: NodeJS.ProcessEnv;

  /** @param source a file of test/support, without its ending; there must be a compiler */
  constructor(source: string) {
    this.folder = mkdtempSync(join(tmpdir(), `vmexit-${source}-`));
    const library = join(this.folder, `${source}.so`);
    execFileSync('gcc', ['-shared', '-fPIC', '-o', library, support(`${source}.c`), '-ldl']);
    this.env = { ...process.env, LD_PRELOAD: library };
  }

  [Symbol.dispose](): void {
    rmSync(this.folder, { recursive: true });
  }
}
