/** A guest's program: what goes where in guest memory, and where it begins. */
import { integer } from '../hypervisor/args.ts';
import { outOfRange, VmexitError } from '../hypervisor/errors.ts';
import type { GuestMemory } from '../hypervisor/guest-memory.ts';
import type { Range } from '../hypervisor/ranges.ts';

/** The modes a vCPU can begin in: 16-bit real mode, or 64-bit mode with memory mapped one to one. */
export type Mode = 'real' | 'long';

/** A part of a program: bytes at a guest-physical address. */
export interface Segment {
  /** Guest-physical, in bytes. */
  readonly address: number;
  /** Bytes of guest memory; those that `data` lacks are zero. */
  readonly size: number;
  /** The first bytes of the segment. */
  readonly data: Uint8Array;
}

/** A program as it is placed in guest memory, from elfImage(), flatImage() or loadGuest(). */
export interface GuestImage {
  /** For errors: the file's name. */
  readonly name: string;
  /** The mode that its vCPU begins in. */
  readonly mode: Mode;
  /** Guest-physical, in bytes. */
  readonly entry: number;
  /** What goes where; no two of an ELF file's overlap. */
  readonly segments: readonly Segment[];
}

/** Where a flat binary is put, and begins: above the page of interrupt vectors that real mode has at 0. */
export const FLAT_ADDRESS = 0x1000;

const hex = (value: number) => `0x${value.toString(16)}`;

/** @throws it: a program that cannot be a guest. `what` says what is wrong with it and what to do. */
export const badGuest = (name: string, what: string, options?: ErrorOptions): VmexitError =>
  new VmexitError('ERR_KVM_BAD_GUEST', `${name} ${what}`, options);

/** Where a flat binary goes. */
export interface FlatOptions {
  /** Guest-physical, in bytes: FLAT_ADDRESS without it. */
  readonly at?: number | undefined;
  /** Where it begins, guest-physical: at its first byte without this. In real mode below 1 MiB. */
  readonly entry?: number | undefined;
}

/** What real mode reaches with segments that are multiples of 64 KiB. */
const REAL_MODE_END = 2 ** 20;

/**
 * A program without a format: its bytes go to FLAT_ADDRESS, or where it is told, and the first of them is executed first.
 * @throws VmexitError ERR_KVM_BAD_GUEST when there are none; TypeError, RangeError ERR_KVM_INVALID_ARG for an address that
 *   cannot be, and an entry outside of it
 */
export function flatImage(
  data: Uint8Array,
  mode: Mode,
  name = 'the guest',
  options: FlatOptions = {},
): GuestImage {
  if (data.length === 0) throw badGuest(name, 'is empty: there is nothing to run');
  const address = integer('at', options.at ?? FLAT_ADDRESS);
  const entry = integer('entry', options.entry ?? address);
  const end = address + data.length;
  if (entry < address || entry >= end)
    throw outOfRange('entry', entry, `in the program, which is at [${hex(address)}, ${hex(end)})`);
  if (mode === 'real' && entry >= REAL_MODE_END)
    throw outOfRange('entry', entry, 'below 0x100000, which is all that real mode reaches (--mode long)');
  return { name, mode, entry, segments: [{ address, size: data.length, data }] };
}

/**
 * Copies the program into guest memory that begins at guest-physical address 0.
 * @param reserved what the VMM needs for itself
 * @throws VmexitError ERR_KVM_BAD_GUEST when a segment does not fit, before anything is written
 */
export function placeImage(
  image: GuestImage,
  memory: Pick<GuestMemory, 'write' | 'size'>,
  reserved?: Range,
): void {
  for (const { address, size } of image.segments) {
    const end = address + size;
    const range = `[${hex(address)}, ${hex(end)})`;
    if (end > memory.size) {
      throw badGuest(
        image.name,
        `needs guest memory at ${range}, and the guest has ${hex(memory.size)} bytes: give it more (--memory)`,
      );
    }
    if (reserved && address < reserved.end && reserved.start < end) {
      throw badGuest(
        image.name,
        `needs guest memory at ${range}, where its stack and page tables go ` +
          `([${hex(reserved.start)}, ${hex(reserved.end)})): give it more (--memory)`,
      );
    }
  }
  // Fresh guest memory is zero: only the bytes that the file has are written, and the rest stays untouched.
  for (const { address, data } of image.segments) memory.write(address, data);
}
