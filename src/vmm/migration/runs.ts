/** Runs of pages as they travel: what is said of one, and how it is known to be what was sent. */
import { PAGE_SIZE as PAGE } from '../../hypervisor/args.ts';
import { MigrationError } from '../../hypervisor/errors.ts';
import { crc32 } from '../snapshot/format.ts';
import { type Frame, MAX_RUN, MAX_ZEROES, RUN_HEAD } from './channel.ts';

export interface Run {
  readonly first: number;
  readonly count: number;
  /** Somebody waits for it; else it comes on its own. */
  readonly asked: boolean;
}

const CRC_AT = RUN_HEAD - 4;

export function runHead({ first, count, asked }: Run, contents: Uint8Array): Buffer {
  const head = Buffer.alloc(RUN_HEAD);
  head.writeUInt32LE(first, 0);
  head.writeUInt32LE(count, 4);
  head.writeUInt32LE(Number(asked), 8);
  head.writeUInt32LE(crc32(contents, crc32(head.subarray(0, CRC_AT))), CRC_AT);
  return head;
}

/**
 * What a PAGES or ZEROES frame says.
 * @param pages how many the guest has
 * @throws MigrationError for pages that it has not, contents of another length, and what was altered
 */
export function parseRun({ name, body }: Frame, pages: number): Run & { readonly contents: Buffer } {
  const first = body.readUInt32LE(0);
  const count = body.readUInt32LE(4);
  const contents = body.subarray(RUN_HEAD);
  const which = `${count} pages from page ${first} on`;
  const most = name === 'PAGES' ? MAX_RUN : MAX_ZEROES;
  if (count < 1 || count > most || first + count > pages)
    throw new MigrationError(
      `the source sent ${which}; it may send 1 to ${most} at a time, and the guest has ${pages}`,
    );
  if (contents.length !== (name === 'PAGES' ? count * PAGE : 0))
    throw new MigrationError(`the source sent ${contents.length} bytes for ${which}`);
  if (crc32(contents, crc32(body.subarray(0, CRC_AT))) !== body.readUInt32LE(CRC_AT))
    throw new MigrationError(`${which} were altered on the way: their CRC is another`);
  return { first, count, asked: body.readUInt32LE(8) !== 0, contents };
}

const ZERO_PAGE = new Uint8Array(PAGE);

/** Of the page at this number within the bytes. */
export const isZero = (bytes: Uint8Array, page: number): boolean =>
  Buffer.compare(bytes.subarray(page * PAGE, (page + 1) * PAGE), ZERO_PAGE) === 0;
