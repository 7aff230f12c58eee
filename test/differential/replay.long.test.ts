/** All that oracles did, replayed. */
import { replayInstructions, replaySequences } from './replay.ts';

replayInstructions(1);
replaySequences(1);
