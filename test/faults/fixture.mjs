// What the programs of this folder share: the compiled package, the addon under it, and tiny guests.
import { readdirSync, readlinkSync } from 'node:fs';
import { enterRealMode, openHypervisor } from '../../dist/index.js';
import { loadNative } from '../../dist/kvm/native.js';

export * from '../../dist/index.js';

export const native = loadNative();
/** The addon's request numbers by name. */
export const requests = Object.fromEntries(native.requests().map(({ name, request }) => [name, request]));

/** The lab's machine is slow: there, fewer rounds do. */
export const inLab = process.env.VMEXIT_LAB === '1';
/** A watchdog, as support/run.ts has it. */
export const DEADLINE_MS = (inLab ? 120_000 : 60_000) * Number(process.env.VMEXIT_PATIENCE ?? 1);

/** Real-mode code. */
export const code = {
  spin: [0xeb, 0xfe], //                              jmp $
  halt: [0xf4], //                                    hlt
  out: [0xe6, 0x10, 0xeb, 0xfc], //            again: out 0x10, al ; jmp again
  count: [0xfe, 0x06, 0x00, 0x20, 0xa0, 0x00, 0x20, 0xe6, 0x10, 0xeb, 0xf5],
  //                                           again: inc byte [0x2000] ; mov al, [0x2000] ; out 0x10, al ; jmp again
  increment: [0xb8, 0x00, 0x20, 0x8e, 0xd8, 0xfe, 0x06, 0x00, 0x00, 0xeb, 0xfa],
  //                    mov ax, 0x2000 ; mov ds, ax ; again: inc byte [0], where no slot is ; jmp again
};
/** Where `code.count` counts. */
export const COUNTER = 0x2000;
const START = 0x1000;

/** A VM with 64 KiB of RAM from 0, and a vCPU about to run the code in real mode. */
export function boot(bytes, hv = openHypervisor()) {
  const vm = hv.createVm();
  const ram = vm.allocate(0x1_0000);
  ram.bytes.set(bytes, START);
  vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memory: ram });
  const vcpu = vm.createVcpu();
  enterRealMode(vcpu);
  vcpu.setRegs({ rip: START, rflags: 2 });
  return { hv, vm, ram, vcpu };
}

export const tick = () => new Promise((resolve) => setImmediate(resolve));

/** Collects garbage until the finalizers, which the event loop runs, have had their turn. */
export async function collect() {
  for (let i = 0; i < 4; i++) {
    globalThis.gc();
    await tick();
    await tick();
  }
}

/** The code of the error that the call throws, or `ok`. */
export const codeOf = (call) => {
  try {
    call();
    return 'ok';
  } catch (error) {
    return error.code ?? String(error);
  }
};

export const close = (...objects) => {
  for (const object of objects) object.close();
};

/** How many descriptors of this process are of files whose names match. */
export const filesOpen = (names) =>
  readdirSync('/proc/self/fd').filter((fd) => {
    try {
      return names.test(readlinkSync(`/proc/self/fd/${fd}`));
    } catch {
      return false; // the listing's own
    }
  }).length;

/** Runs the scenario that the command line names and prints what it gives. */
export async function main(scenarios) {
  const result = await scenarios[process.argv[2]]();
  process.stdout.write(`${JSON.stringify(result ?? null)}\n`);
}
