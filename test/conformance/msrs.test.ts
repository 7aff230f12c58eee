/**
 * All model-specific registers of the ranges that Intel, AMD and KVM number: what a guest may read, and what of five values
 * it may write (arch/x86/kvm/x86.c, kvm_get_msr_common and kvm_set_msr_common; svm/svm.c; Linux 6.12).
 */
import { expect } from 'vitest';
import { Cap, Exit, type Hypervisor, placeIdt, type Vm } from '../../src/index.ts';
import { type Input, Vector, viewOf } from '../../src/uapi/index.ts';
import { guest } from '../../src/vmm/guest.ts';
import { Selector } from '../../src/vmm/modes.ts';
import { Agent, Layout } from '../support/agent.ts';
import { runTo } from '../support/run.ts';
import { conformance } from '../support/suite.ts';

const IDT = Layout.free;
const HANDLER = Layout.free + 0x1000;
const VALUES = Layout.free + 0x2000;
const RECORDS = Layout.free + 0x4000;
const RECORD = 64;

/** Of each register from ecx to ebp that answers: its number, which accesses it took, and what it read before and after. */
const sweep = guest(
  64,
  `
 45 31 c9       | next:    xor r9d, r9d
 45 31 c0       |          xor r8d, r8d              # the handler makes it 1
 0f 32          |          rdmsr
 48 c1 e2 20    |          shl rdx, 32
 48 09 d0       |          or rax, rdx
 48 89 47 08    |          mov [rdi+8], rax
 41 83 f0 01    |          xor r8d, 1
 45 09 c1       |          or r9d, r8d
 45 31 d2       |          xor r10d, r10d
 4a 8b 04 d6    | write:   mov rax, [rsi+r10*8]
 48 89 c2       |          mov rdx, rax
 48 c1 ea 20    |          shr rdx, 32
 45 31 c0       |          xor r8d, r8d
 0f 30          |          wrmsr
 45 85 c0       |          test r8d, r8d
 75 1a          |          jnz refused
 45 8d 5a 01    |          lea r11d, [r10+1]
 45 0f ab d9    |          bts r9d, r11d
 31 c0          |          xor eax, eax
 31 d2          |          xor edx, edx
 0f 32          |          rdmsr
 48 c1 e2 20    |          shl rdx, 32
 48 09 d0       |          or rax, rdx
 4a 89 44 d7 10 |          mov [rdi+r10*8+16], rax
 45 85 c9       | refused: test r9d, r9d
 74 20          |          jz none
 41 ff c2       |          inc r10d
 41 83 fa 05    |          cmp r10d, 5
 72 c3          |          jb write
 89 0f          |          mov [rdi], ecx
 44 89 4f 04    |          mov [rdi+4], r9d
 48 8b 47 08    |          mov rax, [rdi+8]          # as it was
 48 89 c2       |          mov rdx, rax
 48 c1 ea 20    |          shr rdx, 32
 0f 30          |          wrmsr
 48 83 c7 40    |          add rdi, 64
 ff c1          | none:    inc ecx
 39 e9          |          cmp ecx, ebp
 72 89          |          jb next
 f4             |          hlt
`,
);
/** Of #GP: the instruction has two bytes. */
const handler = guest(
  64,
  `
 48 83 44 24 08 02 | add qword ptr [rsp+8], 2
 41 b8 01 00 00 00 | mov r8d, 1
 48 83 c4 08       | add rsp, 8
 48 cf             | iretq
`,
);

const values = [0n, 1n, 0xdeadn, 1n << 32n, 0xffff_ffff_ffff_ffffn];

/** What a register reads at first (`-`: #GP), which values it takes, and whether it keeps them or `drops` them. */
type Row = readonly [first: number, last: number, reads: string, writes: string, then?: 'keeps' | 'drops'];

/** A control, a status, an address and one more. */
const banks = Array.from({ length: 32 }, (_, bank): Row[] => {
  const at = 0x400 + 4 * bank;
  return [
    [at, at, '0', '10001', 'keeps'],
    [at + 1, at + 1, '0', '10000', 'keeps'],
    [at + 2, at + 3, '0', '11111', 'keeps'],
  ];
}).flat();

/** All others: #GP. */
const rows: readonly Row[] = [
  [0x0, 0x1, '0', '00000'],
  [0x17, 0x17, '0', '00000'],
  [0x2a, 0x2a, '0', '00000'],
  [0x2c, 0x2c, '1000000', '00000'],
  [0x34, 0x34, '0', '00000'],
  [0x3b, 0x3b, '0', '11111', 'keeps'],
  [0x79, 0x79, '-', '11111', 'drops'],
  [0x8b, 0x8b, '1000065', '11111', 'drops'],
  [0xc1, 0xc2, '0', '11111', 'drops'],
  [0xcd, 0xcd, '3', '00000'],
  [0xce, 0xce, '80000000', '00000'],
  [0xfe, 0xfe, '508', '00000'],
  [0x11e, 0x11e, 'be702111', '11111', 'drops'],
  [0x140, 0x140, '0', '11000', 'keeps'],
  [0x179, 0x179, '20', '00000'],
  [0x17a, 0x17a, '0', '11111', 'keeps'],
  [0x186, 0x187, '0', '11111', 'drops'],
  [0x198, 0x198, '400000003e8', '00000'],
  [0x199, 0x199, '0', '00000'],
  [0x1a0, 0x1a0, '1800', '00101'],
  [0x1d9, 0x1d9, '0', '11111', 'drops'],
  [0x1db, 0x1de, '0', '00000'],
  [0x1fc, 0x1fc, '0', '11111', 'keeps'],
  ...Array.from({ length: 8 }, (_, i): Row[] => [
    [0x200 + 2 * i, 0x200 + 2 * i, '0', '11010', 'keeps'],
    [0x201 + 2 * i, 0x201 + 2 * i, '0', '10010', 'keeps'],
  ]).flat(),
  [0x250, 0x250, '0', '11010', 'keeps'],
  [0x258, 0x259, '0', '11010', 'keeps'],
  [0x268, 0x26f, '0', '11010', 'keeps'],
  [0x277, 0x277, '7040600070406', '11010', 'keeps'],
  [0x2ff, 0x2ff, '0', '11000', 'keeps'],
  ...banks,
  [0x606, 0x606, '0', '00000'],
  [0x611, 0x611, '0', '00000'],
  [0x619, 0x619, '0', '00000'],
  [0x639, 0x639, '0', '00000'],
  [0x641, 0x641, '0', '00000'],
  [0x6e0, 0x6e0, '0', '11111', 'drops'],
  [0xc000_0081, 0xc000_0084, '0', '11111', 'keeps'],
  [0xc000_0100, 0xc000_0102, '0', '11111', 'keeps'],
  [0xc000_0103, 0xc000_0103, '0', '11111'],
  [0xc001_0000, 0xc001_0007, '0', '11111', 'drops'],
  [0xc001_0010, 0xc001_0010, '0', '00000'],
  [0xc001_0015, 0xc001_0015, '0', '10000', 'keeps'],
  [0xc001_001b, 0xc001_001b, '20000000', '11111', 'drops'],
  [0xc001_001f, 0xc001_001f, '0', '11111', 'drops'],
  [0xc001_0020, 0xc001_0020, '-', '11111', 'drops'],
  [0xc001_0055, 0xc001_0055, '0', '00000'],
  [0xc001_0058, 0xc001_0058, '0', '10000', 'drops'],
  [0xc001_0112, 0xc001_0113, '0', '00000'],
  [0xc001_0114, 0xc001_0114, '0', '11000', 'keeps'],
  [0xc001_0115, 0xc001_0115, '-', '11111', 'drops'],
  [0xc001_0117, 0xc001_0117, '0', '10010', 'keeps'],
  [0xc001_1021, 0xc001_1021, '0', '00000'],
  [0xc001_1022, 0xc001_1023, '0', '11111', 'drops'],
  [0xc001_1029, 0xc001_1029, '0', '10000', 'keeps'],
  [0xc001_102a, 0xc001_102a, '0', '11111', 'drops'],
  [0xc001_102c, 0xc001_102c, '0', '11111', 'drops'],
];

/** From and to: TSC, KVM's clock, the APIC's base, SYSENTER's, EFER and the GHCB are left out, for they differ by nature. */
const ranges = [
  [0x0, 0x10],
  [0x13, 0x1b],
  [0x1c, 0x174],
  [0x177, 0x1000],
  [0xc000_0000, 0xc000_0080],
  [0xc000_0081, 0xc000_0200],
  [0xc001_0000, 0xc001_0130],
  [0xc001_0131, 0xc001_0200],
  [0xc001_1000, 0xc001_1100],
] as const;

/** A processor without what brings registers of its own: PDCM, x2APIC, TSC deadlines, XSAVE, and all that is about speculation. */
function plainCpuid(hv: Hypervisor) {
  const kept = [0, 1, 7, 0x8000_0000, 0x8000_0001, 0x8000_0008];
  return hv
    .getSupportedCpuid()
    .filter(({ function: leaf, index }) => kept.includes(leaf >>> 0) && index === 0)
    .map((entry) => {
      if (entry.function === 1) return { ...entry, ecx: (entry.ecx & ~0x0520_8000) >>> 0 };
      if (entry.function === 7) return { ...entry, ebx: 2, ecx: 0, edx: 0 };
      return entry.function >>> 0 === 0x8000_0008 ? { ...entry, ebx: 0 } : entry;
    });
}

const PMU_DISABLE = 1n;
function withoutPmu(vm: Vm): void {
  if (vm.checkExtension(Cap.PMU_CAPABILITY) !== 0)
    vm.enableCap({ cap: Cap.PMU_CAPABILITY, args: [PMU_DISABLE] });
}

function boot(hv: Hypervisor): Agent {
  const agent = Agent.boot(hv, { prepare: withoutPmu });
  const { ram, vcpu } = agent;
  vcpu.setCpuid2(plainCpuid(hv));
  const view = viewOf(ram.bytes);
  ram.bytes.set(sweep.code, Layout.snippet);
  ram.bytes.set(handler.code, HANDLER);
  for (const [i, value] of values.entries()) view.setBigUint64(VALUES + 8 * i, value, true);
  const gate = { offset: HANDLER, selector: Selector.CODE64 };
  vcpu.changeSregs({ idt: placeIdt({ memory: ram, address: IDT }, 64, { [Vector.GP]: gate }) });
  return agent;
}

/** What the registers of a range answer, by their numbers. */
function answers({ ram, vcpu }: Agent, first: number, end: number): Map<number, readonly string[]> {
  const found = new Map<number, readonly string[]>();
  ram.bytes.fill(0, RECORDS);
  const regs: Input<ReturnType<typeof vcpu.getRegs>> = {
    rip: Layout.snippet,
    rsp: Layout.stack,
    rflags: 2,
    rcx: first,
    rbp: end,
    rsi: VALUES,
    rdi: RECORDS,
  };
  vcpu.setRegs(regs);
  runTo(vcpu, Exit.HLT);
  const view = viewOf(ram.bytes);
  for (let at = RECORDS; at < Number(vcpu.getRegs().rdi); at += RECORD) {
    const mask = view.getUint32(at + 4, true);
    const accepts = values.map((_, i) => (mask >> (i + 1)) & 1);
    const before = view.getBigUint64(at + 8, true);
    const after = (i: number) => view.getBigUint64(at + 16 + 8 * i, true);
    const taken = [...values.entries()].filter(([i]) => accepts[i] === 1);
    const readable = (mask & 1) === 1;
    const effects = [
      ...(taken.every(([i, value]) => after(i) === value) ? ['keeps'] : []),
      ...(taken.every(([i]) => after(i) === (readable ? before : 0n)) ? ['drops'] : []),
    ];
    found.set(view.getUint32(at, true), [readable ? before.toString(16) : '-', accepts.join(''), ...effects]);
  }
  return found;
}

conformance('model-specific registers', ({ it, needs }) => {
  needs('msrs-of-amd-6.12')('a guest finds those that KVM has or stands in for, and #GP elsewhere', (hv) => {
    using agent = boot(hv);
    const found = new Map(ranges.flatMap(([first, end]) => [...answers(agent, first, end)]));
    for (const [first, last, reads, writes, then] of rows) {
      for (let index = first; index <= last; index++) {
        const got = found.get(index) ?? [];
        expect
          .soft([...got.slice(0, 2), then === undefined || got.includes(then)], `0x${index.toString(16)}`)
          .toEqual([reads, writes, true]);
        found.delete(index);
      }
    }
    expect([...found].map(([index, answer]) => `0x${index.toString(16)} ${answer.join(' ')}`)).toEqual([]);
  });
  needs('msrs-of-amd-6.12')(
    "userspace's SYSENTER_ESP and SYSENTER_EIP have 32 bits, as legacy mode reads them",
    (hv) => {
      using agent = boot(hv);
      for (const index of [0x175, 0x176]) {
        expect(agent.vcpu.setMsrs([{ index, data: 0x1_0000_0005n }])).toBe(1);
        expect(agent.vcpu.getMsrs([index])[0]?.data).toBe(5n);
      }
    },
  );

  it('those that KVM_GET_MSR_INDEX_LIST names can be read, each of them', (hv) => {
    using agent = Agent.boot(hv);
    const list = hv.getMsrIndexList();
    expect(list.length).toBeGreaterThan(10);
    expect(new Set(list).size).toBe(list.length);
    const refused = list.filter((index) => agent.vcpu.getMsrs([index]).length === 0);
    expect(refused).toEqual([]);
  });
});
