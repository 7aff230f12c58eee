/** All instructions that oracles did, replayed in the simulator's templates, made as they are met and made before. */
import { replayInstructions } from './replay.ts';

replayInstructions(1, ['templates', 'prepared']);
