import {
  chmodSync,
  closeSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  realpathSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { backportsOf, canFetchEmulator, emulatorNote, fetchEmulator } from '../../src/lab/backports.ts';
import {
  type Emulator,
  emulatorFolder,
  findEmulator,
  ownEmulator,
  translatesSafely,
} from '../../src/lab/emulator.ts';
import type { Work } from '../../src/lab/step.ts';

let scratch: string;
beforeEach(() => {
  scratch = realpathSync(mkdtempSync(join(tmpdir(), 'vmexit-lab-qemu-test-')));
});
afterEach(() => {
  rmSync(scratch, { recursive: true, force: true });
  vi.unstubAllEnvs();
});

function write(path: string, text: string, mode = 0o644): void {
  mkdirSync(dirname(join(scratch, path)), { recursive: true });
  writeFileSync(join(scratch, path), text);
  chmodSync(join(scratch, path), mode);
}
const program = (path: string, script: string) => write(path, `#!/bin/sh\n${script}\n`, 0o755);
const qemu = (version: string) => `echo 'QEMU emulator version ${version} (Debian)'`;

describe('the sources of the backports', () => {
  it('are the deb lines of the release, with its backports from the same mirror and under the same key', () => {
    const text = [
      '# deb http://commented.test/debian bookworm main',
      'deb [arch=amd64 signed-by=/k.gpg] http://a.test/debian bookworm main contrib # near',
      'deb http://a.test/debian-security bookworm-security main',
      'deb-src http://a.test/debian bookworm main',
      'deb http://other.test/linux bookworm stable',
      'deb http://new.test/debian trixie main',
      '',
    ].join('\n');
    expect(
      backportsOf({ format: 'list', text })
        .split('\n')
        .map((line) => line.trim()),
    ).toEqual([
      'deb [arch=amd64 signed-by=/k.gpg] http://a.test/debian bookworm main contrib',
      'deb [arch=amd64 signed-by=/k.gpg] http://a.test/debian bookworm-backports main contrib',
      'deb http://a.test/debian-security bookworm-security main',
      'deb http://other.test/linux bookworm stable',
      '',
    ]);
  });

  it('are the stanzas of the release, whatever else they say', () => {
    const text = [
      'Types: deb deb-src',
      '# a comment within',
      'URIs: http://a.test/debian',
      '  http://b.test/debian',
      'Suites: bookworm bookworm-updates trixie',
      'components: main',
      'Signed-By:',
      ' -----BEGIN PGP PUBLIC KEY BLOCK-----',
      ' .',
      ' mDMEZ',
      '',
      'Types: deb',
      'URIs: http://off.test/debian',
      'Suites: bookworm',
      'Components: main',
      'Enabled: no',
      '',
      'Types: deb-src',
      'URIs: http://source.test/debian',
      'Suites: bookworm',
      'Components: main',
      '',
    ].join('\n');
    expect(backportsOf({ format: 'sources', text }).split('\n')).toEqual([
      'types: deb',
      'uris: http://a.test/debian',
      '  http://b.test/debian',
      'suites: bookworm bookworm-updates bookworm-backports',
      'components: main',
      'signed-by:',
      ' -----BEGIN PGP PUBLIC KEY BLOCK-----',
      ' .',
      ' mDMEZ',
      '',
    ]);
  });

  it('are not told twice where the machine has them', () => {
    const text = 'Types: deb\nURIs: http://a.test\nSuites: bookworm bookworm-backports\nComponents: main\n';
    expect(backportsOf({ format: 'sources', text }).match(/bookworm-backports/g)).toHaveLength(1);
  });
});

describe('the QEMU of the lab', () => {
  it('is its own where that starts, with its own firmware and libraries', () => {
    program('qemu/usr/bin/qemu-system-x86_64', `${qemu('10.0.2')}; echo "$LD_LIBRARY_PATH" >${scratch}/seen`);
    const found = findEmulator(join(scratch, 'qemu'));
    expect(found).toMatchObject({ version: '10.0.2', own: true });
    expect(found?.arguments).toContain(join(scratch, 'qemu/usr/share/qemu'));
    expect(readFileSync(join(scratch, 'seen'), 'utf8')).toContain(
      join(scratch, 'qemu/usr/lib/x86_64-linux-gnu'),
    );
    expect(process.env.LD_LIBRARY_PATH ?? '').not.toContain(scratch);
  });

  it("is the machine's where there is no own one, or it does not start", () => {
    program('bin/qemu-system-x86_64', qemu('7.2.22'));
    vi.stubEnv('PATH', `${scratch}/bin:${process.env.PATH}`);
    expect(findEmulator(join(scratch, 'qemu'))).toMatchObject({
      version: '7.2.22',
      own: false,
      arguments: [],
    });
    program('qemu/usr/bin/qemu-system-x86_64', 'echo no libpixman >&2; exit 127');
    expect(findEmulator(join(scratch, 'qemu'))).toMatchObject({ version: '7.2.22', own: false });
    vi.stubEnv('PATH', join(scratch, 'empty'));
    expect(findEmulator(join(scratch, 'qemu'))).toBeUndefined();
  });

  it('translates code that is replaced safely since 8.1', () => {
    const versions = ['7.2.22', '8.0.5', '8.1', '8.2.0', '10.0.2'];
    expect(versions.filter(translatesSafely)).toEqual(['8.1', '8.2.0', '10.0.2']);
  });

  it('is told of by a build only where it is older', () => {
    const old: Emulator = { program: '', version: '7.2.22', own: false, arguments: [], environment: {} };
    expect(emulatorNote(old, 'why')).toMatch(
      /QEMU 7\.2\.22 \(installed\), which is too old for several processors: why/,
    );
    expect(emulatorNote({ ...old, version: '10.0.2' }, 'why')).toBeUndefined();
    expect(emulatorNote(undefined, 'why')).toBeUndefined();
  });
});

describe('the QEMU of the backports', () => {
  const etc = () => join(scratch, 'etc');
  let work: Work;

  /** A machine of a release; its apt-get "downloads" two packages, which dpkg-deb "unpacks" to a QEMU of a version. */
  function machine({ codename = 'bookworm', update = ':', version = '10.0.2', extract = '' } = {}): void {
    write('etc/os-release', `ID=debian\nVERSION_CODENAME=${codename}\n`);
    write(
      'etc/apt/sources.list.d/debian.sources',
      'Types: deb\nURIs: http://a.test\nSuites: bookworm\nComponents: main\n',
    );
    program(
      'bin/apt-get',
      `echo "$*" >>${scratch}/calls
      for word; do case "$word" in
        Dir::Cache=*) archives=\${word#*=}/archives ;;
        Dir::Etc::sourceparts=*) cp -r "\${word#*=}" ${scratch}/parts ;;
        update) ${update} ;;
        install) touch "$archives/qemu.deb" "$archives/seabios.deb" ;;
      esac; done`,
    );
    program(
      'bin/dpkg-deb',
      `mkdir -p "$3/usr/bin"; touch "$3/$(basename "$2")"
      printf '#!/bin/sh\\necho QEMU emulator version ${version}\\n' >"$3/usr/bin/qemu-system-x86_64"
      chmod +x "$3/usr/bin/qemu-system-x86_64"; ${extract}`,
    );
    vi.stubEnv('PATH', `${scratch}/bin:${process.env.PATH}`);
  }

  beforeEach(() => {
    const [cache, folder] = [join(scratch, 'cache'), join(scratch, 'cache', '.build')];
    mkdirSync(folder, { recursive: true });
    const log = join(scratch, 'build.log');
    const failedLog = join(scratch, 'failed.log');
    work = { cache, folder, log, failedLog, fd: openSync(log, 'w'), jobs: 1, options: {} };
  });
  afterEach(() => closeSync(work.fd));
  const calls = () =>
    existsSync(join(scratch, 'calls')) ? readFileSync(join(scratch, 'calls'), 'utf8') : '';
  const cached = () => existsSync(emulatorFolder(work.cache));

  it('is downloaded with lists and a cache of its own, unpacked in the cache, and kept', async () => {
    machine();
    expect(await fetchEmulator(work, etc())).toMatchObject({ own: true, version: '10.0.2' });
    expect(readdirSync(emulatorFolder(work.cache)).sort()).toEqual(['qemu.deb', 'seabios.deb', 'usr']);
    expect(readFileSync(join(scratch, 'parts', '0.sources'), 'utf8')).toContain(
      'bookworm bookworm-backports',
    );
    const [update, install] = calls().trim().split('\n');
    for (const call of [update, install]) {
      for (const own of ['Dir::State', 'Dir::Cache', 'Dir::Etc::sourceparts'])
        expect(call).toContain(`${own}=${work.folder}/`);
    }
    expect(install).toContain('--download-only');
    expect(await fetchEmulator(work, etc())).toMatchObject({ own: true });
    expect(calls().trim().split('\n')).toHaveLength(2);
  });

  it('replaces one that does not start any more', async () => {
    machine();
    program('cache/qemu/usr/bin/qemu-system-x86_64', 'exit 127');
    expect(await fetchEmulator(work, etc())).toMatchObject({ own: true });
  });

  it('is there although another source of the machine fails', async () => {
    machine({ update: 'exit 100' });
    expect(await fetchEmulator(work, etc())).toMatchObject({ own: true });
  });

  it('is not looked for on another system, or without a source of the release', async () => {
    machine({ codename: 'trixie' });
    expect(canFetchEmulator(etc())).toBe(false);
    expect(await fetchEmulator(work, etc())).toEqual({ missing: 'this is not Debian bookworm' });
    machine();
    expect(canFetchEmulator(etc())).toBe(true);
    rmSync(join(etc(), 'apt'), { recursive: true });
    expect(await fetchEmulator(work, etc())).toEqual({ missing: 'apt has no source of bookworm' });
    expect(calls()).toBe('');
  });

  it.each([
    ['the suite is not there', 'exit 100', '', /downloading qemu-system-x86 failed/],
    ['what is downloaded does not start', '', 'rm "$3/usr/bin/qemu-system-x86_64"', /does not start/],
  ])('is told to be missing where %s, and nothing is left', async (_, fails, extract, why) => {
    machine({ extract });
    if (fails) program('bin/apt-get', fails);
    expect(await fetchEmulator(work, etc())).toEqual({ missing: expect.stringMatching(why) });
    expect(cached()).toBe(false);
  });

  it('is told to be missing where it is as old as the installed one', async () => {
    machine({ version: '7.2.22' });
    expect(await fetchEmulator(work, etc())).toEqual({ missing: 'bookworm-backports has QEMU 7.2.22' });
    expect(cached()).toBe(false);
    expect(ownEmulator(emulatorFolder(work.cache))).toBeUndefined();
  });
});
