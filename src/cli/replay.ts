/** `vmexit replay`: a run that vmexit run --record has recorded, again, without KVM. */
import { openReplay } from '../replay/index.ts';
import { parse } from './args.ts';
import { replayedGuest } from './guest.ts';
import { runGuest } from './run.ts';

const HELP = `vmexit replay [options] FILE: run again what vmexit run --record FILE has recorded

The VMM runs again, its loop, its devices and its report; the guest does not. Its exits, its memory and its registers
come from the recording, and so do the time and Ctrl-C, so neither KVM nor the guest's file is needed. It prints what the
guest has printed, and ends as the run has ended.

  --trace FILE       write one line of JSON for each exit: the run need not have done that
  --json             print one JSON object about the run on stdout; serial output goes to stderr then

A VMM that is not the recorded one any more (another version of vmexit, most often) is stopped at the first call that
differs: the message has the number of the record, what was expected, and what came. A recording that was cut off is
replayed up to its end; one that was altered is refused before anything runs.

Exit status: the run's; 1 where the replay diverges, or where the recording cannot be read or was cut off; 2 wrong usage;
130 interrupted.
`;

const OPTIONS = {
  trace: { type: 'string' },
  json: { type: 'boolean', default: false },
} as const;

export async function replay(argv: string[]): Promise<number> {
  const parsed = parse(argv, OPTIONS, HELP, ['FILE']);
  if (!parsed) return 0;
  const { values, positionals } = parsed;
  using recording = openReplay(positionals[0]!);
  using guest = replayedGuest(recording);
  const status = await runGuest(guest, { ...values, timeoutMs: guest.timeoutMs, replays: true });
  if (recording.error === undefined) return status;
  process.stderr.write(`vmexit: ${recording.error.message}\n`);
  return 1;
}
