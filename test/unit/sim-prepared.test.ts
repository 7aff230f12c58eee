/** What the build prepares of the simulator: what iced-x86 and the lowerings say of the same instructions. */
import { describe, expect, it } from 'vitest';
import { Exit, enterRealMode, Hypervisor } from '../../src/index.ts';
import { loadIced } from '../../src/open.ts';
import type { Insn } from '../../src/sim/cpu/processor/insn.ts';
import { Decoder, type Iced } from '../../src/sim/cpu/translate/decode.ts';
import { Encoding } from '../../src/sim/cpu/translate/forms.ts';
import { FAMILIES } from '../../src/sim/cpu/translate/prepare.ts';
import { Prepared } from '../../src/sim/cpu/translate/prepared.ts';
import { simBackend } from '../../src/sim/index.ts';
import { absentFeatures } from '../../src/sim/kernel/host/cpu-model.ts';
import { templates } from '../../src/sim/prepare.ts';
import { randomOf } from './sim-fp-machine.ts';

const SEED = Number(process.env.VMEXIT_SEED ?? 1);
const RIP = 0x12_3456_7000n;
const file = templates(loadIced());
const prepared = new Prepared((start, length) => file.slice(start, start + length));

/** The form of MOV of 64 bits between registers. */
const MOV = formOf(Uint8Array.of(0x48, 0x8b, 0xc1));
function formOf(bytes: Uint8Array): number {
  const encoding = new Encoding();
  encoding.read(bytes, 0, bytes.length, 64, 0, 0);
  return encoding.form;
}

/** Bytes of which most are an instruction of a common form. */
function randomBytes({ below, pick }: ReturnType<typeof randomOf>, bits: number): Uint8Array {
  const bytes = new Uint8Array(24);
  let at = 0;
  if (below(3) === 0) bytes[at++] = pick([0x66, 0x67, 0xf0, 0xf2, 0xf3, 0x2e, 0x36, 0x3e, 0x26, 0x64, 0x65]);
  if (bits === 64 && below(2) === 0) bytes[at++] = 0x40 + below(16);
  if (below(3) === 0) bytes[at++] = 0x0f;
  for (; at < bytes.length; at++) bytes[at] = pick([below(256), below(256), 0x05, 0x25, 0x24, 0xc0]);
  return bytes;
}

describe.each([16, 32, 64] as const)('the patterns of %i-bit code', (bits) => {
  it.each([
    ['amd', 'max'],
    ['amd', 'x86-64-v2'],
    ['intel', 'max'],
    ['intel', 'x86-64-v1'],
  ] as const)('are what iced-x86 says of the instructions (%s, %s)', (vendor, cpu) => {
    const decoder = new Decoder(loadIced, vendor, absentFeatures(cpu, vendor), prepared);
    const oracle = new Decoder(loadIced, vendor, absentFeatures(cpu, vendor));
    const random = randomOf(SEED * 7 + bits);
    const encoding = new Encoding();
    const rip = bits === 64 ? RIP : 0x1000n;
    let known = 0;
    for (let i = 0; i < 20_000; i++) {
      const bytes = randomBytes(random, bits);
      if (!encoding.read(bytes, 0, bytes.length, bits, Number(rip & 0xffff_ffffn) | 0, Number(rip >> 32n)))
        continue;
      if (decoder.pattern(bits, encoding.form) === undefined) continue;
      known++;
      const [insn] = decoder.decode(bytes, bits, rip, () => false);
      const asked = oracle.ask(bytes, 0, bits, rip);
      // FOP is the x87's; the segment beside the operands is that of string instructions, which have no other.
      const isString = /^(movs|cmps|stos|lods|scas|ins|outs)[bwdq]$/.test((asked as Insn).mnemonic);
      const plain = (of: unknown) => ({ ...(of as Insn), fop: 0, ...(isString ? {} : { segment: 0 }) });
      expect(plain(insn), Buffer.from(bytes).toString('hex')).toEqual(plain(asked));
    }
    expect(known).toBeGreaterThan(bits === 16 ? 500 : 2000);
  });
});

describe('a guest', () => {
  it('comes to its first exit without iced-x86', () => {
    const refuses = (): Iced => {
      throw new Error('iced-x86 was asked for');
    };
    using hv = new Hypervisor(simBackend({ iced: refuses, prepared }));
    const vm = hv.createVm();
    const memory = vm.allocate(65_536);
    vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memory });
    memory.write(0x1000, Uint8Array.of(0xe6, 0x80, 0xf4)); // out 0x80, al; hlt
    const vcpu = vm.createVcpu(0);
    enterRealMode(vcpu);
    vcpu.setRegs({ rip: 0x1000n, rflags: 2n });
    expect(vcpu.run(1000)).toBe(Exit.IO);
    expect(vcpu.run(1000)).toBe(Exit.HLT);
  });
});

describe('what is prepared', () => {
  it('is some of each family', () => {
    for (const family of FAMILIES) {
      const found = prepared.family(family)!;
      expect(found.functions).toBeGreaterThan(500);
      expect(found.module).toBeDefined();
    }
  });

  it('is nothing where there is no file, and no more where another is in its place', () => {
    const none = new Prepared(() => undefined);
    expect(none.family(FAMILIES[0]!)).toBeUndefined();
    expect(none.pattern(64, MOV)).toBeUndefined();

    const replaced = file.slice();
    const other = new Prepared((start, length) => replaced.slice(start, start + length));
    expect(other.pattern(64, MOV)?.code).toBe('Mov_r64_rm64');
    expect(other.family(FAMILIES[0]!)?.form(MOV, true)).toBeDefined();
    replaced[0]! ^= 1;
    expect(other.family(FAMILIES[1]!)?.form(MOV, true)).toBeUndefined();
    expect(other.pattern(32, MOV)).toBeUndefined();
    expect(other.pattern(64, MOV)?.code).toBe('Mov_r64_rm64');
  });
});
