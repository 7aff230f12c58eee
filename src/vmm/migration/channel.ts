/**
 * What source and destination of a migration tell each other, and the sockets by which they do, little-endian:
 *
 *     each side, first     8 bytes magic, u32 version, u32 zero
 *     then frames          u32 type, u32 bytes of the body, the body
 *
 * Two connections, one after the other at the address where the destination listens. By the first, `control`:
 *
 *     source               destination
 *     STATE          ->                     the machine's state: SHA-256 of the JSON, the JSON
 *                    <-    ACCEPT           all could be made; a token, and pages may come
 *                    <-    READY            the registers are set, too
 *     GO             ->                     from here on the guest is the destination's
 *
 * By the second, `pages`, since a thread owns it that goes on while the first one's stands still in KVM_RUN:
 *
 *     ATTACH         ->                     the token
 *                    <-    ATTACHED
 *                    <-    WANT             u32 page: somebody waits for it
 *     PAGES          ->                     u32 first, u32 count, u32 asked, u32 CRC-32 of those and the contents; contents
 *     ZEROES         ->                     the same, of pages that are all zeroes, without contents
 *                    <-    DONE             every page is there: the source may forget its guest
 *
 * REFUSE, with the reason in UTF-8, may come instead of anything. READY and GO are two, so that no broken connection
 * leaves a guest that runs on both sides.
 */

import type { Socket } from 'node:net';
import { PAGE_SIZE as PAGE } from '../../hypervisor/args.ts';
import { MigrationError } from '../../hypervisor/errors.ts';

export const VERSION = 1;
const MAGIC = Buffer.from('vmexitM\n');
const HELLO_SIZE = 16;

/** Pages of a PAGES frame, at most. */
export const MAX_RUN = 64;
/** Pages of a ZEROES frame, at most. */
export const MAX_ZEROES = 256;
export const TOKEN_SIZE = 16;
export const DIGEST_SIZE = 32;
/** first, count, asked, CRC. */
export const RUN_HEAD = 16;
/** A state of thousands of vCPUs has less. */
const MAX_STATE = 2 ** 26;
const MAX_REASON = 2048;

interface Kind {
  readonly type: number;
  /** Bytes of its body. */
  readonly least: number;
  readonly most: number;
}
const kind = (type: number, least = 0, most = least): Kind => ({ type, least, most });

export const frames = {
  REFUSE: kind(0, 0, MAX_REASON),
  STATE: kind(1, DIGEST_SIZE, DIGEST_SIZE + MAX_STATE),
  ACCEPT: kind(2, TOKEN_SIZE),
  READY: kind(3),
  GO: kind(4),
  ATTACH: kind(5, TOKEN_SIZE),
  ATTACHED: kind(6),
  WANT: kind(7, 4),
  PAGES: kind(8, RUN_HEAD + PAGE, RUN_HEAD + MAX_RUN * PAGE),
  ZEROES: kind(9, RUN_HEAD),
  DONE: kind(10),
} as const;
export type FrameName = keyof typeof frames;

export interface Frame {
  readonly name: FrameName;
  readonly body: Buffer;
}

/** What a peer has sent, so that a terminal can show it. */
const shown = (bytes: Uint8Array): string => JSON.stringify(Buffer.from(bytes).toString('latin1'));
// biome-ignore lint/suspicious/noControlCharactersInRegex: they are what must not reach a terminal.
const printable = (text: string): string => text.replace(/[\u0000-\u001f\u007f-\u009f]/g, ' ');

/** How long what was written last may take to leave when a connection is closed. */
const LINGER_MS = 1000;

/**
 * One connection. It is read only as far as somebody receives, and no more than a frame of a known length is held: a
 * peer can neither fill memory nor be waited for without end.
 */
export class Channel {
  readonly #socket: Socket;
  readonly #peer: string;
  readonly #timeoutMs: number;
  #failure: Error | undefined;
  /** Who waits for something to happen. */
  readonly #waiting = new Set<() => void>();

  /** @param peer who is at the other end, for messages */
  constructor(socket: Socket, peer: string, timeoutMs: number) {
    this.#socket = socket;
    this.#peer = peer;
    this.#timeoutMs = timeoutMs;
    socket.setNoDelay(true);
    socket.on('error', (cause) =>
      this.fail(this.#error(`the connection is broken (${cause.message})`, cause)),
    );
    socket.on('close', () => this.fail(this.#error('the connection has ended')));
    for (const event of ['readable', 'end'] as const) socket.on(event, () => this.#wake());
  }

  #error(what: string, cause?: Error): MigrationError {
    return new MigrationError(`${this.#peer}: ${what}`, cause && { cause });
  }
  #wake(): void {
    for (const wake of this.#waiting) wake();
    this.#waiting.clear();
  }

  /** Nothing more is received or sent: whoever tries gets the error. The first one stays. */
  fail(error: Error): void {
    this.#failure ??= error;
    this.#wake();
  }
  /** @throws what has ended it */
  check(): void {
    if (this.#failure !== undefined) throw this.#failure;
  }

  /** Resolves when something has happened. @throws MigrationError when nothing has by then */
  async #event(deadline: number, waitingFor: string): Promise<void> {
    await new Promise<void>((resolve, reject) => {
      const silent = () => {
        this.#waiting.delete(wake);
        reject(this.#error(`it has said nothing for ${this.#timeoutMs} ms, where ${waitingFor} should come`));
      };
      const timer =
        deadline === Number.POSITIVE_INFINITY
          ? undefined
          : setTimeout(silent, Math.max(deadline - performance.now(), 0));
      const wake = () => {
        clearTimeout(timer);
        resolve();
      };
      this.#waiting.add(wake);
    });
  }

  /** Exactly so many bytes. */
  async #take(size: number, deadline: number, waitingFor: string): Promise<Buffer> {
    const socket = this.#socket;
    for (;;) {
      // What has come before the connection ended is still said.
      const bytes = socket.read(size) as Buffer | null;
      if (bytes?.length === size) return bytes;
      if (bytes !== null || socket.readableEnded) {
        const part = bytes === null ? '' : ` after ${bytes.length} of ${size} bytes of it`;
        throw this.#failure ?? this.#error(`the connection has ended where ${waitingFor} should come${part}`);
      }
      this.check();
      await this.#event(deadline, waitingFor);
    }
  }

  /** Says who we are, and finds out who they are. @throws MigrationError for another version, or somebody else */
  async greet(): Promise<void> {
    const hello = Buffer.alloc(HELLO_SIZE);
    MAGIC.copy(hello);
    hello.writeUInt32LE(VERSION, MAGIC.length);
    await this.#write(hello);
    const deadline = performance.now() + this.#timeoutMs;
    const theirs: Buffer[] = [];
    // Byte by byte: one that says something else, and less, is known by its first.
    while (theirs.length < MAGIC.length) {
      const byte = await this.#take(1, deadline, 'a greeting');
      theirs.push(byte);
      if (byte[0] === MAGIC[theirs.length - 1]) continue;
      const rest = (this.#socket.read() as Buffer | null) ?? Buffer.alloc(0);
      const came = shown(Buffer.concat([...theirs, rest]).subarray(0, HELLO_SIZE));
      throw this.#error(`it is no vmexit that migrates guests: it began with ${came}`);
    }
    const version = (await this.#take(4, deadline, 'a version')).readUInt32LE();
    if (version !== VERSION)
      throw this.#error(
        `it migrates guests by version ${version}, and this vmexit by version ${VERSION}: use the same vmexit on both sides`,
      );
    await this.#take(4, deadline, 'the end of a greeting');
  }

  /**
   * The next frame, which must be one of these.
   * @param timeoutMs until all of it must be there
   * @throws MigrationError for any other, a wrong length, a refusal, silence, or a broken connection
   */
  async receive(names: readonly FrameName[], timeoutMs = this.#timeoutMs): Promise<Frame> {
    const deadline = performance.now() + timeoutMs;
    const expected = names.join(' or ');
    const head = await this.#take(8, deadline, expected);
    const type = head.readUInt32LE(0);
    const length = head.readUInt32LE(4);
    const allowed: readonly FrameName[] = ['REFUSE', ...names];
    const name = allowed.find((name) => frames[name].type === type);
    if (name === undefined) {
      const known = (Object.keys(frames) as FrameName[]).find((name) => frames[name].type === type);
      throw this.#error(`it sent ${known ?? `a frame of type ${type}`} where ${expected} should come`);
    }
    const { least, most } = frames[name];
    if (length < least || length > most) {
      const may = least === most ? `${most}` : `${least} to ${most}`;
      throw this.#error(`it sent ${name} with ${length} bytes, which has ${may}`);
    }
    const rest = deadline === Number.POSITIVE_INFINITY ? performance.now() + this.#timeoutMs : deadline;
    const body = length === 0 ? Buffer.alloc(0) : await this.#take(length, rest, `the rest of ${name}`);
    if (name === 'REFUSE') throw this.#error(`it refuses: ${printable(body.toString('utf8'))}`);
    return { name, body };
  }

  /** Resolves when the kernel has taken all of it. @throws MigrationError when it does not, in time */
  async send(name: FrameName, ...parts: readonly Uint8Array[]): Promise<void> {
    const head = Buffer.alloc(8);
    head.writeUInt32LE(frames[name].type, 0);
    head.writeUInt32LE(
      parts.reduce((sum, { length }) => sum + length, 0),
      4,
    );
    await this.#write(Buffer.concat([head, ...parts]));
  }
  async #write(bytes: Uint8Array): Promise<void> {
    this.check();
    let written = false;
    this.#socket.write(bytes, (error) => {
      written = !error;
      if (error) this.fail(this.#error(`the connection is broken (${error.message})`, error));
      this.#wake();
    });
    const deadline = performance.now() + this.#timeoutMs;
    while (!written) {
      this.check();
      await this.#event(deadline, 'room for what is sent to it');
    }
  }

  /** Ends it, with the reason for the other side. */
  refuse(reason: string): void {
    const text = Buffer.from(reason).subarray(0, MAX_REASON);
    if (this.#failure === undefined) this.send('REFUSE', text).catch(() => {});
    this.close();
  }

  /** Ends it when what was sent has left. */
  close(): void {
    this.#socket.destroySoon();
    setTimeout(() => this.#socket.destroy(), LINGER_MS).unref();
    this.fail(this.#error('the connection was closed here'));
  }
}
