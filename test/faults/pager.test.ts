/** Demand paging: a guest runs before its memory is there, by every way that this host has. */
import { mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Worker } from 'node:worker_threads';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import {
  captureState,
  Exit,
  type Hypervisor,
  openHypervisor,
  Pager,
  type PagerOptions,
  RunLoop,
  type SourceDescriptor,
  UnavailableError,
} from '../../src/index.ts';
import { Agent } from '../support/agent.ts';
import { backends, onEach, whyNot } from '../support/host.ts';
import { DEADLINE_MS } from '../support/limits.ts';
import { AREA, answer, contents, PAGE, pagedGuest, sumOf } from '../support/paged.ts';
import { outsb } from '../support/snippets.ts';

const PAGES = 256;
const SILENT = 'a server that says nothing';
/** How long a source may be silent that is not to be, and a guest run. */
const TIMEOUT_MS = DEADLINE_MS;

/** Each way there may be, on each backend; and why it is not there. */
const ways = backends
  .flatMap((backend) =>
    (['userfault', 'userfaultfd', 'sim'] as const).map((strategy) => ({ backend, strategy })),
  )
  .map((way) => {
    const lack = whyNot(way.backend);
    if (lack !== undefined) return { ...way, lack };
    try {
      const hv = openHypervisor({ backend: way.backend });
      const { vm, memory, close } = pagedGuest(hv, 1);
      try {
        const source = { kind: 'buffer', bytes: new Uint8Array(PAGE) } as const;
        Pager.start(hv, vm, { memories: [memory], source, strategy: way.strategy, prefetch: false })[
          Symbol.dispose
        ]();
        return { ...way, lack: undefined };
      } finally {
        close();
        hv.close();
      }
    } catch (error) {
      if (!(error instanceof UnavailableError)) throw error;
      return { ...way, lack: error.message };
    }
  });

const folder = mkdtempSync(join(tmpdir(), 'vmexit-pager-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
const data = contents(PAGES);
const file = join(folder, 'pages');
writeFileSync(file, data);

/** Runs a guest whose memory comes by a pager; what it has said, and the pager. */
async function runPaged(hv: Hypervisor, options: Omit<PagerOptions, 'memories'>, reads = PAGES) {
  const { vm, vcpu, memory, close } = pagedGuest(hv, PAGES, reads);
  const pager = Pager.start(hv, vm, { memories: [memory], vcpus: [vcpu], timeoutMs: TIMEOUT_MS, ...options });
  try {
    const loop = new RunLoop(vcpu, { handlers: [pager] });
    loop.ports.attach(0xf4, 4, { name: 'the end', read: () => {}, write: () => loop.stop() });
    const end = await loop.run({ timeoutMs: TIMEOUT_MS });
    expect(end.reason).toBe('stop');
    // The guest may be ahead of the account.
    await (options.prefetch === false ? pager.stop() : pager.complete);
    const { report } = pager;
    const missing = pager.missing();
    return { sum: answer(vcpu), report, missing };
  } finally {
    await pager.stop();
    pager[Symbol.dispose]();
    close();
  }
}

onEach('there is a way to page on demand', ({ backend }, context) => {
  const lack = backend === 'kvm' ? whyNot(backend, 'userfaultfd') : undefined;
  context.skip(lack !== undefined, lack);
  expect(ways.filter((way) => way.backend === backend && way.lack === undefined)).not.toEqual([]);
});

describe.each(ways)('the pager by $strategy on $backend', ({ backend, strategy, lack }) => {
  let hv: Hypervisor;
  const test = (name: string, shows: () => Promise<void>) =>
    it(name, async (context) => {
      if (lack !== undefined) return context.skip(lack);
      await shows();
    });
  beforeAll(() => {
    if (lack === undefined) hv = openHypervisor({ backend });
  });
  afterAll(() => hv?.close());

  test('serves what the guest touches, each page once, and fetches the rest', async () => {
    const { sum, report, missing } = await runPaged(hv, {
      strategy,
      source: { kind: 'buffer', bytes: data },
    });
    expect(sum).toBe(sumOf(data));
    expect(report.strategy).toBe(strategy);
    expect(report.present).toBe(PAGES);
    expect(missing).toEqual([]);
    expect(Object.values(report.byCause).reduce((a, b) => a + b)).toBe(PAGES);
    expect(report.state).toBe('complete');
  });

  test('without fetching serves only the batches of what was touched', async () => {
    const source = { kind: 'file', path: file } as const;
    const { sum, report } = await runPaged(hv, { strategy, source, prefetch: false, batch: 4 }, 8);
    expect(sum).toBe(sumOf(data, 8));
    const batches = new Set([0, 37, 74, 111, 148, 185, 222, 259 % PAGES].map((page) => page >> 2));
    expect(report.byCause).toMatchObject({ fault: 4 * batches.size, prefetch: 0 });
  });

  test('takes pages from an HTTP server of ranges, whose answers take their time', async () => {
    const source = await http('ranges');
    const { sum, report } = await runPaged(hv, { strategy, source, prefetch: false });
    expect(sum).toBe(sumOf(data));
    expect(report.byCause.fault).toBe(PAGES);
    expect(report.latency.medianUs).toBeGreaterThan(1000);
  });

  test('takes pages from a socket, in the order in which they come', async () => {
    const { sum, report } = await runPaged(hv, { strategy, source: await stream('stream') });
    expect(sum).toBe(sumOf(data));
    expect(report.byCause.push).toBe(PAGES);
  });

  const failing: {
    readonly [what: string]: () => Promise<[source: SourceDescriptor, says: RegExp, meanwhile?: () => void]>;
  } = {
    'a socket that ends early': async () => [await stream('cut'), /ended after 100 of 256 pages/],
    'a socket that nobody serves': async () => [
      { kind: 'stream', path: join(folder, 'nobody') },
      /nobody: .*ENOENT/,
    ],
    'a server that gives other bytes': async () => [
      await http('elsewhere'),
      /answered bytes 4096-69631 to a request for bytes=0-65535/,
    ],
    [SILENT]: async () => [await http('silent'), /has not given page .* within 300 ms/],
    'a file that is cut while it is used': async () => {
      const path = join(folder, `cut-${strategy}`);
      writeFileSync(path, data);
      return [
        { kind: 'file', path },
        /the source gave \d+ bytes for pages|has 40960 bytes/,
        () => truncateSync(path, 10 * PAGE),
      ];
    },
  };
  for (const [what, make] of Object.entries(failing)) {
    test(`ends the run of a guest whose pages do not come: ${what}`, async () => {
      const [source, says, meanwhile] = await make();
      const { vm, vcpu, memory, close } = pagedGuest(hv, PAGES);
      const options = {
        memories: [memory],
        vcpus: [vcpu],
        source,
        strategy,
        timeoutMs: what === SILENT ? 300 : TIMEOUT_MS,
        prefetch: false,
      };
      const pager = Pager.start(hv, vm, options);
      meanwhile?.();
      const run = new RunLoop(vcpu, { handlers: [pager] }).run({ timeoutMs: TIMEOUT_MS });
      await expect(run).rejects.toMatchObject({ code: 'ERR_KVM_SOURCE' });
      await expect(run).rejects.toThrow(says);
      await expect(pager.complete).rejects.toThrow(
        /\d+ of 256 pages are missing, and the guest cannot go on/,
      );
      await expect(memory.ensure(200 * PAGE, 1)).rejects.toMatchObject({ code: 'ERR_KVM_SOURCE' });
      expect(pager.report.state).toBe('failed');
      expect(pager.missing().reduce((sum, { first, end }) => sum + end - first, 0)).toBe(
        PAGES - pager.report.present,
      );
      await pager.stop();
      close();
      pager[Symbol.dispose]();
    });
  }

  test('brings what the VMM wants to read', async () => {
    const { vm, memory, close } = pagedGuest(hv, PAGES);
    const source = await http('ranges');
    const pager = Pager.start(hv, vm, { memories: [memory], source, strategy, prefetch: false, batch: 1 });
    await memory.ensure(5 * PAGE - 1, 2);
    expect(Buffer.compare(memory.read(4 * PAGE, 2 * PAGE), data.subarray(4 * PAGE, 6 * PAGE))).toBe(0);
    expect(pager.report.byCause.ensure).toBe(2);
    await expect(memory.ensure(0, PAGES * PAGE + 1)).rejects.toThrow(RangeError);
    await pager.stop();
    close();
    pager[Symbol.dispose]();
  });

  test('leaves as zeroes what is discarded before it has come, and keeps what is written before', async () => {
    const { vm, vcpu, memory, close } = pagedGuest(hv, PAGES);
    const source = { kind: 'file', path: file } as const;
    const pager = Pager.start(hv, vm, {
      memories: [memory],
      vcpus: [vcpu],
      source,
      strategy,
      prefetch: false,
    });
    const expected = data.slice();
    // Its neighbours are in one batch with them.
    await memory.ensure(16 * PAGE, PAGE);
    for (const page of [3, 4, 16, 17]) expected.fill(0, page * PAGE, (page + 1) * PAGE);
    memory.discard(3 * PAGE, 2 * PAGE);
    memory.discard(16 * PAGE, 2 * PAGE);
    const across = 40 * PAGE - 2;
    memory.write(across, Uint8Array.of(1, 2, 3, 4));
    expected.set([1, 2, 3, 4], across);

    const loop = new RunLoop(vcpu, { handlers: [pager] });
    loop.ports.attach(0xf4, 4, { name: 'the end', read: () => {}, write: () => loop.stop() });
    expect(await loop.run({ timeoutMs: TIMEOUT_MS })).toMatchObject({ reason: 'stop' });
    expect(answer(vcpu)).toBe(sumOf(expected));
    expect(Buffer.compare(memory.read(0, memory.size), expected)).toBe(0);
    await pager.complete;
    expect(pager.report.byCause.discard).toBe(2);
    await pager.stop();
    close();
    pager[Symbol.dispose]();
  });

  for (const kind of ['http', 'stream'] as const) {
    test(`waits for what is on its way when it is discarded, and is complete then: ${kind}`, async () => {
      const { vm, memory, close } = pagedGuest(hv, PAGES);
      const source = kind === 'http' ? await http('ranges') : await stream('stream');
      const pager = Pager.start(hv, vm, { memories: [memory], source, strategy, timeoutMs: TIMEOUT_MS });
      // Until some pages have come, and others are coming.
      await memory.ensure(0, PAGE);
      memory.discard(0, memory.size);
      await pager.complete;
      expect(memory.read(0, memory.size).every((byte) => byte === 0)).toBe(true);
      expect(pager.report).toMatchObject({ present: PAGES, state: 'complete' });
      await pager.stop();
      close();
      pager[Symbol.dispose]();
    });
  }

  test('serves what the kernel itself touches for the guest', async () => {
    // OUTS is the kernel's: it reads the guest's memory to fill kvm_run.
    const agent = Agent.boot(hv);
    const { vm, vcpu } = agent;
    const memory = vm.allocate(PAGES * PAGE);
    vm.setUserMemoryRegion({ slot: 1, guestPhysAddr: AREA, memory });
    const source = { kind: 'file', path: file } as const;
    const pager = Pager.start(hv, vm, {
      memories: [memory],
      vcpus: [vcpu],
      source,
      strategy,
      prefetch: false,
    });
    if (pager.report.uncovered !== undefined) throw new Error(pager.report.uncovered);
    let exit = agent.beginCode(outsb, { rsi: AREA + 9 * PAGE, rdx: 0x80, rcx: 1 });
    for (; exit !== Exit.IO; exit = vcpu.run(DEADLINE_MS)) expect(await pager.handle(vcpu, exit)).toBe(true);
    expect(vcpu.io.port).toBe(0x80);
    expect(vcpu.io.data[0]).toBe(data[9 * PAGE]);
    await pager.stop();
    const { kernel, fault } = pager.report.byCause;
    expect(kernel + fault).toBe(16);
    agent[Symbol.dispose]();
    memory.close();
    pager[Symbol.dispose]();
  });

  test('that is stopped ends the run and says what is missing', async () => {
    const { vm, vcpu, memory, close } = pagedGuest(hv, PAGES);
    const source = { kind: 'buffer', bytes: data } as const;
    const pager = Pager.start(hv, vm, { memories: [memory], source, strategy, prefetch: false });
    await pager.stop();
    const run = new RunLoop(vcpu, { handlers: [pager] }).run({ timeoutMs: TIMEOUT_MS });
    await expect(run).rejects.toMatchObject({ code: 'ERR_KVM_PAGER' });
    expect(pager.missing()).toEqual([{ first: 0, end: PAGES }]);
    expect(() => captureState(hv, vm, [vcpu])).toThrow(/pages of slot 1 may not have arrived yet/);
    await pager.stop();
    close();
    pager[Symbol.dispose]();
  });

  test('turns itself off when all is there', async () => {
    const { vm, memory, close } = pagedGuest(hv, PAGES);
    const pager = Pager.start(hv, vm, {
      memories: [memory],
      source: { kind: 'buffer', bytes: data },
      strategy,
    });
    await pager.complete;
    expect(vm.memoryMap.slotById(1)?.userfaultBitmap).toBeUndefined();
    expect(Buffer.compare(memory.read(0, memory.size), data)).toBe(0);
    await pager.stop();
    close();
  });
});

describe('the pager', () => {
  const hv = openHypervisor({ backend: 'sim' });
  const { vm, memory, close } = pagedGuest(hv, PAGES);
  afterAll(() => {
    close();
    hv.close();
  });
  const good = { memories: [memory], source: { kind: 'buffer', bytes: data } } as const;
  const bad: readonly [name: string, options: object, says: RegExp][] = [
    ['a source that is too short', { source: { kind: 'buffer', bytes: new Uint8Array(5) } }, /has 5 bytes/],
    [
      'a file that is too short',
      { source: { kind: 'file', path: file, offset: PAGE } },
      /255|from byte 4096/,
    ],
    ['a file that is not there', { source: { kind: 'file', path: '/nowhere' } }, /\/nowhere .*ENOENT/],
    ['a kind of source that there is not', { source: { kind: 'tape' } }, /source\.kind is "tape"/],
    ['a buffer that is none', { source: { kind: 'buffer', bytes: [1] } }, /source\.bytes/],
    ['memories that are none', { memories: [{}] }, /memories/],
    ['a batch of nothing', { batch: 0 }, /batch is 0/],
    ['no time', { timeoutMs: 0 }, /timeoutMs is 0/],
    ['a strategy that there is not', { strategy: 'hope' }, /strategy is "hope"/],
    ['a strategy of other hosts', { strategy: 'userfaultfd' }, /no demand paging by 'userfaultfd' here/],
  ];
  it.each(bad)('refuses %s and changes nothing', (_name, options, says) => {
    const before = vm.memoryMap.slotById(1);
    expect(() => Pager.start(hv, vm, { ...good, ...options } as PagerOptions)).toThrow(says);
    expect(vm.memoryMap.slotById(1)?.userfaultBitmap).toBe(before?.userfaultBitmap);
    expect(memory.demand).toBeUndefined();
  });
});

type Behaviour = 'ranges' | 'elsewhere' | 'silent' | 'stream' | 'cut';
const shared = new Uint8Array(new SharedArrayBuffer(data.length));
shared.set(data);
const servers: Worker[] = [];
afterAll(() => Promise.all(servers.map((server) => server.terminate())));

/** The port of a server of its own. */
async function serving(behaviour: Behaviour): Promise<number> {
  const server = new Worker(new URL('../support/page-server.mjs', import.meta.url), {
    workerData: { behaviour, bytes: shared },
  });
  servers.push(server);
  return await new Promise((resolve, reject) => server.once('message', resolve).once('error', reject));
}
const http = async (behaviour: Behaviour): Promise<SourceDescriptor> => ({
  kind: 'http',
  url: `http://127.0.0.1:${await serving(behaviour)}/pages`,
});
const stream = async (behaviour: Behaviour): Promise<SourceDescriptor> => ({
  kind: 'stream',
  port: await serving(behaviour),
});
