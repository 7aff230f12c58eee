/** Reads a snapshot from its file. Opening one checks all but the pages, and costs the same for any size of guest. */
import { realpathSync } from 'node:fs';
import { dirname, resolve } from 'node:path';
import { PAGE_SIZE as PAGE } from '../../hypervisor/args.ts';
import { VmexitError } from '../../hypervisor/errors.ts';
import { viewOf } from '../../uapi/layout.ts';
import { ALTERED, SnapshotFile } from './file.ts';
import {
  At,
  type Base,
  bitmapBytes,
  digestOf,
  FORMAT_VERSION,
  FORMAT_VERSION_SINCE,
  identityOf,
  MAGIC,
  MAX_HEAD,
  type MemoryHead,
  pageAligned,
  unreadable,
} from './format.ts';
import { type MachineState, parseState } from './schema.ts';
import { Layer, type Place, type SnapshotMemory, StoredMemory } from './stored.ts';

export type { SnapshotMemory } from './stored.ts';

/** A snapshot's file, open for reading. */
export interface Snapshot extends Disposable {
  /** The file, as it was given. */
  readonly path: string;
  /**
   * The files that it consists of: its own, and of one that holds only what has changed those that it builds on, down to one
   * that holds all.
   */
  readonly chain: readonly string[];
  /** Tells its contents from those of any other, in hex: SHA-256 of its head, its bitmaps and its pages' checksums. */
  readonly identity: string;
  /** All of the machine but its memory. */
  readonly state: MachineState;
  /** In the order of the state's sizes. */
  readonly memories: readonly SnapshotMemory[];
  /** Idempotent. */
  close(): void;
}

/**
 * Opens a snapshot's file and checks all of it but the pages, which are checked as they are read. It costs the same for
 * any size of guest. Of one that holds only what has changed since another (`since` of writeSnapshot()) that one is opened
 * too, and those that it builds on; each must be the file that it was, and stay where it is from the folder of the next.
 * @throws VmexitError ERR_KVM_SNAPSHOT that names the file, what is wrong with it and what to do: it is not there, no
 *   snapshot, truncated, altered, another one, or of another version
 */
export function openSnapshot(path: string): Snapshot {
  const files: SnapshotFile[] = [];
  const close = () => {
    for (const file of files) file.close();
  };
  try {
    files.push(new SnapshotFile(path));
    const top = open(files[0]!);
    const layers = top.layers.map((layer) => [layer]);
    for (let above = top; above.base !== undefined; ) {
      const below = opened(above.base, above.path, files);
      for (const [i, list] of layers.entries()) {
        // A memory that was not there then, or had another size, was zeroes.
        const isNext =
          above.layers[i] === list.at(-1) && below.layers[i]?.place.pages === list[0]!.place.pages;
        if (isNext) list.push(below.layers[i]!);
      }
      above = below;
    }
    let identity: string | undefined;
    return {
      path,
      chain: files.map((file) => file.path),
      get identity() {
        identity ??= top.identity();
        return identity;
      },
      state: top.state,
      memories: layers.map((list) => new StoredMemory(list)),
      close,
      [Symbol.dispose]: close,
    };
  } catch (error) {
    close();
    throw error;
  }
}

/** The file that another one builds on, if it is the one that it was. */
function opened(base: Base, above: string, files: SnapshotFile[]): Opened {
  const path = resolve(dirname(realpathSync(above)), base.path);
  const what = `it holds what has changed since ${path}`;
  let below: Opened;
  try {
    const file = new SnapshotFile(path);
    files.push(file);
    below = open(file);
    if (below.identity() === base.identity) return below;
  } catch (cause) {
    if (!(cause instanceof VmexitError)) throw cause;
    throw unreadable(above, `${what}, which cannot be read: ${cause.message}`, { cause });
  }
  throw unreadable(above, `${what}, and that is another snapshot now: put back the one that it was`);
}

interface Opened {
  readonly path: string;
  readonly state: MachineState;
  readonly layers: readonly Layer[];
  readonly base: Base | undefined;
  identity(): string;
}

function open(file: SnapshotFile): Opened {
  const { path } = file;
  const prefix = new Uint8Array(At.HEAD);
  if (file.size < prefix.length)
    throw unreadable(path, `it has ${file.size} bytes, and is no snapshot: ${ALTERED}`);
  file.read(0, prefix);
  const view = viewOf(prefix);
  if (!MAGIC.every((byte, i) => prefix[i] === byte)) throw unreadable(path, 'it is no snapshot of vmexit');
  const version = view.getUint32(At.VERSION, true);
  if (version !== FORMAT_VERSION && version !== FORMAT_VERSION_SINCE) {
    const reads = `${FORMAT_VERSION} and ${FORMAT_VERSION_SINCE}`;
    throw unreadable(
      path,
      `it is of version ${version}, and this vmexit reads versions ${reads}: use the vmexit that wrote it`,
    );
  }
  const wanted = Number(view.getBigUint64(At.FILE_SIZE, true));
  if (wanted !== file.size) {
    const how = file.size < wanted ? 'truncated' : 'altered';
    throw unreadable(path, `it is ${how}: it has ${file.size} bytes, and should have ${wanted}: ${ALTERED}`);
  }
  const headSize = view.getUint32(At.HEAD_SIZE, true);
  const altered = (what: string) => unreadable(path, `its ${what}: ${ALTERED}`);
  if (headSize > MAX_HEAD || At.HEAD + headSize > file.size) throw altered('head does not fit into it');
  const head = new Uint8Array(headSize);
  file.read(At.HEAD, head);

  // What the head says is believed when the digest is right, and that covers the bitmaps, whose sizes it tells.
  const parsed = parseJson(head) as { state?: unknown; memories?: unknown; base?: unknown } | undefined;
  const heads = memoryHeads(parsed?.memories);
  const isSince = version === FORMAT_VERSION_SINCE;
  const bitmapsSize = heads?.reduce((sum, { size }) => sum + bitmapBytes(size), 0) ?? 0;
  const pagesAt = pageAligned(At.HEAD + headSize + bitmapsSize * (isSince ? 2 : 1));
  const before = new Uint8Array(heads !== undefined && pagesAt <= file.size ? pagesAt : At.HEAD);
  file.read(0, before);
  if (
    heads === undefined ||
    before.length !== pagesAt ||
    digestOf(before).compare(before, At.DIGEST, At.HEAD) !== 0
  )
    throw altered('head or bitmaps were altered');
  if (view.getUint32(At.PAGE_SIZE, true) !== PAGE) throw altered(`pages are not of ${PAGE} bytes`);

  const state = stateOf(path, parsed!.state);
  const stored = heads.reduce((sum, memory) => sum + memory.stored, 0);
  const sizes = state.vm.memories;
  if (heads.length !== sizes.length || !heads.every(({ size }, i) => size === sizes[i]))
    throw altered('memories are not those of its state');
  const crcsAt = pagesAt + stored * PAGE;
  if (crcsAt + stored * 4 !== file.size) throw altered('size is not that of its pages');
  const base = isSince ? baseOf(parsed!.base) : undefined;
  if (isSince && base === undefined) throw altered('head does not say what it builds on');

  let bitmapAt = At.HEAD + headSize;
  let first = 0;
  const layers = heads.map(({ size, stored }, index) => {
    const bytes = bitmapBytes(size);
    const bitsAt = (at: number) => before.subarray(at, at + bytes);
    const place: Place = {
      bitmap: bitsAt(bitmapAt),
      changed: isSince ? bitsAt(bitmapAt + bitmapsSize) : undefined,
      pages: size / PAGE,
      first,
      pagesAt,
      crcsAt,
      index,
    };
    const layer = new Layer(file, place);
    if (layer.stored !== stored || !layer.ownsAll) throw altered('bitmaps are not those of its pages');
    bitmapAt += bytes;
    first += stored;
    return layer;
  });
  const identity = () => {
    const crcs = new Uint8Array(stored * 4);
    file.read(crcsAt, crcs);
    return identityOf(prefix, crcs);
  };
  return { path, state, layers, base, identity };
}

function parseJson(bytes: Uint8Array): unknown {
  try {
    return JSON.parse(new TextDecoder().decode(bytes));
  } catch {
    return undefined;
  }
}

/** Of a file whose digest was not looked at yet: anything may be here. */
function memoryHeads(value: unknown): MemoryHead[] | undefined {
  if (!Array.isArray(value)) return undefined;
  const whole = (n: unknown) => Number.isSafeInteger(n) && (n as number) >= 0;
  const fits = value.every((one) => whole(one?.size) && one.size % PAGE === 0 && whole(one?.stored));
  return fits ? value : undefined;
}

function baseOf(value: unknown): Base | undefined {
  const { path, identity } = (value ?? {}) as Partial<Base>;
  const fits = typeof path === 'string' && path !== '' && typeof identity === 'string';
  return fits ? { path, identity } : undefined;
}

function stateOf(path: string, value: unknown): MachineState {
  try {
    return parseState(value);
  } catch (cause) {
    throw unreadable(path, (cause as Error).message, { cause });
  }
}
