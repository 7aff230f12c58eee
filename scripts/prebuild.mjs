// Makes the addons that the package brings, prebuilds/linux-x64-{glibc,musl}/vmexit.node: npm run prebuild, which sets up
// the clone first. The one for glibc is what `npm run setup` built. The one for musl is compiled against musl's C
// headers (Debian's musl-tools) and g++'s own C++ headers, and linked as musl-gcc links; libstdc++ is the one that Node
// itself brings on either. Nothing is kept that scripts/check-symbols.mjs refuses.
import { execFileSync } from 'node:child_process';
import { copyFileSync, cpSync, existsSync, mkdirSync, mkdtempSync, rmSync, symlinkSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { buildAddon } from '../dist/setup/addon.js';
import { problems } from './check-symbols.mjs';

const root = resolve(dirname(fileURLToPath(import.meta.url)), '..');
const gcc = (...args) => execFileSync('g++', args, { encoding: 'utf8' }).trim();

async function buildForMusl(folder) {
  const target = gcc('-dumpmachine');
  const musl = target.replace(/gnu$/, 'musl');
  const specs = `/usr/lib/${musl}/musl-gcc.specs`;
  if (!existsSync(specs)) throw new Error(`${specs} is not there: apt-get install musl-tools`);
  for (const part of ['native', 'binding.gyp', 'package.json']) {
    cpSync(join(root, part), join(folder, part), { recursive: true });
  }
  symlinkSync(join(root, 'node_modules'), join(folder, 'node_modules'));
  // The kernel's headers alone: glibc's lie beside them.
  const kernel = join(folder, 'kernel');
  mkdirSync(kernel);
  symlinkSync('/usr/include/linux', join(kernel, 'linux'));
  symlinkSync('/usr/include/asm-generic', join(kernel, 'asm-generic'));
  symlinkSync(`/usr/include/${target}/asm`, join(kernel, 'asm'));

  const version = gcc('-dumpversion');
  const headers = [
    `/usr/include/c++/${version}`,
    `/usr/include/${target}/c++/${version}`,
    `/usr/include/${musl}`,
    gcc('-print-file-name=include'),
    kernel,
  ];
  const CXX = ['g++', '-nostdinc', ...headers.map((path) => `-isystem ${path}`)];
  return await buildAddon({
    folder,
    env: {
      CXX: [...CXX, `-include ${join(root, 'scripts', 'musl.h')}`].join(' '),
      LINK: `g++ -specs=${specs}`,
    },
    report: (text) => process.stderr.write(text),
  });
}

const work = mkdtempSync(join(tmpdir(), 'vmexit-prebuild-'));
try {
  const built = { glibc: join(root, 'build', 'Release', 'vmexit.node'), musl: await buildForMusl(work) };
  for (const [libc, file] of Object.entries(built)) {
    const wrong = problems(file);
    if (wrong.length > 0) throw new Error(`the addon for ${libc} ${wrong.join('; it ')}`);
    const folder = join(root, 'prebuilds', `linux-x64-${libc}`);
    mkdirSync(folder, { recursive: true });
    copyFileSync(file, join(folder, 'vmexit.node'));
    execFileSync('strip', ['--strip-unneeded', join(folder, 'vmexit.node')]);
  }
} finally {
  rmSync(work, { recursive: true, force: true });
}
