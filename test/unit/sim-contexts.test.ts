/** More code and stack segments than translated code has numbers for (processor/contexts.ts): all begin anew then. */
import { expect, it } from 'vitest';
import { descriptor, gate, Machine } from './sim-cpu-system.ts';

const CODE = 0x1_0000;
const HANDLER = 0x2_0000;
const STACK = 0x3_8000;
const GDT = 0x9000;
const IDT = 0x7000;
const Selector = { CODE0: 0x08, DATA3: 0x18, CODE3: 0x20, DATA0: 0x30 } as const;
const NM = 7;
const SLICE = 1000;
/** Beside those that a kernel is in here: of level 3, of SYSCALL, and of CR0.TS. */
const AROUND = [11, 12, 13, 14, 15, 16];

const u32 = (value: number) => [0, 8, 16, 24].map((shift) => (value >>> shift) & 0xff);
const push = (value: number) => [0x68, ...u32(value)];

class Program {
  /** mov esp; and data segments that no return takes away: mov eax, and mov ds, es, fs, gs. */
  readonly bytes: number[] = [
    ...[0xbc, ...u32(STACK), 0xb8, ...u32(Selector.DATA3 | 3)],
    ...[0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xe0, 0x8e, 0xe8],
  ];
  /** To what follows. */
  iret(cs: number, ss: number): this {
    const frame = [...push(ss), ...push(STACK), ...push(2), ...push(cs)];
    const next = CODE + this.bytes.length + frame.length + 7;
    this.bytes.push(...frame, ...push(next), 0x48, 0xcf);
    return this;
  }
  put(...bytes: readonly number[]): this {
    this.bytes.push(...bytes);
    return this;
  }
  stacks(count: number): this {
    for (let i = 0; i < count; i++) this.iret(Selector.CODE0, Selector.DATA0 + 8 * i);
    return this;
  }
}
/** As many stacks at level 0, out, and back by SYSCALL; as many again, CR0.TS, and out once more for an SSE instruction. */
const program = (before: number, after: number) =>
  new Program()
    .stacks(before)
    .iret(Selector.CODE3 | 3, Selector.DATA3 | 3)
    .put(0x0f, 0x05) // syscall
    .stacks(after)
    .put(0x0f, 0x20, 0xc0, 0x48, 0x83, 0xc8, 0x08, 0x0f, 0x22, 0xc0) // mov rax, cr0; or rax, 8; mov cr0, rax
    .put(0x48, 0x8b, 0x04, 0x25, ...u32(GDT)) // mov rax, [GDT]: it is in the buffers again
    .iret(Selector.CODE3 | 3, Selector.DATA3 | 3)
    .put(0x0f, 0x28, 0xc1, 0x0f, 0x05); // movaps xmm0, xmm1; syscall

function ended(before: number, after: number): [rip: number, level: number] {
  const machine = new Machine();
  machine.long(0);
  const { cpu } = machine;
  cpu.code.tier = 'templates';
  machine.set64(GDT + Selector.CODE0, descriptor(0, 0xf_ffff, 0x9b, 0xa));
  machine.set64(GDT + Selector.DATA3, descriptor(0, 0xf_ffff, 0xf3, 0xc));
  machine.set64(GDT + Selector.CODE3, descriptor(0, 0xf_ffff, 0xfb, 0xa));
  for (let i = 0; i < 20; i++)
    machine.set64(GDT + Selector.DATA0 + 8 * i, descriptor(0, 0xf_ffff, 0x93, 0xc));
  cpu.gdtr = { base: BigInt(GDT), limit: 0xfff };
  machine.set64(IDT + 16 * NM, gate(Selector.CODE0, HANDLER, 0x8e));
  machine.arena.views.u8[machine.ram + HANDLER] = 0xf4;
  const { bytes } = program(before, after);
  machine.arena.views.u8.set(bytes, machine.ram + CODE);
  // SYSCALL goes on behind itself.
  machine.arena.views.u8.set([0xff, 0xe1], machine.ram + HANDLER + 0x100);
  cpu.msrs.set(0xc000_0081, BigInt(Selector.CODE0) << 32n);
  cpu.msrs.set(0xc000_0082, BigInt(HANDLER + 0x100));
  cpu.cr4 |= 0x200;
  cpu.state.rip = BigInt(CODE);
  cpu.changed();
  cpu.enter(true);
  for (let i = 0; i < 100; i++) {
    const { kind } = cpu.run(SLICE);
    if (kind === 'halt') break;
    expect(kind).toBe('slice');
  }
  return [Number(cpu.state.rip), cpu.segments[1]!.selector & 3];
}

it('does not go by a way that was noted from a number which somebody else has by now', () => {
  for (const before of AROUND) {
    for (const after of AROUND)
      expect([before, after, ...ended(before, after)]).toEqual([before, after, HANDLER + 1, 0]);
  }
});
