/** A guest that computes over its memory, reading and writing: its sum and what it leaves tell of each page's way. */
import { guest } from '../../src/vmm/guest.ts';

/**
 * rdi: memory; rcx: steps; r9: pages - 1, of a power of two; r10: a factor. Each step is told to port 0xe0, the end to
 * port 0xf4, with the sum in rax.
 */
export const wanderer = guest(
  64,
  `
 4c 89 c3    | again: mov rbx, r8
 48 c1 e3 0c |        shl rbx, 12
 48 8b 14 1f |        mov rdx, [rdi + rbx]
 49 0f af d2 |        imul rdx, r10
 48 01 ca    |        add rdx, rcx
 48 89 14 1f |        mov [rdi + rbx], rdx
 48 01 d0    |        add rax, rdx
 49 83 c0 25 |        add r8, 37
 4d 21 c8    |        and r8, r9
 e6 e0       |        out 0xe0, al
 48 ff c9    |        dec rcx
 75 d9       |        jnz again
 e6 f4       |        out 0xf4, al
 f4          |        hlt
`,
);

const FACTOR = 0x5851_f42dn;
const GOLDEN = 0x9e37_79b9_7f4a_7c15n;
const u64 = (value: bigint) => BigInt.asUintN(64, value);

/** The word that a page begins with; every fourth page is all zeroes. */
const wordOf = (page: number) => (page % 4 === 3 ? 0n : u64(BigInt(page + 1) * GOLDEN));

/** What the guest says in the end, and the words that its pages begin with then. */
export function wandered(pages: number, steps: number): { sum: bigint; words: bigint[] } {
  const words = Array.from({ length: pages }, (_, page) => wordOf(page));
  let sum = 0n;
  for (let left = steps, page = 0; left > 0; left--, page = (page + 37) % pages) {
    words[page] = u64(words[page]! * FACTOR + BigInt(left));
    sum = u64(sum + words[page]!);
  }
  return { sum, words };
}
