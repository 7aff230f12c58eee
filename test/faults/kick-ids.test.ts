/** By which number a thread kicks a simulated vCPU of another. The programs are in kick-ids.mjs. */
import { describe, expect } from 'vitest';
import { Exit } from '../../src/index.ts';
import { on } from '../support/host.ts';
import { scenario } from './child.ts';

const run = (name: string) => scenario('kick-ids.mjs', name);
const it = on('sim');

describe("a simulated vCPU's kick id", () => {
  it('reaches a worker that was started before the main thread opened a simulator', async () => {
    expect(await run('earlyWorker')).toEqual({ found: true, exit: Exit.INTERRUPTED });
  });

  it('is of no other thread, and is refused where the vCPU cannot be reached', async () => {
    expect(await run('strangers')).toEqual({
      same: false,
      kicks: [
        expect.stringMatching(/^ERR_KVM_INVALID_ARG: kickId is 0x[0-9a-f]+; .*import vmexit before/),
        true,
      ],
      exits: [Exit.INTERRUPTED, Exit.HLT],
    });
  });
});
