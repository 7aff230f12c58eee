/** A guest that is handed over from one command to another. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { guest } from '../../src/index.ts';
import { backends, on } from '../support/host.ts';
import { Relay } from '../support/relay.ts';
import { scratchFolder, startVmexit, vmexit } from './cli-vmexit.ts';

const scratch = scratchFolder();

/**
 * Prints the alphabet again and again, by what it has left in a register of the serial port, and uses another page for
 * each; then ends with 26. It exits so often that none is through within the time after which it is handed over.
 */
const ALPHABETS = 2000;
const alphabets = guest(
  64,
  `
 ba ff 03 00 00       |        mov edx, 0x3ff
 b0 07                |        mov al, 7
 ee                   |        out dx, al
 bb 00 00 10 00       |        mov ebx, 0x100000
 be d0 07 00 00       |        mov esi, 2000
 31 ed                |        xor ebp, ebp
 ba ff 03 00 00       | again: mov edx, 0x3ff
 ec                   |        in al, dx
 0f b6 c0             |        movzx eax, al
 48 01 2b             |        add [rbx], rbp
 8d 44 05 5a          |        lea eax, [rbp + rax + 0x5a]     # 'a' - 7
 ba f8 03 00 00       |        mov edx, 0x3f8
 ee                   |        out dx, al
 ff c5                |        inc ebp
 83 fd 1a             |        cmp ebp, 26
 72 e3                |        jb again
 b0 0a                |        mov al, 10
 ee                   |        out dx, al
 31 ed                |        xor ebp, ebp
 48 81 c3 00 10 00 00 |        add rbx, 0x1000
 ff ce                |        dec esi
 75 d3                |        jnz again
 b0 1a                |        mov al, 26
 e6 f4                |        out 0xf4, al
`,
);
const spins = guest(
  16,
  `
 eb fe | here: jmp here
`,
);
const program = scratch.file('alphabets.bin', alphabets.code);
const spinning = scratch.file('spins.bin', spins.code);
const printed = 'abcdefghijklmnopqrstuvwxyz\n'.repeat(ALPHABETS);

let sockets = 0;
const fresh = () => `unix:${join(scratch.path, `${sockets++}`)}`;

/** A destination, and where it listens. */
async function receiver(at: string, ...options: string[]) {
  const command = startVmexit(['receive', ...options, at]);
  const [, address] = await command.says(/waiting.* at (\S+)\n/, 'stderr');
  return { command, address: address! };
}
const migrating = (to: string, ...options: string[]) =>
  startVmexit(['migrate', '--mode', 'long', '--to', to, '--after', '100', ...options]);

describe.each(backends)('vmexit migrate and vmexit receive (%s)', (backend) => {
  const it = on(backend);
  const options = ['--backend', backend];
  const ways: readonly [string, () => string][] = [
    ['a Unix socket', fresh],
    ['TCP', () => 'tcp:127.0.0.1:0'],
  ];
  for (const [by, at] of ways) {
    it(`hand a running guest over by ${by}: what both print is what one would have`, async () => {
      const destination = await receiver(at(), ...options);
      const source = await migrating(destination.address, ...options, program).end;
      const { status, stdout, stderr } = await destination.command.end;
      expect(stderr).toMatch(
        /^vmexit: 16384 of 16384 pages came by \w+: \d+ pulled, \d+ pushed; it ran \d+ ms after .*\n$/m,
      );
      expect(source.stderr).toMatch(
        /^vmexit: handed over in \d+ ms, all 16384 pages \(\d+ of zeroes\) in \d+ ms: /,
      );
      expect(stdout.length).toBeGreaterThan(0);
      expect(source.stdout + stdout === printed).toBe(true);
      expect([source.status, status]).toEqual([0, 26]);
    });
  }

  it('leave the guest where it is when nobody waits for it', async () => {
    const { status, stdout, stderr } = await migrating(fresh(), ...options, program).end;
    expect(stderr).toMatch(/cannot be reached: connect ENOENT .*; the guest goes on here\n$/);
    expect(stdout === printed).toBe(true);
    expect(status).toBe(26);
  });

  it('leave it where it is when the destination has too little memory for it', async () => {
    const destination = await receiver(fresh(), ...options, '--memory', '1M');
    const { status, stdout, stderr } = await migrating(destination.address, ...options, program).end;
    expect(stderr).toMatch(
      /it refuses: the guest has 67108864 bytes of memory, and may have 1048576 .*goes on here/,
    );
    expect(stdout === printed).toBe(true);
    expect(status).toBe(26);
    expect((await destination.command.end).status).toBe(1);
  });

  it('end with a clear error when the source is killed', async () => {
    const destination = await receiver(fresh(), ...options);
    const between = fresh();
    const relay = await Relay.between(between.slice('unix:'.length), destination.address, 'the end');
    const source = migrating(between, ...options, '--memory', '1G', spinning);
    await relay.handedOver;
    source.kill('SIGKILL');
    await source.end;
    relay[Symbol.dispose]();
    const { status, stderr } = await destination.command.end;
    expect(stderr).toMatch(
      /the guest cannot go on: the source: the connection .*; \d+ of 262144 pages are missing/,
    );
    expect(status).toBe(1);
  });

  it('end at once, and cleanly, on Ctrl-C', async () => {
    const at = fresh();
    const waiting = await receiver(at, ...options);
    waiting.command.kill('SIGINT');
    expect((await waiting.command.end).status).toBe(130);
    expect(existsSync(at.slice('unix:'.length))).toBe(false);

    const running = await receiver(fresh(), ...options);
    const source = migrating(running.address, ...options, spinning);
    expect((await source.end).status).toBe(0);
    running.command.kill('SIGINT');
    expect((await running.command.end).status).toBe(130);
  });
});

describe('vmexit migrate and vmexit receive', () => {
  it.each([
    [['migrate', program], /--to ADDRESS is missing/],
    [['migrate', '--to', 'there', program], /--to is "there"; it must be unix:PATH/],
    [['migrate', '--to', 'unix:/x', '--after', 'soon', program], /--after is 'soon'/],
    [['receive'], /<address> is missing/],
    [['receive', 'tcp:nowhere'], /<address> is "tcp:nowhere"/],
  ])('refuse %j', (args, says) => {
    const { status, stderr } = vmexit(args);
    expect(stderr).toMatch(says);
    expect(status).toBe(2);
  });

  it('tell of a guest that has ended before', () => {
    const halts = scratch.file('halts.bin', Uint8Array.of(0xf4));
    const { status, stderr } = vmexit(['migrate', '--to', fresh(), '--backend', 'sim', halts]);
    expect(stderr).toMatch(/the guest has ended here, before it was to be handed over/);
    expect(status).toBe(0);
  });

  it('have help', () => {
    for (const command of ['migrate', 'receive']) {
      const { status, stdout } = vmexit([command, '--help']);
      expect(stdout).toMatch(new RegExp(`^vmexit ${command} `));
      expect(status).toBe(0);
    }
  });
});
