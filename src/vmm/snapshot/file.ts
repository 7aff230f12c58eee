/** A snapshot's file: exact reads, and whatever goes wrong named. */
import { closeSync, fstatSync, openSync, readSync } from 'node:fs';
import { closed } from '../../hypervisor/errors.ts';
import { unreadable } from './format.ts';

export const ALTERED = 'take the snapshot again, or another copy of the file';

export class SnapshotFile {
  readonly path: string;
  readonly size: number;
  #fd: number | undefined;

  constructor(path: string) {
    this.path = path;
    try {
      this.#fd = openSync(path, 'r');
    } catch (cause) {
      throw unreadable(path, `it cannot be opened (${(cause as NodeJS.ErrnoException).code})`, { cause });
    }
    const stat = fstatSync(this.#fd);
    this.size = stat.size;
    if (stat.isFile()) return;
    this.close();
    throw unreadable(path, 'it is no file');
  }

  /** Exactly these bytes. */
  read(offset: number, into: Uint8Array): void {
    if (this.#fd === undefined) throw closed('snapshot');
    for (let at = 0; at < into.length; ) {
      let got: number;
      try {
        got = readSync(this.#fd, into, at, into.length - at, offset + at);
      } catch (cause) {
        const { code } = cause as NodeJS.ErrnoException;
        throw unreadable(this.path, `reading it fails (${code})`, { cause });
      }
      if (got === 0) throw unreadable(this.path, `it was truncated while it was in use: ${ALTERED}`);
      at += got;
    }
  }

  close(): void {
    if (this.#fd !== undefined) closeSync(this.#fd);
    this.#fd = undefined;
  }
}
