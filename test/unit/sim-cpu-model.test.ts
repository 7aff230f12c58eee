/** What `simulated: { cpu }` takes away: the processor is then one that never had it. */
import { describe, expect, it } from 'vitest';
import {
  Exit,
  flatImage,
  type Hypervisor,
  Machine,
  openHypervisor,
  type SimulatedHost,
} from '../../src/index.ts';
import { CLAIMS } from '../../src/sim/cpu/system/claims.ts';
import { type Guest, guest } from '../../src/vmm/guest.ts';
import { DEADLINE_MS } from '../support/limits.ts';
import { errnoOf } from '../support/run.ts';

const open = (simulated: SimulatedHost) => openHypervisor({ backend: 'sim', simulated });
const all = Object.values(CLAIMS).flatMap((features) => Object.keys(features));

/** Where a feature's bit is, and whether a host claims it. */
function claims(hv: Hypervisor, feature: string): boolean {
  const entries = hv.getSupportedCpuid();
  return Object.entries(CLAIMS).some(([where, features]) => {
    const bit = (features as { readonly [name: string]: number })[feature];
    if (bit === undefined) return false;
    const [leaf, ...rest] = where.split('.');
    const [register, index] = [rest.at(-1) as 'eax' | 'ebx' | 'ecx' | 'edx', Number(rest.at(-2) ?? 0)];
    const found = entries.find(
      (entry) => entry.function === Number.parseInt(leaf!, 16) && entry.index === index,
    );
    return ((found?.[register] ?? 0) & (1 << bit)) !== 0;
  });
}
const claimed = (cpu: string, vendor: 'intel' | 'amd' = 'amd') => {
  using hv = open({ cpu, vendor });
  return all.filter((feature) => claims(hv, feature));
};
/** What all claim less of what one claims. */
const without = (cpu: string, vendor?: 'intel' | 'amd') => {
  const left = new Set(claimed(cpu, vendor));
  return claimed('max', vendor).filter((feature) => !left.has(feature));
};

/** CR4.OSFXSR and OSXMMEXCPT, OSXSAVE, FSGSBASE. */
const CR4 = { SSE: 0x600n, OSXSAVE: 0x4_0000n, FSGSBASE: 0x1_0000n } as const;
const DATA = 0x8000;

interface How {
  /** The guest is given the CPUID of another host. */
  readonly cpuid?: ReturnType<Hypervisor['getSupportedCpuid']>;
  readonly rcx?: number;
}
/** The vector of the first exception that code raises at privilege 0, with all enabled that there is; and RAX. */
function outcome(simulated: SimulatedHost, { code }: Guest, { cpuid, rcx = 0 }: How = {}) {
  using hv = open(simulated);
  using machine = new Machine(hv, { memory: 1 << 20 });
  machine.load(flatImage(code, 'long', 'code', { at: 0x1000 }));
  const { vcpu } = machine;
  if (cpuid !== undefined) vcpu.setCpuid2(cpuid);
  const { cr4 } = vcpu.getSregs();
  const [xsave, fsgsbase] = [claims(hv, 'xsave'), claims(hv, 'fsgsbase')];
  vcpu.changeSregs({
    cr4: cr4 | CR4.SSE | (xsave ? CR4.OSXSAVE : 0n) | (fsgsbase ? CR4.FSGSBASE : 0n),
  });
  if (xsave) vcpu.setXcrs({ nrXcrs: 1, xcrs: [{ xcr: 0, value: claims(hv, 'avx') ? 7n : 3n }] });
  vcpu.setRegs({ ...vcpu.getRegs(), rdi: DATA, rcx, rdx: 3n, rax: 0n });
  let vector: number | undefined;
  vcpu.observe({
    exception(raised) {
      vector ??= raised;
    },
  });
  const exit = vcpu.run(DEADLINE_MS);
  expect(exit).toBe(vector === undefined ? Exit.HLT : Exit.SHUTDOWN);
  return { vector, rax: vcpu.getRegs().rax };
}
const UD = 6;
const GP = 13;

/** One instruction of each feature. */
const INSTRUCTIONS: { readonly [feature: string]: Guest } = {
  sse4a: guest(
    64,
    `
 f2 0f 78 c1 03 05 | insertq xmm0, xmm1, 3, 5
 f4                | hlt
`,
  ),
  rdpru: guest(
    64,
    `
 0f 01 fd | rdpru
 f4       | hlt
`,
  ),
  sse3: guest(
    64,
    `
 f2 0f d0 c1 | addsubps xmm0, xmm1
 f4          | hlt
`,
  ),
  ssse3: guest(
    64,
    `
 66 0f 38 00 c1 | pshufb xmm0, xmm1
 f4             | hlt
`,
  ),
  sse4_1: guest(
    64,
    `
 66 0f 38 40 c1 | pmulld xmm0, xmm1
 f4             | hlt
`,
  ),
  sse4_2: guest(
    64,
    `
 66 0f 38 37 c1 | pcmpgtq xmm0, xmm1
 f4             | hlt
`,
  ),
  popcnt: guest(
    64,
    `
 f3 48 0f b8 c1 | popcnt rax, rcx
 f4             | hlt
`,
  ),
  cx16: guest(
    64,
    `
 48 0f c7 4c 24 f0 | cmpxchg16b [rsp - 16]
 f4                | hlt
`,
  ),
  lahf: guest(
    64,
    `
 9f | lahf
 f4 | hlt
`,
  ),
  movbe: guest(
    64,
    `
 48 0f 38 f1 44 24 f8 | movbe [rsp - 8], rax
 f4                   | hlt
`,
  ),
  bmi1: guest(
    64,
    `
 c4 e2 f0 f2 c2 | andn rax, rcx, rdx
 f4             | hlt
`,
  ),
  bmi2: guest(
    64,
    `
 c4 e2 e8 f5 c1 | bzhi rax, rcx, rdx
 f4             | hlt
`,
  ),
  xsave: guest(
    64,
    `
 0f 01 d0 | xgetbv
 f4       | hlt
`,
  ),
  xsaveopt: guest(
    64,
    `
 0f ae 37 | xsaveopt [rdi]
 f4       | hlt
`,
  ),
  xsavec: guest(
    64,
    `
 0f c7 27 | xsavec [rdi]
 f4       | hlt
`,
  ),
  avx: guest(
    64,
    `
 c5 f8 58 c1 | vaddps xmm0, xmm0, xmm1
 f4          | hlt
`,
  ),
  avx2: guest(
    64,
    `
 c5 fd fe c1 | vpaddd ymm0, ymm0, ymm1
 f4          | hlt
`,
  ),
  fma: guest(
    64,
    `
 c4 e2 f1 98 c2 | vfmadd132pd xmm0, xmm1, xmm2
 f4             | hlt
`,
  ),
  f16c: guest(
    64,
    `
 c4 e2 79 13 c1 | vcvtph2ps xmm0, xmm1
 f4             | hlt
`,
  ),
  aes: guest(
    64,
    `
 66 0f 38 dc c1 | aesenc xmm0, xmm1
 f4             | hlt
`,
  ),
  pclmulqdq: guest(
    64,
    `
 66 0f 3a 44 c1 00 | pclmulqdq xmm0, xmm1, 0
 f4                | hlt
`,
  ),
  sha: guest(
    64,
    `
 0f 38 cc c1 | sha256msg1 xmm0, xmm1
 f4          | hlt
`,
  ),
  rdrand: guest(
    64,
    `
 48 0f c7 f0 | rdrand rax
 f4          | hlt
`,
  ),
  rdseed: guest(
    64,
    `
 48 0f c7 f8 | rdseed rax
 f4          | hlt
`,
  ),
  adx: guest(
    64,
    `
 66 48 0f 38 f6 c1 | adcx rax, rcx
 f4                | hlt
`,
  ),
  rdtscp: guest(
    64,
    `
 0f 01 f9 | rdtscp
 f4       | hlt
`,
  ),
  rdpid: guest(
    64,
    `
 f3 0f c7 f8 | rdpid rax
 f4          | hlt
`,
  ),
  clflushopt: guest(
    64,
    `
 66 0f ae 3f | clflushopt [rdi]
 f4          | hlt
`,
  ),
  clwb: guest(
    64,
    `
 66 0f ae 37 | clwb [rdi]
 f4          | hlt
`,
  ),
  smap: guest(
    64,
    `
 0f 01 ca | clac
 f4       | hlt
`,
  ),
  fsgsbase: guest(
    64,
    `
 f3 48 0f ae c0 | rdfsbase rax
 f4             | hlt
`,
  ),
  invpcid: guest(
    64,
    `
 66 0f 38 82 07 | invpcid rax, [rdi]
 f4             | hlt
`,
  ),
};

describe('a level', () => {
  const v2 = ['cx16', 'lahf', 'popcnt', 'sse3', 'sse4_1', 'sse4_2', 'ssse3'];
  const v3 = ['abm', 'avx', 'avx2', 'bmi1', 'bmi2', 'f16c', 'fma', 'movbe', 'xsave'];

  it.each(['amd', 'intel'] as const)('has what the psABI says, and not what is above it (%s)', (vendor) => {
    const lacks = (cpu: string) => without(cpu, vendor).toSorted();
    const lost = (cpu: string) => [...v2, ...v3].filter((feature) => lacks(cpu).includes(feature)).toSorted();
    expect(lost('x86-64-v1')).toEqual([...v2, ...v3].toSorted());
    expect(lost('x86-64-v2')).toEqual(v3);
    expect(lost('x86-64-v3')).toEqual([]);
    for (const feature of ['aes', 'sha', 'rdrand', 'adx', 'xsavec'])
      expect(lacks('x86-64-v3')).toContain(feature);
  });

  it('has what only the system sees', () => {
    for (const feature of ['sse2', 'nx', 'pcid', 'smep', 'smap', 'umip', 'invpcid', 'syscall'])
      expect(claimed('x86-64-v1')).toContain(feature);
  });

  it('is all that there is unless it is said', () => {
    using hv = open({});
    using named = open({ cpu: 'max' });
    expect(hv.getSupportedCpuid()).toEqual(named.getSupportedCpuid());
  });
});

describe('single features', () => {
  it('are added and taken away behind a level', () => {
    const features = claimed('x86-64-v2,+aes,-popcnt');
    expect(features).toContain('aes');
    expect(features).not.toContain('popcnt');
    expect(features).not.toContain('avx');
  });
  it('are taken away of all that there is', () => {
    expect(without('-rdrand,-rdseed').toSorted()).toEqual(['rdrand', 'rdseed']);
  });
  it('take along what is nothing without them, and bring what they need', () => {
    expect(without('-avx').toSorted()).toEqual(['avx', 'avx2', 'f16c', 'fma']);
    const features = claimed('x86-64-v2,+avx2');
    for (const feature of ['avx2', 'avx', 'xsave']) expect(features).toContain(feature);
    expect(features).not.toContain('fma');
  });
});

describe('XSAVE', () => {
  const leaf = (hv: Hypervisor, index: number) =>
    hv.getSupportedCpuid().find((entry) => entry.function === 0xd && entry.index === index);

  it('has no place for what was taken away', () => {
    using hv = open({ cpu: '-avx' });
    expect(leaf(hv, 0)).toMatchObject({ eax: 0x203, ebx: 840, ecx: 840 });
    expect(leaf(hv, 2)).toBeUndefined();
    using vm = hv.createVm();
    using vcpu = vm.createVcpu();
    vcpu.setCpuid2(hv.getSupportedCpuid());
    const xcr0 = (value: bigint) => vcpu.setXcrs({ nrXcrs: 1, xcrs: [{ xcr: 0, value }] });
    xcr0(3n);
    expect(errnoOf(() => xcr0(7n))).toBe('EINVAL');
  });
  it('is not there at all where it was taken away itself', () => {
    using hv = open({ cpu: 'x86-64-v2' });
    expect(leaf(hv, 0)).toBeUndefined();
    using vm = hv.createVm();
    using vcpu = vm.createVcpu();
    expect(vcpu.getXcrs().nrXcrs).toBe(0);
  });
});

describe.each(['closures', 'templates', 'wasm'] as const)('an instruction (%s)', (tier) => {
  it.each(Object.keys(INSTRUCTIONS))('of %s raises #UD without it, and only then', (feature) => {
    const code = INSTRUCTIONS[feature]!;
    expect(outcome({ tier, cpu: 'max' }, code).vector).toBeUndefined();
    expect(outcome({ tier, cpu: `-${feature}` }, code).vector).toBe(UD);
  });

  it('is not there for a guest that was told that it is', () => {
    using hv = open({});
    const cpuid = hv.getSupportedCpuid();
    for (const feature of ['aes', 'rdtscp', 'invpcid', 'smap'])
      expect(outcome({ tier, cpu: `-${feature}` }, INSTRUCTIONS[feature]!, { cpuid }).vector).toBe(UD);
  });

  it('that begins as another with a prefix is that one: BSR, BSF and NOP', () => {
    const lzcnt = guest(
      64,
      `
 f3 0f bd c1 | lzcnt eax, ecx
 f4          | hlt
`,
    );
    const tzcnt = guest(
      64,
      `
 f3 0f bc c2 | tzcnt eax, edx
 0f bc ca    | bsf ecx, edx
 f4          | hlt
`,
    );
    const prefetch = guest(
      64,
      `
 0f 0d 0f | prefetchw [rdi]
 f4       | hlt
`,
    );
    expect(outcome({ tier }, lzcnt, { rcx: 8 }).rax).toBe(28n);
    expect(outcome({ tier, cpu: '-abm' }, lzcnt, { rcx: 8 }).rax).toBe(3n);
    expect(outcome({ tier, cpu: '-bmi1' }, tzcnt).rax).toBe(0n);
    expect(outcome({ tier, cpu: '-prefetchw' }, prefetch).vector).toBeUndefined();
  });
});

describe('a register', () => {
  const cr4 = guest(
    64,
    `
 0f 20 e0 | mov rax, cr4
 48 09 c8 | or rax, rcx
 0f 22 e0 | mov cr4, rax
 f4       | hlt
`,
  );
  it.each([
    ['umip', 0x800],
    ['fsgsbase', 0x1_0000],
    ['pcid', 0x2_0000],
    ['xsave', 0x4_0000],
    ['smep', 0x10_0000],
    ['smap', 0x20_0000],
    ['pku', 0x40_0000],
  ])('has no bit for %s without it: #GP', (feature, bit) => {
    using hv = open({});
    const cpuid = hv.getSupportedCpuid();
    expect(outcome({}, cr4, { rcx: bit }).vector).not.toBe(GP); // SMEP refuses the user's page that it runs on
    expect(outcome({ cpu: `-${feature}` }, cr4, { rcx: bit }).vector).toBe(GP);
    expect(outcome({ cpu: `-${feature}` }, cr4, { rcx: bit, cpuid }).vector).toBe(GP);
  });

  const rdmsr = guest(
    64,
    `
 0f 32 | rdmsr
 f4    | hlt
`,
  );
  it('is not there without its feature: TSC_AUX is for RDTSCP and RDPID', () => {
    const how = { rcx: 0xc000_0103 };
    expect(outcome({ cpu: '-rdtscp' }, rdmsr, how).vector).toBeUndefined();
    expect(outcome({ cpu: '-rdtscp,-rdpid' }, rdmsr, how).vector).toBe(GP);
  });

  const xgetbv = guest(
    64,
    `
 0f 01 d0 | xgetbv
 f4       | hlt
`,
  );
  it('is not there without its feature: XGETBV knows no XINUSE without xgetbv1', () => {
    expect(outcome({}, xgetbv, { rcx: 1 }).vector).toBeUndefined();
    expect(outcome({ cpu: '-xgetbv1' }, xgetbv, { rcx: 1 }).vector).toBe(GP);
  });
});

describe('what no processor can be', () => {
  const refusal = (simulated: object): string => {
    try {
      openHypervisor({ backend: 'sim', simulated });
    } catch (error) {
      expect(error).toMatchObject({ name: 'RangeError', code: 'ERR_KVM_INVALID_ARG' });
      return (error as Error).message;
    }
    throw new Error('it was taken');
  };
  it.each([
    ['x86-64-v4', "no level 'x86-64-v4'"],
    ['', "no level ''"],
    ['max,avx', "'avx' has neither"],
    ['-avx512f', "'avx512f' is none"],
    ['+constructor', "'constructor' is none"],
    ['x86-64-v3,-sse2', "'sse2' is a part of"],
    ['+avx,-xsave', "'+avx' needs what is taken away"],
    ['-xsave,+avx', "'-xsave' is needed by what is added"],
    [7, 'a string'],
    [null, 'a string'],
  ])('is refused, with the value and a remedy: %o', (cpu, why) => {
    const message = refusal({ cpu });
    expect(message).toContain(why);
    expect(message).toMatch(/cpu/);
  });
});
