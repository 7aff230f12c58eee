/** A guest that calls a BIOS or a kernel is ended, and told of: here are none. */
import { expect } from 'vitest';
import { layNoKernel, layVectors } from '../../src/cli/no-system.ts';
import { runOrFail } from '../../src/cli/run.ts';
import { flatImage, type Hypervisor, isReset, Machine, type Mode, RunLoops } from '../../src/index.ts';
import { onEach } from '../support/host.ts';
import { DEADLINE_MS } from '../support/limits.ts';

/** What the account of its run says, or how it ended. As vmexit run begins it. */
async function end(hv: Hypervisor, mode: Mode, code: readonly number[], at = 0x1000, memory = 2 ** 20) {
  using machine = new Machine(hv, { memory });
  if (mode === 'long') layNoKernel(machine.vcpu);
  else layVectors(machine);
  machine.load(flatImage(Uint8Array.from(code), mode, 'guest', { at }));
  const ended = await runOrFail(machine.vm, new RunLoops(machine.vcpus), { timeoutMs: DEADLINE_MS });
  if ('error' in ended) return ended.error.message;
  return isReset(machine.vcpu) ? 'reset' : ended.reason;
}

const INT_10 = [0xcd, 0x10];
const UD2 = [0x0f, 0x0b];

onEach('an interrupt of the BIOS ends a boot sector, by its name and where it was called', async (hv) => {
  const says = /^int 0x10 at 0x7c01 \(BIOS: video\): .*no BIOS/;
  expect(await end(hv, 'real', [0x90, ...INT_10], 0x7c00)).toMatch(says);
  // The vectors lead elsewhere where the first megabyte is not all there.
  expect(await end(hv, 'real', [0x90, ...INT_10], 0x7c00, 0x1_0000)).toMatch(says);
});

onEach('one of DOS ends a .COM program, whose code is where vectors are', async (hv) => {
  expect(await end(hv, 'real', [0xcd, 0x21], 0x100)).toMatch(/^int 0x21 at 0x100 \(DOS\): /);
});

onEach('an exception without a handler is told from an interrupt of its vector', async (hv) => {
  expect(await end(hv, 'real', UD2)).toMatch(/^exception 6 \(#UD, .*\) at 0x1000: the guest has no handler/);
  expect(await end(hv, 'real', [0xcd, 0x06])).toMatch(/^int 0x6 at 0x1000: /);
});

onEach('a jump to address 0 is told', async (hv) => {
  expect(await end(hv, 'real', [0x31, 0xc0, 0xff, 0xe0])).toMatch(
    /^the guest is at address 0, in the interrupt vectors/,
  );
});

onEach('a handler of the guest is called, and its HLT is a HLT', async (hv) => {
  // mov word ptr [4 * 0x10], 0x100c; mov word ptr [4 * 0x10 + 2], 0
  const sets = [0xc7, 0x06, 0x40, 0x00, 0x0e, 0x10, 0xc7, 0x06, 0x42, 0x00, 0x00, 0x00];
  expect(await end(hv, 'real', [...sets, ...INT_10, 0xf4])).toBe('halt');
});

onEach('a system call ends a guest in 64-bit mode, by its name and where it was called', async (hv) => {
  for (const [name, ...code] of [
    ['syscall', 0x0f, 0x05],
    ['int 0x80', 0xcd, 0x80],
  ] as const) {
    const says = await end(hv, 'long', [0xb0, 60, ...code]); // mov al, 60
    // KVM on AMD resets the processor at a triple fault: then nothing is known of it.
    if (hv.backend === 'kvm' && says === 'reset') continue;
    expect(says).toMatch(new RegExp(`^${name} at 0x1002, with 0x3c in rax: a system call`));
  }
});

onEach('a crash that is no call is a crash', async (hv) => {
  expect(await end(hv, 'long', UD2)).toMatch(/^(unhandled|reset)$/);
});
