/**
 * Stands between the source of a migration and its destination, and holds back the pages that nobody waits for: so that
 * a test sees what it is about however fast each side is. It knows the frames of src/vmm/migration/channel.ts.
 */
import { once } from 'node:events';
import { connect, createServer, type Server, type Socket } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { parseAddress } from '../../src/vmm/migration/address.ts';
import { frames, RUN_HEAD } from '../../src/vmm/migration/channel.ts';

const HELLO_SIZE = 16;
const HEAD = 8;

export class Relay implements Disposable {
  /** GO has passed: the guest is the destination's. */
  readonly handedOver: Promise<void>;
  readonly #server: Server;
  readonly #sockets: Socket[] = [];
  readonly #wanted = new Set<number>();
  readonly #untilPull: boolean;
  #pulled = false;
  #wake: () => void = () => {};
  #onGo: () => void = () => {};

  /**
   * @param at the path of the socket where the source is to call
   * @param to where the destination listens
   * @param until until when pages are held back: until one that the destination waits for was sent on demand, or for ever
   */
  static async between(at: string, to: string, until: 'a pull' | 'the end'): Promise<Relay> {
    const relay = new Relay(to, until === 'a pull');
    await new Promise<void>((resolve, reject) => {
      relay.#server.once('error', reject).listen(at, resolve);
    });
    return relay;
  }

  private constructor(to: string, untilPull: boolean) {
    this.#untilPull = untilPull;
    this.handedOver = new Promise((resolve) => {
      this.#onGo = resolve;
    });
    this.#server = createServer(async (source) => {
      this.#sockets.push(source);
      const destination = await this.#reach(to, source);
      if (destination === undefined) return;
      this.#pass(source, destination, (type, body) => this.#down(type, body));
      this.#pass(destination, source, (type, body) => this.#up(type, body));
    });
  }

  /** The destination's thread comes to listen for the second connection a moment after it has accepted the first. */
  async #reach(to: string, source: Socket): Promise<Socket | undefined> {
    while (!source.destroyed) {
      const destination = connect({ ...parseAddress('to', to) });
      this.#sockets.push(destination);
      try {
        await once(destination, 'connect');
        return destination;
      } catch {
        await sleep(5);
      }
    }
    return undefined;
  }

  /** Frame by frame, and each only when its turn has come. What ends here ends there. */
  async #pass(
    from: Socket,
    to: Socket,
    turn: (type: number, body: Buffer) => Promise<void> | undefined,
  ): Promise<void> {
    to.on('error', () => {}).on('close', () => from.destroy());
    try {
      let held = Buffer.alloc(0);
      let greeted = false;
      for await (const bytes of from as AsyncIterable<Buffer>) {
        held = Buffer.concat([held, bytes]);
        for (;;) {
          const size = greeted && held.length >= HEAD ? HEAD + held.readUInt32LE(4) : HELLO_SIZE;
          if (held.length < (greeted ? Math.max(size, HEAD) : size)) break;
          if (greeted) await turn(held.readUInt32LE(0), held.subarray(HEAD, size));
          greeted = true;
          if (!to.write(held.subarray(0, size))) await once(to, 'drain');
          held = held.subarray(size);
        }
      }
    } catch {
      // A side was killed: the other one is told.
    }
    to.end();
  }

  #up(type: number, body: Buffer): undefined {
    if (type === frames.WANT.type) this.#wanted.add(body.readUInt32LE(0));
    this.#wake();
  }

  #down(type: number, body: Buffer): Promise<void> | undefined {
    if (type === frames.GO.type) this.#onGo();
    return type === frames.PAGES.type || type === frames.ZEROES.type ? this.#pages(body) : undefined;
  }

  async #pages(body: Buffer): Promise<void> {
    const [first, count, asked] = [0, 4, 8].map((at) => body.subarray(0, RUN_HEAD).readUInt32LE(at));
    while (this.#wanted.size === 0 && !(this.#untilPull && this.#pulled))
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    if (asked !== 0) this.#pulled = true;
    for (let page = first!; page < first! + count!; page++) this.#wanted.delete(page);
  }

  /** Ends all connections, as when a side was killed: of that nothing is seen here while its pages are held back. */
  [Symbol.dispose](): void {
    this.#server.close();
    for (const socket of this.#sockets) socket.destroy();
  }
}
