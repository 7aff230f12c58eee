/** Writes a snapshot to a file: all of it or, when that fails or is cancelled, nothing. */

import { type FileHandle, lstat, open, rename, rm } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import type { AbortSignalLike } from '../../hypervisor/abort.ts';
import { PAGE_SIZE as PAGE } from '../../hypervisor/args.ts';
import { VmexitError } from '../../hypervisor/errors.ts';
import type { GuestMemory } from '../../hypervisor/guest-memory.ts';
import { viewOf } from '../../uapi/layout.ts';
import {
  At,
  bitmapBytes,
  crc32,
  digestOf,
  FORMAT_VERSION,
  MAGIC,
  type MemoryHead,
  pageAligned,
} from './format.ts';
import type { Capture } from './state.ts';

/** Who is told of the progress, and what cancels it. */
export interface WriteOptions {
  /** Told now and then how many bytes of guest memory were looked at, of all that there are. */
  readonly onProgress?: (done: number, total: number) => void;
  /** Cancels: nothing is left behind, and the promise is rejected with the signal's reason. */
  readonly signal?: AbortSignalLike | undefined;
}

/** What was written. */
export interface Written {
  /** Bytes of the file. */
  readonly size: number;
  /** Pages in it: those that are not all zeroes. */
  readonly stored: number;
  /** Pages of the guest's memory. */
  readonly pages: number;
}

/** Guest memory is read so much at a time; the event loop lives in between. */
const CHUNK = 256 * PAGE;
const ZEROES = new Uint8Array(CHUNK);

/**
 * Saves a machine that is paused, and stays so until the promise is settled. The file appears under its name when it
 * is whole and on the disk; one that was there is replaced then.
 * @param capture what captureState() gave
 * @throws VmexitError ERR_KVM_SNAPSHOT when the file cannot be written, with the cause; the signal's reason
 * @example
 * ```ts
 * import { rm } from 'node:fs/promises';
 * import { tmpdir } from 'node:os';
 * import { join } from 'node:path';
 * import {
 *   captureState,
 *   exitName,
 *   flatImage,
 *   Machine,
 *   openHypervisor,
 *   openSnapshot,
 *   restoreSnapshot,
 *   writeSnapshot,
 * } from 'vmexit';
 *
 * const path = join(tmpdir(), `counting-${process.pid}.snapshot`);
 * const hv = openHypervisor();
 * const machine = new Machine(hv, { memory: 0x10_0000 });
 * // out 0x10, al; inc ax; hlt
 * machine.load(flatImage(Uint8Array.of(0xe6, 0x10, 0x40, 0xf4), 'real'), { rax: 41 });
 * machine.vcpu.run(5000); // until the OUT
 * const { pages } = await writeSnapshot(path, captureState(hv, machine.vm, [machine.vcpu]));
 * machine.close();
 *
 * const snapshot = openSnapshot(path);
 * const restored = restoreSnapshot(hv, snapshot);
 * snapshot.close();
 * const [vcpu] = restored.vcpus;
 * console.log(`${pages} pages; ${exitName(vcpu!.run(5000))}, ax is ${vcpu!.getRegs().rax}`);
 * restored.close();
 * hv.close();
 * await rm(path);
 * // prints: 256 pages; HLT, ax is 42
 * ```
 */
export async function writeSnapshot(
  path: string,
  capture: Capture,
  { onProgress, signal }: WriteOptions = {},
): Promise<Written> {
  signal?.throwIfAborted();
  await checkReplaceable(path);
  const temporary = join(dirname(path), `.${basename(path)}.${process.pid}.tmp`);
  try {
    const file = await open(temporary, 'wx', 0o600);
    try {
      const written = await writeAll(file, capture, { ...(onProgress ? { onProgress } : {}), signal });
      await file.sync();
      await file.close();
      signal?.throwIfAborted();
      await rename(temporary, path);
      await syncFolder(dirname(path));
      return written;
    } catch (error) {
      await file.close().catch(() => {});
      await rm(temporary, { force: true });
      throw error;
    }
  } catch (cause) {
    const { code, syscall } = cause as NodeJS.ErrnoException;
    if (code === undefined || syscall === undefined || cause instanceof VmexitError) throw cause;
    const why = remedies[code] ?? '';
    throw new VmexitError(
      'ERR_KVM_SNAPSHOT',
      `snapshot ${path} cannot be written: ${syscall} gives ${code}${why}`,
      {
        cause,
      },
    );
  }
}

/** rename(2) would put a file in the place of a device, too: /dev/null for one. */
async function checkReplaceable(path: string): Promise<void> {
  const there = await lstat(path).catch(() => undefined);
  if (there && !there.isFile() && !there.isSymbolicLink() && !there.isDirectory())
    throw new VmexitError(
      'ERR_KVM_SNAPSHOT',
      `snapshot ${path} cannot be written: there is something that is no file`,
    );
}

const remedies: { readonly [code: string]: string } = {
  ENOSPC: ': the disk is full',
  EDQUOT: ': the disk quota is used up',
  ENOENT: ': there is no such folder',
  EACCES: ': you may not write there',
  EROFS: ': that is read-only',
  EEXIST: ': a file that an ended process has left is in the way',
  EISDIR: ': that is a folder',
};

/** The name is on the disk when the folder is. Some file systems know no sync of one. */
async function syncFolder(folder: string): Promise<void> {
  const handle = await open(folder, 'r');
  await handle.sync().catch(() => {});
  await handle.close();
}

async function writeAll(
  file: FileHandle,
  { state, memories }: Capture,
  options: WriteOptions,
): Promise<Written> {
  const total = memories.reduce((sum, { size }) => sum + size, 0);
  // How many pages are stored is known at the end; the head keeps its place by numbers of fixed width.
  const headOf = (heads: readonly MemoryHead[]) =>
    new TextEncoder().encode(JSON.stringify({ state, memories: heads }));
  const longest = headOf(memories.map(({ size }) => ({ size, stored: size / PAGE })));
  const headSize = longest.length;
  const bitmaps = new Uint8Array(memories.reduce((sum, { size }) => sum + bitmapBytes(size), 0));
  const before = new Uint8Array(pageAligned(At.HEAD + headSize + bitmaps.length));

  const crcs: number[] = [];
  const heads: MemoryHead[] = [];
  let at = before.length;
  let bitmapAt = 0;
  let done = 0;
  for (const memory of memories) {
    const first = crcs.length;
    const bitmap = bitmaps.subarray(bitmapAt, bitmapAt + bitmapBytes(memory.size));
    bitmapAt += bitmap.length;
    for (let offset = 0; offset < memory.size; offset += CHUNK) {
      options.signal?.throwIfAborted();
      const chunk = storedPages(memory, offset, bitmap, crcs);
      if (chunk.length > 0) await writeFully(file, chunk, at);
      else if (offset % (64 * CHUNK) === 0) await breathe();
      at += chunk.length;
      done += Math.min(CHUNK, memory.size - offset);
      options.onProgress?.(done, total);
    }
    heads.push({ size: memory.size, stored: crcs.length - first });
  }
  const table = new Uint8Array(crcs.length * 4);
  const tableView = viewOf(table);
  for (const [i, crc] of crcs.entries()) tableView.setUint32(i * 4, crc, true);
  await writeFully(file, table, at);

  const size = at + table.length;
  const view = viewOf(before);
  before.set(MAGIC);
  view.setUint32(At.VERSION, FORMAT_VERSION, true);
  view.setUint32(At.PAGE_SIZE, PAGE, true);
  view.setBigUint64(At.FILE_SIZE, BigInt(size), true);
  view.setUint32(At.HEAD_SIZE, headSize, true);
  // JSON may end with spaces: the numbers have fewer digits than there is room for.
  before.fill(0x20, At.HEAD, At.HEAD + headSize);
  before.set(headOf(heads), At.HEAD);
  before.set(bitmaps, At.HEAD + headSize);
  before.set(digestOf(before), At.DIGEST);
  await writeFully(file, before, 0);
  return { size, stored: crcs.length, pages: total / PAGE };
}

/** The pages of a chunk that are not all zeroes, one after the other. Marks them, and adds their CRCs. */
function storedPages(memory: GuestMemory, offset: number, bitmap: Uint8Array, crcs: number[]): Uint8Array {
  const chunk = memory.readSparse(offset, Math.min(CHUNK, memory.size - offset));
  if (Buffer.compare(chunk, ZEROES.subarray(0, chunk.length)) === 0) return chunk.subarray(0, 0);
  const zeroPage = ZEROES.subarray(0, PAGE);
  let length = 0;
  for (let at = 0; at < chunk.length; at += PAGE) {
    const page = chunk.subarray(at, at + PAGE);
    if (Buffer.compare(page, zeroPage) === 0) continue;
    const index = (offset + at) / PAGE;
    bitmap[index >>> 3]! |= 1 << (index & 7);
    crcs.push(crc32(page));
    chunk.copyWithin(length, at, at + PAGE);
    length += PAGE;
  }
  return chunk.subarray(0, length);
}

async function writeFully(file: FileHandle, bytes: Uint8Array, position: number): Promise<void> {
  for (let at = 0; at < bytes.length; ) {
    at += (await file.write(bytes, at, bytes.length - at, position + at)).bytesWritten;
  }
}

const breathe = () => new Promise<void>((done) => setImmediate(done));
