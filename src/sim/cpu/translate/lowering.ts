/** How an instruction becomes micro-ops: a function for each mnemonic, in tables by topic. */

import type { Insn } from '../processor/insn.ts';
import type { Builder } from './builder.ts';

export type Lower = (b: Builder, insn: Insn) => void;
/** By iced-x86's mnemonic in lower case. */
export type Lowerings = { readonly [mnemonic: string]: Lower };
