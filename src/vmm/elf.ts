/** ELF64 executables (the System V ABI, "Object Files" and "Program Loading", with the x86-64 supplement). */
import { bytes, struct, u8, u16, u32, u64, type Value, viewOf } from '../uapi/layout.ts';
import { badGuest, type GuestImage, type Segment } from './image.ts';

const elf64_ehdr = struct('Elf64_Ehdr', {
  magic: u32,
  class: u8,
  data: u8,
  version: u8,
  ident: bytes(9),
  type: u16,
  machine: u16,
  fileVersion: u32,
  entry: u64,
  phoff: u64,
  shoff: u64,
  flags: u32,
  ehsize: u16,
  phentsize: u16,
  phnum: u16,
  shentsize: u16,
  shnum: u16,
  shstrndx: u16,
});
const elf64_phdr = struct('Elf64_Phdr', {
  type: u32,
  flags: u32,
  offset: u64,
  vaddr: u64,
  paddr: u64,
  filesz: u64,
  memsz: u64,
  align: u64,
});
type Header = Value<typeof elf64_ehdr>;
type ProgramHeader = Value<typeof elf64_phdr>;

/** 0x7f, "ELF". */
const MAGIC = 0x464c_457f;
const PT_LOAD = 1;
const PT_INTERP = 3;
/** Above any guest's memory; what lies below it is exact as a number. */
const MAX_ADDRESS = 1n << 52n;

const hex = (value: number | bigint) => `0x${value.toString(16)}`;

/** What the header must say: field, value, and what is wrong with another one. */
const header: readonly [keyof Header, number, (value: unknown) => string][] = [
  ['class', 2, () => 'is a 32-bit ELF; link it as ELF64 (ld -m elf_x86_64)'],
  ['data', 1, () => 'is a big-endian ELF; x86 is little-endian'],
  ['version', 1, (value) => `is of ELF version ${value}; there is only 1`],
  ['machine', 62, (value) => `is an ELF for machine ${value}; it must be x86-64, which is 62`],
  [
    'type',
    2,
    (value) =>
      ({
        1: 'is an object file; link it (ld -static)',
        3: 'is position-independent or a shared library; link it at a fixed address (ld -static -no-pie)',
      })[value as number] ?? `is an ELF of type ${value}; it must be an executable, which is 2`,
  ],
  ['phentsize', elf64_phdr.size, (value) => `has program headers of ${value} bytes; ELF64's have 56`],
];

/** Whether the file says that it is an ELF file, of whatever kind. */
export const isElf = (file: Uint8Array): boolean =>
  file.length >= 4 && viewOf(file).getUint32(0, true) === MAGIC;

/**
 * An ELF64 executable for x86-64: each PT_LOAD segment at its physical address, begun in 64-bit mode at the entry.
 * The entry is a virtual address, and the guest begins with memory mapped one to one: so it is that of the segment
 * that has it, moved to where that segment is put.
 * @throws VmexitError ERR_KVM_BAD_GUEST that says what is wrong with the file
 * @example
 * ```ts
 * import { elfImage } from 'vmexit';
 *
 * // A linker writes this: an ELF header, one program header, and a HLT.
 * const file = new Uint8Array(64 + 56 + 1);
 * const view = new DataView(file.buffer);
 * const write64 = (at: number, value: number) => view.setBigUint64(at, BigInt(value), true);
 * file.set([0x7f, 0x45, 0x4c, 0x46, 2, 1, 1]); // "ELF", 64-bit, little-endian, version 1
 * file.set([2, 0, 62, 0, 1], 16); // an executable for x86-64
 * write64(24, 0x10_0000); // its entry
 * write64(32, 64); // where the program header is
 * file.set([64, 0, 56, 0, 1], 52); // bytes of both headers, and one of the latter
 * file.set([1, 0, 0, 0, 5], 64); // PT_LOAD, readable and executable
 * write64(72, 120); // where its bytes are
 * for (const at of [80, 88]) write64(at, 0x10_0000); // virtual and physical address
 * for (const at of [96, 104]) write64(at, 1); // bytes in the file, and in memory
 * file[120] = 0xf4;
 *
 * const { entry, mode, segments } = elfImage(file, 'halts.elf');
 * console.log(`${mode} mode, ${segments.length} segment, begins at 0x${entry.toString(16)}`);
 * // prints: long mode, 1 segment, begins at 0x100000
 * ```
 */
export function elfImage(file: Uint8Array, name = 'the guest'): GuestImage {
  if (!isElf(file)) throw badGuest(name, 'is no ELF file');
  const view = viewOf(file);
  if (file.length < elf64_ehdr.size) {
    throw badGuest(name, `is truncated: an ELF header has ${elf64_ehdr.size} bytes, the file ${file.length}`);
  }
  const head = elf64_ehdr.get(view, 0);
  for (const [field, wanted, wrong] of header) {
    if (head[field] !== wanted) throw badGuest(name, wrong(head[field]));
  }
  const end = head.phoff + BigInt(head.phnum * elf64_phdr.size);
  if (head.phnum === 0) throw badGuest(name, 'has no program headers: link it (ld)');
  if (end > file.length) {
    throw badGuest(
      name,
      `is truncated: its program headers end at byte ${end}, and the file has ${file.length}`,
    );
  }
  const headers = Array.from({ length: head.phnum }, (_, i) =>
    elf64_phdr.get(view, Number(head.phoff) + i * elf64_phdr.size),
  );
  if (headers.some(({ type }) => type === PT_INTERP)) {
    throw badGuest(name, 'is dynamically linked, for an operating system; link it with -static');
  }
  const loads = headers.filter(({ type, memsz }) => type === PT_LOAD && memsz > 0n);
  if (loads.length === 0) throw badGuest(name, 'has no segment to load');
  const segments = loads.map((load) => segment(load, file, name));
  checkOverlap(segments, name);
  return { name, mode: 'long', entry: entryOf(head.entry, loads, name), segments };
}

function segment({ offset, paddr, filesz, memsz }: ProgramHeader, file: Uint8Array, name: string): Segment {
  const where = `the segment at ${hex(paddr)}`;
  if (filesz > memsz) {
    throw badGuest(
      name,
      `is damaged: ${where} has ${hex(filesz)} bytes in the file, ${hex(memsz)} in memory`,
    );
  }
  if (offset + filesz > BigInt(file.length)) {
    throw badGuest(
      name,
      `is truncated: ${where} ends at byte ${offset + filesz} of the file, which has ${file.length}`,
    );
  }
  if (paddr + memsz > MAX_ADDRESS) {
    throw badGuest(
      name,
      `has a segment of ${hex(memsz)} bytes at physical address ${hex(paddr)}, beyond any guest's memory; ` +
        'the linker script sets it (AT, or --image-base)',
    );
  }
  const from = Number(offset);
  return { address: Number(paddr), size: Number(memsz), data: file.subarray(from, from + Number(filesz)) };
}

function checkOverlap(segments: readonly Segment[], name: string): void {
  const sorted = segments.toSorted((a, b) => a.address - b.address);
  for (const [i, next] of sorted.entries()) {
    const before = sorted[i - 1];
    if (before && before.address + before.size > next.address) {
      throw badGuest(name, `has segments that overlap, at ${hex(before.address)} and ${hex(next.address)}`);
    }
  }
}

function entryOf(entry: bigint, loads: readonly ProgramHeader[], name: string): number {
  const home = loads.find(({ vaddr, memsz }) => vaddr <= entry && entry < vaddr + memsz);
  if (!home) {
    throw badGuest(name, `begins at ${hex(entry)}, which is in none of its segments (ld -e, .globl _start)`);
  }
  return Number(entry - home.vaddr + home.paddr);
}
