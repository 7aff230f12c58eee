/** The rows of words by which threads reach each other's vCPUs on the simulator. */
import { afterEach, describe, expect, it, vi } from 'vitest';
import { Kicks, makeKickTable, Standing } from '../../src/sim/kernel/threads/kicks.ts';

const [MINE, THEIRS] = [1, 2];
const LONG_MS = 60_000;

afterEach(() => {
  vi.restoreAllMocks();
});

function row() {
  const kicks = new Kicks(makeKickTable(MINE));
  const word = kicks.open()!;
  const { number } = kicks.openEvent()!;
  return { kicks, word, pause: () => kicks.pause(word.id, number) };
}

describe('a vCPU that a thread begins to run', () => {
  it.each(['never', 'long ago'])('is not taken for gone if it last ran %s', (last) => {
    const { word, pause } = row();
    if (last === 'long ago') {
      word.claim(MINE);
      word.unclaim(MINE);
    }
    const later = Date.now() + LONG_MS;
    // Somebody asks for a pause whenever the time is looked at.
    const clock = vi.spyOn(Date, 'now').mockImplementation(() => {
      clock.mockImplementation(() => later);
      pause();
      return later;
    });
    expect(word.claim(THEIRS)).toBe(true);
    word.standing = Standing.RUNNING;
    expect(pause()).toBe(1);
    expect(word.runner).toBe(THEIRS);
    expect(clock).toHaveBeenCalled();
  });

  it('is another thread’s until that one has been silent for long', () => {
    const { word } = row();
    expect(word.claim(MINE)).toBe(true);
    expect(word.claim(MINE)).toBe(true);
    expect(word.claim(THEIRS)).toBe(false);
    vi.spyOn(Date, 'now').mockReturnValue(Date.now() + LONG_MS);
    expect(word.claim(THEIRS)).toBe(true);
    expect(word.claim(MINE)).toBe(false);
  });
});
