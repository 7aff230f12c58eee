/** Where this package is, whichever file of dist/ or src/ this has become a part of. */
import { existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';

/** Resolves as from within this package. */
export const packageRequire = createRequire(import.meta.url);

/** The package's own folder, absolute. */
export const packageRoot = dirname(packageRequire.resolve('vmexit/package.json'));

/** The command that builds the addon where its user is: a clone has scripts, an installed package has none. */
export const setupCommand = (): string =>
  existsSync(join(packageRoot, 'scripts', 'setup.mjs')) ? 'npm run setup' : 'npx vmexit setup';

/** Of worker_threads' environment data: set where the process need not be warned (any more) of a missing addon. */
export const ADDON_WARNED = 'vmexit.addon-warned';
