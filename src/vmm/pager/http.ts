/** Pages from a server that answers range requests of one resource (RFC 9110, 14), and never from another version of it. */

import { PAGE_SIZE as PAGE } from '../../hypervisor/args.ts';
import { sourceError, tooShort } from './errors.ts';
import type { PullSource } from './page-source.ts';

/** What a resource may not change while its pages are fetched, by the header that tells it. */
const VALIDATORS = ['etag', 'last-modified'] as const;

/** Which bytes of how many a 206 says that it has. `*`, which stands for an unknown length, is no length. */
function contentRange(response: Response): { from: number; last: number; length: number } | undefined {
  // One header for one range: without it the body is multipart/byteranges, which nobody asked for (RFC 9110, 15.3.7).
  const [, from, last, length] =
    /^bytes +(\d+)-(\d+)\/(\d+|\*)$/i.exec(response.headers.get('content-range')?.trim() ?? '') ?? [];
  return from === undefined ? undefined : { from: Number(from), last: Number(last), length: Number(length) };
}

/** The body; of one that goes on behind `most` bytes no more than shows that. */
async function bodyOf({ body }: Response, most: number): Promise<Uint8Array> {
  const parts: Uint8Array[] = [];
  let size = 0;
  for await (const part of body ?? []) {
    parts.push(part);
    size += part.length;
    if (size > most) break;
  }
  return Buffer.concat(parts).subarray(0, most + 1);
}

/** @throws VmexitError ERR_KVM_SOURCE from read(), for each answer that is not the bytes that were asked for */
export function openHttp(
  { url, offset = 0 }: { readonly url: string; readonly offset?: number },
  pages: number,
): PullSource {
  const stopped = new AbortController();
  const known = new Map<string, string>();

  /** @throws what is wrong with the answer, before a byte of it is taken */
  function check(response: Response, from: number, count: number): void {
    const range = `bytes=${from}-${from + count - 1}`;
    const refuse = (why: string) => sourceError(`${url} answered ${why} to a request for ${range}`);
    const { status, headers } = response;
    if (status === 200) throw refuse('200: the server does not know range requests,');
    if (status !== 206) throw refuse(`${status}`);
    const coding = headers.get('content-encoding') ?? 'identity';
    if (coding !== 'identity') throw refuse(`with the content encoding ${coding}`);
    const has = contentRange(response);
    if (has === undefined)
      throw refuse(`with the Content-Range ${JSON.stringify(headers.get('content-range'))}`);
    if (has.from !== from || has.last !== from + count - 1) throw refuse(`bytes ${has.from}-${has.last}`);
    if (has.length < offset + pages * PAGE)
      throw tooShort(`${url}, from byte ${offset} on,`, Math.max(has.length - offset, 0), pages);
    const version = new Map<string, string>();
    if (!Number.isNaN(has.length)) version.set('length', `${has.length}`);
    for (const name of VALIDATORS) {
      const value = headers.get(name);
      if (value !== null) version.set(name, value);
    }
    // A 206 has the ETag that a 200 would have (RFC 9110, 15.3.7): without it nobody knows of which version it is.
    if (known.has('etag') && !version.has('etag'))
      throw sourceError(`${url} has changed: its etag was ${known.get('etag')}, and it has none now`);
    for (const [name, value] of version) {
      const before = known.get(name) ?? value;
      if (before !== value)
        throw sourceError(`${url} has changed: its ${name} was ${before} and is ${value} now`);
      known.set(name, value);
    }
  }

  /** What fetch() says of a failure is in its cause. */
  async function reached<T>(answer: () => Promise<T>): Promise<T> {
    try {
      return await answer();
    } catch (error) {
      const { cause = error } = error as { readonly cause?: unknown };
      throw sourceError(
        `${url} cannot be read: ${(cause as Error).message || (cause as { code?: string }).code}`,
        { cause },
      );
    }
  }

  return {
    async read(first, count) {
      const from = offset + first * PAGE;
      const headers = { range: `bytes=${from}-${from + count * PAGE - 1}` };
      const response = await reached(() => fetch(url, { headers, signal: stopped.signal }));
      try {
        check(response, from, count * PAGE);
      } catch (error) {
        await response.body?.cancel();
        throw error;
      }
      return await reached(() => bodyOf(response, count * PAGE));
    },
    close: () => stopped.abort(),
  };
}
