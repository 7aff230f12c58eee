/** Which processor executes here: what one host's does may not be what another's does. */
import { existsSync, readFileSync } from 'node:fs';
import type { Hypervisor } from '../../src/index.ts';
import { inLab } from '../support/limits.ts';
import { type ModeName, modeOf } from './modes.ts';

/**
 * Who decides what an instruction does. KVM lets the silicon execute guests; but in the lab the silicon is QEMU's TCG,
 * and a PVM host executes what is not a program of privilege 3 and 32 or 64 bits with the kernel's own emulator.
 */
export const ORACLES = ['silicon', 'QEMU TCG', "KVM's emulator"] as const;
export type Oracle = (typeof ORACLES)[number];

/** The name by which a process is asked for, instead of a backend. */
export const PROCESS = 'process';

export function oracleOf(hv: Hypervisor, mode: ModeName): Oracle | 'sim' {
  if (hv.backend === 'sim') return 'sim';
  if (inLab) return 'QEMU TCG';
  return modeOf(mode).privilege === 0 && existsSync('/sys/module/kvm_pvm') ? "KVM's emulator" : 'silicon';
}

const field = (name: string): string => {
  try {
    return (
      new RegExp(`^${name}\\s*: (.*)$`, 'm').exec(readFileSync('/proc/cpuinfo', 'utf8'))?.[1] ?? 'unknown'
    );
  } catch {
    return 'unknown';
  }
};

/** Whose processor this is, as the simulator has two. */
export const vendor = field('vendor_id') === 'GenuineIntel' ? 'intel' : 'amd';

export const processor = `${field('vendor_id')} family ${field('cpu family')} model ${field('model')}`;
