/** What a source says that cannot give its pages. */

import { PAGE_SIZE as PAGE } from '../../hypervisor/args.ts';
import { VmexitError } from '../../hypervisor/errors.ts';

export const sourceError = (what: string, options?: ErrorOptions) =>
  new VmexitError('ERR_KVM_SOURCE', what, options);

export const tooShort = (what: string, has: number, pages: number) =>
  sourceError(`${what} has ${has} bytes, and the ${pages} pages of guest memory need ${pages * PAGE}`);

/** Ranges that a message names. */
const MOST_NAMED = 8;
/** Missing pages, for the end of a message. */
export function named(missing: readonly { first: number; end: number }[]): string {
  if (missing.length === 0) return '';
  const ranges = missing
    .slice(0, MOST_NAMED)
    .map(({ first, end }) => (end === first + 1 ? `${first}` : `${first} to ${end - 1}`));
  const more = missing.length > MOST_NAMED ? [`${missing.length - MOST_NAMED} more ranges`] : [];
  return `: ${[...ranges, ...more].join(', ')}`;
}
