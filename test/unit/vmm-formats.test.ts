/** What is no guest is told by its magic, and what would run it. */
import { describe, expect, it } from 'vitest';
import { FLAT_ADDRESS, flatImage, VmexitError } from '../../src/index.ts';
import { guestIn, type LoadOptions } from '../../src/vmm/loader.ts';

/** A file of so many bytes, with these strings of bytes at their offsets. From the end where they are negative. */
function file(size: number, pieces: Readonly<Record<number, string>>): Uint8Array {
  const bytes = new Uint8Array(size);
  for (const [at, text] of Object.entries(pieces)) {
    const from = Number(at) < 0 ? size + Number(at) : Number(at);
    bytes.set(Buffer.from(text, 'latin1'), from);
  }
  return bytes;
}

const pe = (subsystem: number) =>
  file(0x400, { 0: 'MZ', 60: '\x80', 128: 'PE\0\0', [0x80 + 0x5c]: String.fromCharCode(subsystem) });
const bootSector = file(512, { 0: '\xeb\xfe', 510: '\x55\xaa' });
const optionRom = file(0x800, { 0: '\x55\xaa\x04\xeb\xfe' });
const bios = file(0x1_0000, { [-16]: '\xea\x5b\xe0\x00\xf0' });

const refused = (bytes: Uint8Array, name = 'guest', options: LoadOptions = {}) => {
  try {
    guestIn(bytes, name, options);
  } catch (error) {
    if (error instanceof VmexitError && error.code === 'ERR_KVM_BAD_GUEST') return error.message;
    throw error;
  }
  return undefined;
};

const known: readonly [what: string, file: Uint8Array, name: string, says: RegExp][] = [
  // A bzImage begins with a boot sector, and with an EFI stub: it is neither.
  [
    'a bzImage',
    file(0x1000, { 0: 'MZ', 510: '\x55\xaa', 514: 'HdrS' }),
    'g',
    /Linux kernel \(bzImage\): .*-kernel/,
  ],
  // So does an ISO image that can be put on a stick.
  ['an ISO image', file(0x9000, { 510: '\x55\xaa', 32769: 'CD001' }), 'g', /ISO 9660.*-cdrom/],
  ['an EFI program', pe(10), 'g', /EFI program: .*OVMF/],
  ['a program for Windows', pe(3), 'g', /DOS or Windows/],
  ['a program for DOS', file(0x100, { 0: 'MZ' }), 'g', /DOS or Windows/],
  ['a qcow2', file(0x200, { 0: 'QFI\xfb' }), 'g', /image of a disk: .*-drive/],
  ['a boot sector', bootSector, 'g', /boot sector.*: --at 0x7c00 runs it/],
  ['an option ROM', optionRom, 'g', /option ROM: .*--at 0xc0000 --entry 0xc0003/],
  ['a BIOS', bios, 'g', /firmware .*-bios/],
  ['a UEFI', file(0x2_0000, { [-20]: 'VTF\0' }), 'g', /firmware/],
  ['variables and code of a UEFI', file(0x2_0000, { 40: '_FVH' }), 'g', /firmware/],
  ['gzip', file(0x100, { 0: '\x1f\x8b\x08' }), 'g', /compressed: unpack it/],
  ['an initramfs', file(0x100, { 0: '070701' }), 'g', /cpio/],
  ['a library', file(0x100, { 0: '!<arch>\n' }), 'g', /library of object files: link it/],
  ['a program for macOS', file(0x100, { 0: '\xcf\xfa\xed\xfe' }), 'g', /macOS/],
  ['WebAssembly', file(0x100, { 0: '\0asm' }), 'g', /WebAssembly/],
  ['a script', Buffer.from('#!/bin/sh\n'), 'g', /script/],
  ['a line of source', Buffer.from('int main(){}\n'), 'g', /text.*compile/],
  ['source in UTF-16', Buffer.from('\ufeffhlt\n', 'utf16le'), 'g', /text.*compile/],
  ['C source', Buffer.from('/* für alle */ int main(void) { return 0; }\n'), 'g', /text.*compile/],
  ['a .COM program', file(3, { 0: '\xb4\x4c\xcd' }), 'HELLO.COM', /\.COM program .*--at 0x100/],
];

describe('what is no guest', () => {
  it.each(known)(
    '%s is refused, with what it is and what would run it, and taken with force',
    (_, bytes, name, says) => {
      const message = refused(bytes, name);
      expect(message).toMatch(says);
      expect(message).toMatch(new RegExp(`^${name} is .*; --force runs it as a flat binary all the same$`));
      expect(guestIn(bytes, name, { force: true })).toMatchObject({ entry: FLAT_ADDRESS, mode: 'real' });
    },
  );

  it.each([
    ['a boot sector', bootSector, { at: 0x7c00 }, 0x7c00],
    ['an option ROM', optionRom, { at: 0xc_0000, entry: 0xc_0003 }, 0xc_0003],
    ['a BIOS', bios, { at: 0xf_0000, entry: 0xf_fff0 }, 0xf_fff0],
  ])('%s is a flat binary where it is told where it goes', (_, bytes, options, entry) => {
    const image = guestIn(bytes, 'guest', options);
    expect(image).toMatchObject({ mode: 'real', entry, segments: [{ address: options.at }] });
  });

  it('is not made of an address alone: an ISO image stays one', () => {
    expect(refused(file(0x9000, { 32769: 'CD001' }), 'g', { at: 0x7c00 })).toMatch(/ISO/);
  });

  it('is told from code: a few bytes, a zero in text, and bytes that are no UTF-8', () => {
    for (const bytes of [
      Uint8Array.of(0xf4),
      Buffer.from('hello'),
      Buffer.from(`${'text '.repeat(10)}\0`),
      Buffer.from(`${'text '.repeat(10)}\xf4`, 'latin1'),
      file(511, { 509: '\x55\xaa' }),
    ])
      expect(refused(bytes)).toBeUndefined();
  });
});

describe('a flat binary', () => {
  const code = Uint8Array.of(0x90, 0xf4);
  const invalid = (says: RegExp) =>
    expect.objectContaining({ code: 'ERR_KVM_INVALID_ARG', message: expect.stringMatching(says) });

  it('begins where it is told, within itself', () => {
    expect(flatImage(code, 'long', 'g', { at: 0x20_0000, entry: 0x20_0001 })).toEqual({
      name: 'g',
      mode: 'long',
      entry: 0x20_0001,
      segments: [{ address: 0x20_0000, size: 2, data: code }],
    });
    for (const entry of [0xfff, 0x1002])
      expect(() => flatImage(code, 'real', 'g', { entry })).toThrow(invalid(/entry is .*\[0x1000, 0x1002\)/));
    expect(() => flatImage(code, 'real', 'g', { at: -1 })).toThrow(invalid(/at is -1/));
    expect(() => flatImage(code, 'real', 'g', { at: 'there' as never })).toThrow(invalid(/at is "there"/));
  });

  it('begins in real mode only where that reaches', () => {
    expect(() => flatImage(code, 'real', 'g', { at: 0x10_0000 })).toThrow(
      invalid(/below 0x100000.*--mode long/),
    );
    expect(flatImage(code, 'real', 'g', { at: 0xf_fffe }).entry).toBe(0xf_fffe);
  });
});
