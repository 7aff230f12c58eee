/**
 * A kernel that was drawn by lot: it goes between privilege levels by SYSCALL, SYSRET, IRET and interrupts, in loops, and changes
 * what these depend on. What faults is logged, mended and left. Processors with the same numbers come to the same places.
 */
import { CR4, EFER } from '../../src/sim/cpu/processor/mode.ts';
import type { Code } from '../../src/sim/cpu/translate/code.ts';
import { descriptor, gate, Machine } from '../unit/sim-cpu-system.ts';

export type Tier = Code['tier'];

/** xorshift32: the same sequences on every machine. */
export class Random {
  #state: number;
  constructor(seed: number) {
    this.#state = (Math.imul(seed, 0x9e37_79b9) ^ 0x5bd1_e995) | 1;
    for (let i = 0; i < 8; i++) this.u32();
  }
  u32(): number {
    this.#state ^= this.#state << 13;
    this.#state ^= this.#state >>> 17;
    this.#state ^= this.#state << 5;
    return this.#state >>> 0;
  }
  below(n: number): number {
    return this.u32() % n;
  }
  pick<T>(from: readonly T[]): T {
    return from[this.below(from.length)]!;
  }
}

const Page = {
  pml4: 0x1000,
  pdpt: 0x2000,
  pd: 0x3000,
  pt: 0x4000,
  idt: 0x7000,
  tss: 0x8000,
  stubs: 0xe000,
  code: 0x1_0000,
  data: 0x2_0000,
} as const;
/** Two tables, whose descriptors of outer levels lie in a page of their own. */
const TABLES = [0xaf80, 0xcf80] as const;
const GDT_LIMIT = 0x107;
const Stack = { inner: 0x3_8000, user: 0x6_8000, rsp0: 0x4_8010, ist: 0x5_8000 } as const;
const Selector = {
  CODE0: 0x08,
  DATA0: 0x10,
  /** SYSCALL's stack segment is DATA0 too. */
  OTHER0: 0x18,
  TSS: 0x30,
  DATA3: 0x80,
  CODE3: 0x88,
} as const;
/** More of level 3: code and data in turn. */
const CODES3 = [0x88, 0x90, 0xa0, 0xb0, 0xc0, 0xd0];
const STACKS3 = [0x80, 0x98, 0xa8, 0xb8];
const LSTAR = [Page.stubs, Page.stubs + 0x40] as const;
const STAR = [
  ((BigInt(0x78 | 3) << 16n) | BigInt(Selector.CODE0)) << 32n,
  ((BigInt(0x88 | 3) << 16n) | BigInt(Selector.CODE0)) << 32n,
] as const;
const Msr = { STAR: 0xc000_0081, LSTAR: 0xc000_0082, FMASK: 0xc000_0084, EFER: 0xc000_0080 } as const;

const u16 = (value: number) => [value & 0xff, (value >> 8) & 0xff];
const u32 = (value: number) => [...u16(value), ...u16(value >>> 16)];
const u64 = (value: bigint) => [
  ...u32(Number(value & 0xffff_ffffn)),
  ...u32(Number(BigInt.asUintN(64, value) >> 32n)),
];
const at = (address: number) => [0x25, ...u32(address)];

// Instructions.
const IRETQ = [0x48, 0xcf];
const SYSCALL = [0x0f, 0x05];
const SYSRETQ = [0x48, 0x0f, 0x07];
const movEax = (value: number) => [0xb8, ...u32(value)];
const movEcx = (value: number) => [0xb9, ...u32(value)];
const movEdx = (value: number) => [0xba, ...u32(value)];
const movEsp = (value: number) => [0xbc, ...u32(value)];
const movR11 = (value: number) => [0x41, 0xbb, ...u32(value)];
const push = (value: number) => [0x68, ...u32(value)];
const rotate = [0x49, 0xc1, 0xc6, 0x07]; // rol r14, 7
const wrmsr = (index: number, value: bigint) => [
  ...movEcx(index),
  ...movEax(Number(value & 0xffff_ffffn)),
  ...movEdx(Number(value >> 32n)),
  0x0f,
  0x30,
];
const storeByte = (address: number, value: number) => [0xc6, 0x04, ...at(address), value];
const invlpg = (address: number) => [0x0f, 0x01, 0x3c, ...at(address)];
const lgdt = (address: number) => [0x0f, 0x01, 0x14, ...at(address)];

/** r14 gets what lies on the stack, five words of it. */
const logFrame = [
  ...[0x4c, 0x33, 0x34, 0x24, ...rotate],
  ...[0x4c, 0x03, 0x74, 0x24, 8, ...rotate],
  ...[0x4c, 0x33, 0x74, 0x24, 16, ...rotate],
  ...[0x4c, 0x03, 0x74, 0x24, 24, ...rotate],
  ...[0x4c, 0x33, 0x74, 0x24, 32, ...rotate],
];
/** What snippets spoil. */
const mend = () => [
  ...TABLES.flatMap((base) => [
    ...CODES3.flatMap((selector) => storeByte(base + selector + 5, 0xfb)),
    ...STACKS3.flatMap((selector) => storeByte(base + selector + 5, 0xf3)),
    ...storeByte(Page.pt + ((base + 0x80) >> 12) * 8, 0x67),
    ...invlpg(base + 0x80),
  ]),
  ...storeByte(Page.pt + (Page.data >> 12) * 8, 0x67),
  ...invlpg(Page.data),
];

/** Bits of RFLAGS that images may have, beside 2. */
const FLAGS = [0, 0, 0, 0, 0x200, 0x200, 0x1, 0x8d5, 0x400, 0x3000, 0x3200, 0x1_0000, 0x1_0200, 0x20_0000];
const RARE_FLAGS = [0x4000, 0x100, 0x4_0000, 0x1_0100, 0x10_0000, 0x8_0000, 0x2_0000];

class Assembler {
  readonly #bytes: number[] = [];
  readonly #patches: [place: number, label: number][] = [];
  readonly #labels = new Map<number, number>();
  #next = 0;
  readonly #origin: number;
  constructor(origin: number) {
    this.#origin = origin;
  }
  put(...bytes: readonly number[]): this {
    for (const byte of bytes) this.#bytes.push(byte);
    return this;
  }
  label(): number {
    return this.#next++;
  }
  here(label: number): this {
    this.#labels.set(label, this.#origin + this.#bytes.length);
    return this;
  }
  /** The address of a label, as 32 bits. */
  address(label: number): this {
    this.#patches.push([this.#bytes.length, label]);
    return this.put(0, 0, 0, 0);
  }
  get size(): number {
    return this.#bytes.length;
  }
  /** A jump of 32 bits, whose opcode is before this. */
  relative(label: number): this {
    this.#patches.push([this.#bytes.length, ~label]);
    return this.put(0, 0, 0, 0);
  }
  done(): Uint8Array {
    const bytes = Uint8Array.from(this.#bytes);
    const view = new DataView(bytes.buffer);
    for (const [place, label] of this.#patches) {
      const target = this.#labels.get(label < 0 ? ~label : label)!;
      view.setUint32(place, label < 0 ? target - (this.#origin + place + 4) : target, true);
    }
    return bytes;
  }
}

/** Something at level 3, or at 0. */
function anywhere(random: Random, a: Assembler): void {
  const choices: readonly (() => void)[] = [
    () => a.put(0x48, 0x01, 0xd8), // add rax, rbx
    () => a.put(0x48, 0x31, 0xc2), // xor rdx, rax
    () => a.put(0x48, 0x8b, 0x04, ...at(Page.data + random.below(64) * 8)),
    () => a.put(0x48, 0x89, 0x04, ...at(Page.data + random.below(64) * 8)),
    () => a.put(0x48, 0x01, 0x04, ...at(Page.data + random.below(500) * 8 + random.below(8))),
    () => a.put(0x0f, 0x28, 0xc1), // movaps: #NM with CR0.TS
    () => a.put(0xcd, random.pick([0x40, 0x41, 0x42])),
    () => a.put(0x8c, 0xd0), // mov eax, ss
    () => a.put(0x8c, 0xc8), // mov eax, cs
    () => a.put(0x8c, 0xd8), // mov eax, ds
  ];
  random.pick(choices)();
}
function userOnly(random: Random, a: Assembler): void {
  const choices: readonly (() => void)[] = [
    () => a.put(0x9c), // pushfq
    () => a.put(0x9c, 0x9d), // and popfq
    () => a.put(0xfa), // cli: #GP but for IOPL
    () => a.put(0xfb), // sti
    () => a.put(0xf4), // hlt
    () => a.put(0x0f, 0x0b), // ud2
    () => a.put(0xcc), // int3
    () => a.put(...push(random.pick(FLAGS) | 2), 0x9d),
    () => a.put(0x8e, 0xd8), // mov ds, eax
    () => a.put(0x48, 0x8b, 0x04, ...at(0x8000_0000)),
    () => a.put(...movEsp(random.pick([Stack.user, Stack.user + 4, 0x8000_0000]))),
  ];
  random.pick(choices)();
}
function innerOnly(random: Random, a: Assembler): void {
  const choices: readonly (() => void)[] = [
    () => a.put(0xfa),
    () => a.put(0xfb),
    () => a.put(0xfa, 0xfb, 0x90),
    () => a.put(0xfa, ...push(0x202), 0x9d),
    () => a.put(0x9c, 0x8f, 0x04, ...at(Page.data + 0x100)), // pushfq; pop [data]
    () => a.put(...push(random.pick(FLAGS) | 2), 0x9d),
    () => a.put(...push(random.pick(FLAGS) | 2), 0x66, 0x9d),
    () => a.put(...push(random.pick(RARE_FLAGS) | 2), 0x9d),
    () => a.put(0x0f, 0x06), // clts
    () => a.put(0x0f, 0x20, 0xc0, 0x48, 0x83, 0xf0, 0x08, 0x0f, 0x22, 0xc0), // CR0.TS is turned over
    () => a.put(0x0f, 0x20, 0xc0, 0x48, 0x0f, 0xba, 0xf8, 18, 0x0f, 0x22, 0xc0), // and CR0.AM
    () => a.put(...wrmsr(Msr.LSTAR, BigInt(random.pick(LSTAR)))),
    () => a.put(...wrmsr(Msr.FMASK, BigInt(random.pick([0, 0x200, 0x700, 0x3700, 0x4_4700])))),
    () => a.put(...wrmsr(Msr.STAR, random.pick(STAR))),
    () => a.put(...lgdt(Page.stubs + 0x800 + 16 * random.below(2))),
    () =>
      a.put(
        ...movEax(random.pick([0, 3, Selector.DATA0, Selector.DATA3 | 3, 0x98 | 3])),
        0x8e,
        random.pick([0xd8, 0xc0, 0xe0, 0xe8]),
      ),
    () =>
      a.put(
        ...storeByte(
          random.pick(TABLES) + random.pick(CODES3) + 5,
          random.pick([0x7b, 0xf3, 0xdb, 0xff, 0xfa, 0xfb]),
        ),
      ),
    () =>
      a.put(
        ...storeByte(
          random.pick(TABLES) + random.pick(STACKS3) + 5,
          random.pick([0x73, 0xd3, 0xf1, 0xf2, 0xf3]),
        ),
      ),
    () => a.put(0x0f, 0x01, 0xf8), // swapgs
    () => {
      const page = random.pick([...TABLES.map((base) => base + 0x80), Page.data]);
      a.put(...storeByte(Page.pt + (page >> 12) * 8, 0x66), ...invlpg(page));
    },
    () => a.put(0x0f, 0x20, 0xd8, 0x0f, 0x22, 0xd8), // CR3 anew
    () => a.put(...movEax(random.pick([0, 0x10])), 0x8e, 0xd0), // mov ss, eax
    () => a.put(...mend()),
  ];
  random.pick(choices)();
}

/** Not the rarest of what may be. */
const image = (random: Random) => (random.below(12) === 0 ? random.pick(RARE_FLAGS) : random.pick(FLAGS)) | 2;

/** From level 0 to 3 and back; or to 0 by IRET. */
function round(random: Random, a: Assembler): void {
  const next = a.label();
  a.put(...movEsp(Stack.inner));
  const kind = random.below(5);
  const rsp = random.below(8) === 0 ? random.pick([Stack.user + 4, 0x7fff_0000]) : Stack.user;
  if (kind < 2) {
    const ss = random.below(10) === 0 ? random.pick([0, 3, 0x10]) : random.pick(STACKS3) | 3;
    const cs = random.pick(random.below(3) === 0 ? CODES3 : [Selector.CODE3]) | 3;
    a.put(...push(kind === 0 ? Selector.DATA3 | 3 : ss), ...push(rsp), ...push(image(random)));
    a.put(...push(cs), 0x68).address(next);
    if (random.below(30) === 0) a.put(0xc6, 0x44, 0x24, 6, 0x90); // not canonical
    a.put(...IRETQ);
  } else if (kind === 2) {
    a.put(
      ...push(random.pick([0, 0, Selector.DATA0, Selector.OTHER0])),
      ...push(Stack.inner),
      ...push(image(random)),
    );
    a.put(...push(Selector.CODE0), 0x68)
      .address(next)
      .put(...IRETQ)
      .here(next);
    for (let i = random.below(3); i > 0; i--) anywhere(random, a);
    return;
  } else {
    a.put(...movR11(image(random)), 0xb9).address(next);
    if (random.below(30) === 0) a.put(0x48, 0x0f, 0xba, 0xe9, 0x30); // bts rcx, 48
    a.put(...SYSRETQ);
  }
  a.here(next);
  for (let i = random.below(4); i > 0; i--) (random.below(4) === 0 ? userOnly : anywhere)(random, a);
  a.put(...SYSCALL);
}

function program(random: Random, sections: number): Uint8Array {
  const a = new Assembler(Page.code);
  const start = a.label();
  a.here(start);
  for (let i = 0; i < sections && a.size < 0xe000; i++) {
    const after = a.label();
    const again = a.label();
    a.put(0x41, 0xbf)
      .address(after)
      .put(...movEsp(Stack.inner));
    for (let n = random.below(3); n > 0; n--) innerOnly(random, a);
    a.put(0xbd, ...u32(random.pick([1, 1, 3, 20, 60]))).here(again); // mov ebp
    for (let n = 1 + random.below(3); n > 0; n--) {
      round(random, a);
      if (random.below(3) === 0) innerOnly(random, a);
    }
    a.put(0xff, 0xcd, 0x0f, 0x85).relative(again).here(after); // dec ebp; jnz
  }
  a.put(0xe9).relative(start);
  return a.done();
}

/** A machine that executes the program of a seed. */
export function kernelMachine(seed: number, tier: Tier, vendor: 'intel' | 'amd', sections = 24): Machine {
  const machine = new Machine({ vendor });
  const { cpu } = machine;
  cpu.code.tier = tier;
  machine.long(0);
  const place = (address: number, bytes: readonly number[] | Uint8Array) =>
    machine.arena.views.u8.set(bytes, machine.ram + address);
  machine.set64(Page.pd, BigInt(Page.pt) | 7n);
  for (let page = 0; page < 512; page++) machine.set64(Page.pt + page * 8, BigInt(page << 12) | 0x67n);
  for (const [which, base] of TABLES.entries()) {
    const code = (level: number) => descriptor(0, 0xf_ffff, 0x9b | (level << 5), 0xa | (level & which));
    const data = (level: number) => descriptor(0, 0xf_ffff, 0x93 | (level << 5), 0xc | (level & which));
    machine.set64(base + Selector.CODE0, code(0));
    machine.set64(base + Selector.DATA0, data(0));
    machine.set64(base + Selector.OTHER0, data(0));
    machine.set64(base + Selector.TSS, descriptor(Page.tss, 0x67, 0x8b, 0));
    for (const selector of CODES3) machine.set64(base + selector, code(3));
    for (const selector of STACKS3) machine.set64(base + selector, data(3));
    place(Page.stubs + 0x800 + 16 * which, [...u16(GDT_LIMIT), ...u64(BigInt(base))]);
  }
  cpu.gdtr = { base: BigInt(TABLES[0]), limit: GDT_LIMIT };
  cpu.tr = { ...cpu.tr, selector: Selector.TSS, base: BigInt(Page.tss), limit: 0x67, type: 11, s: 0 };
  machine.set64(Page.tss + 4, BigInt(Stack.rsp0));
  machine.set64(Page.tss + 36, BigInt(Stack.ist));
  machine.set64(Page.tss + 44, BigInt(Stack.ist) + 0x4018n);

  const logged = Page.stubs + 0x100;
  const recovers = Page.stubs + 0x200;
  const steps = Page.stubs + 0x180;
  place(LSTAR[0], [0x4d, 0x31, 0xde, ...rotate, 0xff, 0xe1]); // xor r14, r11; rol; jmp rcx
  place(LSTAR[1], [0x4d, 0x01, 0xde, ...rotate, 0xff, 0xe1]);
  place(logged, [...logFrame, ...IRETQ]);
  // TF is over.
  place(steps, [...logFrame, 0x81, 0x64, 0x24, 16, ...u32(~0x100 >>> 0), ...IRETQ]);
  place(recovers, [...logFrame, ...mend(), ...movEsp(Stack.inner), 0x41, 0xff, 0xe7]); // jmp r15
  for (let vector = 0; vector < 0x50; vector++) {
    const soft = vector >= 0x40 || vector === 3;
    const target = soft || vector === 2 ? logged : vector === 1 ? steps : recovers;
    const ist = vector === 0x41 ? 2 : soft ? 0 : vector === 2 ? 2 : 1;
    const access = vector === 0x42 ? 0xee : 0xef;
    machine.set64(Page.idt + vector * 16, gate(Selector.CODE0, target, access) | (BigInt(ist) << 32n));
    machine.set64(Page.idt + vector * 16 + 8, 0n);
  }
  cpu.idtr = { base: BigInt(Page.idt), limit: 0x4ff };
  cpu.cr4 |= CR4.OSFXSR;
  cpu.efer = EFER.LME | EFER.LMA | EFER.NXE | EFER.SCE;
  cpu.msrs.set(Msr.STAR, STAR[0]);
  cpu.msrs.set(Msr.LSTAR, BigInt(LSTAR[0]));
  cpu.msrs.set(Msr.FMASK, 0x4_4700n);
  place(Page.code, program(new Random(seed), sections));
  machine.rsp = Stack.inner;
  cpu.state.rip = BigInt(Page.code);
  cpu.changed();
  cpu.flushTlb();
  cpu.enter(true);
  return machine;
}
