/** A guest with memory that can be private: what the cases about conversions and memory faults begin with. */
import { expect } from 'vitest';
import {
  Cap,
  Exit,
  type GuestMemfd,
  type GuestMemory,
  type Hypervisor,
  MemoryAttribute,
  type Vm,
  VmType,
} from '../../src/index.ts';
import { Hypercall, MapGpaRange } from '../../src/uapi/index.ts';
import { Agent } from './agent.ts';
import { expectOutcome } from './run.ts';

/** Where the area lies: above 4 GiB, so that an address which lost its upper half is found out. */
export const AREA = 2 ** 32;
export const PAGE = 4096;
/** The slots of the area are numbered from here; slot 0 is the agent's. */
export const AREA_SLOT = 10;

export class Area implements Disposable {
  readonly agent: Agent;
  readonly vm: Vm;
  /** Bytes. */
  readonly size: number;
  /** Its shared side. */
  readonly shared: GuestMemory;
  /** Its private side. */
  readonly secret: GuestMemfd;

  /** @param slots among how many memory slots the area is divided */
  constructor(hv: Hypervisor, size = 4 * PAGE, slots = 1) {
    this.size = size;
    this.agent = Agent.boot(hv, { type: VmType.SW_PROTECTED });
    this.vm = this.agent.vm;
    this.vm.enableCap({ cap: Cap.EXIT_HYPERCALL, args: [1 << Hypercall.MAP_GPA_RANGE] });
    this.shared = this.vm.allocate(size);
    this.secret = this.vm.createGuestMemfd(size);
    for (let i = 0; i < slots; i++) {
      this.bind({ slot: AREA_SLOT + i, offset: (i * size) / slots, size: size / slots });
    }
  }

  /** A slot of the area's memory. @param secret null: without private memory */
  bind(part: { slot?: number; offset?: number; size?: number; secret?: GuestMemfd | null } = {}): void {
    const { slot = AREA_SLOT, offset = 0, secret = this.secret } = part;
    const size = part.size ?? this.size - offset;
    this.vm.setUserMemoryRegion2({
      slot,
      guestPhysAddr: AREA + offset,
      memorySize: size,
      memory: this.shared,
      memoryOffset: offset,
      ...(secret && { guestMemfd: secret, guestMemfdOffset: offset }),
    });
  }

  unbind(slot: number = AREA_SLOT): void {
    this.vm.setUserMemoryRegion2({ slot, memorySize: 0 });
  }

  /** KVM_SET_MEMORY_ATTRIBUTES of a part of the area, or of all of it. */
  make(to: 'private' | 'shared', offset = 0, size = this.size - offset): void {
    const attributes = to === 'private' ? MemoryAttribute.PRIVATE : 0;
    this.vm.setMemoryAttributes({ address: AREA + offset, size, attributes });
  }

  /**
   * What a VMM does with the guest's KVM_HC_MAP_GPA_RANGE, which the last run has ended with: the conversion, and
   * the answer 0. The guest has not run on yet.
   * @param allocate also allocate the private side, or punch it: what is private does not survive then
   */
  serveHypercall({ vcpu }: Agent, allocate = false): void {
    expectOutcome(vcpu, Exit.HYPERCALL);
    const [gpa, size] = [Number(vcpu.hypercall.arg(0)), Number(vcpu.hypercall.arg(1)) * PAGE];
    const toPrivate = (vcpu.hypercall.arg(2) & BigInt(MapGpaRange.ENCRYPTED)) !== 0n;
    if (allocate && toPrivate) this.secret.allocate(gpa - AREA, size);
    if (allocate && !toPrivate) this.secret.punchHole(gpa - AREA, size);
    this.make(toPrivate ? 'private' : 'shared', gpa - AREA, size);
    vcpu.hypercall.ret = 0;
  }

  /** The guest asks for a conversion, and gets it. */
  guestConverts(
    to: 'private' | 'shared',
    offset: number,
    size: number,
    allocate = false,
    agent = this.agent,
  ): void {
    const attributes = to === 'private' ? MapGpaRange.ENCRYPTED : MapGpaRange.DECRYPTED;
    agent.beginHypercall(Hypercall.MAP_GPA_RANGE, AREA + offset, size / PAGE, attributes);
    this.serveHypercall(agent, allocate);
    expect(agent.resume()).toBe(0n);
  }

  /** What the host sees of a part of the area. */
  host(offset: number, size: number): Uint8Array {
    return this.shared.bytes.subarray(offset, offset + size);
  }

  [Symbol.dispose](): void {
    this.agent[Symbol.dispose]();
    this.secret.close();
    this.shared.close();
  }
}
