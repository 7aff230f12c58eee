/** Guests are listings: machine code beside its source. Here the assembler says whether the two are the same. */
import { execFileSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { expect, it } from 'vitest';
import { guest } from '../../src/index.ts';
import { noAssembler } from '../support/host.ts';
import { PROGRAM_MS } from '../support/limits.ts';

const root = fileURLToPath(new URL('../../', import.meta.url));

it('has in every listing the bytes that the assembler makes of its source', (context) => {
  context.skip(noAssembler !== undefined, noAssembler);
  const output = execFileSync(process.execPath, ['scripts/guests.mjs', '--check'], {
    cwd: root,
    encoding: 'utf8',
    timeout: PROGRAM_MS,
  });
  const [, guests] = /^(\d+) guests, 0 wrong\n$/.exec(output) ?? [];
  expect(Number(guests)).toBeGreaterThan(10);
});

it('reads the bytes of a listing and leaves its source out', () => {
  const { bits, code } = guest(
    16,
    `
     b0 2a | mov al, 42
           | # a comment, and no bytes
     e6 f4 | out 0xf4, al     # a | in the comment
`,
  );
  expect(bits).toBe(16);
  expect([...code]).toEqual([0xb0, 0x2a, 0xe6, 0xf4]);
});
