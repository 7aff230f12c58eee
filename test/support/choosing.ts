/**
 * A guest that chooses between private and shared memory by its page tables, as SNP's and TDX's do: the simulator has
 * such. Its own code, stack and page tables are private, put there as a launch would.
 */
import {
  Exit,
  enterLongMode,
  type GuestMemfd,
  type GuestMemory,
  Hypervisor,
  MemoryAttribute,
  type Vcpu,
  type Vm,
  VmType,
} from '../../src/index.ts';
import { type SimulatedHost, simulator } from '../../src/open.ts';
import type { SimBackend } from '../../src/sim/index.ts';
import { type Input, viewOf } from '../../src/uapi/index.ts';
import { guest } from '../../src/vmm/guest.ts';
import { AREA, PAGE } from './area.ts';
import { DEADLINE_MS } from './limits.ts';
import { expectOutcome } from './run.ts';

const PORT = 0xf0;
const code = guest(
  64,
  `
 e6 f0    | next:  out 0xf0, al
 84 db    |        test bl, bl
 75 05    |        jnz write
 48 8b 07 |        mov rax, [rdi]
 eb f5    |        jmp next
 48 89 37 | write: mov [rdi], rsi
 eb f0    |        jmp next
`,
);
const AFTER_OUT = 2;

const RAM_SIZE = 0x10_0000;
const CODE = 0x1000;
const STACK = 0x8000;
const TABLES = 0x1_0000;
/** enterLongMode()'s directories, after the GDT, the PML4 and the PDPT. */
const DIRECTORIES = TABLES + 3 * PAGE;
const GIB = 2 ** 30;
const LARGE = 2 * 2 ** 20;
/** How much is mapped: the area is there twice, as private memory and, 2 GiB higher, as shared. */
const IDENTITY = 8 * GIB;
export const SHARED_WINDOW = 2 * GIB;

export type ChoosingType = typeof VmType.SNP | typeof VmType.TDX;

/** Which bit of an entry says what, without an option of the host's. */
const defaults = { [VmType.SNP]: { cBit: 51 }, [VmType.TDX]: { sharedBit: 47 } } as const;

export class ChoosingGuest implements Disposable {
  readonly backend: SimBackend;
  readonly hv: Hypervisor;
  readonly vm: Vm;
  readonly vcpu: Vcpu;
  /** The area's shared side and its private one; bytes 0 to `size` of both are at AREA. */
  readonly shared: GuestMemory;
  readonly secret: GuestMemfd;
  readonly #opened: Disposable[] = [];
  #run: (timeoutMs?: number) => number = () => 0;

  constructor(type: ChoosingType, host: SimulatedHost = {}, size = 4 * PAGE) {
    const backend = simulator(host);
    this.backend = {
      ...backend,
      runner: (vcpu) => {
        this.#run = backend.runner(vcpu);
        return this.#run;
      },
    };
    this.hv = this.#open(new Hypervisor(this.backend));
    this.vm = this.#open(this.hv.createVm({ type }));
    const ram = this.#open(this.vm.allocate(RAM_SIZE));
    const own = this.#open(this.vm.createGuestMemfd(RAM_SIZE));
    this.shared = this.#open(this.vm.allocate(size));
    this.secret = this.#open(this.vm.createGuestMemfd(size));
    this.vm.setUserMemoryRegion2({ slot: 0, guestPhysAddr: 0, memory: ram, guestMemfd: own });
    this.vm.setUserMemoryRegion2({
      slot: 1,
      guestPhysAddr: AREA,
      memory: this.shared,
      guestMemfd: this.secret,
    });

    this.vcpu = this.#open(this.vm.createVcpu(0));
    this.vcpu.setCpuid2(this.hv.getSupportedCpuid());
    enterLongMode(this.vcpu, ram, { tables: TABLES, identity: IDENTITY });
    const bit =
      type === VmType.SNP
        ? (host.cBit ?? defaults[VmType.SNP].cBit)
        : (host.sharedBit ?? defaults[VmType.TDX].sharedBit);
    chooseIn(viewOf(ram.bytes), 1n << BigInt(bit), type === VmType.SNP);
    ram.bytes.set(code.code, CODE);
    this.#launch(own, ram.bytes);
    this.vcpu.setSregs({ ...this.vcpu.getSregs(), idt: { base: 0n, limit: 0 } });
  }

  #open<T extends Disposable>(object: T): T {
    this.#opened.push(object);
    return object;
  }

  /** What is the guest's own becomes private, by the call that the host's ABI has for it. */
  #launch(own: GuestMemfd, bytes: Uint8Array): void {
    this.vm.tryConvert(0, RAM_SIZE, MemoryAttribute.PRIVATE);
    this.backend.populate(own.fd.handle, 0, bytes);
    bytes.fill(0);
  }

  #begin(regs: Input<{ rdi: bigint; rsi: bigint; rbx: bigint }>): number {
    this.vcpu.complete((exit) => {
      throw new Error(`completing the last command gave exit ${exit}`);
    });
    this.vcpu.setRegs({ rip: CODE + AFTER_OUT, rsp: STACK, rflags: 2n, ...regs });
    return this.vcpu.run(DEADLINE_MS);
  }

  /** Starts a read of eight bytes of the area, wanting one kind of memory; gives the outcome. */
  beginRead(offset: number, kind: 'private' | 'shared'): number {
    return this.#begin({ rdi: this.#linear(offset, kind), rbx: 0 });
  }
  beginWrite(offset: number, kind: 'private' | 'shared', value: bigint): number {
    return this.#begin({ rdi: this.#linear(offset, kind), rsi: value, rbx: 1 });
  }
  #linear(offset: number, kind: 'private' | 'shared'): number {
    return AREA + offset + (kind === 'shared' ? SHARED_WINDOW : 0);
  }

  /** KVM_RUN itself, below what Vcpu makes of it: a negated errno, or the exit reason. */
  rawRun(): number {
    return this.#run(DEADLINE_MS);
  }

  /** Runs on after a fault, to the answer. */
  resume(): bigint {
    this.vcpu.run(DEADLINE_MS);
    return this.answer;
  }
  get answer(): bigint {
    expectOutcome(this.vcpu, Exit.IO);
    if (this.vcpu.io.port !== PORT) throw new Error(`the guest used port ${this.vcpu.io.port}`);
    return this.vcpu.getRegs().rax;
  }

  [Symbol.dispose](): void {
    for (const object of this.#opened.splice(0).reverse()) object[Symbol.dispose]();
  }
}

/** Below 6 GiB the tables want private memory; from there on, the area again, as shared. */
function chooseIn(ram: DataView, bit: bigint, setIsPrivate: boolean): void {
  for (let linear = 0; linear < IDENTITY; linear += LARGE) {
    const shared = linear >= AREA + SHARED_WINDOW;
    const entry = DIRECTORIES + (linear / LARGE) * 8;
    const physical = BigInt(shared ? linear - SHARED_WINDOW : linear);
    const flags = ram.getBigUint64(entry, true) & 0xfffn;
    const choice = shared === setIsPrivate ? 0n : bit;
    ram.setBigUint64(entry, physical | choice | flags, true);
  }
}
