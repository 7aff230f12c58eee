/** What the kernel wrote in a call, as a record has it and as a replay puts it back. */
import type { Reference } from '../hypervisor/backend.ts';
import type { Ioctl } from '../uapi/ioctls.ts';
import type { Value } from './codec.ts';

/** What the kernel wrote into the argument and into bytes that it refers to. */
export function answers(
  row: Ioctl | undefined,
  argument: number | bigint | Uint8Array | undefined,
  references: readonly Reference[],
): readonly Value[] {
  const reads = argument instanceof Uint8Array && row?.dir !== 'write';
  return [
    reads ? argument.slice() : undefined,
    references.map((reference) => (reference instanceof Uint8Array ? reference.slice() : undefined)),
  ];
}

/** Puts the kernel's answers where the VMM looks for them. */
export function fill(
  argument: number | bigint | Uint8Array | undefined,
  references: readonly Reference[],
  [answer, bytes]: readonly Value[],
): void {
  if (argument instanceof Uint8Array && answer instanceof Uint8Array) argument.set(answer);
  references.forEach((reference, i) => {
    const answered = (bytes as Value[] | undefined)?.[i];
    if (reference instanceof Uint8Array && answered instanceof Uint8Array) reference.set(answered);
  });
}
