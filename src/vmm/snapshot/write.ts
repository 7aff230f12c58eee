/** Writes a snapshot to a file: all of it or, when that fails or is cancelled, nothing. */

import { realpathSync, statSync } from 'node:fs';
import { type FileHandle, lstat, open, rename, rm } from 'node:fs/promises';
import { basename, dirname, join, relative, resolve } from 'node:path';
import type { AbortSignalLike } from '../../hypervisor/abort.ts';
import { PAGE_SIZE as PAGE } from '../../hypervisor/args.ts';
import { VmexitError } from '../../hypervisor/errors.ts';
import type { GuestMemory } from '../../hypervisor/guest-memory.ts';
import { viewOf } from '../../uapi/layout.ts';
import type { DirtyPages } from '../dirty-pages.ts';
import {
  At,
  type Base,
  bitmapBytes,
  crc32,
  digestOf,
  FORMAT_VERSION,
  FORMAT_VERSION_SINCE,
  identityOf,
  MAGIC,
  type MemoryHead,
  pageAligned,
} from './format.ts';
import { openSnapshot, type Snapshot, type SnapshotMemory } from './read.ts';
import { Taking } from './since.ts';
import type { Capture } from './state.ts';
import { onesIn } from './stored.ts';

/** Who is told of the progress, and what cancels it. */
export interface WriteOptions {
  /**
   * A snapshot of the same machine: the new one then holds only what has changed since, and needs that file, unaltered and
   * in the same place from its own folder. That may itself be such a one.
   */
  readonly since?: string;
  /**
   * Which pages were written since `since`: it was given to the writeSnapshot() that wrote that one, or came of dirtySince().
   * Without it, or where it cannot know (DirtyPages.knows()), all of a memory is compared with what `since` has: contents
   * with contents, not checksums. Given without `since`, it begins anew with this snapshot.
   */
  readonly dirty?: DirtyPages;
  /** Told now and then how many bytes of guest memory were looked at, of all that there are. */
  readonly onProgress?: (done: number, total: number) => void;
  /** Cancels: nothing is left behind, and the promise is rejected with the signal's reason. */
  readonly signal?: AbortSignalLike | undefined;
}

/** What was written. */
export interface Written {
  /** Bytes of the file. */
  readonly size: number;
  /** Pages in it: those that are not all zeroes, and with `since` have changed. */
  readonly stored: number;
  /** Pages that are other than in `since`, those that are zeroes now among them. Without it those that are stored. */
  readonly changed: number;
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
  options: WriteOptions = {},
): Promise<Written> {
  const { onProgress, signal, since, dirty } = options;
  signal?.throwIfAborted();
  await checkReplaceable(path);
  if (since === undefined) {
    const taking = dirty && Taking.begin(dirty, undefined, capture.memories);
    return writeFile(path, capture, { onProgress, signal, taking });
  }
  checkLoggable(capture);
  using base = openSnapshot(since);
  checkApart(path, base);
  const taking = dirty && Taking.begin(dirty, base.identity, capture.memories);
  return await writeFile(path, capture, { onProgress, signal, base, taking }); // `base` is closed when this returns
}

async function writeFile(path: string, capture: Capture, options: Options): Promise<Written> {
  const { signal, taking } = options;
  const temporary = join(dirname(path), `.${basename(path)}.${process.pid}.tmp`);
  try {
    const file = await open(temporary, 'wx', 0o600);
    try {
      const { identity, ...written } = await writeAll(file, capture, path, options);
      await file.sync();
      await file.close();
      signal?.throwIfAborted();
      await rename(temporary, path);
      await syncFolder(dirname(path));
      taking?.done(identity);
      return written;
    } catch (error) {
      await file.close().catch(() => {});
      await rm(temporary, { force: true });
      throw error;
    }
  } catch (cause) {
    taking?.undo();
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

/** A VM with private memory has no log, and its file would be as large as one that holds all. */
function checkLoggable({ state }: Capture): void {
  const secret = state.vm.slots.find(({ guestMemfd }) => guestMemfd !== null);
  if (secret === undefined) return;
  throw new VmexitError(
    'ERR_KVM_NOT_SAVABLE',
    `slot ${secret.slot} has private memory (a guest_memfd), of which KVM logs no written pages: save all of the machine, without \`since\``,
  );
}

/** What a file builds on must not be replaced by it. */
function checkApart(path: string, { chain }: Snapshot): void {
  const there = statSync(path, { throwIfNoEntry: false });
  const same = chain.find((file) => {
    const { dev, ino } = statSync(file);
    return dev === there?.dev && ino === there.ino;
  });
  if (same === undefined) return;
  throw new VmexitError(
    'ERR_KVM_SNAPSHOT',
    `snapshot ${path} cannot be written: what it would hold is what has changed since ${same}, the same file`,
  );
}

interface Options extends Pick<WriteOptions, 'signal'> {
  readonly onProgress: WriteOptions['onProgress'] | undefined;
  readonly base?: Snapshot;
  readonly taking: Taking | undefined;
}

/** What the bitmaps and the checksums are of one memory. */
interface Account {
  readonly bitmap: Uint8Array;
  /** Of one that builds on another. */
  readonly changed: Uint8Array | undefined;
  readonly crcs: number[];
}

async function writeAll(
  file: FileHandle,
  { state, memories }: Capture,
  path: string,
  { onProgress, signal, base, taking }: Options,
): Promise<Written & { readonly identity: string }> {
  const total = memories.reduce((sum, { size }) => sum + size, 0);
  const below: { base?: Base } = base
    ? { base: { path: placeOf(base.path, path), identity: base.identity } }
    : {};
  // How many pages are stored is known at the end; the head keeps its place by numbers of fixed width.
  const headOf = (heads: readonly MemoryHead[]) =>
    new TextEncoder().encode(JSON.stringify({ state, memories: heads, ...below }));
  const longest = headOf(memories.map(({ size }) => ({ size, stored: size / PAGE })));
  const headSize = longest.length;
  const bitmapsSize = memories.reduce((sum, { size }) => sum + bitmapBytes(size), 0);
  const bitmaps = new Uint8Array(base ? 2 * bitmapsSize : bitmapsSize);
  const before = new Uint8Array(pageAligned(At.HEAD + headSize + bitmaps.length));

  const crcs: number[] = [];
  const heads: MemoryHead[] = [];
  let at = before.length;
  let bitmapAt = 0;
  let done = 0;
  for (const [i, memory] of memories.entries()) {
    const first = crcs.length;
    const bitsAt = (from: number) => bitmaps.subarray(from, from + bitmapBytes(memory.size));
    const bitmap = bitsAt(bitmapAt);
    const account: Account = { bitmap, crcs, changed: base && bitsAt(bitmapAt + bitmapsSize) };
    bitmapAt += bitmap.length;
    const saved = base?.memories[i];
    const against = saved?.pages === memory.size / PAGE ? saved : undefined;
    let breath = 0;
    for (const { offset, size } of base ? chunks(memory, taking?.known(i)) : chunks(memory)) {
      signal?.throwIfAborted();
      const chunk = storedPages(memory, offset, size, account, against);
      if (chunk.length > 0) await writeFully(file, chunk, at);
      else if (breath++ % 64 === 0) await breathe();
      at += chunk.length;
      onProgress?.(done + offset + size, total);
    }
    done += memory.size;
    heads.push({ size: memory.size, stored: crcs.length - first });
  }
  if (base) onProgress?.(total, total);
  const table = new Uint8Array(crcs.length * 4);
  const tableView = viewOf(table);
  for (const [i, crc] of crcs.entries()) tableView.setUint32(i * 4, crc, true);
  await writeFully(file, table, at);

  const size = at + table.length;
  const view = viewOf(before);
  before.set(MAGIC);
  view.setUint32(At.VERSION, base ? FORMAT_VERSION_SINCE : FORMAT_VERSION, true);
  view.setUint32(At.PAGE_SIZE, PAGE, true);
  view.setBigUint64(At.FILE_SIZE, BigInt(size), true);
  view.setUint32(At.HEAD_SIZE, headSize, true);
  // JSON may end with spaces: the numbers have fewer digits than there is room for.
  before.fill(0x20, At.HEAD, At.HEAD + headSize);
  before.set(headOf(heads), At.HEAD);
  before.set(bitmaps, At.HEAD + headSize);
  before.set(digestOf(before), At.DIGEST);
  await writeFully(file, before, 0);
  const stored = crcs.length;
  const changed = base ? onesIn(bitmaps.subarray(bitmapsSize)) : stored;
  return { size, stored, changed, pages: total / PAGE, identity: identityOf(before, table) };
}

/** Where a file is, from the folder of another. */
const placeOf = (file: string, from: string): string =>
  relative(realpathSync(dirname(resolve(from))), realpathSync(file));

/** The parts of a memory that are looked at: all of it, or those that may have changed. */
function* chunks(
  { size }: GuestMemory,
  ranges: Iterable<{ readonly offset: number; readonly size: number }> = [{ offset: 0, size }],
) {
  for (const range of ranges)
    for (let done = 0; done < range.size; done += CHUNK)
      yield { offset: range.offset + done, size: Math.min(CHUNK, range.size - done) };
}

/**
 * The pages of a chunk that are not all zeroes, one after the other; with an older snapshot those that are not as there.
 * Marks them, and adds their CRCs.
 */
function storedPages(
  memory: GuestMemory,
  offset: number,
  size: number,
  { bitmap, changed, crcs }: Account,
  against: SnapshotMemory | undefined,
): Uint8Array {
  const chunk = memory.readSparse(offset, size);
  const old = against?.read(offset / PAGE, size / PAGE) ?? ZEROES.subarray(0, size);
  if (Buffer.compare(chunk, old) === 0) return chunk.subarray(0, 0);
  const zeroPage = ZEROES.subarray(0, PAGE);
  let length = 0;
  for (let at = 0; at < size; at += PAGE) {
    const page = chunk.subarray(at, at + PAGE);
    if (Buffer.compare(page, old.subarray(at, at + PAGE)) === 0) continue;
    const index = (offset + at) / PAGE;
    const bit = 1 << (index & 7);
    if (changed) changed[index >>> 3]! |= bit;
    if (Buffer.compare(page, zeroPage) === 0) continue;
    bitmap[index >>> 3]! |= bit;
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
