/** Ways between contexts (contexts.ts), where translated code reads them. */

/** A way from one context to another, in the arena: offsets in bytes. What the processor looked at must be what it was. */
export const Transition = {
  /** Contexts; `from` is 0 where the way is not known. */
  from: 0,
  to: 4,
  /** What is to be added to State.generation and State.globals. */
  step: 8,
  /** The new selectors: CS's in the lower half. */
  selectors: 12,
  /** Linear addresses of the descriptors, 0 of a null selector, and what is there. */
  codeAt: 16,
  code: 24,
  stackAt: 32,
  stack: 40,
  /** SYSCALL's LSTAR and FMASK. */
  rip: 48,
  mask: 56,
  bytes: 64,
} as const;
/** The ways' places in State.transitions. There are two of IRET: to the same privilege level, and to another. */
export const Way = { SYSCALL: 0, SYSRET: 1, IRET: 2, count: 4 } as const;
