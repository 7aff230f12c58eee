// Holds the tables of src/uapi against a kernel's headers, by test/uapi, which is TypeScript: --help says how.
import { runMain } from './run-typescript.mjs';

await runMain('/test/uapi/cli.ts');
