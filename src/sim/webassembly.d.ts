/** WebAssembly as far as the simulator uses it: TypeScript has its types only among the DOM's. */
declare namespace WebAssembly {
  class Memory {
    constructor(descriptor: { initial: number; maximum?: number; shared?: boolean });
    readonly buffer: ArrayBufferLike;
    grow(pages: number): number;
  }
  class Module {
    constructor(bytes: Uint8Array);
  }
  class Instance {
    constructor(module: Module, imports?: { [module: string]: { [name: string]: unknown } });
    readonly exports: { [name: string]: unknown };
  }
}
