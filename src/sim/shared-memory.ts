import { WebAssembly } from './webassembly.ts';

/** Memory that threads share. A page that is not cross-origin isolated has no name for it, and has the thing all the same. */
export function sharedMemory(bytes: number): ArrayBufferLike {
  if (typeof SharedArrayBuffer !== 'undefined') return new SharedArrayBuffer(bytes);
  const { buffer } = new WebAssembly.Memory({ initial: 1, maximum: 1, shared: true });
  const Shared = buffer.constructor as new (bytes: number) => ArrayBufferLike;
  return new Shared(bytes);
}

/** Whether something is such memory. A page that is not cross-origin isolated has no name for it, and can send none. */
export const isSharedMemory = (memory: unknown): memory is SharedArrayBuffer =>
  typeof SharedArrayBuffer !== 'undefined' && memory instanceof SharedArrayBuffer;

/** Changes a word by what is there; gives what was there. `next` gives undefined to leave it. */
export function update(
  words: BigInt64Array,
  at: number,
  next: (value: bigint) => bigint | undefined,
): bigint {
  for (let found = Atomics.load(words, at); ; ) {
    const wanted = next(BigInt.asUintN(64, found));
    if (wanted === undefined) return BigInt.asUintN(64, found);
    const seen = Atomics.compareExchange(words, at, found, BigInt.asIntN(64, wanted));
    if (seen === found) return BigInt.asUintN(64, found);
    found = seen;
  }
}

/** Counts one user more; false where there was none any more. */
export function retain(words: Int32Array, at: number): boolean {
  for (;;) {
    const users = Atomics.load(words, at);
    if (users === 0) return false;
    if (Atomics.compareExchange(words, at, users, users + 1) === users) return true;
  }
}
