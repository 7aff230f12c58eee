/** The simulated VM's memory by itself, without a processor: what no ioctl and no guest can show from outside. */
import { describe, expect, it } from 'vitest';
import { Arena, PAGE } from '../../src/sim/arena.ts';
import { Access, MMIO } from '../../src/sim/cpu/processor/stage.ts';
import { GuestMemfdFile } from '../../src/sim/memory/guest-memfd.ts';
import { Falloc, Mapping } from '../../src/sim/memory/host-memory.ts';
import { RamFile } from '../../src/sim/memory/ram.ts';
import { Sharing } from '../../src/sim/memory/sharing.ts';
import type { Region } from '../../src/sim/memory/slots.ts';
import { type Failure, VmMemory } from '../../src/sim/memory/vm-memory.ts';
import { type DialectName, dialects, Errno, MemFlag, MemoryAttribute } from '../../src/uapi/index.ts';

const { READ, WRITE } = Access;
const { PRIVATE } = MemoryAttribute;
const BASE = 0x10_0000;
const SIZE = 4 * PAGE;
const PUNCH = Falloc.KEEP_SIZE | Falloc.PUNCH_HOLE;
const LARGE = 2 * 2 ** 20;

interface Options {
  readonly dialect?: DialectName;
  readonly choosing?: boolean;
  readonly faultSize?: number;
  readonly flags?: number;
  readonly size?: number;
  readonly secret?: boolean;
}

/** A VM with one slot at 1 MiB, with both kinds of memory. */
class Parts {
  readonly arena = new Arena();
  readonly memory: VmMemory;
  readonly ram: Mapping;
  readonly secret: GuestMemfdFile;
  readonly region: Region;
  flushes = 0;

  constructor(options: Options = {}) {
    const { dialect = 'mainline', choosing = false, faultSize = PAGE } = options;
    const { flags = 0, size = SIZE, secret = true } = options;
    const rules = { addressSpaces: 1, guestMemfd: true, userfault: true, owner: this };
    this.memory = new VmMemory({
      arena: this.arena,
      dialect: dialects[dialect],
      rules,
      hasPrivate: true,
      choosing,
      faultSize,
    });
    this.memory.translators.add({ flushSecondStage: () => this.flushes++, flushWrites: () => {} });
    const sharing = new Sharing(this.arena, () => 1);
    this.ram = new Mapping(RamFile.create(this.arena, sharing, size)!, size);
    this.secret = GuestMemfdFile.create(this.arena, this, size, 0, dialect === 'rfc')!;
    this.region = {
      slot: 0,
      flags: flags | (secret ? MemFlag.GUEST_MEMFD : 0),
      start: BigInt(BASE),
      size: BigInt(size),
      mapping: this.ram,
      mappingOffset: 0,
      guestMemfd: secret ? this.secret : undefined,
      guestMemfdOffset: 0n,
      userfaultBitmap: undefined,
    };
    expect(this.memory.setRegion(this.region)).toBe(0);
  }

  make(attributes: number, start = BASE, size = PAGE): void {
    this.memory.setAttributes(start, start + size, attributes);
  }

  /** What an access gives: where in the arena, MMIO, or the failure. */
  access(gpa = BASE, access: Access = READ, wants?: boolean): number | Failure {
    return this.memory.access(gpa, access, wants);
  }
}

const fault = (isPrivate: boolean, gpa = BASE, size = PAGE): Failure => ({
  errno: undefined,
  fault: { private: isPrivate, userfault: false, gpa, size },
});

describe('the second stage', () => {
  it('maps a shared page to the host memory and a private one to the guest_memfd', () => {
    const parts = new Parts();
    expect(parts.access(BASE + PAGE)).toBe(parts.ram.base! + PAGE);
    parts.make(PRIVATE, BASE + PAGE);
    expect(parts.access(BASE + PAGE)).toBe(parts.secret.page(PAGE));
  });

  it('keeps a mapping until it is zapped, and tells processors only of mappings that there were', () => {
    const parts = new Parts();
    const before = parts.flushes;
    parts.make(PRIVATE, BASE + PAGE);
    expect(parts.flushes).toBe(before);
    parts.access();
    parts.make(PRIVATE);
    expect(parts.flushes).toBe(before + 1);
    parts.access();
    parts.secret.fallocate(PUNCH, PAGE, PAGE);
    expect(parts.flushes).toBe(before + 1);
    parts.secret.fallocate(PUNCH, 0, PAGE);
    expect(parts.flushes).toBe(before + 2);
  });

  it('forgets what it mapped when the slot moves', () => {
    const parts = new Parts({ secret: false });
    parts.access();
    expect(parts.memory.setRegion({ ...parts.region, start: BigInt(2 * BASE) })).toBe(0);
    expect([parts.access(), parts.access(2 * BASE)]).toEqual([MMIO, parts.ram.base]);
  });

  it('takes a page of no slot for I/O, whatever becomes of its attribute, until a slot changes', () => {
    const parts = new Parts();
    expect(parts.access(0)).toBe(MMIO);
    parts.make(PRIVATE, 0, 2 * PAGE);
    expect([parts.access(0), parts.access(PAGE)]).toEqual([MMIO, fault(true, PAGE)]);
  });

  // The processor reports a reserved bit in what maps I/O, and KVM takes no such access for a private one.
  it('takes an access to what was I/O before a slot changed for a shared one: a mismatch that stays', () => {
    const parts = new Parts();
    const moved = { ...parts.region, slot: 1, start: 0n, guestMemfd: undefined, flags: 0 };
    expect(parts.access(0)).toBe(MMIO);
    parts.make(PRIVATE, 0);
    expect(parts.memory.setRegion(moved)).toBe(0);
    expect([parts.access(0), parts.access(0)]).toEqual([fault(false, 0), fault(false, 0)]);
    parts.make(0, 0);
    expect(parts.access(0)).toBe(parts.ram.base);
    parts.make(PRIVATE, 0);
    expect(parts.access(0)).toEqual(fault(true, 0));
  });

  it('forgets that a page was I/O when a pre-fault, which asks for what the page is, has mapped it', () => {
    const parts = new Parts({ secret: true });
    expect(parts.memory.setRegion({ ...parts.region, size: 0n })).toBe(0);
    expect(parts.access()).toBe(MMIO);
    expect(parts.memory.setRegion(parts.region)).toBe(0);
    parts.make(PRIVATE);
    expect(parts.access()).toEqual(fault(false));
    expect(parts.access(BASE, READ, true)).toBe(parts.secret.page(0));
    expect(parts.access()).toBe(parts.secret.page(0));
  });

  // The order that decides what is MMIO: a write asks for nothing to read (and QEMU's processor asks for that first).
  it('leaves what was I/O as it is when a write finds a READONLY slot, and not when a read does', () => {
    const parts = new Parts({ flags: MemFlag.READONLY, secret: false });
    expect(parts.memory.setRegion({ ...parts.region, size: 0n })).toBe(0);
    expect(parts.access()).toBe(MMIO);
    expect(parts.memory.setRegion(parts.region)).toBe(0);
    expect(parts.access(BASE, WRITE)).toBe(MMIO);
    parts.make(PRIVATE);
    expect(parts.access()).toEqual(fault(false));
    parts.make(0);
    expect(parts.access(BASE, READ)).toBe(parts.ram.base);
    parts.make(PRIVATE);
    expect(parts.access()).toEqual(fault(true));
  });

  it('gives MMIO for a write to a READONLY slot, also where it is mapped for reading', () => {
    const parts = new Parts({ flags: MemFlag.READONLY, secret: false });
    expect(parts.access(BASE, WRITE)).toBe(MMIO);
    expect(parts.access(BASE, READ)).toBe(parts.ram.base);
    expect(parts.access(BASE, WRITE)).toBe(MMIO);
    expect([parts.memory.sharedPage(BASE, READ), parts.memory.sharedPage(BASE, WRITE)]).toEqual([
      parts.ram.base,
      MMIO,
    ]);
  });

  it('says nothing of a shared page with nothing behind it but EFAULT, and gives I/O to what KVM emulates', () => {
    const parts = new Parts({ secret: false });
    const hollow = new Mapping(undefined, SIZE);
    expect(parts.memory.setRegion({ ...parts.region, size: 0n })).toBe(0);
    expect(parts.memory.setRegion({ ...parts.region, mapping: hollow })).toBe(0);
    expect(parts.access()).toEqual({ errno: -Errno.EFAULT, fault: undefined });
    expect(parts.memory.sharedPage(BASE, READ)).toBe(MMIO);
  });

  it('uses the shared copy for what KVM emulates, whatever the attribute says', () => {
    const parts = new Parts();
    parts.make(PRIVATE);
    expect(parts.memory.sharedPage(BASE, WRITE)).toBe(parts.ram.base);
  });

  it('gives the file in which nothing can be allocated as ENOMEM beside the fault', () => {
    const parts = new Parts();
    while (parts.arena.allocate(2 ** 30) !== undefined);
    while (parts.arena.allocate(PAGE) !== undefined);
    parts.make(PRIVATE);
    expect(parts.access()).toEqual({ ...fault(true), errno: -Errno.ENOMEM });
  });
});

describe('a private page', () => {
  it('with nothing behind it is a fault: no slot, no file, a closed file', () => {
    const parts = new Parts();
    parts.make(PRIVATE, 0, 4 * BASE);
    expect(parts.access(BASE - PAGE)).toEqual(fault(true, BASE - PAGE));
    parts.secret.release();
    expect(parts.access()).toEqual(fault(true));
    expect(new Parts({ secret: false }).access(BASE, READ, true)).toEqual(fault(true));
  });

  it('that is poisoned is EHWPOISON until it is punched; then it is zero', () => {
    const parts = new Parts();
    parts.make(PRIVATE);
    const page = parts.access() as number;
    parts.arena.views.u8[page] = 7;
    parts.secret.fail(0, Errno.EHWPOISON);
    expect(parts.access()).toEqual({ ...fault(true), errno: -Errno.EHWPOISON });
    expect(parts.secret.fallocate(PUNCH, 0, PAGE)).toBe(0);
    expect(parts.arena.views.u8[parts.access() as number]).toBe(0);
  });

  it('is allocated by the first touch, and forgotten with its memory when it is punched', () => {
    const parts = new Parts({ size: 2 * LARGE });
    parts.make(PRIVATE, BASE, 2 * LARGE);
    expect(parts.secret.isAllocated(LARGE)).toBe(false);
    const page = parts.access(BASE + LARGE) as number;
    expect([parts.secret.isAllocated(LARGE), parts.secret.isAllocated(0)]).toEqual([true, false]);
    parts.secret.fallocate(PUNCH, 0, 2 * LARGE);
    expect(parts.secret.isAllocated(LARGE)).toBe(false);
    expect(parts.arena.allocate(LARGE + PAGE)).toBe(page); // with the bits that tell what is allocated
  });
});

describe('guests that choose', () => {
  for (const wants of [true, false]) {
    const kind = wants ? 'private' : 'shared';
    it(`get a fault that says ${kind} when they want ${kind} memory and the attribute says the other`, () => {
      const parts = new Parts();
      parts.make(wants ? 0 : PRIVATE);
      expect(parts.access(BASE, READ, wants)).toEqual(fault(wants));
      parts.make(wants ? PRIVATE : 0);
      expect(parts.access(BASE, READ, wants)).toBe(wants ? parts.secret.page(0) : parts.ram.base);
    });
  }

  it('get MMIO where no slot is only if they want shared memory', () => {
    const parts = new Parts();
    expect(parts.access(0, READ, false)).toBe(MMIO);
    expect(parts.access(0, READ, true)).toEqual(fault(true, 0));
    parts.make(PRIVATE, 0);
    expect(parts.access(0, READ, true)).toEqual(fault(true, 0));
  });

  it('can get a fault of more than a page: what of a large one lies in the slot', () => {
    const parts = new Parts({ choosing: true, faultSize: LARGE, size: 2 * LARGE });
    expect(parts.access(BASE + PAGE, READ, true)).toEqual(fault(true, BASE, LARGE - BASE));
    expect(parts.access(LARGE + PAGE, READ, true)).toEqual(fault(true, LARGE, LARGE));
    expect(parts.access(2 * LARGE, READ, true)).toEqual(fault(true, 2 * LARGE, BASE));
    expect(parts.access(BASE - PAGE, READ, true)).toEqual(fault(true, BASE - PAGE));
  });
});

describe('the first ABI', () => {
  it('has pages private that the file has allocated: "already allocated", "not yet allocated"', () => {
    const parts = new Parts({ dialect: 'rfc' });
    expect(parts.access(BASE, READ, true)).toEqual(fault(true));
    expect(parts.secret.isAllocated(0)).toBe(false);
    expect(parts.access(BASE, READ, false)).toBe(parts.ram.base);
    expect(parts.secret.fallocate(Falloc.KEEP_SIZE, 0, PAGE)).toBe(0);
    expect(parts.access(BASE, READ, false)).toEqual(fault(false));
    expect(parts.access(BASE, READ, true)).toBe(parts.secret.page(0));
    expect(parts.secret.fallocate(PUNCH, 0, PAGE)).toBe(0);
    expect(parts.access(BASE, READ, true)).toEqual(fault(true));
  });

  it('asks nobody where guests do not choose: the allocation is the wish', () => {
    const parts = new Parts({ dialect: 'rfc' });
    expect(parts.access()).toBe(parts.ram.base);
    parts.secret.fallocate(Falloc.KEEP_SIZE, 0, PAGE);
    expect(parts.access()).toBe(parts.secret.page(0));
  });
});

describe('the arena', () => {
  it('is no larger after a thousand VMs with memory', () => {
    const arena = new Arena();
    const sharing = new Sharing(arena, () => 1);
    let size: number | undefined;
    for (let round = 0; round < 1000; round++) {
      const owner = {};
      const rules = { addressSpaces: 1, guestMemfd: true, userfault: true, owner };
      const memory = new VmMemory({
        arena,
        dialect: dialects.mainline,
        rules,
        hasPrivate: true,
        choosing: false,
        faultSize: PAGE,
      });
      const mapping = new Mapping(RamFile.create(arena, sharing, 16 * PAGE)!, 16 * PAGE);
      const bitmap = new Mapping(RamFile.create(arena, sharing, PAGE)!, PAGE);
      const file = GuestMemfdFile.create(arena, owner, 16 * PAGE, 0, false)!;
      const flags = MemFlag.GUEST_MEMFD | MemFlag.USERFAULT;
      const region = { slot: 0, flags, start: 0n, size: BigInt(16 * PAGE) };
      const backing = { mapping, mappingOffset: 0, guestMemfd: file, guestMemfdOffset: 0n };
      memory.setRegion({ ...region, ...backing, userfaultBitmap: bitmap });
      bitmap.release();
      memory.setAttributes(0, PAGE, PRIVATE);
      memory.access(0, WRITE, undefined);
      mapping.release();
      expect(memory.access(PAGE, WRITE, undefined)).toBeGreaterThan(0);
      file.release();
      memory.destroy();
      size ??= arena.views.u8.length;
    }
    expect(arena.views.u8.length).toBe(size);
  });
});
