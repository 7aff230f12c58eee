/** The arithmetic flags and the conditions on them as values, from what is known of them. */

import type { Size } from '../processor/insn.ts';
import { Flag, FlagKind, State } from '../processor/state.ts';
import type { Node } from './ir.ts';
import type { OpName } from './ops.ts';

export type FlagName = 'CF' | 'PF' | 'AF' | 'ZF' | 'SF' | 'OF';

/** The conditions of Jcc, SETcc and CMOVcc, by their names in mnemonics. */
export type Condition =
  | 'o'
  | 'no'
  | 'b'
  | 'ae'
  | 'e'
  | 'ne'
  | 'be'
  | 'a'
  | 's'
  | 'ns'
  | 'p'
  | 'np'
  | 'l'
  | 'ge'
  | 'le'
  | 'g';

const opposite: { readonly [condition: string]: Condition } = {
  no: 'o',
  ae: 'b',
  ne: 'e',
  a: 'be',
  ns: 's',
  np: 'p',
  ge: 'l',
  g: 'le',
};

/** What a `flags` op says: see FlagKind. */
export interface Description {
  readonly kind: number;
  readonly a: Node;
  readonly b: Node;
  readonly result: Node;
}

/** What the values are made with. */
export interface FlagBuilder {
  op(name: OpName, args?: readonly Node[]): Node;
  const32(value: number): Node;
  const64(value: bigint): Node;
  get(offset: number, size: Size): Node;
  select(size: Size, condition: Node, yes: Node, no: Node): Node;
  flag(name: FlagName): Node;
  condition(name: Condition): Node;
}

/** A flag: an `i`, 1 or 0. `known` is what the block's last description of the flags was, if that is certain. */
export function flagValue(m: FlagBuilder, name: FlagName, known: Description | undefined): Node {
  if (known !== undefined) return flagOf(m, name, known);
  const kind = m.get(State.flagKind, 4);
  const a = m.get(State.flagA, 8);
  const b = m.get(State.flagB, 8);
  const result = m.get(State.flagResult, 8);
  const is = (which: number) => m.op('eq32', [kind, m.const32(which)]);
  const of = (which: number) => flagOf(m, name, { kind: which, a, b, result });
  if (name === 'SF' || name === 'ZF' || name === 'PF')
    return m.select(4, is(FlagKind.EXPLICIT), of(FlagKind.EXPLICIT), of(FlagKind.RESULT));
  const packed = of(FlagKind.RESULT); // and of EXPLICIT
  return m.select(
    4,
    is(FlagKind.SUB),
    of(FlagKind.SUB),
    m.select(4, is(FlagKind.ADD), of(FlagKind.ADD), packed),
  );
}

function flagOf(m: FlagBuilder, name: FlagName, { kind, a, b, result }: Description): Node {
  const packed = () => {
    const shift = m.const32(Math.log2(Flag[name]));
    return m.op('and32', [m.op('shr32', [m.op('wrap', [a]), shift]), m.const32(1)]);
  };
  if (kind === FlagKind.EXPLICIT) return packed();
  const top = (value: Node) => m.op('lts64', [value, m.const64(0n)]);
  const xor = (x: Node, y: Node) => m.op('xor64', [x, y]);
  switch (name) {
    case 'ZF':
      return m.op('eqz64', [result]);
    case 'SF':
      return top(result);
    case 'PF': {
      const ones = m.op('popcnt32', [m.op('and32', [m.op('wrap', [result]), m.const32(0xff)])]);
      return m.op('and32', [m.op('xor32', [ones, m.const32(1)]), m.const32(1)]);
    }
    case 'CF':
      if (kind === FlagKind.RESULT) return packed();
      return kind === FlagKind.ADD ? m.op('ltu64', [result, a]) : m.op('ltu64', [a, b]);
    case 'AF': {
      if (kind === FlagKind.RESULT) return packed();
      const low = m.op('wrap', [xor(xor(a, b), result)]);
      return m.op('and32', [m.op('shr32', [low, m.const32(4)]), m.const32(1)]);
    }
    default: // OF
      if (kind === FlagKind.RESULT) return packed();
      return top(
        kind === FlagKind.ADD
          ? m.op('and64', [xor(a, result), xor(b, result)])
          : m.op('and64', [xor(a, b), xor(a, result)]),
      );
  }
}

/** A condition: an `i`, 1 or 0. */
export function conditionValue(m: FlagBuilder, name: Condition, known: Description | undefined): Node {
  const not = (value: Node) => m.op('eqz32', [value]);
  const or = (a: Node, b: Node) => m.op('or32', [a, b]);
  // A comparison needs no flags: the operands say it.
  if (known?.kind === FlagKind.SUB) {
    const { a, b } = known;
    const less = {
      b: ['ltu64', a, b],
      ae: ['ltu64', a, b],
      be: ['ltu64', b, a],
      a: ['ltu64', b, a],
    } as const;
    const signed = {
      l: ['lts64', a, b],
      ge: ['lts64', a, b],
      le: ['lts64', b, a],
      g: ['lts64', b, a],
    } as const;
    const found = { ...less, ...signed }[name as keyof typeof less | keyof typeof signed];
    if (found !== undefined) {
      const value = m.op(found[0], [found[1], found[2]]);
      return name === 'b' || name === 'l' || name === 'a' || name === 'g' ? value : not(value);
    }
    if (name === 'e') return m.op('eq64', [a, b]);
    if (name === 'ne') return m.op('ne64', [a, b]);
  }
  switch (name) {
    case 'o':
      return m.flag('OF');
    case 'b':
      return m.flag('CF');
    case 'e':
      return m.flag('ZF');
    case 'be':
      return or(m.flag('CF'), m.flag('ZF'));
    case 's':
      return m.flag('SF');
    case 'p':
      return m.flag('PF');
    case 'l':
      return m.op('xor32', [m.flag('SF'), m.flag('OF')]);
    case 'le':
      return or(m.flag('ZF'), m.op('xor32', [m.flag('SF'), m.flag('OF')]));
    default:
      return not(m.condition(opposite[name]!));
  }
}
