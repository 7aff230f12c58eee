import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { afterEach, describe, expect, it } from 'vitest';
import { openHttp } from '../../src/vmm/pager/http.ts';

const PAGE = 4096;
const PAGES = 8;
const bytes = Buffer.from(Array.from({ length: PAGES * PAGE }, (_, at) => (at >> 4) & 0xff));

/** Undefined is left out. */
type Headers = Readonly<Record<string, string | undefined>>;
interface Answer {
  readonly status?: number;
  readonly headers?: Headers;
  readonly body?: Uint8Array;
}
/** What a server that is asked for these bytes, for the `asked`th time, has other than it should. */
type Wrong = (from: number, to: number, asked: number) => Answer;

let server: Server | undefined;
afterEach(() => server?.close());

async function sourceOf(wrong: Wrong, pages = PAGES, offset = 0) {
  let asked = 0;
  server = createServer((request, response) => {
    const [from, to] = /^bytes=(\d+)-(\d+)$/
      .exec(request.headers.range ?? '')!
      .slice(1)
      .map(Number);
    const { status = 206, headers, body = bytes.subarray(from!, to! + 1) } = wrong(from!, to!, asked++);
    const right = { 'content-range': `bytes ${from}-${to}/${bytes.length}`, etag: '"1"' };
    const all = Object.entries({ ...right, ...headers }).filter(([, value]) => value !== undefined);
    response.writeHead(status, Object.fromEntries(all) as Record<string, string>).end(body);
  });
  await new Promise<void>((resolve) => server!.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as AddressInfo;
  return openHttp({ url: `http://127.0.0.1:${port}/`, offset }, pages);
}
const later =
  (headers: Headers): Wrong =>
  (_from, _to, asked) =>
    asked === 0 ? {} : { headers };

describe('pages from an HTTP server', () => {
  it('are those that were asked for, from an offset on', async () => {
    const source = await sourceOf(() => ({}), 4, 2 * PAGE);
    expect(Buffer.compare(await source.read(1, 2), bytes.subarray(3 * PAGE, 5 * PAGE))).toBe(0);
    source.close();
  });

  it('may come from a server that knows neither the length nor a version', async () => {
    const source = await sourceOf((from, to) => ({
      headers: { 'content-range': `bytes ${from}-${to}/*`, etag: undefined },
    }));
    await source.read(0, 1);
    expect(Buffer.compare(await source.read(1, 1), bytes.subarray(PAGE, 2 * PAGE))).toBe(0);
  });

  const range = (from: number, to: number, length: number | string = bytes.length) => ({
    'content-range': `bytes ${from}-${to}/${length}`,
  });
  const refused: readonly [what: string, wrong: Wrong, says: RegExp][] = [
    [
      'of a server without ranges',
      () => ({ status: 200 }),
      /answered 200: the server does not know range requests, to a request for bytes=4096-8191/,
    ],
    ['of a server that says no', () => ({ status: 404 }), /answered 404 to/],
    [
      'of a range that was left out',
      () => ({ headers: { 'content-range': undefined } }),
      /Content-Range null/,
    ],
    ['of a range in no words', () => ({ headers: { 'content-range': 'all' } }), /Content-Range "all"/],
    [
      'in several parts',
      () => ({ headers: { 'content-range': undefined, 'content-type': 'multipart/byteranges; boundary=x' } }),
      /Content-Range null/,
    ],
    [
      'from elsewhere',
      (from, to) => ({ headers: range(from + PAGE, to + PAGE) }),
      /bytes 8192-12287 to a request for bytes=4096-8191/,
    ],
    ['of fewer bytes', (from, to) => ({ headers: range(from, to - 1) }), /bytes 4096-8190 to/],
    ['of more bytes', (from, to) => ({ headers: range(from, to + 1) }), /bytes 4096-8192 to/],
    [
      'of a resource that is too short',
      (from, to) => ({ headers: range(from, to, bytes.length - 1) }),
      /has 32767 bytes, and the 8 pages of guest memory need 32768/,
    ],
    ['in another coding', () => ({ headers: { 'content-encoding': 'x-none' } }), /content encoding x-none/],
  ];
  it.each(refused)('are refused: an answer %s', async (_what, wrong, says) => {
    const source = await sourceOf(wrong);
    const read = Promise.resolve(source.read(1, 1));
    await expect(read).rejects.toMatchObject({
      code: 'ERR_KVM_SOURCE',
      message: expect.stringMatching(says),
    });
  });

  const changed: readonly [what: string, headers: Headers, says: RegExp][] = [
    ['ETag', { etag: '"2"' }, /has changed: its etag was "1" and is "2" now/],
    ['ETag that there was', { etag: undefined }, /its etag was "1", and it has none now/],
    ['length', range(PAGE, 2 * PAGE - 1, bytes.length + 1), /its length was 32768 and is 32769 now/],
  ];
  it.each(changed)(
    'are refused when the %s has changed since the first answer',
    async (_what, headers, says) => {
      const source = await sourceOf(later(headers));
      await source.read(0, 1);
      await expect(source.read(1, 1)).rejects.toMatchObject({
        code: 'ERR_KVM_SOURCE',
        message: expect.stringMatching(says),
      });
      // The version that was known counts, and not the last one.
      await expect(source.read(1, 1)).rejects.toThrow(/has changed/);
    },
  );

  it('are not waited for when a body goes on behind them: no more is taken than shows it', async () => {
    const closed = new Promise<void>((resolve) => {
      server = createServer((_, response) => {
        response.writeHead(206, range(0, PAGE - 1)).on('close', resolve);
        const more = () => response.write(bytes, (error) => error ?? more());
        more();
      });
    });
    await new Promise<void>((resolve) => server!.listen(0, '127.0.0.1', resolve));
    const source = openHttp({ url: `http://127.0.0.1:${(server!.address() as AddressInfo).port}/` }, PAGES);
    expect((await source.read(0, 1)).length).toBe(PAGE + 1); // which checked() refuses
    await closed;
  });

  it('are refused with the reason when the server cannot be reached, or goes away', async () => {
    const source = await sourceOf(() => ({ headers: { 'content-length': `${PAGE + 1}` } }));
    const cut = source.read(0, 1);
    setTimeout(() => server!.closeAllConnections(), 200);
    await expect(cut).rejects.toMatchObject({
      code: 'ERR_KVM_SOURCE',
      message: expect.stringMatching(/^http:.* cannot be read: (?!terminated)./),
    });
    server!.close();
    await expect(source.read(0, 1)).rejects.toThrow(/^http:.* cannot be read: .*ECONNREFUSED/);
  });
});
