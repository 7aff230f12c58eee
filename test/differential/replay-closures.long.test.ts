/** All that oracles did, replayed: instructions in the simulator's closures, and sequences of ioctls. */
import { replayInstructions, replaySequences } from './replay.ts';

replayInstructions(1, ['closures']);
replaySequences(1);
