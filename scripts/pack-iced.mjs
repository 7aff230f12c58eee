// iced-x86 as an ES module that needs no file system: its JavaScript, as it is but for comments and spaces, as a
// function of CommonJS's names, and its WebAssembly, compressed. src/sim/decoder.ts puts the two together.
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { deflateRawSync } from 'node:zlib';
import { minifySync } from 'rolldown/utils';

export function packIced() {
  const script = createRequire(import.meta.url).resolve('iced-x86');
  const read = (name, encoding) => readFileSync(join(dirname(script), name), encoding);
  const text = `export function glue(module, require, WebAssembly, __dirname) {${readFileSync(script, 'utf8')}}`;
  const { code, errors } = minifySync('iced_x86.js', text, { module: true, compress: false });
  if (errors.length > 0) throw errors[0];
  const wasm = deflateRawSync(read('iced_x86_bg.wasm'), { level: 9 }).toString('base64');
  const licence = read('LICENSE.txt', 'utf8').trim();
  return `/*! iced-x86\n\n${licence}\n*/\n${code}\nexport const wasm = "${wasm}";\n`;
}
