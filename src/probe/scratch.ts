/** Scratch VMs: where a feature is tried, and thrown away with. */
import { KvmError } from '../hypervisor/errors.ts';
import type { Hypervisor } from '../hypervisor/hypervisor.ts';
import type { Vcpu } from '../hypervisor/vcpu.ts';
import type { Vm } from '../hypervisor/vm.ts';
import { Exit, exitName } from '../uapi/exit.ts';
import { describeExit } from '../uapi/exits.ts';
import type { Guest } from '../vmm/guest.ts';
import { flatImage } from '../vmm/image.ts';
import { Machine, type MachineOptions, MIN_MACHINE_MEMORY } from '../vmm/machine.ts';

/**
 * How long a scratch guest of a few instructions may take. There are hosts whose KVM never comes back from some
 * instruction, and emulated ones that are a thousand times slower than others.
 */
const DEADLINE_MS = 1000;

/** Undefined when all went well, else why not, for a person to read. */
export type Verdict = string | undefined;

/** What the kernel refuses is a verdict; anything else is a bug and goes on as an error. */
export function verdictOf(attempt: () => Verdict): Verdict {
  try {
    return attempt();
  } catch (error) {
    if (error instanceof KvmError) return error.message;
    throw error;
  }
}

export const withVm = (hv: Hypervisor, type: number, use: (vm: Vm) => Verdict): Verdict =>
  verdictOf(() => {
    using vm = hv.createVm({ type });
    return use(vm);
  });

/** A machine with the least memory and the guest in it, ready to run. */
export const withGuest = (
  hv: Hypervisor,
  guest: Guest,
  use: (machine: Machine) => Verdict,
  options: Partial<MachineOptions> = {},
): Verdict =>
  verdictOf(() => {
    using machine = new Machine(hv, { memory: MIN_MACHINE_MEMORY, ...options });
    machine.load(flatImage(guest.code, guest.bits === 64 ? 'long' : 'real'));
    return use(machine);
  });

/** Runs the guest once. */
export function expectExit(vcpu: Vcpu, wanted: number): Verdict {
  const exit = vcpu.run(DEADLINE_MS);
  if (exit === wanted) return undefined;
  if (exit === Exit.DEADLINE) {
    return `a guest that tries it does not come back: KVM_RUN had to be interrupted after ${DEADLINE_MS} ms`;
  }
  return `a guest that tries it ends with ${exitName(exit)} (${describeExit(vcpu.exit)}) and not with ${exitName(wanted)}`;
}
