/** State and instruments that only a real KVM has: machine checks, clocks, the task priority, statistics (api.rst, the ioctls named). */
import { describe, expect } from 'vitest';
import { Cap, type CpuidEntry, Exit, type Hypervisor, type Vm } from '../../src/index.ts';
import { ClockFlag, DisableExits, HypervExit, Vector } from '../../src/uapi/index.ts';
import { guest } from '../../src/vmm/guest.ts';
import { Agent, Layout } from '../support/agent.ts';
import { handled, installHandlers } from '../support/handlers.ts';
import { on, onKvm } from '../support/host.ts';
import { DEADLINE_MS } from '../support/limits.ts';
import { errnoOf, expectOutcome, wordAt } from '../support/run.ts';
import { cpuid, load32 } from '../support/snippets.ts';

const rdmsr = guest(
  64,
  `
 0f 32       | rdmsr
 48 c1 e2 20 | shl rdx, 32
 48 09 d0    | or rax, rdx
 c3          | ret
`,
);
const halted = guest(
  64,
  `
 f4    | again: hlt
 eb fd |        jmp again
`,
);
/** Says who it is (HV_X64_MSR_GUEST_OS_ID), without which there are no hypercalls, and makes one. */
const hypervCall = guest(
  64,
  `
 b9 00 00 00 40 | mov ecx, 0x40000000
 b8 01 00 00 00 | mov eax, 1
 31 d2          | xor edx, edx
 0f 30          | wrmsr
 4c 89 d1       | mov rcx, r10
 4c 89 da       | mov rdx, r11
 4d 89 e0       | mov r8, r12
 0f 01 d9       | vmmcall
 c3             | ret
`,
);

const CR4_MCE = 1n << 6n;
const MCG_STATUS = 0x17a;
const MC0_STATUS = 0x401;
const BANK = 3;
/** MCI_STATUS_VAL, UC, EN and ADDRV (SDM volume 3, 16.3.2.2), with a code of the processor's. */
const UNCORRECTED = (0xb4n << 56n) | 0x0175n;
const CORRECTED = (0x94n << 56n) | 0x0136n;
/** RIPV and MCIP. */
const IN_PROGRESS = 5n;
const HOUR = 3_600_000_000_000n;
const APIC_TPR = 0xfee0_0080;
/** HV_EXT_CALL_QUERY_CAPABILITIES, which KVM always hands on. */
const QUERY_CAPABILITIES = 0x8001n;
/** The first letters of `Linux KVM Hv`, as little-endian bytes. */
const LINUX = 0x756e_694c;
const HYPERV_LEAVES = 0x4000_0000;

/** At privilege 3 each access leaves the guest; KVM's emulator, which executes privilege 0 on a PVM host, goes on behind it. */
const withIrqchip = { prepare: (vm: Vm) => vm.createIrqchip(), privilege: 3 } as const;

function withMachineCheck(agent: Agent): void {
  installHandlers(agent);
  agent.vcpu.changeSregs({ cr4: agent.vcpu.getSregs().cr4 | CR4_MCE });
  agent.vcpu.setupMce(10);
}

describe('machine checks (kvm)', () => {
  const it = onKvm;

  it('an uncorrected one reaches the handler of #MC, and its bank is read by RDMSR', (hv) => {
    using agent = Agent.boot(hv);
    const { vcpu } = agent;
    withMachineCheck(agent);
    agent.prepare('read', { rdi: Layout.free });
    vcpu.setMce({ status: UNCORRECTED, addr: 0x1234_5000n, mcgStatus: IN_PROGRESS, bank: BANK });
    vcpu.run(DEADLINE_MS);
    expect(handled(agent)).toBe(Vector.MC);
    agent.resume();
    const read = (index: number) => {
      agent.beginCode(rdmsr, { rcx: index });
      return agent.answer;
    };
    expect(read(MC0_STATUS + 4 * BANK)).toBe(UNCORRECTED);
    expect(read(MC0_STATUS + 4 * BANK + 1)).toBe(0x1234_5000n);
    expect(read(MCG_STATUS)).toBe(IN_PROGRESS);
    expect(read(MC0_STATUS)).toBe(0n);
  });

  it('a corrected one is in its bank alone', (hv) => {
    using agent = Agent.boot(hv);
    withMachineCheck(agent);
    agent.vcpu.setMce({ status: CORRECTED, bank: BANK });
    agent.beginCode(rdmsr, { rcx: MC0_STATUS + 4 * BANK });
    expect(agent.answer).toBe(CORRECTED);
  });

  it('an uncorrected one is a shutdown where the guest has CR4.MCE 0', (hv) => {
    using agent = Agent.boot(hv);
    agent.vcpu.setupMce(10);
    agent.prepare('read', { rdi: Layout.free });
    agent.vcpu.setMce({ status: UNCORRECTED, mcgStatus: IN_PROGRESS, bank: BANK });
    agent.vcpu.run(DEADLINE_MS);
    expectOutcome(agent.vcpu, Exit.SHUTDOWN);
  });

  it('KVM_X86_SETUP_MCE takes the banks and bits that KVM_X86_GET_MCE_CAP_SUPPORTED has, and the guest reads them', (hv) => {
    using agent = Agent.boot(hv);
    const supported = hv.getMceCapSupported();
    expect(hv.checkExtension(Cap.MCE)).toBe(32);
    const cap = (supported & ~0xffn) | 32n;
    agent.vcpu.setupMce(cap);
    agent.beginCode(rdmsr, { rcx: 0x179 });
    // Of AMD's processors KVM tells no more than the banks and MCG_CTL_P (svm.c, svm_setup_mce).
    expect(agent.answer & 0x1ffn).toBe(cap & 0x1ffn);
    const setup = (value: bigint) => errnoOf(() => agent.vcpu.setupMce(value));
    expect([setup(0n), setup(33n), setup(1n | (1n << 62n))]).toEqual(['EINVAL', 'EINVAL', 'EINVAL']);
    const set = (mce: object) => errnoOf(() => agent.vcpu.setMce(mce));
    expect([set({ status: CORRECTED, bank: 32 }), set({ status: 1n, bank: 0 })]).toEqual([
      'EINVAL',
      'EINVAL',
    ]);
  });
});

describe('clocks (kvm)', () => {
  const it = onKvm;

  it('KVM_SET_CLOCK with REALTIME counts the time since then', (hv, context) => {
    using vm = hv.createVm();
    context.skip((vm.checkExtension(Cap.ADJUST_CLOCK) & ClockFlag.REALTIME) === 0, 'before 5.16');
    const now = BigInt(Date.now()) * 1_000_000n;
    vm.setClock({ clock: HOUR, flags: ClockFlag.REALTIME, realtime: now - 10n * HOUR });
    const { clock } = vm.getClock();
    expect(clock).toBeGreaterThanOrEqual(10n * HOUR);
    expect(clock).toBeLessThan(12n * HOUR);
    expect(errnoOf(() => vm.setClock({ clock: 0, flags: 1 << 30 }))).toBe('EINVAL');
  });

  it('KVM_GET_CLOCK tells the host clocks of the same instant, where they can be read together', (hv, context) => {
    using agent = Agent.boot(hv);
    agent.read(Layout.free);
    const both = ClockFlag.REALTIME | ClockFlag.HOST_TSC;
    const { flags, realtime, hostTsc } = agent.vm.getClock();
    context.skip((flags & both) !== both, `this host's clock is not its TSC: flags ${flags}`);
    const now = BigInt(Date.now()) * 1_000_000n;
    expect(realtime).toBeGreaterThan(now - HOUR);
    expect(realtime).toBeLessThan(now + HOUR);
    const later = agent.vm.getClock();
    expect(later.hostTsc).toBeGreaterThan(hostTsc);
    expect(later.realtime).toBeGreaterThanOrEqual(realtime);
  });

  it('KVM_SET_TSC_KHZ of a VM is the rate of the vCPUs that are made then', (hv) => {
    using vm = hv.createVm();
    const khz = vm.getTscKhz();
    vm.setTscKhz(2 * khz);
    expect(vm.getTscKhz()).toBe(2 * khz);
    using first = vm.createVcpu(0);
    expect(first.getTscKhz()).toBe(2 * khz);
    using other = hv.createVm();
    using vcpu = other.createVcpu();
    expect(vcpu.getTscKhz()).toBe(khz);
  });
});

describe('the task priority (kvm)', () => {
  const it = onKvm;

  it('KVM_TPR_ACCESS_REPORTING makes an exit of an access to it, with its place', (hv) => {
    using agent = Agent.boot(hv, withIrqchip);
    const { vcpu } = agent;
    agent.beginCode(load32, { rsi: APIC_TPR });
    expect(agent.answered).toBe(true);
    expect(vcpu.tprAccessReporting(true)).toBe(true);
    agent.beginCode(load32, { rsi: APIC_TPR });
    expectOutcome(vcpu, Exit.TPR_ACCESS);
    expect(vcpu.exit).toMatchObject({ reason: 'TPR_ACCESS', isWrite: false, rip: BigInt(Layout.snippet) });
    expect([vcpu.raw.arms.tprAccess.rip, vcpu.raw.arms.tprAccess.isWrite]).toEqual([
      BigInt(Layout.snippet),
      0,
    ]);
    agent.resume();
    vcpu.tprAccessReporting(false);
    agent.beginCode(load32, { rsi: APIC_TPR });
    expect(agent.answered).toBe(true);
  });

  it('KVM_SET_VAPIC_ADDR keeps it in guest memory, where the guest sets it', (hv) => {
    using agent = Agent.boot(hv, withIrqchip);
    const { vcpu } = agent;
    expect(errnoOf(() => vcpu.setVapicAddr(0xd000_0000))).toBe('EINVAL');
    vcpu.setVapicAddr(Layout.free);
    agent.write(Layout.free, 0x50);
    expect(vcpu.getLapic().regs[0x80]).toBe(0x50);
    expect(agent.read(Layout.free) & 0xffn).toBe(0x50n);
    vcpu.setVapicAddr(0);
    agent.write(Layout.free, 0x30);
    expect(vcpu.getLapic().regs[0x80]).toBe(0x50);
    using alone = Agent.boot(hv);
    expect(errnoOf(() => alone.vcpu.setVapicAddr(Layout.free))).toBe('EINVAL');
  });
});

describe('disabled exits (kvm)', () => {
  const it = onKvm;
  const { HLT, PAUSE, MWAIT } = DisableExits;
  const boot = (hv: Hypervisor, bits: number) =>
    Agent.boot(hv, { prepare: (vm) => vm.enableCap({ cap: Cap.X86_DISABLE_EXITS, args: [bits] }) });

  // KVM's emulator always makes an exit of it.
  on('kvm', 'hardware-virtualization')('of HLT: a guest that halts does not come back', (hv) => {
    using plain = Agent.boot(hv);
    expect(plain.beginCode(halted)).toBe(Exit.HLT);
    using agent = boot(hv, HLT);
    agent.ram.write(Layout.snippet, halted.code);
    agent.prepare('call', { r15: Layout.snippet });
    expect(agent.vcpu.run(100)).toBe(Exit.DEADLINE);
    expect(agent.vcpu.getRegs().rip - BigInt(Layout.snippet)).toBeLessThan(BigInt(halted.code.length));
  });

  it('are those that KVM_CAP_X86_DISABLE_EXITS tells of', (hv) => {
    using vm = hv.createVm();
    const bits = vm.checkExtension(Cap.X86_DISABLE_EXITS);
    expect(bits & (HLT | PAUSE)).toBe(HLT | PAUSE);
    const enable = (value: number) =>
      errnoOf(() => vm.enableCap({ cap: Cap.X86_DISABLE_EXITS, args: [value] }));
    expect(enable(1 << 20)).toBe('EINVAL');
    if ((bits & MWAIT) === 0) expect(enable(MWAIT)).toBe('EINVAL');
    expect(enable(bits)).toBe('ok');
  });
});

describe("Hyper-V's interface (kvm)", () => {
  const it = on('kvm', 'hyperv');

  it('KVM_GET_SUPPORTED_HV_CPUID gives the leaves by which a guest sees it, at both scopes', (hv) => {
    using agent = Agent.boot(hv);
    const leaves = hv.getSupportedHvCpuid();
    expect(leaves[0]).toMatchObject({ function: HYPERV_LEAVES, ebx: LINUX });
    const number = ({ function: leaf }: CpuidEntry) => leaf;
    expect(agent.vcpu.getSupportedHvCpuid().map(number)).toEqual(leaves.map(number));
    agent.vcpu.setCpuid2([
      ...hv.getSupportedCpuid().filter((leaf) => number(leaf) < HYPERV_LEAVES),
      ...leaves,
    ]);
    agent.beginCode(cpuid, { rax: HYPERV_LEAVES });
    expect(agent.answer).toBe(BigInt(leaves[0]!.ebx));
  });

  it('a hypercall of its is answered in place', (hv) => {
    using agent = Agent.boot(hv);
    const { vcpu } = agent;
    const others = hv
      .getSupportedCpuid()
      .filter(({ function: leaf }) => leaf < HYPERV_LEAVES || leaf >= 0x8000_0000);
    vcpu.setCpuid2([...others, ...hv.getSupportedHvCpuid()]);
    agent.beginCode(hypervCall, { r10: QUERY_CAPABILITIES, r11: 0x4_1000n, r12: Layout.free });
    expectOutcome(vcpu, Exit.HYPERV);
    expect(vcpu.exit).toMatchObject({
      type: HypervExit.HCALL,
      hcall: { input: QUERY_CAPABILITIES, params: [0x4_1000n, BigInt(Layout.free)] },
    });
    expect([vcpu.hyperv.type, vcpu.hyperv.hcall.input]).toEqual([HypervExit.HCALL, QUERY_CAPABILITIES]);
    vcpu.hyperv.hcall.result = 5n;
    expect(agent.resume()).toBe(5n);
  });
});

describe('statistics (kvm)', () => {
  const it = onKvm;

  it('of a vCPU count what it does: each read gives what they are then', (hv) => {
    using agent = Agent.boot(hv, { privilege: 3 });
    using stats = agent.vcpu.getStatsFd();
    const first = stats.read();
    expect(first.get('exits')).toMatchObject({ type: 'CUMULATIVE', unit: 'NONE', base: 10, exponent: 0 });
    const count = (read: typeof first, name: string) => read.get(name)!.values[0]!;
    for (let i = 0; i < 5; i++) agent.read(Layout.free);
    const second = stats.read();
    expect(count(second, 'exits') - count(first, 'exits')).toBeGreaterThanOrEqual(5n);
  });

  // Without it an access to a port is a #GP, which KVM counts as another kind of exit.
  on('kvm', 'hardware-virtualization')('of a vCPU count its exits by their kinds', (hv) => {
    using agent = Agent.boot(hv);
    using stats = agent.vcpu.getStatsFd();
    const exits = () => stats.read().get('io_exits')!.values[0];
    expect(exits()).toBe(0n);
    for (let i = 0; i < 5; i++) agent.read(Layout.free);
    expect(exits()).toBe(5n);
  });

  it('have their units, scales and histograms', (hv) => {
    using agent = Agent.boot(hv);
    using stats = agent.vcpu.getStatsFd();
    const read = stats.read();
    expect(stats.id).toMatch(/^kvm-\d+\/vcpu-0$/);
    expect(read.get('halt_poll_success_ns')).toMatchObject({ unit: 'SECONDS', base: 10, exponent: -9 });
    expect(read.get('halt_wait_hist')).toMatchObject({ type: 'LOG_HIST', unit: 'SECONDS' });
    expect(read.get('halt_wait_hist')!.values.length).toBeGreaterThan(1);
    expect(read.get('guest_mode')).toMatchObject({ type: 'INSTANT', unit: 'BOOLEAN' });
  });

  it('of a VM are its own, and stay when it is closed', (hv) => {
    using agent = Agent.boot(hv, { privilege: 3 });
    using stats = agent.vm.getStatsFd();
    agent.write(Layout.free, wordAt(new Uint8Array(8)));
    const pages = () => {
      const read = stats.read();
      return ['pages_4k', 'pages_2m', 'pages_1g'].reduce((sum, name) => sum + read.get(name)!.values[0]!, 0n);
    };
    expect(stats.id).toMatch(/^kvm-\d+$/);
    expect(pages()).toBeGreaterThan(0n);
    agent.vcpu.close();
    agent.vm.close();
    expect(pages()).toBeGreaterThanOrEqual(0n);
    stats.close();
    expect(() => stats.read()).toThrow('this Stats was closed');
  });
});
