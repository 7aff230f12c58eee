import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';

const root = new URL('../../', import.meta.url).pathname;

/** What can run in a browser: all of these folders, the core of the VMM layer, and the entry `vmexit/sim`. */
const folders = ['src/uapi', 'src/hypervisor', 'src/sim'];
const vmm = [
  'bus',
  'conversion',
  'descriptors',
  'devices',
  'disassemble',
  'dirty-pages',
  'elf',
  'formats',
  'guest',
  'image',
  'machine',
  'memory-faults',
  'modes',
  'page-tables',
  'policy',
  'progress-guard',
  'registers',
  'run-loop',
  'run-loops',
  'snapshot/cpuid',
  'snapshot/restore',
  'snapshot/schema',
  'snapshot/state',
  'threads/ask-owner',
  'threads/index',
  'threads/memory-owner',
  'threads/protocol',
].map((name) => `src/vmm/${name}.ts`);
/** All of a recording but its file. */
const replay = [
  'codec',
  'errors',
  'mapping',
  'memory-watch',
  'outcomes',
  'page-model',
  'playback',
  'record',
  'records',
  'replay',
  'waist',
].map((name) => `src/replay/${name}.ts`);

const files = [
  ...folders.flatMap((folder) =>
    readdirSync(join(root, folder), { recursive: true, encoding: 'utf8' })
      .filter((name) => name.endsWith('.ts'))
      .map((name) => join(folder, name)),
  ),
  ...vmm,
  ...replay,
  'src/core.ts',
  'src/simulator.ts',
];

/** Made when the package is compiled; a page in a browser shows that it needs nothing of Node's (test/package). */
const made = 'src/sim/iced-packed.js';

/** The modules that a file needs when it runs: types are gone by then. */
function imports(source: string): string[] {
  const statements = source.matchAll(/^\s*(?:import|export)\s(?!type\s)[^;]*?from\s+'([^']+)'/gm);
  const bare = source.matchAll(/^\s*import\s+'([^']+)'/gm);
  const dynamic = source.matchAll(/\bimport\('([^']+)'\)/g);
  return [...statements, ...bare, ...dynamic].map(([, module]) => module!);
}

describe('what can run in a browser', () => {
  test.each(files)('%s imports only what can too, and uses nothing of Node’s', (file) => {
    const source = readFileSync(join(root, file), 'utf8');
    for (const module of imports(source)) {
      expect(module, 'a file of this project').toMatch(/^\.{1,2}\//);
      const target = join(file, '..', module);
      expect([...files, made], target).toContain(target);
    }
    const code = source.replace(/\/\*[\s\S]*?\*\/|\/\/.*$/gm, '').replace(/'[^'\n]*'|`[^`]*`/g, '""');
    expect(code).not.toMatch(/(?<!\.)\b(?:Buffer|process|__dirname)\b|(?<!\.)\brequire\(|\bglobal\./);
  });
});
