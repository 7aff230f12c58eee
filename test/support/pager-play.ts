/** A guest whose memory is paged in, where any call may fail: the pager goes on, or says what is missing. */
import { expect } from 'vitest';
import { Exit, type Hypervisor, Pager, UnavailableError, VmexitError } from '../../src/index.ts';
import { type Failing, isFailure } from './failing.ts';
import { DEADLINE_MS } from './limits.ts';
import { expectRecord } from './memory-play.ts';
import { AREA, answer, contents, PAGE, pagedGuest, sumOf } from './paged.ts';

const PAGES = 8;
/** Another memory, which the VMM alone uses. */
const OTHER = 2;
const bytes = contents(PAGES + OTHER);
const source = { kind: 'buffer', bytes } as const;
const sum = sumOf(bytes.subarray(0, PAGES * PAGE));

/** The guest, and memory beside its own. */
function made(hv: Hypervisor) {
  const guest = pagedGuest(hv, PAGES);
  const other = guest.vm.allocate(OTHER * PAGE);
  guest.vm.setUserMemoryRegion({ slot: 2, guestPhysAddr: AREA + 0x10_0000, memory: other });
  return { ...guest, other };
}

/** Nothing is armed afterwards that was not, and no page is lost. */
export async function playPager(failing: Failing): Promise<void> {
  const isTold = (error: unknown) =>
    isFailure(error, failing.failure) ||
    (error instanceof UnavailableError && error.message.includes(failing.failure));
  /** Once more where it fails, after a look. */
  const again = async <T>(call: () => T, looks: () => void = () => {}): Promise<Awaited<T>> => {
    try {
      return await call();
    } catch (error) {
      if (!isTold(error)) throw error;
      looks();
      return await call();
    }
  };
  const [counted, at] = failing.disarm();
  const { vm, vcpu, memory, other, close } = made(failing.hv);
  failing.rearm(counted, at);
  const asBefore = (): void => {
    expect(vm.memoryMap.slots.map(({ flags, userfaultBitmap }) => [flags, userfaultBitmap])).toEqual(
      vm.memoryMap.slots.map(() => [0, undefined]),
    );
    expect([memory.demand, other.demand]).toEqual([undefined, undefined]);
    expectRecord(failing, vm);
  };
  const options = { memories: [memory, other], source, vcpus: [vcpu], prefetch: false, batch: 2 };
  const pager = await again(() => Pager.start(failing.hv, vm, options), asBefore);
  try {
    expectRecord(failing, vm);
    await again(() => other.write(8, bytes.subarray(8, 16)));
    for (let exit: number = Exit.AGAIN; exit !== Exit.IO; ) {
      // What comes of it is one run more.
      await again(async () => {
        exit = vcpu.run(DEADLINE_MS);
        if (exit === Exit.MEMORY_FAULT) expect(await pager.handle(vcpu, exit)).toBe(true);
      });
      pager.check();
    }
    expect(answer(vcpu)).toBe(sum);
    await again(() => memory.discard(0, PAGE));
    expect(memory.read(0, PAGE)).toEqual(new Uint8Array(PAGE));
    await again(() => other.ensure());
    const shown = new Uint8Array(bytes.subarray(PAGES * PAGE));
    shown.set(bytes.subarray(8, 16), 8);
    expect(other.read(0, OTHER * PAGE)).toEqual(shown);
    await pager.complete;
    expect([pager.report.state, pager.report.present, pager.missing()]).toEqual([
      'complete',
      PAGES + OTHER,
      [],
    ]);
    expect([memory.demand, other.demand]).toEqual([undefined, undefined]);
  } catch (error) {
    if (!(error instanceof VmexitError && error.code === 'ERR_KVM_SOURCE')) throw error;
    // A page could not be put in its place: which are missing is known.
    expect(isFailure(error, failing.failure)).toBe(true);
    expect(error.message).toContain('missing');
    expect(pager.missing()).not.toEqual([]);
  } finally {
    await pager.stop();
    await again(() => pager[Symbol.dispose]());
    asBefore();
    close();
    other.close();
  }
}
