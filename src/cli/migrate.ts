/** `vmexit migrate`: runs a guest for a while, and hands it over to a vmexit receive elsewhere. */
import { MigrationError, VmexitError } from '../hypervisor/errors.ts';
import { type SendReport, sendGuest } from '../vmm/migration/index.ts';
import type { RunLimits } from '../vmm/run-loop.ts';
import { BACKENDS, count, oneOf, parse, seconds, UsageError } from './args.ts';
import { loadedGuest, PROGRAM_OPTIONS } from './guest.ts';
import { interruptible } from './interrupt.ts';
import { guestLoop } from './loop.ts';
import { address } from './receive.ts';
import { explain, runOrFail, statusOf } from './run.ts';
import { quarters } from './text.ts';

const HELP = `vmexit migrate [options] --to ADDRESS <guest>: run a guest, and hand it over to another process

The guest runs as with vmexit run, whose options --mode, --at, --entry, --force, --memory, --cpus, --private, --backend
and --device are here too. Then it is paused, and goes on at once where \`vmexit receive ADDRESS\` waits; its memory
follows. What it has sent to the serial port until then is here, the rest is there. When it cannot be handed over it goes on here, to its end.

  --to ADDRESS       unix:PATH or tcp:HOST:PORT
  --after MS         hand it over after so many milliseconds (default 1000)
  --silence SECONDS  how long the destination may say nothing (default 30)

A guest that has private memory by then cannot be handed over: the host cannot read it.

Exit status: 0 when all of it is there; when it has ended here, as of vmexit run; 1 when the destination was lost after
the guest was handed over; 2 wrong usage; 69 this host cannot; 130 interrupted.
`;

const OPTIONS = {
  ...PROGRAM_OPTIONS,
  to: { type: 'string' },
  after: { type: 'string' },
  silence: { type: 'string' },
  backend: { type: 'string', default: 'auto' },
} as const;

const DEFAULT_AFTER_MS = 1000;
/** To send fewer pages takes no time that anybody would want to follow: 256 MiB. */
const MANY = 2 ** 16;

const say = (text: string) => process.stderr.write(`vmexit: ${text}\n`);

export async function migrate(argv: string[]): Promise<number> {
  const parsed = parse(argv, OPTIONS, HELP, ['<guest>']);
  if (!parsed) return 0;
  const { values, positionals } = parsed;
  if (values.to === undefined) throw new UsageError('--to ADDRESS is missing');
  const to = address('--to', values.to);
  const afterMs = values.after === undefined ? DEFAULT_AFTER_MS : count('--after', values.after);
  const silence = values.silence === undefined ? {} : { timeoutMs: seconds('--silence', values.silence) };

  using guest = await loadedGuest(positionals[0]!, values, oneOf('--backend', values.backend, BACKENDS));
  const { hv, vm, vcpus } = guest;
  if (hv.fallback !== undefined) say(`${hv.backend}: ${hv.fallback}`);
  const { loop, state } = guestLoop(guest);
  /** To its end, or a limit: its status. */
  const run = async (limits: RunLimits) => {
    const end = await runOrFail(vm, loop, limits);
    if ('exit' in end || 'error' in end) say(explain(end));
    return end;
  };

  return await interruptible(async (signal) => {
    const before = await run({ timeoutMs: afterMs, signal });
    if (before.reason !== 'timeout') {
      if (before.reason !== 'abort') say('the guest has ended here, before it was to be handed over');
      return statusOf(before);
    }
    try {
      const sent = await sendGuest(hv, {
        vm,
        vcpus,
        to,
        devices: state(),
        signal,
        onProgress: progress(),
        ...silence,
      });
      say(describe(sent));
      return 0;
    } catch (error) {
      if (!(error instanceof VmexitError)) throw error;
      if (error instanceof MigrationError && error.handedOver) throw error;
      say(`${error.message}; the guest goes on here`);
      return statusOf(await run({ signal }));
    }
  });
}

const progress = () => quarters(MANY, (percent, pages) => say(`${percent}% of ${pages} pages sent`));

const describe = ({ pages, pulled, pushed, zeroes, handedOverMs, elapsedMs }: SendReport) =>
  `handed over in ${handedOverMs.toFixed(0)} ms, all ${pages} pages (${zeroes} of zeroes) in ${elapsedMs.toFixed(0)} ms: ` +
  `${pulled} pulled, ${pushed} pushed`;
