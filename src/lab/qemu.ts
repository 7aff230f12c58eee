/** The machine, as arguments of QEMU; and the two files that tell its init what to do. */
import type { Accel } from './accel.ts';

/** The file descriptors that QEMU inherits, one socket for each port of the machine; init knows their order. */
export const PORTS = [
  { name: 'control', fd: 3 },
  { name: 'stdout', fd: 4 },
  { name: 'stderr', fd: 5 },
] as const;

export interface Machine {
  readonly accel: Accel;
  readonly bzImage: string;
  /** Guest memory in MiB. */
  readonly memory: number;
  readonly cpus: number;
  /** The folder with `init`, `fstab` and `command`, seen from inside through the shared root. */
  readonly runFolder: string;
  /** Parameters of the kernel, such as `kvm.tdp_mmu=0`, after the lab's own. */
  readonly parameters?: readonly string[];
  /** A host folder that is writable inside, under the same absolute path. */
  readonly share?: string | undefined;
}

function acceleration(accel: Accel, cpus: number): string[] {
  if (accel === 'kvm') return ['-accel', 'kvm', '-cpu', 'host'];
  // Several take turns in one thread. With a thread for each, QEMU before 8.1 goes on executing code that another has
  // replaced, and 10.0 has now and then lost the second one's timer while the kernel booted (scripts/lab-soak.mjs).
  const threads = cpus === 1 ? 'multi' : 'single';
  // An AMD processor, because QEMU emulates SVM with nested paging and no VMX.
  return ['-accel', `tcg,thread=${threads}`, '-cpu', 'EPYC-v2,+svm,+npt'];
}

/** QEMU splits its options at commas; a doubled comma stands for one. */
const value = (text: string) => text.replaceAll(',', ',,');

/** QEMU's arguments for a machine. */
export function qemuArguments(machine: Machine): string[] {
  const { accel, bzImage, memory, cpus, runFolder, share, parameters = [] } = machine;
  // multidevs=remap: the host's root is many file systems, whose inode numbers would collide as one.
  const folder = (path: string, tag: string, more: string) => [
    '-virtfs',
    `local,path=${value(path)},mount_tag=${tag},security_model=none,multidevs=remap${more}`,
  ];
  return [
    ...['-name', 'vmexit-lab', '-no-user-config', '-nodefaults', '-display', 'none', '-no-reboot'],
    ...['-machine', 'q35', ...acceleration(accel, cpus)],
    ...['-smp', String(cpus), '-m', String(memory)],
    ...['-kernel', bzImage, '-append', kernelCommandLine(runFolder, parameters)],
    ...folder('/', 'root', ',readonly=on'),
    ...(share === undefined ? [] : folder(share, 'share', '')),
    ...['-device', 'virtio-rng-pci'],
    ...['-chardev', 'stdio,id=console,signal=off', '-serial', 'chardev:console'],
    ...['-device', 'virtio-serial-pci'],
    ...PORTS.flatMap(({ name, fd }, index) => [
      ...['-chardev', `socket,id=${name},fd=${fd}`],
      ...['-device', `virtserialport,chardev=${name},nr=${index + 1}`],
    ]),
  ];
}

const P9_OPTIONS = 'trans=virtio,version=9p2000.L,msize=524288';

function kernelCommandLine(runFolder: string, parameters: readonly string[]): string {
  return [
    ...['console=ttyS0', 'quiet', 'panic=-1', 'reboot=t', 'hostname=vmexit-lab'],
    // The delay loop of a 4 GHz clock at 250 Hz, so no delay is too short. Unless told, each processor but the
    // first measures it, which takes an emulated one a second and fails.
    'lpj=16000000',
    // The kernel panics if ten ticks of 4 ms do not come within 40 ms of an early delay, and on a busy host they may not.
    // Guests of hypervisors that it knows are spared this check.
    'no_timer_check',
    // Nothing on the host changes its root under a run that matters to it, so lookups may be remembered.
    ...['root=root', 'rootfstype=9p', `rootflags=${P9_OPTIONS},cache=loose`, 'ro'],
    ...parameters,
    // A shell by name rather than by #!, so that init needs no mode bits, which packages lose.
    ...['init=/bin/sh', '--', `"${runFolder}/init"`, `"${runFolder}"`],
  ].join(' ');
}

/** Where init puts the new root, and what it mounts in it, as fstab lines. */
export function fstab(root: string, share?: string): string {
  // fstab separates by blanks and writes those inside a name in octal.
  const at = (path: string) =>
    `${root}${path}`.replace(/[\s\\]/g, (c) => `\\${c.charCodeAt(0).toString(8).padStart(3, '0')}`);
  const rows = [
    ['proc', '/proc', 'proc', 'defaults'],
    ['sysfs', '/sys', 'sysfs', 'defaults'],
    ['debugfs', '/sys/kernel/debug', 'debugfs', 'defaults'],
    ['devtmpfs', '/dev', 'devtmpfs', 'defaults'],
    ['devpts', '/dev/pts', 'devpts', 'mode=600,ptmxmode=666,X-mount.mkdir'],
    ['tmpfs', '/dev/shm', 'tmpfs', 'mode=1777,X-mount.mkdir'],
    ['hugetlbfs', '/dev/hugepages', 'hugetlbfs', 'X-mount.mkdir'],
    // Written through at once: the host reads the files when the run ends, and QEMU is killed then.
    ...(share === undefined ? [] : [['share', share, '9p', `${P9_OPTIONS},cache=mmap,X-mount.mkdir`]]),
  ] as const;
  return rows
    .map(([source, path, type, options]) => `${source} ${at(path)} ${type} ${options} 0 0\n`)
    .join('');
}

export interface Command {
  readonly command: string;
  readonly args: readonly string[];
  /** An absolute path. */
  readonly cwd: string;
  readonly env: Readonly<Record<string, string>>;
}

/** The shell script that becomes the command: environment, working folder, exec. */
export function commandScript({ command, args, cwd, env }: Command): string {
  return [
    ...Object.entries(env).map(([name, text]) => `export ${name}=${quote(text)}`),
    'unset PWD OLDPWD', // the shell's own; cd sets them again
    `cd ${quote(cwd)} || exit 126`,
    `exec ${[command, ...args].map(quote).join(' ')}`,
    '',
  ].join('\n');
}

/** A word that a POSIX shell reads back as exactly this text. */
export function quote(text: string): string {
  return `'${text.replaceAll("'", `'\\''`)}'`;
}
