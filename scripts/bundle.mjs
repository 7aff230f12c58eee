// Compiles src/ to dist/: few files where the source has two hundred, since loading one costs Node half a millisecond.
// What several entries need lies in chunks that they share, so a module is there once in a process. Types are
// not looked at here; tsc writes the declarations.
import { mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { rolldown } from 'rolldown';
import { builtins } from './builtins.mjs';
import { packIced } from './pack-iced.mjs';
import { prepareTemplates } from './prepare-templates.mjs';

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

const src = join(root, 'src');
const entryFiles = new Set(entries.map((name) => join(src, `${name}.ts`)));
const options = {
  platform: 'node',
  external: [/iced-packed\.js$/, ...Object.keys(dependencies), 'vmexit'],
  plugins: [builtins(src)],
  transform: { target: 'es2022' },
};
/** The files that an entry needs at once. */
async function filesOf(entry) {
  const alone = await rolldown({ ...options, input: join(src, `${entry}.ts`) });
  const { output } = await alone.generate({ format: 'esm' });
  const first = output.find(({ isEntry }) => isEntry);
  return new Set(first.moduleIds);
}
const [browser, node] = [await filesOf('simulator'), await filesOf('index')];

const bundle = await rolldown({
  ...options,
  input: Object.fromEntries(entries.map((name) => [name, join(src, `${name}.ts`)])),
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
  // What the package's entries need lies in as few files as they have different parts.
  codeSplitting: {
    groups: [
      { name: 'uapi', test: /\/src\/(uapi|hypervisor\/errors)/, priority: 3 },
      { name: 'core', test: (id) => browser.has(id) && !entryFiles.has(id), priority: 2 },
      { name: 'node', test: (id) => node.has(id) && !entryFiles.has(id), priority: 1 },
    ],
  },
});
// Its place in dist/ is that of its declaration in src/.
mkdirSync(join(root, 'dist', 'sim'), { recursive: true });
writeFileSync(join(root, 'dist', 'sim', 'iced-packed.js'), packIced());
writeFileSync(join(root, 'dist', 'sim', 'templates.bin'), await prepareTemplates(root));
