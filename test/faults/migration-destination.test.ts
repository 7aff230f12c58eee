/** The destination of a migration whose source is silent, hostile or of another version. */
import { describe, expect, it } from 'vitest';
import { openHypervisor, receiveGuest } from '../../src/index.ts';
import { inLab } from '../support/limits.ts';
import {
  calling,
  frame,
  greeting,
  hello,
  machineState,
  type Peer,
  run,
  STATE_PAGES,
  sha256,
  stateFrame,
  Type,
} from '../support/peer.ts';
import { fresh, limitFor, receiving, type Told } from '../support/sides.ts';

const PAGE = 4096;

// The simulator is the same everywhere, and JS on an emulated processor is slow.
describe.skipIf(inLab)('a destination', () => {
  const refused = async (says: RegExp, act: (peer: Peer) => Promise<void> | void) => {
    const destination = receiving('sim', fresh(), { timeoutMs: limitFor(says), maxMemory: 2 ** 30 });
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
      const destination = receiving('sim', fresh(), { timeoutMs: limitFor(says) });
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
