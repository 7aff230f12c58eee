/** The decoder where Node's file system is not: iced-x86 as a module with its WebAssembly inside. */
import type { Iced } from './cpu/translate/decode.ts';
import { type Imports, WebAssembly } from './webassembly.ts';

let loading: Promise<Iced> | undefined;

/** Loaded once in a thread. @throws a CompileError where WebAssembly is not allowed */
export function loadDecoder(): Promise<Iced> {
  loading ??= load();
  return loading;
}

/**
 * iced-x86's own code instantiates its WebAssembly at once, which a page's main thread may refuse. It is given a
 * WebAssembly that only takes its imports down; what they become is filled in when the real one is there.
 */
async function load(): Promise<Iced> {
  const { glue, wasm } = await import('./iced-packed.js');
  const iced = {};
  const exports = {};
  let imports: Imports = {};
  class Instance {
    readonly exports = exports;
    constructor(_module: object, wanted: Imports) {
      imports = wanted;
    }
  }
  const modules: { readonly [name: string]: unknown } = {
    util: { TextDecoder, TextEncoder },
    path: { join: () => '' },
    fs: { readFileSync: () => undefined },
  };
  glue({ exports: iced }, (name) => modules[name], { Module: Object, Instance }, '');
  const { instance } = await WebAssembly.instantiate(await inflate(wasm), imports);
  Object.assign(exports, instance.exports);
  return iced as Iced;
}

async function inflate(base64: string): Promise<Uint8Array> {
  const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  const inflated = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('deflate-raw'));
  return new Uint8Array(await new Response(inflated).arrayBuffer());
}
