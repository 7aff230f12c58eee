import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { beforeAll, describe, expect, it } from 'vitest';
import { kernelHeaders } from '../../src/lab/index.ts';
import { type Constant, constants, members, structs } from './abi/names.ts';

// What src/uapi claims of the kernel's ABI, held against what g++ makes of the kernel's headers.

const compiler = spawnSync('g++', ['--version']).status === 0;
const labHeaders = process.env.VMEXIT_KERNEL_HEADERS ?? kernelHeaders();

/** Merged after 6.12, so in no header of the lab's kernel. */
const NEWER_THAN_6_12 = [
  'Cap.ARM_WRITABLE_IMP_ID_REGS',
  'Cap.ARM_EL2',
  'Cap.ARM_EL2_E2H0',
  'Cap.RISCV_MP_STATE_RESET',
  'Cap.ARM_CACHEABLE_PFNMAP_SUPPORTED',
  'Cap.GUEST_MEMFD_FLAGS',
  'Cap.ARM_SEA_TO_USER',
  'Cap.S390_USER_OPEREXEC',
  'Cap.S390_KEYOP',
  'Cap.S390_VSIE_ESAMODE',
  'Exit.TDX',
  'Exit.ARM_SEA',
  'Exit.SNP_REQ_CERTS',
  'GuestMemfdFlag.MMAP',
  'GuestMemfdFlag.INIT_SHARED',
  'SystemEvent.TDX_FATAL',
  'Vector.CP',
  'Vector.HV',
  'Vector.VC',
  'Vector.SX',
  'VmType.TDX',
];

/** The arms of kvm_run for these exits, and what is in them. */
const isNewerField = (name: string) => /^(kvm_exit_snp_req_certs|kvm_run\.(tdx|snp_req_certs))\b/.test(name);

/** In no released kernel. */
const PROPOSALS = [
  'MemFlag.USERFAULT',
  'MemoryFaultFlag.USERFAULT',
  'kvm_userspace_memory_region2.userfault_bitmap',
];

/** By name: a constant's value, a struct's size, a field's offset and size. */
type Answers = Map<string, readonly number[]>;

/** What src/uapi says, in the same form. */
const claims: Answers = new Map();
for (const type of structs()) {
  claims.set(type.name, [type.size]);
  for (const { path, offset, size } of members(type)) {
    claims.set(`${type.name}.${path}`, [offset, size]);
  }
}
const typeNames = new Set(structs().map((type) => type.name));
for (const { label, value } of constants()) claims.set(label, [value]);

function rows(): string {
  const constantRow = ({ label, macro, expression }: Constant) =>
    `#ifdef ${macro}\nCONSTANT("${label}", ${expression})\n#endif`;
  const types = structs().flatMap((type) => [
    `TYPE(${type.name})`,
    ...members(type).map(({ path }) => `FIELD(${type.name}, ${path})`),
  ]);
  return [...types, ...constants().map(constantRow)].join('\n');
}

function run(command: string, args: string[]): string {
  const { status, stdout, stderr, error } = spawnSync(command, args, { encoding: 'utf8' });
  if (error) throw error;
  if (status !== 0) throw new Error(`${command} exited with ${status}:\n${stderr}`);
  return stdout;
}

/** Compiles and runs the probe against the system's headers, or those in a folder. */
function ask(headers?: string): Answers {
  const folder = mkdtempSync(join(tmpdir(), 'vmexit-abi-'));
  try {
    writeFileSync(join(folder, 'rows.inc'), rows());
    const probe = join(folder, 'probe');
    const source = fileURLToPath(new URL('./abi/probe.cc', import.meta.url));
    run('g++', ['-std=c++20', ...(headers ? ['-isystem', headers] : []), `-I${folder}`, source, '-o', probe]);
    const lines = run(probe, []).trim().split('\n');
    return new Map(
      lines.map((line) => {
        const [name, ...values] = line.split(' ');
        return [name!, values.map(Number)];
      }),
    );
  } finally {
    rmSync(folder, { recursive: true });
  }
}

/** The macros that a header defines, by what the preprocessor says. */
const macros = (headers?: string): string[] =>
  run('g++', [
    '-xc++',
    '-dM',
    '-E',
    ...(headers ? ['-isystem', headers] : []),
    '-include',
    'linux/kvm.h',
    '/dev/null',
  ])
    .split('\n')
    .map((line) => line.split(' ')[1] ?? '');

function agrees(answers: Answers, wanted: (name: string) => boolean) {
  const names = [...claims.keys()].filter((name) => wanted(name) && answers.has(name));
  expect(names.length).toBeGreaterThan(0);
  const pick = (values: (name: string) => readonly number[]) =>
    Object.fromEntries(names.map((name) => [name, values(name)]));
  expect(pick((name) => claims.get(name)!)).toEqual(pick((name) => answers.get(name)!));
}

const isField = (name: string) => typeNames.has(name.split('.')[0]!);

function suite(headers: string | undefined, missingAllowed: readonly string[] | 'any') {
  let answers: Answers;
  let missing: string[];
  beforeAll(() => {
    answers = ask(headers);
    missing = [...claims.keys()].filter((name) => !answers.has(name));
  });

  it('gives every struct the size and every field the offset and size that the compiler gives it', () => {
    agrees(answers, isField);
  });

  it('gives every constant the value that the header gives it', () => {
    agrees(answers, (name) => !isField(name) && !name.startsWith('KVM_'));
  });

  it('gives every ioctl the request number that the header gives it', () => {
    agrees(answers, (name) => name.startsWith('KVM_'));
  });

  it('has every capability and every exit reason that the header defines', () => {
    const known = new Set(constants().map(({ macro }) => macro));
    const defined = macros(headers).filter((name) => /^KVM_(CAP|EXIT)_/.test(name));
    expect(defined.length).toBeGreaterThan(200);
    expect(defined.filter((name) => !known.has(name))).toEqual([]);
  });

  if (missingAllowed === 'any') {
    it('checks also what is newer than the header', (context) => {
      if (missing.length > 0) context.skip(`${missing.length} names are not in it: ${missing.join(' ')}`);
    });
  } else {
    it('finds every name in the header but those that are listed as newer', () => {
      expect(missing.filter((name) => !isNewerField(name)).sort()).toEqual([...missingAllowed].sort());
    });
  }
}

describe.skipIf(!compiler)("the ABI tables against the system's <linux/kvm.h> (needs g++)", () => {
  suite(undefined, 'any');
});

const lab = compiler && labHeaders !== undefined && existsSync(join(labHeaders, 'linux/kvm.h'));
describe.skipIf(!lab)(
  "the ABI tables against the lab kernel's headers (needs g++ and a built lab kernel)",
  () => {
    suite(labHeaders, [...NEWER_THAN_6_12, ...PROPOSALS]);
  },
);

const proposed = compiler ? kernelHeaders('userfault') : undefined;
describe.skipIf(!proposed)(
  "the proposals in the ABI tables against the lab's kernel that has them (needs both)",
  () => {
    it('have the values, offsets and sizes of its header', () => {
      const answers = ask(proposed);
      const values = (of: Answers) => PROPOSALS.map((name) => [name, of.get(name)]);
      expect(values(claims)).toEqual(values(answers));
    });
  },
);
