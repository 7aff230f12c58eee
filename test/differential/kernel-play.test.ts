/** Drawn kernels (test/support/kernel-play.ts) in each executor: what is translated comes to what closures come to. */
import { drawnKernels } from '../support/kernel-plays.ts';

// Each some tenths of a second.
drawnKernels(1, 6, ['both', 'templates']);
