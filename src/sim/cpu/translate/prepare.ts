/** Makes what prepared.ts reads, by what makes it of a guest's instructions. Only the package's build and tests use it. */
import { segmentLinear } from '../address/addressing.ts';
import { type Insn, LONGEST } from '../processor/insn.ts';
import type { Mode } from '../processor/modes.ts';
import type { Decoder } from './decode.ts';
import { Encoding } from './forms.ts';
import type { Lower } from './lowering.ts';
import { fieldOf, type Pattern } from './patterns.ts';
import { type Family, FamilyRow, FormRow, HEAD_BYTES, PatternRow, PatternsRow, Shape } from './prepared.ts';
import { type Template, templateOf } from './template.ts';
import { WasmModule } from './wasm-module.ts';

const FLAT = 0x3f;
const LONG = { bits: 64, stackBits: 64, flat: 0, codeLimit: Number.POSITIVE_INFINITY } as const;
const FLAT_32 = { bits: 32, stackBits: 32, flat: FLAT, codeLimit: 0xffff_ffff } as const;
const REAL = { bits: 16, stackBits: 16, flat: 0, codeLimit: 0xffff } as const;
/** What guests are in most. */
export const FAMILIES: readonly Family[] = [
  { ...LONG, user: false, privileged: true },
  { ...LONG, user: true, privileged: false },
  { ...FLAT_32, user: false, privileged: true },
  { ...REAL, user: false, privileged: true },
];

const modeOf = (family: Family): Mode => ({
  ...family,
  x87: true,
  sse: true,
  avx: true,
  codeBase: 0,
  single: false,
  key: 0,
});

/** Opcodes in hexadecimal, as in forms.ts; those behind 0F are from 100 on. */
const opcodesOf = (text: string): readonly number[] =>
  text.split(' ').flatMap((range) => {
    const [first, last = first] = range.split('-').map((digits) => Number.parseInt(digits, 16));
    return Array.from({ length: last! - first! + 1 }, (_, i) => first! + i);
  });
const ALL = opcodesOf('0-117 11f-1ff');
/** With REX.W: what has operands of several sizes. */
const WIDE = opcodesOf(
  '1 3 5 9 b d 11 13 15 19 1b 1d 21 23 25 29 2b 2d 31 33 35 39 3b 3d 63 69 6b 81 83 85 87 89 8b 8d 90-99 a5 a7 a9 ' +
    'ab ad af b8-bf c1 c7 cf d1 d3 f7 ff 107 135 140-14f 1a3-1a5 1ab-1b3 1b6-1b7 1ba-1c3 1c7-1cf',
);
/** With a prefix of the operand's size, with FS or GS, with LOCK, with REP: what compilers and kernels use. */
const SIZED = opcodesOf(
  '1 3 5 9 b d 11 13 15 19 1b 1d 21 23 25 29 2b 2d 31 33 35 39 3b 3d 50-5f 69 6b 81 83 85 87 89 8b 90 98-99 a5 a9 ' +
    'ab b8-bf c1 c7 d1 d3 e5 e7 ed ef f7 ff 11f 1af 1b6 1be',
);
const BY_SEGMENT = opcodesOf('1 3 2b 33 39 3b 80 81 83 88-8b c6-c7 ff 1b1 1b6 1c1');
const LOCKED = opcodesOf('1 9 21 29 80-81 83 ff 1ab 1b0-1b1 1b3 1ba-1bb 1c1 1c7');
/** As assemblers fill with it. */
const NOP = opcodesOf('11f');
const REPEATED = opcodesOf('6c-6f 90 a4-a7 aa-af c3 11e 1b8');
/** What is prepared: prefixes, and the opcodes behind them. */
const PREFIXES: {
  readonly [bits in 16 | 32 | 64]: readonly (readonly [readonly number[], readonly number[]])[];
} = {
  64: [
    [[], ALL],
    [[0x48], WIDE],
    [[0x66], SIZED],
    [[0x66, 0x2e], NOP],
    [[0x65], BY_SEGMENT],
    [[0x65, 0x48], BY_SEGMENT],
    [[0x64], BY_SEGMENT],
    [[0x64, 0x48], BY_SEGMENT],
    [[0xf3], REPEATED],
    [[0xf3, 0x48], REPEATED],
    [[0xf2], REPEATED],
    [[0xf0], LOCKED],
    [[0xf0, 0x48], LOCKED],
  ],
  32: [
    [[], ALL],
    [[0x66], SIZED],
    [[0xf3], REPEATED],
    [[0xf2], REPEATED],
    [[0xf0], LOCKED],
  ],
  16: [
    [[], ALL],
    [[0x66], SIZED],
    [[0xf3], REPEATED],
  ],
};
const RBX = 3;
const MEMORY = { plain: 0x00 | RBX, stack: 0x45 } as const; // [RBX], [RBP + 0]
const RIP = 0x1000n;

/** Instructions of each form that is prepared: the same registers, other registers, an immediate of 0 and of another number. */
function* encodings(bits: 16 | 32 | 64): Generator<Uint8Array> {
  for (const [prefix, opcodes] of PREFIXES[bits]) {
    for (const opcode of opcodes) {
      const before = opcode > 0xff ? [...prefix, 0x0f, opcode & 0xff] : [...prefix, opcode];
      for (const modrm of MODRMS) {
        for (const immediate of [0, 1]) {
          const bytes = new Uint8Array(LONGEST);
          bytes.set([...before, modrm]);
          // Immediates come last.
          bytes.fill(immediate, before.length + 1);
          yield bytes;
        }
      }
    }
  }
}
/** Each value of the register field, with two registers, of which one may be the same, and with memory; and the x87's controls. */
const MODRMS: readonly number[] = [
  0xe0,
  0xe2,
  0xe3,
  ...Array.from({ length: 8 }, (_, field) => [
    0xc0 | (field << 3) | 1,
    0xc0 | (field << 3) | 2,
    MEMORY.plain | (field << 3),
    MEMORY.stack | (field << 3),
  ]).flat(),
];

interface Found {
  readonly pattern: Pattern;
  /** By variant. */
  readonly samples: Map<number, { readonly insn: Insn; readonly hasRegister: boolean }>;
}
/** Which of a form's templates an instruction has, of four: whether two registers are the same, and an immediate is not 0. */
const variantOf = ({ rm, register, immLow }: Encoding): number =>
  (rm === register ? 2 : 0) + (immLow !== 0 ? 1 : 0);

/** The forms, and what they are to each of the decoders; not those that they do not agree on. */
function formsOf(bits: 16 | 32 | 64, decoders: readonly Decoder[]): Map<number, Found> {
  const forms = new Map<number, Found | undefined>();
  const encoding = new Encoding();
  for (const bytes of encodings(bits)) {
    if (!encoding.read(bytes, 0, bytes.length, bits, Number(RIP), 0)) continue;
    const { form, hasRegister } = encoding;
    const variant = variantOf(encoding);
    const known = forms.get(form);
    if (forms.has(form) && (known === undefined || known.samples.has(variant))) continue;
    const insns = decoders.map(
      (decoder) => decoder.decode(bytes, bits, RIP, () => false)[0] as Insn | string,
    );
    const patterns = decoders.map((decoder) => decoder.pattern(bits, form));
    const [pattern] = patterns;
    const [insn] = insns;
    const isOne = new Set(patterns.map((one) => JSON.stringify(one))).size === 1;
    if (pattern === undefined || !isOne || typeof insn === 'string') forms.set(form, undefined);
    else if (known !== undefined) known.samples.set(variant, { insn: insn!, hasRegister });
    else forms.set(form, { pattern, samples: new Map([[variant, { insn: insn!, hasRegister }]]) });
  }
  const agreed = [...forms].filter((entry): entry is [number, Found] => entry[1] !== undefined);
  return new Map(agreed.sort(([a], [b]) => a - b));
}

const bytePlace = ({ insn, hasRegister }: { insn: Insn; hasRegister: boolean }, field: string): boolean =>
  insn.operands.some(
    (operand, i) => operand.kind === 'gpr' && operand.size === 1 && fieldOf(insn, i, hasRegister) === field,
  );

/** The templates of a family: its forms' rows, its helpers, and the module. */
function templatesOf(family: Family, forms: Map<number, Found>, lower: Lower) {
  const mode = modeOf(family);
  const module = new WasmModule({ global: true, placed: true });
  const rows: number[] = [];
  const helpers: number[] = [];
  /** Their patterns are of use without a template. */
  const others: number[] = [];
  for (const [form, { samples }] of forms) {
    const make = (sample: { insn: Insn; hasRegister: boolean }, into: WasmModule) =>
      templateOf(mode, sample.insn, sample.hasRegister, segmentLinear, lower, into);
    const [first] = samples.values();
    const template = make(first!, trial());
    if (template === undefined || !isPrepared(template)) continue;
    const { compares, counts, ends, vectors } = template;
    // No form has vectors: where it depends on what may be used, that is the x87.
    if (vectors && !isX87(form)) continue;
    const wanted = [compares ? [0, 2] : [undefined], counts === 0 ? [undefined] : [0, 1]] as const;
    const chosen = wanted[0].flatMap((same) =>
      wanted[1].map(
        (count) =>
          // Of shifts by one there is no other count.
          [...samples].find(
            ([variant]) =>
              (same === undefined || (variant & 2) === same) &&
              (count === undefined || isByOne(form) || (variant & 1) === count),
          )?.[1],
      ),
    );
    if (chosen.includes(undefined)) continue;
    // What is made for each processor cannot be called: the x87's functions, and transitions.
    const hasQuick = chosen.some((sample) => {
      const alone = trial();
      make(sample!, alone);
      return alone.helpers.some((helper) => typeof helper !== 'function');
    });
    if (hasQuick) {
      if (!isX87(form)) others.push(form);
      continue;
    }
    rows.push(
      form,
      (bytePlace(first!, 'rm') ? Shape.byteRm : 0) |
        (bytePlace(first!, 'register') ? Shape.byteRegister : 0) |
        (compares ? Shape.compares : 0) |
        (ends ? Shape.ends : 0) |
        (vectors ? Shape.x87 : 0),
      counts,
      module.count,
    );
    for (const sample of chosen) {
      const before = module.helpers.length;
      make(sample!, module);
      for (let i = before; i < module.helpers.length; i++) helpers.push(i - before);
    }
  }
  return { rows, helpers, others, module };
}
const trial = (): WasmModule => new WasmModule({ global: true });
/** It is for operands of all values. */
const isPrepared = ({ registers, immediate }: Template): boolean => !registers && !immediate;
const isByOne = (form: number): boolean => (form & 0x1fe) === 0xd0;
const isX87 = (form: number): boolean => (form & 0x1f8) === 0xd8;

/**
 * @param decoders of the processors that it is for: what they do not agree on is left out
 * @param lower as the processor has it
 */
export function prepare(decoders: readonly Decoder[], lower: Lower): Uint8Array {
  const sizes = [...new Set(FAMILIES.map(({ bits }) => bits))];
  const found = new Map(sizes.map((bits) => [bits, formsOf(bits, decoders)]));
  const used = new Map(sizes.map((bits) => [bits, new Set<number>()]));
  const head: number[] = [0, FAMILIES.length, sizes.length];
  const parts: Uint8Array[] = [];
  let start = HEAD_BYTES;
  /** A row of the head, with where its part is. */
  const add = (part: Uint8Array, fields: { readonly [name: string]: number }, places: typeof fields) => {
    const row: number[] = new Array(places.length).fill(0);
    for (const [name, value] of Object.entries({ ...fields, start, bytes: part.length }))
      row[places[name]!] = value;
    head.push(...row);
    parts.push(part);
    start += whole(part.length);
  };
  for (const family of FAMILIES) {
    const { rows, helpers, others, module } = templatesOf(family, found.get(family.bits)!, lower);
    for (let i = 0; i < rows.length; i += FormRow.length) used.get(family.bits)!.add(rows[i]!);
    for (const form of others) used.get(family.bits)!.add(form);
    const fields = {
      bits: family.bits,
      stackBits: family.stackBits,
      user: family.user ? 1 : 0,
      privileged: family.privileged ? 1 : 0,
      flat: family.flat,
      codeLimit: family.codeLimit === Number.POSITIVE_INFINITY ? 0 : family.codeLimit,
      forms: rows.length / FormRow.length,
      helpers: helpers.length,
      functions: module.count,
    };
    add(joined(wordsOf([...rows, ...helpers]), module.bytes()), fields, FamilyRow);
  }
  for (const bits of sizes) {
    const forms = [...found.get(bits)!].filter(([form]) => used.get(bits)!.has(form));
    const texts = forms.map(([, { pattern }]) => JSON.stringify(pattern));
    let at = (forms.length + 1) * PatternRow.length * 4;
    const rows: number[] = [];
    for (const [i, [form]] of forms.entries()) {
      rows.push(form, at);
      at += texts[i]!.length; // ASCII
    }
    const text = new TextEncoder().encode(texts.join(''));
    add(joined(wordsOf([...rows, 0, at]), text), { bits, count: forms.length }, PatternsRow);
  }
  const file = new Uint8Array(start);
  if (head.length * 4 > HEAD_BYTES) throw new Error('the head has no room');
  let at = HEAD_BYTES;
  for (const part of parts) {
    file.set(part, at);
    at += whole(part.length);
  }
  head[0] = checksum(file.subarray(HEAD_BYTES));
  file.set(wordsOf(head));
  return file;
}
/** FNV-1a. */
function checksum(bytes: Uint8Array): number {
  let sum = 0x811c_9dc5;
  for (const byte of bytes) sum = Math.imul(sum ^ byte, 0x0100_0193);
  return sum;
}
const whole = (length: number): number => Math.ceil(length / 4) * 4;
const wordsOf = (numbers: readonly number[]): Uint8Array => new Uint8Array(Int32Array.from(numbers).buffer);
function joined(first: Uint8Array, second: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(first.length + second.length);
  bytes.set(first);
  bytes.set(second, first.length);
  return bytes;
}
