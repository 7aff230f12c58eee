// Compiles src/ to dist/: few files where the source has two hundred, since loading one costs Node half a millisecond.
// What several entries need lies in chunks that they share, so a module is there once in a process. Types are
// not looked at here; tsc writes the declarations.
import { mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { rolldown } from 'rolldown';
import { packIced } from './pack-iced.mjs';

const root = resolve(dirname(fileURLToPath(import.meta.url)), '..');
const { dependencies } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'));

/** What is loaded by its path: package.json's exports, the command, and what scripts and tests use. */
const entries = [
  'index',
  'simulator',
  'uapi/index',
  'cli/main',
  'lab/index',
  'kvm/native',
  'setup/addon',
  'vmm/pager/thread',
];

const bundle = await rolldown({
  input: Object.fromEntries(entries.map((name) => [name, join(root, 'src', `${name}.ts`)])),
  platform: 'node',
  external: [/^node:/, /iced-packed\.js$/, ...Object.keys(dependencies), 'vmexit'],
  transform: { target: 'es2022' },
});
// Those of an earlier build would be packed.
rmSync(join(root, 'dist', 'chunks'), { recursive: true, force: true });
await bundle.write({
  dir: join(root, 'dist'),
  format: 'esm',
  // The code is as readable as its source, comments and names are kept: maps would be half of the package.
  sourcemap: false,
  entryFileNames: '[name].js',
  chunkFileNames: 'chunks/[name].js',
});
// Its place in dist/ is that of its declaration in src/.
mkdirSync(join(root, 'dist', 'sim'), { recursive: true });
writeFileSync(join(root, 'dist', 'sim', 'iced-packed.js'), packIced());
