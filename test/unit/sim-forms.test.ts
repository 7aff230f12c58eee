/** The encodings that are decoded without iced-x86, which is their oracle: what they have a record of, it sees too. */
import * as iced from 'iced-x86';
import { describe, expect, it } from 'vitest';
import type { Iced } from '../../src/sim/cpu/translate/decode.ts';
import { Encoding } from '../../src/sim/cpu/translate/forms.ts';
import { randomOf } from './sim-fp-machine.ts';

const { Decoder, DecoderError, DecoderOptions, OpKind } = iced as unknown as Iced;
const RIP = 0x12_3456_7000n;
const SEED = Number(process.env.VMEXIT_SEED ?? 1);

/** Bytes of which most are some instruction: prefixes now and then, opcodes of both maps. */
function randomBytes({ below, pick }: ReturnType<typeof randomOf>): Uint8Array {
  const bytes = new Uint8Array(24);
  let at = 0;
  while (below(3) === 0)
    bytes[at++] = pick([0x66, 0x67, 0xf0, 0xf2, 0xf3, 0x2e, 0x36, 0x3e, 0x26, 0x64, 0x65]);
  if (below(2) === 0) bytes[at++] = 0x40 + below(16);
  if (below(3) === 0) bytes[at++] = 0x0f;
  for (; at < bytes.length; at++) bytes[at] = pick([below(256), below(256), 0x05, 0x25, 0x24, 0xc0]);
  return bytes;
}

describe.each([16, 32, 64] as const)('encodings of %i-bit code', (bits) => {
  it('are as long as iced-x86 says, with the displacement, the immediate and the target that it sees', () => {
    const random = randomOf(SEED * 3 + bits);
    const encoding = new Encoding();
    const rip = bits === 64 ? RIP : RIP & 0xffffn;
    let known = 0;
    for (let i = 0; i < 60_000; i++) {
      const bytes = randomBytes(random);
      const low = Number(rip & 0xffff_ffffn) | 0;
      if (!encoding.read(bytes, 0, bytes.length, bits, low, Number(rip >> 32n))) continue;
      const decoder = new Decoder(bits, bytes, DecoderOptions.None);
      decoder.ip = rip;
      const insn = decoder.decode();
      const shown = `${Buffer.from(bytes.subarray(0, 15)).toString('hex')} (VMEXIT_SEED=${SEED})`;
      // What is none is found out when its form is met for the first time.
      if (insn.isInvalid) expect(decoder.lastError, shown).not.toBe(DecoderError.NoMoreBytes);
      else {
        known++;
        expect(encoding.length, shown).toBe(insn.length);
        const joined = (high: number, rest: number) => (BigInt(high >>> 0) << 32n) | BigInt(rest >>> 0);
        const next = bits === 64 ? insn.nextIP : BigInt.asUintN(32, insn.nextIP);
        expect(joined(encoding.nextHigh, encoding.nextLow), shown).toBe(next);
        for (let operand = 0; operand < insn.opCount; operand++) {
          const kind = insn.opKind(operand);
          if (kind === OpKind.Memory) {
            const displacement = insn.isIpRelMemoryOperand
              ? insn.ipRelMemoryAddress
              : BigInt.asUintN(64, BigInt.asIntN(bits === 64 ? 64 : 32, insn.memoryDisplacementU64));
            expect(joined(encoding.high, encoding.low), shown).toBe(displacement);
          }
          if (OpKind[kind].startsWith('NearBranch'))
            expect(joined(encoding.immHigh, encoding.immLow), shown).toBe(insn.nearBranchTarget);
        }
      }
      insn.free();
      decoder.free();
    }
    expect(known).toBeGreaterThan(5000);
  });
});
