/** Debian's linux-libc-dev of a suite, downloaded by apt and unpacked into a folder: nothing is installed. */
import { execFileSync, spawnSync } from 'node:child_process';
import { mkdirSync, readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

const PACKAGE = 'linux-libc-dev';
const KEYS = '/usr/share/keyrings/debian-archive-keyring.gpg';

const output = (command: string, ...args: string[]): string =>
  execFileSync(command, args, { encoding: 'utf8' });

/** The mirror of this machine's own sources of Debian's archive, which has the other suites too. */
function mirror(): string {
  const sites = output(
    'apt-get',
    'indextargets',
    '--format=$(REPO_URI)',
    'Created-By: Packages',
    'Origin: Debian',
    'Label: Debian',
  );
  const [site] = sites.split('\n');
  if (!site)
    throw new Error("apt's sources have no archive of Debian: is this Debian, and has apt-get update run?");
  return site;
}

export interface DebianHeaders {
  /** The package with its version. */
  readonly of: string;
  /** Where x86's headers are, and the rest. */
  readonly folders: readonly string[];
}

/** @throws Error with what apt says, where it cannot be had */
export function debianHeaders(suite: string, folder: string): DebianHeaders {
  const inside = (...names: string[]) => join(folder, ...names);
  for (const name of ['lists/partial', 'cache/archives/partial', 'unpacked'])
    mkdirSync(inside(name), { recursive: true });
  const sources = inside('debian.sources');
  writeFileSync(
    sources,
    `Types: deb\nURIs: ${mirror()}\nSuites: ${suite}\nComponents: main\nArchitectures: amd64\nSigned-By: ${KEYS}\n`,
  );
  // Lists, cache and sources of its own: the machine's stay as they are.
  const options = Object.entries({
    'Dir::Etc::sourcelist': sources,
    'Dir::Etc::sourceparts': '/dev/null',
    'Dir::State::lists': inside('lists'),
    'Dir::Cache': inside('cache'),
    'APT::Sandbox::User': 'root',
  }).flatMap(([key, value]) => ['-o', `${key}=${value}`]);
  const apt = (...args: string[]) => {
    const { status, error } = spawnSync('apt-get', [...options, '--quiet=2', ...args], {
      cwd: folder,
      stdio: ['ignore', 'ignore', 'inherit'],
    });
    if (error) throw error;
    if (status !== 0) throw new Error(`apt-get ${args.join(' ')} has failed for the suite ${suite}`);
  };
  apt('update');
  apt('download', PACKAGE);
  const file = readdirSync(folder).find((name) => name.endsWith('.deb'));
  if (file === undefined) throw new Error(`apt-get download ${PACKAGE} has left no .deb`);
  const version = output('dpkg-deb', '--field', inside(file), 'Version').trim();
  output('dpkg-deb', '--extract', inside(file), inside('unpacked'));
  return {
    of: `${PACKAGE} ${version}`,
    folders: [inside('unpacked/usr/lib/linux/uapi/x86'), inside('unpacked/usr/include')],
  };
}
