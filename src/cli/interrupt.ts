/** Ctrl-C and its like, as an AbortSignal: what is open is closed, and the status is the shell's for that signal. */

const SIGNALS = { SIGINT: 130, SIGTERM: 143, SIGHUP: 129 } as const;

/** Runs `use`; when a signal comes, aborts it with 128 and the signal's number, and gives that whatever it gives. */
export async function interruptible(use: (signal: AbortSignal) => Promise<number>): Promise<number> {
  const abort = new AbortController();
  let status: number | undefined;
  const stop = (name: NodeJS.Signals) => {
    status ??= SIGNALS[name as keyof typeof SIGNALS];
    abort.abort(status);
  };
  for (const name of Object.keys(SIGNALS)) process.on(name, stop);
  try {
    const result = await use(abort.signal);
    return status ?? result;
  } catch (error) {
    if (status === undefined) throw error;
    return status;
  } finally {
    for (const name of Object.keys(SIGNALS)) process.off(name, stop);
  }
}
