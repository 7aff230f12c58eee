// A program of the benchmarks on v86: node v86.mjs IMAGE MIB. What it writes to port 0xe9 comes out at once. A multiboot
// image needs no BIOS there.
import { readFileSync, writeSync } from 'node:fs';
import { createRequire } from 'node:module';
import { V86 } from 'v86';

const MARKS = 0xe9;
const END = 0xf4;

const [path, mib] = process.argv.slice(2);
const image = readFileSync(path);
const emulator = new V86({
  wasm_path: createRequire(import.meta.url).resolve('v86/build/v86.wasm'),
  memory_size: Number(mib) * 2 ** 20,
  multiboot: { buffer: image.buffer.slice(image.byteOffset, image.byteOffset + image.length) },
  disable_speaker: true,
  autostart: false,
});
emulator.add_listener('emulator-ready', () => {
  const { io } = emulator.v86.cpu;
  const refused = () => {};
  const mark = (value) => writeSync(1, Uint8Array.of(value));
  const end = () => process.exit(0);
  io.register_write(MARKS, {}, mark, refused, refused);
  io.register_write(END, {}, end, end, end);
  emulator.run();
});
