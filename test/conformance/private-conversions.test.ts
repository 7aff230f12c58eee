/**
 * Conversions that the guest asks for ("explicit conversion" in the descriptions of KVM_EXIT_MEMORY_ERROR and of its ninth version): the guest calls KVM_HC_MAP_GPA_RANGE, KVM
 * exits, the VMM converts and answers. After the kernel's private_mem_conversions_test.
 */
import { expect } from 'vitest';
import type { Hypervisor } from '../../src/index.ts';
import { AREA, AREA_SLOT, Area, PAGE } from '../support/area.ts';
import { filledWith } from '../support/run.ts';
import { conformance } from '../support/suite.ts';

const LARGE = 2 * 2 ** 20;
const SIZE = LARGE + PAGE;

/** Parts of an area of 2 MiB and a page that begins at a multiple of 2 MiB. */
const ranges: readonly (readonly [string, number, number])[] = [
  ['a page at the front', 0, PAGE],
  ['2 MiB, aligned', 0, LARGE],
  ['a page inside 2 MiB', PAGE, PAGE],
  ['2 MiB, not aligned', PAGE, LARGE],
  ['a page after 2 MiB', LARGE, PAGE],
];

const Pattern = {
  initial: 0x11,
  host: 0x22,
  private: 0x33,
  shared: 0x44,
  hostAgain: 0x55,
  last: 0x66,
} as const;

/** Beyond this, conversions page by page show nothing new. */
const MOST_PAGES = 16;

/** The area's parts before and after a range. */
const around = (offset: number, size: number) =>
  [
    [0, offset],
    [offset + size, SIZE - offset - size],
  ].filter(([, length]) => length! > 0) as [number, number][];

function withArea(
  hv: Hypervisor,
  use: (area: Area) => void,
  ...options: [size?: number, slots?: number]
): void {
  using area = new Area(hv, ...options);
  use(area);
}

/** The whole life of a range: shared, private, in alternate pages, shared again. */
function liveThrough(area: Area, offset: number, size: number, allocate: boolean): void {
  const { agent } = area;
  const inGuest = (at: number, length: number, byte: number) => agent.holds(AREA + at, length, byte);
  const onHost = (at: number, length: number, byte: number) => filledWith(area.host(at, length), byte);
  const sees = (what: string, seen: boolean) => expect(seen, what).toBe(true);
  const outsideIsUntouched = (when: string) => {
    for (const [at, length] of around(offset, size)) {
      sees(`${when}, the guest outside the range`, inGuest(at, length, Pattern.initial));
      sees(`${when}, the host outside the range`, onHost(at, length, Pattern.initial));
    }
  };

  agent.fill(AREA, SIZE, Pattern.initial);
  sees('shared: the host sees what the guest wrote', onHost(0, SIZE, Pattern.initial));
  area.host(offset, size).fill(Pattern.host);
  sees('shared: the guest sees what the host wrote', inGuest(offset, size, Pattern.host));

  area.guestConverts('private', offset, size, allocate);
  outsideIsUntouched('after the conversion to private');
  sees('private: it begins as zero', inGuest(offset, size, 0));
  agent.fill(AREA + offset, size, Pattern.private);
  sees('private: the guest sees what it wrote', inGuest(offset, size, Pattern.private));
  sees('private: the host sees the shared memory still', onHost(offset, size, Pattern.host));
  outsideIsUntouched('after private writes');

  const pages = Math.min(size / PAGE, MOST_PAGES);
  for (let page = 1; page < pages; page += 2)
    area.guestConverts('shared', offset + page * PAGE, PAGE, allocate);
  for (let page = 0; page < pages; page++) {
    const at = offset + page * PAGE;
    if (page % 2 === 0) {
      sees(`page ${page} is private still`, inGuest(at, PAGE, Pattern.private));
      continue;
    }
    sees(`page ${page} is shared, as it was before`, inGuest(at, PAGE, Pattern.host));
    agent.fill(AREA + at, PAGE, Pattern.shared);
    sees(`page ${page}: the host sees what the guest wrote`, onHost(at, PAGE, Pattern.shared));
  }

  area.guestConverts('shared', offset, size, allocate);
  agent.fill(AREA + offset, size, Pattern.hostAgain);
  sees('shared again: the host sees what the guest wrote', onHost(offset, size, Pattern.hostAgain));
  area.host(offset, size).fill(Pattern.last);
  sees('shared again: the guest sees what the host wrote', inGuest(offset, size, Pattern.last));
  outsideIsUntouched('at the end');
}

conformance('conversions', ({ needs }) => {
  const it = needs('private-memory', 'map-gpa-range');

  for (const allocate of [false, true]) {
    const how = allocate ? 'with allocating and punching' : 'by attributes alone';
    for (const [name, offset, size] of ranges) {
      it(`a range goes to private and back, and nothing beside it changes: ${name}, ${how}`, (hv) => {
        withArea(hv, (area) => liveThrough(area, offset, size, allocate), SIZE);
      });
    }
  }

  it('shared contents survive a trip to private; private ones do too, unless they are punched', (hv) => {
    withArea(hv, (area) => {
      const { agent } = area;
      agent.fill(AREA, PAGE, Pattern.shared);
      area.guestConverts('private', 0, PAGE);
      agent.fill(AREA, PAGE, Pattern.private);
      area.guestConverts('shared', 0, PAGE);
      expect(agent.holds(AREA, PAGE, Pattern.shared)).toBe(true);
      area.guestConverts('private', 0, PAGE);
      expect(agent.holds(AREA, PAGE, Pattern.private)).toBe(true);
      area.guestConverts('shared', 0, PAGE, true);
      area.guestConverts('private', 0, PAGE);
      expect(agent.holds(AREA, PAGE, 0)).toBe(true);
    });
  });

  // test_punch_hole: the guest keeps its attribute, and what was mapped for it goes.
  for (const [name, touched] of [
    ['only the range was touched', PAGE],
    ['the whole file was touched', 4 * PAGE],
  ] as const) {
    it(`punching private pages makes the guest read zeroes there, where ${name}`, (hv) => {
      withArea(hv, (area) => {
        const { agent } = area;
        area.guestConverts('private', 0, area.size);
        agent.fill(AREA, touched, Pattern.private);
        area.secret.punchHole(0, PAGE);
        expect(agent.holds(AREA, PAGE, 0)).toBe(true);
        if (touched > PAGE) expect(agent.holds(AREA + PAGE, touched - PAGE, Pattern.private)).toBe(true);
        agent.fill(AREA, PAGE, Pattern.last);
        expect(agent.holds(AREA, PAGE, Pattern.last)).toBe(true);
      });
    });
  }

  for (const [vcpus, slots] of [
    [2, 1],
    [1, 3],
    [2, 3],
  ] as const) {
    it(`${vcpus} vCPUs convert their own parts of ${slots} slots over one guest_memfd`, (hv) => {
      withArea(
        hv,
        (area) => {
          const agents = [area.agent];
          for (let id = 1; id < vcpus; id++) agents.push(area.agent.sibling(id));
          const size = area.size / vcpus;
          agents.forEach((agent, i) => {
            agent.fill(AREA + i * size, size, Pattern.shared + i);
            area.guestConverts('private', i * size, size, false, agent);
            agent.fill(AREA + i * size, size, Pattern.private + i);
          });
          agents.forEach((agent, i) => {
            expect(agent.holds(AREA + i * size, size, Pattern.private + i)).toBe(true);
            area.guestConverts('shared', i * size, size, false, agent);
            expect(agent.holds(AREA + i * size, size, Pattern.shared + i)).toBe(true);
            expect(filledWith(area.host(i * size, size), Pattern.shared + i)).toBe(true);
          });
          for (const agent of agents) agent.vcpu.close();
        },
        6 * PAGE,
        slots,
      );
    });
  }

  it('what one vCPU makes private is private for the others', (hv) => {
    withArea(hv, (area) => {
      const other = area.agent.sibling(1);
      other.fill(AREA, PAGE, Pattern.shared);
      area.guestConverts('private', 0, PAGE);
      area.agent.fill(AREA, PAGE, Pattern.private);
      expect(other.holds(AREA, PAGE, Pattern.private)).toBe(true);
      expect(filledWith(area.host(0, PAGE), Pattern.shared)).toBe(true);
      other.vcpu.close();
    });
  });

  it('a range over two slots is one conversion', (hv) => {
    withArea(
      hv,
      (area) => {
        expect(area.vm.memoryMap.slotById(AREA_SLOT + 1)).toBeDefined();
        area.guestConverts('private', PAGE, 2 * PAGE);
        area.agent.fill(AREA, 4 * PAGE, Pattern.private);
        const seen = [0, 1, 2, 3].map((page) => filledWith(area.host(page * PAGE, PAGE), Pattern.private));
        expect(seen).toEqual([true, false, false, true]);
      },
      4 * PAGE,
      2,
    );
  });

  it('the guest_memfd can be punched and allocated after the VM and its vCPU are closed', (hv) => {
    withArea(hv, (area) => {
      area.guestConverts('private', 0, PAGE);
      area.agent.fill(AREA, PAGE, Pattern.private);
      area.agent[Symbol.dispose]();
      area.secret.punchHole(0, area.size);
      area.secret.allocate();
    });
  });
});
