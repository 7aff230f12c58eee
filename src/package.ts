/** Where this package is, whichever file of dist/ or src/ this has become a part of. */
import { createRequire } from 'node:module';
import { dirname } from 'node:path';

/** Resolves as from within this package. */
export const packageRequire = createRequire(import.meta.url);

/** The package's own folder, absolute. */
export const packageRoot = dirname(packageRequire.resolve('vmexit/package.json'));
