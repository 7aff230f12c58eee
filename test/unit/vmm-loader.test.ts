import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { elfImage, FLAT_ADDRESS, flatImage, loadGuest, placeImage, VmexitError } from '../../src/index.ts';
import { guestIn } from '../../src/vmm/loader.ts';

const folder = mkdtempSync(join(tmpdir(), 'vmexit-loader-'));
afterAll(() => rmSync(folder, { recursive: true }));

function file(name: string, content: Uint8Array | string): string {
  const path = join(folder, name);
  writeFileSync(path, content);
  return path;
}

const HEADER = 64;
const PROGRAM_HEADER = 56;

interface Load {
  vaddr?: number;
  paddr: number;
  data?: Uint8Array;
  /** What the header says, where it is not what the data has. */
  filesz?: number;
  memsz?: number;
  type?: number;
  flags?: number;
}

/** An ELF64 executable with these segments, well-formed unless the loads say otherwise. */
function elf(loads: readonly Load[], entry = loads[0]?.paddr ?? 0): Uint8Array {
  const data = HEADER + loads.length * PROGRAM_HEADER;
  const bytes = new Uint8Array(data + loads.reduce((sum, load) => sum + (load.data?.length ?? 0), 0));
  const view = new DataView(bytes.buffer);
  bytes.set([0x7f, 0x45, 0x4c, 0x46, 2, 1, 1]);
  view.setUint16(16, 2, true);
  view.setUint16(18, 62, true);
  view.setUint32(20, 1, true);
  view.setBigUint64(24, BigInt(entry), true);
  view.setBigUint64(32, BigInt(HEADER), true);
  view.setUint16(54, PROGRAM_HEADER, true);
  view.setUint16(56, loads.length, true);
  let offset = data;
  for (const [i, load] of loads.entries()) {
    const { paddr, vaddr = paddr, data = new Uint8Array(0), type = 1, flags = 0 } = load;
    const { filesz = data.length, memsz = Math.max(filesz, data.length) } = load;
    const at = HEADER + i * PROGRAM_HEADER;
    view.setUint32(at, type, true);
    view.setUint32(at + 4, flags, true);
    [offset, vaddr, paddr, filesz, memsz].forEach((field, n) => {
      view.setBigUint64(at + 8 + 8 * n, BigInt(field), true);
    });
    bytes.set(data, offset);
    offset += data.length;
  }
  return bytes;
}

const good = () => elf([{ paddr: 0x40_0000, data: Uint8Array.of(0xf4), memsz: 0x2000 }]);

/** The same file with one thing changed. */
function changed(change: (view: DataView) => void): Uint8Array {
  const bytes = good();
  change(new DataView(bytes.buffer));
  return bytes;
}

const code = Uint8Array.of(1, 2, 3, 4);

/** Bad files, each with what the error must say. */
const bad: readonly [sentence: string, file: Uint8Array, says: RegExp][] = [
  [
    'of nothing but the magic number',
    good().slice(0, 4),
    /truncated: an ELF header has 64 bytes, the file 4/,
  ],
  ['cut in its header', good().slice(0, 63), /truncated.* the file 63/],
  [
    'cut in its program headers',
    good().slice(0, 100),
    /program headers end at byte 120, and the file has 100/,
  ],
  [
    'cut in a segment',
    elf([{ paddr: 0x1000, data: code, filesz: 100 }]),
    /segment at 0x1000 ends at byte 220 of the file, which has 124/,
  ],
  [
    'of a multiboot kernel',
    changed((view) => {
      view.setUint8(4, 1);
      view.setUint32(HEADER + 4, 0x1bad_b002, true);
    }),
    /multiboot kernel of 32 bits: .*qemu-system-x86_64 -kernel/,
  ],
  ['of 32 bits', changed((view) => view.setUint8(4, 1)), /32-bit ELF; link it as ELF64/],
  ['of a big-endian machine', changed((view) => view.setUint8(5, 2)), /big-endian/],
  ['of another version', changed((view) => view.setUint8(6, 9)), /version 9/],
  ['for another machine', changed((view) => view.setUint16(18, 183, true)), /machine 183; it must be x86-64/],
  ['that is not linked', changed((view) => view.setUint16(16, 1, true)), /object file; link it/],
  ['that is a shared library', changed((view) => view.setUint16(16, 3, true)), /-no-pie/],
  ['that is a core dump', changed((view) => view.setUint16(16, 4, true)), /type 4; it must be an executable/],
  [
    'with odd program headers',
    changed((view) => view.setUint16(54, 32, true)),
    /program headers of 32 bytes/,
  ],
  ['without program headers', changed((view) => view.setUint16(56, 0, true)), /no program headers/],
  [
    'with program headers far away',
    changed((view) => view.setBigUint64(32, 2n ** 64n - 8n, true)),
    /truncated: its program headers end at byte 18446744073709551664/,
  ],
  ['without segments', elf([{ paddr: 0, type: 4, data: code }]), /no segment to load/],
  [
    'for a dynamic linker',
    elf([
      { paddr: 0x1000, data: code },
      { paddr: 0, type: 3 },
      { paddr: 0, type: 2 },
    ]),
    /dynamically linked/,
  ],
  [
    'with a segment larger in the file than in memory',
    elf([{ paddr: 0x1000, data: code, memsz: 2 }]),
    /damaged: the segment at 0x1000 has 0x4 bytes in the file, 0x2 in memory/,
  ],
  [
    'with segments that overlap',
    elf(
      [
        { paddr: 0x3000, data: code },
        { paddr: 0x2000, data: code, memsz: 0x1001 },
      ],
      0x3000,
    ),
    /overlap, at 0x2000 and 0x3000/,
  ],
  [
    'with a segment beyond all memory',
    changed((view) => view.setBigUint64(HEADER + 24, 2n ** 63n, true)),
    /0x2000 bytes at physical address 0x8000000000000000/,
  ],
  [
    'with a segment of more than all memory',
    changed((view) => view.setBigUint64(HEADER + 40, 2n ** 60n, true)),
    /0x1000000000000000 bytes at physical address 0x400000/,
  ],
  [
    'that begins in no segment',
    changed((view) => view.setBigUint64(24, 0x40_2000n, true)),
    /begins at 0x402000, which is in none of its segments/,
  ],
];

const refusal = (action: () => unknown): VmexitError => {
  try {
    action();
  } catch (error) {
    if (error instanceof VmexitError) return error;
    throw error;
  }
  throw new Error('it was not refused');
};

describe('an ELF64 file', () => {
  it('gives its segments at their physical addresses, and begins in long mode', () => {
    const image = elfImage(
      elf([
        { paddr: 0x10_0000, data: code, memsz: 0x3000 },
        { paddr: 0x20_0000, data: code.subarray(1) },
      ]),
      'kernel',
    );
    expect(image).toMatchObject({ name: 'kernel', mode: 'long', entry: 0x10_0000 });
    expect(image.segments.map(({ address, size, data }) => [address, size, [...data]])).toEqual([
      [0x10_0000, 0x3000, [1, 2, 3, 4]],
      [0x20_0000, 3, [2, 3, 4]],
    ]);
  });

  it('begins where the segment of its entry is put, if that is not its virtual address', () => {
    const image = elfImage(elf([{ paddr: 0x10_0000, vaddr: 0x8000_0000, data: code }], 0x8000_0002));
    expect(image.entry).toBe(0x10_0002);
  });

  it('may have segments of no size, which are no segments', () => {
    const image = elfImage(elf([{ paddr: 0x1000, data: code }, { paddr: 0x1000 }]));
    expect(image.segments).toHaveLength(1);
  });

  it.each(bad)('%s is refused with what is wrong with it', (_sentence, bytes, says) => {
    const error = refusal(() => elfImage(bytes, 'a.out'));
    expect(error.code).toBe('ERR_KVM_BAD_GUEST');
    expect(error.message).toMatch(says);
    expect(error.message).toMatch(/^a\.out /);
  });

  it('is never read out of bounds, whatever single byte of it is wrong', () => {
    for (let at = 0; at < HEADER + PROGRAM_HEADER; at++) {
      for (const value of [0x00, 0x01, 0x7f, 0x80, 0xff]) {
        const bytes = good();
        bytes[at] = value;
        try {
          elfImage(bytes);
        } catch (error) {
          if (!(error instanceof VmexitError)) throw new Error(`byte ${at} = ${value}`, { cause: error });
        }
      }
    }
  });
});

/** A note, as in PT_NOTE. */
function note(owner: string, type: number, desc: Uint8Array): Uint8Array {
  const padded = (size: number) => Math.ceil(size / 4) * 4;
  const bytes = new Uint8Array(12 + padded(owner.length + 1) + padded(desc.length));
  new Uint32Array(bytes.buffer).set([owner.length + 1, desc.length, type]);
  bytes.set(Buffer.from(owner), 12);
  bytes.set(desc, 12 + padded(owner.length + 1));
  return bytes;
}

describe('an ELF file that is static', () => {
  const [LINUX, HURD] = [Uint8Array.of(0, 0, 0, 0, 3, 0, 0, 0), Uint8Array.of(1, 0, 0, 0)];
  const load = { paddr: 0x1000, data: code, flags: 5 };
  const withNotes = (...notes: Uint8Array[]) =>
    elf([load, ...notes.map((data) => ({ paddr: 0, type: 4, data }))]);
  /** Of GNU's ABI, with thread-local storage, and this code. */
  function gnu(...data: number[]): Uint8Array {
    const bytes = elf([
      { ...load, data: Uint8Array.from(data) },
      { paddr: 0, type: 7 },
    ]);
    bytes[7] = 3;
    return bytes;
  }
  const SYSCALL = [0x0f, 0x05];
  const WRMSR = [0x0f, 0x30];

  it('may name an interpreter, or have a dynamic section for itself: one alone links nothing', () => {
    for (const type of [3, 2]) expect(elfImage(elf([load, { paddr: 0, type }])).entry).toBe(0x1000);
  });

  it.each([
    ['with the ABI tag of Linux', withNotes(note('GNU', 1, LINUX)), /program for Linux/],
    [
      'with that tag behind another note',
      withNotes(note('GNU', 3, code), note('GNU', 1, LINUX)),
      /program for Linux/,
    ],
    ['of Go', withNotes(note('Go', 4, code)), /program for Linux/],
    ['of GNU, with thread-local storage and a syscall', gnu(...SYSCALL), /program for Linux/],
    ['of the kernel itself', withNotes(note('Linux', 0x100, code)), /Linux kernel \(vmlinux\)/],
  ])('%s is told from a guest, and taken with force', (_which, bytes, says) => {
    const message = refusal(() => guestIn(bytes, 'g')).message;
    expect(message).toMatch(says);
    expect(message).toMatch(/; --force runs it all the same$/);
    expect(guestIn(bytes, 'g', { force: true })).toEqual(elfImage(bytes, 'g'));
  });

  it.each([
    ['with the ABI tag of another system', withNotes(note('GNU', 1, HURD))],
    ['with a note of its own', withNotes(note('Solo5', 1, code))],
    ['with a note that is cut short', withNotes(note('GNU', 1, LINUX).slice(0, 17))],
    ['of GNU, with thread-local storage, that makes no system call', gnu(0xf4)],
    ['of GNU, with thread-local storage, that serves system calls', gnu(...SYSCALL, ...WRMSR)],
    ['that makes a system call and tells nothing else', elf([{ ...load, data: Uint8Array.from(SYSCALL) }])],
  ])('%s is a guest', (_which, bytes) => {
    expect(guestIn(bytes, 'g').entry).toBe(0x1000);
  });

  it('says itself where it goes', () => {
    for (const options of [{ at: 0x7c00 }, { entry: 0x1000 }])
      expect(refusal(() => guestIn(good(), 'g', options)).message).toMatch(/leave --at and --entry out/);
  });
});

describe('a file', () => {
  it('that is no ELF file is a flat binary, in real mode unless long mode is asked for', () => {
    const path = file('flat.bin', code);
    expect(loadGuest(path)).toMatchObject({ name: path, mode: 'real', entry: FLAT_ADDRESS });
    const { mode, segments } = loadGuest(path, { mode: 'long' });
    expect(mode).toBe('long');
    expect(segments.map(({ address, size, data }) => [address, size, [...data]])).toEqual([
      [FLAT_ADDRESS, 4, [1, 2, 3, 4]],
    ]);
  });

  it('that is an ELF file is loaded as one, and never in real mode', () => {
    const path = file('a.out', good());
    expect(loadGuest(path)).toMatchObject({ mode: 'long', entry: 0x40_0000 });
    expect(loadGuest(path, { mode: 'long' })).toMatchObject({ mode: 'long' });
    expect(refusal(() => loadGuest(path, { mode: 'real' })).message).toMatch(/begins in long mode/);
  });

  it.each([
    ['without a name', () => '', {}, /^'' is no path$/],
    ['that is missing', () => join(folder, 'nothing'), {}, /nothing does not exist$/],
    ['that is empty', () => file('empty', ''), {}, /empty: there is nothing to run/],
    ['that is a folder', () => folder, {}, /is a folder/],
    ['in a folder that is a file', () => join(file('x', 'x'), 'y'), {}, /no folder/],
    ['that never ends', () => '/dev/zero', {}, /no regular file/],
    [
      'larger than the memory',
      () => file('large', code),
      { most: 3 },
      /has 4 bytes, more than .* memory of 3/,
    ],
    ['cut short', () => file('cut', good().slice(0, 70)), {}, /truncated/],
  ])('%s is refused with what to do about it', (_sentence, path, options, says) => {
    const error = refusal(() => loadGuest(path(), options));
    expect(error.code).toBe('ERR_KVM_BAD_GUEST');
    expect(error.message).toMatch(says);
  });

  it('cannot be loaded in a mode that there is not', () => {
    const load = () => loadGuest(file('m', code), { mode: 'virtual' as never });
    expect(load).toThrow(
      expect.objectContaining({
        code: 'ERR_KVM_INVALID_ARG',
        message: expect.stringMatching(/'real' or 'long'/),
      }),
    );
  });
});

describe('placing a program', () => {
  const memory = () => {
    const bytes = new Uint8Array(0x4000);
    return { size: bytes.length, bytes, write: (at: number, data: Uint8Array) => bytes.set(data, at) };
  };

  it('copies each segment to its address and touches nothing else', () => {
    const ram = memory();
    placeImage(flatImage(code, 'real'), ram);
    const { bytes } = ram;
    expect([...bytes.subarray(FLAT_ADDRESS, FLAT_ADDRESS + 4)]).toEqual([1, 2, 3, 4]);
    expect(bytes.reduce((sum, byte) => sum + byte, 0)).toBe(10);
  });

  it('refuses a segment that does not fit, and then has written none of them', () => {
    const image = elfImage(
      elf([
        { paddr: 0x1000, data: code },
        { paddr: 0x3ffd, data: code },
      ]),
      'big',
    );
    const ram = memory();
    const error = refusal(() => placeImage(image, ram));
    expect(error.code).toBe('ERR_KVM_BAD_GUEST');
    expect(error.message).toMatch(
      /^big needs guest memory at \[0x3ffd, 0x4001\), and the guest has 0x4000 bytes/,
    );
    expect(ram.bytes.every((byte) => byte === 0)).toBe(true);
  });

  it('refuses a segment where the VMM keeps tables of its own', () => {
    const image = elfImage(elf([{ paddr: 0x2000, data: code }]));
    expect(refusal(() => placeImage(image, memory(), { start: 0x2003, end: 0x4000 })).message).toMatch(
      /where its stack and page tables go/,
    );
    placeImage(image, memory(), { start: 0x2004, end: 0x4000 });
  });
});
