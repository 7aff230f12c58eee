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

/** The same, and ends the interrupt at the local APIC, which is not in x2APIC mode. */
const endingAtLapic = guest(
  64,
  `
 b0 00             | mov al, 0
 e6 f1             | out 0xf1, al
 bb b0 00 e0 fe    | mov ebx, 0xfee000b0
 c7 03 00 00 00 00 | mov dword ptr [rbx], 0
 48 cf             | iretq
`,
);
/** The same, and at the master PIC. */
const endingAtBoth = guest(
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
const handlers = { nowhere: handler, lapic: endingAtLapic, both: endingAtBoth } as const;

/** Where handlers end their interrupts, so that the next of the line can come. */
export type Ends = keyof typeof handlers;

export function installHandlers({ ram, vcpu }: Agent, ends: Ends = 'nowhere'): void {
  const gates = Array.from({ length: 256 }, (_, vector) => {
    const offset = HANDLERS + vector * HANDLER_SIZE;
    ram.write(offset, handlers[ends].code);
    ram.write(offset + 1, Uint8Array.of(vector));
    return { offset, selector: Selector.CODE64 };
  });
  vcpu.changeSregs({ idt: placeIdt({ memory: ram, address: IDT }, 64, gates) });
}

/** The vector whose handler the last run ended in. */
export function handled({ vcpu }: Pick<Agent, 'vcpu'>): number {
  expectOutcome(vcpu, Exit.IO);
  expect(vcpu.io.port).toBe(HANDLER_PORT);
  return vcpu.io.value;
}
