// What the addon may ask of the system that loads it: node scripts/check-symbols.mjs [FILE]..., the built addon without
// one. Refuses each symbol, weak ones and data too, of a version above the limit, and each library that is not listed.
import { execFileSync } from 'node:child_process';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';

/** RHEL 8 and Ubuntu 18.10 have these: glibc 2.28 and GCC 8's libraries. Node 20 asks for no less of glibc. */
const LIMITS = { GLIBC: '2.28', GLIBCXX: '3.4.25', CXXABI: '1.3.11', GCC: '7.0.0' };

/** All of them are in a Node process already. musl's loader takes libc.so for itself. */
const LIBRARIES = {
  glibc: [
    'libstdc++.so.6',
    'libgcc_s.so.1',
    'libm.so.6',
    'libpthread.so.0',
    'libc.so.6',
    'ld-linux-x86-64.so.2',
  ],
  musl: ['libstdc++.so.6', 'libgcc_s.so.1', 'libc.so'],
};

/** What Node itself has, and what crtbegin.o asks for and does without. */
const UNVERSIONED = /^(napi_|node_api_|uv_|_ITM_(de)?registerTMCloneTable$|__gmon_start__$)/;

const MUSL = '/lib/ld-musl-x86_64.so.1';

const readelf = (...args) =>
  execFileSync('readelf', ['-W', ...args], { encoding: 'utf8', env: { ...process.env, LC_ALL: 'C' } });

/** The symbols of a library's dynamic table: name, version if it has one, and whether another library has to have it. */
const symbols = (file) =>
  [...readelf('--dyn-syms', file).matchAll(/^\s+\d+: .* (UND|ABS|COM|\d+) ([^\s@]+)(?:@+(\S+))?/gm)].map(
    ([, section, name, version]) => ({ name, version, wanted: section === 'UND' }),
  );

/** Whether a version such as GLIBC_2.34 is one that this table knows, and at most its limit. */
function isOld(version) {
  const [, family, numbers] = /^([A-Z]+)_([\d.]+)$/.exec(version) ?? [];
  if (!Object.hasOwn(LIMITS, family ?? '')) return false;
  const limit = LIMITS[family].split('.').map(Number);
  const difference = numbers.split('.').map((part, i) => Number(part) - (limit[i] ?? 0));
  return (difference.find((d) => d !== 0) ?? 0) <= 0;
}

/** What is wrong with an addon, a line each. */
export function problems(file) {
  const needed = [...readelf('-d', file).matchAll(/\(NEEDED\).*\[(.*)\]/g)].map(([, name]) => name);
  const libc = needed.includes('libc.so') ? 'musl' : 'glibc';
  const known = libc === 'musl' ? new Set(symbols(MUSL).map(({ name }) => name)) : new Set();
  // The versions that the loader checks; those of the symbols say by whom they are needed.
  const versions = [...readelf('-V', file).matchAll(/Name: (\S+)\s+Flags:/g)].map(([, version]) => version);
  const wanted = symbols(file).filter((symbol) => symbol.wanted);
  if (wanted.length === 0) return ['it has no dynamic symbols'];
  return [
    ...needed.filter((name) => !LIBRARIES[libc].includes(name)).map((name) => `needs the library ${name}`),
    ...wanted
      .filter(({ version }) => version !== undefined && !isOld(version))
      .map(({ name, version }) => `needs ${name} of ${version}`),
    ...wanted
      .filter(({ name, version }) => version === undefined && !UNVERSIONED.test(name) && !known.has(name))
      .map(({ name }) => `needs ${name} of no version`),
    ...versions.filter((version) => !isOld(version)).map((version) => `needs the version ${version}`),
  ];
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const root = resolve(dirname(fileURLToPath(import.meta.url)), '..');
  const files = process.argv.slice(2);
  for (const file of files.length > 0 ? files : [join(root, 'build', 'Release', 'vmexit.node')]) {
    for (const problem of problems(file)) {
      process.stderr.write(`${file}: ${problem}\n`);
      process.exitCode = 1;
    }
  }
}
