/** A guest whose handler of #DB says where each came. */
import { Exit, Selector } from '../../src/index.ts';
import { viewOf } from '../../src/uapi/index.ts';
import { type Guest, guest } from '../../src/vmm/guest.ts';
import { type Agent, Layout } from './agent.ts';
import { DEADLINE_MS } from './limits.ts';
import { expectOutcome } from './run.ts';

export const At = {
  idt: Layout.free,
  gdt: Layout.free + 0x1000,
  tss: Layout.free + 0x2000,
  handlers: Layout.free + 0x3000,
  stack: Layout.free + 0x5000,
} as const;
const HANDLER_SIZE = 16;
/** Where the handler of a vector lies. */
export const handlerOf = (vector: number) => At.handlers + vector * HANDLER_SIZE;
/** Another interrupt; and the one by which code of privilege 3 ends a case. */
const INTERRUPT = 0x81;
export const END = 0x80;
export const TF = 0x100n;
const RF = 0x1_0000n;
export const MSR = {
  SYSENTER_CS: 0x174,
  SYSENTER_ESP: 0x175,
  SYSENTER_EIP: 0x176,
  STAR: 0xc000_0081,
  LSTAR: 0xc000_0082,
  FMASK: 0xc000_0084,
} as const;

const handlers = {
  1: guest(
    64,
    `
 e6 f1 48 cf | out 0xf1, al; iretq
`,
  ),
  6: guest(
    64,
    `
 f4 | hlt
`,
  ),
  [INTERRUPT]: guest(
    64,
    `
 90 48 cf | nop; iretq
`,
  ),
  [END]: guest(
    64,
    `
 f4 | hlt
`,
  ),
} as const;

/** Tables with which the guest can go to privilege 3, by SYSRET to code of 64 bits, and come back. */
export function prepare({ ram, vcpu }: Agent): void {
  const view = viewOf(ram.bytes);
  const descriptors = [
    0n,
    0x00af_9b00_0000_ffffn,
    0x00cf_9300_0000_ffffn,
    0n,
    0x00cf_f300_0000_ffffn,
    0x00af_fb00_0000_ffffn,
  ];
  for (const [i, descriptor] of descriptors.entries()) view.setBigUint64(At.gdt + 8 * i, descriptor, true);
  view.setBigUint64(At.tss + 4, BigInt(At.stack), true); // RSP0
  for (const [vector, { code }] of Object.entries(handlers)) {
    const address = handlerOf(Number(vector));
    const gate = At.idt + 16 * Number(vector);
    ram.bytes.set(code, address);
    view.setUint16(gate, address & 0xffff, true);
    view.setUint16(gate + 2, Selector.CODE64, true);
    view.setUint16(gate + 4, 0xee00, true);
    view.setUint16(gate + 6, address >>> 16, true);
  }
  const sregs = vcpu.getSregs();
  const tss = { base: BigInt(At.tss), limit: 0x67, selector: 0x30, type: 11, present: 1, s: 0, unusable: 0 };
  vcpu.setSregs({
    ...sregs,
    gdt: { base: BigInt(At.gdt), limit: 8 * 8 - 1 },
    idt: { base: BigInt(At.idt), limit: 0xfff },
    tr: { ...sregs.tr, ...tss, dpl: 0, db: 0, g: 0, l: 0, avl: 0 },
  });
  // SYSRET loads 0x18 + 16 and 0x18 + 8; SYSCALL 8 and 16.
  vcpu.setMsrs([{ index: MSR.STAR, data: 0x0018_0008_0000_0000n }]);
}

/** The offsets to which each #DB returns, with DR6's bits that it brought; in the end the guest halts. */
export function debugExceptions(
  agent: Agent,
  code: Guest,
  regs: Record<string, number | bigint> = {},
): string[] {
  prepare(agent);
  return steppedThrough(agent, code, regs);
}
/** The same, of a guest that has such handlers. Their stack has words of the code's size. */
export function steppedThrough(
  { ram, vcpu }: Pick<Agent, 'ram' | 'vcpu'>,
  { code, bits }: Guest,
  regs: Record<string, number | bigint> = {},
): string[] {
  ram.bytes.set(code, Layout.snippet);
  vcpu.setRegs({ rip: Layout.snippet, rsp: Layout.stack, rflags: 2, ...regs });
  const found: string[] = [];
  while (vcpu.run(DEADLINE_MS) === Exit.IO && found.length < 20) {
    const frame = viewOf(ram.bytes);
    const rsp = Number(vcpu.getRegs().rsp);
    const rip = bits === 64 ? Number(frame.getBigUint64(rsp, true)) : frame.getUint32(rsp, true);
    const debug = vcpu.getDebugRegs();
    // Past a breakpoint on code.
    if ((debug.dr6 & 15n) !== 0n) frame.setBigUint64(rsp + 16, frame.getBigUint64(rsp + 16, true) | RF, true);
    found.push(`${rip - Layout.snippet} ${(debug.dr6 & 0xe00fn).toString(16)}`);
    vcpu.setDebugRegs({ ...debug, dr6: 0xffff_0ff0n });
  }
  expectOutcome(vcpu, Exit.HLT);
  return found;
}
