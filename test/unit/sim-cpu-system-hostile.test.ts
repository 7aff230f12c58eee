import { describe, expect, it } from 'vitest';
import { instructions } from '../../src/sim/cpu/instructions.ts';
import { IoStop } from '../../src/sim/cpu/processor/io.ts';
import { CR0, CR4, EFER, Unmodelled } from '../../src/sim/cpu/processor/mode.ts';
import { CLAIMS } from '../../src/sim/cpu/system/claims.ts';
import { deliver, tripleFault } from '../../src/sim/cpu/system/events.ts';
import { At, Gdt, gate, Machine, MEMORY } from './sim-cpu-system.ts';

/** xorshift32: the same numbers every time. */
function random(seed: number): (below: number) => number {
  let state = seed;
  return (below) => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) % below;
  };
}

/** With register operands, or a memory operand at [rax] where the last byte is 00. */
const INSTRUCTIONS = [
  '0f 22 c0',
  '0f 22 d8',
  '0f 22 e0',

  '0f 23 f8',
  '0f 23 f0',
  '0f 21 f8',
  '0f 01 f0',
  '0f 06',
  '8e d0',
  '8e d8',
  '8e e0',
  '8e e8',
  '0f 00 d0',
  '0f 00 d8',
  '0f 00 e0',
  '0f 00 e8',
  '0f 02 c1',
  '0f 03 c1',
  '0f 01 10',
  '0f 01 18',
  '0f 01 00',
  '0f 01 08',
  'ff 28',
  'ff 18',
  'cb',
  'ca 10 00',
  'cf',
  'cd 80',
  'cc',
  'f1',
  '0f 05',
  '0f 07',
  '0f 34',
  '0f 35',
  '0f 30',
  '0f 32',
  '0f 31',
  '0f 33',
  '9c',
  '9d',
  'fa',
  'fb',
  '0f b2 20',
  '0f b4 08',
  '0f a1',
  '0f a9',
  '0f a0',
  '0f 01 38',
  '0f ae 38',
  '66 0f 38 82 08',
  '0f a2',
  'f4',
  '66 cf',
  '66 cb',
  '66 9d',
];
const LONG_ONLY = [
  '44 0f 22 c0',
  '48 cf',
  '48 cb',
  '48 ff 28',
  '48 ff 18',
  '48 0f 07',
  '48 0f 35',
  '0f 01 f8',
  'f3 48 0f ae d0',
];

/** Those that there are; no machine begins with VM. */
const FLAGS = 0x3f_7fd5;
const VM = 0x2_0000;

/** A machine whose tables, registers and stacks are noise, though often near to what would work. */
function noise(seed: number): { m: Machine; pick: (below: number) => number } {
  const pick = random(seed * 2_654_435_761 + 1);
  const m = new Machine({ vendor: pick(2) === 0 ? 'intel' : 'amd' });
  const mode = pick(5);
  if (mode === 0) m.real().tables();
  else if (mode === 1) m.protected(pick(2) === 0 ? 0 : 3);
  else m.long(pick(2) === 0 ? 0 : 3, mode === 2);
  // Handlers for most, so that a machine lives for more than one fault.
  const long = (m.cpu.efer & EFER.LMA) !== 0;
  for (let vector = 0; vector < 32; vector++) {
    if (long) m.set64(At.idt + 16 * vector, gate(Gdt.CODE64, At.code, 0x8e));
    else m.set64(At.idt + 8 * vector, gate(Gdt.CODE0, At.code, 0x8e));
  }
  const somewhere = [At.gdt, At.ldt, At.idt, At.tss, At.data, At.stack - 64, At.pml4, At.pdpt, At.pd];
  for (let i = pick(40); i > 0; i--) {
    const at = somewhere[pick(somewhere.length)]! + pick(64) * 8;
    const kind = pick(5);
    // A task gate, bytes, a selector, a descriptor with random rights, or an address.
    if (kind === 4) m.set64(at, 0xe5n << 40n);
    else if (kind === 0) for (let byte = 0; byte < 8; byte++) m.arena.views.u8[m.ram + at + byte] = pick(256);
    else if (kind === 1) m.set64(at, BigInt(pick(0xc0)));
    else if (kind === 2) m.set64(at, (BigInt(pick(256)) << 40n) | (BigInt(pick(16)) << 52n) | 0xffffn);
    else m.set64(at, BigInt(pick(0x4000)) << 12n);
  }
  const values = [
    0n,
    3n,
    8n,
    0x10n,
    0x33n,
    0x60n,
    BigInt(At.data),
    BigInt(At.stack),
    BigInt(MEMORY),
    BigInt(MEMORY) + 64n,
    1n << 47n,
    ~0n,
    0xffff_fff0n,
  ];
  for (let i = 0; i < 16; i++) m.setGpr(i, values[pick(values.length)]! + BigInt(pick(3)));
  if (pick(4) !== 0) m.rsp = At.stack - 64;
  m.setGpr(1, pick(2) === 0 ? 0xc000_0080 + pick(6) : pick(0x200));
  const { cpu } = m;
  cpu.state.flags = (pick(0x40_0000) & FLAGS & ~VM) | 2;
  if (pick(3) === 0) cpu.gdtr = { base: BigInt(At.gdt), limit: pick(0x100) };
  if (pick(4) === 0) cpu.idtr = { base: BigInt(pick(0x8000)), limit: pick(0x1000) };
  if (pick(4) === 0) cpu.tr = { ...cpu.tr, limit: pick(0x80), type: pick(16) };
  if (pick(4) === 0)
    cpu.ldtr = { ...cpu.ldtr, selector: 8, base: BigInt(At.ldt), limit: 0xff, unusable: 0, present: 1 };
  cpu.changed();
  return { m, pick };
}

const MACHINES = 2000;
const STEPS = 20;

type End = 'done' | 'fault' | 'triple' | 'unmodelled' | 'mmio';

/** What an instruction may not change when it faults. */
const state = ({ cpu, rsp }: Machine) => ({
  rip: cpu.state.rip,
  rsp,
  cs: cpu.segments[1],
  ss: cpu.segments[2],
  cr0: cpu.cr0,
  efer: cpu.efer,
});

/** Executes one instruction and delivers its fault; gives how that ended. */
function step(m: Machine, bytes: string, name: string): End {
  const { cpu } = m;
  const before = state(m);
  try {
    const fault = m.execute(bytes);
    if (fault !== undefined) {
      expect(state(m), name).toEqual(before);
      deliver(cpu, { kind: 'exception', ...fault });
    }
    return fault === undefined ? 'done' : 'fault';
  } catch (thrown) {
    if (thrown === tripleFault) return 'triple';
    if (thrown instanceof Unmodelled) return 'unmodelled';
    if (thrown instanceof IoStop) return 'mmio';
    throw thrown;
  }
}

describe('whatever a guest puts into its tables and registers', () => {
  it('system instructions end in the guest, in a triple fault, in I/O, or in what is not modelled', () => {
    const ends = { done: 0, fault: 0, triple: 0, unmodelled: 0, mmio: 0 };
    for (let seed = 1; seed <= MACHINES; seed++) {
      const { m, pick } = noise(seed);
      const { cpu } = m;
      for (let i = 0, end: End = 'done'; i < STEPS && (end === 'done' || end === 'fault'); i++) {
        const list = cpu.mode.bits === 64 && pick(3) === 0 ? LONG_ONLY : INSTRUCTIONS;
        const bytes = list[pick(list.length)]!;
        const name = `machine ${seed}, instruction ${i}: ${bytes}`;
        end = step(m, bytes, name);
        ends[end]++;
        // What no sequence of instructions may reach.
        const active = (cpu.cr0 & CR0.PG) !== 0 && (cpu.efer & EFER.LME) !== 0;
        expect((cpu.cr0 & (CR0.PG | CR0.PE)) >>> 0, name).not.toBe(CR0.PG);
        expect((cpu.efer & EFER.LMA) !== 0, name).toBe(active);
        if (active) expect(cpu.cr4 & CR4.PAE, name).not.toBe(0);
        expect(cpu.state.flags & ~FLAGS, name).toBe(2);
        const virtual = (cpu.state.flags & VM) !== 0;
        expect(virtual && active, name).toBe(false);
        expect(cpu.user, name).toBe((cpu.cr0 & CR0.PE) !== 0 && (virtual || cpu.segments[2]!.dpl === 3));
      }
    }
    // Each of them is well represented, or this would say little.
    for (const [end, count] of Object.entries(ends)) expect(count, end).toBeGreaterThan(10);
  });
});

/** What must be implemented for a feature to be claimed; those that no instruction stands for have none. */
const STANDS_FOR: { readonly [feature: string]: readonly string[] } = {
  pclmulqdq: ['pclmulqdq', 'vpclmulqdq'],
  aes: ['aesenc', 'aesenclast', 'aesdec', 'aesdeclast', 'aesimc', 'aeskeygenassist', 'vaesenc', 'vaesimc'],
  sha: ['sha1rnds4', 'sha1nexte', 'sha1msg1', 'sha1msg2', 'sha256rnds2', 'sha256msg1', 'sha256msg2'],
  rdrand: ['rdrand'],
  rdseed: ['rdseed'],
  fpu: ['fld', 'fadd', 'fnstcw', 'fninit'],
  tsc: ['rdtsc'],
  msr: ['rdmsr', 'wrmsr'],
  cx8: ['cmpxchg8b'],
  sep: ['sysenter', 'sysexit', 'sysexitq'],
  cmov: ['cmove', 'cmovg', 'fcmove'],
  clfsh: ['clflush'],
  mmx: ['paddb', 'emms', 'pmaddwd'],
  fxsr: ['fxsave', 'fxrstor', 'fxsave64', 'fxrstor64'],
  sse: ['addps', 'movaps', 'ldmxcsr', 'stmxcsr', 'shufps', 'maskmovq', 'sfence'],
  sse2: ['addpd', 'movdqa', 'cvtsd2si', 'pshufd', 'movnti', 'lfence', 'mfence', 'maskmovdqu'],
  sse3: ['addsubps', 'haddpd', 'movddup', 'lddqu', 'fisttp'],
  ssse3: ['pshufb', 'palignr', 'phaddw', 'pmulhrsw'],
  cx16: ['cmpxchg16b'],
  pcid: ['mov cr'],
  sse4_1: ['pmulld', 'ptest', 'roundsd', 'pblendvb', 'dpps', 'mpsadbw', 'pinsrq', 'insertps'],
  sse4_2: ['crc32', 'pcmpestri', 'pcmpistrm', 'pcmpgtq'],
  movbe: ['movbe'],
  popcnt: ['popcnt'],
  xsave: ['xsave', 'xsave64', 'xrstor', 'xrstor64', 'xgetbv', 'xsetbv'],
  xsaveopt: ['xsaveopt', 'xsaveopt64'],
  xsavec: ['xsavec', 'xsavec64'],
  xgetbv1: ['xgetbv'],
  avx: [
    'vaddps',
    'vmovaps',
    'vbroadcastss',
    'vperm2f128',
    'vmaskmovps',
    'vzeroupper',
    'vpaddd',
    'vpcmpistri',
  ],
  avx2: ['vpermq', 'vpgatherdd', 'vpsllvd', 'vpbroadcastb', 'vpmaskmovq', 'vinserti128', 'vpblendd'],
  fma: ['vfmadd132pd', 'vfnmsub231ss', 'vfmaddsub213ps', 'vfmsubadd231pd'],
  f16c: ['vcvtph2ps', 'vcvtps2ph'],
  fsgsbase: ['rdfsbase', 'rdgsbase', 'wrfsbase', 'wrgsbase'],
  bmi1: ['andn', 'bextr', 'blsi', 'blsmsk', 'blsr', 'tzcnt'],
  bmi2: ['bzhi', 'mulx', 'pdep', 'pext', 'rorx', 'sarx', 'shlx', 'shrx'],
  erms: ['movsb', 'stosb'],
  invpcid: ['invpcid'],
  adx: ['adcx', 'adox'],
  smap: ['clac', 'stac'],
  clflushopt: ['clflushopt'],
  clwb: ['clwb'],
  rdpid: ['rdpid'],
  lahf: ['lahf', 'sahf'],
  abm: ['lzcnt'],
  sse4a: ['extrq', 'insertq', 'movntss', 'movntsd'],
  rdpru: ['rdpru'],
  pku: ['rdpkru', 'wrpkru'],
  prefetchw: ['prefetchw'],
  syscall: ['syscall', 'sysret', 'sysretq'],
  rdtscp: ['rdtscp'],
  lm: ['swapgs', 'iretq', 'cdqe'],
};
/** Of memory, events and registers, which other tests show. */
const WITHOUT = [
  'de',
  'pse',
  'pae',
  'apic',
  'mtrr',
  'pge',
  'pat',
  'pse36',
  'hypervisor',
  'tsc_adjust',
  'smep',
  'umip',
  'nx',
  'pdpe1gb',
  'xsaveerptr',
];

describe('what CPUID claims', () => {
  it('is implemented', () => {
    const names = new Set(instructions.names());
    const claimed = Object.values(CLAIMS).flatMap((leaf) => Object.keys(leaf));
    for (const feature of claimed) {
      const missing = STANDS_FOR[feature]?.filter((name) => !names.has(name));
      expect(missing ?? (WITHOUT.includes(feature) ? [] : ['nothing stands for it']), feature).toEqual([]);
    }
    expect(claimed.toSorted()).toEqual([...Object.keys(STANDS_FOR), ...WITHOUT].toSorted());
  });

  it('leaves out what is not implemented', () => {
    const names = new Set(instructions.names());
    for (const absent of ['xsaves', 'vpternlogd', 'monitorx', 'tpause']) {
      expect(names.has(absent), absent).toBe(false);
    }
  });
});
