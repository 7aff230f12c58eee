/** The usual small machine: one vCPU or some, guest memory from address 0, and a program placed in it. */
import { integer, pages } from '../hypervisor/args.ts';
import { outOfRange } from '../hypervisor/errors.ts';
import type { GuestMemfd } from '../hypervisor/guest-memfd.ts';
import type { GuestMemory } from '../hypervisor/guest-memory.ts';
import type { Hypervisor } from '../hypervisor/hypervisor.ts';
import type { Range } from '../hypervisor/ranges.ts';
import type { Regs } from '../hypervisor/regs.ts';
import type { Vcpu } from '../hypervisor/vcpu.ts';
import type { CpuidEntry } from '../hypervisor/vcpu-state.ts';
import type { Vm } from '../hypervisor/vm.ts';
import { Cap } from '../uapi/cap.ts';
import { Hypercall, KvmCpuid, KvmFeature, VmType } from '../uapi/constants.ts';
import type { Input } from '../uapi/layout.ts';
import { badGuest, FLAT_ADDRESS, type GuestImage, placeImage } from './image.ts';
import { enterLongMode, enterRealMode, tablesSize } from './modes.ts';

const KIB = 2 ** 10;
const GIB = 2 ** 30;

/** Guest memory in bytes: room for the tables of long mode, and nothing where the devices of a PC are. */
export const MIN_MACHINE_MEMORY = 64 * KIB;
/** The most guest memory that a Machine has, in bytes: 3 GiB, below where a PC has its devices. */
export const MAX_MACHINE_MEMORY = 3 * GIB;

/** The most vCPUs that a Machine has: one APIC id of eight bits each, below that of all. */
export const MAX_MACHINE_CPUS = 64;

/** What a program in long mode finds below the page tables, in bytes. */
const STACK_SIZE = 16 * KIB;

/** What a segment of real mode reaches, in bytes; and where the stack of a program is that itself is low. */
const SEGMENT = 64 * KIB;
const HIGH_STACK = 0xff00;
/** Of each further vCPU; above the vectors and what a BIOS has there. */
const REAL_STACK = 256;
const LOWEST_STACK = 0x500;

/** Three pages that KVM on Intel wants (KVM_SET_TSS_ADDR), out of the way of any guest memory here. */
const TSS_ADDRESS = 0xfffb_d000;

/** Bit 1 of RFLAGS is always set (SDM volume 1, 3.4.3). */
const RFLAGS = 0x2n;

/** What a Machine is made with. */
export interface MachineOptions {
  /** Guest memory in bytes: a multiple of 4096, from MIN_MACHINE_MEMORY to MAX_MACHINE_MEMORY. */
  readonly memory: number;
  /**
   * Whether the guest can have private memory: a VM of type SW_PROTECTED whose slot is bound to a guest_memfd, with
   * KVM_HC_MAP_GPA_RANGE handed to the VMM (Exit.HYPERCALL), as a MemoryFaultService serves it.
   */
  readonly privateMemory?: boolean;
  /** VmType; follows from privateMemory without it. */
  readonly type?: number;
  /** How many vCPUs, from 1 to MAX_MACHINE_CPUS; 1 without it. */
  readonly cpus?: number;
}

/**
 * The usual small machine: one vCPU or some, with the host's CPUID, and guest memory from address 0. It owns what it
 * has made: close() closes all of it.
 * @example
 * ```ts
 * import { exitName, flatImage, Machine, openHypervisor } from 'vmexit';
 *
 * const hv = openHypervisor();
 * const machine = new Machine(hv, { memory: 0x10_0000 });
 * // inc ax; hlt
 * machine.load(flatImage(Uint8Array.of(0x40, 0xf4), 'real'), { rax: 41 });
 * const exit = machine.vcpu.run(5000);
 * console.log(`${exitName(exit)}, ax is ${machine.vcpu.getRegs().rax}`);
 * machine.close();
 * hv.close();
 * // prints: HLT, ax is 42
 * ```
 */
export class Machine implements Disposable {
  /** The VM, for what a Machine does not do itself. */
  readonly vm: Vm;
  /** Its first vCPU, number 0. */
  readonly vcpu: Vcpu;
  /** All of its vCPUs, in the order of their numbers. */
  readonly vcpus: readonly Vcpu[];
  /** Guest memory, from guest-physical address 0: slot 0. */
  readonly memory: GuestMemory;
  /** The private side of the same slot. */
  readonly guestMemfd: GuestMemfd | undefined;
  readonly #opened: Disposable[] = [];

  /**
   * Makes the VM, its memory in slot 0, and its vCPUs with the host's CPUID: without leaf 0x8000_001F, memory encryption,
   * unless the VM is of type SEV, SEV_ES or SNP.
   * @throws RangeError ERR_KVM_INVALID_ARG for memory that is out of range or more than the host has; KvmError when
   *   the kernel refuses the VM: EINVAL where it has no private memory. Nothing stays open then.
   */
  constructor(hv: Hypervisor, { memory, privateMemory = false, type, cpus = 1 }: MachineOptions) {
    checkMachineMemory(memory);
    integer('cpus', cpus, MAX_MACHINE_CPUS, 1);
    try {
      this.vm = this.#open(
        hv.createVm({ type: type ?? (privateMemory ? VmType.SW_PROTECTED : VmType.DEFAULT) }),
      );
      this.memory = this.#open(this.vm.allocate(memory));
      const slot = { slot: 0, guestPhysAddr: 0, memory: this.memory };
      if (privateMemory) {
        this.guestMemfd = this.#open(this.vm.createGuestMemfd(memory));
        this.vm.setUserMemoryRegion2({ ...slot, guestMemfd: this.guestMemfd });
        this.vm.enableCap({ cap: Cap.EXIT_HYPERCALL, args: [1 << Hypercall.MAP_GPA_RANGE] });
      } else {
        this.vm.setUserMemoryRegion(slot);
      }
      this.vm.setTssAddr(TSS_ADDRESS);
      const cpuid = cpuidOf(hv, this.vm.type, privateMemory);
      this.vcpus = Array.from({ length: cpus }, (_, id) => this.#open(this.vm.createVcpu(id)));
      this.vcpu = this.vcpus[0]!;
      for (const vcpu of this.vcpus) vcpu.setCpuid2(cpus === 1 ? cpuid : numbered(cpuid, vcpu.id, cpus));
    } catch (error) {
      this.close();
      throw error;
    }
  }

  #open<T extends Disposable>(object: T): T {
    this.#opened.push(object);
    return object;
  }

  /** Where the stack and the page tables of long mode are: the end of guest memory. */
  get reserved(): Range {
    const end = this.memory.size;
    return { start: end - tablesSize() - STACK_SIZE * this.vcpus.length, end };
  }

  /**
   * Places the program and makes the vCPUs ready to run it: each begins at its entry, with its number in RDX.
   *
   * Real mode: every segment at 0, but the code segment at the entry's 64 KiB, the stack below FLAT_ADDRESS, or below
   * 0xff00 where the program is there. Long mode: 64-bit at privilege 0, the first 4 GiB
   * mapped one to one, the stacks and the page tables in `reserved`. Interrupts are off, other registers 0. The stack of each
   * further vCPU is 16 KiB below the one before, or 256 bytes in real mode.
   * @param regs registers to begin with instead
   * @throws VmexitError ERR_KVM_BAD_GUEST when it does not fit, before anything is written
   */
  load(image: GuestImage, regs: Input<Partial<Regs>> = {}): void {
    const { vcpus, memory, reserved } = this;
    const long = image.mode === 'long';
    const tables = reserved.end - tablesSize();
    const base = long ? 0 : image.entry - (image.entry % SEGMENT);
    const isLow = image.segments.some(({ address }) => address < FLAT_ADDRESS);
    const stack = long ? tables : isLow ? HIGH_STACK : FLAT_ADDRESS;
    const stackSize = long ? STACK_SIZE : REAL_STACK;
    if (!long && stack - stackSize * vcpus.length < LOWEST_STACK)
      throw badGuest(image.name, `leaves no room for the stacks of ${vcpus.length} vCPUs in real mode`);
    placeImage(image, memory, long ? reserved : undefined);
    for (const vcpu of vcpus) {
      if (long) enterLongMode(vcpu, memory, { tables });
      else {
        enterRealMode(vcpu);
        vcpu.changeSregs({ cs: { base: BigInt(base), selector: base / 16 } });
      }
      vcpu.setRegs({
        rip: image.entry - base,
        rsp: stack - vcpu.id * stackSize,
        rdx: vcpu.id,
        rflags: RFLAGS,
        ...regs,
      });
    }
  }

  /** Idempotent. */
  close(): void {
    for (const object of this.#opened.splice(0).reverse()) object[Symbol.dispose]();
  }

  /** As close(): for `using`. */
  [Symbol.dispose](): void {
    this.close();
  }
}

/** @throws RangeError ERR_KVM_INVALID_ARG for a size that no Machine on this host can have. Opens nothing. */
export function checkMachineMemory(memory: number): void {
  const expected = 'whole pages of 4096 bytes, from 64K to 3G (the fourth GiB is where devices are)';
  if (memory < MIN_MACHINE_MEMORY || memory > MAX_MACHINE_MEMORY)
    throw outOfRange('memory', memory, expected);
  pages('memory', memory);
  const host = hostMemory();
  if (memory > host) throw outOfRange('memory', memory, `at most the ${host} bytes that this host has`);
}

/** Bytes; a browser tells of no such number. */
const hostMemory = (): number =>
  globalThis.process?.getBuiltinModule?.('node:os').totalmem() ?? Number.POSITIVE_INFINITY;

/** APM volume 3, E.4.17. */
const MEMORY_ENCRYPTION = 0x8000_001f;
const ENCRYPTED: readonly number[] = [VmType.SEV, VmType.SEV_ES, VmType.SNP];

/**
 * What this KVM and processor offer to a VM of the type. KVM offers SEV to all; a guest that is told of it reads an MSR
 * that others do not have. With private memory the guest is told that it may ask for conversions.
 */
function cpuidOf(hv: Hypervisor, type: number, privateMemory: boolean) {
  const entries = hv
    .getSupportedCpuid()
    .filter((entry) => entry.function !== MEMORY_ENCRYPTION || ENCRYPTED.includes(type));
  const features = entries.find((entry) => entry.function === KvmCpuid.FEATURES);
  // KVM leaves this bit to the VMM, which has to serve the requests (cpuid.rst, KVM_FEATURE_HC_MAP_GPA_RANGE).
  if (features && privateMemory) features.eax = (features.eax | (1 << KvmFeature.HC_MAP_GPA_RANGE)) >>> 0;
  return entries;
}

/** What tells a processor its number, and how many there are (SDM volume 2, CPUID; APM volume 3, E.4.17). */
function numbered(entries: readonly CpuidEntry[], id: number, cpus: number): CpuidEntry[] {
  return entries.map((entry) => {
    if (entry.function === CPUID_FEATURES) {
      const ebx = ((entry.ebx & 0xffff) | (cpus << 16) | (id << 24)) >>> 0;
      return { ...entry, ebx, edx: (entry.edx | HTT) >>> 0 };
    }
    if (TOPOLOGY.has(entry.function)) return { ...entry, edx: id };
    return entry.function === CPUID_AMD_TOPOLOGY ? { ...entry, eax: id } : entry;
  });
}
const CPUID_FEATURES = 1;
/** Several logical processors share the package: EBX[23:16] counts. */
const HTT = 1 << 28;
const TOPOLOGY: ReadonlySet<number> = new Set([0xb, 0x1f, 0x8000_0026]);
const CPUID_AMD_TOPOLOGY = 0x8000_001e;
