// Runs test/differential, which is TypeScript: --help says how.
import { runMain } from './run-typescript.mjs';

await runMain('/test/differential/cli.ts');
