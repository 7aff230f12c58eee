/** What a source says that cannot give its pages. */

import { PAGE_SIZE as PAGE } from '../../hypervisor/args.ts';
import { VmexitError } from '../../hypervisor/errors.ts';

export const sourceError = (what: string, options?: ErrorOptions) =>
  new VmexitError('ERR_KVM_SOURCE', what, options);

export const tooShort = (what: string, has: number, pages: number) =>
  sourceError(`${what} has ${has} bytes, and the ${pages} pages of guest memory need ${pages * PAGE}`);
