/** `node scripts/uapi.mjs`: what a contributor is told of a kernel's headers. */
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { main } from '../uapi/cli.ts';
import { DOCUMENT, documentOf } from '../uapi/document.ts';
import { readRecorded } from '../uapi/fixture.ts';
import { noHeaderTools } from '../uapi/headers.ts';

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'vmexit-headers-'));
});
afterEach(() => rmSync(folder, { recursive: true }));

async function run(...args: string[]) {
  const out: string[] = [];
  const err: string[] = [];
  const spies = [
    vi.spyOn(process.stdout, 'write').mockImplementation((text) => out.push(String(text)) > 0),
    vi.spyOn(process.stderr, 'write').mockImplementation((text) => err.push(String(text)) > 0),
  ];
  try {
    return { status: await main(args), out: out.join(''), err: err.join('') };
  } finally {
    for (const spy of spies) spy.mockRestore();
  }
}

/** Headers that say what the system's do, and more. */
function headersWith(text: string) {
  mkdirSync(join(folder, 'linux'));
  mkdirSync(join(folder, 'asm'));
  writeFileSync(join(folder, 'linux/kvm.h'), `#include_next <linux/kvm.h>\n${text}`);
  writeFileSync(join(folder, 'asm/kvm.h'), '#include_next <asm/kvm.h>\n');
}

describe('uapi.mjs', () => {
  it('explains itself', async () => {
    const { status, out } = await run('--help');
    expect([status, out]).toEqual([0, expect.stringContaining('node scripts/uapi.mjs HEADER_DIR...')]);
  });

  it('finds nothing to say of the recorded headers', async () => {
    expect(await run('--recorded')).toMatchObject({ status: 0, err: '' });
  });

  it('makes the document that is in docs/', () => {
    const made = documentOf(readRecorded());
    expect(readFileSync(DOCUMENT, 'utf8'), 'run: node scripts/uapi.mjs --document').toBe(made);
    expect(made).toContain('| KVM_SET_CPUID2 | vcpu |  | `vcpu.setCpuid2()` | yes | yes | yes |');
  });

  it('names what headers have and the tables have not, through nameless structs and unions', async (context) => {
    context.skip(noHeaderTools !== undefined, noHeaderTools);
    headersWith(`
      #define KVM_CAP_OF_TOMORROW 999
      #define KVM_OF_ANOTHER_ARCHITECTURE _IOW(KVMIO, 1, struct kvm_that_is_not_here)
      #undef KVM_EXIT_HLT
      #define KVM_EXIT_HLT 6
      enum { KVM_SEV_OF_TOMORROW = 104 };
      struct kvm_of_tomorrow { __u32 a; union { __u64 b; struct { __u8 c[3][2]; }; }; struct kvm_regs d; __u8 e[]; };
    `);
    const { status, out, err } = await run(folder);
    expect([status, err]).toEqual([1, '']);
    for (const name of ['KVM_CAP_OF_TOMORROW', 'KVM_OF_ANOTHER_ARCHITECTURE', 'KVM_SEV_OF_TOMORROW'])
      expect(out).toContain(`${name} is in no table\n`);
    const fields = out.split('\n').filter((line) => line.startsWith('kvm_of_tomorrow'));
    expect(fields).toEqual(
      ['', '.a', '.b', '.c', '.d'].map((field) => `kvm_of_tomorrow${field} is in no table`),
    );
    expect(out).toContain('KVM_EXIT_HLT is 5 in Exit.HLT and 6 in the headers\n');
  });

  it('says what is wrong with a call, or with a folder, and ends with 2', async () => {
    expect(await run()).toMatchObject({ status: 2, err: expect.stringContaining('--help says more') });
    expect(await run('--recorded', folder)).toMatchObject({ status: 2 });
    expect(await run('--bogus')).toMatchObject({ status: 2, err: expect.stringContaining('--bogus') });
    expect(await run(folder)).toEqual({
      status: 2,
      out: '',
      err: `uapi: there is no linux/kvm.h in ${folder}\n`,
    });
    mkdirSync(join(folder, 'linux'));
    writeFileSync(join(folder, 'linux/kvm.h'), '');
    expect(await run(folder)).toMatchObject({ status: 2, err: `uapi: there is no asm/kvm.h in ${folder}\n` });
  });
});
