// A multiboot image in guest memory: the segments of a 32-bit ELF file, each at its physical address.
const PT_LOAD = 1;
/** What EAX has at the entry (Multiboot 0.6.96, 3.2). */
export const LOADED = 0x2bad_b002;

/** Writes the segments by `write(address, bytes)` and gives the entry. */
export function place(image, write) {
  const view = new DataView(image.buffer, image.byteOffset, image.length);
  const [entry, table] = [view.getUint32(24, true), view.getUint32(28, true)];
  const [size, count] = [view.getUint16(42, true), view.getUint16(44, true)];
  for (let at = table; at < table + size * count; at += size) {
    const [type, offset, , physical, length] = [0, 4, 8, 12, 16].map((field) =>
      view.getUint32(at + field, true),
    );
    if (type === PT_LOAD) write(physical, image.subarray(offset, offset + length));
  }
  return entry;
}
