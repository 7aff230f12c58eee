/**
 * A QEMU for the lab alone, from Debian's backports: downloaded by the machine's apt, with its keys and from its
 * mirrors, but with lists and a cache of the lab's own, and unpacked in the lab's cache. Nothing is installed and no
 * source of packages is added to the machine.
 */
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { mkdir, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import {
  describeEmulator,
  type Emulator,
  emulatorFolder,
  ownEmulator,
  translatesSafely,
} from './emulator.ts';
import { LabError } from './errors.ts';
import { step, type Work } from './step.ts';

/** The release whose own QEMU is too old, and where it has a newer one. */
const RELEASE = 'bookworm';
const SUITE = `${RELEASE}-backports`;
const PACKAGE = 'qemu-system-x86';

/** What apt reads its sources from: a file of lines or of stanzas. */
export interface AptSources {
  readonly format: 'list' | 'sources';
  readonly text: string;
}

/** The sources of this machine, as sources.list(5) says where they are. */
function machineSources(etc: string): AptSources[] {
  const folder = join(etc, 'apt', 'sources.list.d');
  const names = existsSync(folder) ? readdirSync(folder).sort() : [];
  return [join(etc, 'apt', 'sources.list'), ...names.map((name) => join(folder, name))]
    .filter((path) => existsSync(path))
    .flatMap((path) => {
      const format = /\.(list|sources)$/.exec(path)?.[1] as AptSources['format'] | undefined;
      return format ? [{ format, text: readFileSync(path, 'utf8') }] : [];
    });
}

/** Of these suites, those of the release, with its backports beside its main suite; none if there is no main suite. */
function withBackports(suites: readonly string[], components: readonly string[]): string[] {
  const ours = suites.filter((suite) => suite === RELEASE || suite.startsWith(`${RELEASE}-`));
  const archive = ours.includes(RELEASE) && components.includes('main');
  return [...new Set([...ours, ...(archive ? [SUITE] : [])])];
}

/** The `deb` lines of a text for the suites of the release, with its backports; options stay, so do keys. */
function backportsLines(text: string): string {
  return text.replace(/^.*\n?/gm, (line) => {
    const [, type, suite, components = ''] =
      /^(\s*deb\s+(?:\[[^\]]*\]\s+)?\S+\s+)(\S+)\s+([^#\n]*)/.exec(line) ?? [];
    if (!type || !suite) return '';
    return withBackports([suite], components.split(/\s+/))
      .map((each) => `${type}${each} ${components}\n`)
      .join('');
  });
}

/** The same for stanzas of deb822(5). */
function backportsStanzas(text: string): string {
  const words = (field: string | undefined) => field?.trim().split(/\s+/) ?? [];
  return text
    .replace(/^#.*\n?/gm, '')
    .split(/\n\s*\n/)
    .map((stanza) => {
      const fields = new Map(
        [...stanza.matchAll(/^([\w-]+):(.*(?:\n[ \t].*)*)/gm)].map(([, name, value]) => [
          name!.toLowerCase(),
          value!,
        ]),
      );
      const suites = withBackports(words(fields.get('suites')), words(fields.get('components')));
      const off = /^(no|false|off|without|disable|0)$/i.test(words(fields.get('enabled'))[0] ?? '');
      if (off || suites.length === 0 || !words(fields.get('types')).includes('deb')) return '';
      fields.set('types', ' deb').set('suites', ` ${suites.join(' ')}`);
      return [...fields].map(([name, value]) => `${name}:${value}\n`).join('');
    })
    .filter(Boolean)
    .join('\n');
}

/** What of a file of sources concerns the release, with its backports from the same mirrors. */
export const backportsOf = ({ format, text }: AptSources): string =>
  format === 'list' ? backportsLines(text) : backportsStanzas(text);

/** Whether a machine is of the release, and has a source for its backports; else, in words, what is missing. */
function sourcesHere(etc: string): { sources: AptSources[] } | { missing: string } {
  const about = join(etc, 'os-release');
  const release = existsSync(about) ? readFileSync(about, 'utf8') : '';
  if (
    !/^ID="?debian"?$/m.test(release) ||
    !new RegExp(`^VERSION_CODENAME="?${RELEASE}"?$`, 'm').test(release)
  )
    return { missing: `this is not Debian ${RELEASE}` };
  const sources = machineSources(etc)
    .map((file) => ({ ...file, text: backportsOf(file) }))
    .filter(({ text }) => text.includes(SUITE));
  return sources.length > 0 ? { sources } : { missing: `apt has no source of ${RELEASE}` };
}

/** Whether {@link fetchEmulator} has something to try here. */
export const canFetchEmulator = (etc = '/etc'): boolean => 'sources' in sourcesHere(etc);

/**
 * Downloads and unpacks the QEMU of the backports with what it needs and is not installed, unless the lab has it. Needs
 * no root. Gives it, or why there is none: another system, a mirror without the suite, no network.
 */
export async function fetchEmulator(work: Work, etc = '/etc'): Promise<Emulator | { missing: string }> {
  const folder = emulatorFolder(work.cache);
  const present = ownEmulator(folder);
  if (present) return present;
  const here = sourcesHere(etc);
  if ('missing' in here) return here;

  const private_ = join(work.folder, 'apt');
  const unpacked = join(work.folder, 'qemu');
  const archives = join(private_, 'cache', 'archives');
  for (const path of [join(archives, 'partial'), join(private_, 'lists', 'partial'), join(private_, 'parts')])
    await mkdir(path, { recursive: true });
  for (const [index, { format, text }] of here.sources.entries())
    await writeFile(join(private_, 'parts', `${index}.${format}`), text);
  const options = [
    // No lock of the machine's is needed: of what is its own, only the list of installed packages is read.
    ...['Debug::NoLocking=true', `Dir::State=${private_}`, 'Dir::State::status=/var/lib/dpkg/status'],
    ...[`Dir::Cache=${join(private_, 'cache')}`, 'Dir::Etc::sourcelist=/dev/null'],
    ...[`Dir::Etc::sourceparts=${join(private_, 'parts')}`, `APT::Default-Release=${SUITE}`],
  ].flatMap((option) => ['--option', option]);
  const env = { ...process.env, DEBIAN_FRONTEND: 'noninteractive' };
  const apt = (stage: string, ...args: string[]) =>
    step(work, stage, 'apt-get', [...options, ...args], { env });
  try {
    // It fails as a whole if one source does not have the suite; what others have is there nevertheless.
    await apt(`reading the lists of ${SUITE}`, 'update').catch(failureOnly);
    await apt(
      `downloading ${PACKAGE}`,
      ...[
        'install',
        '--yes',
        '--download-only',
        '--no-install-recommends',
        '--allow-change-held-packages',
        PACKAGE,
      ],
    );
    const packages = readdirSync(archives).filter((name) => name.endsWith('.deb'));
    for (const name of packages)
      await step(work, 'unpacking QEMU', 'dpkg-deb', ['--extract', join(archives, name), unpacked]);
  } catch (error) {
    return { missing: failureOnly(error).message };
  }
  const made = ownEmulator(unpacked);
  if (!made || !translatesSafely(made.version))
    return { missing: made ? `${SUITE} has QEMU ${made.version}` : `what ${SUITE} has does not start` };
  await rm(folder, { recursive: true, force: true });
  await rename(unpacked, folder).catch((error) => {
    // Another build was first.
    if (error.code !== 'ENOTEMPTY' && error.code !== 'EEXIST') throw error;
  });
  return ownEmulator(folder) ?? { missing: `${folder} has been removed` };
}

/** The failure of a program; throws anything else, such as an interruption. */
function failureOnly(error: unknown): LabError {
  if (error instanceof LabError && error.code === 'ERR_LAB_BUILD') return error;
  throw error;
}

/** What a build says of the QEMU that the lab runs where it is not one as the lab wants it. */
export function emulatorNote(emulator: Emulator | undefined, why: string): string | undefined {
  if (!emulator || translatesSafely(emulator.version)) return undefined;
  return `the lab runs ${describeEmulator(emulator)}, which is too old for several processors: ${why}`;
}
