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
const PT_DYNAMIC = 2;
const PT_INTERP = 3;
const PT_NOTE = 4;
const PT_TLS = 7;
/** p_flags: the segment is executable. */
const PF_X = 1;
/** EI_OSABI of what uses GNU's extensions, in the first byte behind EI_VERSION. */
const ELFOSABI_GNU = 3;
/** Above any guest's memory; what lies below it is exact as a number. */
const MAX_ADDRESS = 1n << 52n;

const hex = (value: number | bigint) => `0x${value.toString(16)}`;

/** Magic numbers of Multiboot's headers: how far into the file, and how they are aligned (Multiboot 0.6.96, 3.1; 2.0, 3.1.1). */
const multiboot: readonly [magic: number, within: number, align: number][] = [
  [0x1bad_b002, 8192, 4],
  [0xe852_50d6, 32_768, 8],
];

function hasMultibootHeader(file: Uint8Array): boolean {
  const view = viewOf(file);
  return multiboot.some(([magic, within, align]) => {
    for (let at = 0; at + 4 <= Math.min(within, file.length); at += align) {
      if (view.getUint32(at, true) === magic) return true;
    }
    return false;
  });
}

/** What the header must say: field, value, and what is wrong with another one. */
const header: readonly [keyof Header, number, (value: unknown, file: Uint8Array) => string][] = [
  [
    'class',
    2,
    (_, file) =>
      hasMultibootHeader(file)
        ? 'is a multiboot kernel of 32 bits: a multiboot loader begins it, in 32-bit protected mode ' +
          '(qemu-system-x86_64 -kernel, or GRUB); here an ELF begins in 64-bit mode'
        : 'is a 32-bit ELF; link it as ELF64 (ld -m elf_x86_64)',
  ],
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
  const { entry, headers } = read(file, name);
  // A unikernel may name an interpreter as a mark for its own loader: nothing is linked without PT_DYNAMIC.
  if ([PT_INTERP, PT_DYNAMIC].every((wanted) => headers.some(({ type }) => type === wanted))) {
    throw badGuest(name, 'is dynamically linked, for an operating system; link it with -static');
  }
  const loads = headers.filter(({ type, memsz }) => type === PT_LOAD && memsz > 0n);
  if (loads.length === 0) throw badGuest(name, 'has no segment to load');
  const segments = loads.map((load) => segment(load, file, name));
  checkOverlap(segments, name);
  return { name, mode: 'long', entry: entryOf(entry, loads, name), segments };
}

/** The header, and the program headers. */
function read(file: Uint8Array, name: string): Header & { readonly headers: readonly ProgramHeader[] } {
  if (!isElf(file)) throw badGuest(name, 'is no ELF file');
  const view = viewOf(file);
  if (file.length < elf64_ehdr.size) {
    throw badGuest(name, `is truncated: an ELF header has ${elf64_ehdr.size} bytes, the file ${file.length}`);
  }
  const head = elf64_ehdr.get(view, 0);
  for (const [field, wanted, wrong] of header) {
    if (head[field] !== wanted) throw badGuest(name, wrong(head[field], file));
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
  return { ...head, headers };
}

/** What a note's owner and type say of who runs the file: undefined where that may well be nobody. */
const notes: readonly [owner: string, type: number, system: (desc: Uint8Array) => string | undefined][] = [
  // The ABI tag of glibc's startup code: the first word is the operating system, 0 for Linux.
  ['GNU', 1, (desc) => (viewOf(desc).getUint32(0, true) === 0 ? LINUX_PROGRAM : undefined)],
  ['Go', 4, () => LINUX_PROGRAM],
  // LINUX_ELFNOTE_BUILD_SALT of a vmlinux.
  [
    'Linux',
    0x100,
    () =>
      'is a Linux kernel (vmlinux): it wants boot_params in rsi, and devices; qemu-system-x86_64 -kernel runs ' +
      'its bzImage',
  ],
];
const LINUX_PROGRAM =
  'is a program for Linux, and here is no kernel to serve its system calls: run it as it is, or link one for bare ' +
  'metal (-nostdlib -static)';

/**
 * What an executable that elfImage() takes is, when it is no guest: a sentence to put behind its name. A unikernel has
 * thread-local storage and GNU's extensions as well. Without the mark of a system's startup code it is a program that has
 * both, and a `syscall`, and no `wrmsr`, by which a kernel sets the handler of the one and the base of the other.
 */
export function hostedElf(file: Uint8Array, name: string): string | undefined {
  const { headers, ident } = read(file, name);
  for (const { owner, type, desc } of headers
    .filter(isNotes)
    .flatMap((header) => [...notesOf(header, file)])) {
    const found = notes.find(([wanted, of]) => wanted === owner && of === type)?.[2](desc);
    if (found !== undefined) return found;
  }
  if (ident[0] !== ELFOSABI_GNU || !headers.some(({ type }) => type === PT_TLS)) return undefined;
  const code = headers.filter(({ flags }) => (flags & PF_X) !== 0).map((header) => bytesOf(header, file));
  const has = (opcode: number) => code.some((bytes) => hasPair(bytes, 0x0f, opcode));
  return has(SYSCALL) && !has(WRMSR) ? LINUX_PROGRAM : undefined;
}

/** Second bytes, behind 0x0f. */
const SYSCALL = 0x05;
const WRMSR = 0x30;

/** Those aligned to 8 are of another format: .note.gnu.property. */
const isNotes = ({ type, align }: ProgramHeader) => type === PT_NOTE && align <= 4n;

const bytesOf = ({ offset, filesz }: ProgramHeader, file: Uint8Array) =>
  file.subarray(Number(offset), Number(offset + filesz));

function* notesOf(header: ProgramHeader, file: Uint8Array) {
  const bytes = bytesOf(header, file);
  const view = viewOf(bytes);
  const padded = (size: number) => Math.ceil(size / 4) * 4;
  for (let at = 0; at + 12 <= bytes.length; ) {
    const [name, desc] = [at + 12, at + 12 + padded(view.getUint32(at, true))];
    const end = desc + padded(view.getUint32(at + 4, true));
    if (end > bytes.length || end - desc < 4) return;
    const owner = String.fromCharCode(...bytes.subarray(name, desc)).replace(/\0+$/, '');
    yield { owner, type: view.getUint32(at + 8, true), desc: bytes.subarray(desc, end) };
    at = end;
  }
}

function hasPair(bytes: Uint8Array, first: number, second: number): boolean {
  for (let at = bytes.indexOf(first); at >= 0; at = bytes.indexOf(first, at + 1))
    if (bytes[at + 1] === second) return true;
  return false;
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
