/** Where pages come from. A source is named by plain data, which a thread can be given; that thread opens it. */

import { closeSync, fstatSync, openSync, readSync } from 'node:fs';
import type { Socket } from 'node:net';
import { connect } from 'node:net';
import { object, PAGE_SIZE as PAGE } from '../../hypervisor/args.ts';
import { outOfRange, wrongType } from '../../hypervisor/errors.ts';
import { type ArrivalDescriptor, openArrival } from '../migration/arrival.ts';
import { openSnapshot } from '../snapshot/read.ts';
import { sourceError, tooShort } from './errors.ts';
import { openHttp } from './http.ts';
import type { PageSource } from './page-source.ts';

/** A source as data. Guest memory begins at its first byte, or at byte `offset` where it has one. */
export type SourceDescriptor =
  /** Bytes in memory. */
  | {
      readonly kind: 'buffer';
      /** The contents of guest memory. What does not lie in a SharedArrayBuffer is copied once. */
      readonly bytes: Uint8Array;
    }
  /** A file. */
  | {
      readonly kind: 'file';
      /** Where it is. */
      readonly path: string;
      /** Where guest memory begins in it, in bytes: 0 without it. */
      readonly offset?: number;
    }
  /**
   * A server that answers range requests (RFC 9110, 14) of one resource. ERR_KVM_SOURCE where it answers with other bytes,
   * with a content encoding, or with another length, ETag or Last-Modified than before.
   */
  | {
      readonly kind: 'http';
      /** The resource: `http:` or `https:`. */
      readonly url: string;
      /** Where guest memory begins in it, in bytes: 0 without it. */
      readonly offset?: number;
    }
  /** A file that `vmexit snapshot` has written: its memories, one after the other. */
  | {
      readonly kind: 'snapshot';
      /** Where it is. */
      readonly path: string;
    }
  /** A Unix socket from which all pages come, in their order: nothing is asked. */
  | {
      readonly kind: 'stream';
      /** The socket's path. */
      readonly path: string;
    }
  /** A TCP connection from which all pages come, in their order: nothing is asked. */
  | {
      readonly kind: 'stream';
      /** A name or an address: this host without it. */
      readonly host?: string;
      /** The port. */
      readonly port: number;
    }
  /** A guest that was handed over: receiveGuest() makes it. */
  | ArrivalDescriptor;

/** What `source` of a pager may be beside a descriptor: one that only another module can open, by its kind. */
export interface Opened {
  /** Gives its bytes at once, without a promise: the VMM's own thread can serve from it too. */
  readonly immediate: boolean;
  open(descriptor: never, pages: number): PageSource;
}

function openBuffer({ bytes }: { readonly bytes: Uint8Array }, pages: number): PageSource {
  if (bytes.length < pages * PAGE) throw tooShort('the buffer', bytes.length, pages);
  return {
    read: (first, count) => bytes.subarray(first * PAGE, (first + count) * PAGE),
    close: () => {},
  };
}

function openFile(
  { path, offset = 0 }: { readonly path: string; readonly offset?: number },
  pages: number,
): PageSource {
  let fd: number;
  try {
    fd = openSync(path, 'r');
  } catch (cause) {
    throw sourceError(`${path} cannot be opened (${(cause as NodeJS.ErrnoException).code})`, { cause });
  }
  const { size } = fstatSync(fd);
  if (size - offset < pages * PAGE) {
    closeSync(fd);
    throw tooShort(`${path}, from byte ${offset} on,`, Math.max(size - offset, 0), pages);
  }
  return {
    read(first, count) {
      const bytes = new Uint8Array(count * PAGE);
      for (let done = 0; done < bytes.length; ) {
        const more = readSync(fd, bytes, done, bytes.length - done, offset + first * PAGE + done);
        // It was cut after it was opened. What was read so far goes to the caller, who counts.
        if (more === 0) return bytes.subarray(0, done);
        done += more;
      }
      return bytes;
    },
    close: () => closeSync(fd),
  };
}

function openSnapshotPages({ path }: { readonly path: string }, pages: number): PageSource {
  const snapshot = openSnapshot(path);
  let first = 0;
  const parts = snapshot.memories.map((memory) => {
    const part = { memory, first };
    first += memory.pages;
    return part;
  });
  if (first !== pages) {
    snapshot.close();
    throw sourceError(`${path} has ${first} pages of memory, and the guest ${pages}`);
  }
  return {
    read(from, count) {
      const pieces = parts.flatMap(({ memory, first }) => {
        const start = Math.max(from, first);
        const length = Math.min(from + count, first + memory.pages) - start;
        return length > 0 ? [memory.read(start - first, length)] : [];
      });
      return pieces.length === 1 ? pieces[0]! : Buffer.concat(pieces);
    },
    *runs() {
      for (const { memory, first } of parts)
        for (const run of memory.runs(memory.pages)) yield { first: first + run.first, count: run.count };
    },
    close: () => snapshot.close(),
  };
}

type Address = { readonly path: string } | { readonly host?: string; readonly port: number };
const nameOf = (address: Address) =>
  'path' in address ? address.path : `${address.host ?? 'localhost'}:${address.port}`;

/** All pages in their order: reads wait for theirs to come by. */
function openStream(descriptor: Address, pages: number): PageSource {
  const name = nameOf(descriptor);
  const socket: Socket = connect({ ...descriptor });
  return {
    start(deliver, end) {
      let next = 0;
      let rest = Buffer.alloc(0);
      let over = false;
      const finish = (error?: Error) => {
        if (over) return;
        over = true;
        socket.destroy();
        end(error);
      };
      socket.on('data', (chunk) => {
        const bytes = rest.length > 0 ? Buffer.concat([rest, chunk]) : chunk;
        const count = Math.min(Math.floor(bytes.length / PAGE), pages - next);
        if (count > 0) deliver(next, bytes.subarray(0, count * PAGE));
        next += count;
        rest = bytes.subarray(count * PAGE);
        if (next === pages) finish();
      });
      socket.on('error', (cause) => finish(sourceError(`${name}: ${cause.message}`, { cause })));
      socket.on('close', () => finish(sourceError(`${name} ended after ${next} of ${pages} pages`)));
    },
    close: () => socket.destroy(),
  };
}

const kinds: { readonly [kind: string]: Opened } = {
  buffer: { immediate: true, open: openBuffer },
  file: { immediate: true, open: openFile },
  snapshot: { immediate: true, open: openSnapshotPages },
  migration: { immediate: false, open: openArrival },
  http: { immediate: false, open: openHttp },
  stream: { immediate: false, open: openStream },
};

/** @throws TypeError, RangeError ERR_KVM_INVALID_ARG */
export function checkSource(source: SourceDescriptor): void {
  const { kind } = object('source', source);
  if (!Object.hasOwn(kinds, kind))
    throw outOfRange('source.kind', kind, `one of ${Object.keys(kinds).join(', ')}`);
  if (source.kind === 'buffer' && !(source.bytes instanceof Uint8Array))
    throw wrongType('source.bytes', source.bytes, 'a Uint8Array');
}

export const isImmediate = (source: SourceDescriptor): boolean => kinds[source.kind]!.immediate;

/** @throws VmexitError ERR_KVM_SOURCE when it is not there, or too short */
export const openSource = (source: SourceDescriptor, pages: number): PageSource =>
  kinds[source.kind]!.open(source as never, pages);

/** As another thread can be given it. */
export function shareable(source: SourceDescriptor): SourceDescriptor {
  if (source.kind !== 'buffer' || source.bytes.buffer instanceof SharedArrayBuffer) return source;
  const bytes = new Uint8Array(new SharedArrayBuffer(source.bytes.length));
  bytes.set(source.bytes);
  return { kind: 'buffer', bytes };
}

/** What was read, if it is as long as it must be. */
export function checked(bytes: Uint8Array, first: number, count: number): Uint8Array {
  if (!(bytes instanceof Uint8Array) || bytes.length !== count * PAGE) {
    const got = bytes instanceof Uint8Array ? `${bytes.length} bytes` : 'no bytes';
    throw sourceError(
      `the source gave ${got} for pages ${first} to ${first + count - 1}, which have ${count * PAGE}`,
    );
  }
  return bytes;
}
