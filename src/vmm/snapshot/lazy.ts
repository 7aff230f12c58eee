/** A machine that runs before its memory is there. */
import type { Hypervisor } from '../../hypervisor/hypervisor.ts';
import type { PagerOptions } from '../pager/options.ts';
import { Pager } from '../pager/pager.ts';
import type { Snapshot } from './read.ts';
import { RestoredMachine, type RestoreOptions } from './restore.ts';

/** Those of restoring, and those of a Pager that are not given by the snapshot. */
export type LazyOptions = RestoreOptions & Omit<PagerOptions, 'memories' | 'source' | 'vcpus'>;

/**
 * The machine of a snapshot, ready to run, and the pager that brings its memory as it is touched: to be a handler of the
 * run loop. The file must stay as it is until `pager.complete`.
 * @throws VmexitError ERR_KVM_SNAPSHOT for what this host lacks, ERR_KVM_UNAVAILABLE where it has no demand paging;
 *   KvmError. Nothing stays open then
 */
export function restoreLazily(
  hv: Hypervisor,
  { path, state }: Pick<Snapshot, 'path' | 'state'>,
  options: LazyOptions = {},
): { readonly machine: RestoredMachine; readonly pager: Pager } {
  const machine = new RestoredMachine(hv, state, options);
  let pager: Pager | undefined;
  try {
    const { memories, vcpus } = machine;
    pager = Pager.start(hv, machine.vm, { ...options, memories, vcpus, source: { kind: 'snapshot', path } });
    machine.begin();
    return { machine, pager };
  } catch (error) {
    pager?.[Symbol.dispose]();
    machine.close();
    throw error;
  }
}
