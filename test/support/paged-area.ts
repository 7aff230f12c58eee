/** A guest with a slot that has a userfault bitmap: what the cases about KVM_MEM_USERFAULT begin with. */
import {
  Exit,
  type GuestMemfd,
  type GuestMemory,
  type Hypervisor,
  MemoryFaultFlag,
  type UserfaultBitmap,
  type Vm,
  VmType,
} from '../../src/index.ts';
import { Agent } from './agent.ts';
import { AREA, AREA_SLOT, PAGE } from './area.ts';
import { expectOutcome } from './run.ts';

export const { USERFAULT, PRIVATE } = MemoryFaultFlag;

export interface Fault {
  readonly flags: number;
  readonly gpa: number;
  readonly size: number;
}

/** The fault of one page of the area. */
export const faultAt = (page: number, flags: number = USERFAULT): Fault => ({
  flags,
  gpa: AREA + page * PAGE,
  size: PAGE,
});

export interface PagedAreaOptions {
  readonly pages?: number;
  /** VmType; with SW_PROTECTED the area has a private side. */
  readonly type?: number;
  /** MemFlag bits of the slot, besides what the rest says. */
  readonly flags?: number;
  /** Without it the slot begins without its bitmap. */
  readonly armed?: boolean;
}

export class PagedArea implements Disposable {
  readonly agent: Agent;
  readonly vm: Vm;
  readonly pages: number;
  readonly memory: GuestMemory;
  readonly secret: GuestMemfd | undefined;
  readonly bitmap: UserfaultBitmap;
  readonly #flags: number;

  constructor(hv: Hypervisor, options: PagedAreaOptions = {}) {
    const { pages = 4, type = VmType.DEFAULT, flags = 0, armed = true } = options;
    this.pages = pages;
    this.agent = Agent.boot(hv, { type });
    this.vm = this.agent.vm;
    this.memory = this.vm.allocate(pages * PAGE);
    this.secret = type === VmType.DEFAULT ? undefined : this.vm.createGuestMemfd(pages * PAGE);
    this.bitmap = this.vm.createUserfaultBitmap(pages);
    this.#flags = flags;
    this.place(armed ? this.bitmap : undefined);
  }

  /** The slot, with a bitmap or without. */
  place(
    userfaultBitmap: UserfaultBitmap | undefined,
    changes: { address?: number; flags?: number } = {},
  ): void {
    const { address = AREA, flags = this.#flags } = changes;
    this.vm.setUserMemoryRegion2({
      slot: AREA_SLOT,
      guestPhysAddr: address,
      memory: this.memory,
      guestMemfd: this.secret,
      userfaultBitmap,
      flags,
    });
  }

  /** USERFAULT off, and on again. */
  rearm(): void {
    this.place(undefined);
    this.place(this.bitmap);
  }

  make(to: 'private' | 'shared', page: number, pages = 1): void {
    const attributes = to === 'private' ? 8 : 0;
    this.vm.setMemoryAttributes({ address: AREA + page * PAGE, size: pages * PAGE, attributes });
  }

  /** What a read of the page's first eight bytes gives, or the memory fault that it ends with. */
  read(page: number): bigint | Fault {
    this.agent.begin('read', { rdi: AREA + page * PAGE });
    return this.agent.answered ? this.agent.answer : this.fault;
  }

  /** The memory fault that the last run ended with. */
  get fault(): Fault {
    const { vcpu } = this.agent;
    expectOutcome(vcpu, Exit.MEMORY_FAULT);
    const { flags, gpa, size } = vcpu.memoryFault;
    return { flags, gpa, size };
  }

  [Symbol.dispose](): void {
    this.agent[Symbol.dispose]();
    this.bitmap.close();
    this.secret?.close();
    this.memory.close();
  }
}
