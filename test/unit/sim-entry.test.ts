/** vmexit/sim in Node, as it is compiled: a browser has the same file (test/package/browser.test.ts). */
import { describe, expect, it } from 'vitest';
import * as vmexit from 'vmexit';
import { Bus, flatImage, Machine, openSimulator, RunLoop, Serial, type SimulatedHost } from 'vmexit/sim';

describe('openSimulator()', () => {
  it('opens a simulator that runs a guest, with a decoder of its own', async () => {
    using hv = await openSimulator({ vendor: 'intel' });
    expect([hv.backend, hv.fallback]).toEqual(['sim', undefined]);
    using machine = new Machine(hv, { memory: 1 << 20 });
    // mov al, 'A'; mov dx, 0x3f8; out dx, al; hlt
    machine.load(flatImage(Uint8Array.of(0xb0, 0x41, 0xba, 0xf8, 0x03, 0xee, 0xf4), 'real'));
    const ports = new Bus();
    const sent: number[] = [];
    Serial.attach(ports, (byte) => sent.push(byte));
    expect(await new RunLoop(machine.vcpu, { ports }).run({ timeoutMs: 60_000 })).toEqual({ reason: 'halt' });
    expect(sent).toEqual([0x41]);
  });

  it('may be called again before the decoder is there', async () => {
    const both = await Promise.all([openSimulator(), openSimulator()]);
    for (const hv of both) {
      expect(hv.createVm().closed).toBe(false);
      hv.close();
    }
  });

  it('refuses what no host can be, by name', async () => {
    const code = 'ERR_KVM_INVALID_ARG';
    await expect(openSimulator({ vendor: 'via' } as unknown as SimulatedHost)).rejects.toMatchObject({
      code,
      message: expect.stringContaining('via'),
    });
    await expect(openSimulator(7 as SimulatedHost)).rejects.toMatchObject({ code });
  });

  it('has the classes of vmexit, not others of the same name', async () => {
    using hv = await openSimulator();
    expect(hv).toBeInstanceOf(vmexit.Hypervisor);
    expect(Machine).toBe(vmexit.Machine);
  });
});
