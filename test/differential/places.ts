/** Where things lie in the guest. */

/** What a case may reach, in linear addresses. Between the ranges nothing is mapped, where there is paging. */
export const Place = {
  /** Two pages that the guest's program may execute and read. */
  code: 0x2_0000,
  codeEnd: 0x2_2000,
  /** Where cases begin, unless they are to cross a page. */
  start: 0x2_0800,
  /** Two pages to read and write, */
  data: 0x3_0000,
  /** one to read, */
  readOnly: 0x3_2000,
  /** and one that is the supervisor's. */
  supervisor: 0x3_3000,
  dataEnd: 0x3_3000,
  /** All of it is there once more, above 4 GiB. */
  alias: 0x4000_0000_0000n,
  fsBase: 0x1_0010n,
  gsBase: 0x3fff_ffff_e000n,
  /** What segments of real mode reach, which has no paging. */
  reach: 0x2_0000,
  reachEnd: 0x4_1000,
} as const;
export const WINDOW = Place.dataEnd - Place.data;

/** What the program does not see: physical addresses. Below it a branch that was cut to 16 bits finds its end. */
export const System = {
  /** The page of descriptor tables, the only one but the stack that a processor writes to. */
  gdt: 0x2000,
  gdt32: 0x2400,
  ldt: 0x2800,
  ldt32: 0x2900,
  idt: 0x3000,
  tss: 0x4000,
  handlers: 0x8000,
  stack: 0xa000,
  idt32: 0xb000,
  tss32: 0xc000,
  /** Real mode's interrupt vectors. */
  ivt: 0xf000,
  tables: 0x1_0000,
  pages: 0x1_4000,
  directory32: 0x1_5000,
  pages32: 0x1_6000,
} as const;
export const PAGE = 0x1000;
