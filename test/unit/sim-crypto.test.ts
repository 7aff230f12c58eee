/**
 * AES, PCLMULQDQ and SHA by the examples of their standards: FIPS 197, FIPS 180-4's with the messages of NIST's examples, and GHASH
 * and the multiplication of polynomials by their definitions. Guests execute the instructions, in each tier and on the host's KVM.
 */
import { createCipheriv, createHash } from 'node:crypto';
import { existsSync, readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { type Hypervisor, openHypervisor } from '../../src/index.ts';
import { type Guest, guest } from '../../src/vmm/guest.ts';
import { Agent, Layout } from '../support/agent.ts';
import { on } from '../support/host.ts';

const DATA = Layout.free;
const OSFXSR = 0x600n;

/** Executes code at privilege 3 with bytes at RDI; gives as many bytes of what is there then. */
function execute(hv: Hypervisor, code: Guest, input: Uint8Array, regs: object = {}): Uint8Array {
  using agent = Agent.boot(hv, { privilege: 3 });
  agent.vcpu.changeSregs({ cr4: agent.vcpu.getSregs().cr4 | OSFXSR });
  agent.ram.write(DATA, input);
  agent.beginCode(code, { rdi: DATA, ...regs });
  agent.answer;
  return agent.ram.read(DATA, input.length);
}
const bytes = (hex: string) => Uint8Array.from(Buffer.from(hex.replaceAll(' ', ''), 'hex'));
const hex = (from: Uint8Array) => Buffer.from(from).toString('hex');

/** RCX rounds but the last with the keys from [rdi + 16] on: the block at [rdi]. */
const encrypt = guest(
  64,
  `
 f3 0f 6f 07    | movdqu xmm0, [rdi]
 48 8d 77 10    | lea rsi, [rdi + 16]
 f3 0f 6f 0e    | movdqu xmm1, [rsi]
 66 0f ef c1    | pxor xmm0, xmm1
 48 83 c6 10    | round: add rsi, 16
 f3 0f 6f 0e    | movdqu xmm1, [rsi]
 66 0f 38 dc c1 | aesenc xmm0, xmm1
 ff c9          | dec ecx
 75 ef          | jnz round
 f3 0f 6f 4e 10 | movdqu xmm1, [rsi + 16]
 66 0f 38 dd c1 | aesenclast xmm0, xmm1
 f3 0f 7f 07    | movdqu [rdi], xmm0
 c3             | ret
`,
);
/** The equivalent inverse cipher: the keys backwards, those between by AESIMC. */
const decrypt = guest(
  64,
  `
 f3 0f 6f 07    | movdqu xmm0, [rdi]
 89 c8          | mov eax, ecx
 c1 e0 04       | shl eax, 4
 48 8d 74 07 20 | lea rsi, [rdi + rax + 32]
 f3 0f 6f 0e    | movdqu xmm1, [rsi]
 66 0f ef c1    | pxor xmm0, xmm1
 48 83 ee 10    | round: sub rsi, 16
 f3 0f 6f 0e    | movdqu xmm1, [rsi]
 66 0f 38 db d1 | aesimc xmm2, xmm1
 66 0f 38 de c2 | aesdec xmm0, xmm2
 ff c9          | dec ecx
 75 ea          | jnz round
 f3 0f 6f 4e f0 | movdqu xmm1, [rsi - 16]
 66 0f 38 df c1 | aesdeclast xmm0, xmm1
 f3 0f 7f 07    | movdqu [rdi], xmm0
 c3             | ret
`,
);
/** Key words W[4..7] of AES-128 from W[0..3] at [rdi], with the first constant: [rdi + 16]. */
const expandKey = guest(
  64,
  `
 f3 0f 6f 0f       | movdqu xmm1, [rdi]
 66 0f 3a df d1 01 | aeskeygenassist xmm2, xmm1, 1
 f3 0f 7f 57 20    | movdqu [rdi + 32], xmm2
 66 0f 70 d2 ff    | pshufd xmm2, xmm2, 0xff
 66 0f 6f d9       | movdqa xmm3, xmm1
 66 0f 73 fb 04    | pslldq xmm3, 4
 66 0f ef cb       | pxor xmm1, xmm3
 66 0f 73 fb 04    | pslldq xmm3, 4
 66 0f ef cb       | pxor xmm1, xmm3
 66 0f 73 fb 04    | pslldq xmm3, 4
 66 0f ef cb       | pxor xmm1, xmm3
 66 0f ef ca       | pxor xmm1, xmm2
 f3 0f 7f 4f 10    | movdqu [rdi + 16], xmm1
 c3                | ret
`,
);
const products = guest(
  64,
  `
 f3 0f 6f 27       | movdqu xmm4, [rdi]
 f3 0f 6f 6f 10    | movdqu xmm5, [rdi + 16]
 66 0f 6f c4       | movdqa xmm0, xmm4
 66 0f 3a 44 c5 00 | pclmulqdq xmm0, xmm5, 0x00
 f3 0f 7f 47 20    | movdqu [rdi + 32], xmm0
 66 0f 6f c4       | movdqa xmm0, xmm4
 66 0f 3a 44 c5 01 | pclmulqdq xmm0, xmm5, 0x01
 f3 0f 7f 47 30    | movdqu [rdi + 48], xmm0
 66 0f 6f c4       | movdqa xmm0, xmm4
 66 0f 3a 44 c5 10 | pclmulqdq xmm0, xmm5, 0x10
 f3 0f 7f 47 40    | movdqu [rdi + 64], xmm0
 66 0f 6f c4       | movdqa xmm0, xmm4
 66 0f 3a 44 c5 ff | pclmulqdq xmm0, xmm5, 0xff
 f3 0f 7f 47 50    | movdqu [rdi + 80], xmm0
 c3                | ret
`,
);
/**
 * One block of SHA-256: the state ABEF at [rdi], CDGH at [rdi + 16], sixteen words of the message at [rdi + 32], the constants at
 * [rdi + 96]. RSI goes over the constants; four words of the schedule are in xmm3 to xmm6, which change places.
 */
const sha256 = guest(
  64,
  `
 f3 0f 6f 0f       | movdqu xmm1, [rdi]
 f3 0f 6f 57 10    | movdqu xmm2, [rdi + 16]
 f3 0f 6f 5f 20    | movdqu xmm3, [rdi + 32]
 f3 0f 6f 67 30    | movdqu xmm4, [rdi + 48]
 f3 0f 6f 6f 40    | movdqu xmm5, [rdi + 64]
 f3 0f 6f 77 50    | movdqu xmm6, [rdi + 80]
 48 8d 77 60       | lea rsi, [rdi + 96]
 b9 10 00 00 00    | mov ecx, 16
 f3 0f 6f 06       | rounds: movdqu xmm0, [rsi]
 66 0f fe c3       | paddd xmm0, xmm3
 0f 38 cb d1       | sha256rnds2 xmm2, xmm1, xmm0
 66 0f 70 c0 0e    | pshufd xmm0, xmm0, 0x0e
 0f 38 cb ca       | sha256rnds2 xmm1, xmm2, xmm0
 0f 38 cc dc       | sha256msg1 xmm3, xmm4
 66 0f 6f fe       | movdqa xmm7, xmm6
 66 0f 3a 0f fd 04 | palignr xmm7, xmm5, 4
 66 0f fe df       | paddd xmm3, xmm7
 0f 38 cd de       | sha256msg2 xmm3, xmm6
 66 0f 6f fb       | movdqa xmm7, xmm3
 66 0f 6f dc       | movdqa xmm3, xmm4
 66 0f 6f e5       | movdqa xmm4, xmm5
 66 0f 6f ee       | movdqa xmm5, xmm6
 66 0f 6f f7       | movdqa xmm6, xmm7
 48 83 c6 10       | add rsi, 16
 ff c9             | dec ecx
 75 b9             | jnz rounds
 f3 0f 6f 3f       | movdqu xmm7, [rdi]
 66 0f fe cf       | paddd xmm1, xmm7
 f3 0f 7f 0f       | movdqu [rdi], xmm1
 f3 0f 6f 7f 10    | movdqu xmm7, [rdi + 16]
 66 0f fe d7       | paddd xmm2, xmm7
 f3 0f 7f 57 10    | movdqu [rdi + 16], xmm2
 c3                | ret
`,
);
/**
 * One block of SHA-1: ABCD at [rdi], E in the top of [rdi + 16], the message, the first word the highest, from [rdi + 32] on. Four
 * times five times four rounds, of which each five have their function.
 */
const sha1 = guest(
  64,
  `
 f3 0f 6f 07    | movdqu xmm0, [rdi]
 f3 0f 6f 4f 10 | movdqu xmm1, [rdi + 16]
 f3 0f 6f 5f 20 | movdqu xmm3, [rdi + 32]
 f3 0f 6f 67 30 | movdqu xmm4, [rdi + 48]
 f3 0f 6f 6f 40 | movdqu xmm5, [rdi + 64]
 f3 0f 6f 77 50 | movdqu xmm6, [rdi + 80]
 31 c0          | xor eax, eax
 66 0f fe cb    | paddd xmm1, xmm3
 66 0f 6f d0    | rounds: movdqa xmm2, xmm0
 83 f8 05       | cmp eax, 5
 72 11          | jb choose
 83 f8 0a       | cmp eax, 10
 72 13          | jb parity
 83 f8 0f       | cmp eax, 15
 72 15          | jb majority
 0f 3a cc c1 03 | sha1rnds4 xmm0, xmm1, 3
 eb 13          | jmp next
 0f 3a cc c1 00 | choose: sha1rnds4 xmm0, xmm1, 0
 eb 0c          | jmp next
 0f 3a cc c1 01 | parity: sha1rnds4 xmm0, xmm1, 1
 eb 05          | jmp next
 0f 3a cc c1 02 | majority: sha1rnds4 xmm0, xmm1, 2
 66 0f 6f ca    | next: movdqa xmm1, xmm2
 0f 38 c9 dc    | sha1msg1 xmm3, xmm4
 66 0f ef dd    | pxor xmm3, xmm5
 0f 38 ca de    | sha1msg2 xmm3, xmm6
 66 0f 6f fb    | movdqa xmm7, xmm3
 66 0f 6f dc    | movdqa xmm3, xmm4
 66 0f 6f e5    | movdqa xmm4, xmm5
 66 0f 6f ee    | movdqa xmm5, xmm6
 66 0f 6f f7    | movdqa xmm6, xmm7
 ff c0          | inc eax
 83 f8 14       | cmp eax, 20
 74 06          | je end
 0f 38 c8 cb    | sha1nexte xmm1, xmm3
 eb a2          | jmp rounds
 f3 0f 6f 7f 10 | end: movdqu xmm7, [rdi + 16]
 0f 38 c8 cf    | sha1nexte xmm1, xmm7
 f3 0f 7f 4f 10 | movdqu [rdi + 16], xmm1
 f3 0f 6f 3f    | movdqu xmm7, [rdi]
 66 0f fe c7    | paddd xmm0, xmm7
 f3 0f 7f 07    | movdqu [rdi], xmm0
 c3             | ret
`,
);

/** FIPS 197's keys, made of its definition by the host's cipher: encrypting in ECB is all that is asked of it. */
const aesBlock = (key: Uint8Array, block: Uint8Array) =>
  Uint8Array.from(
    createCipheriv(`aes-${key.length * 8}-ecb`, key, null)
      .setAutoPadding(false)
      .update(block),
  );

/** FIPS 197, 5.2, with the S-box of its definition (5.1.1): the inverse in GF(2^8), then the affine transformation. */
const SBOX = (() => {
  const times = (a: number, b: number) => {
    let product = 0;
    for (let i = 0; i < 8; i++, b >>= 1) {
      if (b & 1) product ^= a;
      a = (a << 1) ^ (a & 0x80 ? 0x11b : 0);
    }
    return product;
  };
  return Array.from({ length: 256 }, (_, byte) => {
    const inverse = Array.from({ length: 256 }, (_, i) => i).find((i) => times(byte, i) === 1) ?? 0;
    const rotated = [0, 1, 2, 3, 4].map((by) => ((inverse << by) | (inverse >> (8 - by))) & 0xff);
    return rotated.reduce((sum, one) => sum ^ one, 0x63);
  });
})();
function schedule(key: Uint8Array): Uint8Array {
  const words = key.length / 4;
  const rounds = words + 6;
  const out = new Uint8Array(16 * (rounds + 1));
  out.set(key);
  let constant = 1;
  for (let i = words; i < 4 * (rounds + 1); i++) {
    let word = [...out.subarray(4 * i - 4, 4 * i)];
    if (i % words === 0) {
      word = [...word.slice(1), word[0]!].map((byte) => SBOX[byte]!);
      word[0]! ^= constant;
      constant = (constant << 1) ^ (constant & 0x80 ? 0x11b : 0);
    } else if (words > 6 && i % words === 4) word = word.map((byte) => SBOX[byte]!);
    for (let j = 0; j < 4; j++) out[4 * i + j] = out[4 * (i - words) + j]! ^ word[j]!;
  }
  return out;
}

/** FIPS 180-4, 5.1.1: one block. */
function padded(message: string): Uint8Array {
  const block = new Uint8Array(64);
  block.set(Buffer.from(message));
  block[message.length] = 0x80;
  new DataView(block.buffer).setUint32(60, message.length * 8);
  return block;
}
/** The first 32 bits of the fractional parts of the cube roots of the first 64 primes, and of square roots (4.2.2, 5.3.3). */
const primes = Array.from({ length: 312 }, (_, i) => i).filter(
  (n) => n > 1 && !Array.from({ length: n }, (_, i) => i).some((d) => d > 1 && n % d === 0),
);
function rootBits(prime: number, power: 2n | 3n): number {
  const scaled = BigInt(prime) << (32n * power);
  let root = 0n;
  for (let bit = 36n; bit >= 0n; bit--) if ((root | (1n << bit)) ** power <= scaled) root |= 1n << bit;
  return Number(root & 0xffff_ffffn);
}
const words = (values: readonly number[]) => new Uint8Array(Uint32Array.from(values).buffer);
const big = (block: Uint8Array) =>
  Array.from({ length: block.length / 4 }, (_, i) =>
    new DataView(block.buffer, block.byteOffset).getUint32(4 * i),
  );

function sha256Of(hv: Hypervisor, message: string): string {
  const [a, b, c, d, e, f, g, h] = primes.slice(0, 8).map((prime) => rootBits(prime, 2n)) as number[];
  const constants = primes.slice(0, 64).map((prime) => rootBits(prime, 3n));
  const input = words([f!, e!, b!, a!, h!, g!, d!, c!, ...big(padded(message)), ...constants]);
  const out = new Uint32Array(execute(hv, sha256, input).slice(0, 32).buffer);
  const [f1, e1, b1, a1, h1, g1, d1, c1] = out as unknown as number[];
  return [a1, b1, c1, d1, e1, f1, g1, h1].map((word) => word!.toString(16).padStart(8, '0')).join('');
}
function sha1Of(hv: Hypervisor, message: string): string {
  const state = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476, 0xc3d2_e1f0];
  const groups = [0, 4, 8, 12].flatMap((from) =>
    big(padded(message))
      .slice(from, from + 4)
      .reverse(),
  );
  const input = words([...state.slice(0, 4).reverse(), 0, 0, 0, state[4]!, ...groups]);
  const out = new Uint32Array(execute(hv, sha1, input).slice(0, 32).buffer);
  return [out[3], out[2], out[1], out[0], out[7]].map((word) => word!.toString(16).padStart(8, '0')).join('');
}

/** A product of polynomials over GF(2), as the SDM defines it. */
function product(a: bigint, b: bigint): bigint {
  let sum = 0n;
  for (let bit = 0n; bit < 64n; bit++) if ((b >> bit) & 1n) sum ^= a << bit;
  return sum;
}

/** FIPS 197, appendix C. */
const PLAIN = bytes('00112233445566778899aabbccddeeff');
const AES = [
  ['128', '000102030405060708090a0b0c0d0e0f', '69c4e0d86a7b0430d8cdb78070b4c55a'],
  ['192', '000102030405060708090a0b0c0d0e0f1011121314151617', 'dda97ca4864cdfe06eaf70a0ec0d7191'],
  [
    '256',
    '000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f',
    '8ea2b7ca516745bfeafc49904b496089',
  ],
] as const;
/** Of NIST's examples for FIPS 180-4, those of one block; and what else one block can have. */
const SHA = {
  abc: [
    'a9993e364706816aba3e25717850c26c9cd0d89d',
    'ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad',
  ],
  '': [
    'da39a3ee5e6b4b0d3255bfef95601890afd80709',
    'e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855',
  ],
} as const;

const cases: { readonly [name: string]: (hv: Hypervisor) => void } = {
  'AES enciphers and deciphers the examples of FIPS 197, appendix C': (hv) => {
    for (const [, key, cipher] of AES) {
      const keys = schedule(bytes(key));
      const rounds = keys.length / 16 - 1;
      const run = (code: Guest, block: Uint8Array) =>
        hex(execute(hv, code, Uint8Array.of(...block, ...keys), { rcx: rounds - 1 }).subarray(0, 16));
      expect(run(encrypt, PLAIN)).toBe(cipher);
      expect(hex(aesBlock(bytes(key), PLAIN))).toBe(cipher);
      expect(run(decrypt, bytes(cipher))).toBe(hex(PLAIN));
    }
  },
  'AESKEYGENASSIST expands the key of FIPS 197, appendix A.1': (hv) => {
    const key = bytes('2b7e151628aed2a6abf7158809cf4f3c');
    const out = execute(hv, expandKey, Uint8Array.of(...key, ...new Uint8Array(32)));
    expect(hex(out.subarray(16, 32))).toBe('a0fafe1788542cb123a339392a6c7605');
    // From W[3]: SubWord, and RotWord of that with the constant (SDM volume 2); A.1 has the same as 'After SubWord()' and Rcon.
    expect(hex(out.subarray(40, 44))).toBe(
      hex(Uint8Array.from([0x09, 0xcf, 0x4f, 0x3c], (byte) => SBOX[byte]!)),
    );
    expect(hex(out.subarray(44, 48))).toBe('8b84eb01');
  },
  'PCLMULQDQ multiplies polynomials, of the halves that it is told': (hv) => {
    const [a, b] = [
      [0x63746f725d53475dn, 0x7b5b54657374566cn],
      [0x5b477565726f6e5dn, 0x4869285368617929n],
    ] as const;
    const input = new Uint8Array(96);
    input.set(new Uint8Array(BigUint64Array.from([...a, ...b]).buffer));
    const out = new BigUint64Array(execute(hv, products, input).slice(32).buffer);
    const expected = [
      product(a[0], b[0]),
      product(a[1], b[0]),
      product(a[0], b[1]),
      product(a[1], b[1]),
    ].flatMap((value) => [BigInt.asUintN(64, value), value >> 64n]);
    expect([...out]).toEqual(expected);
  },
  'SHA-256 of one block is that of FIPS 180-4': (hv) => {
    for (const [message, [, digest]] of Object.entries(SHA)) {
      expect(sha256Of(hv, message)).toBe(digest);
      expect(createHash('sha256').update(message).digest('hex')).toBe(digest);
    }
    const long = 'abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopn';
    expect(sha256Of(hv, long)).toBe(createHash('sha256').update(long).digest('hex'));
  },
  'SHA-1 of one block is that of FIPS 180-4': (hv) => {
    for (const [message, [digest]] of Object.entries(SHA)) expect(sha1Of(hv, message)).toBe(digest);
    const long = 'abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopn';
    expect(sha1Of(hv, long)).toBe(createHash('sha1').update(long).digest('hex'));
  },
};

describe.each(['closures', 'templates', 'wasm'] as const)('the simulator (%s)', (tier) => {
  it.each(Object.keys(cases))('%s', (name) => {
    using hv = openHypervisor({ backend: 'sim', simulated: { tier } });
    cases[name]!(hv);
  });
});

describe("the host's KVM", () => {
  // What the processor has, a program has, whatever KVM claims: nothing of it can be intercepted.
  const flags = existsSync('/proc/cpuinfo')
    ? (/^flags\s*: (.*)$/m.exec(readFileSync('/proc/cpuinfo', 'utf8'))?.[1] ?? '').split(' ')
    : [];
  for (const [name, run] of Object.entries(cases)) {
    on('kvm')(name, (hv, context) => {
      const needed = name.startsWith('SHA') ? ['sha_ni'] : ['aes', 'pclmulqdq'];
      const lacking = needed.filter((flag) => !flags.includes(flag));
      if (lacking.length > 0) return context.skip(`its processor has no ${lacking.join(', ')}`);
      run(hv);
    });
  }
});
