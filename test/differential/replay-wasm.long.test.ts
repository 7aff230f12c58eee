/** All that oracles did, replayed: instructions in the simulator's WebAssembly, and on KVM. */
import { replayInstructions } from './replay.ts';

replayInstructions(1, ['wasm', 'kvm']);
