/** Where this package is, whichever file of dist/ or src/ this has become a part of. */
import { existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';

/** Resolves as from within this package. */
export const packageRequire = createRequire(import.meta.url);

let root: string | undefined;
/** The package's own folder, absolute. It is looked for when somebody asks: that takes a start a millisecond and more. */
export function packageRoot(): string {
  root ??= dirname(packageRequire.resolve('vmexit/package.json'));
  return root;
}

/** The command that builds the addon where its user is: a clone has scripts, an installed package has none. */
export const setupCommand = (): string =>
  existsSync(join(packageRoot(), 'scripts', 'setup.mjs')) ? 'npm run setup' : 'npx vmexit setup';

/** Of worker_threads' environment data: set where the process need not be warned (any more) of a missing addon. */
export const ADDON_WARNED = 'vmexit.addon-warned';
