/** All that is done to a VM's memory, in steps; after one that failed, what is known is compared with what the kernel has. */
import { expect } from 'vitest';
import {
  Exit,
  exitName,
  type GuestMemfd,
  type GuestMemory,
  MemFlag,
  MemoryAttribute,
  MemoryFaultService,
  type Vm,
  VmType,
} from '../../src/index.ts';
import type { KvmVm } from '../../src/sim/kernel/vm/vm.ts';
import { Agent } from './agent.ts';
import { type Failing, isFailure } from './failing.ts';
import { DEADLINE_MS } from './limits.ts';

export const PAGE = 4096;
const BASE = 0x100_0000;
const HALF = 8;
const at = (page: number): number => BASE + page * PAGE;
/** Of each half those at its borders and two others: a guest's access is slow where its processor is emulated. */
const LOOKED_AT = [0, 3, 5, 7, 8, 9, 10, 12, 13, 15] as const;

/** Two slots side by side from BASE on: pages 0 to 7 are shared only, and pages 8 to 15 can be private. */
export class MemoryPlay implements Disposable {
  readonly #failing: Failing;
  readonly #agent: Agent;
  readonly #plain: GuestMemory;
  readonly #both: GuestMemory;
  readonly #secret: GuestMemfd;
  readonly #service: MemoryFaultService;
  /** What pages hold; a copy that was given back is not there. */
  readonly #shared = new Map<number, bigint>();
  readonly #private = new Map<number, bigint>();

  /** Made without failures; the calls from all() on count. */
  constructor(failing: Failing) {
    const [calls, armed] = failing.disarm();
    this.#failing = failing;
    this.#agent = Agent.boot(failing.hv, { type: VmType.SW_PROTECTED });
    const { vm } = this.#agent;
    this.#plain = vm.allocate(HALF * PAGE);
    this.#both = vm.allocate(HALF * PAGE);
    this.#secret = vm.createGuestMemfd(HALF * PAGE);
    this.#service = new MemoryFaultService(vm, { policy: () => 'allow', discard: 'private' });
    failing.rearm(calls, armed);
  }

  all(): void {
    const { vm } = this.#agent;
    const plain = { slot: 1, guestPhysAddr: BASE, memory: this.#plain };
    const both = { slot: 2, guestPhysAddr: at(HALF), memory: this.#both, guestMemfd: this.#secret };
    const isPrivate = { attributes: MemoryAttribute.PRIVATE };

    this.#access('read', at(15)); // KVM remembers that it was in no slot
    this.#step(() => vm.setUserMemoryRegion(plain));
    this.#step(() => vm.setUserMemoryRegion2(both));
    for (const page of LOOKED_AT) if (page !== 15) this.#write(page, BigInt(page + 1));
    this.#step(() => vm.setMemoryAttributes({ address: at(8), size: 2 * PAGE, ...isPrivate }));
    for (const page of [8, 9]) this.#write(page, BigInt(0x100 + page));
    this.#step(() => this.#service.convert(at(12), 4 * PAGE, 'private'));
    for (const page of [12, 15]) this.#write(page, BigInt(0x100 + page));
    this.#step(() => this.#secret.punchHole(4 * PAGE, PAGE));
    this.#private.set(12, 0n);
    this.#step(() => this.#service.convert(at(9), 4 * PAGE, 'shared'));
    for (const page of [9, 10, 12]) this.#private.delete(page);
    // One without private memory behind it, which the guest's access makes shared again.
    this.#step(() => vm.setMemoryAttributes({ address: at(5), size: PAGE, ...isPrivate }));
    this.#access('read', at(5));
    expect(vm.memoryMap.isPrivate(at(5))).toBe(false);

    this.#step(() => vm.setUserMemoryRegion({ ...plain, flags: MemFlag.LOG_DIRTY_PAGES }));
    const written = new Uint8Array(8);
    this.#step(() => vm.getDirtyLog(1, 0, written)); // what was mapped before
    for (const page of [3, 7]) this.#write(page, BigInt(0x200 + page));
    this.#step(() => vm.getDirtyLog(1, 0, written));
    expect([...written]).toEqual([(1 << 3) | (1 << 7), 0, 0, 0, 0, 0, 0, 0]);
    this.#step(() => this.#plain.discard(7 * PAGE, PAGE));
    this.#shared.set(7, 0n);
    this.#step(() => vm.setUserMemoryRegion(plain));
    this.#step(() => vm.setUserMemoryRegion2({ slot: 2, memorySize: 0 }));
    this.#check();
    expect(this.#access('read', at(10))).toBe(Exit.MMIO);
    this.#check();
  }

  [Symbol.dispose](): void {
    this.#agent[Symbol.dispose]();
    for (const memory of [this.#plain, this.#both, this.#secret]) memory.close();
  }

  /** Once more if it fails, and then with nothing lost. */
  #step(call: () => void): void {
    try {
      call();
    } catch (error) {
      if (!isFailure(error, this.#failing.failure)) throw error;
      this.#check();
      call();
    }
  }

  #write(page: number, value: bigint): void {
    expect(exitName(this.#access('write', at(page), value))).toBe('IO');
    const { memoryMap } = this.#agent.vm;
    (memoryMap.isPrivate(at(page)) ? this.#private : this.#shared).set(page, value);
  }

  /** What the guest's access ends with: Exit.IO when it is done, or Exit.MMIO. */
  #access(command: 'read' | 'write', rdi: number, rsi = 0n): number {
    const { vcpu } = this.#agent;
    const begin = (): number => {
      vcpu.complete(() => {});
      this.#agent.prepare(command, { rdi, rsi });
      return Exit.AGAIN;
    };
    let exit = -1;
    for (let failures = 0; failures < 3; ) {
      try {
        if (exit === -1) exit = begin();
        exit = vcpu.run(DEADLINE_MS);
        if (exit === Exit.IO || exit === Exit.MMIO) return exit;
        if (exit === Exit.MEMORY_FAULT) this.#service.handle(vcpu, exit);
        else failures++; // what came of the call that failed
      } catch (error) {
        failures++;
        if (!`${error}`.includes(this.#failing.failure)) throw error;
        this.#check();
        exit = -1;
      }
    }
    throw new Error(`an access at 0x${rdi.toString(16)} ended with ${exitName(exit)}`);
  }

  /** The record beside the kernel's state, and beside what the guest finds. */
  #check(): void {
    const [calls, armed] = this.#failing.disarm();
    const { vm, vcpu } = this.#agent;
    const { memoryMap } = vm;
    expectRecord(this.#failing, vm);
    for (const page of LOOKED_AT) {
      const slot = memoryMap.slotAt(at(page));
      if (slot === undefined) continue; // a look at it would be remembered
      const isPrivate = memoryMap.isPrivate(at(page));
      const expected = (isPrivate ? this.#private : this.#shared).get(page);
      vcpu.complete(() => {});
      this.#agent.prepare('read', { rdi: at(page) });
      const exit = vcpu.run(DEADLINE_MS);
      const found = exit === Exit.IO ? vcpu.getRegs().rax : exitName(exit);
      const unbacked = isPrivate && !memoryMap.hasPrivate(slot);
      // KVM still takes it for MMIO, until the service has dealt with it.
      if (page === 15 && isPrivate && found === 'MEMORY_FAULT') continue;
      if (unbacked || expected !== undefined)
        expect(found, `page ${page}, ${isPrivate ? 'private' : 'shared'}`).toBe(
          unbacked ? 'MEMORY_FAULT' : expected,
        );
    }
    this.#failing.rearm(calls, armed);
  }
}

/** The record beside the kernel's state, which only the simulator shows. */
export function expectRecord(failing: Failing, vm: Vm): void {
  const { memoryMap } = vm;
  const kernel = failing.objectOf<KvmVm>(vm)?.memory;
  if (kernel) {
    expect(memoryMap.slots.map(({ slot, flags, start, end }) => ({ id: slot, flags, start, end }))).toEqual(
      [...kernel.slots.all]
        .map(({ id, flags, start, end }) => ({ id, flags, start, end }))
        .sort((a, b) => a.start - b.start),
    );
    const told = [...memoryMap.attributesWithin(0, at(2 * HALF))];
    expect([...kernel.attributes.all].filter(({ value }) => value !== 0)).toEqual(
      told.filter(({ value }) => value !== 0),
    );
  }
}
