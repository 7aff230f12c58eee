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
