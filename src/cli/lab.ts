/** `vmexit lab`: the command line of the lab. */
import { parseArgs } from 'node:util';
import {
  ACCEL_CHOICES,
  type AccelChoice,
  buildKernels,
  DEFAULT_KERNEL,
  DEFAULT_MEMORY_MIB,
  DEFAULT_TIMEOUT_MS,
  kernelNames,
  LabError,
  type LabErrorCode,
  type LabRun,
  labStatus,
  runInLab,
  showProgress,
} from '../lab/index.ts';

const HELP = `vmexit lab: a real kernel with private guest memory, on any x86-64 Linux machine

  vmexit lab build     build its kernel: some minutes, once
  vmexit lab run       run a command in it
  vmexit lab status    what is built and what is missing

Each has --help.
`;

const BUILD_HELP = `vmexit lab build [options]: build the lab's kernel, unless that is done

  --install        install missing Debian packages first (as root), and do what --backports does
  --backports      on Debian bookworm, take the QEMU of its backports into the cache: no root, nothing is installed
  --kernel NAME    which kernel: ${kernelNames().join(', ')} (default ${DEFAULT_KERNEL}); may be repeated
  --jobs N         how many compilers at a time (default: all processors)
  --verbose        show what the build writes, not one line of progress

Kernels are kept in \${VMEXIT_LAB_CACHE:-\${XDG_CACHE_HOME:-~/.cache}/vmexit/lab}. Their folders go to stdout.
`;

const RUN_HELP = `vmexit lab run [options] -- COMMAND [ARGUMENT...]: run a command in the lab

  --timeout SECONDS   time limit, the boot included (default ${DEFAULT_TIMEOUT_MS / 1000})
  --memory MIB        memory of the machine (default ${DEFAULT_MEMORY_MIB})
  --cpus N            processors of the machine (default: where it is emulated 2, or 1 by a QEMU before 8.1; else at most 4)
  --kernel NAME       which kernel: ${kernelNames().join(', ')} (default ${DEFAULT_KERNEL})
  --parameter NAME=VALUE
                      a parameter for the kernel, such as kvm.tdp_mmu=0; may be repeated
  --accel HOW         ${ACCEL_CHOICES.join(', ')} (default auto: kvm where the host nests, else tcg)
  --cwd DIR           where the command runs (default: here)
  --env NAME=VALUE    set a variable; may be repeated
  --share DIR         a folder of the host that is writable inside, under the same path

Inside is this machine's own root: what is written there is forgotten, but for --share. stdin is empty. The
environment is PATH, HOME, USER, LANG and TERM, VMEXIT_LAB=1, VMEXIT_LAB_KERNEL,
VMEXIT_LAB_MACHINE, which says what was booted, and VMEXIT_LAB_PARAMETERS where there are some.

Exit status: the command's; 128+n if signal n ended it; 123 the kernel is not built; 124 the time limit passed;
125 the lab failed; 2 wrong usage.
`;

const STATUS_HELP = `vmexit lab status [--json]: what is built, what is missing, which acceleration would be used
`;

/** What a failure of the lab becomes as an exit status; the rest is 125, as with timeout(1) and env(1). */
const STATUS_OF: Partial<Record<LabErrorCode, number>> = {
  ERR_LAB_ARGUMENT: 2,
  ERR_LAB_NOT_BUILT: 123,
  ERR_LAB_TIMEOUT: 124,
};

const STATUS_OF_SIGPIPE = 141;
const SIGNALS = { SIGINT: 130, SIGTERM: 143, SIGHUP: 129 } as const;

const say = (text: string) => process.stderr.write(`vmexit lab: ${text}\n`);

type Ended = { signal: AbortSignal; status: () => number | undefined };

const COMMANDS: Record<string, (argv: string[], ended: Ended) => Promise<number>> = { build, run, status };

/** Runs `vmexit lab` with the arguments after `lab`, and returns the exit status. Throws nothing. */
export async function lab(argv: string[]): Promise<number> {
  const [name, ...rest] = argv;
  if (name === undefined || name === '--help' || name === '-h' || name === 'help') {
    process.stdout.write(HELP);
    return name === undefined ? 2 : 0;
  }
  const command = Object.hasOwn(COMMANDS, name) ? COMMANDS[name] : undefined;
  if (!command) {
    say(`no command '${name}': there is ${Object.keys(COMMANDS).join(', ')}`);
    return 2;
  }

  const abort = new AbortController();
  let status: number | undefined;
  const listeners = Object.entries(SIGNALS).map(([signal, number]) => {
    const listener = () => {
      status = number;
      abort.abort();
    };
    process.on(signal, listener);
    return () => process.off(signal, listener);
  });
  // A reader that went away, such as head(1): end as a program does that SIGPIPE ends.
  const onPipe = () => {
    status = STATUS_OF_SIGPIPE;
    abort.abort();
  };
  process.stdout.on('error', onPipe);
  try {
    return await command(rest, { signal: abort.signal, status: () => status });
  } catch (error) {
    if (error instanceof LabError) {
      if (status !== STATUS_OF_SIGPIPE) say(error.message);
      return status ?? STATUS_OF[error.code] ?? 125;
    }
    if (error instanceof TypeError && 'code' in error && String(error.code).startsWith('ERR_PARSE_ARGS')) {
      say(error.message);
      return 2;
    }
    say(error instanceof Error ? (error.stack ?? error.message) : String(error));
    return 125;
  } finally {
    for (const remove of listeners) remove();
    process.stdout.off('error', onPipe);
  }
}

async function build(argv: string[], { signal }: Ended): Promise<number> {
  const { values } = parseArgs({
    args: argv,
    options: {
      help: { type: 'boolean', short: 'h' },
      install: { type: 'boolean' },
      backports: { type: 'boolean' },
      kernel: { type: 'string', multiple: true },
      jobs: { type: 'string' },
      verbose: { type: 'boolean' },
    },
  });
  if (values.help) {
    process.stdout.write(BUILD_HELP);
    return 0;
  }
  using progress = values.verbose ? undefined : showProgress(process.stderr);
  const notes: string[] = [];
  const built = await buildKernels({
    signal,
    onNote: (note) => notes.push(note),
    ...(values.install ? { install: true } : {}),
    ...(values.backports ? { backports: true } : {}),
    ...(values.kernel === undefined ? {} : { kernels: values.kernel }),
    ...(values.jobs === undefined ? {} : { jobs: Number(values.jobs) }),
    ...(progress ? { report: progress.report } : { onLine: (line) => process.stderr.write(`${line}\n`) }),
  });
  progress?.[Symbol.dispose]();
  for (const note of notes) say(note);
  for (const { version, kernel, directory } of built) {
    say(`kernel ${version} (${kernel}) is built`);
    process.stdout.write(`${directory}\n`);
  }
  return 0;
}

/** The arguments of `vmexit lab run` as a run; undefined if help is wanted. Throws LabError ERR_LAB_ARGUMENT. */
export function parseRun(argv: string[]): LabRun | undefined {
  const split = argv.indexOf('--');
  const { values } = parseArgs({
    args: split < 0 ? argv : argv.slice(0, split),
    options: {
      help: { type: 'boolean', short: 'h' },
      timeout: { type: 'string' },
      memory: { type: 'string' },
      cpus: { type: 'string' },
      kernel: { type: 'string' },
      parameter: { type: 'string', multiple: true },
      accel: { type: 'string' },
      cwd: { type: 'string' },
      env: { type: 'string', multiple: true },
      share: { type: 'string' },
    },
  });
  if (values.help) return undefined;
  const [command, ...args] = split < 0 ? [] : argv.slice(split + 1);
  if (!command) {
    throw new LabError('ERR_LAB_ARGUMENT', 'no command: vmexit lab run [options] -- COMMAND [ARGUMENT...]');
  }
  if (values.accel !== undefined && !(ACCEL_CHOICES as readonly string[]).includes(values.accel)) {
    throw new LabError(
      'ERR_LAB_ARGUMENT',
      `--accel ${values.accel}: it must be one of ${ACCEL_CHOICES.join(', ')}`,
    );
  }
  return {
    command,
    args,
    ...(values.timeout === undefined
      ? {}
      : { timeoutMs: Math.round(number('--timeout', values.timeout) * 1000) }),
    ...(values.memory === undefined ? {} : { memory: number('--memory', values.memory) }),
    ...(values.cpus === undefined ? {} : { cpus: number('--cpus', values.cpus) }),
    ...(values.kernel === undefined ? {} : { kernel: values.kernel }),
    ...(values.parameter === undefined ? {} : { parameters: values.parameter }),
    ...(values.accel === undefined ? {} : { accel: values.accel as AccelChoice }),
    ...(values.cwd === undefined ? {} : { cwd: values.cwd }),
    ...(values.share === undefined ? {} : { share: values.share }),
    env: Object.fromEntries((values.env ?? []).map(variable)),
  };
}

function number(option: string, text: string): number {
  if (!/^\d+(\.\d+)?$/.test(text)) {
    throw new LabError('ERR_LAB_ARGUMENT', `${option} ${text}: it must be a number`);
  }
  return Number(text);
}

function variable(text: string): [string, string] {
  const equals = text.indexOf('=');
  if (equals < 1) throw new LabError('ERR_LAB_ARGUMENT', `--env ${text}: it must be NAME=VALUE`);
  return [text.slice(0, equals), text.slice(equals + 1)];
}

async function run(argv: string[], { signal }: Ended): Promise<number> {
  const parsed = parseRun(argv);
  if (!parsed) {
    process.stdout.write(RUN_HELP);
    return 0;
  }
  const result = await runInLab({
    ...parsed,
    signal,
    onStart: say,
    // Writes to files, pipes and terminals are synchronous on Linux: a slow reader slows the command down.
    onStdout: (chunk) => process.stdout.write(chunk),
    onStderr: (chunk) => process.stderr.write(chunk),
  });
  return result.status;
}

async function status(argv: string[]): Promise<number> {
  const { values } = parseArgs({
    args: argv,
    options: { help: { type: 'boolean', short: 'h' }, json: { type: 'boolean' } },
  });
  if (values.help) {
    process.stdout.write(STATUS_HELP);
    return 0;
  }
  const found = labStatus();
  if (values.json) {
    process.stdout.write(`${JSON.stringify(found, undefined, 2)}\n`);
    return 0;
  }
  const { acceleration, missing } = found;
  const rows = [
    ...found.kernels.map(({ name, built }) => [
      `kernel ${name}`,
      built ? `${built.version}, ${built.directory}` : `not built: npx vmexit lab build --kernel ${name}`,
    ]),
    ['cache', found.cache],
    ['QEMU', found.qemu ? `${found.qemu.description}, ${found.qemu.program}` : 'none'],
    ['packages to run', missing.run.join(' ') || 'all there'],
    ['packages to build', missing.build.join(' ') || 'all there'],
    [
      'acceleration',
      acceleration.description +
        (acceleration.whyNotKvm ? ` (${acceleration.whyNotKvm})` : '') +
        (found.qemu ? `, processors: ${found.qemu.cpus}` : ''),
    ],
  ] as const;
  const width = Math.max(...rows.map(([title]) => title!.length));
  process.stdout.write(rows.map(([title, text]) => `${title!.padEnd(width)}  ${text}\n`).join(''));
  return 0;
}
