/** vCPUs in threads of their own, and the one thread that owns their memory. */
export { AskOwner } from './ask-owner.ts';
export { MemoryOwner, type MemoryOwnerOptions } from './memory-owner.ts';
export type { MemoryOwnerToken } from './protocol.ts';
