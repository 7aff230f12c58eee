/** The usual small machine: one vCPU, guest memory from address 0, and a program placed in it. */
import { pages } from '../hypervisor/args.ts';
import { outOfRange } from '../hypervisor/errors.ts';
import type { GuestMemfd } from '../hypervisor/guest-memfd.ts';
import type { GuestMemory } from '../hypervisor/guest-memory.ts';
import type { Hypervisor } from '../hypervisor/hypervisor.ts';
import type { Range } from '../hypervisor/ranges.ts';
import type { Vcpu } from '../hypervisor/vcpu.ts';
import type { Regs } from '../hypervisor/vcpu-state.ts';
import type { Vm } from '../hypervisor/vm.ts';
import { Cap } from '../uapi/cap.ts';
import { Hypercall, KvmCpuid, KvmFeature, VmType } from '../uapi/constants.ts';
import type { Input } from '../uapi/layout.ts';
import { FLAT_ADDRESS, type GuestImage, placeImage } from './image.ts';
import { enterLongMode, enterRealMode, tablesSize } from './modes.ts';

const KIB = 2 ** 10;
const GIB = 2 ** 30;

/** Guest memory in bytes: room for the tables of long mode, and nothing where the devices of a PC are. */
export const MIN_MACHINE_MEMORY = 64 * KIB;
/** The most guest memory that a Machine has, in bytes: 3 GiB, below where a PC has its devices. */
export const MAX_MACHINE_MEMORY = 3 * GIB;

/** What a program in long mode finds below the page tables, in bytes. */
const STACK_SIZE = 16 * KIB;

/** What a segment of real mode reaches, in bytes; and where the stack of a program is that itself is low. */
const SEGMENT = 64 * KIB;
const HIGH_STACK = 0xff00;

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
}

/**
 * The usual small machine: one vCPU with the host's CPUID, and guest memory from address 0. It owns what it
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
  /** Its one vCPU, number 0. */
  readonly vcpu: Vcpu;
  /** Guest memory, from guest-physical address 0: slot 0. */
  readonly memory: GuestMemory;
  /** The private side of the same slot. */
  readonly guestMemfd: GuestMemfd | undefined;
  readonly #opened: Disposable[] = [];

  /**
   * Makes the VM, its memory in slot 0, and vCPU 0 with the host's CPUID: without leaf 0x8000_001F, memory encryption,
   * unless the VM is of type SEV, SEV_ES or SNP.
   * @throws RangeError ERR_KVM_INVALID_ARG for memory that is out of range or more than the host has; KvmError when
   *   the kernel refuses the VM: EINVAL where it has no private memory. Nothing stays open then.
   */
  constructor(hv: Hypervisor, { memory, privateMemory = false, type }: MachineOptions) {
    checkMachineMemory(memory);
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
      this.vcpu = this.#open(this.vm.createVcpu(0));
      this.vcpu.setCpuid2(cpuidOf(hv, this.vm.type, privateMemory));
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
    return { start: end - tablesSize() - STACK_SIZE, end };
  }

  /**
   * Places the program and makes the vCPU ready to run it.
   *
   * Real mode: every segment at 0, but the code segment at the entry's 64 KiB, the stack below FLAT_ADDRESS, or below
   * 0xff00 where the program is there. Long mode: 64-bit at privilege 0, the first 4 GiB
   * mapped one to one, the stack and the page tables in `reserved`. Interrupts are off, other registers 0.
   * @param regs registers to begin with instead
   * @throws VmexitError ERR_KVM_BAD_GUEST when it does not fit, before anything is written
   */
  load(image: GuestImage, regs: Input<Partial<Regs>> = {}): void {
    const { vcpu, memory, reserved } = this;
    const long = image.mode === 'long';
    placeImage(image, memory, long ? reserved : undefined);
    const tables = reserved.end - tablesSize();
    if (long) {
      enterLongMode(vcpu, memory, { tables });
      vcpu.setRegs({ rip: image.entry, rsp: tables, rflags: RFLAGS, ...regs });
      return;
    }
    enterRealMode(vcpu);
    const base = image.entry - (image.entry % SEGMENT);
    vcpu.changeSregs({ cs: { base: BigInt(base), selector: base / 16 } });
    const isLow = image.segments.some(({ address }) => address < FLAT_ADDRESS);
    vcpu.setRegs({
      rip: image.entry - base,
      rsp: isLow ? HIGH_STACK : FLAT_ADDRESS,
      rflags: RFLAGS,
      ...regs,
    });
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
