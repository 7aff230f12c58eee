/**
 * Post-copy migration between two processes: the guest never notices; and what each side does when the other is gone,
 * silent, hostile or of another version. Peers that misbehave speak the protocol by hand.
 */
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { connect, createServer, type Server, type Socket } from 'node:net';
import { networkInterfaces, tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import * as zlib from 'node:zlib';
import { afterAll, afterEach, describe, expect, it } from 'vitest';
import { type BackendName, openHypervisor, receiveGuest, sendGuest } from '../../src/index.ts';
import { captureState } from '../../src/vmm/snapshot/index.ts';
import { backends, on } from '../support/host.ts';
import { inLab, PROGRAM_MS } from '../support/limits.ts';
import { pagedGuest } from '../support/paged.ts';
import { Program } from '../support/program.ts';
import { Relay } from '../support/relay.ts';
import { wandered, wanderer } from '../support/wanderer.ts';
import { pathOf } from './child.ts';

const PAGE = 4096;
const PAGES = 256;
/** The program's own memory comes before the pages that it wanders over. */
const RAM_PAGES = 256;
const STEPS = 700;
/** How long a side waits that is to give up, and one that is not. */
const SHORT_MS = 1500;
const LONG_MS = PROGRAM_MS;

const folder = mkdtempSync(join(tmpdir(), 'vmexit-migration-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
let sockets = 0;
const fresh = () => `unix:${join(folder, `${sockets++}`)}`;
const pathOfSocket = (address: string) => address.slice('unix:'.length);
const code = Buffer.from(wanderer.code).toString('hex');

// biome-ignore lint/suspicious/noExplicitAny: what is told has a shape of its own, which its case states.
type Told = any;

/** A side of a migration in a process of its own, and what it tells. */
class Side {
  readonly #program: Program;
  #read = 0;
  readonly #told: Told[] = [];

  constructor(options: object) {
    this.#program = new Program([pathOf('migration.mjs'), JSON.stringify(options)]);
  }

  /** What it tells of an event, once it does. @throws Error with all that it has told when it ends before */
  tells(event: string): Promise<Told> {
    return this.#program.until(({ stdout }) => {
      const end = stdout.lastIndexOf('\n') + 1;
      for (const line of stdout.slice(this.#read, end).split('\n'))
        if (line !== '') this.#told.push(JSON.parse(line));
      this.#read = end;
      return this.#told.find((told) => told.event === event);
    }, `it told of '${event}'`);
  }
  /** Its end, which must be a clean one. */
  async ends(): Promise<void> {
    const { signal, status, stderr } = await this.#program.end;
    expect({ signal, status, stderr }).toEqual({ status: 0, stderr: '' });
  }
  async dies(): Promise<void> {
    expect((await this.#program.end).signal).toBe('SIGKILL');
  }
  kill(): void {
    this.#program.kill('SIGKILL');
  }
}
const open: { destroy?(): void; close?(): void }[] = [];
afterEach(() => {
  for (const one of open.splice(0)) {
    one.destroy?.();
    one.close?.();
  }
});

const sending = (backend: BackendName, to: string, more: object = {}) =>
  new Side({
    role: 'send',
    backend,
    to,
    code,
    pages: PAGES,
    steps: STEPS,
    stopAt: 300,
    timeoutMs: LONG_MS,
    ...more,
  });
const receiving = (backend: BackendName, at: string, more: object = {}) =>
  new Side({ role: 'receive', backend, at, timeoutMs: LONG_MS, ...more });

/** What a guest that was never interrupted says and leaves. */
function undisturbed(pages = PAGES, steps = STEPS) {
  const { sum, words } = wandered(pages, steps);
  const hash = createHash('sha256');
  for (const word of words) hash.update(new BigUint64Array([word]));
  return { reason: 'stop', sum: `${sum}`, words: hash.digest('hex') };
}

const hasIpv6 = Object.values(networkInterfaces()).some((addresses) =>
  addresses?.some(({ address }) => address === '::1'),
);

describe.each(backends)('a guest that is handed over (%s)', (backend) => {
  const it = on(backend);
  const addresses = {
    'a Unix socket': fresh,
    TCP: () => 'tcp:127.0.0.1:0',
    'TCP of IPv6': () => 'tcp:[::1]:0',
  };
  for (const [by, at] of Object.entries(addresses)) {
    it(`over ${by} goes on as if nothing had been, and each page comes once`, async (_, context) => {
      context.skip(at().includes('::1') && !hasIpv6, 'this host has no IPv6');
      const destination = receiving(backend, at());
      const { address } = await destination.tells('listening');
      const source = sending(backend, address);
      const ended = await destination.tells('ended');
      expect(ended).toMatchObject({ ...undisturbed(), steps: STEPS - 300, missing: [] });
      expect(ended.report).toMatchObject({ present: PAGES + RAM_PAGES, state: 'complete' });
      const counts: number[] = Object.values(ended.report.byCause);
      expect(counts.reduce((a, b) => a + b)).toBe(PAGES + RAM_PAGES);
      const sent = await source.tells('sent');
      expect(sent.pages).toBe(PAGES + RAM_PAGES);
      expect(sent.pulled + sent.pushed).toBe(PAGES + RAM_PAGES);
      expect(sent.pushed).toBe(ended.report.byCause.push);
      expect(sent.zeroes).toBeGreaterThan(PAGES / 8);
      expect((await destination.tells('received')).devices).toEqual([['serial', [1, 2, 3]]]);
      await Promise.all([source.ends(), destination.ends()]);
    });
  }

  it('pulls what it touches before the rest has come', async () => {
    const pages = 16_384;
    const destination = receiving(backend, fresh());
    const between = fresh();
    const { address } = await destination.tells('listening');
    using _relay = await Relay.between(pathOfSocket(between), address, 'a pull');
    const source = sending(backend, between, { pages });
    const ended = await destination.tells('ended');
    expect(ended).toMatchObject(undisturbed(pages));
    const sent = await source.tells('sent');
    expect(sent.pulled).toBeGreaterThan(0);
    expect(sent.pulled).toBe(pages + RAM_PAGES - ended.report.byCause.push);
    await Promise.all([source.ends(), destination.ends()]);
  });

  it('can be handed over at its first instruction, and at its last step', async () => {
    for (const stopAt of [1, STEPS]) {
      const destination = receiving(backend, fresh());
      const source = sending(backend, (await destination.tells('listening')).address, { stopAt });
      expect(await destination.tells('ended')).toMatchObject({ ...undisturbed(), steps: STEPS - stopAt });
      await Promise.all([source.ends(), destination.ends()]);
    }
  });

  it('ends with an error that names the missing pages when its source is killed', async () => {
    const pages = 4096;
    const destination = receiving(backend, fresh());
    const { address } = await destination.tells('listening');
    const between = fresh();
    const relay = await Relay.between(pathOfSocket(between), address, 'the end');
    const source = sending(backend, between, { pages, steps: 1e6 });
    await relay.handedOver;
    source.kill();
    await source.dies();
    relay[Symbol.dispose]();
    const { code, message, missing, state } = await destination.tells('failed');
    expect(code).toBe('ERR_KVM_MIGRATION');
    expect(message).toMatch(
      /^the source: the connection .*; (\d+) of 4352 pages are missing, and the guest cannot go on: \d+ to \d+/,
    );
    expect(state).toBe('failed');
    const lacks = missing.reduce((sum: number, { first, end }: Told) => sum + end - first, 0);
    expect(message).toContain(`; ${lacks} of 4352 pages`);
    expect(lacks).toBeGreaterThan(2000);
    await destination.ends();
  });

  it('is kept by its source, paused and whole, when the destination is killed', async () => {
    const destination = receiving(backend, fresh(), { killAt: 3 });
    const { address } = await destination.tells('listening');
    const between = fresh();
    using _relay = await Relay.between(pathOfSocket(between), address, 'the end');
    const source = sending(backend, between, { pages: 4096, steps: 1e6 });
    await destination.dies();
    const { code, message, handedOver } = await source.tells('failed');
    expect({ code, handedOver }).toEqual({ code: 'ERR_KVM_MIGRATION', handedOver: true });
    expect(message).toMatch(
      /the connection .*; the guest was handed over, and \d+ of its 4352 pages were sent/,
    );
    await source.ends();
  });

  it('goes on at its source when the destination refuses it', async () => {
    const destination = receiving(backend, fresh(), { maxMemory: 2 ** 20 });
    const source = sending(backend, (await destination.tells('listening')).address);
    const says = /the guest has 2097152 bytes of memory, and may have 1048576/;
    expect(await destination.tells('failed')).toMatchObject({ code: 'ERR_KVM_MIGRATION' });
    const failed = await source.tells('failed');
    expect(failed).toMatchObject({ code: 'ERR_KVM_MIGRATION', handedOver: false });
    expect(failed.message).toMatch(/it refuses: /);
    expect(failed.message).toMatch(says);
    expect(await source.tells('ended')).toMatchObject({ ...undisturbed(), steps: STEPS });
    await Promise.all([source.ends(), destination.ends()]);
  });
});

// --- by hand ---

const Type = {
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
const u32 = (...values: number[]) => Buffer.from(new Uint32Array(values).buffer);
const hello = (version = 1) => Buffer.concat([Buffer.from('vmexitM\n'), u32(version, 0)]);
const frame = (type: number, body: Uint8Array = Buffer.alloc(0), length = body.length) =>
  Buffer.concat([u32(type, length), body]);
const sha256 = (bytes: Uint8Array) => createHash('sha256').update(bytes).digest();
const stateFrame = (json: string, digest = sha256(Buffer.from(json))) =>
  frame(Type.STATE, Buffer.concat([digest, Buffer.from(json)]));
const crc32 = (zlib as unknown as { crc32(data: Uint8Array): number }).crc32;
function run(
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
class Peer {
  readonly socket: Socket;
  #received: Buffer = Buffer.alloc(0);
  #closed = false;

  constructor(socket: Socket) {
    this.socket = socket;
    open.push(socket);
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

async function calling(address: string): Promise<Peer> {
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
async function waiting() {
  const address = fresh();
  const peers: Peer[] = [];
  const server: Server = createServer((socket) => peers.push(new Peer(socket)));
  open.push(server);
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
const STATE_PAGES = RAM_PAGES + AREA_PAGES;

/** A machine of the simulator's, as JSON. */
function machineState(): string {
  const hv = openHypervisor({ backend: 'sim' });
  const { vm, vcpu, close } = pagedGuest(hv, AREA_PAGES);
  const { state } = captureState(hv, vm, [vcpu]);
  close();
  hv.close();
  return JSON.stringify(state);
}

const greeting: { readonly [what: string]: readonly [said: Uint8Array, says: RegExp] } = {
  garbage: [
    Buffer.from('GET / HTTP/1.1\r\n\r\n'),
    /it is no vmexit that migrates guests: it began with "GET \/ HTTP\/1\.1/,
  ],
  'another version': [hello(7), /it migrates guests by version 7, and this vmexit by version 1/],
  nothing: [Buffer.alloc(0), /it has said nothing for \d+ ms, where a greeting should come/],
};

// The simulator is the same everywhere, and JS on an emulated processor is slow.
describe.skipIf(inLab)('a destination', () => {
  const refused = async (says: RegExp, act: (peer: Peer) => Promise<void> | void) => {
    const destination = receiving('sim', fresh(), { timeoutMs: SHORT_MS, maxMemory: 2 ** 30 });
    const peer = await calling((await destination.tells('listening')).address);
    await act(peer);
    const failed = await destination.tells('failed');
    expect(failed.code).toBe('ERR_KVM_MIGRATION');
    expect(failed.message).toMatch(says);
    await destination.ends();
    await peer.closes();
  };
  for (const [what, [said, says]] of Object.entries(greeting)) {
    it(`refuses a source that says ${what}`, () => refused(says, (peer) => peer.say(said)));
  }

  const state = machineState();
  const changed = (change: (state: Told) => void) => {
    const copy = JSON.parse(state);
    change(copy);
    return stateFrame(JSON.stringify(copy));
  };
  const bad: { readonly [what: string]: readonly [said: Uint8Array, says: RegExp] } = {
    'a state that was altered': [
      stateFrame(state.replace('"backend":"sim"', '"backend":"kvm"'), sha256(Buffer.from(state))),
      /state was altered on the way: its SHA-256 is another/,
    ],
    'a state that is no JSON': [stateFrame('{"vm"'), /state is no JSON/],
    'a state of another version': [
      changed((state) => {
        state.version = 99;
      }),
      /cannot go on here: the machine's state is of version 99/,
    ],
    'a state that is none': [stateFrame('{"a":1}'), /cannot go on here: the machine's state is not one/],
    'a state with too much memory': [
      changed(({ vm }) => {
        vm.memories = Array.from({ length: 32_000 }, () => 2 ** 32);
      }),
      /bytes of memory, and may have 1073741824/,
    ],
    'a state that is longer than any': [
      frame(Type.STATE, Buffer.alloc(32), 2 ** 31),
      /it sent STATE with 2147483648 bytes, which has 32 to/,
    ],
    'pages before the state': [run(Type.ZEROES, 0, 1), /it sent ZEROES where STATE should come/],
    'a frame that there is not': [frame(77), /it sent a frame of type 77 where STATE should come/],
    'that it has thought better of it': [
      frame(Type.REFUSE, Buffer.from('not today\x1b[2J')),
      /it refuses: not today \[2J/,
    ],
  };
  for (const [what, [said, says]] of Object.entries(bad)) {
    it(`refuses a source that sends ${what}, and says so`, () =>
      refused(says, async (peer) => {
        await peer.greets();
        peer.say(hello(), said);
        if (!what.startsWith('that')) expect((await peer.hears(Type.REFUSE)).toString()).toMatch(says);
      }));
  }
  it('refuses a source whose state ends too early', () =>
    refused(/the connection has ended where the rest of STATE should come after \d+ of \d+ bytes/, (peer) => {
      peer.say(hello(), stateFrame(state).subarray(0, 1000));
      peer.socket.end();
    }));
  it('refuses a source that stops in the middle of its state', () =>
    refused(/it has said nothing for \d+ ms, where the rest of STATE should come/, (peer) =>
      peer.say(hello(), stateFrame(state).subarray(0, 1000)),
    ));
  it('refuses a source that does not come for its pages', () =>
    refused(
      /the source has not come for its pages|said nothing for \d+ ms, where GO should come/,
      async (peer) => {
        await peer.greets();
        peer.say(hello(), stateFrame(state));
        await peer.hears(Type.ACCEPT);
        await peer.hears(Type.READY);
      },
    ));

  const contents = (count: number) => Buffer.alloc(count * PAGE, 0x5a);
  const wrong: { readonly [what: string]: readonly [said: readonly Uint8Array[], says: RegExp] } = {
    'pages that the guest has not': [
      [run(Type.PAGES, STATE_PAGES - 1, 2, contents(2))],
      /sent 2 pages from page \d+ on; it may send 1 to 64 at a time, and the guest has \d+/,
    ],
    'a page far outside': [[run(Type.PAGES, 0xffff_ffff, 1, contents(1))], /1 pages from page 4294967295 on/],
    'too many zeroes': [[run(Type.ZEROES, 0, 0xffff_ffff)], /4294967295 pages from page 0 on/],
    'no page at all': [[run(Type.ZEROES, 3, 0)], /0 pages from page 3 on/],
    'fewer bytes than it says': [
      [run(Type.PAGES, 0, 2, contents(1))],
      /4096 bytes for 2 pages from page 0 on/,
    ],
    'a page that was altered': [
      [run(Type.PAGES, 0, 1, contents(1), 5)],
      /1 pages from page 0 on were altered on the way/,
    ],
    'a page twice': [
      [run(Type.PAGES, 4, 2, contents(2)), run(Type.ZEROES, 5, 1)],
      /the source sent page 5 twice/,
    ],
    'a frame that is too long': [
      [frame(Type.PAGES, Buffer.alloc(16), 2 ** 31)],
      /it sent PAGES with 2147483648 bytes, which has 4112 to 262160/,
    ],
    garbage: [[Buffer.from('hello, world')], /it sent a frame of type \d+ where PAGES or ZEROES should come/],
    'nothing more': [[], /it has said nothing for \d+ ms, where PAGES or ZEROES should come/],
  };
  for (const [what, [said, says]] of Object.entries(wrong)) {
    it(`ends the run of a guest whose source sends ${what}`, async () => {
      const destination = receiving('sim', fresh(), { timeoutMs: SHORT_MS });
      const { address } = await destination.tells('listening');
      const control = await calling(address);
      await control.greets();
      control.say(hello(), stateFrame(state));
      const token = await control.hears(Type.ACCEPT);

      // A stranger without the token is sent away; the source may come all the same.
      const stranger = await calling(address);
      stranger.say(hello(), frame(Type.ATTACH, Buffer.alloc(16)));
      await stranger.greets();
      expect((await stranger.hears(Type.REFUSE)).toString()).toMatch(/token/);
      const pages = await calling(address);
      pages.say(hello(), frame(Type.ATTACH, token));
      await pages.greets();
      await pages.hears(Type.ATTACHED);
      await control.hears(Type.READY);
      control.say(frame(Type.GO));
      await destination.tells('received');
      pages.say(...said);
      const { code, message, missing } = await destination.tells('failed');
      expect(code).toBe('ERR_KVM_MIGRATION');
      expect(message).toMatch(says);
      expect(message).toMatch(/pages are missing, and the guest cannot go on: /);
      const lacks = missing.reduce((sum: number, { first, end }: Told) => sum + end - first, 0);
      expect(lacks).toBe(STATE_PAGES - (what === 'a page twice' ? 2 : 0));
      await destination.ends();
    });
  }

  it('is told by its arguments what it cannot do, before it listens', async () => {
    const hv = openHypervisor({ backend: 'sim' });
    for (const [options, says] of [
      [{ at: 'nowhere' }, /at is "nowhere"; it must be unix:PATH/],
      [{ at: `unix:/${'x'.repeat(200)}` }, /must be unix:PATH, of at most 107 bytes/],
      [{ at: 'tcp:127.0.0.1:99999' }, /tcp:HOST:PORT/],
      [{ at: fresh(), timeoutMs: 0 }, /timeoutMs is 0/],
      [{ at: 'unix:/nowhere/at/all' }, /unix:\/nowhere\/at\/all cannot be listened at/],
    ] as const)
      await expect(receiveGuest(hv, options)).rejects.toThrow(says);
    const signal = AbortSignal.timeout(50);
    await expect(receiveGuest(hv, { at: fresh(), signal })).rejects.toMatchObject({ name: 'TimeoutError' });
    hv.close();
  });
});

describe.skipIf(inLab)('a source', () => {
  /** Its guest goes on here: the answer is that of one that was never to be handed over. */
  const keeps = async (source: Side, says: RegExp) => {
    const failed = await source.tells('failed');
    expect(failed).toMatchObject({ code: 'ERR_KVM_MIGRATION', handedOver: false });
    expect(failed.message).toMatch(says);
    expect(await source.tells('ended')).toMatchObject({ ...undisturbed(), steps: STEPS });
    await source.ends();
  };
  const to = (address: string) => sending('sim', address, { timeoutMs: SHORT_MS });

  for (const [what, [said, says]] of Object.entries(greeting)) {
    it(`keeps its guest from a destination that says ${what}`, async () => {
      const { address, visitor } = await waiting();
      const source = to(address);
      (await visitor()).say(said);
      await keeps(source, says);
    });
  }
  it('keeps its guest when nobody is there', async () => {
    await keeps(to(fresh()), /cannot be reached: connect ENOENT/);
    await keeps(to('tcp:127.0.0.1:1'), /tcp:127\.0\.0\.1:1 cannot be reached: connect ECONNREFUSED/);
  });

  const early: { readonly [what: string]: readonly [act: (peer: Peer) => void, says: RegExp] } = {
    'goes away': [({ socket }) => socket.destroy(), /the connection/],
    'sends READY at once': [(peer) => peer.say(frame(Type.READY)), /it sent READY where ACCEPT should come/],
    'sends a token that is none': [
      (peer) => peer.say(frame(Type.ACCEPT, Buffer.alloc(5))),
      /ACCEPT with 5 bytes, which has 16/,
    ],
    'refuses without end': [
      (peer) => peer.say(frame(Type.REFUSE, Buffer.alloc(9), 2 ** 30)),
      /REFUSE with 1073741824 bytes/,
    ],
    'says nothing': [() => {}, /it has said nothing for \d+ ms, where ACCEPT should come/],
  };
  for (const [what, [act, says]] of Object.entries(early)) {
    it(`keeps its guest from a destination that has its state, and ${what}`, async () => {
      const { address, visitor } = await waiting();
      const source = to(address);
      const control = await visitor();
      control.say(hello());
      await control.greets();
      await control.hears(Type.STATE);
      act(control);
      await keeps(source, says);
    });
  }

  /** A destination that has accepted, up to where it would send READY. */
  async function accepted() {
    const { address, visitor } = await waiting();
    const source = to(address);
    const control = await visitor();
    control.say(hello());
    await control.greets();
    await control.hears(Type.STATE);
    control.say(frame(Type.ACCEPT, Buffer.alloc(16, 7)));
    const pages = await visitor(1);
    pages.say(hello());
    await pages.greets();
    expect(await pages.hears(Type.ATTACH)).toEqual(Buffer.alloc(16, 7));
    pages.say(frame(Type.ATTACHED));
    return { source, control, pages };
  }
  const hostile: {
    readonly [what: string]: readonly [act: (sides: { control: Peer; pages: Peer }) => void, says: RegExp];
  } = {
    'dies before READY': [
      ({ control, pages }) => [control, pages].map(({ socket }) => socket.destroy()),
      /the connection/,
    ],
    'refuses before READY': [
      ({ control }) => control.say(frame(Type.REFUSE, Buffer.from('no room'))),
      /it refuses: no room/,
    ],
    'is silent before READY': [() => {}, /it has said nothing for \d+ ms, where READY should come/],
    'wants a page that there is not': [
      ({ pages }) => pages.say(frame(Type.WANT, u32(512))),
      /wants page 512, and the guest has 512/,
    ],
    'says too early that it has all': [
      ({ pages }) => pages.say(frame(Type.DONE)),
      /has all 512 pages, and was sent 0/,
    ],
    'sends what no destination sends': [
      ({ pages }) => pages.say(frame(Type.GO)),
      /it sent GO where WANT or DONE should come/,
    ],
  };
  for (const [what, [act, says]] of Object.entries(hostile)) {
    it(`keeps its guest from a destination that ${what}`, async () => {
      const sides = await accepted();
      act(sides);
      await keeps(sides.source, says);
    });
  }
  it('serves what is wanted before READY, and pushes nothing', async () => {
    const { pages, control, source } = await accepted();
    pages.say(frame(Type.WANT, u32(RAM_PAGES)), frame(Type.WANT, u32(RAM_PAGES)));
    const body = await pages.hears(Type.PAGES);
    expect([0, 4, 8].map((at) => body.readUInt32LE(at))).toEqual([RAM_PAGES, 16, 1]);
    control.socket.destroy();
    await pages.hears(Type.REFUSE);
    await keeps(source, /the connection/);
  });
  const later: { readonly [what: string]: readonly [act: (pages: Peer) => void, says: RegExp] } = {
    'goes away': [({ socket }) => socket.destroy(), /the connection/],
    'takes everything and says nothing': [
      () => {},
      /it was sent all 512 pages, and has not said for \d+ ms that it has them/,
    ],
    'takes nothing more': [
      ({ socket }) => socket.pause(),
      /said nothing for \d+ ms, where room|has not said for \d+ ms/,
    ],
    'wants a page that there is not': [
      (pages) => pages.say(frame(Type.WANT, u32(0xffff_ffff))),
      /wants page 4294967295/,
    ],
  };
  for (const [what, [act, says]] of Object.entries(later)) {
    it(`keeps its guest paused when it was handed over to a destination that then ${what}`, async () => {
      const { source, control, pages } = await accepted();
      control.say(frame(Type.READY));
      await control.hears(Type.GO);
      act(pages);
      const failed = await source.tells('failed');
      expect(failed).toMatchObject({ code: 'ERR_KVM_MIGRATION', handedOver: true });
      expect(failed.message).toMatch(says);
      expect(failed.message).toMatch(
        /the guest was handed over, and \d+ of its 512 pages were sent: it is paused here/,
      );
      await source.ends();
    });
  }

  it('refuses a guest with private pages, and names the range', async () => {
    const { address } = await waiting();
    const source = sending('sim', address, { private: true });
    const failed = await source.tells('failed');
    expect(failed.code).toBe('ERR_KVM_NOT_SAVABLE');
    expect(failed.message).toMatch(/guest memory from 0x40005000 to 0x40006fff is private/);
  });

  it('can be cancelled before the guest is handed over', async () => {
    const { address, visitor } = await waiting();
    const hv = openHypervisor({ backend: 'sim' });
    const { vm, vcpu, close } = pagedGuest(hv, 1);
    const cancel = new AbortController();
    const sent = sendGuest(hv, { vm, vcpus: [vcpu], to: address, signal: cancel.signal });
    const control = await visitor();
    await control.greets();
    control.say(hello());
    await control.hears(Type.STATE);
    cancel.abort(new Error('never mind'));
    await expect(sent).rejects.toThrow('never mind');
    await control.closes();
    close();
    hv.close();
  });
});
