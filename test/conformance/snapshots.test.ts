/** A guest that is saved and restored goes on as if nothing had been: wherever it was, and as often as one likes. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect } from 'vitest';
import {
  type CpuidEntry,
  Exit,
  exitName,
  type Hypervisor,
  MemoryAttribute,
  openHypervisor,
  type Pager,
  type Vcpu,
  type Vm,
  VmType,
} from '../../src/index.ts';
import { GuestDebug } from '../../src/uapi/index.ts';
import {
  captureState,
  type LazyOptions,
  parseState,
  RestoredMachine,
  restoreLazily,
  writeSnapshot,
} from '../../src/vmm/snapshot/index.ts';
import { DEADLINE_MS, inLab } from '../support/limits.ts';
import { conformance } from '../support/suite.ts';
import * as traveller from '../support/traveller.ts';

/** Numbers that look random and are the same each time (xorshift32): from 0 to below 1. */
function random(seed: number): () => number {
  let state = seed;
  return () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) / 2 ** 32;
  };
}

/** More than any guest here has. */
const MAX_EXITS = 10_000;

const folder = mkdtempSync(join(tmpdir(), 'vmexit-snapshots-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** Outcomes that nobody has to answer; a pager's thread may kick. */
const noExits: ReadonlySet<number> = new Set([Exit.DEADLINE, Exit.INTERRUPTED, Exit.DEBUG]);
const singleStep = { control: GuestDebug.ENABLE | GuestDebug.SINGLESTEP };
const noDebug = { control: 0 };

/** The traveller in one VM after another. */
class Journey implements Disposable {
  readonly vmm = traveller.newVmm();
  #hv: Hypervisor;
  #here: traveller.Traveller & Disposable;
  /** Who brings the memory of where it is, if it has begun without. */
  #pager: Pager | undefined;
  moves = 0;
  /** Pages that a pager has brought because the guest, or the kernel for it, touched them. */
  touched = 0;

  constructor(hv: Hypervisor, rounds: number, mask = 0) {
    this.#hv = hv;
    this.#here = traveller.boot(hv, rounds, mask);
  }
  get vcpu(): Vcpu {
    return this.#here.vcpu;
  }
  get vm(): Vm {
    return this.#here.vm;
  }
  /** The interrupt that waits, whose window has opened: whether there was one. */
  inject(): boolean {
    return traveller.inject(this.vcpu, this.vmm);
  }
  get ended(): boolean {
    return traveller.hasEnded(this.vcpu);
  }
  get result(): string {
    return traveller.result(this.#here.memory);
  }

  /** One run, its exit not yet answered. */
  run(timeoutMs = DEADLINE_MS): number {
    return traveller.step(this.vcpu, this.vmm, timeoutMs);
  }
  serve(): void {
    const { outcome } = this.vcpu;
    if (!noExits.has(outcome)) traveller.serve(this.vcpu, this.vmm, outcome);
  }

  /** The same when pages are missing. */
  async serveLazily(): Promise<void> {
    this.#pager?.check();
    if (!(await this.#pager?.handle(this.vcpu, this.vcpu.outcome))) this.serve();
  }

  /**
   * Runs for so many single steps, at most to the guest's end. KVM_SET_GUEST_DEBUG sets the trap flag once, and KVM
   * drops it where it raises a fault itself, or emulates (arch/x86/kvm/x86.c: kvm_get_rflags() is without it, and
   * __kvm_set_rflags() does not add it): so it is set for each step.
   */
  async step(steps: number): Promise<void> {
    while (steps > 0 && !this.ended) {
      this.vcpu.setGuestDebug(singleStep);
      if (this.run() === Exit.DEBUG) steps--;
      await this.serveLazily();
    }
  }
  /**
   * Ends single steps. An interrupt that comes during one has put the trap flag on the guest's stack, from where IRET
   * takes it again: it must be back by then.
   */
  async stepOut(): Promise<void> {
    while (!this.ended && (this.vcpu.getSregs().cs.selector & 3) === 0) await this.step(1);
    this.vcpu.setGuestDebug(noDebug);
  }

  #capture() {
    const service = (vcpu: Vcpu, exit: number) => traveller.serve(vcpu, this.vmm, exit);
    return captureState(this.#hv, this.#here.vm, [this.vcpu], { service });
  }
  #arrive(there: RestoredMachine): void {
    this.#here[Symbol.dispose]();
    const { vm, vcpus, memories } = there;
    this.#here = { vm, vcpu: vcpus[0]!, memory: memories[0]!, [Symbol.dispose]: () => there.close() };
    this.moves++;
  }

  /** To a VM of its own, by a file, and before its memory. */
  async moveLazily(options: LazyOptions): Promise<void> {
    await this.stay();
    const capture = this.#capture();
    const path = join(folder, 'lazy');
    await writeSnapshot(path, capture);
    const { machine, pager } = restoreLazily(this.#hv, { path, state: capture.state }, options);
    this.#arrive(machine);
    this.#pager = pager;
    expect(machine.differences).toEqual([]);
  }
  /** Until all memory is there. */
  async stay(): Promise<void> {
    const pager = this.#pager;
    if (pager === undefined) return;
    const { fault, kernel } = pager.report.byCause;
    this.touched += fault + kernel;
    await this.#here.memory.ensure();
    await pager.complete;
    await pager.stop();
    pager[Symbol.dispose]();
    this.#pager = undefined;
  }

  /** To a VM of its own: as text in between, as a file or a socket would have it. */
  move(hv = this.#hv, cpuid?: readonly CpuidEntry[]): void {
    const { state, memories } = this.#capture();
    const there = new RestoredMachine(
      hv,
      parseState(JSON.parse(JSON.stringify(state))),
      cpuid ? { cpuid } : {},
    );
    const [memory] = there.memories;
    memory!.write(0, memories[0]!.read(0, traveller.MEMORY));
    this.#arrive(there);
    there.begin();
    if (hv === this.#hv) expect(there.differences).toEqual([]);
    this.#hv = hv;
  }

  toItsEnd(): string {
    for (let exits = 0; !this.ended; exits++) {
      expect(exits, 'a guest that goes in circles').toBeLessThan(MAX_EXITS);
      expect(exitName(this.run())).not.toBe('DEADLINE');
      this.serve();
    }
    return this.result;
  }

  [Symbol.dispose](): void {
    this.#here[Symbol.dispose]();
    this.#pager?.[Symbol.dispose]();
  }
}

/** The guest's memory at its end, when nobody interrupts it. */
function undisturbed(hv: Hypervisor, rounds: number, mask = 0): string {
  using journey = new Journey(hv, rounds, mask);
  return journey.toItsEnd();
}

conformance('snapshots', ({ needs }) => {
  const it = needs('immediate-exit');
  const MOVES = inLab ? 25 : 100;

  for (const seed of [1, 2]) {
    // A PVM host ends single steps at privilege 3 with a shutdown now and then.
    needs('immediate-exit', 'two-dimensional-paging')(
      `a guest that moves at ${MOVES} random instructions computes what it would have (seed ${seed})`,
      async (hv) => {
        const next = random(seed);
        const rounds = 20;
        using journey = new Journey(hv, rounds);
        while (journey.moves < MOVES) {
          await journey.step(Math.ceil(next() * 80));
          expect(journey.ended).toBe(false);
          journey.move();
        }
        await journey.stepOut();
        expect(journey.toItsEnd()).toBe(undisturbed(hv, rounds));
      },
    );
  }

  it('a guest that moves at each of its exits computes what it would have', (hv) => {
    const rounds = inLab ? 5 : 40;
    using journey = new Journey(hv, rounds);
    for (let exits = 0; ; exits++) {
      expect(exits).toBeLessThan(MAX_EXITS);
      expect(exitName(journey.run())).not.toBe('DEADLINE');
      journey.serve();
      if (journey.ended) break;
      journey.move();
    }
    expect(journey.moves).toBeGreaterThan(3 * rounds);
    expect(journey.result).toBe(undisturbed(hv, rounds));
  });

  for (const seed of [4, 5]) {
    it(`a guest that moves whenever a timer strikes computes what it would have (seed ${seed})`, (hv) => {
      const next = random(seed);
      const rounds = hv.backend === 'sim' ? 30_000 : inLab ? 10_000 : 400_000;
      const mask = 0xfff;
      const strikes = hv.backend === 'sim' ? MOVES / 2 : MOVES;
      using journey = new Journey(hv, rounds, mask);
      while (journey.moves < strikes && !journey.ended) {
        const struck = journey.run(0.01 + next() * 0.5) === Exit.DEADLINE;
        journey.serve();
        if (struck) journey.move();
      }
      expect(journey.moves).toBeGreaterThan(strikes / 10);
      expect(journey.toItsEnd()).toBe(undisturbed(hv, rounds, mask));
    });
  }

  for (const way of ['userfault', 'userfaultfd'] as const) {
    // A pager's thread takes a tenth of a second to start, and in the lab seconds; the simulator mostly needs none.
    const LAZY_MOVES = inLab ? 5 : way === 'userfault' ? 150 : 60;
    const lazily = (hv: Hypervisor, next: () => number): LazyOptions => ({
      strategy: hv.backend === 'sim' ? 'sim' : way,
      prefetch: next() < 0.1,
      batch: Math.ceil(next() * 4),
    });

    needs(
      'immediate-exit',
      'two-dimensional-paging',
      way,
    )(
      `a guest that moves at random instructions, and before its memory, computes what it would have (${way})`,
      async (hv) => {
        const next = random(6);
        const rounds = 30;
        using journey = new Journey(hv, rounds);
        while (journey.moves < LAZY_MOVES) {
          await journey.step(Math.ceil(next() * 80));
          expect(journey.ended).toBe(false);
          await journey.moveLazily(lazily(hv, next));
        }
        await journey.stepOut();
        await journey.stay();
        if (way === 'userfault') expect(journey.touched).toBeGreaterThan(LAZY_MOVES);
        expect(journey.toItsEnd()).toBe(undisturbed(hv, rounds));
      },
    );

    needs('immediate-exit', way)(
      `a guest that moves after some of its exits, and before its memory, computes what it would have (${way})`,
      async (hv) => {
        const next = random(7);
        const rounds = 2 * LAZY_MOVES;
        using journey = new Journey(hv, rounds);
        while (journey.moves < LAZY_MOVES) {
          for (let exits = Math.ceil(next() * 6); exits > 0 && !journey.ended; exits--) {
            expect(exitName(journey.run())).not.toBe('DEADLINE');
            await journey.serveLazily();
          }
          expect(journey.ended).toBe(false);
          await journey.moveLazily(lazily(hv, next));
        }
        await journey.stay();
        expect(journey.toItsEnd()).toBe(undisturbed(hv, rounds));
      },
    );
  }

  needs('immediate-exit', 'private-memory')(
    'a VM with a private page is refused, and the range is named',
    (hv) => {
      using vm = hv.createVm({ type: VmType.SW_PROTECTED });
      using vcpu = vm.createVcpu(0);
      vm.setMemoryAttributes({ address: 0x5000, size: 0x3000, attributes: MemoryAttribute.PRIVATE });
      expect(() => captureState(hv, vm, [vcpu])).toThrow(/guest memory from 0x5000 to 0x7fff is private/);
      vm.setMemoryAttributes({ address: 0x5000, size: 0x3000, attributes: 0 });
      captureState(hv, vm, [vcpu]);
    },
  );

  it('an instruction that is not done is finished first, and who is to serve its exits is asked for', (hv) => {
    using journey = new Journey(hv, 8);
    while (journey.run() !== Exit.MMIO) journey.serve();
    journey.serve();
    expect(() => captureState(hv, journey.vm, [journey.vcpu])).toThrow(/needs MMIO served: give `service`/);
    // The exit that it met is still there, and the capture can be tried again.
    expect(journey.vcpu.mmio.isWrite).toBe(true);
    journey.serve();
    journey.move();
    expect(journey.vmm.register).toBe(8n);
    expect(journey.toItsEnd()).toBe(undisturbed(hv, 8));
  });

  it('an interrupt that was injected and is not yet delivered is delivered there', (hv) => {
    using journey = new Journey(hv, 3);
    let interrupts = 0;
    while (!journey.ended) {
      if (journey.run() === Exit.IRQ_WINDOW_OPEN) {
        expect(journey.inject()).toBe(true);
        expect(journey.vcpu.getVcpuEvents().interrupt).toMatchObject({ injected: 1 });
        journey.move();
        expect(journey.vcpu.getVcpuEvents().interrupt).toMatchObject({ injected: 1 });
        interrupts++;
      } else journey.serve();
      expect(interrupts).toBeLessThan(4);
    }
    expect(interrupts).toBe(3);
    expect(journey.result).toBe(undisturbed(hv, 3));
  });

  it('a guest saved here goes on in the simulator, when it was told of no features that are not there', (hv) => {
    using sim = openHypervisor({ backend: 'sim' });
    const rounds = inLab ? 10 : 30;
    using journey = new Journey(hv, rounds);
    for (let exits = 0; exits < rounds; exits++) {
      journey.run();
      journey.serve();
    }
    journey.move(sim, sim.getSupportedCpuid());
    expect(traveller.computed(journey.toItsEnd())).toBe(traveller.computed(undisturbed(hv, rounds)));
  });

  it('a guest that was told of features that a host lacks is not restored there, and they are named', (hv) => {
    using guest = traveller.boot(hv, 1);
    const { state } = captureState(hv, guest.vm, [guest.vcpu]);
    const cpuid = hv
      .getSupportedCpuid()
      .map((entry) => (entry.function === 7 ? { ...entry, edx: 0xffff_ffff } : entry));
    expect(() => new RestoredMachine(hv, state, { cpuid })).toThrow(/lacks: CPUID\.7\.0:EDX bits/);
  });
});
