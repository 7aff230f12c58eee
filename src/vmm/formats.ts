/** What a file is that no guest can be made of as it stands: recognised by its magic, and what would run it. */

type Bytes = Uint8Array;

/** A format of files. The first row that fits is it. */
interface Format {
  readonly is: (file: Bytes, name: string) => boolean;
  /** Behind the name: `is an ISO 9660 image`. */
  readonly what: string;
  readonly runs: string;
  /** It is code without a format that wants to be at an address: with one named, it is a flat binary. */
  readonly flat?: true;
}

const QEMU = 'qemu-system-x86_64';
/** Of a text or a table this much is looked at. */
const LOOKED_AT = 4096;
/** So many bytes of code are hardly ever all printable: neither HLT nor a jump backwards is. */
const LEAST_TEXT = 8;
/** Of UTF-16: no instruction begins so. */
const BYTE_ORDER_MARKS = ['\xff\xfe', '\xfe\xff'];

const bytesOf = (magic: string) => Array.from(magic, (c) => c.charCodeAt(0));

/** Whether the bytes are there. @param at from the file's end when it is negative */
const has = (file: Bytes, at: number, magic: string): boolean => {
  const from = at < 0 ? file.length + at : at;
  return from >= 0 && bytesOf(magic).every((byte, i) => file[from + i] === byte);
};
const magic =
  (at: number, ...magics: readonly string[]): Format['is'] =>
  (file) =>
    magics.some((one) => has(file, at, one));

const u32 = (file: Bytes, at: number) => new DataView(file.buffer, file.byteOffset).getUint32(at, true);

/** Where a PE file has its header; the offset is in the MZ header before it. */
function peHeader(file: Bytes): number | undefined {
  if (!has(file, 0, 'MZ') || file.length < 0x40) return undefined;
  const at = u32(file, 0x3c);
  return has(file, at, 'PE\0\0') && file.length >= at + 0x60 ? at : undefined;
}
/** EFI application, boot and runtime driver, and ROM (UEFI specification, 2.1.1). */
const isEfi = (file: Bytes): boolean => {
  const at = peHeader(file);
  return at !== undefined && file[at + 0x5c]! >= 10 && file[at + 0x5c]! <= 13 && file[at + 0x5d] === 0;
};

/** A far jump into the segment F000 at the reset vector; or EDK2's mark before it. */
const isFirmware = (file: Bytes): boolean =>
  file.length % 0x1_0000 === 0 &&
  ((has(file, -16, '\xea') && has(file, -13, '\x00\xf0')) ||
    has(file, -20, 'VTF\0') ||
    has(file, 40, '_FVH'));

function isText(file: Bytes): boolean {
  if (BYTE_ORDER_MARKS.some((mark) => has(file, 0, mark))) return true;
  const head = file.subarray(0, LOOKED_AT);
  const printable = (byte: number) => (byte >= 0x20 && byte !== 0x7f) || (byte >= 0x09 && byte <= 0x0d);
  if (head.length < LEAST_TEXT || !head.every(printable)) return false;
  try {
    // A character may be cut where the head ends.
    new TextDecoder('utf-8', { fatal: true }).decode(head, { stream: file.length > head.length });
    return true;
  } catch {
    return false;
  }
}

const formats: readonly Format[] = [
  {
    is: magic(0x202, 'HdrS'),
    what: 'is a Linux kernel (bzImage)',
    runs: `it needs a boot loader that follows Linux's boot protocol: ${QEMU} -kernel has one`,
  },
  {
    is: magic(0x8001, 'CD001'),
    what: 'is an ISO 9660 image',
    runs: `it needs firmware and a drive: ${QEMU} -cdrom`,
  },
  { is: isEfi, what: 'is an EFI program', runs: `it needs UEFI firmware: ${QEMU} with OVMF` },
  { is: magic(0, 'MZ'), what: 'is a program for DOS or Windows', runs: 'it needs that system' },
  {
    is: magic(0, 'QFI\xfb', 'KDMV', 'vhdxfile', 'conectix'),
    what: 'is the image of a disk',
    runs: `it needs firmware and a drive: ${QEMU} -drive file=FILE`,
  },
  {
    is: magic(0x1fe, '\x55\xaa'),
    what: 'is a boot sector, or a disk that begins with one',
    runs: `--at 0x7c00 runs it, without a BIOS; ${QEMU} -drive format=raw,file=FILE has one`,
    flat: true,
  },
  {
    is: magic(0, '\x55\xaa'),
    what: 'is an option ROM',
    runs: 'a BIOS calls it, three bytes from its beginning: with --at 0xc0000 --entry 0xc0003 it runs without one',
    flat: true,
  },
  {
    is: isFirmware,
    what: 'is firmware (a BIOS or UEFI)',
    runs: `it begins 16 bytes before its end, at the end of the first 4 GiB: ${QEMU} -bios`,
    flat: true,
  },
  {
    is: magic(0, '\x1f\x8b', '\x28\xb5\x2f\xfd', '\xfd7zXZ\0', 'BZh', 'PK\x03\x04', '\x04\x22\x4d\x18'),
    what: 'is compressed',
    runs: 'unpack it first',
  },
  {
    is: magic(0, '070701', '070702'),
    what: 'is a cpio archive (an initramfs)',
    runs: 'a Linux kernel unpacks it',
  },
  {
    is: magic(0, '!<arch>\n'),
    what: 'is a library of object files',
    runs: 'link it (ld -static)',
  },
  {
    is: magic(0, '\xcf\xfa\xed\xfe', '\xce\xfa\xed\xfe', '\xca\xfe\xba\xbe'),
    what: 'is a program for macOS, or of Java classes',
    runs: 'it needs that system',
  },
  { is: magic(0, '\0asm'), what: 'is WebAssembly', runs: 'node or a browser runs it' },
  { is: magic(0, '#!'), what: 'is a script', runs: 'its interpreter runs it' },
  {
    is: isText,
    what: 'is text, a source perhaps',
    runs: 'assemble or compile it, then link it (ld -static, or --oformat binary)',
  },
  {
    is: (_, name) => /\.com$/i.test(name),
    what: 'is a .COM program for DOS by its name',
    runs: '--at 0x100 runs it, without DOS',
    flat: true,
  },
];

/**
 * What a file is, when it is known and no flat binary: a sentence to put behind its name, with what would run it.
 * @param placed whether it was said where it goes: then what wants to be at an address is a flat binary
 */
export function foreignFormat(file: Uint8Array, name: string, placed = false): string | undefined {
  const found = formats.find(({ is }) => is(file, name));
  if (found === undefined || (placed && found.flat)) return undefined;
  return `${found.what}: ${found.runs}; --force runs it as a flat binary all the same`;
}
