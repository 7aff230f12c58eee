/**
 * The guest's own instructions, and the same in the order in which QEMU's emulated processor makes their accesses: what
 * was recorded in QEMU (TCG) shows its order where a page is not as another wants it.
 *
 * - A read-modify-write is a load, an operation and a store (target/i386/tcg), each with its own fault. Silicon, and the
 *   simulator, ask for a page to write from the beginning. So in a read-only slot QEMU first maps the page to read,
 *   which may fail, or take the place of a stale MMIO SPTE.
 * - 16 bytes are stored as 8 and 8, and the first stay stored when the others fault.
 */
import { guest } from '../../src/vmm/guest.ts';
import {
  copy,
  increment,
  load8,
  load16,
  load32,
  load128,
  push,
  store8,
  store16,
  store32,
} from '../support/snippets.ts';

const inTwo = guest(
  64,
  `
 48 8b 0e 48 ff c1 48 89 0e c3 | mov rcx, [rsi]; inc rcx; mov [rsi], rcx; ret
`,
);
const inHalves = guest(
  64,
  `
 f3 0f 6f 06 66 48 0f 7e c1 | movdqu xmm0, [rsi]; movq rcx, xmm0
 0f 12 c0 66 48 0f 7e c2    | movhlps xmm0, xmm0; movq rdx, xmm0
 48 89 0f 48 89 57 08 c3    | mov [rdi], rcx; mov [rdi + 8], rdx; ret
`,
);

const silicon = { load8, load16, load32, load128, store8, store16, store32, increment, copy, push };

export type Processor = 'silicon' | 'QEMU';
export type SnippetName = keyof typeof silicon;

export const snippets: { readonly [P in Processor]: typeof silicon } = {
  silicon,
  QEMU: { ...silicon, increment: inTwo, load128: inHalves },
};
export const snippetNames = Object.keys(silicon) as SnippetName[];
