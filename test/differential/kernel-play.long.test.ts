/** More of the drawn kernels (test/support/kernel-play.ts) in each executor: what is translated comes to what closures come to. */
import { drawnKernels } from '../support/kernel-plays.ts';

drawnKernels(100, 150, ['both', 'templates', 'wasm'], 600_000);
