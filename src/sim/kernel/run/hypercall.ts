/** VMCALL and VMMCALL: what KVM answers itself, and what it hands to userspace (x86.c, kvm_emulate_hypercall). */
import { Hypercall, HypercallErrno } from '../../../uapi/constants.ts';
import { PAGE } from '../../arena.ts';
import type { Stop } from '../../cpu/processor/stage.ts';

type HypercallStop = Extract<Stop, { kind: 'hypercall' }>;

/** How a hypercall fares that KVM does not hand on: RAX. */
const refused = (errno: number): bigint => BigInt(-errno);

const PAGE_BITS = 12n;
const LIMIT = 1n << 64n;
/** hypercalls.rst: address, number of pages, attributes. */
const MAP_GPA_RANGE_ARGUMENTS = 3;

/** Undefined when userspace is to answer. */
export function answerHypercall(
  { number, args }: HypercallStop,
  cpl: number,
  exits: number,
): bigint | undefined {
  if (cpl !== 0) return refused(HypercallErrno.EPERM);
  if (number !== BigInt(Hypercall.MAP_GPA_RANGE)) {
    return number === BigInt(Hypercall.VAPIC_POLL_IRQ) ? 0n : refused(HypercallErrno.ENOSYS);
  }
  if ((exits & (1 << Hypercall.MAP_GPA_RANGE)) === 0) return refused(HypercallErrno.ENOSYS);
  const [gpa = 0n, pages = 0n] = args;
  // gpa_to_gfn(gpa) + npages wraps in 64 bits; the same in bytes is userspace's business.
  const wraps = (gpa >> PAGE_BITS) + pages >= LIMIT;
  if (gpa % BigInt(PAGE) !== 0n || pages === 0n || wraps) return refused(HypercallErrno.EINVAL);
  return undefined;
}

/** As userspace sees it: the arguments that the call does not have are zero. */
export const handedOn = (stop: HypercallStop): HypercallStop => ({
  ...stop,
  args: [...stop.args.slice(0, MAP_GPA_RANGE_ARGUMENTS), 0n, 0n, 0n],
});

/** Outside of 64-bit mode RAX has 32 bits. */
export const raxOf = ({ longMode }: HypercallStop, value: bigint): bigint =>
  BigInt.asUintN(longMode ? 64 : 32, value);
