/** All instructions that oracles did, replayed in the simulator's templates. */
import { replayInstructions } from './replay.ts';

replayInstructions(1, ['templates']);
