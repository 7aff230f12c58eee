/** One line that tells how a long work goes: rewritten in place on a terminal, repeated now and then on a pipe. */

const TERMINAL_MS = 500;
const PIPE_MS = 20_000;

/** What a build reports: the stage it is in, and a detail that changes while the stage lasts. */
export type Report = (stage: string, detail?: string) => void;

export interface Progress extends Disposable {
  readonly report: Report;
}

/** Milliseconds as `3 min 05 s`. */
export function duration(ms: number): string {
  const seconds = Math.round(ms / 1000);
  return seconds < 60
    ? `${seconds} s`
    : `${Math.floor(seconds / 60)} min ${String(seconds % 60).padStart(2, '0')} s`;
}

/** Shows reports on a stream until disposed. A new stage is shown at once, a new detail at the next tick. */
export function showProgress(
  stream: { isTTY?: boolean; write(text: string): unknown },
  prefix = 'vmexit lab',
): Progress {
  const started = Date.now();
  let stage = '';
  let detail: string | undefined;
  const show = () => {
    if (!stage) return;
    const line = `${prefix}: ${stage}${detail ? `, ${detail}` : ''} (${duration(Date.now() - started)})`;
    stream.write(stream.isTTY ? `\r\x1b[K${line}` : `${line}\n`);
  };
  const timer = setInterval(show, stream.isTTY ? TERMINAL_MS : PIPE_MS);
  timer.unref();
  return {
    report(next, now) {
      const changed = next !== stage;
      stage = next;
      detail = now;
      if (changed) show();
    },
    [Symbol.dispose]() {
      clearInterval(timer);
      if (stage && stream.isTTY) stream.write('\r\x1b[K');
    },
  };
}
