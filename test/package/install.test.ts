/** An installed package is as good as a clone: packed from a clone in which nothing was built, installed without scripts. */
import {
  existsSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { dirname, join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { labStatus } from '../../src/lab/index.ts';
import { must, root, run, Workplace } from './packed.ts';

const MINUTES = 60_000;
const isHost = process.platform === 'linux' && process.arch === 'x64';

let work: Workplace;
let clone = '';
let project = '';
let installed = '';
let files: string[] = [];
beforeAll(() => {
  work = new Workplace();
  clone = work.clone();
  project = work.project(work.pack(clone));
  installed = join(project, 'node_modules', 'vmexit');
  files = readdirSync(installed, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name).slice(installed.length + 1));
}, 10 * MINUTES);
afterAll(() => work[Symbol.dispose]());

/** Runs a program in the project, where there is nothing but node. */
function program(text: string) {
  writeFileSync(join(project, 'program.mjs'), text);
  return run(project, process.execPath, ['program.mjs'], { PATH: work.bare });
}

/** What opening KVM gives: the backend, or the reason and the message. */
const open = (device?: string) => `
  import { openHypervisor } from 'vmexit';
  try {
    const hv = openHypervisor({ backend: 'kvm', device: ${JSON.stringify(device)} });
    console.log(JSON.stringify({ backend: hv.backend }));
  } catch ({ reason, message }) {
    console.log(JSON.stringify({ reason, message }));
  }`;

const vmexit = (args: readonly string[], env: NodeJS.ProcessEnv = { PATH: work.bare }) =>
  run(project, process.execPath, [join(installed, 'dist', 'cli', 'main.js'), ...args], env);

/** Of /dev/null, to who has an addon; to others the addon is what is missing. */
const OTHER = 'cannot be opened as KVM: it is another device';

describe('the package', () => {
  it('has what users need, and nothing of what only a clone needs', () => {
    expect(files).toEqual(
      expect.arrayContaining([
        'dist/index.js',
        'dist/index.d.ts',
        'dist/sim/templates.bin',
        'dist/cli/main.js',
        'dist/examples/hello-real-mode.js',
        'examples/hello-real-mode.ts',
        'lab/init',
        'native/run.cc',
        'prebuilds/linux-x64-glibc/vmexit.node',
        'prebuilds/linux-x64-musl/vmexit.node',
      ]),
    );
    expect(files.filter((file) => /^(scripts|src|test|bench|build)\/|\.map$|(^|\/)\./.test(file))).toEqual(
      [],
    );
  });

  it('has what its documents link to', () => {
    const pages = files.filter((file) => file.endsWith('.md'));
    expect(pages).toEqual(expect.arrayContaining(['README.md', 'examples/README.md']));
    const links = pages.flatMap((page) =>
      [...readFileSync(join(installed, page), 'utf8').matchAll(/\]\((?!\w+:|#)([^)#\s]+)/g)].map(([, link]) =>
        join(dirname(page), link!),
      ),
    );
    expect(links.length).toBeGreaterThan(5);
    expect(links.filter((link) => !existsSync(join(installed, link)))).toEqual([]);
  });

  it('has every declaration that one of its declarations imports', () => {
    const declarations = files.filter((file) => file.endsWith('.d.ts'));
    const imports = declarations.flatMap((file) =>
      [...readFileSync(join(installed, file), 'utf8').matchAll(/(?:from |import\()['"](\.[^'"]+)['"]/g)].map(
        ([, path]) => join(dirname(file), path!).replace(/(\.d)?\.[jt]s$/, '.d.ts'),
      ),
    );
    expect(imports.length).toBeGreaterThan(50);
    expect(imports.filter((path) => !declarations.includes(path))).toEqual([]);
  });

  it('is not packed where it cannot be built', () => {
    const now = new Date();
    utimesSync(join(clone, 'native', 'run.cc'), now, now);
    const { status, stdout, stderr } = run(clone, 'npm', ['pack', '--dry-run'], { CXX: '/nonexistent/g++' });
    expect(status).not.toBe(0);
    expect(stdout).not.toContain('vmexit-');
    expect(stderr).toMatch(/building the addon needs \/nonexistent\/g\+\+/);
  });
});

describe('an installed package, with nothing but node', () => {
  it('runs the first program of the README on the simulator or on KVM', () => {
    // It has no types to strip.
    const [, block] = /^```[jt]s\n(.*?)^```$/ms.exec(readFileSync(join(installed, 'README.md'), 'utf8'))!;
    const { status, stdout, stderr } = program(block!);
    expect([status, stdout], stderr).toEqual([0, '9876543210 HLT\n']);
    expect(stderr).not.toContain('VMEXIT_ADDON');
  });

  it('runs its compiled examples', () => {
    const example = join(installed, 'dist', 'examples', 'hello-real-mode.js');
    const { status, stdout } = run(project, process.execPath, [example], { PATH: work.bare });
    expect(status).toBe(0);
    expect(stdout).toMatch(/^Hello!\n/);
  });

  it('loads the prebuilt addon', ({ skip }) => {
    skip(!isHost, 'the prebuilt addons are for Linux on x86-64');
    // Only the addon is told by the kernel that a device is not KVM's.
    const { stdout } = program(open('/dev/null'));
    expect(JSON.parse(stdout)).toEqual({ reason: 'device', message: expect.stringContaining(OTHER) });
    const opened = JSON.parse(program(open()).stdout);
    if (opened.backend) expect(opened.backend).toBe('kvm');
    else expect(['device', 'permission']).toContain(opened.reason);
  });

  it('has its command', () => {
    const { status, stdout } = vmexit(['probe', '--json']);
    expect(status).toBe(0);
    expect(JSON.parse(stdout).kvm.reason).not.toBe('addon');
    expect(must(project, 'npx', ['vmexit', '--version'])).toBe('0.1.0\n');
  });

  it('says that there is nothing to set up', ({ skip }) => {
    skip(!isHost, 'the prebuilt addons are for Linux on x86-64');
    const { status, stderr } = vmexit(['setup']);
    expect([status, stderr]).toEqual([
      0,
      expect.stringMatching(
        /^vmexit setup: nothing to do: .*\/prebuilds\/linux-x64-\w+\/vmexit\.node loads\n$/,
      ),
    ]);
  });
});

describe('an installed package whose prebuilt addons do not fit', () => {
  const away = () => join(project, 'prebuilds');
  beforeAll(() => renameSync(join(installed, 'prebuilds'), away()));
  afterAll(() => {
    rmSync(join(installed, 'build'), { recursive: true, force: true });
    renameSync(away(), join(installed, 'prebuilds'));
  });

  it('names the command that builds one', ({ skip }) => {
    skip(!isHost, 'the addon is for Linux on x86-64');
    const opened = JSON.parse(program(open('/dev/null')).stdout);
    expect(opened.reason).toBe('addon');
    expect(opened.message).toContain('npx vmexit setup builds it');
  });

  it('says what it needs for that where there is no compiler', ({ skip }) => {
    skip(!isHost, 'the addon is for Linux on x86-64');
    const { status, stderr } = vmexit(['setup'], { CXX: '/nonexistent/g++', MAKE: '/nonexistent/make' });
    expect(status).toBe(1);
    expect(stderr).toMatch(
      /building the addon needs \/nonexistent\/g\+\+ and \/nonexistent\/make: apt-get install g\+\+ make python3/,
    );
  });

  it('builds one in place by npx vmexit setup', { timeout: 5 * MINUTES }, ({ skip }) => {
    skip(!isHost, 'the addon is for Linux on x86-64');
    const { status, stderr } = run(project, 'npx', ['vmexit', 'setup']);
    expect(status, stderr).toBe(0);
    expect(stderr).toMatch(/node_modules\/vmexit\/build\/Release\/vmexit\.node is built, and loads/);
    expect(JSON.parse(program(open('/dev/null')).stdout).message).toContain(OTHER);
  });
});

describe('an install from git', () => {
  it('has what npm packs, compiled, and no addon before vmexit setup', { timeout: 5 * MINUTES }, () => {
    const git = (...args: string[]) =>
      must(clone, 'git', ['-c', 'user.name=vmexit', '-c', 'user.email=vmexit@localhost', ...args]);
    git('init', '-q');
    git('add', '-A');
    git('commit', '-q', '-m', 'all of it');
    const folder = work.emptyProject('from-git');
    must(folder, 'npm', ['install', '--no-audit', '--no-fund', `git+file://${clone}`]);
    writeFileSync(join(folder, 'program.mjs'), open('/dev/null'));
    const opened = JSON.parse(must(folder, process.execPath, ['program.mjs'], { PATH: work.bare }));
    expect(opened.reason).toBe(isHost ? 'addon' : 'platform');
    if (isHost) expect(opened.message).toContain('npx vmexit setup builds it');
  });
});

describe('in the lab', () => {
  const built = isHost && labStatus().kernels.some(({ name, built }) => name === 'vanilla' && built);

  it('an installed package opens the real KVM by its prebuilt addon, and a guest runs', {
    timeout: 10 * MINUTES,
  }, ({ skip }) => {
    skip(!built, "the lab's kernel is not built: npx vmexit lab build");
    expect(existsSync(join(installed, 'build'))).toBe(false);
    writeFileSync(
      join(project, 'guest.mjs'),
      `import { enterRealMode, exitName, openHypervisor } from 'vmexit';
      const hv = openHypervisor({ backend: 'kvm', needs: ['private-memory'] });
      const vm = hv.createVm();
      const memory = vm.allocate(1 << 16);
      vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memory });
      memory.write(0x1000, Uint8Array.of(0xb0, 0x2a, 0xe6, 0x10, 0xf4)); // mov al, 42; out 0x10, al; hlt
      const vcpu = vm.createVcpu();
      enterRealMode(vcpu);
      vcpu.setRegs({ rip: 0x1000, rflags: 2 });
      const exits = [exitName(vcpu.run(60_000)), vcpu.io.value, exitName(vcpu.run(60_000))];
      console.log(JSON.stringify({ backend: hv.backend, exits }));`,
    );
    const lab = [join(root, 'dist', 'cli', 'main.js'), 'lab', 'run', '--', process.execPath, 'guest.mjs'];
    const stdout = must(project, process.execPath, lab);
    expect(JSON.parse(stdout)).toEqual({ backend: 'kvm', exits: ['IO', 42, 'HLT'] });
  });
});
