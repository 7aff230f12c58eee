/** Who keeps what alive, and for how long. The programs are in lifetime.mjs. */
import { describe, expect } from 'vitest';
import { onKvm as test, whyNot } from '../support/host.ts';
import { scenario } from './child.ts';

const run = (name: string) => scenario('lifetime.mjs', name);

describe('memory', () => {
  test('that was closed under a live slot still serves the guest, and aliases no other memory', async () => {
    expect(await run('closedUnderSlot')).toEqual({ before: 41, counted: [42, 43, 44], spoilt: 0 });
  });

  test('serves a vCPU that is all that is left of its VM, after everything else was collected', async () => {
    expect(await run('onlyTheVcpuIsLeft')).toEqual({ counted: [1, 2, 3], spoilt: 0 });
  });

  test('stays mapped for a view that is all that is left of it', async () => {
    expect(await run('viewOutlivesObjects')).toEqual({ length: 2 ** 20, first: 9, last: 7, open: 0 });
  });

  test('is given back by close() at once, also that of a VM whose closed objects are kept', async () => {
    const { mostKB, leftKB } = await run('closeGivesBack');
    expect(mostKB).toBeLessThan(2 * 32 * 1024);
    expect(leftKB).toBeLessThan(4096);
  });

  test('of 1 GiB costs no resident memory before it is touched, and one page after one touch', async () => {
    const { kB, length, untouched, touched } = await run('untouchedMemory');
    expect(length).toBe(2 ** 30);
    // The file's blocks are exact; the process has its own small needs meanwhile.
    expect([untouched, touched]).toEqual([0, 4096 / 512]);
    expect(kB.RssShmem).toBeLessThan(64);
    expect(kB.VmRSS).toBeLessThan(4096);
  });

  test('is the same bytes for the host, the guest and another mapping, in both directions', async () => {
    expect(await run('neverCopied')).toEqual({
      seen: Array.from([11, 201], (byte) => Array(3).fill(byte)),
      sameView: true,
    });
  });
});

describe('close()', () => {
  test('empties every view, of guest memory and of kvm_run', async () => {
    expect(await run('viewsAfterClose')).toEqual({
      open: [65_536, 4096, 12_288],
      closed: [0, 0, 0],
      afterCollection: [0, 0, 0],
      read: null,
    });
  });

  test('of a vCPU gives back its ring of dirty pages, and so does the collector', async (_, context) => {
    context.skip(whyNot('kvm', 'dirty-ring') !== undefined, whyNot('kvm', 'dirty-ring'));
    expect(await run('ringIsGivenBack')).toEqual({ entries: 1024, open: 2, closed: 0, collected: 0 });
  });

  test('is idempotent in every order, and what is used afterwards says that it is closed', async () => {
    expect(await run('closeInAnyOrder')).toEqual({ orders: 120, codes: ['ERR_KVM_CLOSED'], leaked: 0 });
  });

  test('under an asynchronous operation on the memory leaves that operation harmless bytes', async () => {
    expect(await run('asynchronousWork')).toEqual({ filled: [true, true] });
  });
});

describe('file descriptors', () => {
  test('are close-on-exec, that of a guest_memfd too, and no child inherits one', async () => {
    const { files, guestMemfd, kept, inherited } = await run('closeOnExec');
    expect(files).toContain('anon_inode:kvm-vm');
    expect(files).toContain('anon_inode:kvm-vcpu:N');
    if (guestMemfd) expect(files).toContain('anon_inode:[kvm-gmem]');
    expect({ kept, inherited }).toEqual({ kept: [], inherited: [] });
  });

  test('do not leak over 1,000 rounds of opening and closing', async () => {
    expect(await run('thousandRounds')).toEqual({ leaked: 0 });
  });

  test('of objects that nobody closed are closed when those are collected', async () => {
    expect(await run('droppedWithoutClose')).toEqual({ leaked: 0 });
  });

  test('of 4,000 EventFds with irqfds and ioeventfds do not leak, and hold up no process', async () => {
    expect(await run('eventFds')).toEqual({ irqfds: 20 * 100, ioeventfds: 20 * 100, leaked: 0 });
  });

  test('of EventFds are closed when their thread ends, and nobody opens them by a token any more', async () => {
    expect(await run('threadWithEventFdsEnds')).toEqual({ errnos: ['ESTALE', 'ESTALE'], leaked: 0 });
  });

  test('are not reached by a run function that outlives its handle: it gives EBADF', async () => {
    expect(await run('runFunctionAlone')).toEqual({ result: -9, open: 1 });
  });
});
