import { describe, expect, it } from 'vitest';
import { Bus, DebugExit, type Device, Serial } from '../../src/index.ts';

/** Remembers what it was asked, and answers with the offset. */
function recorder(name: string) {
  const log: string[] = [];
  const device: Device = {
    name,
    read(offset, data) {
      log.push(`read ${offset} ${data.length}`);
      data.fill(offset);
    },
    write(offset, data) {
      log.push(`write ${offset} ${[...data]}`);
    },
  };
  return { device, log };
}

describe('a bus', () => {
  it('gives each access to the device that has all of it, by the offset from its start', () => {
    const bus = new Bus();
    const a = recorder('a');
    const b = recorder('b');
    bus.attach(0x100, 4, a.device).attach(0x104, 1, b.device);
    const data = new Uint8Array(2);
    expect(bus.read(0x102, data)).toBe(true);
    expect([...data]).toEqual([2, 2]);
    expect(bus.write(0x104, Uint8Array.of(7))).toBe(true);
    expect([a.log, b.log]).toEqual([['read 2 2'], ['write 0 7']]);
    expect(bus.unclaimed).toEqual({ reads: 0, writes: 0 });
  });

  it('reads all ones where nobody is, loses writes there, and counts both', () => {
    const bus = new Bus();
    const { device, log } = recorder('a');
    bus.attach(0x100, 4, device);
    const data = new Uint8Array(4);
    expect(bus.read(0x200, data)).toBe(false);
    expect([...data]).toEqual([0xff, 0xff, 0xff, 0xff]);
    // A part of the device's range is not all of the access.
    expect(bus.read(0x102, data)).toBe(false);
    expect(bus.write(0xff, new Uint8Array(2))).toBe(false);
    expect(bus.unclaimed).toEqual({ reads: 2, writes: 1 });
    expect(log).toEqual([]);
  });

  it('refuses a device in the place of another one, and sizes that are none', () => {
    const bus = new Bus().attach(0x3f8, 8, recorder('com1').device);
    const { device } = recorder('late');
    const code = 'ERR_KVM_INVALID_ARG';
    expect(() => bus.attach(0x3ff, 1, device)).toThrow(
      expect.objectContaining({ code, message: expect.stringMatching(/clear of what com1 has/) }),
    );
    expect(() => bus.attach(0x3f0, 9, device)).toThrow(expect.objectContaining({ code }));
    expect(() => bus.attach(0x500, 0, device)).toThrow(expect.objectContaining({ code }));
    expect(() => bus.attach(-1, 4, device)).toThrow(expect.objectContaining({ code }));
    bus.attach(0x3f7, 1, device).attach(0x400, 1, device);
  });
});

describe('the serial port', () => {
  const attached = (port?: number) => {
    const sent: number[] = [];
    const bus = new Bus();
    Serial.attach(bus, (byte) => sent.push(byte), port);
    const read = (address: number, size = 1) => {
      const data = new Uint8Array(size);
      expect(bus.read(address, data)).toBe(true);
      return [...data];
    };
    return {
      bus,
      sent,
      read,
      write: (address: number, ...bytes: number[]) => bus.write(address, Uint8Array.from(bytes)),
    };
  };

  it('gives on every byte that is written to its data register, and those alone', () => {
    const { sent, write } = attached();
    for (const byte of [0x00, 0x0a, 0x80, 0xff]) write(0x3f8, byte);
    for (const port of [0x3f9, 0x3fa, 0x3fb, 0x3fc, 0x3ff]) write(port, 0x41);
    expect(sent).toEqual([0x00, 0x0a, 0x80, 0xff]);
  });

  it('is always ready: a guest may poll the line status before each byte', () => {
    const { read } = attached();
    expect(read(0x3fd)).toEqual([0x60]);
    expect(read(0x3fa)).toEqual([0x01]);
    expect(read(0x3fe)).toEqual([0xb0]);
    expect(read(0x3f8)).toEqual([0]);
  });

  it('keeps the divisor apart from the data while DLAB is set, and what is written to be read back', () => {
    const { sent, read, write } = attached();
    write(0x3fb, 0x83);
    write(0x3f8, 0x01);
    write(0x3f9, 0x02);
    expect([read(0x3f8), read(0x3f9)]).toEqual([[1], [2]]);
    write(0x3fb, 0x03);
    write(0x3f9, 0x0f);
    write(0x3ff, 0x5a);
    expect([read(0x3f9), read(0x3fb), read(0x3ff)]).toEqual([[0x0f], [0x03], [0x5a]]);
    expect(sent).toEqual([]);
  });

  it('takes a wide access as one of several bytes', () => {
    const { sent, read, write } = attached();
    write(0x3f8, 0x41, 0x0c);
    expect(sent).toEqual([0x41]);
    expect(read(0x3f9, 2)).toEqual([0x0c, 0x01]);
  });

  it('can be at other ports', () => {
    const { bus, sent, write } = attached(0x2f8);
    write(0x2f8, 0x42);
    expect(sent).toEqual([0x42]);
    expect(bus.write(0x3f8, Uint8Array.of(1))).toBe(false);
  });
});

describe('the debug-exit device', () => {
  it('tells what is written to its first port, as one number of any width', () => {
    const values: number[] = [];
    const bus = new Bus();
    DebugExit.attach(bus, (value) => values.push(value));
    bus.write(0xf4, Uint8Array.of(3));
    bus.write(0xf4, Uint8Array.of(0, 1));
    bus.write(0xf4, Uint8Array.of(0xff, 0xff, 0xff, 0xff));
    bus.write(0xf5, Uint8Array.of(9));
    expect(values).toEqual([3, 256, 0xffff_ffff]);
    const data = Uint8Array.of(9);
    expect(bus.read(0xf4, data)).toBe(true);
    expect([...data]).toEqual([0]);
  });
});
