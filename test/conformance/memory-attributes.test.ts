/** api.rst, KVM_SET_MEMORY_ATTRIBUTES; the commit "KVM: x86/mmu: Handle page fault for private memory":
 * the gfn's PRIVATE attribute picks which memory is mapped. */
import { expect } from 'vitest';
import { Cap, type Hypervisor, MemoryAttribute, VmType } from '../../src/index.ts';
import { ioctls } from '../../src/uapi/index.ts';
import { Agent } from '../support/agent.ts';
import { AREA, AREA_SLOT, Area, PAGE } from '../support/area.ts';
import { errnoOf, wordAt } from '../support/run.ts';
import { conformance } from '../support/suite.ts';
import { Tap } from '../support/tap.ts';

const SHARED = 0x5a5a_5a5a_5a5a_5a5an;
const PRIVATE = 0x0123_4567_89ab_cdefn;

const good = { address: 0, size: PAGE, attributes: MemoryAttribute.PRIVATE };
const TOP = 2n ** 64n - BigInt(PAGE);

/** What kvm_vm_ioctl_set_mem_attributes answers. */
const answers: readonly (readonly [string, { readonly [field: string]: number | bigint }, string])[] = [
  ['PRIVATE is accepted', {}, 'ok'],
  ['no attribute is accepted', { attributes: 0 }, 'ok'],
  ['a page far from every slot is accepted', { address: 2 ** 50 }, 'ok'],
  ['flags give EINVAL', { flags: 1 }, 'EINVAL'],
  ['a size of 0 gives EINVAL', { size: 0 }, 'EINVAL'],
  ['a size that is not whole pages gives EINVAL', { size: PAGE + 1 }, 'EINVAL'],
  ['an address inside a page gives EINVAL', { address: 1 }, 'EINVAL'],
  ['a range that ends above 2^64 gives EINVAL', { address: TOP, size: 2 * PAGE }, 'EINVAL'],
];

function withArea(hv: Hypervisor, use: (area: Area) => void): void {
  using area = new Area(hv);
  use(area);
}

conformance('memory attributes', ({ it, needs }) => {
  // The ioctl is there where KVM has attributes at all; what this VM has of them is another question.
  it('a default VM has no attributes: ENOTTY where KVM has none, else EINVAL', (hv) => {
    using vm = hv.createVm();
    expect(errnoOf(() => vm.setMemoryAttributes(good))).toBe(
      hv.checkExtension(Cap.MEMORY_ATTRIBUTES) ? 'EINVAL' : 'ENOTTY',
    );
  });

  const itPrivate = needs('private-memory');

  for (const [sentence, change, answer] of answers) {
    itPrivate(sentence, (hv) => {
      using tap = new Tap(hv.backend);
      using _vm = tap.hv.createVm({ type: VmType.SW_PROTECTED });
      expect(tap.ioctl(ioctls.KVM_SET_MEMORY_ATTRIBUTES, { ...good, ...change })).toBe(answer);
    });
  }

  itPrivate('every attribute bit but PRIVATE gives EINVAL', (hv) => {
    using tap = new Tap(hv.backend);
    using _vm = tap.hv.createVm({ type: VmType.SW_PROTECTED });
    for (let bit = 0n; bit < 64n; bit++) {
      const attributes = 1n << bit;
      const answer = tap.ioctl(ioctls.KVM_SET_MEMORY_ATTRIBUTES, { ...good, attributes });
      expect
        .soft(answer, `bit ${bit}`)
        .toBe(attributes === BigInt(MemoryAttribute.PRIVATE) ? 'ok' : 'EINVAL');
    }
  });

  itPrivate('all memory is shared when the VM is made', (hv) => {
    withArea(hv, ({ agent, shared }) => {
      agent.write(AREA, SHARED);
      expect(wordAt(shared.bytes)).toBe(SHARED);
    });
  });

  itPrivate(
    'the attribute decides at every access: shared is the host memory, private the guest_memfd',
    (hv) => {
      withArea(hv, (area) => {
        const { agent, shared } = area;
        agent.write(AREA, SHARED);
        area.make('private');
        expect(agent.read(AREA)).toBe(0n);
        agent.write(AREA, PRIVATE);
        expect(wordAt(shared.bytes)).toBe(SHARED);
        area.make('shared');
        expect(agent.read(AREA)).toBe(SHARED);
        area.make('private');
        expect(agent.read(AREA)).toBe(PRIVATE);
      });
    },
  );

  itPrivate('the range is [address, address + size): the pages beside it stay as they are', (hv) => {
    withArea(hv, (area) => {
      const { agent } = area;
      for (let page = 0; page < 4; page++) agent.write(AREA + page * PAGE, SHARED);
      area.make('private', PAGE, 2 * PAGE);
      const seen = [0, 1, 2, 3].map((page) => agent.read(AREA + page * PAGE));
      expect(seen).toEqual([SHARED, 0n, 0n, SHARED]);
      area.make('shared', PAGE, PAGE);
      expect([0, 1, 2, 3].map((page) => agent.read(AREA + page * PAGE))).toEqual([
        SHARED,
        SHARED,
        0n,
        SHARED,
      ]);
    });
  });

  itPrivate('the same attribute again changes nothing and succeeds', (hv) => {
    withArea(hv, (area) => {
      area.make('private');
      area.agent.write(AREA, PRIVATE);
      area.make('private');
      expect(area.agent.read(AREA)).toBe(PRIVATE);
    });
  });

  itPrivate('attributes belong to the address and not to the slot: they outlive it', (hv) => {
    withArea(hv, (area) => {
      area.make('private', 0, PAGE);
      area.agent.write(AREA, PRIVATE);
      area.unbind();
      area.bind();
      expect(area.agent.read(AREA)).toBe(PRIVATE);
      expect(wordAt(area.shared.bytes)).toBe(0n);
    });
  });

  itPrivate('attributes may be set before there is a slot, and hold for the slot that comes', (hv) => {
    withArea(hv, (area) => {
      area.unbind();
      area.make('private', PAGE, PAGE);
      area.bind();
      area.agent.write(AREA, PRIVATE);
      area.agent.write(AREA + PAGE, PRIVATE);
      expect([wordAt(area.shared.bytes), wordAt(area.shared.bytes, PAGE)]).toEqual([PRIVATE, 0n]);
    });
  });

  itPrivate('attributes are set over several slots at once, and over the holes between them', (hv) => {
    withArea(hv, (area) => {
      area.unbind();
      area.bind({ slot: AREA_SLOT, offset: 0, size: PAGE });
      area.bind({ slot: AREA_SLOT + 1, offset: 3 * PAGE, size: PAGE });
      area.make('private');
      for (const offset of [0, 3 * PAGE]) {
        area.agent.write(AREA + offset, PRIVATE);
        expect(wordAt(area.shared.bytes, offset)).toBe(0n);
      }
    });
  });

  itPrivate("one VM's attributes are none of another's", (hv) => {
    withArea(hv, (area) => {
      withArea(hv, (other) => {
        area.make('private');
        other.agent.write(AREA, SHARED);
        expect(wordAt(other.shared.bytes)).toBe(SHARED);
      });
    });
  });

  itPrivate("a VM's record of its attributes is what its ioctls made of them", (hv) => {
    withArea(hv, (area) => {
      area.make('private', 0, 2 * PAGE);
      area.make('shared', 0, PAGE);
      const { memoryMap } = area.vm;
      expect([0, 1, 2].map((page) => memoryMap.isPrivate(AREA + page * PAGE))).toEqual([false, true, false]);
      expect(errnoOf(() => area.vm.setMemoryAttributes({ address: AREA, size: 0, attributes: 8 }))).toBe(
        'EINVAL',
      );
      expect(memoryMap.hasAttributes(AREA, AREA + PAGE, 0)).toBe(true);
    });
  });

  itPrivate('a SW_PROTECTED VM whose memory is all shared runs like any other', (hv) => {
    using agent = Agent.boot(hv, { type: VmType.SW_PROTECTED });
    expect(agent.vm.memoryMap.attributesAt(0)).toBe(0);
    agent.fill(0x4_0000, PAGE, 0x77);
    expect(agent.holds(0x4_0000, PAGE, 0x77)).toBe(true);
  });
});
