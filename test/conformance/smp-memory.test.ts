/**
 * Several vCPUs at once, each on a thread of its own, and their memory: faults of all at the same page, and conversions
 * beside accesses to other pages (api.rst, KVM_SET_MEMORY_ATTRIBUTES; hypercalls.rst, KVM_HC_MAP_GPA_RANGE).
 */
import { expect } from 'vitest';
import {
  Exit,
  type ExitHandler,
  exitName,
  type Hypervisor,
  MemoryFaultService,
  type Vcpu,
} from '../../src/index.ts';
import { type Guest, guest } from '../../src/vmm/guest.ts';
import { type Agent, Layout } from '../support/agent.ts';
import { AREA, Area, PAGE } from '../support/area.ts';
import { DEADLINE_MS, inLab } from '../support/limits.ts';
import { wordAt } from '../support/run.ts';
import { conformance } from '../support/suite.ts';

const VCPUS = 4;
const PAGES = 16;
/** An emulated processor is slow. */
const ROUNDS = inLab ? 100 : 300;

/** Counts once in each of rcx pages from rdi on. */
const countsInPages = guest(
  64,
  `
 f0 48 ff 07          | again: lock inc qword ptr [rdi]
 48 81 c7 00 10 00 00 |        add rdi, 0x1000
 48 ff c9             |        dec rcx
 75 f0                |        jnz again
 c3                   |        ret
`,
);

/** Counts in two pages, at rdi and rsi, until the word at r9 is not 0; the answer is how often. */
const countsInTwo = guest(
  64,
  `
 31 c0       |        xor eax, eax
 48 ff 07    | again: inc qword ptr [rdi]
 48 ff 06    |        inc qword ptr [rsi]
 48 ff c0    |        inc rax
 49 83 39 00 |        cmp qword ptr [r9], 0
 74 f1       |        je again
 c3          |        ret
`,
);

/**
 * Asks r13 times for the page at rdi to be private and then for it to be shared, and counts in it each time. The answer is what
 * the hypercalls gave, ORed.
 */
const converts = guest(
  64,
  `
 45 31 e4       |        xor r12d, r12d
 b8 0c 00 00 00 | again: mov eax, 12
 48 89 fb       |        mov rbx, rdi
 b9 01 00 00 00 |        mov ecx, 1
 ba 10 00 00 00 |        mov edx, 0x10 # ENCRYPTED
 0f 01 d9       |        vmmcall
 49 09 c4       |        or r12, rax
 48 ff 07       |        inc qword ptr [rdi]
 b8 0c 00 00 00 |        mov eax, 12
 b9 01 00 00 00 |        mov ecx, 1
 31 d2          |        xor edx, edx # DECRYPTED
 0f 01 d9       |        vmmcall
 49 09 c4       |        or r12, rax
 48 ff 07       |        inc qword ptr [rdi]
 49 ff cd       |        dec r13
 75 cb          |        jnz again
 4c 89 e0       |        mov rax, r12
 c3             |        ret
`,
);

/** The agent's answer is the exit that no handler takes. */
function starts(agent: Agent, handlers: readonly ExitHandler[]): Promise<void> {
  return agent.vcpu.start(handlers, { timeoutMs: DEADLINE_MS }).then((exit) => {
    expect(exitName(exit)).toBe('IO');
    expect(agent.answered).toBe(true);
  });
}

/** Agents of one VM; each has its snippet at an address of its own. */
class Crew implements Disposable {
  readonly area: Area;
  readonly agents: readonly Agent[];

  constructor(hv: Hypervisor) {
    this.area = new Area(hv, PAGES * PAGE);
    const more = Array.from({ length: VCPUS - 1 }, (_, i) => this.area.agent.sibling(i + 1));
    this.agents = [this.area.agent, ...more];
  }

  prepare(id: number, snippet: Guest, regs: Parameters<Agent['prepare']>[1]): Agent {
    const agent = this.agents[id]!;
    const at = Layout.snippet + 0x100 * id;
    agent.ram.write(at, snippet.code);
    agent.prepare('call', { r15: at, ...regs });
    return agent;
  }

  page(number: number): bigint {
    return wordAt(this.area.host(number * PAGE, 8));
  }

  [Symbol.dispose](): void {
    for (const agent of this.agents.slice(1)) agent.vcpu.close();
    this.area[Symbol.dispose]();
  }
}

/** Serves nothing, and lets exits through when all vCPUs have come with one. */
class Gate implements ExitHandler {
  #waiting: (() => void)[] = [];

  handle(_: Vcpu, exit: number): boolean | Promise<boolean> {
    if (exit !== Exit.MEMORY_FAULT) return false;
    const opened = new Promise<boolean>((open) => this.#waiting.push(() => open(false)));
    if (this.#waiting.length === VCPUS) for (const open of this.#waiting.splice(0)) open();
    return opened;
  }
}

const turn = () => new Promise((done) => setImmediate(done));

conformance('the memory of several vCPUs that run at once', ({ needs }) => {
  const it = needs('private-memory', 'memory-fault');

  it('has each page’s fault served once, though all of them meet it before any is served', async (hv) => {
    using crew = new Crew(hv);
    const { area } = crew;
    // Nothing is behind the private pages.
    area.unbind();
    area.bind({ secret: null });
    area.make('private');
    const allowed: number[] = [];
    const service = new MemoryFaultService(area.vm, {
      policy({ gpa }) {
        allowed.push((gpa - AREA) / PAGE);
        return 'allow';
      },
    });
    const handlers = [new Gate(), service];
    const regs = { rdi: AREA, rcx: PAGES };
    await Promise.all(crew.agents.map((_, id) => starts(crew.prepare(id, countsInPages, regs), handlers)));
    const pages = Array.from({ length: PAGES }, (_, page) => page);
    expect(allowed).toEqual(pages);
    const { conversions, memoryFaults, retries, refusals } = service.counters;
    expect({ conversions, memoryFaults, retries, refusals }).toEqual({
      conversions: { toPrivate: 0, toShared: PAGES },
      memoryFaults: VCPUS * PAGES,
      retries: (VCPUS - 1) * PAGES,
      refusals: 0,
    });
    expect(pages.map((page) => crew.page(page))).toEqual(pages.map(() => BigInt(VCPUS)));
  });

  it('loses nothing that they write, shared or private, while the host converts pages beside', async (hv) => {
    using crew = new Crew(hv);
    const { area, agents } = crew;
    const STOP = Layout.free;
    // Pages 0, 2, 4 and 6 are shared and written, 1, 3, 5 and 7 are private and written; the others go to and fro.
    for (let page = 1; page < 2 * VCPUS; page += 2) area.make('private', page * PAGE, PAGE);
    const regs = (id: number) => ({
      rdi: AREA + 2 * id * PAGE,
      rsi: AREA + (2 * id + 1) * PAGE,
      r9: STOP,
    });
    const ends = agents.map((_, id) => starts(crew.prepare(id, countsInTwo, regs(id)), []));
    for (let round = 0; round < ROUNDS; round++) {
      const page = 2 * VCPUS + (round % (PAGES - 2 * VCPUS));
      area.make('private', page * PAGE, PAGE);
      if (round % 10 === 0) await turn();
      area.make('shared', page * PAGE, PAGE);
    }
    while (agents.some((_, id) => crew.page(2 * id) === 0n)) await turn();
    area.agent.ram.write(STOP, Uint8Array.of(1));
    await Promise.all(ends);
    const counted = agents.map(({ answer }) => answer);
    expect(agents.map((_, id) => crew.page(2 * id))).toEqual(counted);
    expect(agents.map((_, id) => area.agent.read(AREA + (2 * id + 1) * PAGE))).toEqual(counted);
  });

  needs('private-memory', 'map-gpa-range')(
    'loses nothing of either copy while all of them have pages converted by hypercall',
    async (hv) => {
      using crew = new Crew(hv);
      const { area, agents } = crew;
      const service = new MemoryFaultService(area.vm, { policy: () => 'allow', discard: 'none' });
      const regs = (id: number) => ({ rdi: AREA + id * PAGE, r13: ROUNDS });
      await Promise.all(agents.map((_, id) => starts(crew.prepare(id, converts, regs(id)), [service])));
      const all = (value: bigint): bigint[] => Array(VCPUS).fill(value);
      expect(agents.map(({ answer }) => answer)).toEqual(all(0n));
      const times = VCPUS * ROUNDS;
      expect(service.counters).toMatchObject({
        hypercalls: 2 * times,
        conversions: { toPrivate: times, toShared: times },
        refusals: 0,
      });
      expect(agents.map((_, id) => crew.page(id))).toEqual(all(BigInt(ROUNDS)));
      area.make('private');
      expect(agents.map((_, id) => area.agent.read(AREA + id * PAGE))).toEqual(all(BigInt(ROUNDS)));
    },
  );
});
