import { describe, expect, it } from 'vitest';
import {
  decodeExit,
  dialects,
  Errno,
  Exit,
  exitName,
  isMemoryFault,
  kvm_run,
  type MemoryFault,
} from '../../src/uapi/index.ts';

const { rfc, v9, mainline } = dialects;
const all = Object.values(dialects);

const fault = (isPrivate: boolean, unknown = 0n, userfault = false): MemoryFault => ({
  flags: { private: isPrivate, userfault, unknown },
  gpa: 0x1_2345_6000,
  size: 0x20_0000,
});

const freshPage = () => new DataView(new ArrayBuffer(kvm_run.size));
const unionBytes = (page: DataView) => [...new Uint8Array(page.buffer, 32, 24)];
const exitReason = (page: DataView) => page.getUint32(8, true);

describe.each(all)('the $name dialect', (dialect) => {
  it.each([fault(true), fault(false), fault(true, 0x20n), fault(false, 0x8000_0000n)])(
    'gives back the fault that it wrote: %o',
    (written) => {
      const page = freshPage();
      dialect.encode(page, written);
      expect(dialect.decode(page)).toEqual(written);
    },
  );

  it('overwrites all of the fault that stood there before', () => {
    const page = freshPage();
    new Uint8Array(page.buffer, 32, 256).fill(0xff);
    dialect.encode(page, fault(false));
    expect(dialect.decode(page)).toEqual(fault(false));
  });

  it('recognises its own fault by what KVM_RUN returned', () => {
    const page = freshPage();
    dialect.encode(page, fault(true));
    expect(dialect.outcome(dialect.signal.result, exitReason(page))).toBe(Exit.MEMORY_FAULT);
    expect(isMemoryFault(Exit.MEMORY_FAULT)).toBe(true);
  });

  it('keeps EINTR, EAGAIN and an EFAULT without information apart from a fault', () => {
    const standing = dialect.signal.exitReason;
    expect(dialect.outcome(-Errno.EINTR, standing)).toBe(Exit.INTERRUPTED);
    expect(dialect.outcome(-Errno.EAGAIN, standing)).toBe(Exit.AGAIN);
    expect(dialect.outcome(-Errno.EFAULT, Exit.MMIO)).toBe(Exit.FAULT);
    expect(dialect.outcome(-Errno.ENOMEM, standing)).toBeNull();
  });

  it('refuses an unknown flag that it knows', () => {
    expect(() => dialect.encode(freshPage(), fault(false, BigInt(dialect.bits.private)))).toThrow(RangeError);
  });

  it('is decoded by decodeExit into the same normalised fault', () => {
    const page = freshPage();
    dialect.encode(page, fault(true, 0x40n));
    expect(decodeExit(Exit.MEMORY_FAULT, page, dialect)).toMatchObject({
      reason: 'MEMORY_FAULT',
      ...fault(true, 0x40n),
    });
  });
});

describe('the five differences', () => {
  it('1: the exit number, of which two mean other exits today', () => {
    expect(all.map((dialect) => dialect.signal.exitReason)).toEqual([36, 38, 39]);
    expect([36, 38, 39].map(exitName)).toEqual(['RISCV_CSR', 'LOONGARCH_IOCSR', 'MEMORY_FAULT']);
  });

  it('2: the layout, of four bytes of flags and padding or of eight bytes of flags', () => {
    expect(all.map((dialect) => Object.keys(dialect.arm.fields))).toEqual([
      ['flags', 'padding', 'gpa', 'size'],
      ['flags', 'padding', 'gpa', 'size'],
      ['flags', 'gpa', 'size'],
    ]);
    expect(all.map((dialect) => dialect.arm.fields.flags.type.size)).toEqual([4, 4, 8]);
    expect(all.map((dialect) => dialect.arm.size)).toEqual([24, 24, 24]);
  });

  it('2: the bit for private, 0 or 3', () => {
    const written = (dialect: typeof rfc) => {
      const page = freshPage();
      dialect.encode(page, fault(true));
      return unionBytes(page);
    };
    const gpaAndSize = [0x00, 0x60, 0x45, 0x23, 1, 0, 0, 0, 0, 0, 0x20, 0, 0, 0, 0, 0];
    expect(written(rfc)).toEqual([1, 0, 0, 0, 0, 0, 0, 0, ...gpaAndSize]);
    expect(written(v9)).toEqual([1, 0, 0, 0, 0, 0, 0, 0, ...gpaAndSize]);
    expect(written(mainline)).toEqual([8, 0, 0, 0, 0, 0, 0, 0, ...gpaAndSize]);
  });

  it('2: one dialect’s private is another’s unknown flag', () => {
    const page = freshPage();
    rfc.encode(page, fault(true));
    expect(mainline.decode(page).flags).toEqual({ private: false, userfault: false, unknown: 1n });
    mainline.encode(page, fault(true));
    expect(v9.decode(page).flags).toEqual({ private: false, userfault: false, unknown: 8n });
  });

  it('2: only mainline has a bit for userfault, and flags above bit 31', () => {
    const page = freshPage();
    mainline.encode(page, fault(true, 1n << 63n, true));
    expect(unionBytes(page).slice(0, 8)).toEqual([0x18, 0, 0, 0, 0, 0, 0, 0x80]);
    expect(mainline.decode(page)).toEqual(fault(true, 1n << 63n, true));
    for (const older of [rfc, v9]) {
      expect(() => older.encode(page, fault(true, 0n, true))).toThrow(`${older.name} has no userfault flag`);
      expect(() => older.encode(page, fault(true, 1n << 32n))).toThrow(RangeError);
    }
  });

  it('2: the older layouts do not read the padding', () => {
    const page = freshPage();
    v9.encode(page, fault(true));
    page.setUint32(36, 0xffff_ffff, true);
    expect(v9.decode(page)).toEqual(fault(true));
  });

  it('3: what KVM_RUN returns, EPERM or success or EFAULT', () => {
    expect(all.map((dialect) => dialect.signal.result)).toEqual([-Errno.EPERM, 0, -Errno.EFAULT]);
    expect(all.map((dialect) => dialect.signal.poisonedResult)).toEqual([null, null, -Errno.EHWPOISON]);
  });

  it('3: the same return means a fault in one dialect and something else in another', () => {
    expect(all.map((dialect) => dialect.outcome(0, 38))).toEqual([38, Exit.MEMORY_FAULT, 38]);
    expect(all.map((dialect) => dialect.outcome(-Errno.EPERM, 36))).toEqual([Exit.MEMORY_FAULT, null, null]);
    expect(all.map((dialect) => dialect.outcome(0, 36))).toEqual([null, 36, 36]);
    expect(all.map((dialect) => dialect.outcome(-Errno.EFAULT, 39))).toEqual([
      Exit.FAULT,
      Exit.FAULT,
      Exit.MEMORY_FAULT,
    ]);
    expect(all.map((dialect) => dialect.outcome(-Errno.EHWPOISON, 39))).toEqual([
      null,
      null,
      Exit.MEMORY_POISONED,
    ]);
  });

  it('4 and 5: where the truth lives, and which call converts', () => {
    expect(all.map((dialect) => dialect.truth)).toEqual(['allocation', 'regions', 'attributes']);
    expect(all.map((dialect) => Object.values(dialect.converts))).toEqual([
      ['fallocate', 'fallocate PUNCH_HOLE'],
      ['KVM_MEMORY_ENCRYPT_REG_REGION', 'KVM_MEMORY_ENCRYPT_UNREG_REGION'],
      ['KVM_SET_MEMORY_ATTRIBUTES', 'KVM_SET_MEMORY_ATTRIBUTES'],
    ]);
  });
});
