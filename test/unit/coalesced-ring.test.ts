/** The ring of coalesced writes as its page has it (struct kvm_coalesced_mmio_ring: first, last, then entries of 24 bytes). */
import { describe, expect, it } from 'vitest';
import { CoalescedRing } from '../../src/index.ts';

const PAGE = 4096;
const PLACES = 170;

/** A mapping whose page 2 is the ring. */
function ringOf(first: number, last: number) {
  const bytes = new Uint8Array(3 * PAGE);
  const view = new DataView(bytes.buffer, 2 * PAGE);
  view.setUint32(0, first, true);
  view.setUint32(4, last, true);
  const put = (place: number, address: bigint, size: number, pio: number, data: bigint) => {
    const at = 8 + 24 * place;
    view.setBigUint64(at, address, true);
    view.setUint32(at + 8, size, true);
    view.setUint32(at + 12, pio, true);
    view.setBigUint64(at + 16, data, true);
  };
  return { ring: new CoalescedRing({ bytes }, 2), view, put };
}

describe('the ring of coalesced writes', () => {
  it('gives what is between first and last, also across its end, and takes it out', () => {
    const { ring, view, put } = ringOf(PLACES - 1, 1);
    put(PLACES - 1, 0xd000_0000n, 2, 0, 0x1234n);
    put(0, 0x510n, 1, 1, 0x5an);
    expect(ring.length).toBe(2);
    expect([...ring]).toEqual([
      { address: 0xd000_0000, size: 2, data: Uint8Array.of(0x34, 0x12), pio: false },
      { address: 0x510, size: 1, data: Uint8Array.of(0x5a), pio: true },
    ]);
    expect([ring.length, view.getUint32(0, true), view.getUint32(4, true)]).toEqual([0, 1, 1]);
  });

  it('keeps what a loop leaves behind when it ends early', () => {
    const { ring, put } = ringOf(0, 3);
    for (let place = 0; place < 3; place++) put(place, BigInt(place), 1, 0, 0n);
    for (const { address } of ring) if (address === 1) break;
    expect([...ring].map(({ address }) => address)).toEqual([2]);
  });

  it('gives no more bytes than there are, and stays within its page, whatever stands in it', () => {
    for (const [first, last] of [
      [0xffff_ffff, 1],
      [0, 0xffff_ffff],
      [PLACES, PLACES + 1],
    ] as const) {
      const { ring, put } = ringOf(first, last);
      put(0, 1n, 0xffff_ffff, 0, -1n);
      const found = [...ring];
      expect(found.length).toBeLessThan(PLACES);
      for (const { size, data } of found) expect([size, data.length]).toEqual([8, 8]);
      expect(ring.length).toBe(0);
    }
  });
});
