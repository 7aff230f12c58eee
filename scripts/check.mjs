// Everything that a contributor must pass, cheapest first: format and lint (TypeScript, C++), types, tests.
// With --fix it formats instead, and runs nothing else.
import { spawnSync } from 'node:child_process';
import { readdirSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = resolve(dirname(fileURLToPath(import.meta.url)), '..');
const fix = process.argv.includes('--fix');
const cxx = ['native', 'bench', 'bench/sim', 'bench/sim/programs', 'scripts']
  .flatMap((folder) => readdirSync(join(root, folder)).map((name) => join(folder, name)))
  .filter((name) => /\.(c|cc|h)$/.test(name));

const steps = fix
  ? [
      ['biome', 'npx', ['biome', 'check', '--write', '.']],
      ['clang-format', 'npx', ['clang-format', '-i', ...cxx]],
    ]
  : [
      ['setup, without a warning', process.execPath, ['scripts/setup.mjs', '--strict']],
      ["the addon's symbols", process.execPath, ['scripts/check-symbols.mjs']],
      ['biome', 'npx', ['biome', 'check', '--error-on-warnings', '.']],
      ['clang-format', 'npx', ['clang-format', '--dry-run', '--Werror', ...cxx]],
      ['types of the tests and examples', 'npx', ['tsc', '-p', 'test']],
      ['tests', 'npx', ['vitest', 'run', '--project', 'quick']],
    ];

for (const [title, command, args] of steps) {
  process.stderr.write(`check: ${title}\n`);
  const { status } = spawnSync(command, args, { cwd: root, stdio: 'inherit' });
  if (status !== 0) {
    process.stderr.write(`check: ${title} failed${fix ? '' : ' (npm run format mends formatting)'}\n`);
    process.exit(status ?? 1);
  }
}
