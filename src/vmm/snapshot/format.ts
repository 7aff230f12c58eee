/**
 * The file of a snapshot, little-endian:
 *
 *     0        magic
 *     8        u32 version, u32 bytes of a page
 *     16       u64 bytes of the file
 *     24       u32 bytes of the head, u32 zero
 *     32       SHA-256 of everything before the pages but itself
 *     64       the head: JSON, {"state": a MachineState, "memories": [{"size": bytes, "stored": pages}]}
 *              for each memory a bit per page, from bit 0 of the first byte on: 1 is stored, 0 is all zeroes
 *     4096n    the stored pages, memory by memory
 *              for each stored page the CRC-32 of its contents
 *
 * One that holds only what has changed since another is of version 2. Its head has "base" too: {"path": where that is, from
 * its own folder, "identity": what it must be}; and behind those bitmaps are as many again: 1 is as here (stored, or all
 * zeroes), 0 is as in the base. A memory that the base has not, or in another size, is zeroes there.
 *
 * So opening one reads what comes before the pages; a page and its CRC are read when they are wanted.
 */

import { createHash } from 'node:crypto';
import { crc32 as zlibCrc32 } from 'node:zlib';
import { PAGE_SIZE as PAGE } from '../../hypervisor/args.ts';
import { VmexitError } from '../../hypervisor/errors.ts';

export const MAGIC = new TextEncoder().encode('vmexit\x1a\n');
/** Of a file that holds all; and of one that holds what has changed since another. */
export const FORMAT_VERSION = 1;
export const FORMAT_VERSION_SINCE = 2;

/** Offsets in the prefix. */
export const At = {
  VERSION: 8,
  PAGE_SIZE: 12,
  FILE_SIZE: 16,
  HEAD_SIZE: 24,
  RESERVED: 28,
  DIGEST: 32,
  HEAD: 64,
} as const;

/** A head of more than this is none: thousands of vCPUs have less. */
export const MAX_HEAD = 2 ** 28;

export interface MemoryHead {
  readonly size: number;
  readonly stored: number;
}

/** The snapshot that another one builds on. */
export interface Base {
  readonly path: string;
  readonly identity: string;
}

export const bitmapBytes = (size: number): number => Math.ceil(size / PAGE / 8);
export const pageAligned = (offset: number): number => Math.ceil(offset / PAGE) * PAGE;

/** Of everything before the pages. */
export const digestOf = (before: Uint8Array): Buffer =>
  createHash('sha256').update(before.subarray(0, At.DIGEST)).update(before.subarray(At.HEAD)).digest();

/**
 * What tells a snapshot's contents from any other's: the digest covers its head and bitmaps, the checksums its pages. In hex.
 * @param before at least its first 64 bytes
 */
export const identityOf = (before: Uint8Array, crcs: Uint8Array): string =>
  createHash('sha256').update(before.subarray(At.DIGEST, At.HEAD)).update(crcs).digest('hex');

/** Of the data, behind what had the checksum `before`. */
export const crc32 = (data: Uint8Array, before?: number): number => zlibCrc32(data, before);

/** What is wrong with a file, and what to do about it. */
export const unreadable = (path: string, what: string, options?: ErrorOptions): VmexitError =>
  new VmexitError('ERR_KVM_SNAPSHOT', `snapshot ${path}: ${what}`, options);
