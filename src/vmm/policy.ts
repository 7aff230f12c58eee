/** What a memory fault can be, and who decides about it. */
import type { Slot } from '../hypervisor/memory-map.ts';
import type { Vcpu } from '../hypervisor/vcpu.ts';
import type { MemoryState } from './conversion.ts';

/** What happened, in terms of the memory's state. */
export type Cause =
  /** The guest asked for a conversion. */
  | 'hypercall'
  /** The guest's page tables want the other state: an implicit request (SNP, TDX). */
  | 'mismatch'
  /** The page is private, and there is nothing private behind it: no slot, no guest_memfd, a closed one. */
  | 'unbacked'
  /** The private page has a hardware memory error (EHWPOISON). */
  | 'poisoned'
  /** Slot and attributes allow the access now: a race with a conversion that is over. */
  | 'race'
  /** The same, and it does not go away: KVM still takes a private page for the MMIO that it was. */
  | 'stale';

/** What a policy is asked. Addresses and sizes in bytes; the range may be of many pages. */
export interface Request {
  /** What has happened. */
  readonly cause: Exclude<Cause, 'race' | 'stale'>;
  /** Whose access or hypercall it is. */
  readonly vcpu: Vcpu;
  /** Where: guest-physical, in bytes. */
  readonly gpa: number;
  /** How much, in bytes. */
  readonly size: number;
  /** What `allow` does: convert to this state, or replace the poisoned pages by fresh ones. */
  readonly action: MemoryState | 'replace';
  /** The slot of the first page. */
  readonly slot: Slot | undefined;
}

/**
 * `allow`: do what the request's action says. `retry`: the policy has mended it (bound a guest_memfd, say): run the
 * guest again. `deny`: a guest that asked by hypercall is told so; any other run ends with ERR_KVM_REFUSED.
 */
export type Decision = 'allow' | 'retry' | 'deny';
/** Decides about one request. What it throws comes out of MemoryFaultService.handle(). */
export type Policy = (request: Request) => Decision;

const defaults: { readonly [C in Request['cause']]: Decision } = {
  hypercall: 'allow',
  mismatch: 'allow',
  unbacked: 'deny',
  poisoned: 'deny',
};

/** Does what guests ask for; ends the run where there is nothing to ask for, or where data was lost. */
export const defaultPolicy: Policy = ({ cause }) => defaults[cause];

/** What a person reads when the policy denies. */
export const denials: { readonly [C in Request['cause']]: string } = {
  hypercall: 'was asked for by the guest, and the policy denies it',
  mismatch: 'is wanted in the other state by the guest, and the policy denies it',
  unbacked:
    'has nothing private behind it: bind a guest_memfd, or allow its conversion to shared by a policy',
  poisoned: 'has a hardware memory error; its contents are lost, and only a policy may replace it by zeroes',
};
