/** What translated code depends on beside its bytes: a translation holds for one of these. */
export interface Mode {
  readonly bits: 16 | 32 | 64;
  readonly stackBits: 16 | 32 | 64;
  /** CPL is 3: the user's rights. */
  readonly user: boolean;
  /** A bit for each segment with base 0 and no limit that can be read and written: nothing to check. */
  readonly flat: number;
  /** SSE's registers may be used: CR4.OSFXSR, and neither CR0.EM nor CR0.TS. */
  readonly sse: boolean;
  /** The base of CS, by which linear addresses differ from RIP. */
  readonly codeBase: bigint;
  /** One instruction at a time. */
  readonly single: boolean;
  /** One number for all of it. */
  readonly key: number;
}
