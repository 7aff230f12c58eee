/** What the host's KVM offers to guests of CPUID. */

import { VmType } from '../../../uapi/constants.ts';
import { type CpuidEntry, features } from '../../cpu/processor/features.ts';
import { supportedCpuid as processorCpuid } from '../../cpu/system/claims.ts';
import type { Host } from './host.ts';

/** KVM_GET_SUPPORTED_CPUID. Guests of an AMD host find the C-bit's position in it. */
export const supportedCpuid = ({ vendor, choices, absent }: Host): readonly CpuidEntry[] =>
  processorCpuid(vendor, vendor === 'amd' ? choices.get(VmType.SNP) : undefined, absent);

/** KVM_GET_EMULATED_CPUID: nothing is emulated that the processor lacks. */
export const emulatedCpuid: readonly CpuidEntry[] = [];

/** Whether the processor has XCR0, which KVM_GET_XCRS and KVM_SET_XCRS are about. */
export const hasXsave = (host: Host): boolean => features(supportedCpuid(host)).has('XSAVE');
