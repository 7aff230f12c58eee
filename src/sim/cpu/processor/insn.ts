/** A decoded instruction, free of its decoder: what lowering and the helpers read. */

/** The longest instruction, in bytes (SDM volume 2, 2.3.11). */
export const LONGEST = 15;

/** Sizes in bytes. */
export type Size = 1 | 2 | 4 | 8;

export type Operand =
  /** A general register. `high`: AH, CH, DH or BH, with the index of RAX, RCX, RDX or RBX. */
  | { readonly kind: 'gpr'; readonly index: number; readonly size: Size; readonly high: boolean }
  /** Any other register: its file and its number in it. Segments are numbered ES CS SS DS FS GS. */
  | { readonly kind: 'xmm' | 'ymm' | 'mm' | 'st' | 'segment' | 'cr' | 'dr' | 'tr'; readonly index: number }
  /** A half of a vector that is held for an instruction's part (sse/operands.ts). */
  | { readonly kind: 'held'; readonly index: 0 | 1 }
  /** Of a file that this processor lacks: ZMM, k, BND. */
  | { readonly kind: 'unknown'; readonly index: 0 }
  | Memory
  /** Sign-extended to 64 bits where the instruction extends it; otherwise of the operand's size, unsigned. */
  | { readonly kind: 'imm'; readonly value: bigint }
  /** Where a near branch goes: RIP (truncated to the operand size), not linear. */
  | { readonly kind: 'near'; readonly target: bigint }
  | { readonly kind: 'far'; readonly selector: number; readonly offset: number };

/** base + index * scale + displacement in `segment`; RIP-relative ones have only an absolute displacement. */
export interface Memory {
  readonly kind: 'mem';
  readonly segment: number;
  readonly base: number | undefined;
  readonly index: number | undefined;
  readonly scale: 1 | 2 | 4 | 8;
  /** Sign-extended to 64 bits. */
  readonly displacement: bigint;
  /** Bytes that are accessed; 0 where the instruction has its own idea (FXSAVE). */
  readonly size: number;
}

export interface Insn {
  /** iced-x86's names: the mnemonic in lower case ('add'), and the form ('Add_rm64_r64'). */
  readonly mnemonic: string;
  readonly code: string;
  /** RIP of it and of the one after it. */
  readonly rip: bigint;
  readonly next: bigint;
  readonly length: number;
  /** What FOP becomes by an x87 instruction: the low bits of its first opcode byte, and its second (SDM volume 1, 8.1.9). */
  readonly fop: number;
  readonly operands: readonly Operand[];
  /** Bytes: the address size, and the operand size that the prefixes and the mode give (2, 4 or 8). */
  readonly addressSize: 2 | 4 | 8;
  readonly operandSize: 2 | 4 | 8;
  /** The segment of the implicit source of string instructions: an override, or DS. */
  readonly segment: number;
  /** REX.W. */
  readonly wide: boolean;
  readonly lock: boolean;
  readonly rep: 'rep' | 'repne' | undefined;
}
