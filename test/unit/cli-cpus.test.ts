/** `--cpus N`: guests of several processors, run, saved, restored, and handed over, as a user runs them. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { guest } from '../../src/index.ts';
import { backends, on } from '../support/host.ts';
import { scratchFolder, startVmexit, vmexit } from './cli-vmexit.ts';

const scratch = scratchFolder();

/** Each writes 12 letters of its own, with work between them, and halts. */
const letters = guest(
  16,
  `
 88 d7    |        mov bh, dl
 80 c7 41 |        add bh, 'A'
 b3 0c    |        mov bl, 12
 b9 20 4e | next:  mov cx, 20000
 e2 fe    | wait:  loop wait
 ba f8 03 |        mov dx, 0x3f8
 88 f8    |        mov al, bh
 ee       |        out dx, al
 fe cb    |        dec bl
 75 f1    |        jnz next
 f4       |        hlt
`,
);
const program = scratch.file('letters', letters.code);
const sorted = (text: string): string => [...text].sort().join('');
const ALL = 'A'.repeat(12) + 'B'.repeat(12) + 'C'.repeat(12);

describe.each(backends)('--cpus (%s)', (backend) => {
  const test = on(backend);
  const chosen = ['--backend', backend];

  test('runs the program on each, with its number, to the halt of all', () => {
    const { status, stdout, stderr } = vmexit(['run', ...chosen, '--cpus', '3', '--json', program]);
    expect(status).toBe(0);
    expect(sorted(stderr.split('\n').at(-1)!)).toBe(ALL);
    expect(JSON.parse(stdout)).toMatchObject({
      backend,
      cpus: 3,
      result: 'halted',
      exits: { IO: 36, HLT: 3 },
    });
  });

  test('saves all of them, and restores them to the same end', () => {
    for (const exits of [2, 20, 37]) {
      const file = join(scratch.path, `${backend}-${exits}`);
      const saving = ['snapshot', ...chosen, '--cpus', '3', '--after-exits', `${exits}`, '--output', file];
      const saved = vmexit([...saving, program]);
      expect(saved.stderr).toMatch(/at rip 0x[\da-f]+, 0x[\da-f]+, 0x[\da-f]+/);
      expect(saved.status).toBe(0);
      for (const how of [[], ['--lazy']]) {
        const rest = vmexit(['run', ...how, '--restore', file]);
        expect(sorted(saved.stdout + rest.stdout)).toBe(ALL);
        expect(rest.status).toBe(0);
      }
    }
  });

  test('hands all of them over to another process', async () => {
    const socket = join(scratch.path, `${backend}.socket`);
    const there = startVmexit(['receive', ...chosen, `unix:${socket}`]);
    while (!existsSync(socket)) await new Promise((done) => setTimeout(done, 20));
    const here = vmexit([
      'migrate',
      ...chosen,
      '--cpus',
      '3',
      '--after',
      '1',
      '--to',
      `unix:${socket}`,
      program,
    ]);
    expect(here.status).toBe(0);
    const { status, stdout } = await there.end;
    expect(sorted(here.stdout + stdout)).toBe(ALL);
    expect(status).toBe(0);
  });
});

it('is refused where it is no number of processors', () => {
  for (const cpus of ['0', '65', 'two']) {
    const { status, stderr } = vmexit(['run', '--cpus', cpus, program]);
    expect(status).toBe(2);
    expect(stderr).toMatch(/cpus/);
  }
});
