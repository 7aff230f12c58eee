/** `vmexit run`: one guest, from its file to its exit status. */
import { KvmError, VmexitError } from '../hypervisor/errors.ts';
import type { Vcpu } from '../hypervisor/vcpu.ts';
import type { Vm } from '../hypervisor/vm.ts';
import { describeExit, type KvmExit } from '../uapi/exits.ts';
import type { RunEnd } from '../vmm/run-loop.ts';
import type { RunLoops } from '../vmm/run-loops.ts';
import { Trace } from '../vmm/trace.ts';
import { pagingAccount } from './account.ts';
import { BACKENDS, oneOf, parse, seconds, UsageError } from './args.ts';
import { fixedOption, loadedGuest, type OpenGuest, PROGRAM_OPTIONS, restoredGuest } from './guest.ts';
import { interruptible } from './interrupt.ts';
import { guestLoop } from './loop.ts';
import { missingSystem } from './no-system.ts';
import { clockOf, RecordedSignal } from './recorded.ts';
import { Watch } from './watch.ts';

const HELP = `vmexit run [options] <guest>: run a guest until it ends
vmexit run [options] --restore FILE: go on with a guest that vmexit snapshot has saved

The guest is an ELF64 executable for x86-64, whose segments go to their physical addresses and which begins in
64-bit mode; or a flat binary, which goes to address 0x1000 and begins there in real mode. With - it comes by standard
input. What is recognised as something else (a bzImage, an ISO image, a source) is refused, with what would run it.

  --mode real|long   how a flat binary begins: in 16-bit real mode, or in 64-bit mode (default real)
  --at ADDRESS       where a flat binary goes (default 0x1000): a boot sector to 0x7c00
  --entry ADDRESS    where it begins (default: at its first byte); in real mode below 1 MiB
  --force            take it for a guest, whatever else it is
  --memory SIZE      guest memory, such as 64M or 1G, from address 0 (default 64M, at most 3G)
  --cpus N           how many processors the guest has (default 1, at most 64)
  --private          let the guest have private memory, and serve its conversions
  --timeout SECONDS  end a guest that has not ended by then, with status 124
  --trace FILE       write one line of JSON for each exit, memory fault and conversion
  --trace-instructions   and for each instruction and each fault of the second stage of translation, in the
                     simulator: KVM's guests run on the processor itself, and it tells of exits alone
  --json             print one JSON object about the run on stdout; serial output goes to stderr then
  --backend NAME     kvm, sim (the simulator), or auto (default): KVM where it can do it, else the simulator
  --device PATH      where KVM is (default /dev/kvm)
  --restore FILE     go on with a guest that vmexit snapshot has saved; there is no <guest> then. It runs on the backend
                     that it was saved on unless another is named, which must have its processor's features. Of one that
                     was saved by --since the older snapshots are read too, from where they were
  --record FILE      record what goes on between the guest and its VMM: vmexit replay FILE runs it again without KVM
                     (not with --private, --restore or --trace-instructions)
  --lazy             with --restore: begin at once, and read memory as the guest touches it

In 64-bit mode the first 4 GiB are mapped one to one by 2 MiB pages, the stack is below the page tables at the end of
memory, rdi holds the size of memory in bytes and rsi is 1 with --private. All processors begin at the same place, with
their number in rdx (in real mode dx), each with a stack of its own; the guest has ended when all have halted. In real
mode all segments begin at 0 (the code segment at the entry's 64 KiB), and the stack is below 0x1000, or below 0xff00 if
the program is there. Interrupts are off, and there is no interrupt controller, no BIOS and no kernel: a guest that
calls one is ended, and told of. For that the interrupt vectors of real mode lead to 256 bytes at 0xfff00 (or, with less
memory, at its end), and SYSCALL to an address that is not mapped.

What the guest sends to the serial port (0x3f8) goes to stdout, byte for byte. It ends by HLT, or by writing to port
0xf4: what it writes is the exit status, 255 for more than that. Ports and addresses that nobody has read as all ones.

A line of the trace has its time: \`ms\`, the milliseconds since the run began. In the simulator it is \`insns\`, the
instructions that the guest has completed, and time-stamp counters count the same: the same guest with the same
options gives the same trace, byte for byte, as long as it is not ended from outside. With --trace-instructions an
instruction is written before it executes, and \`lacks\` names one that the simulator does not have.

Exit status: 0 after HLT; what the guest wrote to port 0xf4; 1 when it crashed (a triple fault, a memory fault that
nothing resolves) or could not be loaded; 2 wrong usage; 69 this host cannot; 124 the time limit; 130 interrupted.
`;

const OPTIONS = {
  ...PROGRAM_OPTIONS,
  restore: { type: 'string' },
  lazy: { type: 'boolean', default: false },
  timeout: { type: 'string' },
  trace: { type: 'string' },
  'trace-instructions': { type: 'boolean', default: false },
  json: { type: 'boolean', default: false },
  record: { type: 'string' },
  backend: { type: 'string', default: 'auto' },
} as const;

/** A status is eight bits; no failure may look like success. */
const MAX_STATUS = 255;

/** What each end of a run is called, and becomes as an exit status. */
const ends: { readonly [R in RunEnd['reason']]: readonly [result: string, status: number] } = {
  halt: ['halted', 0],
  stop: ['exited', 0],
  timeout: ['timeout', 124],
  abort: ['interrupted', 130],
  unhandled: ['crashed', 1],
};

/** The exit status of a run that has ended so. */
export const statusOf = (end: RunEnd | { readonly reason: 'unhandled' }): number =>
  end.reason === 'stop' ? Math.min(end.value, MAX_STATUS) : ends[end.reason][1];

const WAITS =
  'the guest has halted with interrupts on: it waits for one, and here is nothing that brings any';

/** What a crash of some kind most often is. */
const hints: { readonly [reason: string]: string } = {
  SHUTDOWN:
    'an exception that it has no handler for: often a bad address, or code for another mode (--mode, for a flat binary)',
  INTERNAL_ERROR: 'often code in memory that nobody has, or an instruction that KVM cannot emulate',
};

export async function run(argv: string[]): Promise<number> {
  const parsed = parse(argv, OPTIONS, HELP, ({ restore }) => (restore === undefined ? ['<guest>'] : []));
  if (!parsed) return 0;
  const { values, positionals } = parsed;
  const instructions = values['trace-instructions'];
  if (instructions && values.trace === undefined)
    throw new UsageError('--trace-instructions needs --trace FILE');
  const backend = backendFor(oneOf('--backend', values.backend, BACKENDS), instructions);
  const timeoutMs = values.timeout === undefined ? undefined : seconds('--timeout', values.timeout);
  const { restore, lazy, record } = values;
  if (lazy && restore === undefined) throw new UsageError('--lazy needs --restore FILE');
  const told = fixedOption(values);
  if (restore !== undefined && told !== undefined)
    throw new UsageError(`--${told} is in the snapshot: --restore takes no other`);
  if (record !== undefined) checkRecordable(values);

  using guest =
    restore === undefined
      ? await loadedGuest(positionals[0]!, { ...values, timeoutMs }, backend)
      : await restoredGuest(restore, lazy, backend, values);
  if (backend !== values.backend)
    process.stderr.write('vmexit: sim: KVM does not tell of single instructions\n');
  return await runGuest(guest, { ...values, timeoutMs, instructions });
}

/** @throws UsageError for what a recording cannot have, before anything is opened */
function checkRecordable(values: { [option: string]: unknown }): void {
  const reasons = {
    private: "KVM keeps no log of private memory's pages",
    restore: 'a recording has no snapshot in it',
    'trace-instructions': 'it has exits, and no single instructions',
  };
  for (const [option, why] of Object.entries(reasons))
    if (values[option]) throw new UsageError(`--record takes no --${option}: ${why}`);
}

export interface RunSettings {
  readonly timeoutMs?: number | undefined;
  readonly trace?: string | undefined;
  readonly instructions?: boolean;
  readonly json: boolean;
  /** The guest is that of a recording. */
  readonly replays?: boolean;
}

/** Runs a guest until it ends, and gives the exit status. */
export async function runGuest(guest: OpenGuest, values: RunSettings): Promise<number> {
  const { timeoutMs, instructions = false, replays = false } = values;
  const { hv, vcpus } = guest;
  if (hv.fallback !== undefined) process.stderr.write(`vmexit: ${hv.backend}: ${hv.fallback}\n`);

  using trace = values.trace === undefined ? undefined : openTrace(values.trace);
  const watches = new Map(
    vcpus.map((vcpu) => [vcpu, new Watch({ vm: guest.vm, vcpu }, trace, instructions)]),
  );
  const { loop, faults } = guestLoop(guest, {
    handlers: guest.pager ? [guest.pager] : [],
    output: values.json ? process.stderr : process.stdout,
    trace,
    now: guest.recorded ? clockOf(hv) : undefined,
  });

  // Awaited here: what is opened above is closed when this function returns.
  return await interruptible(async (interrupt) => {
    const signal = guest.recorded ? new RecordedSignal(hv, interrupt, replays) : interrupt;
    const begun = performance.now();
    const end = await runOrFail(guest.vm, loop, { timeoutMs, signal });
    await guest.pager?.stop();
    const paging = guest.pager?.report;
    const elapsedMs = Math.round((performance.now() - begun) * 1000) / 1000;
    const [result] = ends[end.reason];
    const interrupted = end.reason === 'abort' && typeof signal.reason === 'number';
    const status = interrupted ? (signal.reason as number) : statusOf(end);
    const error = 'exit' in end || 'error' in end ? explain(end) : undefined;
    if (values.json) {
      const { memoryFaults, conversions } = faults.counters;
      const summary = {
        backend: hv.backend,
        guest: guest.name,
        ...(guest.mode === undefined ? {} : { mode: guest.mode }),
        result,
        ...('waiting' in end ? { waiting: true } : {}),
        status,
        exits: loop.exits,
        ...(vcpus.length === 1 ? {} : { cpus: vcpus.length }),
        ...instructionsOf(vcpus),
        memoryFaults,
        conversions,
        ...(paging === undefined ? {} : { paging }),
        unclaimed: { ports: loop.ports.unclaimed, mmio: loop.mmio.unclaimed },
        elapsedMs,
        ...(error === undefined ? {} : { error }),
      };
      process.stdout.write(`${JSON.stringify(summary)}\n`);
    } else if (paging !== undefined) process.stderr.write(`vmexit: ${pagingAccount(paging)}\n`);
    if (end.reason === 'timeout') {
      const at = vcpus.map((vcpu) => `0x${vcpu.getRegs().rip.toString(16)}`).join(', ');
      const text = `the guest has not ended within ${timeoutMs! / 1000} s; it is at rip ${at}`;
      process.stderr.write(`vmexit: ${text}\n`);
    }
    if ('waiting' in end) process.stderr.write(`vmexit: ${WAITS}\n`);
    if (error !== undefined) process.stderr.write(`vmexit: ${error}\n${watches.get(loop.vcpu)!.report()}\n`);
    return status;
  });
}

/** What all vCPUs have executed, where it is counted. */
function instructionsOf(vcpus: readonly Vcpu[]): { readonly instructions?: number } {
  const counts = vcpus.map(({ completed }) => completed);
  if (counts.includes(undefined)) return {};
  return { instructions: Number(counts.reduce((sum, count) => sum! + count!, 0n)) };
}

/** The one backend that can, for what only one can. @throws UsageError when that is not the one that was asked for */
function backendFor(asked: (typeof BACKENDS)[number], instructions: boolean): (typeof BACKENDS)[number] {
  if (!instructions) return asked;
  if (asked === 'kvm') {
    throw new UsageError(
      "--trace-instructions is the simulator's: KVM runs instructions on the processor itself, and tells of exits alone",
    );
  }
  return 'sim';
}

/** Failures that are the recording's, and no end of the guest. */
const notTheGuests: ReadonlySet<string> = new Set(['ERR_KVM_REPLAY', 'ERR_KVM_RECORDING']);

type Failed = { readonly reason: 'unhandled'; readonly error: VmexitError | KvmError };

/** The run's end. What the memory-fault service refuses, or KVM_RUN itself, is an end too, and has its summary. */
export async function runOrFail(
  vm: Vm,
  loop: RunLoops,
  limits: Parameters<RunLoops['run']>[0],
): Promise<RunEnd | Failed> {
  try {
    const end = await loop.run(limits);
    const missing =
      end.reason === 'halt' || end.reason === 'unhandled' ? missingSystem(vm, loop.vcpu) : undefined;
    return missing === undefined
      ? end
      : { reason: 'unhandled', error: new VmexitError('ERR_KVM_BAD_GUEST', missing) };
  } catch (error) {
    if (error instanceof VmexitError && notTheGuests.has(error.code)) throw error;
    if (error instanceof VmexitError || error instanceof KvmError) return { reason: 'unhandled', error };
    throw error;
  }
}

export function explain(end: { readonly exit: KvmExit } | Failed): string {
  if ('error' in end) return `the guest cannot go on: ${end.error.message}`;
  const hint = hints[end.exit.reason];
  return `the guest ended with ${describeExit(end.exit)}${hint ? `: ${hint}` : ''}`;
}

function openTrace(path: string): Trace {
  try {
    return new Trace(path);
  } catch (cause) {
    const { code = '' } = cause as NodeJS.ErrnoException;
    throw Object.assign(new Error(`--trace: ${path} cannot be written (${code})`, { cause }), {
      code: 'ERR_KVM_INVALID_ARG',
    });
  }
}
