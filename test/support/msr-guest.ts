/** Guest code for the agent that writes or reads an MSR: ecx is its number, edx:eax its value. */
import { guest } from '../../src/vmm/guest.ts';

export const wrmsr = guest(
  64,
  `
 0f 30 | wrmsr
 c3    | ret
`,
);

/** Answers with the MSR's low 32 bits. */
export const rdmsr = guest(
  64,
  `
 0f 32 | rdmsr
 c3    | ret
`,
);
