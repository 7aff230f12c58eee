/** Protection keys for user pages (SDM volume 3, 4.6.2 and 4.7; volume 1, 13.5.7), on each vendor's model. */
import { describe, expect, it } from 'vitest';
import { Exit, openHypervisor, type SimulatedHost } from '../../src/index.ts';
import { walked } from '../../src/sim/cpu/address/paging.ts';
import { halves } from '../../src/sim/cpu/processor/halves.ts';
import { CR0, CR4 } from '../../src/sim/cpu/processor/mode.ts';
import { Access } from '../../src/sim/cpu/processor/stage.ts';
import { viewOf } from '../../src/uapi/index.ts';
import { type Guest, guest } from '../../src/vmm/guest.ts';
import { Agent, Layout } from '../support/agent.ts';
import { errnoOf } from '../support/run.ts';
import { At, Machine } from './sim-cpu-system.ts';

const KEY = 5;
const AD = 1 << (2 * KEY);
const WD = 2 << (2 * KEY);
const keyed = (key: number) => BigInt(key) << 59n;

describe('a page with a key', () => {
  const PT = 0x4000;
  const LINEAR = 0x3000n;
  function machine(flags: bigint, pkru: number): Machine {
    const m = new Machine().long();
    m.set64(At.pd, BigInt(PT) | 7n);
    m.set64(PT + 8 * 3, 0x5000n | flags | keyed(KEY));
    m.cpu.cr4 |= CR4.PKE;
    m.cpu.pkru = pkru;
    return m;
  }
  /** The error code, or undefined where the access is allowed. */
  const refused = (m: Machine, access: Access, kind: 'user' | 'supervisor' | 'implicit') =>
    m.fault(() => walked(m.cpu, ...halves(LINEAR), access, kind === 'user', kind === 'implicit'))?.errorCode;
  const { READ, WRITE, FETCH } = Access;

  it.each([
    // What the key's bits are, and then the codes: the user reads, writes, the supervisor reads, writes, the processor reads.
    ['all rights', 0, [undefined, undefined, undefined, undefined, undefined]],
    ['no access', AD, [0x25, 0x27, 0x21, 0x23, 0x21]],
    ['no write', WD, [undefined, 0x27, undefined, 0x23, undefined]],
    ['neither', AD | WD, [0x25, 0x27, 0x21, 0x23, 0x21]],
    ["another key's", ~(AD | WD), [undefined, undefined, undefined, undefined, undefined]],
  ] as const)('of the user has %s', (_, pkru, codes) => {
    const m = machine(7n, pkru);
    expect([
      refused(m, READ, 'user'),
      refused(m, WRITE, 'user'),
      refused(m, READ, 'supervisor'),
      refused(m, WRITE, 'supervisor'),
      refused(m, READ, 'implicit'),
    ]).toEqual(codes);
  });

  it('can be written by the supervisor without CR0.WP', () => {
    const m = machine(7n, WD);
    m.cpu.cr0 &= ~CR0.WP;
    expect(refused(m, WRITE, 'supervisor')).toBeUndefined();
    expect(refused(m, WRITE, 'user')).toBe(0x27);
    m.cpu.pkru = AD;
    expect(refused(m, READ, 'supervisor')).toBe(0x21);
  });

  it('is fetched from whatever the key says', () => {
    const m = machine(7n, AD | WD);
    expect(refused(m, FETCH, 'user')).toBeUndefined();
    expect(refused(m, FETCH, 'supervisor')).toBeUndefined();
  });

  it("of the supervisor's has none", () => {
    const m = machine(3n, AD | WD);
    expect(refused(m, WRITE, 'supervisor')).toBeUndefined();
    expect(refused(m, READ, 'user')).toBe(5);
  });

  it('tells of the key in the code beside another reason, but not where no page is', () => {
    expect(refused(machine(5n, WD), WRITE, 'user')).toBe(0x27);
    expect(refused(machine(5n, 0), WRITE, 'user')).toBe(7);
    expect(refused(machine(6n, AD), READ, 'user')).toBe(4);
  });

  it('has none without CR4.PKE', () => {
    const m = machine(7n, AD | WD);
    m.cpu.cr4 &= ~CR4.PKE;
    expect(refused(m, WRITE, 'user')).toBeUndefined();
  });

  it('has it in the entry that maps it, in pages of 2 MiB and 1 GiB too', () => {
    const m = new Machine().long();
    m.cpu.cr4 |= CR4.PKE;
    m.cpu.pkru = AD;
    m.set64(At.pd + 8, 0x20_0000n | 0x87n | keyed(KEY));
    m.set64(At.pdpt + 8, 0x4000_0000n | 0x87n | keyed(KEY));
    for (const linear of [0x20_0000n, 0x4000_0000n])
      expect(m.fault(() => walked(m.cpu, ...halves(linear), READ, true, false))?.errorCode).toBe(0x25);
    m.set64(At.pd, 0n | 0x87n);
    m.set64(At.pdpt, BigInt(At.pd) | 7n | keyed(KEY)); // a table's is ignored
    expect(m.fault(() => walked(m.cpu, ...halves(0x1000n), READ, true, false))).toBeUndefined();
  });
});

/** RAM once more, with a key. */
const ALIAS = 0x20_0000;
const PD = Layout.tables + 0x3000;
const DATA = Layout.free;
const PKE = 0x40_0000n;
const SSE_AND_OSXSAVE = 0x4_0600n;

function withAgent<T>(simulated: SimulatedHost, privilege: 0 | 3, use: (agent: Agent) => T): T {
  using hv = openHypervisor({ backend: 'sim', simulated });
  using agent = Agent.boot(hv, { privilege });
  const { cr4 } = agent.vcpu.getSregs();
  agent.vcpu.changeSregs({ cr4: cr4 | PKE | SSE_AND_OSXSAVE });
  agent.vcpu.setXcrs({ nrXcrs: 1, xcrs: [{ xcr: 0, value: 0x207n }] });
  const view = viewOf(agent.ram.bytes);
  expect(view.getBigUint64(PD, true) & 0x80n).toBe(0x80n);
  view.setBigUint64(PD + 8, view.getBigUint64(PD, true) | keyed(KEY), true);
  return use(agent);
}
function faultOf(agent: Agent, code: Guest, regs: object): string | undefined {
  let found: string | undefined;
  agent.vcpu.observe({
    exception(vector, errorCode, _, address) {
      found ??= [vector, errorCode?.toString(16), address?.toString(16)].join(' ');
    },
  });
  expect(agent.beginCode(code, regs)).toBe(Exit.SHUTDOWN);
  return found;
}

/** Reads and writes at RDI, often, under the rights in RAX; then once under those in R8. */
const often = guest(
  64,
  `
 31 c9          | xor ecx, ecx
 31 d2          | xor edx, edx
 0f 01 ef       | wrpkru
 be 10 27 00 00 | mov esi, 10000
 48 83 07 01    | next: add qword ptr [rdi], 1
 ff ce          | dec esi
 75 f8          | jnz next
 44 89 c0       | mov eax, r8d
 0f 01 ef       | wrpkru
 48 8b 1f       | mov rbx, [rdi]
 48 83 07 01    | add qword ptr [rdi], 1
 0f 01 ee       | rdpkru
 c3             | ret
`,
);
const read = guest(
  64,
  `
 0f 01 ee | rdpkru
 c3       | ret
`,
);
const write = guest(
  64,
  `
 0f 01 ef | wrpkru
 c3       | ret
`,
);
/** PKRU from RAX into an area at RDI by what follows; then another, and back. */
const saves = (how: string): Guest => (how === 'xsave' ? saveStandard : saveCompacted);
const saveStandard = guest(
  64,
  `
 31 c9          | xor ecx, ecx
 31 d2          | xor edx, edx
 0f 01 ef       | wrpkru
 b8 07 02 00 00 | mov eax, 0x207
 0f ae 27       | xsave [rdi]
 31 c0          | xor eax, eax
 0f 01 ef       | wrpkru
 b8 07 02 00 00 | mov eax, 0x207
 0f ae 2f       | xrstor [rdi]
 0f 01 ee       | rdpkru
 c3             | ret
`,
);
const saveCompacted = guest(
  64,
  `
 31 c9          | xor ecx, ecx
 31 d2          | xor edx, edx
 0f 01 ef       | wrpkru
 b8 01 02 00 00 | mov eax, 0x201
 0f c7 27       | xsavec [rdi]
 31 c0          | xor eax, eax
 0f 01 ef       | wrpkru
 b8 01 02 00 00 | mov eax, 0x201
 0f ae 2f       | xrstor [rdi]
 0f 01 ee       | rdpkru
 c3             | ret
`,
);

describe.each([
  ['closures', 'amd'],
  ['templates', 'intel'],
  ['wasm', 'amd'],
] as const)('a guest (%s, %s)', (tier, vendor) => {
  const host = { tier, vendor } as const;

  it('loses the right to what it has just accessed, and gets it again', () => {
    for (const privilege of [0, 3] as const) {
      const user = privilege === 3 ? 4 : 0;
      const regs = { rdi: ALIAS + DATA, rax: 0 };
      const address = (ALIAS + DATA).toString(16);
      withAgent(host, privilege, (agent) => {
        const others = ~(AD | WD | 3) >>> 0; // key 0 is that of all other pages
        agent.beginCode(often, { ...regs, r8: others });
        expect(agent.answer).toBe(BigInt(others));
        expect(viewOf(agent.ram.bytes).getBigUint64(DATA, true)).toBe(10_001n);
        const code = (0x21 | user).toString(16);
        expect(faultOf(agent, often, { ...regs, r8: AD })).toBe(`14 ${code} ${address}`);
      });
      withAgent(host, privilege, (agent) => {
        const code = (0x23 | user).toString(16);
        expect(faultOf(agent, often, { ...regs, r8: WD })).toBe(`14 ${code} ${address}`);
      });
    }
  });

  it('has no RDPKRU and WRPKRU without CR4.PKE, and only for ECX and EDX of zero', () => {
    withAgent(host, 0, (agent) => {
      expect(faultOf(agent, read, { rcx: 1 })).toMatch(/^13 0/);
    });
    for (const regs of [{ rcx: 1 }, { rdx: 1 }])
      withAgent(host, 3, (agent) => {
        expect(faultOf(agent, write, regs)).toMatch(/^13 0/);
      });
    for (const code of [read, write])
      withAgent(host, 3, (agent) => {
        agent.vcpu.changeSregs({ cr4: agent.vcpu.getSregs().cr4 & ~PKE });
        expect(faultOf(agent, code, {})).toMatch(/^6 /);
      });
  });

  it.each([
    ['xsave', 832],
    ['xsavec', 576],
  ] as const)('saves and restores the register (%s)', (how, offset) => {
    withAgent(host, 3, (agent) => {
      agent.beginCode(saves(how), { rdi: DATA, rax: 0x5555_5550 });
      expect(agent.answer).toBe(0x5555_5550n);
      expect(viewOf(agent.ram.bytes).getBigUint64(DATA + offset, true)).toBe(0x5555_5550n);
    });
  });

  it('is told by CPUID whether the system has enabled it', () => {
    const cpuid = guest(
      64,
      `
 b8 07 00 00 00 | mov eax, 7
 31 c9          | xor ecx, ecx
 53             | push rbx
 0f a2          | cpuid
 5b             | pop rbx
 89 c8          | mov eax, ecx
 c3             | ret
`,
    );
    withAgent(host, 0, (agent) => {
      agent.beginCode(cpuid);
      expect(agent.answer & 0x18n).toBe(0x18n);
      agent.vcpu.changeSregs({ cr4: agent.vcpu.getSregs().cr4 & ~PKE });
      agent.beginCode(cpuid);
      expect(agent.answer & 0x18n).toBe(8n);
    });
  });
});

describe('KVM_GET_XSAVE and KVM_SET_XSAVE', () => {
  const XSTATE_BV = 512;
  it('have the register, and leave it where its bit is clear', () => {
    withAgent({}, 0, (agent) => {
      const area = agent.vcpu.getXsave();
      const view = viewOf(area);
      view.setUint32(832, 0x1234_5670, true);
      agent.vcpu.setXsave(area);
      agent.beginCode(read);
      expect(agent.answer).toBe(0x1234_5670n);
      const next = agent.vcpu.getXsave();
      expect(viewOf(next).getUint32(832, true)).toBe(0x1234_5670);
      viewOf(next).setUint32(832, 7, true);
      viewOf(next).setBigUint64(XSTATE_BV, 3n, true);
      agent.vcpu.setXsave(next);
      agent.beginCode(read);
      expect(agent.answer).toBe(0x1234_5670n);
    });
  });
  it('have no place for it on a processor without keys', () => {
    using hv = openHypervisor({ backend: 'sim', simulated: { cpu: '-pku' } });
    using vm = hv.createVm();
    using vcpu = vm.createVcpu();
    vcpu.setCpuid2(hv.getSupportedCpuid());
    expect(errnoOf(() => vcpu.changeSregs({ cr4: PKE }))).toBe('EINVAL');
    const area = vcpu.getXsave();
    expect(viewOf(area).getBigUint64(XSTATE_BV, true) & 0x200n).toBe(0n);
    viewOf(area).setBigUint64(XSTATE_BV, 0x203n, true);
    expect(errnoOf(() => vcpu.setXsave(area))).toBe('EINVAL');
    expect(errnoOf(() => vcpu.setXcrs({ nrXcrs: 1, xcrs: [{ xcr: 0, value: 0x203n }] }))).toBe('EINVAL');
  });
});
