/** scripts/check-symbols.mjs refuses an addon that would not load on an older system. */

import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { must, root, run, Workplace } from './packed.ts';

let work: Workplace;
beforeAll(() => {
  work = new Workplace();
});
afterAll(() => work[Symbol.dispose]());

/** What the script says of a library made of this C. */
function check(source: string, ...options: string[]) {
  writeFileSync(join(work.path, 'library.c'), source);
  must(work.path, 'gcc', ['-shared', '-fPIC', '-o', 'library.node', 'library.c', ...options]);
  return run(work.path, process.execPath, [join(root, 'scripts', 'check-symbols.mjs'), 'library.node']);
}

describe('the check of symbols', () => {
  it('takes what every glibc has, and what Node itself has', () => {
    const { status, stderr } = check(
      'int napi_create_object(void); int open(const char*, int); int f(void) { return open("", napi_create_object()); }',
    );
    expect([status, stderr]).toEqual([0, '']);
  });

  it.each([
    [
      'a function',
      'int arc4random(void); int f(void) { return arc4random(); }',
      /needs arc4random of GLIBC_2\.36/,
    ],
    [
      'a weak function',
      'int arc4random(void) __attribute__((weak)); int getpid(void); int f(void) { return arc4random ? arc4random() : getpid(); }',
      /needs arc4random of GLIBC_2\.36/,
    ],
    [
      'data',
      'extern char __libc_single_threaded; int f(void) { return __libc_single_threaded; }',
      /needs __libc_single_threaded of GLIBC_2\.32/,
    ],
    [
      'what nobody is known to have',
      'int elsewhere(void); int f(void) { return elsewhere(); }',
      /needs elsewhere of no version/,
    ],
  ])('refuses %s above the limit', (_, source, message) => {
    const { status, stderr } = check(source);
    expect(status).toBe(1);
    expect(stderr).toMatch(message);
  });

  it('refuses a library that is not in every Node', () => {
    const { status, stderr } = check('int f(void) { return 0; }', '-Wl,--no-as-needed', '-lresolv');
    expect(status).toBe(1);
    expect(stderr).toMatch(/needs the library libresolv\.so\.2/);
  });
});
