import { spawnSync } from 'node:child_process';
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  realpathSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { availableParallelism, tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { lab, parseRun } from '../../src/cli/lab.ts';
import { chooseAccel, describeAccel, usualCpus } from '../../src/lab/accel.ts';
import { buildKernels, lostOptions } from '../../src/lab/build.ts';
import { kernelHeaders, labStatus, runInLab } from '../../src/lab/index.ts';
import {
  installCommands,
  missingMessage,
  missingPackages,
  neededPackages,
  parseDpkg,
} from '../../src/lab/packages.ts';
import { showProgress } from '../../src/lab/progress.ts';
import { commandScript, fstab, type Machine, qemuArguments, quote } from '../../src/lab/qemu.ts';
import {
  cacheFolder,
  findKernel,
  kernelFolder,
  kernelNames,
  META_FILE,
  type Recipe,
  readRecipe,
  recipeKey,
} from '../../src/lab/recipe.ts';

let scratch: string;
beforeEach(() => {
  scratch = realpathSync(mkdtempSync(join(tmpdir(), 'vmexit-lab-test-')));
});
afterEach(() => {
  rmSync(scratch, { recursive: true, force: true });
  vi.unstubAllEnvs();
  vi.restoreAllMocks();
});

/** The processes of a group that are neither gone nor dead and unburied (proc_pid_stat(5)). */
function alive(group: number): string[] {
  return readdirSync('/proc').filter((name) => {
    if (!/^\d+$/.test(name)) return false;
    try {
      const stat = readFileSync(`/proc/${name}/stat`, 'latin1');
      const [state, , pgrp] = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
      return Number(pgrp) === group && state !== 'Z' && state !== 'X';
    } catch {
      return false;
    }
  });
}

describe("a kernel's recipe", () => {
  const recipe: Recipe = { kernel: 'x', fragment: 'CONFIG_A=y\n', patches: [{ path: 'p', text: 'diff' }] };

  it('has a key that changes with the source, the fragment and each patch, and with nothing else', () => {
    const key = recipeKey(recipe, '6.12.1');
    expect(recipeKey({ ...recipe, kernel: 'renamed' }, '6.12.1')).toBe(key);
    expect(recipeKey({ ...recipe, patches: [{ path: 'moved', text: 'diff' }] }, '6.12.1')).toBe(key);
    expect(recipeKey(recipe, '6.12.2')).not.toBe(key);
    expect(recipeKey({ ...recipe, fragment: 'CONFIG_A=n\n' }, '6.12.1')).not.toBe(key);
    expect(recipeKey({ ...recipe, patches: [] }, '6.12.1')).not.toBe(key);
    expect(recipeKey({ ...recipe, patches: [{ path: 'p', text: 'other' }] }, '6.12.1')).not.toBe(key);
  });

  it('does not confuse recipes whose parts join to the same text', () => {
    const patches = (...texts: string[]) => ({
      ...recipe,
      patches: texts.map((text) => ({ path: '', text })),
    });
    expect(recipeKey(patches('ab', 'c'), '1')).not.toBe(recipeKey(patches('a', 'bc'), '1'));
    expect(recipeKey(patches('abc'), '1')).not.toBe(recipeKey(patches('ab', 'c'), '1'));
  });

  it('is the fragment alone for vanilla, and asks for private memory', () => {
    const vanilla = readRecipe('vanilla');
    expect(vanilla.patches).toEqual([]);
    expect(vanilla.fragment).toContain('CONFIG_KVM_SW_PROTECTED_VM=y\n');
  });

  it('adds the patches of the folder of its name in order, and their fragment', () => {
    const folder = join(scratch, 'kernel', 'patches', 'userfault');
    mkdirSync(folder, { recursive: true });
    writeFileSync(join(scratch, 'kernel', 'kernel.fragment'), 'CONFIG_A=y\n');
    writeFileSync(join(folder, '0002-b.patch'), 'second');
    writeFileSync(join(folder, '0001-a.patch'), 'first');
    writeFileSync(join(folder, 'kernel.fragment'), 'CONFIG_B=y\n');
    writeFileSync(join(folder, 'README'), 'no patch');
    expect(kernelNames(scratch)).toEqual(['vanilla', 'userfault']);
    const found = readRecipe('userfault', scratch);
    expect(found.patches.map((patch) => patch.text)).toEqual(['first', 'second']);
    expect(found.fragment).toBe('CONFIG_A=y\nCONFIG_B=y\n');
  });

  it('is, for userfault, two patches over vanilla: the feature and a stand-in for tests', () => {
    const { fragment, patches } = readRecipe('userfault');
    expect(fragment).toBe(readRecipe('vanilla').fragment);
    expect(patches.map(({ path }) => basename(path))).toEqual([
      '0001-kvm-mem-userfault.patch',
      '0002-test-private-access.patch',
    ]);
  });

  it('is refused under a name that has none, with the names that have', () => {
    expect(() => readRecipe('../etc')).toThrow(
      expect.objectContaining({ code: 'ERR_LAB_ARGUMENT', message: expect.stringContaining('vanilla') }),
    );
  });
});

describe('the cache of kernels', () => {
  /** Puts what a finished build leaves into the cache. */
  function place(source: string, version: string, key = recipeKey(readRecipe(), source)) {
    const folder = kernelFolder('vanilla', key, scratch);
    mkdirSync(folder);
    writeFileSync(join(folder, META_FILE), JSON.stringify({ kernel: 'vanilla', version, source }));
    return folder;
  }

  it('lies where VMEXIT_LAB_CACHE says, else under XDG_CACHE_HOME', () => {
    expect(cacheFolder({ VMEXIT_LAB_CACHE: '/a', XDG_CACHE_HOME: '/b' })).toBe('/a');
    expect(cacheFolder({ XDG_CACHE_HOME: '/b' })).toBe('/b/vmexit/lab');
    expect(cacheFolder({})).toMatch(/\/\.cache\/vmexit\/lab$/);
  });

  it('gives the kernel of the installed source', () => {
    const folder = place('6.12.9-1', '6.12.9');
    place('6.12.10-1', '6.12.10');
    const found = findKernel('vanilla', '6.12.9-1', { cache: scratch });
    expect(found).toMatchObject({ directory: folder, version: '6.12.9', headers: join(folder, 'include') });
  });

  it('gives the newest of another source when that one is not built, unless it must be exact', () => {
    place('6.12.9-1', '6.12.9');
    place('6.12.10-1', '6.12.10');
    expect(findKernel('vanilla', undefined, { cache: scratch })?.version).toBe('6.12.10');
    expect(findKernel('vanilla', '6.12.11-1', { cache: scratch })?.version).toBe('6.12.10');
    expect(findKernel('vanilla', '6.12.11-1', { cache: scratch, exact: true })).toBeUndefined();
  });

  it('does not give a kernel of an older recipe, nor what is not complete', () => {
    place('6.12.9-1', '6.12.9', 'a-key-of-another-fragment');
    mkdirSync(kernelFolder('vanilla', recipeKey(readRecipe(), '6.12.10-1'), scratch));
    mkdirSync(join(scratch, '.build-1-x'));
    writeFileSync(join(scratch, 'build-failed.log'), '');
    expect(findKernel('vanilla', undefined, { cache: scratch })).toBeUndefined();
    expect(findKernel('vanilla', undefined, { cache: join(scratch, 'none') })).toBeUndefined();
  });
});

describe('a configuration', () => {
  it('is compared with the fragment line by line', () => {
    const config = '#\nCONFIG_A=y\nCONFIG_N=8\nCONFIG_ON=y\n# CONFIG_OFF is not set\n';
    expect(lostOptions('# why\nCONFIG_A=y\n\nCONFIG_N=8\n# CONFIG_OFF is not set\n', config)).toEqual([]);
    expect(lostOptions('# CONFIG_GONE is not set\n', config)).toEqual([]);
    expect(lostOptions('CONFIG_N=4\nCONFIG_B=y\n# CONFIG_ON is not set\n', config)).toEqual([
      'CONFIG_N=4',
      'CONFIG_B=y',
      '# CONFIG_ON is not set',
    ]);
  });
});

describe('packages', () => {
  const names = (rows: readonly { name: string }[]) => rows.map((row) => row.name);

  it('are read from dpkg-query, the half-removed ones not counted', () => {
    const installed = parseDpkg('gcc\tinstalled\t12.2\nmake\tconfig-files\t4.3\nbc\tnot-installed\t\n');
    expect([...installed]).toEqual([['gcc', '12.2']]);
  });

  it('are only QEMU to run, the compilers to build, and patch where there are patches', () => {
    expect(names(neededPackages())).toEqual(['qemu-system-x86']);
    const vanilla = names(neededPackages([readRecipe()]));
    expect(vanilla).toEqual(expect.arrayContaining(['qemu-system-x86', 'linux-source-6.12', 'gcc', 'flex']));
    expect(vanilla).not.toContain('patch');
    expect(names(neededPackages([], true))).toEqual([]);
    expect(names(neededPackages([readRecipe()], true))).not.toContain('qemu-system-x86');
    const patched: Recipe = { kernel: 'x', fragment: '', patches: [{ path: 'p', text: 't' }] };
    expect(names(neededPackages([readRecipe(), patched]))).toContain('patch');
  });

  it('are missing when dpkg does not list them', () => {
    const needed = neededPackages([readRecipe()]);
    const installed = new Map(needed.map((row) => [row.name, '1']));
    expect(missingPackages(needed, installed)).toEqual([]);
    installed.delete('flex');
    installed.delete('bc');
    const missing = missingPackages(needed, installed);
    expect(names(missing)).toEqual(['flex', 'bc']);
    expect(missingMessage(missing, true)).toContain('flex bc');
    expect(missingMessage(missing, true)).toContain('vmexit lab build --install');
  });

  it('are told as programs and files on a system without dpkg', () => {
    vi.stubEnv('PATH', scratch);
    writeFileSync(join(scratch, 'bc'), '', { mode: 0o755 });
    writeFileSync(join(scratch, 'flex'), '', { mode: 0o644 });
    const needed = neededPackages([readRecipe()]).filter((row) => !row.shownBy.startsWith('/'));
    const missing = missingPackages(needed, undefined);
    expect(names(missing)).toContain('flex');
    expect(names(missing)).not.toContain('bc');
    expect(missingMessage(missing, false)).toMatch(
      /no dpkg[\s\S]*qemu-system-x86_64 {2}\(Debian: qemu-system-x86\)/,
    );
  });

  it('are installed after an update, by root only', () => {
    const missing = neededPackages();
    expect(installCommands(missing, { dpkg: true, root: true })).toEqual([
      ['apt-get', 'update'],
      ['apt-get', 'install', '--yes', '--no-install-recommends', 'qemu-system-x86'],
    ]);
    expect(() => installCommands(missing, { dpkg: true, root: false })).toThrow(
      expect.objectContaining({
        code: 'ERR_LAB_PACKAGES',
        message: expect.stringContaining(
          'sudo apt-get install --yes --no-install-recommends qemu-system-x86',
        ),
      }),
    );
    expect(() => installCommands(missing, { dpkg: false, root: true })).toThrow(/no dpkg/);
  });
});

describe('acceleration', () => {
  const able = { extension: 'SVM' } as const;
  const unable = { missing: 'no /dev/kvm' } as const;

  it('nests where the host can and emulates where not', () => {
    expect(chooseAccel('auto', able)).toBe('kvm');
    expect(chooseAccel('auto', unable)).toBe('tcg');
    expect(chooseAccel('tcg', able)).toBe('tcg');
    expect(describeAccel('kvm', able)).toBe('nested SVM (kvm)');
    expect(describeAccel('tcg', able)).toBe('emulated SVM (tcg)');
  });

  it('is refused with the reason when kvm is asked for in vain', () => {
    expect(() => chooseAccel('kvm', unable)).toThrow(
      expect.objectContaining({ code: 'ERR_LAB_PLATFORM', message: expect.stringContaining('no /dev/kvm') }),
    );
  });
});

describe('the machine', () => {
  it('has two processors where it is emulated, or one by an old QEMU, and some where it is not', () => {
    expect(usualCpus('tcg', { version: '10.0.2' })).toBe(2);
    expect(usualCpus('tcg', { version: '7.2.22' })).toBe(1);
    expect(usualCpus('kvm', { version: '7.2.22' })).toBe(Math.min(availableParallelism(), 4));
  });

  const machine: Machine = {
    accel: 'tcg',
    bzImage: '/k/bzImage',
    memory: 512,
    cpus: 2,
    runFolder: '/tmp/run',
  };
  const valuesOf = (args: string[], option: string) =>
    args.flatMap((text, index) => (args[index - 1] === option ? [text] : []));

  it('shares the root of the host read-only and nothing else', () => {
    const folders = valuesOf(qemuArguments(machine), '-virtfs');
    expect(folders).toHaveLength(1);
    expect(folders[0]).toMatch(/^local,path=\/,mount_tag=root,.*readonly=on/);
  });

  it('shares one more folder writable, whatever its name', () => {
    const folders = valuesOf(qemuArguments({ ...machine, share: '/a,readonly=on' }), '-virtfs');
    expect(folders[1]).toMatch(/^local,path=\/a,,readonly=on,mount_tag=share,/);
    expect(folders[1]).not.toMatch(/[^,],readonly=on/);
  });

  it('emulates an AMD processor with SVM and nested paging, or takes that of the host', () => {
    expect(valuesOf(qemuArguments(machine), '-cpu')[0]).toMatch(/^EPYC.*\+svm,\+npt/);
    const nested = qemuArguments({ ...machine, accel: 'kvm' });
    expect(valuesOf(nested, '-cpu')).toEqual(['host']);
    expect(valuesOf(nested, '-accel')).toEqual(['kvm']);
  });

  it('has one thread for several processors that are emulated', () => {
    const threads = (cpus: number) => valuesOf(qemuArguments({ ...machine, cpus }), '-accel');
    expect(threads(1)).toEqual(['tcg,thread=multi']);
    expect(threads(2)).toEqual(['tcg,thread=single']);
  });

  it("gives its kernel the parameters of a run, before init's own arguments", () => {
    const [line] = valuesOf(qemuArguments({ ...machine, parameters: ['kvm.tdp_mmu=0', 'a=b'] }), '-append');
    expect(line).toMatch(/ kvm\.tdp_mmu=0 a=b init=\/bin\/sh -- /);
  });

  it('has a port for control, stdout and stderr each, in the order that init knows', () => {
    const ports = valuesOf(qemuArguments(machine), '-device').filter((text) =>
      text.startsWith('virtserialport'),
    );
    expect(ports).toEqual([
      'virtserialport,chardev=control,nr=1',
      'virtserialport,chardev=stdout,nr=2',
      'virtserialport,chardev=stderr,nr=3',
    ]);
  });

  it('mounts the share in the new root at its own path, blanks written in octal', () => {
    const lines = fstab('/new', '/a b\\c').trimEnd().split('\n');
    expect(lines.at(-1)).toMatch(/^share \/new\/a\\040b\\134c 9p trans=virtio,/);
    expect(lines.every((line) => line.split(' ').length === 6)).toBe(true);
    expect(fstab('/new')).not.toContain('share');
  });
});

describe('the command', () => {
  const hard = ["it's", 'a  b', '$HOME `id` "x" \\', 'two\nlines', '', '*', '-n', 'é'];

  it('is quoted so that a shell reads back the same words', () => {
    const { stdout } = spawnSync('/bin/sh', ['-c', `printf '%s\\0' ${hard.map(quote).join(' ')}`], {
      encoding: 'utf8',
    });
    expect(stdout.split('\0').slice(0, -1)).toEqual(hard);
  });

  it('runs in its folder with exactly its arguments and environment', () => {
    const cwd = join(scratch, "a folder's name");
    mkdirSync(cwd);
    const print = 'process.stdout.write(JSON.stringify([process.argv.slice(1), process.cwd(), process.env]))';
    const env = { PATH: '/usr/bin:/bin', ODD: hard.join('\t') };
    const script = commandScript({ command: process.execPath, args: ['-e', print, '--', ...hard], cwd, env });
    const { stdout } = spawnSync('/bin/sh', ['-c', script], { encoding: 'utf8', env: { OLDPWD: '/' } });
    const [args, folder, environment] = JSON.parse(stdout);
    expect(args).toEqual(hard);
    expect(folder).toBe(cwd);
    expect(environment).toMatchObject(env);
  });

  it('is given the status that a shell gives to what is not found', () => {
    const script = commandScript({ command: 'no-such-program', args: [], cwd: '/', env: {} });
    expect(spawnSync('/bin/sh', ['-c', script]).status).toBe(127);
  });
});

describe('a run is refused before anything starts', () => {
  beforeEach(() => vi.stubEnv('VMEXIT_LAB_CACHE', scratch));

  it.each([
    ['a folder that is not there', { cwd: '/no/such' }, /cwd is '\/no\/such'/],
    ['the root as a share', { share: '/' }, /share is '\/'/],
    ['a share that is a file', { share: '/etc/passwd' }, /share is '\/etc\/passwd'/],
    ['no time', { timeoutMs: 0 }, /timeoutMs is 0.* from 1 to/],
    ['time that no timer counts', { timeoutMs: 2 ** 31 }, /timeoutMs is 2147483648/],
    ['too little memory', { memory: 1 }, /memory is 1: .* from 256 to/],
    ['more memory than there is', { memory: 2 ** 40 }, /memory is/],
    ['a number that is none', { memory: Number.NaN }, /memory is NaN/],
    ['a name that is no variable', { env: { 'A B': '' } }, /'A B'/],
    ['a kernel parameter that would be two', { parameters: ['a=1 init=/x'] }, /'a=1 init=\/x'/],
    ['an argument with a NUL', { args: ['a\0b'] }, /'a\\0b'/],
    ['a kernel of no recipe', { kernel: 'nix' }, /'nix'.*vanilla/],
  ])('for %s', async (_, wrong, message) => {
    await expect(runInLab({ command: 'true', ...wrong })).rejects.toMatchObject({
      code: 'ERR_LAB_ARGUMENT',
      message: expect.stringMatching(message),
    });
  });

  it('for a kernel that is not built, with the command that builds it', async () => {
    await expect(runInLab({ command: 'true' })).rejects.toMatchObject({
      code: 'ERR_LAB_NOT_BUILT',
      message: expect.stringContaining('npx vmexit lab build'),
    });
    expect(labStatus()).toMatchObject({
      cache: scratch,
      kernels: [{ name: 'vanilla' }, { name: 'userfault' }],
    });
    expect(labStatus().kernels[0]).not.toHaveProperty('built');
  });
});

describe('a build', () => {
  const cache = () => join(scratch, 'cache');

  /** Programs that do as if: what a build needs of dpkg-query, tar and make, and one line of shell in make. */
  function stubPrograms(make = ':') {
    const programs = {
      'dpkg-query': `for name; do printf '%s\\tinstalled\\t1\\n' "$name"; done`,
      tar: `while [ "$1" != --directory ]; do shift; done; mkdir -p "$2/linux-source-6.12"`,
      make: `${make}
        case "$*" in
          *tinyconfig) echo '# tiny' >.config ;;
          *bzImage)
            echo '  CC      kernel/fork.o'
            mkdir -p arch/x86/boot include/config
            echo boots >arch/x86/boot/bzImage
            echo 6.12.1-vmexit >include/config/kernel.release ;;
          *headers) mkdir -p usr/include/linux; touch usr/include/linux/kvm.h usr/include/linux/.install ;;
        esac`,
    };
    const bin = join(scratch, 'bin');
    mkdirSync(bin);
    for (const [name, script] of Object.entries(programs)) {
      writeFileSync(join(bin, name), `#!/bin/sh\n${script}\n`, { mode: 0o755 });
    }
    vi.stubEnv('PATH', `${bin}:${process.env.PATH}`);
    vi.stubEnv('VMEXIT_LAB_CACHE', cache());
  }

  const build = async (options?: Parameters<typeof buildKernels>[0]) => (await buildKernels(options))[0]!;

  it('leaves the kernel, its configuration, its headers and its log in the cache, and nothing else', async () => {
    stubPrograms();
    const stages: string[] = [];
    const built = await build({ report: (stage) => stages.push(stage) });
    expect(built).toMatchObject({ kernel: 'vanilla', version: '6.12.1' });
    expect(readdirSync(cache())).toEqual([basename(built.directory)]);
    expect(readdirSync(built.directory).sort()).toEqual([
      '.config',
      'build.log',
      'bzImage',
      'include',
      'kernel.json',
    ]);
    expect(readdirSync(join(built.headers, 'linux'))).toEqual(['kvm.h']);
    expect(readFileSync(join(built.directory, 'build.log'), 'utf8')).toContain('kernel/fork.o');
    expect(stages).toEqual(
      expect.arrayContaining(['unpacking the source', 'configuring', 'compiling vanilla']),
    );
    expect(kernelHeaders()).toBe(built.headers);
  });

  it('is done once', async () => {
    stubPrograms();
    const built = await build();
    const stages: string[] = [];
    expect(await build({ report: (stage) => stages.push(stage) })).toEqual(built);
    expect(stages).toEqual([]);
  });

  it('of two kernels unpacks once, compiles the second with its patches on top, and keeps what is done', async () => {
    stubPrograms();
    writeFileSync(join(scratch, 'bin', 'patch'), '#!/bin/sh\n', { mode: 0o755 });
    const stages: string[] = [];
    const kernels = await buildKernels({
      kernels: ['vanilla', 'userfault'],
      report: (stage) => stages.push(stage),
    });
    expect(kernels.map(({ kernel }) => kernel)).toEqual(['vanilla', 'userfault']);
    expect(kernels.map(({ directory }) => directory).sort()).toEqual(
      readdirSync(cache())
        .map((name) => join(cache(), name))
        .sort(),
    );
    const order = stages.filter((stage, index) => stage !== stages[index - 1]);
    const patches = readRecipe('userfault').patches.map(({ path }) => `applying ${basename(path)}`);
    expect(patches).not.toEqual([]);
    const rest = (name: string) => ['configuring', `compiling ${name}`, 'exporting the headers'];
    expect(order).toEqual([
      'unpacking the source',
      ...rest('vanilla'),
      ...patches,
      ...rest('userfault'),
      'removing the build tree',
    ]);
  });

  it('unpacks anew for a kernel that is not the one before it and more', async () => {
    stubPrograms();
    writeFileSync(join(scratch, 'bin', 'patch'), '#!/bin/sh\n', { mode: 0o755 });
    const stages: string[] = [];
    await buildKernels({ kernels: ['userfault', 'vanilla'], report: (stage) => stages.push(stage) });
    const unpacked = stages.filter((stage, index) => stage !== stages[index - 1] && /unpack/.test(stage));
    expect(unpacked).toHaveLength(2);
  });

  it('that fails names the log, and leaves nothing that looks like a kernel', async () => {
    stubPrograms('case "$*" in *bzImage) echo "fork.c: no"; exit 2 ;; esac');
    const error = await build().catch((thrown) => thrown);
    expect(error).toMatchObject({ code: 'ERR_LAB_BUILD' });
    const log = join(cache(), 'build-failed.log');
    expect(error.message).toContain(log);
    expect(readFileSync(log, 'utf8')).toContain('fork.c: no');
    expect(readdirSync(cache())).toEqual([basename(log)]);
    expect(findKernel()).toBeUndefined();
  });

  it('that loses an option of the fragment fails and names it', async () => {
    stubPrograms(
      'case "$*" in *olddefconfig) grep -v CONFIG_KVM_SW_PROTECTED_VM .config >new; mv new .config ;; esac',
    );
    await expect(build()).rejects.toThrow(/CONFIG_KVM_SW_PROTECTED_VM=y/);
  });

  it('that is interrupted ends its programs and leaves nothing', async () => {
    stubPrograms(`case "$*" in *bzImage) echo $$ >${scratch}/pid; sleep 60 & wait ;; esac`);
    const abort = new AbortController();
    const building = build({
      signal: abort.signal,
      report: (stage) => stage === 'compiling vanilla' && started(),
    });
    const started = () => {
      const timer = setInterval(() => {
        if (!existsSync(join(scratch, 'pid'))) return;
        clearInterval(timer);
        abort.abort();
      }, 20);
    };
    await expect(building).rejects.toMatchObject({ code: 'ERR_LAB_ABORTED' });
    expect(readdirSync(cache())).toEqual([]);
    const pid = Number(readFileSync(join(scratch, 'pid'), 'utf8'));
    // Dead at once; when the orphans among them are buried is process 1's affair (some bury none).
    await vi.waitFor(() => expect(alive(pid)).toEqual([]), 60_000);
  });

  it('beside another of the same kernel gives the same kernel', async () => {
    stubPrograms();
    const [one, two] = await Promise.all([build(), build()]);
    expect(one).toEqual(two);
    expect(readFileSync(one.bzImage, 'utf8')).toBe('boots\n');
    expect(readdirSync(cache())).toEqual([basename(one.directory)]);
  });

  it('without its packages names them', async () => {
    stubPrograms();
    writeFileSync(join(scratch, 'bin', 'dpkg-query'), '#!/bin/sh\nexit 1\n', { mode: 0o755 });
    await expect(build()).rejects.toMatchObject({
      code: 'ERR_LAB_PACKAGES',
      message: expect.stringContaining('linux-source-6.12'),
    });
  });
});

describe('a build is refused before anything starts', () => {
  it.each([0, 1.5, Number.NaN, -1])('for %s jobs', async (jobs) => {
    await expect(buildKernels({ jobs })).rejects.toMatchObject({ code: 'ERR_LAB_ARGUMENT' });
  });

  it('for a kernel of no recipe', async () => {
    await expect(buildKernels({ kernels: ['vanilla', 'nix'] })).rejects.toMatchObject({
      code: 'ERR_LAB_ARGUMENT',
    });
  });
});

describe('vmexit lab', () => {
  async function call(...argv: string[]) {
    const out = vi.spyOn(process.stdout, 'write').mockReturnValue(true);
    const err = vi.spyOn(process.stderr, 'write').mockReturnValue(true);
    const status = await lab(argv);
    const [outText, errText] = [out, err].map((spy) => spy.mock.calls.map(([text]) => text).join(''));
    vi.restoreAllMocks();
    return { status, out: outText!, err: errText! };
  }

  it('takes all that follows -- as the command', () => {
    expect(parseRun(['--timeout', '1.5', '--', 'ls', '--timeout', '--', '-l'])).toMatchObject({
      command: 'ls',
      args: ['--timeout', '--', '-l'],
      timeoutMs: 1500,
    });
  });

  it('takes variables with an equals sign in their value', () => {
    expect(parseRun(['--env', 'A=b=c', '--env', 'E=', '--', 'x'])?.env).toEqual({ A: 'b=c', E: '' });
  });

  it('shows help for itself and each of its commands, and starts nothing', async () => {
    expect(await call('--help')).toMatchObject({ status: 0, out: expect.stringContaining('lab build') });
    for (const name of ['build', 'run', 'status']) {
      const { status, out, err } = await call(name, '--help');
      expect({ status, err }).toEqual({ status: 0, err: '' });
      expect(out).toContain(`vmexit lab ${name} `);
    }
  });

  it.each([
    [[], ''],
    [['boot'], "'boot'"],
    [['run'], 'no command'],
    [['run', '--'], 'no command'],
    [['run', 'ls'], 'ls'],
    [['run', '--speed', '9', '--', 'ls'], '--speed'],
    [['run', '--accel', 'hax', '--', 'ls'], '--accel hax'],
    [['run', '--memory', 'lots', '--', 'ls'], '--memory lots'],
    [['run', '--env', 'A', '--', 'ls'], '--env A'],
    [['build', '--jobs', '0'], 'jobs is 0'],
    [['build', '--kernel', 'nix'], "'nix'"],
    [['status', '--yaml'], '--yaml'],
  ])('ends with 2 and says why for %j', async (argv, why) => {
    const { status, err } = await call(...argv);
    expect(status).toBe(2);
    expect(err).toContain(why);
  });

  it('ends with 123 when the kernel is not built', async () => {
    vi.stubEnv('VMEXIT_LAB_CACHE', scratch);
    const { status, err } = await call('run', '--', 'true');
    expect(status).toBe(123);
    expect(err).toContain('npx vmexit lab build');
  });

  it('tells its state as JSON', async () => {
    vi.stubEnv('VMEXIT_LAB_CACHE', scratch);
    const { status, out } = await call('status', '--json');
    expect(status).toBe(0);
    expect(JSON.parse(out)).toMatchObject({
      cache: scratch,
      acceleration: { accel: /kvm|tcg/.exec(out)?.[0] },
    });
  });
});

describe('progress', () => {
  const written = (isTTY: boolean) => {
    const texts: string[] = [];
    const stream = { isTTY, write: (text: string) => texts.push(text) };
    {
      using progress = showProgress(stream, 'x');
      progress.report('one');
      progress.report('one', '1 file');
      progress.report('two');
    }
    return texts.join('');
  };

  it('is a line for each stage on a pipe', () => {
    expect(written(false)).toBe('x: one (0 s)\nx: two (0 s)\n');
  });

  it('is one line rewritten in place on a terminal, and removed at the end', () => {
    const text = written(true);
    expect(text).not.toContain('\n');
    expect(text.endsWith('\r\x1b[K')).toBe(true);
  });
});
