/** Which pages are there: claims by two threads, against a list of pages that says it plainly. */
import { afterEach, describe, expect, it, vi } from 'vitest';
import { PageStates } from '../../src/vmm/pager/page-states.ts';

/** Numbers below `limit`, the same for the same seed (numbers of Park and Miller). */
function random(seed: number) {
  let state = seed;
  return (limit: number) => {
    state = (state * 48_271) % 0x7fff_ffff;
    return state % limit;
  };
}

afterEach(() => vi.restoreAllMocks());

describe('the states of pages', () => {
  for (const [pages, batch] of [
    [1, 16],
    [31, 1],
    [64, 16],
    [100, 16],
    [1000, 7],
    [5000, 4096],
  ] as const) {
    it(`give each of ${pages} pages away once, ${batch} at a time, whoever asks`, () => {
      const next = random(pages);
      const mine = new PageStates(pages);
      const others = new PageStates(pages, mine.buffer);
      const claimed = new Set<number>();
      for (let tries = 0; claimed.size < pages; tries++) {
        expect(tries).toBeLessThan(100 * pages);
        const states = next(2) === 0 ? mine : others;
        const page = next(3) === 0 ? states.nextAbsent(next(pages))! : next(pages);
        const claim = states.claim(page, batch);
        expect(claim === undefined, `page ${page}`).toBe(claimed.has(page));
        if (claim === undefined) continue;
        const { first, count } = claim;
        const start = page - (page % batch);
        expect(first).toBeGreaterThanOrEqual(start);
        expect(first + count).toBeLessThanOrEqual(Math.min(start + batch, pages));
        expect(page >= first && page < first + count).toBe(true);
        for (let at = first; at < first + count; at++) {
          expect(claimed.has(at), `page ${at} twice`).toBe(false);
          claimed.add(at);
          expect(others.isPresent(at)).toBe(false);
        }
        if (next(4) === 0) {
          states.unclaim(first, count);
          for (let at = first; at < first + count; at++) claimed.delete(at);
          continue;
        }
        states.settle(first, count, 'fault');
        for (let at = first; at < first + count; at++) expect(others.isPresent(at)).toBe(true);
      }
      expect(mine.complete && others.complete).toBe(true);
      expect(mine.nextAbsent(0)).toBeUndefined();
      expect(mine.missing()).toEqual([]);
      expect(mine.byCause.fault).toBe(pages);
    });
  }

  it('begin a batch with the page that was asked for, and end it where a page is somebody else’s', () => {
    const states = new PageStates(64);
    states.claim(3, 1);
    states.claim(9, 1);
    expect(states.claim(6, 16)).toEqual({ first: 4, count: 5 });
    expect(states.claim(40, 64)).toEqual({ first: 10, count: 54 });
    expect(states.claim(1, 64)).toEqual({ first: 0, count: 3 });
  });

  it('give no page away twice when another claims one between any two looks', () => {
    let between = 0;
    for (let look = 0; look < 200; look++) {
      for (const taken of [5, 6, 7, 8, 31, 32]) {
        const states = new PageStates(64);
        const others = new PageStates(64, states.buffer);
        let looks = 0;
        let theirs: ReturnType<PageStates['claim']>;
        const load = Atomics.load;
        vi.spyOn(Atomics, 'load').mockImplementation((words, at) => {
          const seen = load(words as never, at);
          if (looks++ === look) theirs = others.claim(taken, 1);
          return seen as never;
        });
        const claim = states.claim(6, 64);
        vi.restoreAllMocks();
        if (theirs !== undefined) between++;
        const all = [claim, theirs].flatMap((one) =>
          one === undefined ? [] : Array.from({ length: one.count }, (_, i) => one.first + i),
        );
        expect(new Set(all).size, `${taken} taken at look ${look}`).toBe(all.length);
        expect(claim === undefined || claim.count > 0, `${taken} taken at look ${look}`).toBe(true);
        // Nothing is anybody's that nobody was given.
        const free = Array.from({ length: 64 }, (_, page) => page).filter(
          (page) => states.claim(page, 1) !== undefined,
        );
        expect(all.length + free.length, `${taken} taken at look ${look}`).toBe(64);
      }
    }
    expect(between).toBeGreaterThan(100);
  });

  it('count what is zero from the beginning as there, and name the rest', () => {
    const states = new PageStates(100);
    states.only([
      { first: 30, count: 5 },
      { first: 99, count: 1 },
    ]);
    expect([states.present, states.zero]).toEqual([94, 94]);
    expect(states.missing()).toEqual([
      { first: 30, end: 35 },
      { first: 99, end: 100 },
    ]);
    expect([states.nextAbsent(0), states.nextAbsent(33), states.nextAbsent(35)]).toEqual([30, 33, 99]);
    expect(states.claim(32, 16)).toEqual({ first: 32, count: 3 });
    expect(states.nextAbsent(32)).toBe(99);
    expect(states.nextAbsent(100)).toBe(30);
  });
});
