/** KVM_GET_MSRS and KVM_SET_MSRS: a list ends at the first register that is not known, or refuses its value. */
import type { Value } from '../../../uapi/layout.ts';
import type { kvm_msr_entry } from '../../../uapi/x86.ts';
import type { Cpu } from '../../cpu/cpu.ts';
import { readMsr, writeMsr } from '../../cpu/system/msrs.ts';
import type { ListArgument } from '../abi/dispatch.ts';

type Entry = Value<typeof kvm_msr_entry>;
type Entries = ListArgument<typeof kvm_msr_entry>;

/** Gives how many were done. */
function each(list: Entries, done: (entry: Entry, i: number) => boolean): number {
  let i = 0;
  while (i < list.count && done(list.at(i), i)) i++;
  return i;
}

export const getMsrs = (cpu: Cpu, list: Entries): number =>
  each(list, ({ index }, i) => {
    const data = readMsr(cpu, index, true);
    if (data !== undefined) list.set(i, { index, data });
    return data !== undefined;
  });

export function setMsrs(cpu: Cpu, list: Entries): number {
  const done = each(list, ({ index, data }) => writeMsr(cpu, index, data, true));
  cpu.changed();
  return done;
}
