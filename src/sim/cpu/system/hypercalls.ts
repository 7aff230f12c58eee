/** VMCALL and VMMCALL: one is the processor's own, the other is made into it. */

import type { Helper, Helpers } from '../processor/helper.ts';
import type { Processor } from '../processor/processor.ts';

const RAX = 0;
/** RBX, RCX, RDX, RSI: the arguments (Documentation/virt/kvm/x86/hypercalls.rst). */
const ARGUMENTS = [3, 1, 2, 6];

const own = { intel: [0x0f, 0x01, 0xc1], amd: [0x0f, 0x01, 0xd9] } as const;

function hypercall(cpu: Processor): void {
  const longMode = cpu.mode.bits === 64;
  const get = (index: number) => BigInt.asUintN(longMode ? 64 : 32, cpu.state.gpr(index));
  cpu.state.setGpr(RAX, cpu.io.hypercall(get(RAX), ARGUMENTS.map(get), longMode));
}

/** KVM writes its own processor's instruction over the other's (x86.c, emulator_fix_hypercall). */
const by =
  (vendor: 'intel' | 'amd'): Helper =>
  (cpu, insn) => {
    if (cpu.vendor === vendor) return hypercall(cpu);
    cpu.io.demand('emulated');
    cpu.memory.writeBytes(cpu.linearOf(insn.rip), Uint8Array.from(own[cpu.vendor]));
    cpu.state.rip = insn.rip;
  };

export const hypercallsEnding: Helpers = { vmcall: by('intel'), vmmcall: by('amd') };
