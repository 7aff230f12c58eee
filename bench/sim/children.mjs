// Processes that run a guest and tell of it on their standard output; none outlives this one.
import { spawn } from 'node:child_process';

const running = new Set();
process.on('exit', () => {
  for (const child of running) child.kill('SIGKILL');
});
for (const [signal, number] of Object.entries({ SIGINT: 2, SIGTERM: 15 }))
  process.once(signal, () => process.exit(128 + number));

/** A turn of the event loop, in which signals arrive. */
export const turn = () => new Promise((resolve) => setImmediate(resolve));

/** What is being done, on a terminal; nothing when it is done. */
export const progress = process.stderr.isTTY ? (text) => process.stderr.write(`\r\x1b[K${text}`) : () => {};

/**
 * Starts a process and hands what it writes to `onText(output, ms, pid)`, with the moment of its arrival, until that gives true or
 * the process ends: then it is ended, and the promise kept. What is given back is all of its output.
 */
export function watch([command, ...args], limitMs, onText) {
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, { stdio: ['ignore', 'pipe', 'pipe'] });
    running.add(child);
    let [output, errors, late] = ['', '', false];
    const timer = setTimeout(() => {
      late = true;
      child.kill('SIGKILL');
    }, limitMs);
    child.stdout.setEncoding('latin1').on('data', (text) => {
      const now = performance.now();
      output += text;
      if (onText(output, now, child.pid)) child.kill('SIGKILL');
    });
    child.stderr.setEncoding('utf8').on('data', (text) => {
      errors += text;
    });
    const ended = (settle, value) => {
      clearTimeout(timer);
      running.delete(child);
      settle(value);
    };
    child.on('error', (error) => ended(reject, error));
    child.on('close', (code, signal) => {
      const why = late ? `still ran after ${limitMs / 1000} s` : `ended with ${code ?? signal}`;
      ended(resolve, { output, why: `${why}${errors && `: ${errors.trim().split('\n').at(-1)}`}` });
    });
  });
}
