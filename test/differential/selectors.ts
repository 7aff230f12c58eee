/** Selectors and far pointers: good ones as a rule, and of every kind that is not. */
import { branchTarget, type Draft } from './draft.ts';
import { globalDescriptors, Selector } from './modes.ts';
import { Place } from './places.ts';

/** What programs get at privilege 3, where PVM has the host's own table. */
const USER = [0, 1, 3, 0x2b, 0x2b, 0x28, 0x23, 0x33, 0x10, 0x18, 0x50, 0xffff];
const LISTED = [...globalDescriptors(false).keys()];
const BEYOND = [0x100, 0xfff8, 0x24, 0xfffc];

/** A selector for a segment register, or for what looks at descriptors. */
export function selector({ random, mode }: Draft): bigint {
  if (mode.privilege === 3) return BigInt(random.pick(USER));
  if (mode.bits === 16) return BigInt(random.u32() & 0xffff);
  const index = random.oneIn(16)
    ? random.pick([0, ...BEYOND])
    : random.oneIn(5)
      ? 4 + 8 * random.below(4)
      : random.pick(LISTED);
  return BigInt(index | (random.oneIn(4) ? random.below(4) : 0));
}

/** Code segments that begin at 0 and where the filler is the same instruction. */
const FLAT_CODE = [Selector.code, 0x50, 0x60, 4];

/**
 * Where a far transfer may go, as its selector and offset. No task: hardware task switches are not modelled.
 * @param any whether the selector may be any, and not just one of code at privilege 0
 */
export function farTarget(
  draft: Draft,
  bits: number,
  any = true,
): readonly [selector: bigint, offset: bigint] {
  const { random, mode } = draft;
  const linear = branchTarget(draft);
  if (mode.bits === 16) {
    const segment = BigInt((Place.code >> 4) - random.below(0x200));
    return [segment, linear - (segment << 4n)];
  }
  if (bits === 16 || random.oneIn(6)) return [0x58n, linear - BigInt(Place.code)];
  let chosen = !any || random.oneIn(2) ? BigInt(random.pick(FLAT_CODE)) : selector(draft);
  while ([Selector.tss, Selector.freeTss].includes((Number(chosen) & ~7) as 0x40)) chosen = selector(draft);
  return [chosen, linear];
}
