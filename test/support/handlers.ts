/** An IDT for the agent in which every vector's handler tells the VMM its number by an OUT. */
import { expect } from 'vitest';
import { Exit, placeIdt } from '../../src/index.ts';
import { guest } from '../../src/vmm/guest.ts';
import { Selector } from '../../src/vmm/modes.ts';
import { type Agent, Layout } from './agent.ts';
import { expectOutcome } from './run.ts';

const HANDLER_PORT = 0xf1;
const IDT = Layout.free;
const HANDLERS = Layout.free + 0x1000;
const HANDLER_SIZE = 32;

/** Says its vector, which stands in the second byte, and returns. */
const handler = guest(
  64,
  `
 b0 00 e6 f1 48 cf | mov al, 0; out 0xf1, al; iretq
`,
);

/** The same, and ends the interrupt: at the master PIC and at the local APIC, where it is not in x2APIC mode. */
const ending = guest(
  64,
  `
 b0 00             | mov al, 0
 e6 f1             | out 0xf1, al
 b0 20             | mov al, 0x20
 e6 20             | out 0x20, al
 bb b0 00 e0 fe    | mov ebx, 0xfee000b0
 c7 03 00 00 00 00 | mov dword ptr [rbx], 0
 48 cf             | iretq
`,
);

/** @param ends whether the handlers end their interrupts, so that the next of the line can come */
export function installHandlers({ ram, vcpu }: Agent, ends = false): void {
  const gates = Array.from({ length: 256 }, (_, vector) => {
    const offset = HANDLERS + vector * HANDLER_SIZE;
    ram.write(offset, (ends ? ending : handler).code);
    ram.write(offset + 1, Uint8Array.of(vector));
    return { offset, selector: Selector.CODE64 };
  });
  vcpu.changeSregs({ idt: placeIdt({ memory: ram, address: IDT }, 64, gates) });
}

/** The vector whose handler the last run ended in. */
export function handled({ vcpu }: Agent): number {
  expectOutcome(vcpu, Exit.IO);
  expect(vcpu.io.port).toBe(HANDLER_PORT);
  return vcpu.io.value;
}
