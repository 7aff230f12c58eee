/** The numbers by which translated code knows what still holds (translate/code.ts): they begin again, and nothing of before does. */
import { expect, it } from 'vitest';
import { MODES } from '../../src/sim/cpu/processor/modes.ts';
import { Machine } from './sim-cpu-system.ts';

const CODE = 0x1_0000;
const [FIRST, SECOND] = [0x2_0000, 0x3_0000];
const [PD, PT] = [0x3000, 0x4000];
/** Global: CR4.PGE is set. */
const GLOBAL = 0x100n;
const EPOCHS = 2 ** 32 / MODES;

/** At each physical page a loop of two blocks that gives another number: jmp; mov eax; dec ecx; jnz; hlt. */
function machine(global: bigint): Machine {
  const made = new Machine().long(0);
  const { cpu } = made;
  cpu.code.tier = 'templates';
  made.set64(PD, BigInt(PT) | 7n);
  for (let page = 0; page < 512; page++) made.set64(PT + page * 8, BigInt(page << 12) | 7n);
  for (const [place, number] of [
    [FIRST, '01'],
    [SECOND, '02'],
  ] as const)
    made.bytes(place, `eb 00 b8 ${number} 00 00 00 ff c9 75 f5 f4`);
  made.set64(PT + (CODE >> 12) * 8, BigInt(FIRST) | 7n | global);
  cpu.cr4 |= 0x80;
  cpu.flushTlb();
  cpu.changed();
  cpu.enter(true);
  return made;
}
function gives(made: Machine): bigint {
  const { cpu } = made;
  made.setGpr(1, 5);
  cpu.state.rip = BigInt(CODE);
  for (let i = 0; i < 100; i++) if (cpu.run(1000).kind === 'halt') return made.gpr(0);
  throw new Error('it does not halt');
}

it.each([
  ['one that is not global', 0n],
  ['a global page', GLOBAL],
])('%s is looked for again after as many loads of CR3 as there are numbers', (_what, global) => {
  for (const around of [-3, -2, -1, 0, 1, 2]) {
    const made = machine(global);
    const { cpu } = made;
    expect(gives(made)).toBe(1n);
    made.set64(PT + (CODE >> 12) * 8, BigInt(SECOND) | 7n | global);
    cpu.memory.flush();
    if (global !== 0n) cpu.code.flush();
    for (let i = 0; i < EPOCHS + around; i++) cpu.code.flushLocal();
    expect([around, gives(made)]).toEqual([around, 2n]);
    cpu.free();
  }
});
