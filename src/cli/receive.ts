/** `vmexit receive`: waits for a guest that vmexit migrate hands over, and runs it to its end. */
import { openHypervisor } from '../open.ts';
import {
  type ArrivingGuest,
  parseAddress,
  type ReceivedGuest,
  receiveGuest,
} from '../vmm/migration/index.ts';
import type { RunLoops } from '../vmm/run-loops.ts';
import { BACKENDS, oneOf, parse, seconds, size, UsageError } from './args.ts';
import { deviceOf } from './guest.ts';
import { interruptible } from './interrupt.ts';
import { guestLoop } from './loop.ts';
import { explain, runOrFail, statusOf } from './run.ts';

const HELP = `vmexit receive [options] <address>: take over a guest from vmexit migrate, and run it to its end

The address is unix:PATH or tcp:HOST:PORT; port 0 is a free one, and stderr tells which. One guest comes, and goes on at
once: memory that it touches is fetched first, the rest follows. Its serial output goes to stdout; how it came is told on
stderr at the end. When the source is lost before all memory is here, the guest is stopped: no page is taken for zeroes.

Who connects is believed, and nothing is encrypted: use a Unix socket in a folder of your own, or a tunnel.

  --memory SIZE      the most memory that the guest may have (default: what this host has)
  --silence SECONDS  how long the source may say nothing (default 30)
  --timeout SECONDS  end a guest that has not ended by then, with status 124
  --device PATH      where KVM is (default /dev/kvm)
  --backend NAME     kvm, sim (the simulator), or auto (default): KVM where it can do it, else the simulator

Exit status: as of vmexit run, of which this is the second half: 0 after HLT; what the guest wrote to port 0xf4; 1 when it
crashed, could not be taken over, or lost its source; 2 wrong usage; 69 this host cannot; 124 the time limit; 130
interrupted.
`;

const OPTIONS = {
  memory: { type: 'string' },
  silence: { type: 'string' },
  timeout: { type: 'string' },
  backend: { type: 'string', default: 'auto' },
  device: { type: 'string' },
} as const;

const say = (text: string) => process.stderr.write(`vmexit: ${text}\n`);

export async function receive(argv: string[]): Promise<number> {
  const parsed = parse(argv, OPTIONS, HELP, ['<address>']);
  if (!parsed) return 0;
  const { values, positionals } = parsed;
  const at = address('<address>', positionals[0]!);
  const timeoutMs = values.timeout === undefined ? undefined : seconds('--timeout', values.timeout);
  const options = {
    at,
    ...(values.silence === undefined ? {} : { timeoutMs: seconds('--silence', values.silence) }),
    ...(values.memory === undefined ? {} : { maxMemory: size('--memory', values.memory) }),
    onListening: (address: string) => say(`waiting for a guest at ${address}`),
  };
  using hv = openHypervisor({
    backend: oneOf('--backend', values.backend, BACKENDS),
    ...deviceOf(values),
  });
  if (hv.fallback !== undefined) say(`${hv.backend}: ${hv.fallback}`);

  return await interruptible(async (signal) => {
    let loop: RunLoops | undefined;
    const accept = (guest: ArrivingGuest) => {
      loop = loopOf(guest);
    };
    const guest = await receiveGuest(hv, { ...options, accept, signal });
    try {
      return await finish(guest, loop!, { timeoutMs, signal });
    } finally {
      await guest.close();
    }
  });
}

/** What throws here refuses the guest. */
function loopOf({ vm, vcpus, pager, devices, differences }: ArrivingGuest): RunLoops {
  for (const difference of differences) say(difference);
  if (pager.report.uncovered !== undefined)
    say(`what KVM itself reads of memory is not paged: ${pager.report.uncovered}`);
  return guestLoop({ vm, vcpus, devices }, { handlers: [pager] }).loop;
}

/** Runs it to its end; then its source is heard out, so that it knows that it may forget the guest. */
async function finish(
  guest: ReceivedGuest,
  loop: RunLoops,
  limits: { readonly timeoutMs: number | undefined; readonly signal: AbortSignal },
): Promise<number> {
  const end = await runOrFail(guest.vm, loop, limits);
  const failure = 'exit' in end || 'error' in end ? explain(end) : undefined;
  if (failure === undefined && end.reason !== 'abort') await allHere(guest, limits.signal);
  say(account(guest));
  if (failure !== undefined) say(failure);
  if (end.reason === 'timeout') say(`the guest has not ended within ${limits.timeoutMs! / 1000} s`);
  return statusOf(end);
}

/** What is lost after the guest has ended, it needs no more. */
async function allHere({ pager }: ReceivedGuest, signal: AbortSignal): Promise<void> {
  const aborted = new Promise<void>((resolve) => signal.addEventListener('abort', () => resolve()));
  await Promise.race([pager.complete, aborted]).catch((error: Error) => say(error.message));
}

function account({ pager: { report }, readyMs }: ReceivedGuest): string {
  const { pages, present, byCause, strategy, elapsedMs } = report;
  const { push: pushed, discard } = byCause;
  return (
    `${present} of ${pages} pages came by ${strategy}: ${present - pushed - discard} pulled, ${pushed} pushed; ` +
    `it ran ${readyMs.toFixed(0)} ms after its source had come, and paging took ${elapsedMs.toFixed(0)} ms`
  );
}

/** @throws UsageError */
export function address(option: string, text: string): string {
  try {
    parseAddress(option, text);
    return text;
  } catch (error) {
    throw new UsageError((error as Error).message);
  }
}
