/** `npm run test:campaign`: what takes hours can be watched and stopped. */
import { fileURLToPath } from 'node:url';
import { expect, it } from 'vitest';
import { noAddon } from '../support/host.ts';
import { TEST_MS } from '../support/limits.ts';
import { Program } from '../support/program.ts';

const campaign = fileURLToPath(new URL('../../scripts/campaign.mjs', import.meta.url));

it(
  'a campaign that is stopped ends its step, begins no other and tells of it',
  async (context) => {
    context.skip(noAddon !== undefined, noAddon);
    const steps = ['--only', 'hostile-here', '--only', 'soak'];
    const program = new Program([campaign, ...steps, '--each', '1000000']);
    await program.says(/step 1 of 2, hostile-here/);
    // What a terminal sends to all of its foreground: the step has it from the campaign alone.
    program.kill('SIGINT');
    const { status, stdout } = await program.end;
    expect(stdout).toMatch(/campaign: hostile-here: stopped, [\d.]+ min\n$/);
    expect(status).toBe(130);
    expect(stdout).not.toContain('step 2');
  },
  TEST_MS,
);
