// A program in the lab, and once more where the emulator has crashed: that says nothing of what ran in it.
import { runInLab } from '../dist/lab/index.js';

/** As runInLab(). `say` is told of a crash. */
export async function runInLabAgain(run, say) {
  try {
    return await runInLab(run);
  } catch (error) {
    if (error.code !== 'ERR_LAB_EMULATOR') throw error;
    say(`${error.message}\nonce more`);
    return await runInLab(run);
  }
}
