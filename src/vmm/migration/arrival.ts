/**
 * The pages of a migration as they arrive: what the pager's thread opens. It listens where the VMM's thread has listened
 * before, and the source comes a second time: a socket cannot be handed from one thread to another, and what the VMM's
 * thread would pass on, it could not pass on while it stands still in KVM_RUN. Whoever comes must know a token.
 */

import { timingSafeEqual } from 'node:crypto';
import { createServer, type Server, type Socket } from 'node:net';
import { PAGE_SIZE as PAGE } from '../../hypervisor/args.ts';
import { MigrationError } from '../../hypervisor/errors.ts';
import type { PushSource } from '../pager/page-source.ts';
import { type Address, addressName } from './address.ts';
import { Channel, MAX_ZEROES } from './channel.ts';
import { parseRun } from './runs.ts';

/** A pager's source, as plain data. */
export interface ArrivalDescriptor {
  readonly kind: 'migration';
  readonly listen: Address;
  /** Who may come. */
  readonly token: Uint8Array;
  /** How long the source may say nothing. */
  readonly timeoutMs: number;
}

/** So many may be at the door at a time. */
const MAX_STRANGERS = 8;
const ZEROES = new Uint8Array(MAX_ZEROES * PAGE);

/** Of a page. */
const State = { ASKED: 1, HERE: 2 } as const;

export function openArrival(descriptor: ArrivalDescriptor, pages: number): PushSource {
  const arrival = new Arrival(descriptor, pages);
  let closed = false;
  return {
    start: (deliver, end) => {
      arrival.run(deliver).then(
        () => end(),
        (error) => closed || end(error),
      );
    },
    want: (page) => arrival.want(page),
    close: () => {
      closed = true;
      arrival.close();
    },
  };
}

class Arrival {
  readonly #descriptor: ArrivalDescriptor;
  readonly #states: Uint8Array;
  readonly #pages: number;
  /** Listens until the source has come. */
  #server: Server | undefined;
  #channel: Channel | undefined;
  /** Asked for before the source has come. */
  readonly #early: number[] = [];

  constructor(descriptor: ArrivalDescriptor, pages: number) {
    this.#descriptor = descriptor;
    this.#pages = pages;
    this.#states = new Uint8Array(pages);
  }

  want(page: number): void {
    if (this.#states[page] !== 0) return;
    this.#states[page] = State.ASKED;
    if (this.#channel === undefined) this.#early.push(page);
    else this.#ask(page);
  }
  #ask(page: number): void {
    const body = Buffer.alloc(4);
    body.writeUInt32LE(page);
    // What breaks here is found by run(), too.
    this.#channel!.send('WANT', body).catch(() => {});
  }

  close(): void {
    this.#server?.close();
    this.#channel?.close();
  }

  /** Resolves when every page was delivered, once, and the source has been told. */
  async run(deliver: (first: number, bytes: Uint8Array, asked: boolean) => void): Promise<void> {
    const channel = await this.#attached();
    this.#channel = channel;
    for (const page of this.#early) this.#ask(page);
    try {
      for (let here = 0; here < this.#pages; ) {
        const run = parseRun(await channel.receive(['PAGES', 'ZEROES']), this.#pages);
        const { first, count, asked, contents } = run;
        const again = this.#states.subarray(first, first + count).indexOf(State.HERE);
        if (again >= 0) throw new MigrationError(`the source sent page ${first + again} twice`);
        this.#states.fill(State.HERE, first, first + count);
        deliver(first, contents.length > 0 ? contents : ZEROES.subarray(0, count * PAGE), asked);
        here += count;
      }
      await channel.send('DONE');
    } catch (error) {
      channel.refuse((error as Error).message);
      throw error;
    }
  }

  /** The connection of the one who knows the token. Strangers are sent away. */
  #attached(): Promise<Channel> {
    const { listen, timeoutMs } = this.#descriptor;
    const name = addressName(listen);
    return new Promise((resolve, reject) => {
      const server = createServer();
      this.#server = server;
      server.maxConnections = MAX_STRANGERS;
      const late = () => fail(new Error(`the source has not come for its pages within ${timeoutMs} ms`));
      const timer = setTimeout(late, timeoutMs);
      const fail = (cause: Error) => {
        clearTimeout(timer);
        server.close();
        reject(new MigrationError(`${name}: ${cause.message}`, { cause }));
      };
      server.on('error', fail);
      server.on('close', () => clearTimeout(timer));
      server.on('connection', (socket) => {
        this.#admit(socket).then((channel) => {
          if (channel === undefined) return;
          server.close();
          resolve(channel);
        });
      });
      server.listen({ ...listen });
    });
  }

  async #admit(socket: Socket): Promise<Channel | undefined> {
    const { token, timeoutMs } = this.#descriptor;
    const channel = new Channel(socket, 'the source', timeoutMs);
    try {
      await channel.greet();
      const { body } = await channel.receive(['ATTACH']);
      if (!timingSafeEqual(body, token)) throw new MigrationError('the token is another');
      await channel.send('ATTACHED');
      return channel;
    } catch (error) {
      channel.refuse((error as Error).message);
      return undefined;
    }
  }
}
