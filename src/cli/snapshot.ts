/** `vmexit snapshot`: runs a guest to some point, and saves it there. */
import { captureState, type Written, writeSnapshot } from '../vmm/snapshot/index.ts';
import { BACKENDS, count, oneOf, parse, seconds, UsageError } from './args.ts';
import { fixedOption, loadedGuest, PROGRAM_OPTIONS, restoredGuest } from './guest.ts';
import { interruptible } from './interrupt.ts';
import { guestLoop } from './loop.ts';
import { explain, runOrFail } from './run.ts';
import { quarters } from './text.ts';

const HELP = `vmexit snapshot [options] --output FILE <guest>: run a guest to some point, and save it there
vmexit snapshot [options] --since OLD --output FILE: go on with a saved guest, and save what has changed

The guest runs as with vmexit run, whose options --mode, --at, --entry, --force, --memory, --cpus, --private, --backend
and --device are here too. Then it is paused, and its registers, pending events and memory are written to FILE:
\`vmexit run --restore FILE\` goes on from there. Pages that are all zeroes take no room. FILE is there when all of it is; Ctrl-C leaves none.

With --since the guest is the one in the snapshot OLD, and goes on from there. FILE then holds its registers, and of its
memory only the pages that are other than in OLD. It needs OLD to be restored: unaltered, and in the same place as seen
from FILE. OLD may be such a file itself. vmexit run --restore FILE, with --lazy too, reads them all.

  --output FILE      where to save it; an older snapshot there is replaced
  --since OLD        go on with the guest of this snapshot, and save what has changed since; there is no <guest> then. It
                     runs on the backend that it was saved on unless another is named
  --after MS         save it after so many milliseconds (default 1000)
  --after-exits N    save it when it has exited N times instead: in the simulator the same point each time
  --timeout SECONDS  with --after-exits: give up when it has not exited so often by then, with status 124

A guest that has private memory by then cannot be saved: the host cannot read it. With --since none can that may have it
(--private): KVM does not log which pages it has written.

Exit status: 0 when it is saved; 1 when the guest ended before, or cannot be saved; 2 wrong usage; 69 this host
cannot; 124 the time limit; 130 interrupted.
`;

const OPTIONS = {
  ...PROGRAM_OPTIONS,
  output: { type: 'string' },
  since: { type: 'string' },
  after: { type: 'string' },
  'after-exits': { type: 'string' },
  timeout: { type: 'string' },
  backend: { type: 'string', default: 'auto' },
} as const;

const DEFAULT_AFTER_MS = 1000;
/** Saving less than this takes no time that anybody would want to follow. */
const LARGE = 2 ** 28;
const TIMED_OUT = 124;

export async function snapshot(argv: string[]): Promise<number> {
  const parsed = parse(argv, OPTIONS, HELP, ({ since }) => (since === undefined ? ['<guest>'] : []));
  if (!parsed) return 0;
  const { values, positionals } = parsed;
  const path = values.output;
  if (path === undefined) throw new UsageError('--output FILE is missing');
  if (values.after !== undefined && values['after-exits'] !== undefined)
    throw new UsageError('--after and --after-exits are two ways to say when: give one of them');
  const exits =
    values['after-exits'] === undefined ? undefined : count('--after-exits', values['after-exits']);
  if (exits === undefined && values.timeout !== undefined)
    throw new UsageError('--timeout needs --after-exits');
  const afterMs = values.after === undefined ? DEFAULT_AFTER_MS : count('--after', values.after);
  const timeoutMs = values.timeout === undefined ? undefined : seconds('--timeout', values.timeout);

  const { since } = values;
  const told = fixedOption(values);
  if (since !== undefined && told !== undefined)
    throw new UsageError(`--${told} is in the snapshot: --since takes no other`);
  const backend = oneOf('--backend', values.backend, BACKENDS);
  using guest =
    since === undefined
      ? await loadedGuest(positionals[0]!, values, backend)
      : await restoredGuest(since, false, backend, values, true);
  const { hv, vm, vcpus, dirty } = guest;
  if (hv.fallback !== undefined) process.stderr.write(`vmexit: ${hv.backend}: ${hv.fallback}\n`);
  let left = exits ?? Number.POSITIVE_INFINITY;
  const counter = {
    handle() {
      if (--left === 0) loop.stop();
      return false;
    },
  };
  const { loop, state, debugExit } = guestLoop(guest, { handlers: [counter] });

  return await interruptible(async (signal) => {
    const end = await runOrFail(vm, loop, { timeoutMs: exits === undefined ? afterMs : timeoutMs, signal });
    const ended = (how: string) => {
      process.stderr.write(`vmexit: nothing is saved: ${how}\n`);
      return 1;
    };
    if ('exit' in end || 'error' in end) return ended(explain(end));
    if (end.reason === 'abort') return 1;
    if (end.reason === 'halt') return ended('the guest has halted before');
    if (debugExit.value !== undefined)
      return ended(`the guest has ended before, with status ${debugExit.value}`);
    if (end.reason === 'timeout' && exits !== undefined) {
      ended(`the guest has exited ${exits - left} times in ${timeoutMs! / 1000} s`);
      return TIMED_OUT;
    }
    const capture = captureState(hv, vm, vcpus, { devices: state() });
    const written = await writeSnapshot(path, capture, {
      onProgress: progress(),
      signal,
      ...(since === undefined ? {} : { since }),
      ...(dirty && { dirty }),
    });
    process.stderr.write(
      `vmexit: ${path}: ${describe(written, since)}, at rip ${vcpus.map((vcpu) => `0x${vcpu.getRegs().rip.toString(16)}`).join(', ')}\n`,
    );
    return 0;
  });
}

const progress = () =>
  quarters(LARGE, (percent, total) =>
    process.stderr.write(`vmexit: ${percent}% of ${total / 2 ** 20} MiB saved\n`),
  );

const describe = ({ size, stored, changed, pages }: Written, since: string | undefined) =>
  `${(size / 2 ** 20).toFixed(2)} MiB, ${
    since === undefined
      ? `${stored} of ${pages} pages (the others are zeroes)`
      : `${changed} of ${pages} pages (the others are as in ${since})`
  }`;
