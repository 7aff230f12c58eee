import { execFileSync, spawnSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { guest } from '../../src/index.ts';
import { noAddon, noAssembler, notLinux, onEach, onEachWith, whyNot } from '../support/host.ts';
import { main, type Ran, scratchFolder, startVmexit, vmexit } from './cli-vmexit.ts';

const scratch = scratchFolder();

const hello = guest(
  16,
  `
     ba f8 03             | start: mov dx, 0x3f8
     8d 36 1c 10          |        lea si, [text - start + 0x1000]    # a flat binary begins at 0x1000
     83 c2 05             | wait:  add dx, 5                 # the line status, until the transmitter is empty
     ec                   |        in al, dx
     83 ea 05             |        sub dx, 5
     a8 20                |        test al, 0x20
     74 f5                |        jz wait
     ac                   |        lodsb
     ee                   |        out dx, al
     84 c0                |        test al, al
     75 ef                |        jnz wait
     b0 2a                |        mov al, 42
     e6 f4                |        out 0xf4, al
     48 69 80 ff 0d 0a 00 | text:  .byte 0x48, 0x69, 0x80, 0xff, 0x0d, 0x0a, 0x00    # bytes that are no text, too
`,
);
const halts = guest(
  64,
  `
     f4 | hlt
`,
);
const fails = guest(
  64,
  `
     b8 00 01 00 00 | mov eax, 0x100
     e7 f4          | out 0xf4, eax
`,
);
const crashes = guest(
  64,
  `
     48 bb 88 77 66 55 44 33 22 11 | mov rbx, 0x1122334455667788
     48 8b 03                      | mov rax, [rbx]
`,
);
const spins = guest(
  16,
  `
     b0 3e    |       mov al, '>'
     ba f8 03 |       mov dx, 0x3f8
     ee       |       out dx, al
     eb fe    | here: jmp here
`,
);
const pokes = guest(
  64,
  `
     bf 00 00 00 c0    | mov edi, 0xc0000000
     c7 07 78 56 34 12 | mov dword ptr [rdi], 0x12345678
     8a 07             | mov al, [rdi]
     e4 70             | in al, 0x70
     f4                | hlt
`,
);
// rdi: memory in bytes; rsi: 1 with private memory. Makes a page private, writes there, and shares it again.
const converts = guest(
  64,
  `
     49 89 fc                |        mov r12, rdi
     49 89 f5                |        mov r13, rsi
     ba 10 00 00 00          |        mov edx, 0x10
     e8 19 00 00 00          |        call map
     c6 04 25 00 80 00 00 01 |        mov byte ptr [0x8000], 1
     31 d2                   |        xor edx, edx
     e8 0a 00 00 00          |        call map
     49 c1 ec 14             |        shr r12, 20
     43 8d 04 2c             |        lea eax, [r12 + r13]
     e6 f4                   |        out 0xf4, al
     31 c0                   | map:   xor eax, eax
     52                      |        push rdx
     0f a2                   |        cpuid
     5a                      |        pop rdx
     81 f9 63 41 4d 44       |        cmp ecx, 0x444d4163
     b8 0c 00 00 00          |        mov eax, 12
     bb 00 80 00 00          |        mov ebx, 0x8000
     b9 01 00 00 00          |        mov ecx, 1
     74 04                   |        je amd
     0f 01 c1                |        vmcall
     c3                      |        ret
     0f 01 d9                | amd:   vmmcall
     c3                      |        ret
`,
);

const bin = (name: string, { code }: { code: Uint8Array }) => scratch.file(`${name}.bin`, code);

/** The guest as an ELF64 executable, by the system's own assembler and linker. */
function elf(name: string, source: string, ...linker: string[]): string {
  const at = (extension: string) => join(scratch.path, name + extension);
  scratch.file(`${name}.s`, `.intel_syntax noprefix\n.globl _start\n${source}\n`);
  execFileSync('as', ['--64', '-o', at('.o'), at('.s')]);
  execFileSync('ld', [...linker, '-o', at('.elf'), at('.o')], { stdio: ['ignore', 'ignore', 'inherit'] });
  return at('.elf');
}

const summary = ({ stdout }: Ran) => JSON.parse(stdout);
const lines = (path: string) =>
  readFileSync(path, 'utf8')
    .trimEnd()
    .split('\n')
    .map((line) => JSON.parse(line));

describe('vmexit run', () => {
  onEach(
    'runs a flat binary in real mode: its serial output byte for byte, its debug exit as the status',
    ({ backend }) => {
      expect(vmexit(['run', '--backend', backend, bin('hello', hello)])).toEqual({
        status: 42,
        stdout: 'Hi\x80\xff\r\n\0',
        stderr: '',
      });
    },
  );

  it('runs what comes by standard input, where it is told to', () => {
    // A boot sector: mov al, cs:[0x7c00]; out 0xf4, al
    const sector = new Uint8Array(512);
    sector.set([0x2e, 0xa0, 0x00, 0x7c, 0xe6, 0xf4]);
    sector.set([0x55, 0xaa], 510);
    const run = (...options: string[]) => {
      const args = [main, 'run', '--backend', 'sim', ...options, '-'];
      const { status, stderr } = spawnSync(process.execPath, args, { input: sector, encoding: 'utf8' });
      return [status, stderr];
    };
    expect(run('--at', '0x7c00')).toEqual([0x2e, '']);
    expect(run()).toEqual([
      1,
      expect.stringMatching(/^vmexit: standard input is a boot sector, .*--at 0x7c00/),
    ]);
  });

  onEach('runs a flat binary in long mode when it is asked to', ({ backend }) => {
    expect(vmexit(['run', '--backend', backend, '--mode', 'long', bin('halts', halts)])).toEqual({
      status: 0,
      stdout: '',
      stderr: '',
    });
  });

  onEach('runs an ELF64 executable, its data and its stack', ({ backend }, context) => {
    context.skip(noAssembler !== undefined, noAssembler);
    const path = elf(
      'hello',
      `_start: mov r12, rdi
              lea rsi, [rip + text]
              call print
              cmp dword ptr [rip + zero], 0
              jne bad
              cmp r12, 0x2000000
              jne bad
              hlt
       bad:   mov al, 1
              out 0xf4, al
       print: mov dx, 0x3f8
              mov ecx, [rip + size]
              rep outsb
              ret
       .data
       text:  .ascii "Hello from ELF\\n"
       size:  .long . - text
       .bss
       zero:  .skip 0x10000`,
    );
    expect(vmexit(['run', '--backend', backend, '--memory', '32M', path])).toEqual({
      status: 0,
      stdout: 'Hello from ELF\n',
      stderr: '',
    });
  });

  onEach(
    'begins an ELF64 executable where its physical address is, if that is not its virtual one',
    ({ backend }, context) => {
      context.skip(noAssembler !== undefined, noAssembler);
      const script = scratch.file(
        'high.ld',
        'ENTRY(_start) SECTIONS { . = 0x80000000; .text : AT(0x200000) { *(.text) } /DISCARD/ : { *(*) } }',
      );
      const path = elf('high', '_start: lea rax, [rip]\nshr rax, 20\nout 0xf4, al', '-T', script);
      expect(vmexit(['run', '--backend', backend, path])).toEqual({ status: 2, stdout: '', stderr: '' });
    },
  );

  onEach('gives a status of 255 for more than that, so that no failure looks like success', ({ backend }) => {
    const path = bin('fails', fails);
    expect(vmexit(['run', '--backend', backend, '--mode', 'long', path]).status).toBe(255);
    expect(summary(vmexit(['run', '--backend', backend, '--mode', 'long', '--json', path]))).toMatchObject({
      result: 'exited',
      status: 255,
    });
  });

  onEach('ends a guest that does not end with status 124, and shows where it is', ({ backend }) => {
    const begun = performance.now();
    const { status, stdout, stderr } = vmexit([
      'run',
      '--backend',
      backend,
      '--timeout',
      '0.3',
      bin('spins', spins),
    ]);
    expect(performance.now() - begun).toBeGreaterThanOrEqual(300);
    expect([status, stdout]).toEqual([124, '>']);
    expect(stderr).toBe('vmexit: the guest has not ended within 0.3 s; it is at rip 0x1006\n');
  });

  onEach('tells why a guest has crashed, with its registers, and ends with status 1', ({ backend }) => {
    const { status, stdout, stderr } = vmexit([
      'run',
      '--backend',
      backend,
      '--mode',
      'long',
      bin('crashes', crashes),
    ]);
    expect([status, stdout]).toEqual([1, '']);
    expect(stderr).toMatch(/^vmexit: the guest ended with shutdown \(on x86 a triple fault\): /);
    // KVM on AMD resets the processor at a triple fault.
    if (!/its registers are gone/.test(stderr)) {
      expect(stderr).toMatch(/^ {2}rip 0x100a in 0x8 \(base 0x0, 64-bit\)/m);
      expect(stderr).toMatch(/rbx 1122334455667788/);
      expect(stderr).toMatch(
        /^ {2}from rip on:\n {4}0x100a {2}48 8b 03 {2}mov rax, \[rbx\]\n {4}0x100d {2}/m,
      );
    }
    // Of what KVM does not tell nothing is invented.
    expect(stderr).toMatch(
      backend === 'sim'
        ? /^ {2}the exceptions that led to it, or came before:\n {4}#GP\(0x0\) at rip 0x100a\n {4}#GP\(0x6b\) at rip 0x100a\n {4}#DF\(0x0\) at rip 0x100a\n {4}#GP\(0x43\) at rip 0x100a$/m
        : /--backend sim (does|tells which)/,
    );
    expect(stderr).not.toMatch(/^ +at /m);
  });

  onEach('prints with --json one object on stdout, and the serial output on stderr', ({ backend }) => {
    const ran = vmexit(['run', '--backend', backend, '--json', bin('hello', hello)]);
    expect(ran.status).toBe(42);
    expect(ran.stderr).toBe('Hi\x80\xff\r\n\0');
    expect(ran.stdout.split('\n')).toHaveLength(2);
    const { elapsedMs, instructions, ...rest } = summary(ran);
    expect(elapsedMs).toBeGreaterThan(0);
    expect(instructions === undefined).toBe(backend === 'kvm');
    expect(rest).toEqual({
      backend,
      guest: join(scratch.path, 'hello.bin'),
      mode: 'real',
      result: 'exited',
      status: 42,
      // Each of the seven bytes is polled for and sent; and the debug exit.
      exits: { IO: 15 },
      memoryFaults: 0,
      conversions: { toPrivate: 0, toShared: 0 },
      unclaimed: { ports: { reads: 0, writes: 0 }, mmio: { reads: 0, writes: 0 } },
    });
  });

  onEach('says in the object how the guest has ended', ({ backend }) => {
    const run = (name: string, code: Parameters<typeof bin>[1], ...options: string[]) =>
      summary(vmexit(['run', '--backend', backend, '--json', '--mode', 'long', ...options, bin(name, code)]));
    expect(run('halts', halts)).toMatchObject({ result: 'halted', status: 0, exits: { HLT: 1 } });
    const crashed = run('crashes', crashes);
    expect(crashed).toMatchObject({ result: 'crashed', status: 1, exits: { SHUTDOWN: 1 } });
    expect(crashed.error).toMatch(/triple fault/);
    const timeout = run('spins', { code: Uint8Array.of(0xeb, 0xfe) }, '--timeout', '0.1');
    expect(timeout).toMatchObject({ result: 'timeout', status: 124, exits: {} });
    const poked = run('pokes', pokes);
    expect(poked).toMatchObject({
      result: 'halted',
      exits: { MMIO: 2, IO: 1, HLT: 1 },
      unclaimed: { ports: { reads: 1, writes: 0 }, mmio: { reads: 1, writes: 1 } },
    });
  });

  onEach('writes a trace: a line of JSON for each exit, with what the VMM answered', ({ backend }) => {
    const trace = join(scratch.path, 'pokes.jsonl');
    const { status } = vmexit([
      'run',
      '--backend',
      backend,
      '--mode',
      'long',
      '--trace',
      trace,
      bin('pokes', pokes),
    ]);
    expect(status).toBe(0);
    const written = lines(trace);
    expect(written.map(({ ms: _, insns: __, ...line }) => line)).toEqual([
      { seq: 1, exit: 'MMIO', physAddr: 0xc000_0000, len: 4, isWrite: true, data: '78563412' },
      { seq: 2, exit: 'MMIO', physAddr: 0xc000_0000, len: 1, isWrite: false, data: 'ff' },
      { seq: 3, exit: 'IO', direction: 'in', port: 0x70, size: 1, count: 1, data: 'ff' },
      { seq: 4, exit: 'HLT' },
    ]);
    const times = written.map(({ ms }) => ms);
    expect(times).toEqual(times.toSorted((a, b) => a - b));
  });

  onEachWith('private-memory', 'map-gpa-range')(
    'gives a guest private memory with --private, and serves, counts and traces its conversions',
    ({ backend }) => {
      const trace = join(scratch.path, 'converts.jsonl');
      const ran = vmexit([
        ...[
          'run',
          '--backend',
          backend,
          '--private',
          '--json',
          '--memory',
          '2M',
          '--mode',
          'long',
          '--timeout',
          '10',
        ],
        ...['--trace', trace, bin('converts', converts)],
      ]);
      expect(ran).toMatchObject({ status: 3, stderr: '' });
      expect(summary(ran)).toMatchObject({
        backend,
        result: 'exited',
        exits: { HYPERCALL: 2, IO: 1 },
        memoryFaults: 0,
        conversions: { toPrivate: 1, toShared: 1 },
      });
      const conversion = { memory: 'hypercall', vcpu: 0, gpa: 0x8000, size: 0x1000, result: 0 };
      expect(lines(trace)).toMatchObject([
        { seq: 1, exit: 'HYPERCALL', nr: '0xc', ret: '0x0' },
        { seq: 2, ...conversion, action: 'private' },
        { seq: 3, exit: 'HYPERCALL', nr: '0xc', ret: '0x0' },
        { seq: 4, ...conversion, action: 'shared' },
        { seq: 5, exit: 'IO', direction: 'out', port: 0xf4 },
      ]);
    },
  );

  it('refuses --private with the reason and status 69 where this host has no private memory', (context) => {
    const reason = whyNot('kvm', 'private-memory', 'map-gpa-range');
    if (reason === undefined) return context.skip('this host has private memory');
    const { status, stdout, stderr } = vmexit(['run', '--private', '--backend', 'kvm', bin('halts', halts)]);
    expect([status, stdout]).toEqual([69, '']);
    expect(stderr).toMatch(/^vmexit: \S/);
    // The lab is Linux's, too; and what an addon wants is to be built.
    if (notLinux === undefined && noAddon === undefined) expect(stderr).toMatch(/npx vmexit lab --help\n$/);
  });

  it.each([
    ['that is missing', () => join(scratch.path, 'nothing'), /nothing does not exist/],
    ['that is empty', () => scratch.file('empty', ''), /is empty/],
    ['that is a folder', () => scratch.path, /is a folder/],
    [
      'that is larger than memory',
      () => scratch.file('large', Buffer.alloc(0x1_0001)),
      /65537 bytes, more than .* 65536/,
    ],
    [
      'that does not fit above 0x1000',
      () => scratch.file('fits', Buffer.alloc(0xf001)),
      /\[0x1000, 0x10001\)/,
    ],
    ['that is cut short', () => scratch.file('cut', '\x7fELF\x02\x01\x01'), /truncated/],
  ])('refuses a guest %s: one line, and status 1', (_which, path, says) => {
    const { status, stdout, stderr } = vmexit(['run', '--backend', 'sim', '--memory', '64K', path()]);
    expect([status, stdout]).toEqual([1, '']);
    expect(stderr).toMatch(/^vmexit: [^\n]+\n$/);
    expect(stderr).toMatch(says);
  });

  it.each([
    ['0', /memory is 0; it must be whole pages/],
    ['100', /from 64K to 3G/],
    ['1000G', /from 64K to 3G/],
    ['999999', /a multiple of 4096/],
  ])('refuses a memory of %s', (memory, says) => {
    const { status, stdout, stderr } = vmexit([
      'run',
      '--backend',
      'sim',
      '--memory',
      memory,
      bin('halts', halts),
    ]);
    expect([status, stdout]).toEqual([1, '']);
    expect(stderr).toMatch(says);
  });

  onEach('refuses a trace that it cannot write before the guest runs', ({ backend }) => {
    const { status, stdout, stderr } = vmexit([
      'run',
      '--backend',
      backend,
      '--trace',
      '/nowhere/trace',
      bin('hello', hello),
    ]);
    expect([status, stdout]).toEqual([1, '']);
    expect(stderr).toBe('vmexit: --trace: /nowhere/trace cannot be written (ENOENT)\n');
  });

  onEach('ends at Ctrl-C with status 130, with what was printed and no word more', async ({ backend }) => {
    const trace = join(scratch.path, 'interrupted.jsonl');
    const command = startVmexit(['run', '--backend', backend, '--trace', trace, bin('spins', spins)]);
    await command.says(/>/); // its prompt, so the guest runs
    command.kill('SIGINT');
    expect(await command.end).toEqual({ status: 130, stdout: '>', stderr: '' });
    expect(existsSync(trace)).toBe(true);
    expect(lines(trace)).toMatchObject([{ seq: 1, exit: 'IO' }]);
  });

  onEach('ends quietly when nobody reads its output any more', async ({ backend }) => {
    const prints = bin('prints', { code: Uint8Array.of(0xba, 0xf8, 0x03, 0xb0, 0x0a, 0xee, 0xeb, 0xfd) });
    const command = startVmexit(['run', '--backend', backend, '--timeout', '100', prints]);
    await command.says(/\n/);
    command.child.stdout.destroy();
    expect(await command.end).toMatchObject({ status: 141, stderr: '' });
  });
});

describe('vmexit run --backend sim', () => {
  const long = ['run', '--backend', 'sim', '--mode', 'long'];
  const traced = (name: string, code: Parameters<typeof bin>[1], ...options: string[]) => {
    const trace = join(scratch.path, `${name}-${options.length}.jsonl`);
    const ran = vmexit([...long, '--trace', trace, ...options, bin(name, code)]);
    return { ...ran, trace: readFileSync(trace, 'utf8'), lines: lines(trace) };
  };

  it('writes the same trace each time, byte for byte: its time is the instructions', () => {
    const first = traced('pokes', pokes);
    expect(first.lines).toEqual([
      { seq: 1, insns: 2, exit: 'MMIO', physAddr: 0xc000_0000, len: 4, isWrite: true, data: '78563412' },
      { seq: 2, insns: 2, exit: 'MMIO', physAddr: 0xc000_0000, len: 1, isWrite: false, data: 'ff' },
      { seq: 3, insns: 3, exit: 'IO', direction: 'in', port: 0x70, size: 1, count: 1, data: 'ff' },
      { seq: 4, insns: 5, exit: 'HLT' },
    ]);
    expect(traced('pokes', pokes)).toEqual(first);
    const private_ = ['--private', '--memory', '2M'];
    const converted = traced('converts', converts, ...private_);
    expect(converted.status).toBe(3);
    expect(converted.lines.map(({ exit, memory }) => exit ?? memory)).toContain('hypercall');
    expect(traced('converts', converts, ...private_)).toEqual(converted);
  });

  it('tells with --json how many instructions the guest has completed', () => {
    expect(summary(vmexit([...long, '--json', bin('pokes', pokes)]))).toMatchObject({
      backend: 'sim',
      instructions: 5,
    });
  });

  it('writes with --trace-instructions each instruction and second-stage fault too, and the same exits', () => {
    const { status, lines: all, trace } = traced('pokes', pokes, '--trace-instructions');
    expect(status).toBe(0);
    expect(all[0]).toEqual({
      seq: 1,
      insns: 0,
      registers: { rip: '0x1000', rflags: '0x2', rdi: '0x4000000', rsp: '0x3ff9000' },
    });
    expect(all.filter(({ secondStage }) => secondStage === 'fetch')).toMatchObject([
      { insns: 0, gpa: 0x1000, wants: 'shared', slot: 0, mapped: 'memory' },
    ]);
    const rest = all.filter(({ instruction, exit }) => instruction ?? exit);
    expect(rest.map(({ insns, instruction, exit }) => [insns, instruction ?? exit])).toEqual([
      [0, 'mov edi, 0xc0000000'],
      [1, 'mov dword ptr [rdi], 0x12345678'],
      [2, 'MMIO'],
      [2, 'mov al, [rdi]'],
      [2, 'MMIO'],
      [3, 'in al, 0x70'],
      [3, 'IO'],
      [4, 'hlt'],
      [5, 'HLT'],
    ]);
    expect(rest[1]).toMatchObject({ rip: '0x1005', bytes: 'c70778563412' });
    expect(traced('pokes', pokes, '--trace-instructions').trace).toBe(trace);
  });

  it('shows a guest that has crashed with the code around rip: before it, what was seen to execute', () => {
    const { status, stderr } = traced('crashes', crashes, '--trace-instructions');
    expect(status).toBe(1);
    expect(stderr).toMatch(
      /^ {2}the last instructions:\n {4}0x1000 {2}48 bb .* mov rbx, 0x1122334455667788$/m,
    );
    expect(stderr).toMatch(/^ {2}from rip on:\n {4}0x100a {2}48 8b 03 {2}mov rax, \[rbx\]$/m);
    const { stderr: unseen } = traced('crashes', crashes);
    expect(unseen).not.toMatch(/the last instructions/);
    expect(unseen).toMatch(/^ {2}from rip on:\n {4}0x100a {2}48 8b 03 {2}mov rax, \[rbx\]$/m);
  });

  it('says why there is no code to show', () => {
    // mov eax, 0x80000000; shl rax, 9; jmp rax: 1 TiB, which nothing maps.
    const code = Uint8Array.of(0xb8, 0, 0, 0, 0x80, 0x48, 0xc1, 0xe0, 9, 0xff, 0xe0);
    const { status, stderr } = traced('jumps', { code } as never);
    expect(status).toBe(1);
    expect(stderr).toMatch(/^ {2}no code to show from rip on: the guest's page tables do not map it$/m);
  });

  it('names an instruction that the simulator lacks, in the trace and in the report', () => {
    const code = Uint8Array.of(0x62, 0xf3, 0x75, 0x28, 0x25, 0xc2, 1);
    const { status, stderr, lines: all } = traced('avx512', { code } as never);
    expect(status).toBe(1);
    expect(all).toMatchObject([
      { lacks: 'EVEX_Vpternlogd_ymm_k1z_ymm_ymmm256b32_imm8', insns: 0 },
      { exception: '#UD', rip: '0x1000' },
      { exception: '#GP', errorCode: 6 * 8 + 2 + 1 },
      { exception: '#GP', errorCode: 13 * 8 + 2 + 1 },
      { exception: '#DF', errorCode: 0 },
      { exception: '#GP', errorCode: 8 * 8 + 2 + 1 },
      { exit: 'SHUTDOWN' },
    ]);
    expect(stderr).toMatch(
      /the simulator has no EVEX_Vpternlogd_ymm_k1z_ymm_ymmm256b32_imm8: #UD was raised in the guest/,
    );
  });

  it.each([
    [['--trace-instructions'], /--trace-instructions needs --trace FILE/],
    [
      ['--trace-instructions', '--trace', '/nowhere/trace', '--backend', 'kvm'],
      /is the simulator's: KVM runs instructions on the processor itself, and tells of exits alone/,
    ],
  ])('refuses %j as wrong usage that says why', (options, says) => {
    const { status, stdout, stderr } = vmexit(['run', ...options, bin('halts', halts)]);
    expect([status, stdout]).toEqual([2, '']);
    expect(stderr).toMatch(says);
  });

  it('is what --trace-instructions chooses where the choice is free, and says so', () => {
    const trace = join(scratch.path, 'auto.jsonl');
    const { status, stderr } = vmexit([
      'run',
      '--mode',
      'long',
      '--trace-instructions',
      '--trace',
      trace,
      bin('halts', halts),
    ]);
    expect([status, stderr]).toEqual([0, 'vmexit: sim: KVM does not tell of single instructions\n']);
    expect(lines(trace).at(-1)).toMatchObject({ exit: 'HLT', insns: 1 });
  });
});
