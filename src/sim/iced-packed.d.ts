/** Made by scripts/pack-iced.mjs: iced-x86's JavaScript as a function of what CommonJS has, and its WebAssembly. */
export function glue(
  module: { readonly exports: object },
  require: (name: string) => unknown,
  WebAssembly: object,
  folder: string,
): void;
/** Compressed (raw deflate), in base64. */
export const wasm: string;
