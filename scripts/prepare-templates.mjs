// The simulator's prepared templates: src/sim/cpu/translate/prepare.ts, compiled by itself and asked for them.
import { mkdtempSync, rmSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { rolldown } from 'rolldown';

/** @param root the clone */
export async function prepareTemplates(root) {
  const folder = mkdtempSync(join(tmpdir(), 'vmexit-templates-'));
  try {
    const bundle = await rolldown({
      input: join(root, 'src', 'sim', 'prepare.ts'),
      platform: 'node',
      transform: { target: 'es2022' },
    });
    const file = join(folder, 'prepare.mjs');
    await bundle.write({ file, format: 'esm' });
    const { templates } = await import(pathToFileURL(file).href);
    return templates(createRequire(import.meta.url)('iced-x86'));
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}
