/** vmexit setup: the addon, built in place where none that is there loads. */
import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { VmexitError } from '../hypervisor/errors.ts';
import { packageRoot } from '../package.ts';
import { buildAddon } from '../setup/addon.ts';
import { parse } from './args.ts';

const HELP = `vmexit setup [options]

Sees to the addon, by which vmexit reaches KVM. The package brings one for glibc 2.28 and later, and one for musl; where
neither loads, this builds one in the package's own folder. It needs Linux on x86-64, g++, make and python3, and Node's
headers: those beside the node binary, or node-gyp downloads them.

  --build    build it even where one loads
  --help     this text

Exit status: 0, or 1 when it cannot be built.
`;

export async function setup(argv: string[]): Promise<number> {
  const parsed = parse(argv, { build: { type: 'boolean' } }, HELP);
  if (!parsed) return 0;
  const say = (text: string) => process.stderr.write(`vmexit setup: ${text}\n`);
  const loads = tryAddon();
  if (loads.path !== undefined && !parsed.values.build) {
    say(`nothing to do: ${loads.path} loads`);
    return 0;
  }
  say('building the addon (less than a minute)');
  const built = await buildAddon({ report: (text) => process.stderr.write(text) });
  const { path, why } = tryAddon();
  if (path !== built) throw new VmexitError('ERR_KVM_SETUP', `${built} was built, and does not load: ${why}`);
  say(`${built} is built, and loads; vmexit probe tells what KVM can do on this host`);
  return 0;
}

/** Loads the addon in a process of its own, as what is loaded here would stay: its path, or why there is none. */
function tryAddon(): { readonly path: string | undefined; readonly why: string } {
  const native = pathToFileURL(join(packageRoot(), 'dist', 'kvm', 'native.js')).href;
  const program = `import { loadNative } from ${JSON.stringify(native)};
    try { console.log(loadNative().path); } catch (error) { console.error(error.message); process.exitCode = 1; }`;
  const { status, stdout, stderr } = spawnSync(process.execPath, ['--input-type=module', '-e', program], {
    encoding: 'utf8',
  });
  return { path: status === 0 ? stdout.trim() : undefined, why: stderr.trim() };
}
