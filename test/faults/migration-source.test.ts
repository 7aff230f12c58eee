/** The source of a migration whose destination is silent, hostile or of another version. */
import { describe, expect, it } from 'vitest';
import { openHypervisor, sendGuest } from '../../src/index.ts';
import { inLab } from '../support/limits.ts';
import { pagedGuest } from '../support/paged.ts';
import { frame, greeting, hello, type Peer, Type, u32, waiting } from '../support/peer.ts';
import { fresh, limitFor, RAM_PAGES, type Side, STEPS, sending, undisturbed } from '../support/sides.ts';

// The simulator is the same everywhere, and JS on an emulated processor is slow.
describe.skipIf(inLab)('a source', () => {
  /** Its guest goes on here: the answer is that of one that was never to be handed over. */
  const keeps = async (source: Side, says: RegExp) => {
    const failed = await source.tells('failed');
    expect(failed).toMatchObject({ code: 'ERR_KVM_MIGRATION', handedOver: false });
    expect(failed.message).toMatch(says);
    expect(await source.tells('ended')).toMatchObject({ ...undisturbed(), steps: STEPS });
    await source.ends();
  };
  const to = (address: string, says: RegExp) => sending('sim', address, { timeoutMs: limitFor(says) });

  for (const [what, [said, says]] of Object.entries(greeting)) {
    it(`keeps its guest from a destination that says ${what}`, async () => {
      const { address, visitor } = await waiting();
      const source = to(address, says);
      (await visitor()).say(said);
      await keeps(source, says);
    });
  }
  it('keeps its guest when nobody is there', async () => {
    for (const [address, says] of [
      [fresh(), /cannot be reached: connect ENOENT/],
      ['tcp:127.0.0.1:1', /tcp:127\.0\.0\.1:1 cannot be reached: connect ECONNREFUSED/],
    ] as const)
      await keeps(to(address, says), says);
  });

  /** A destination that has the guest's state, and has not answered. */
  async function told(says: RegExp) {
    const { address, visitor } = await waiting();
    const source = to(address, says);
    const control = await visitor();
    control.say(hello());
    await control.greets();
    await control.hears(Type.STATE);
    return { source, control, visitor };
  }

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
      const { source, control } = await told(says);
      act(control);
      await keeps(source, says);
    });
  }

  /** A destination that has accepted, up to where it would send READY. */
  async function accepted(says: RegExp) {
    const { source, control, visitor } = await told(says);
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
      const sides = await accepted(says);
      act(sides);
      await keeps(sides.source, says);
    });
  }
  it('serves what is wanted before READY, and pushes nothing', async () => {
    const { pages, control, source } = await accepted(/the connection/);
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
      const { source, control, pages } = await accepted(says);
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
