#!/usr/bin/env node
/** The `vmexit` command: finds the subcommand, and turns what it throws into a line and an exit status. */
import { constants } from 'node:os';
import { setEnvironmentData } from 'node:worker_threads';
import { KvmError, UnavailableError, VmexitError } from '../hypervisor/errors.ts';
import { ADDON_WARNED, packageRequire } from '../package.ts';
import { UsageError } from './args.ts';

/** Runs with the arguments after its name, and gives the exit status. */
type Command = (argv: string[]) => Promise<number>;

const commands: {
  readonly [name: string]: { readonly summary: string; readonly load: () => Promise<Command> };
} = {
  probe: {
    summary: 'what KVM can do on this host, tried out, and why not',
    load: async () => (await import('./probe.ts')).probe,
  },
  run: {
    summary: 'run a guest: a flat binary or an ELF64 executable',
    load: async () => (await import('./run.ts')).run,
  },
  snapshot: {
    summary: 'run a guest to some point, and save it there: run --restore goes on',
    load: async () => (await import('./snapshot.ts')).snapshot,
  },
  replay: {
    summary: 'run again, without KVM, what vmexit run --record has recorded',
    load: async () => (await import('./replay.ts')).replay,
  },
  migrate: {
    summary: 'run a guest for a while, and hand it over to a vmexit receive elsewhere',
    load: async () => (await import('./migrate.ts')).migrate,
  },
  receive: {
    summary: 'take a guest over from vmexit migrate, and run it while its memory follows',
    load: async () => (await import('./receive.ts')).receive,
  },
  setup: {
    summary: 'build the addon, by which KVM is reached, where none that is there loads',
    load: async () => (await import('./setup.ts')).setup,
  },
  demo: {
    summary: 'see a guest keep a secret from its host',
    load: async () => (await import('./demo.ts')).demo,
  },
  lab: {
    summary: 'a real kernel with private guest memory, for hosts that have none',
    load: async () => (await import('./lab.ts')).lab,
  },
};

const list = Object.entries(commands).map(([name, { summary }]) => `  vmexit ${name.padEnd(10)}${summary}`);
const HELP = `vmexit: KVM for TypeScript

${list.join('\n')}

Each has --help. vmexit --version tells the version; --debug, or VMEXIT_DEBUG in the environment, shows where an
error comes from.

Exit status: 0; 1 an error; 2 wrong usage; 69 no backend on this host can do it; 124 the time limit passed;
130 interrupted (128 and the signal's number). vmexit run gives the guest's own status, and vmexit lab run its command's.
`;

/** EX_UNAVAILABLE of <sysexits.h>. */
const UNAVAILABLE = 69;
const USAGE = 2;

const version = (): string => (packageRequire('vmexit/package.json') as { version: string }).version;

const say = (text: string) => process.stderr.write(`vmexit: ${text}\n`);

/** Errors that were thrown on purpose, with a message for the user. */
const isOurs = (error: unknown): error is Error =>
  error instanceof KvmError ||
  error instanceof VmexitError ||
  (error instanceof Error && 'code' in error && /^ERR_(KVM|LAB)_/.test(String(error.code)));

/** Says what went wrong; gives the exit status. */
function report(error: unknown, where: string, debug: boolean): number {
  if (debug && error instanceof Error) process.stderr.write(`${error.stack ?? error.message}\n`);
  if (error instanceof UsageError) {
    say(`${where}${error.message} (vmexit ${where.replace(': ', ' ')}--help)`);
    return USAGE;
  }
  say(error instanceof Error ? error.message : String(error));
  if (!isOurs(error) && !debug)
    say('this is a bug in vmexit: please report it, with what VMEXIT_DEBUG=1 shows');
  if (!(error instanceof UnavailableError)) return 1;
  if (error.reason !== 'addon' && error.reason !== 'platform')
    say('a kernel that can is a few minutes away: npx vmexit lab --help');
  return UNAVAILABLE;
}

async function main(argv: string[]): Promise<number> {
  const debug = argv.includes('--debug') || Boolean(process.env.VMEXIT_DEBUG);
  const [name, ...rest] = argv[0] === '--debug' ? argv.slice(1) : argv;
  let where = '';
  try {
    if (name === undefined) throw new UsageError(`a command is missing: ${Object.keys(commands).join(', ')}`);
    if (name === 'help' && rest.length > 0) return await main([...rest, '--help']);
    if (name === '--help' || name === '-h' || name === 'help') {
      process.stdout.write(HELP);
      return 0;
    }
    if (name === '--version' || name === '-V') {
      process.stdout.write(`${version()}\n`);
      return 0;
    }
    if (name.startsWith('-')) throw new UsageError(`Unknown option '${name}'`);
    if (!Object.hasOwn(commands, name)) {
      throw new UsageError(`there is no command '${name}': there is ${Object.keys(commands).join(', ')}`);
    }
    where = `${name}: `;
    const command = await commands[name]!.load();
    return await command(rest);
  } catch (error) {
    return report(error, where, debug);
  }
}

// A reader that goes away (head) is no error of ours: end as a program does that SIGPIPE ends. A full disk is to be told.
process.stdout.on('error', ({ code, message }: NodeJS.ErrnoException) => {
  if (code === 'EPIPE') process.exit(128 + constants.signals.SIGPIPE);
  say(`standard output cannot be written: ${message}`);
  process.exit(1);
});
// Where messages cannot be written either, the status is all there is to tell.
process.stderr.on('error', () => {});
// Each command says itself on what its guest runs, and why.
setEnvironmentData(ADDON_WARNED, true);
process.exitCode = await main(process.argv.slice(2));
