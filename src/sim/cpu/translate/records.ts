/**
 * Decoded blocks in the arena, where templates read them: a header, and a record for each instruction. Offsets are bytes.
 */

/** A target (targets.ts) first of all: by which function it is executed, and with what argument. */
export const Header = {
  function: 0,
  argument: 4,
  /** Instructions. */
  count: 8,
  /** How often it was executed. */
  heat: 12,
  bytes: 16,
} as const;

export const Record = {
  /** The template's place in the table of functions. */
  template: 0,
  /** Which of its block's instructions it is, and where the block begins. */
  at: 4,
  block: 8,
  /** The instruction's number among those that iced-x86 has decoded for helpers; 0 until one is asked for. */
  insn: 12,
  rip: 16,
  next: 24,
  /** An immediate, or where a branch goes. */
  immediate: 32,
  displacement: 40,
  /** Places of registers in the state page, 16 bits each: operands in r/m and in the register field, base and index. */
  rm: 48,
  register: 50,
  base: 52,
  index: 54,
  /** The index's scale as a count of bits. */
  scale: 56,
  /** Where its bytes are in the arena. */
  host: 60,
  bytes: 64,
} as const;
