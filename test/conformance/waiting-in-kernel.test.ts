/**
 * A vCPU that waits inside KVM_RUN, in HLT or for INIT and SIPI (arch/x86/kvm/x86.c, kvm_vcpu_block), and is asked for something
 * meanwhile: KVM_RUN comes back for a signal, and the processor waits on with the next one.
 */
import { expect } from 'vitest';
import { Exit, type ExitHandler, exitName, type Hypervisor, type Vcpu } from '../../src/index.ts';
import { MpState } from '../../src/uapi/index.ts';
import { guest } from '../../src/vmm/guest.ts';
import { message } from '../support/interrupts.ts';
import { DEADLINE_MS, inLab } from '../support/limits.ts';
import { Processors } from '../support/processors.ts';
import { conformance } from '../support/suite.ts';

const ROUNDS = inLab ? 100 : 1000;
const VECTOR = 0x41;
const PORT = 0xf4;

/** Waits for one interrupt after the other. */
const waits = guest(
  32,
  `
 bf 00 00 e0 fe                |        mov edi, 0xfee00000
 c7 87 f0 00 00 00 ff 01 00 00 |        mov dword ptr [edi + 0xf0], 0x1ff
 0f 01 1d 08 06 00 00          |        lidt [0x608]
 bc 00 90 00 00                |        mov esp, 0x9000
 fb                            | again: sti
 f4                            |        hlt
 eb fc                         |        jmp again
`,
);
/** Counts, says how many there were, and ends its interrupt. */
const counts = guest(
  32,
  `
 50                | push eax
 ff 05 00 50 00 00 | inc dword ptr [0x5000]
 a1 00 50 00 00    | mov eax, [0x5000]
 e7 f4             | out 0xf4, eax
 89 87 b0 00 00 00 | mov [edi + 0xb0], eax
 58                | pop eax
`,
);

/** The first processor; it has been started, and waits in HLT. */
async function waiting(machine: Processors): Promise<{ vcpu: Vcpu; end: Promise<string>; said: number[] }> {
  const [vcpu] = machine.vcpus;
  const said: number[] = [];
  const ears: ExitHandler = {
    handle: (_, exit) => exit === Exit.IO && vcpu!.io.port === PORT && said.push(vcpu!.io.value) > 0,
  };
  const end = vcpu!.start([ears], { timeoutMs: DEADLINE_MS }).then(exitName);
  await untilHalted(vcpu!);
  return { vcpu: vcpu!, end, said };
}

async function untilHalted(vcpu: Vcpu): Promise<void> {
  for (let halted = false; !halted; vcpu.resume()) {
    await new Promise(setImmediate);
    await vcpu.pause();
    halted = vcpu.getMpState() === MpState.HALTED;
  }
}

async function until(done: () => boolean): Promise<void> {
  const late = performance.now() + DEADLINE_MS;
  while (!done()) {
    if (performance.now() > late) throw new Error('what was waited for has not come');
    await new Promise(setImmediate);
  }
}

const machineOf = (hv: Hypervisor, count = 1): Processors =>
  new Processors(hv, count, waits, { [VECTOR]: counts });

conformance('a vCPU that waits inside KVM_RUN', ({ needs }) => {
  const it = needs('irqchip');

  it('in HLT acknowledges every pause, waits on after it, and is woken by an interrupt', async (hv) => {
    using machine = machineOf(hv);
    const { vcpu, end, said } = await waiting(machine);
    const { rip } = await vcpu.pause().then(() => vcpu.getRegs());
    vcpu.resume();
    for (let i = 0; i < ROUNDS; i++) {
      if (i % 3 === 0) await new Promise(setImmediate);
      await vcpu.pause();
      expect([vcpu.getMpState(), vcpu.getRegs().rip, vcpu.immediateExit]).toEqual([
        MpState.HALTED,
        rip,
        false,
      ]);
      vcpu.resume();
    }
    machine.vm.signalMsi(message(VECTOR));
    await until(() => said.length > 0);
    vcpu.stop();
    expect([await end, said]).toEqual(['STOPPED', [1]]);
  });

  it('in HLT gets the interrupt that comes while it is paused, after resume() and not before', async (hv) => {
    using machine = machineOf(hv);
    const { vcpu, end, said } = await waiting(machine);
    for (let i = 1; i <= 10; i++) {
      await vcpu.pause();
      machine.vm.signalMsi(message(VECTOR));
      await new Promise(setImmediate);
      expect(said.length).toBe(i - 1);
      vcpu.resume();
      await until(() => said.length === i);
    }
    vcpu.stop();
    expect([await end, said]).toEqual(['STOPPED', Array.from({ length: 10 }, (_, i) => i + 1)]);
  });

  it('in HLT is ended by a kick, a time limit, and stop(), and is halted still', async (hv) => {
    using machine = machineOf(hv);
    const { vcpu, end } = await waiting(machine);
    vcpu.stop();
    const ends = [await end];
    const kicked = vcpu.runAsync(DEADLINE_MS);
    vcpu.kick();
    ends.push(exitName(await kicked), exitName(await vcpu.runAsync(5)), exitName(vcpu.run(5)));
    expect([ends, vcpu.getMpState()]).toEqual([
      ['STOPPED', 'INTERRUPTED', 'DEADLINE', 'DEADLINE'],
      MpState.HALTED,
    ]);
  });

  it('for INIT and SIPI acknowledges every pause, and is started after it', async (hv) => {
    using machine = machineOf(hv, 2);
    const [boot, other] = machine.vcpus;
    // KVM looks for the APICs that there are when one of them is set, not when a vCPU is made.
    other!.setLapic(other!.getLapic());
    const ears: ExitHandler = { handle: () => false };
    const end = other!.start([ears], { timeoutMs: DEADLINE_MS }).then(exitName);
    for (let i = 0; i < ROUNDS; i++) {
      if (i % 3 === 0) await new Promise(setImmediate);
      await other!.pause();
      expect(other!.getMpState()).toBe(MpState.UNINITIALIZED);
      other!.resume();
    }
    expect(boot!.getMpState()).toBe(MpState.RUNNABLE);
    machine.ram.write(0x1_1000, Uint8Array.of(0xe7, PORT)); // out PORT, ax
    machine.vm.signalMsi({ addressLo: 0xfee0_1000, data: 0x4500 });
    machine.vm.signalMsi({ addressLo: 0xfee0_1000, data: 0x4611 });
    expect([await end, other!.io.port]).toEqual(['IO', PORT]);
  });
});
