/** A guest's program: what goes where in guest memory, and where it begins. */
import { VmexitError } from '../hypervisor/errors.ts';
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

/**
 * A program without a format: its bytes go to FLAT_ADDRESS, and the first of them is executed first.
 * @throws VmexitError ERR_KVM_BAD_GUEST when there are none
 */
export function flatImage(data: Uint8Array, mode: Mode, name = 'the guest'): GuestImage {
  if (data.length === 0) throw badGuest(name, 'is empty: there is nothing to run');
  const segments = [{ address: FLAT_ADDRESS, size: data.length, data }];
  return { name, mode, entry: FLAT_ADDRESS, segments };
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
