/**
 * WebAssembly as far as the simulator uses it. TypeScript declares it among the DOM's types, which neither this project
 * nor those who use its declarations need to have.
 */
export interface Memory {
  readonly buffer: ArrayBufferLike;
  grow(pages: number): number;
}
/** Compiled code. It has no members. */
export type Module = object;
export interface Table {
  readonly length: number;
  grow(by: number): number;
  set(index: number, value: unknown): void;
}
export interface Instance {
  readonly exports: { readonly [name: string]: unknown };
}
export interface Imports {
  readonly [module: string]: { readonly [name: string]: unknown };
}

interface Api {
  readonly Memory: new (limits: { initial: number; maximum?: number; shared?: boolean }) => Memory;
  readonly Table: new (description: { initial: number; element: 'anyfunc' }) => Table;
  readonly Module: new (bytes: Uint8Array) => Module;
  readonly Instance: new (module: Module, imports?: Imports) => Instance;
  readonly instantiate: (bytes: Uint8Array, imports?: Imports) => Promise<{ readonly instance: Instance }>;
}
export const { WebAssembly } = globalThis as unknown as { readonly WebAssembly: Api };
