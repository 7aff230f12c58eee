/** The README's first program is run as a reader would: as it stands, by node, against the compiled package. */
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect, it } from 'vitest';
import { openHypervisor } from '../../src/index.ts';

const root = fileURLToPath(new URL('../../', import.meta.url));
const readme = readFileSync(join(root, 'README.md'), 'utf8');
const [first] = readme.split('```js\n').slice(1);
const program = first!.split('```')[0]!;

it('has a first program of fewer than 25 lines that does what its comment says', () => {
  using hv = openHypervisor();
  expect(hv.backend).toBe('kvm');
  expect(program.trimEnd().split('\n').length).toBeLessThan(25);
  // Inside the tree, so that node finds the package by its own name.
  const folder = mkdtempSync(join(root, 'test', '.readme-'));
  try {
    writeFileSync(join(folder, 'first.mjs'), program);
    const output = execFileSync(process.execPath, [join(folder, 'first.mjs')], {
      encoding: 'utf8',
      timeout: 15_000,
    });
    expect(output).toBe('9876543210 HLT\n');
    expect(program).toContain(`// ${output.trim()}`);
  } finally {
    rmSync(folder, { recursive: true });
  }
});
