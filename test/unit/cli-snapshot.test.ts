/** `vmexit snapshot` and `vmexit run --restore`, as a user runs them. */
import { existsSync, readdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { guest } from '../../src/index.ts';
import { backends, on, onEach } from '../support/host.ts';
import { scratchFolder, startVmexit, vmexit } from './cli-vmexit.ts';

const scratch = scratchFolder();

// Writes 20 letters, works after each, and ends with what it has read back from the serial port and computed.
const letters = guest(
  64,
  `
 66 ba fb 03             | start:  mov dx, 0x3fb
 b0 03                   |         mov al, 3
 ee                      |         out dx, al
 31 db                   |         xor ebx, ebx
 b9 e8 03 00 00          | next:   mov ecx, 1000
 6b f6 1f                | work:   imul esi, esi, 31
 01 ce                   |         add esi, ecx
 ff c9                   |         dec ecx
 75 f7                   |         jnz work
 48 89 34 dd 00 00 20 00 |         mov [0x200000 + rbx * 8], rsi
 66 ba f8 03             |         mov dx, 0x3f8
 8d 43 41                |         lea eax, [rbx + 65]
 ee                      |         out dx, al
 ff c3                   |         inc ebx
 83 fb 14                |         cmp ebx, 20
 75 db                   |         jne next
 b0 0a                   |         mov al, 10
 ee                      |         out dx, al
 66 ba fb 03             |         mov dx, 0x3fb
 ec                      |         in al, dx
 40 00 f0                |         add al, sil
 24 7f                   |         and al, 0x7f
 e6 f4                   |         out 0xf4, al
`,
);
const program = scratch.file('letters', letters.code);

describe.each(backends)('vmexit snapshot (%s)', (backend) => {
  const it = on(backend);
  const snapshot = (exits: number, file: string) =>
    vmexit([
      'snapshot',
      '--mode',
      'long',
      '--backend',
      backend,
      '--after-exits',
      `${exits}`,
      '--output',
      file,
      program,
    ]);

  it('saves a guest that run --restore brings to the same end, at any of its exits', () => {
    const whole = vmexit(['run', '--mode', 'long', '--backend', backend, program]);
    expect(whole.stdout).toBe('ABCDEFGHIJKLMNOPQRST\n');
    for (const exits of [1, 9, 21]) {
      const file = join(scratch.path, `${backend}-${exits}`);
      const saved = snapshot(exits, file);
      expect(saved.stderr).toMatch(/MiB, \d+ of 16384 pages/);
      expect(saved.status).toBe(0);
      const rest = vmexit(['run', '--json', '--restore', file]);
      const summary = JSON.parse(rest.stdout);
      expect(summary).toMatchObject({ backend, result: 'exited', status: whole.status });
      expect(saved.stdout + rest.stderr).toBe(whole.stdout);
      expect(rest.status).toBe(whole.status);
      const lazy = vmexit(['run', '--lazy', '--json', '--restore', file]);
      expect(JSON.parse(lazy.stdout)).toMatchObject({ result: 'exited', paging: { pages: 16384 } });
      expect(saved.stdout + lazy.stderr).toBe(whole.stdout);
      expect(lazy.status).toBe(whole.status);
    }
  });

  it('--since goes on with a saved guest, and saves what has changed: run --restore brings the chain to the same end', () => {
    const whole = vmexit(['run', '--mode', 'long', '--backend', backend, program]);
    const file = (name: string) => join(scratch.path, `${backend}-since-${name}`);
    let output = snapshot(4, file('0')).stdout;
    for (const [since, name] of ['01', '12'] as const) {
      const how = ['--since', file(since!), '--after-exits', '6', '--output', file(name!)];
      const saved = vmexit(['snapshot', ...how]);
      expect(saved.stderr).toMatch(
        /: 0\.0\d MiB, \d of 16384 pages \(the others are as in .*since-\d\), at rip/,
      );
      expect(saved.status).toBe(0);
      output += saved.stdout;
    }
    for (const how of [[], ['--lazy']]) {
      const rest = vmexit(['run', ...how, '--restore', file('2')]);
      expect(output + rest.stdout).toBe(whole.stdout);
      expect(rest.status).toBe(whole.status);
    }
    renameSync(file('0'), file('gone'));
    const { status, stderr } = vmexit(['run', '--restore', file('2')]);
    expect(stderr).toMatch(
      /since-1: it holds what has changed since .*since-0, which cannot be read: .*ENOENT/,
    );
    expect(status).toBe(1);
  });

  it('saves nothing of a guest that ends before, or just then', () => {
    const file = join(scratch.path, `${backend}-ended`);
    const allExits = 24;
    for (const exits of [allExits, 1000]) {
      const { status, stderr } = snapshot(exits, file);
      expect(stderr).toMatch(/nothing is saved: the guest has ended before, with status [1-9]/);
      expect(status).toBe(1);
      expect(existsSync(file)).toBe(false);
    }
  });
});

describe('vmexit snapshot and run --restore', () => {
  it('have their wrong usage told', () => {
    const wrong: [RegExp, string[]][] = [
      [/--output FILE is missing/, ['snapshot', program]],
      [/<guest> is missing/, ['snapshot', '--output', 'x']],
      [/two ways to say when/, ['snapshot', '--output', 'x', '--after', '1', '--after-exits', '1', program]],
      [
        /--after is 'soon'; it must be a whole number above 0/,
        ['snapshot', '--output', 'x', '--after', 'soon', program],
      ],
      [/--timeout needs --after-exits/, ['snapshot', '--output', 'x', '--timeout', '1', program]],
      [/one argument too many/, ['run', '--restore', 'x', program]],
      [/one argument too many/, ['snapshot', '--output', 'x', '--since', 'y', program]],
      [
        /--memory is in the snapshot: --since takes no other/,
        ['snapshot', '--output', 'x', '--since', 'y', '--memory', '1G'],
      ],
      [/--lazy needs --restore/, ['run', '--lazy', program]],
      [/--memory is in the snapshot/, ['run', '--restore', 'x', '--memory', '1G']],
    ];
    for (const [message, args] of wrong) {
      const { status, stderr } = vmexit(args);
      expect(stderr).toMatch(message);
      expect(status, args.join(' ')).toBe(2);
    }
  });

  it('say what is wrong with a file', () => {
    const file = join(scratch.path, 'damaged');
    vmexit([
      'snapshot',
      '--mode',
      'long',
      '--backend',
      'sim',
      '--after-exits',
      '3',
      '--output',
      file,
      program,
    ]);
    const bytes = readFileSync(file);
    writeFileSync(file, bytes.subarray(0, bytes.length - 1));
    const { status, stderr } = vmexit(['run', '--restore', file]);
    expect(stderr).toMatch(/snapshot .*damaged: it is truncated: it has \d+ bytes, and should have \d+/);
    expect(status).toBe(1);
    expect(vmexit(['run', '--restore', join(scratch.path, 'absent')]).stderr).toMatch(
      /it cannot be opened \(ENOENT\)/,
    );
  });

  onEach('--lazy ends a guest that touches a page which was altered', ({ backend }) => {
    const file = join(scratch.path, `altered-${backend}`);
    const how = ['--mode', 'long', '--backend', backend, '--after-exits', '9', '--output', file];
    expect(vmexit(['snapshot', ...how, program]).status).toBe(0);
    const bytes = readFileSync(file);
    // In the page of its code.
    const at = bytes.indexOf(letters.code);
    bytes[at + 200] = bytes[at + 200]! ^ 1;
    writeFileSync(file, bytes);
    const { status, stderr } = vmexit(['run', '--lazy', '--restore', file]);
    expect(stderr).toMatch(/page 1 of memory 0 was altered.* pages are missing, and the guest cannot go on/);
    expect(status).toBe(1);
  });

  it('leave no file when they are interrupted', async () => {
    const file = join(scratch.path, 'interrupted');
    const spins = scratch.file('spins', new Uint8Array([0xb0, 0x3e, 0xba, 0xf8, 0x03, 0xee, 0xeb, 0xfe]));
    const command = startVmexit([
      'snapshot',
      '--backend',
      'sim',
      '--after',
      '600000',
      '--output',
      file,
      spins,
    ]);
    await command.says(/>/);
    command.kill('SIGINT');
    expect((await command.end).status).toBe(130);
    expect(readdirSync(scratch.path).filter((name) => name.includes('interrupted'))).toEqual([]);
  });
});
