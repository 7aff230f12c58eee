/** A guest's exceptions in words: what an observer was told of them. */
import { Vector } from '../uapi/constants.ts';

/** An exception that a guest has raised, as an {@link Observer} is told of it. */
export interface GuestException {
  /** From 0 to 31. */
  readonly vector: number;
  /** What is pushed for the handler; undefined for an exception that has none. */
  readonly errorCode: number | undefined;
  /** Where the handler returns to. */
  readonly rip: bigint;
  /** Of a page fault: what becomes of CR2. */
  readonly address: bigint | undefined;
}

const names = new Map(Object.entries(Vector).map(([name, vector]) => [vector as number, name]));

/** Its mnemonic, as in `#PF`. */
export const exceptionName = (vector: number): string => `#${names.get(vector) ?? vector}`;

const hex = (value: bigint | number) => `0x${value.toString(16)}`;

/** As in `#PF(0x2) at rip 0x100a, address 0x8000000000`. */
export function describeException({ vector, errorCode, rip, address }: GuestException): string {
  const code = errorCode === undefined ? '' : `(${hex(errorCode)})`;
  const of = address === undefined ? '' : `, address ${hex(address)}`;
  return `${exceptionName(vector)}${code} at rip ${hex(rip)}${of}`;
}
