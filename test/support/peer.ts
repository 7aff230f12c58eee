/** A peer of a migration that speaks the protocol by hand (src/vmm/migration/channel.ts), so that it can misbehave. */
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { connect, createServer, type Server, type Socket } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import * as zlib from 'node:zlib';
import { expect, onTestFinished } from 'vitest';
import { openHypervisor } from '../../src/index.ts';
import { captureState } from '../../src/vmm/snapshot/index.ts';
import { pagedGuest } from './paged.ts';
import { fresh, pathOfSocket, RAM_PAGES } from './sides.ts';

export const Type = {
  REFUSE: 0,
  STATE: 1,
  ACCEPT: 2,
  READY: 3,
  GO: 4,
  ATTACH: 5,
  ATTACHED: 6,
  WANT: 7,
  PAGES: 8,
  ZEROES: 9,
  DONE: 10,
} as const;
export const u32 = (...values: number[]) => Buffer.from(new Uint32Array(values).buffer);
export const hello = (version = 1) => Buffer.concat([Buffer.from('vmexitM\n'), u32(version, 0)]);
export const frame = (type: number, body: Uint8Array = Buffer.alloc(0), length = body.length) =>
  Buffer.concat([u32(type, length), body]);
export const sha256 = (bytes: Uint8Array) => createHash('sha256').update(bytes).digest();
export const stateFrame = (json: string, digest = sha256(Buffer.from(json))) =>
  frame(Type.STATE, Buffer.concat([digest, Buffer.from(json)]));
const crc32 = (zlib as unknown as { crc32(data: Uint8Array): number }).crc32;
export function run(
  type: number,
  first: number,
  count: number,
  contents: Uint8Array = Buffer.alloc(0),
  crc?: number,
) {
  const head = u32(first, count, 0);
  return frame(type, Buffer.concat([head, u32(crc ?? crc32(Buffer.concat([head, contents]))), contents]));
}

/** A peer that speaks by hand. */
export class Peer {
  readonly socket: Socket;
  #received: Buffer = Buffer.alloc(0);
  #closed = false;

  constructor(socket: Socket) {
    this.socket = socket;
    onTestFinished(() => {
      socket.destroy();
    });
    socket.on('data', (bytes) => {
      this.#received = Buffer.concat([this.#received, bytes]);
    });
    socket.on('close', () => {
      this.#closed = true;
    });
    socket.on('error', () => {});
  }
  say(...parts: Uint8Array[]): void {
    this.socket.write(Buffer.concat(parts));
  }
  async #take(size: number): Promise<Buffer> {
    while (this.#received.length < size) {
      if (this.#closed) throw new Error(`closed after ${this.#received.length} of ${size} bytes`);
      await sleep(2);
    }
    const bytes = this.#received.subarray(0, size);
    this.#received = this.#received.subarray(size);
    return bytes;
  }
  async greets(): Promise<void> {
    expect((await this.#take(16)).equals(hello())).toBe(true);
  }
  async hears(type: number): Promise<Buffer> {
    const head = await this.#take(8);
    const body = await this.#take(head.readUInt32LE(4));
    if (head.readUInt32LE() !== type)
      throw new Error(`frame ${head.readUInt32LE()}: ${body.toString('latin1')}`);
    return body;
  }
  async closes(): Promise<void> {
    while (!this.#closed) await sleep(2);
  }
}

export async function calling(address: string): Promise<Peer> {
  for (;;) {
    const [, path, host, port] = /^(?:unix:(.*)|tcp:(.*):(\d+))$/.exec(address)!;
    const socket = path === undefined ? connect({ host, port: Number(port) }) : connect({ path });
    try {
      await once(socket, 'connect');
      return new Peer(socket);
    } catch {
      await sleep(5); // the thread is about to listen
    }
  }
}
/** Where a peer listens, and who comes. */
export async function waiting() {
  const address = fresh();
  const peers: Peer[] = [];
  const server: Server = createServer((socket) => peers.push(new Peer(socket)));
  onTestFinished(() => {
    server.close();
  });
  server.listen(pathOfSocket(address));
  await once(server, 'listening');
  const visitor = async (index = 0) => {
    while (peers.length <= index) await sleep(2);
    return peers[index]!;
  };
  return { address, visitor };
}

/** Of the machine that machineState() tells of: its paged memory, and all of it. */
const AREA_PAGES = 2;
export const STATE_PAGES = RAM_PAGES + AREA_PAGES;

/** A machine of the simulator's, as JSON. */
export function machineState(): string {
  const hv = openHypervisor({ backend: 'sim' });
  const { vm, vcpu, close } = pagedGuest(hv, AREA_PAGES);
  const { state } = captureState(hv, vm, [vcpu]);
  close();
  hv.close();
  return JSON.stringify(state);
}

export const greeting: { readonly [what: string]: readonly [said: Uint8Array, says: RegExp] } = {
  garbage: [
    Buffer.from('GET / HTTP/1.1\r\n\r\n'),
    /it is no vmexit that migrates guests: it began with "GET \/ HTTP\/1\.1/,
  ],
  'another version': [hello(7), /it migrates guests by version 7, and this vmexit by version 1/],
  nothing: [Buffer.alloc(0), /it has said nothing for \d+ ms, where a greeting should come/],
};
