/** Snapshots: a machine's state and memory in a file, and the machine again. */
import { PAGE_SIZE as PAGE } from '../../hypervisor/args.ts';
import type { Hypervisor } from '../../hypervisor/hypervisor.ts';

import type { Snapshot } from './read.ts';
import { RestoredMachine, type RestoreOptions } from './restore.ts';

export { type LazyOptions, restoreLazily } from './lazy.ts';
export { openSnapshot, type Snapshot, type SnapshotMemory } from './read.ts';
export { RestoredMachine, type RestoreOptions } from './restore.ts';
export { fromHex, type MachineState, parseState } from './schema.ts';
export { dirtySince } from './since.ts';
export { type Capture, type CaptureOptions, captureState } from './state.ts';
export { type WriteOptions, type Written, writeSnapshot } from './write.ts';

/** Pages that are read and copied at a time. */
const BATCH = 256;

/**
 * The machine of a snapshot, ready to run, with all its memory.
 *
 * An example is at {@link writeSnapshot}.
 * @throws VmexitError ERR_KVM_SNAPSHOT for a page that was altered, or what this host lacks; KvmError. Nothing stays
 *   open then
 */
export function restoreSnapshot(
  hv: Hypervisor,
  snapshot: Snapshot,
  options: RestoreOptions = {},
): RestoredMachine {
  const machine = new RestoredMachine(hv, snapshot.state, options);
  try {
    fillMemory(machine, snapshot);
    machine.begin();
    return machine;
  } catch (error) {
    machine.close();
    throw error;
  }
}

/** Copies the stored pages; memory that is new is zero elsewhere. */
export function fillMemory(machine: RestoredMachine, snapshot: Snapshot): void {
  for (const [i, memory] of machine.memories.entries()) {
    const source = snapshot.memories[i]!;
    for (const { first, count } of source.runs(BATCH)) memory.write(first * PAGE, source.read(first, count));
  }
}
