// Preloaded by --import: the tests, and the programs that they start, believe that they are on another operating system.
// Tools of node_modules (the test runner, the compiler) are told the truth: they choose their binaries by it.
import { argv, env } from 'node:process';

const isTool = /[\\/]node_modules[\\/](?!vitest[\\/]dist[\\/]workers)/.test(argv[1] ?? '');
if (!isTool) Object.defineProperty(process, 'platform', { value: env.VMEXIT_PRETEND_PLATFORM });
