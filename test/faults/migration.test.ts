/** Post-copy migration between two processes: the guest never notices; and what a side does when the other is gone. */
import { networkInterfaces } from 'node:os';
import { describe, expect } from 'vitest';
import { backends, on } from '../support/host.ts';
import { Relay } from '../support/relay.ts';
import {
  fresh,
  PAGES,
  pathOfSocket,
  RAM_PAGES,
  receiving,
  STEPS,
  sending,
  type Told,
  undisturbed,
} from '../support/sides.ts';

const hasIpv6 = Object.values(networkInterfaces()).some((addresses) =>
  addresses?.some(({ address }) => address === '::1'),
);

describe.each(backends)('a guest that is handed over (%s)', (backend) => {
  const it = on(backend);
  const addresses = {
    'a Unix socket': fresh,
    TCP: () => 'tcp:127.0.0.1:0',
    'TCP of IPv6': () => 'tcp:[::1]:0',
  };
  for (const [by, at] of Object.entries(addresses)) {
    it(`over ${by} goes on as if nothing had been, and each page comes once`, async (_, context) => {
      context.skip(at().includes('::1') && !hasIpv6, 'this host has no IPv6');
      const destination = receiving(backend, at());
      const { address } = await destination.tells('listening');
      const source = sending(backend, address);
      const ended = await destination.tells('ended');
      expect(ended).toMatchObject({ ...undisturbed(), steps: STEPS - 300, missing: [] });
      expect(ended.report).toMatchObject({ present: PAGES + RAM_PAGES, state: 'complete' });
      const counts: number[] = Object.values(ended.report.byCause);
      expect(counts.reduce((a, b) => a + b)).toBe(PAGES + RAM_PAGES);
      const sent = await source.tells('sent');
      expect(sent.pages).toBe(PAGES + RAM_PAGES);
      expect(sent.pulled + sent.pushed).toBe(PAGES + RAM_PAGES);
      expect(sent.pushed).toBe(ended.report.byCause.push);
      expect(sent.zeroes).toBeGreaterThan(PAGES / 8);
      expect((await destination.tells('received')).devices).toEqual([['serial', [1, 2, 3]]]);
      await Promise.all([source.ends(), destination.ends()]);
    });
  }

  it('pulls what it touches before the rest has come', async () => {
    const pages = 4096;
    const destination = receiving(backend, fresh());
    const between = fresh();
    const { address } = await destination.tells('listening');
    using _relay = await Relay.between(pathOfSocket(between), address, 'a pull');
    const source = sending(backend, between, { pages });
    const ended = await destination.tells('ended');
    expect(ended).toMatchObject(undisturbed(pages));
    const sent = await source.tells('sent');
    expect(sent.pulled).toBeGreaterThan(0);
    expect(sent.pulled).toBe(pages + RAM_PAGES - ended.report.byCause.push);
    await Promise.all([source.ends(), destination.ends()]);
  });

  it('can be handed over at its first instruction, and at its last step', async () => {
    for (const stopAt of [1, STEPS]) {
      const destination = receiving(backend, fresh());
      const source = sending(backend, (await destination.tells('listening')).address, { stopAt });
      expect(await destination.tells('ended')).toMatchObject({ ...undisturbed(), steps: STEPS - stopAt });
      await Promise.all([source.ends(), destination.ends()]);
    }
  });

  it('ends with an error that names the missing pages when its source is killed', async () => {
    const pages = 1024;
    const destination = receiving(backend, fresh());
    const { address } = await destination.tells('listening');
    const between = fresh();
    const relay = await Relay.between(pathOfSocket(between), address, 'the end');
    const source = sending(backend, between, { pages, steps: 1e6 });
    await relay.handedOver;
    source.kill();
    await source.dies();
    relay[Symbol.dispose]();
    const { code, message, missing, state } = await destination.tells('failed');
    expect(code).toBe('ERR_KVM_MIGRATION');
    expect(message).toMatch(
      /^the source: the connection .*; (\d+) of 1280 pages are missing, and the guest cannot go on: \d+ to \d+/,
    );
    expect(state).toBe('failed');
    const lacks = missing.reduce((sum: number, { first, end }: Told) => sum + end - first, 0);
    expect(message).toContain(`; ${lacks} of 1280 pages`);
    expect(lacks).toBeGreaterThan(600);
    await destination.ends();
  });

  it('is kept by its source, paused and whole, when the destination is killed', async () => {
    const destination = receiving(backend, fresh(), { killAt: 3 });
    const { address } = await destination.tells('listening');
    const between = fresh();
    using _relay = await Relay.between(pathOfSocket(between), address, 'the end');
    const source = sending(backend, between, { pages: 1024, steps: 1e6 });
    await destination.dies();
    const { code, message, handedOver } = await source.tells('failed');
    expect({ code, handedOver }).toEqual({ code: 'ERR_KVM_MIGRATION', handedOver: true });
    expect(message).toMatch(
      /the connection .*; the guest was handed over, and \d+ of its 1280 pages were sent/,
    );
    await source.ends();
  });

  it('goes on at its source when the destination refuses it', async () => {
    const destination = receiving(backend, fresh(), { maxMemory: 2 ** 20 });
    const source = sending(backend, (await destination.tells('listening')).address);
    const says = /the guest has 2097152 bytes of memory, and may have 1048576/;
    expect(await destination.tells('failed')).toMatchObject({ code: 'ERR_KVM_MIGRATION' });
    const failed = await source.tells('failed');
    expect(failed).toMatchObject({ code: 'ERR_KVM_MIGRATION', handedOver: false });
    expect(failed.message).toMatch(/it refuses: /);
    expect(failed.message).toMatch(says);
    expect(await source.tells('ended')).toMatchObject({ ...undisturbed(), steps: STEPS });
    await Promise.all([source.ends(), destination.ends()]);
  });
});
