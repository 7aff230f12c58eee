/** Boots the lab's machine, runs one command in it, and brings back its output and status. */
import { type ChildProcess, spawn } from 'node:child_process';
import { rmSync, statSync } from 'node:fs';
import { copyFile, mkdtemp, realpath, writeFile } from 'node:fs/promises';
import { tmpdir, totalmem } from 'node:os';
import { join, resolve } from 'node:path';
import type { Duplex, Readable } from 'node:stream';
import { type Accel, type AccelChoice, chooseAccel, describeAccel, hostNesting, usualCpus } from './accel.ts';
import { describeEmulator, type Emulator, findEmulator, QEMU } from './emulator.ts';
import { LabError } from './errors.ts';
import { sourceVersion } from './packages.ts';
import { commandScript, fstab, PORTS, qemuArguments } from './qemu.ts';
import { DEFAULT_KERNEL, findKernel, labFolder } from './recipe.ts';

export const DEFAULT_TIMEOUT_MS = 10 * 60_000;
export const DEFAULT_MEMORY_MIB = 3072;
/** What a timer of JavaScript can count, a little under 25 days. */
const MOST_TIMEOUT_MS = 2 ** 31 - 1;
const LEAST_MEMORY_MIB = 256;
/** CONFIG_NR_CPUS of kernel.fragment. */
const MOST_CPUS = 8;

/** How long the machine may take until the command starts; 2 to 3 s are usual under emulation. */
const BOOT_MS = 90_000;

/** By which a program ends that is wrong itself; nothing that a guest does ends QEMU so. */
const CRASHES: ReadonlySet<NodeJS.Signals> = new Set(['SIGSEGV', 'SIGBUS', 'SIGILL', 'SIGFPE', 'SIGABRT']);

/** How much of the console and of QEMU's own output an error quotes, in lines. */
const TAIL_LINES = 30;

export interface LabRun {
  /** The program, looked up in the PATH of the lab (which is the host's). */
  command: string;
  args?: readonly string[];
  /** An existing folder; the current one by default. The command runs in the same path inside. */
  cwd?: string;
  /**
   * Added to PATH, HOME, USER, LANG and TERM of this process, VMEXIT_LAB=1, VMEXIT_LAB_KERNEL, VMEXIT_LAB_PARAMETERS and
   * VMEXIT_LAB_MACHINE, what onStart() is told.
   */
  env?: Readonly<Record<string, string>>;
  /** An existing host folder, writable inside under the same path; all else written inside is forgotten. */
  share?: string;
  /** `vanilla`, or a folder of lab/kernel/patches. */
  kernel?: string;
  /** Parameters for the kernel's command line: `kvm.tdp_mmu=0` and the like, without blanks. */
  parameters?: readonly string[];
  accel?: AccelChoice;
  /** Guest memory in MiB, an integer from 256 to what the host has; 3072 by default. */
  memory?: number;
  /** Processors of the machine, 1 to 8; by default those of the host, at most 4, and one where it is emulated. */
  cpus?: number;
  /** The time limit from start to end, the boot included: 1 ms to 2^31-1 ms, 10 minutes by default. */
  timeoutMs?: number;
  /** Ends the run: the machine is ended and ERR_LAB_ABORTED thrown. */
  signal?: AbortSignal;
  /**
   * Told what is about to boot, such as `kernel 6.12.117 (vanilla), emulated SVM (tcg), 1 processor, QEMU 10.0.2 (the
   * lab's own)`.
   */
  onStart?: (description: string) => void;
  onStdout?: (chunk: Buffer) => void;
  onStderr?: (chunk: Buffer) => void;
}

export interface LabResult {
  /** The command's exit status; 128 + n if signal n ended it, 127 if it was not found. */
  readonly status: number;
  readonly kernel: string;
  readonly accel: Accel;
  /** From QEMU's start to the command's start. */
  readonly bootMs: number;
  readonly elapsedMs: number;
}

/**
 * Runs a command in the lab. stdin is /dev/null; stdout and stderr arrive byte for byte as they are written.
 *
 * Throws LabError: ERR_LAB_ARGUMENT, ERR_LAB_NOT_BUILT, ERR_LAB_PLATFORM and ERR_LAB_PACKAGES before anything is
 * started; ERR_LAB_BOOT, ERR_LAB_DIED, ERR_LAB_EMULATOR, ERR_LAB_TIMEOUT and ERR_LAB_ABORTED after the machine is gone.
 */
export async function runInLab(run: LabRun): Promise<LabResult> {
  const { kernel = DEFAULT_KERNEL, memory = DEFAULT_MEMORY_MIB, timeoutMs = DEFAULT_TIMEOUT_MS } = run;
  const cwd = resolve(run.cwd ?? process.cwd());
  checkFolder('cwd', cwd);
  if (run.share !== undefined) checkFolder('share', run.share);
  // Without symbolic links, for init would follow them in its own root. The names that lead here still do.
  const share = run.share === undefined ? undefined : await realpath(run.share);
  if (share === '/')
    throw new LabError('ERR_LAB_ARGUMENT', "share is '/': the root is shared anyway, read-only");
  checkInteger('memory', memory, LEAST_MEMORY_MIB, Math.floor(totalmem() / 2 ** 20), 'MiB');
  checkInteger('cpus', run.cpus ?? 1, 1, MOST_CPUS, 'processors');
  checkInteger('timeoutMs', timeoutMs, 1, MOST_TIMEOUT_MS, 'ms');
  const { parameters = [] } = run;
  for (const parameter of parameters) checkParameter(parameter);
  const env = labEnvironment(kernel, parameters, run.env);
  for (const word of [run.command, ...(run.args ?? []), ...Object.values(env)]) checkText(word);

  const built = findKernel(kernel, sourceVersion());
  if (!built) {
    const option = kernel === DEFAULT_KERNEL ? '' : ` --kernel ${kernel}`;
    throw new LabError(
      'ERR_LAB_NOT_BUILT',
      `the kernel '${kernel}' is not built yet: npx vmexit lab build${option} (some minutes, once)`,
    );
  }
  const host = hostNesting();
  const accel = chooseAccel(run.accel ?? 'auto', host);
  const emulator = findEmulator();
  if (!emulator) {
    const remedy = 'npx vmexit lab build --install, or apt-get install qemu-system-x86';
    throw new LabError('ERR_LAB_PACKAGES', `${QEMU} is not installed: ${remedy}`);
  }
  const cpus = run.cpus ?? usualCpus(accel, emulator);
  if (run.signal?.aborted) throw new LabError('ERR_LAB_ABORTED', 'the run was interrupted');
  const processors = `${cpus} ${cpus === 1 ? 'processor' : 'processors'}`;
  const description = `kernel ${built.version} (${kernel}), ${describeAccel(accel, host)}, ${processors}, ${describeEmulator(emulator)}`;
  run.onStart?.(description);
  env.VMEXIT_LAB_MACHINE = description;

  const runFolder = await mkdtemp(join(await realpath(tmpdir()), 'vmexit-lab-'));
  const remove = () => rmSync(runFolder, { recursive: true, force: true });
  process.once('exit', remove);
  try {
    await copyFile(join(labFolder, 'init'), join(runFolder, 'init'));
    await writeFile(join(runFolder, 'fstab'), fstab('/tmp/root', share));
    const script = commandScript({ command: run.command, args: run.args ?? [], cwd, env });
    await writeFile(join(runFolder, 'command'), script);
    const arguments_ = qemuArguments({
      ...{ accel, bzImage: built.bzImage, memory, cpus, runFolder, share, parameters },
    });
    return { kernel, accel, ...(await runMachine(emulator, arguments_, run, timeoutMs)) };
  } finally {
    remove();
    process.off('exit', remove);
  }
}

function checkFolder(name: string, path: string): void {
  if (!statSync(path, { throwIfNoEntry: false })?.isDirectory()) {
    throw new LabError('ERR_LAB_ARGUMENT', `${name} is '${path}': it must be an existing folder`);
  }
}

function checkInteger(name: string, number: number, least: number, most: number, unit: string): void {
  if (!Number.isInteger(number) || number < least || number > most) {
    const range = `an integer from ${least} to ${most} ${unit}`;
    throw new LabError('ERR_LAB_ARGUMENT', `${name} is ${number}: it must be ${range}`);
  }
}

function checkText(text: string): void {
  if (text.includes('\0')) {
    throw new LabError(
      'ERR_LAB_ARGUMENT',
      `'${text.replaceAll('\0', '\\0')}' has a NUL, which no argument can carry`,
    );
  }
}

function checkParameter(text: string): void {
  if (/^[\w.-]+(=[\w.,:/@-]*)?$/.test(text)) return;
  throw new LabError(
    'ERR_LAB_ARGUMENT',
    `'${text}' is no kernel parameter: it must be NAME or NAME=VALUE, such as kvm.tdp_mmu=0`,
  );
}

/** What the command finds in its environment. */
function labEnvironment(
  kernel: string,
  parameters: readonly string[],
  more: Readonly<Record<string, string>> = {},
): Record<string, string> {
  const env: Record<string, string> = {};
  for (const name of ['PATH', 'HOME', 'USER', 'LANG', 'TERM']) {
    const text = process.env[name];
    if (text !== undefined) env[name] = text;
  }
  for (const [name, text] of Object.entries(more)) {
    if (!/^[A-Za-z_][A-Za-z0-9_]*$/.test(name)) {
      throw new LabError('ERR_LAB_ARGUMENT', `'${name}' is no name of an environment variable`);
    }
    env[name] = text;
  }
  const booted = parameters.length > 0 ? { VMEXIT_LAB_PARAMETERS: parameters.join(' ') } : {};
  return { ...env, VMEXIT_LAB: '1', VMEXIT_LAB_KERNEL: kernel, ...booted };
}

/** QEMU warns of each feature of the processor model that it does not emulate, on each start. */
const NOISE = /TCG doesn't support requested feature/;

/** How the kernel begins to tell of its end; what follows the first of these says more than the last lines. */
const TROUBLE = /^(Oops|BUG|Kernel panic|Out of memory)/;

/** What an error quotes of a stream: some lines from the first sign of trouble, else its last ones. */
class Tail {
  #text = '';

  add(chunk: Buffer): void {
    this.#text = (this.#text + chunk.toString()).slice(-16_384);
  }

  toString(): string {
    const lines = this.#text.trimEnd().split(/\r?\n/);
    const telling = lines.filter((line) => !NOISE.test(line));
    const trouble = telling.findIndex((line) => TROUBLE.test(line));
    return (trouble < 0 ? telling : telling.slice(trouble, trouble + TAIL_LINES))
      .slice(-TAIL_LINES)
      .join('\n');
  }
}

/** Starts QEMU, serves its ports (the protocol is in lab/init), and ends it whatever happens. */
async function runMachine(
  emulator: Emulator,
  args: string[],
  run: LabRun,
  timeoutMs: number,
): Promise<{ status: number; bootMs: number; elapsedMs: number }> {
  const started = Date.now();
  const qemu = spawn(emulator.program, [...emulator.arguments, ...args], {
    env: { ...process.env, ...emulator.environment },
    stdio: ['ignore', 'pipe', 'pipe', ...PORTS.map(() => 'pipe' as const)],
    // Not in the terminal's group: an interrupt reaches the launcher, which ends QEMU in order.
    detached: true,
  });
  const kill = () => qemu.kill('SIGKILL');
  process.once('exit', kill);
  const gone = new Promise<void>((resolve) => {
    qemu.once('close', () => resolve());
    qemu.once('error', () => resolve());
  });
  const timers: NodeJS.Timeout[] = [];
  let onAbort: (() => void) | undefined;
  try {
    return await new Promise((resolve, reject) => {
      const machine = serve(qemu, run, started, resolve);
      const fail = (code: LabError['code'], what: string) =>
        reject(new LabError(code, what + machine.tails()));

      qemu.once('error', (error) => fail('ERR_LAB_BOOT', `${QEMU} does not start: ${error.message}`));
      qemu.once('close', (code, signal) => {
        const how = `QEMU ended with ${code ?? signal}`;
        if (signal !== null && CRASHES.has(signal)) fail('ERR_LAB_EMULATOR', `the emulator crashed (${how})`);
        else if (machine.bootMs === undefined)
          fail('ERR_LAB_BOOT', `the machine ended before the command started (${how})`);
        else fail('ERR_LAB_DIED', `the machine ended under the command: a panic or a reboot (${how})`);
      });
      timers.push(
        setTimeout(() => {
          if (machine.bootMs !== undefined) return;
          fail('ERR_LAB_BOOT', `the command has not started after ${BOOT_MS / 1000} s`);
        }, BOOT_MS),
        setTimeout(() => {
          reject(new LabError('ERR_LAB_TIMEOUT', `the time limit of ${timeoutMs / 1000} s has passed`));
        }, timeoutMs),
      );
      onAbort = () => reject(new LabError('ERR_LAB_ABORTED', 'the run was interrupted'));
      run.signal?.addEventListener('abort', onAbort, { once: true });
      if (run.signal?.aborted) onAbort(); // while this was being set up
    });
  } finally {
    for (const timer of timers) clearTimeout(timer);
    if (onAbort) run.signal?.removeEventListener('abort', onAbort);
    kill();
    await gone;
    process.off('exit', kill);
  }
}

/** Connects the ports of a started QEMU; calls `done` when the command has ended and all its output is here. */
function serve(
  qemu: ChildProcess,
  run: LabRun,
  started: number,
  done: (result: { status: number; bootMs: number; elapsedMs: number }) => void,
) {
  const [, console, complaints, control, stdout, stderr] = qemu.stdio as unknown as [
    null,
    Readable,
    Readable,
    Duplex,
    Duplex,
    Duplex,
  ];
  const consoleTail = new Tail();
  const qemuTail = new Tail();
  console.on('data', (chunk) => consoleTail.add(chunk));
  complaints.on('data', (chunk) => qemuTail.add(chunk));

  const machine = {
    bootMs: undefined as number | undefined,
    tails() {
      const tails = [
        ['QEMU said', qemuTail],
        ['the console said', consoleTail],
      ] as const;
      return tails.map(([title, tail]) => (`${tail}` ? `\n${title}:\n${tail}` : '')).join('');
    },
  };

  // The last bytes may come after the word that the command ended: then the counts tell when all are here.
  const received = [0, 0];
  let ended: { status: number; counts: number[] } | undefined;
  const finish = () => {
    if (!ended || ended.counts.some((count, port) => received[port]! < count)) return;
    done({ status: ended.status, bootMs: machine.bootMs ?? 0, elapsedMs: Date.now() - started });
  };
  const forward = (port: Duplex, index: number, sink?: (chunk: Buffer) => void) =>
    port.on('data', (chunk: Buffer) => {
      received[index]! += chunk.length;
      sink?.(chunk);
      finish();
    });
  forward(stdout, 0, run.onStdout);
  forward(stderr, 1, run.onStderr);

  let rest = '';
  control.on('data', (chunk: Buffer) => {
    const lines = (rest + chunk).split('\n');
    rest = lines.pop()!;
    for (const line of lines) {
      const [word, ...numbers] = line.split(' ');
      if (word === 'ready') {
        machine.bootMs = Date.now() - started;
        control.write(`${(Date.now() / 1000).toFixed(3)}\n`);
      } else if (word === 'exit') {
        const [status = 0, ...counts] = numbers.map(Number);
        ended = { status, counts };
        finish();
      }
    }
  });
  // A socket whose QEMU is killed may report so; the process's own end says it better.
  for (const port of [control, stdout, stderr]) port.on('error', () => {});
  return machine;
}
