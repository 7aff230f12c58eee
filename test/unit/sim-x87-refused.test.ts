import { expect, it } from 'vitest';
import { State } from '../../src/sim/cpu/processor/state.ts';
import { WebAssembly } from '../../src/sim/webassembly.ts';
import { Executors } from '../differential/floats-executors.ts';

/** What old versions of Chromium compile at once on a page. */
const MOST = 4096;

it('computes where an engine compiles no module as large as that of the functions', () => {
  const { Module } = WebAssembly;
  let refused = 0;
  class Limited {
    constructor(bytes: Uint8Array) {
      if (bytes.length > MOST) {
        refused++;
        throw new RangeError('WebAssembly.Compile is disallowed on the main thread');
      }
      // biome-ignore lint/correctness/noConstructorReturn: it stands for another class.
      return new Module(bytes);
    }
  }
  Object.assign(WebAssembly, { Module: Limited });
  try {
    const executors = new Executors();
    const { state } = executors;
    const { wasm } = executors.pair('fld1', [0xd9, 0xe8]);
    state.setU16(State.fcw, 0x37f);
    state.setU16(State.ftw, 0xffff);
    expect(executors.run(wasm)).toBe(0);
    expect(executors.gaveUp).toBe(1);
    expect(state.u64(State.x87 + 7 * 16)).toBe(1n << 63n);
    expect(state.u16(State.fsw)).toBe(7 << 11);
  } finally {
    Object.assign(WebAssembly, { Module });
  }
  expect(refused).toBe(1);
});
