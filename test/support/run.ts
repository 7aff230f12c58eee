/** Running a guest to where a test expects it, and what to show when it comes out elsewhere. */
import { describeExit, Exit, exitName, KvmError, type Vcpu } from '../../src/index.ts';
import { viewOf } from '../../src/uapi/index.ts';

import { DEADLINE_MS } from './limits.ts';

const hex = (value: bigint) => value.toString(16).padStart(16, '0');

/** The general registers, four to a line. */
export function registers(vcpu: Vcpu): string {
  const all = Object.entries(vcpu.getRegs()).map(([name, value]) => `${name.padStart(6)} ${hex(value)}`);
  return Array.from({ length: Math.ceil(all.length / 4) }, (_, i) =>
    all.slice(4 * i, 4 * i + 4).join(' '),
  ).join('\n');
}

/** Fails the case, with the exit and the registers, unless the last run's outcome is one of these. */
export function expectOutcome(vcpu: Vcpu, ...expected: number[]): number {
  const { outcome } = vcpu;
  if (expected.includes(outcome)) return outcome;
  const wanted = expected.map(exitName).join(' or ');
  throw new Error(
    outcome === Exit.DEADLINE
      ? `expected ${wanted}, and the guest did not come back in ${DEADLINE_MS} ms\n${registers(vcpu)}`
      : `expected ${wanted}, got ${exitName(outcome)}: ${describeExit(vcpu.exit)}\n${registers(vcpu)}`,
  );
}

/** Runs, with a deadline, to one of these outcomes, and gives it. */
export function runTo(vcpu: Vcpu, ...expected: number[]): number {
  vcpu.run(DEADLINE_MS);
  return expectOutcome(vcpu, ...expected);
}

/** The errno by which KVM refuses a call, or `ok`. */
export function errnoOf(call: () => unknown): string {
  try {
    call();
    return 'ok';
  } catch (error) {
    if (error instanceof KvmError) return error.code;
    throw error;
  }
}

/** Whether every byte has the value; compares as memcmp does, which matters where the processor is emulated. */
export const filledWith = (bytes: Uint8Array, value: number): boolean =>
  Buffer.compare(bytes, Buffer.alloc(bytes.length, value)) === 0;

/** The eight bytes at an offset, as the guest's processor reads them. */
export const wordAt = (bytes: Uint8Array, offset = 0): bigint => viewOf(bytes).getBigUint64(offset, true);

export function setWord(bytes: Uint8Array, offset: number, value: bigint): void {
  viewOf(bytes).setBigUint64(offset, value, true);
}
