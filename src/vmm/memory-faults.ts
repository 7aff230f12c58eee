/**
 * The memory-fault service: what to do when KVM_RUN ends with KVM_EXIT_MEMORY_FAULT, or with a guest's request to
 * convert memory (KVM_HC_MAP_GPA_RANGE).
 *
 * It decides from the state of the memory, not from the flags of the fault alone. On VM types whose guests do not
 * choose (KVM_X86_SW_PROTECTED_VM), whether an access is private follows from the page's attribute, so a fault whose
 * flags differ from it comes from a conversion that ran meanwhile, or from what KVM still remembers of the page:
 * obeying the flags would undo the conversion and destroy its data.
 */
import { PAGE_SIZE } from '../hypervisor/args.ts';
import { KvmError, outOfRange, VmexitError } from '../hypervisor/errors.ts';
import { failed } from '../hypervisor/fd.ts';
import type { Slot } from '../hypervisor/memory-map.ts';
import type { Vcpu } from '../hypervisor/vcpu.ts';
import type { Vm } from '../hypervisor/vm.ts';
import { Hypercall, HypercallErrno, MapGpaRange, MemoryFaultFlag, VmType } from '../uapi/constants.ts';
import { Errno, errnoName } from '../uapi/errno.ts';
import { Exit } from '../uapi/exit.ts';
import { ioctls } from '../uapi/ioctls.ts';
import {
  attributesOf,
  Converter,
  type Discard,
  type MemoryState,
  type Refusal,
  refusals,
} from './conversion.ts';
import { type Cause, defaultPolicy, denials, type Policy, type Request } from './policy.ts';
import { ProgressGuard } from './progress-guard.ts';

/** One thing that the service did. */
export interface MemoryEvent {
  /** What had happened. */
  readonly cause: Cause;
  /** The vCPU's id. */
  readonly vcpu: number;
  /** Where: guest-physical, in bytes. */
  readonly gpa: number;
  /** How much, in bytes. */
  readonly size: number;
  /** memory_fault.flags, raw; undefined for a hypercall. */
  readonly flags: number | undefined;
  /**
   * What was done: converted to a state, poisoned pages replaced, stale private pages mapped, nothing but run
   * again, or denied.
   */
  readonly action: MemoryState | 'replace' | 'map' | 'retry' | 'deny';
  /** 0, or what went wrong: a negated errno of the kernel's, or of the hypercall's. */
  readonly result: number;
}

/** How a MemoryFaultService decides, and what it tells. */
export interface MemoryFaultOptions {
  /** Who decides: defaultPolicy without it. */
  readonly policy?: Policy;
  /** Which copy a conversion gives back; `both` without it. */
  readonly discard?: Discard;
  /** Map what became private at once (KVM_PRE_FAULT_MEMORY) instead of by a fault a page. Failures are counted. */
  readonly preFault?: boolean;
  /** How often one instruction may fault at the same page before the run is ended: 64 without it. */
  readonly maxRepeats?: number;
  /** Told of each thing that the service does. */
  readonly trace?: (event: MemoryEvent) => void;
  /** Whether guests choose private or shared by their page tables. Follows from the VM's type without it. */
  readonly guestsChoose?: boolean;
}

/** What a MemoryFaultService has done so far. */
export interface MemoryFaultCounters {
  /** KVM_EXIT_MEMORY_FAULT exits. */
  memoryFaults: number;
  /** Of those, EHWPOISON. */
  poisoned: number;
  /** KVM_HC_MAP_GPA_RANGE exits. */
  hypercalls: number;
  /** Conversions that changed something. */
  readonly conversions: {
    /** Conversions from shared to private. */
    toPrivate: number;
    /** Conversions from private to shared. */
    toShared: number;
  };
  /** Bytes of the ranges of those conversions. */
  readonly bytes: {
    /** Bytes that were made private. */
    toPrivate: number;
    /** Bytes that were made shared. */
    toShared: number;
  };
  /** Faults that needed nothing: races, and what the policy mended. */
  retries: number;
  /** Private pages that KVM still took for MMIO, and that were mapped by KVM_PRE_FAULT_MEMORY instead. */
  stale: number;
  /** Requests that were not granted. */
  refusals: number;
  /** Times that KVM_PRE_FAULT_MEMORY failed after a conversion. The conversion stands. */
  preFaultFailures: number;
  /** Discards that the host refused. The conversion stands; the memory is only held longer. */
  discardFailures: number;
}

/** SNP's C-bit and TDX's shared bit: the guest's page tables say which it wants. */
const choosingTypes: ReadonlySet<number> = new Set([VmType.SNP, VmType.TDX]);

/** So often a fault has come again when it is no race: a conversion elsewhere is over by then. */
const STEADY = 1;
const KNOWN_FLAGS = MemoryFaultFlag.PRIVATE;
const MAX_GPA = 2 ** 52;
const ENCRYPTED = BigInt(MapGpaRange.ENCRYPTED);
const hex = (value: number) => `0x${value.toString(16)}`;

/**
 * Serves memory faults and guests' conversion requests (KVM_EXIT_MEMORY_FAULT; KVM_HC_MAP_GPA_RANGE, which
 * needs KVM_CAP_EXIT_HYPERCALL enabled). It decides from the state of the memory, not from the fault's flags
 * alone. A handler for a RunLoop.
 * @example
 * ```ts
 * import {
 *   flatImage,
 *   Machine,
 *   MemoryAttribute,
 *   MemoryFaultService,
 *   openHypervisor,
 *   RunLoop,
 *   VmType,
 * } from 'vmexit';
 *
 * const hv = openHypervisor({ needs: ['memory-fault'] });
 * const machine = new Machine(hv, { memory: 0x4_0000, type: VmType.SW_PROTECTED });
 * const { memory, vcpu, vm } = machine;
 * // mov byte ptr [0x8000], 42; hlt
 * machine.load(flatImage(Uint8Array.of(0xc6, 0x06, 0x00, 0x80, 42, 0xf4), 'real'));
 * // A private page, with no guest_memfd behind it: the guest's access is a memory fault.
 * vm.setMemoryAttributes({ address: 0x8000, size: 4096, attributes: MemoryAttribute.PRIVATE });
 *
 * const service = new MemoryFaultService(vm, {
 *   policy: ({ cause }) => (cause === 'unbacked' ? 'allow' : 'deny'), // allow: make it shared
 * });
 * const { reason } = await new RunLoop(vcpu, { handlers: [service] }).run({ timeoutMs: 5000 });
 * console.log(`${reason}; ${service.counters.memoryFaults} fault; the host reads ${memory.read(0x8000, 1)[0]}`);
 * machine.close();
 * hv.close();
 * // prints: halt; 1 fault; the host reads 42
 * ```
 */
export class MemoryFaultService {
  readonly #vm: Vm;
  readonly #policy: Policy;
  readonly #converter: Converter;
  readonly #guard: ProgressGuard;
  readonly #preFault: boolean;
  readonly #trace: ((event: MemoryEvent) => void) | undefined;
  readonly #guestsChoose: boolean;
  /** vCPUs whose stale page could not be mapped when it was last tried. */
  readonly #unmapped = new WeakSet<Vcpu>();
  readonly #counters = {
    memoryFaults: 0,
    poisoned: 0,
    hypercalls: 0,
    conversions: { toPrivate: 0, toShared: 0 },
    bytes: { toPrivate: 0, toShared: 0 },
    retries: 0,
    stale: 0,
    refusals: 0,
    preFaultFailures: 0,
  };

  /**
   * @param vm whose faults it serves
   * @throws RangeError ERR_KVM_INVALID_ARG for `discard` and `maxRepeats` that cannot be
   */
  constructor(vm: Vm, options: MemoryFaultOptions = {}) {
    const { policy = defaultPolicy, discard = 'both', preFault = false, maxRepeats = 64 } = options;
    if (discard !== 'both' && discard !== 'private' && discard !== 'none') {
      throw outOfRange('discard', discard, "'both', 'private' or 'none'");
    }
    this.#vm = vm;
    this.#policy = policy;
    this.#converter = new Converter(vm, discard);
    this.#guard = new ProgressGuard(maxRepeats);
    this.#preFault = preFault;
    this.#trace = options.trace;
    this.#guestsChoose = options.guestsChoose ?? choosingTypes.has(vm.type);
  }

  /** What was done so far. */
  get counters(): Readonly<MemoryFaultCounters> {
    return { ...this.#counters, discardFailures: this.#converter.discardFailures };
  }

  /**
   * Deals with an exit, right after run() and before any pre-fault, which would overwrite it.
   * @param exit what run() gave
   * @returns true when it was a memory fault or a conversion request, and the guest can run again; false when it is
   *   somebody else's, as a fault with flags.userfault is
   * @throws VmexitError ERR_KVM_REFUSED when nothing resolves the fault, ERR_KVM_NO_PROGRESS when one instruction
   *   faults again and again; KvmError when the kernel refuses the conversion. The guest must not run on.
   */
  handle(vcpu: Vcpu, exit: number): boolean {
    if (exit === Exit.HYPERCALL) return this.#hypercall(vcpu);
    if (exit === Exit.MEMORY_FAULT) return this.#fault(vcpu, false);
    if (exit === Exit.MEMORY_POISONED) return this.#fault(vcpu, true);
    return false;
  }

  /**
   * Converts [gpa, gpa + size), as a guest's hypercall does, without asking the policy.
   * @param gpa bytes, a multiple of 4096
   * @param size bytes, a multiple of 4096 above 0; all of it in memory slots
   * @throws VmexitError ERR_KVM_REFUSED, with the reason, before anything changes; KvmError from the kernel
   */
  convert(gpa: number, size: number, to: MemoryState): void {
    if (to !== 'private' && to !== 'shared') throw outOfRange('to', to, "'private' or 'shared'");
    const refusal = this.#converter.check(gpa, size, to);
    if (refusal) throw this.#refused(gpa, size, `cannot become ${to}: ${refusal.why}`);
    const result = this.#convert(gpa, size, to);
    if (result < 0) throw failed(result, ioctls.KVM_SET_MEMORY_ATTRIBUTES);
  }

  #convert(gpa: number, size: number, to: MemoryState): number {
    const result = this.#converter.apply(gpa, size, to);
    if (result > 0) {
      const key = to === 'private' ? 'toPrivate' : 'toShared';
      this.#counters.conversions[key]++;
      this.#counters.bytes[key] += result;
    }
    return Math.min(result, 0);
  }

  /** KVM_HC_MAP_GPA_RANGE (hypercalls.rst): gpa, pages, attributes. `ret` is written whatever happens. */
  #hypercall(vcpu: Vcpu): boolean {
    const call = vcpu.hypercall;
    if (call.nr !== Hypercall.MAP_GPA_RANGE) return false;
    this.#counters.hypercalls++;
    // Any 64 bits, as the guest gave them. What does not fit in 52 is no guest memory; below that, numbers are exact.
    const address = call.argNumber(0);
    const size = call.argNumber(1) * PAGE_SIZE;
    const to = (call.arg(2) & ENCRYPTED) !== 0n ? 'private' : 'shared';
    const inRange = address < MAX_GPA && size <= MAX_GPA;

    // Should the policy throw, the guest has been denied.
    let refusal: Refusal | undefined = refusals.denied;
    try {
      refusal = inRange ? this.#grant(vcpu, address, size, to) : refusals.beyond;
      if (refusal === undefined && this.#preFault && to === 'private') this.#map(vcpu, address, size);
    } finally {
      if (refusal) this.#counters.refusals++;
      const result = refusal ? -refusal.errno : 0;
      // After the pre-fault, which would overwrite it.
      call.ret = result;
      const action = refusal === refusals.denied ? 'deny' : to;
      this.#trace?.({
        cause: 'hypercall',
        vcpu: vcpu.id,
        gpa: address,
        size,
        flags: undefined,
        action,
        result,
      });
    }
    return true;
  }

  #grant(vcpu: Vcpu, gpa: number, size: number, to: MemoryState): Refusal | undefined {
    const refusal = this.#converter.check(gpa, size, to);
    if (refusal) return refusal;
    const slot = this.#vm.memoryMap.slotAt(gpa);
    const decision = this.#policy({ cause: 'hypercall', vcpu, gpa, size, action: to, slot });
    if (decision !== 'allow') return decision === 'retry' ? undefined : refusals.denied;
    return this.#convert(gpa, size, to) < 0 ? refusals.failed : undefined;
  }

  #fault(vcpu: Vcpu, poisoned: boolean): boolean {
    const { gpa, size, flags } = vcpu.memoryFault;
    // Whoever set the page's bit brings it in first; then its kind may be asked about.
    if ((flags & MemoryFaultFlag.USERFAULT) !== 0) return false;
    this.#counters.memoryFaults++;
    if (poisoned) this.#counters.poisoned++;
    const repeats = this.#guard.repeats(vcpu, gpa);
    const cause = poisoned ? 'poisoned' : this.#causeOf(gpa, size, flags);
    // Once, or as often as it takes where it fails: any signal interrupts a pre-fault.
    const again = repeats > STEADY && repeats < this.#guard.limit && this.#unmapped.has(vcpu);
    if (
      cause === 'race' &&
      (repeats === STEADY || again) &&
      this.#vm.memoryMap.isPrivate(gpa) &&
      !isPrivate(flags)
    ) {
      return this.#replaceStale(vcpu, gpa, size, flags);
    }
    if (repeats >= this.#guard.limit) throw this.#stuck(vcpu, gpa, size, flags);

    const { action, why } = cause === 'race' ? retry : this.#decide(vcpu, cause, gpa, size, flags);
    const result = why === undefined ? 0 : -HypercallErrno.EPERM;
    this.#trace?.({ cause, vcpu: vcpu.id, gpa, size, flags, action, result });
    if (why !== undefined) {
      this.#counters.refusals++;
      throw this.#refused(gpa, size, why, flags);
    }
    if (action === 'retry') this.#counters.retries++;
    return true;
  }

  /**
   * An access to a page without a slot leaves an MMIO SPTE, and KVM does not derive from the attribute that an access
   * which meets it is private (arch/x86/kvm/mmu/mmu.c, kvm_mmu_page_fault: PFERR_RSVD_MASK). With a slot and made
   * private since, the page faults for ever, for nothing zaps that SPTE: no attribute, no slot, no punch. A pre-fault
   * asks the attribute and maps the private page in its place, with what it holds.
   */
  #replaceStale(vcpu: Vcpu, gpa: number, size: number, flags: number): true {
    const result = this.#map(vcpu, gpa, size);
    if (result === 0) this.#counters.stale++;
    this.#unmapped[result === 0 ? 'delete' : 'add'](vcpu);
    this.#trace?.({ cause: 'stale', vcpu: vcpu.id, gpa, size, flags, action: 'map', result });
    return true;
  }

  /** Asks the policy and does what it says. `why` is there when that does not resolve the fault. */
  #decide(vcpu: Vcpu, cause: Request['cause'], gpa: number, size: number, flags: number): Outcome {
    // Where the page is private already, "make it private" would change nothing, and fault for ever.
    const wanted = cause === 'unbacked' || !isPrivate(flags) ? 'shared' : 'private';
    const action = cause === 'poisoned' ? 'replace' : wanted;
    const slot = this.#vm.memoryMap.slotAt(gpa);
    const decision = this.#policy({ cause, vcpu, gpa, size, action, slot });
    if (decision === 'retry') return retry;
    if (decision !== 'allow') return { action: 'deny', why: denials[cause] };
    return { action, why: this.#resolve(gpa, size, cause, action) };
  }

  /** What a fault means, from slots and attributes as they are now. Unknown flag bits alone mean nothing. */
  #causeOf(gpa: number, size: number, flags: number): Request['cause'] | 'race' {
    const map = this.#vm.memoryMap;
    // What nearly all are: of these nothing has to be listed.
    if (size === PAGE_SIZE && gpa % PAGE_SIZE === 0)
      return this.#causeIn(map.slotAt(gpa), map.attributesAt(gpa), flags) ?? 'race';
    for (const { start, end, slot } of map.pieces(gpa, gpa + size)) {
      for (const { value } of map.attributesWithin(start, end)) {
        const cause = this.#causeIn(slot, value, flags);
        if (cause !== undefined) return cause;
      }
    }
    return 'race';
  }
  #causeIn(slot: Slot | undefined, attributes: number, flags: number): 'unbacked' | 'mismatch' | undefined {
    const pagePrivate = isPrivate(attributes);
    const wantsPrivate = this.#guestsChoose ? isPrivate(flags) : pagePrivate;
    if (wantsPrivate && !(slot !== undefined && this.#vm.memoryMap.hasPrivate(slot))) return 'unbacked';
    return wantsPrivate !== pagePrivate ? 'mismatch' : undefined;
  }

  /** Does what the policy allowed. Gives why that does not resolve the fault, or undefined when it does. */
  #resolve(
    gpa: number,
    size: number,
    cause: Request['cause'],
    action: Request['action'],
  ): string | undefined {
    if (action === 'replace') return this.#replace(gpa, size);
    // What changes nothing would fault for ever: a guest that wants private memory where there is none.
    if (this.#vm.memoryMap.hasAttributes(gpa, gpa + size, attributesOf[action])) return denials[cause];
    // A fault's range is the kernel's, so it is bounded, and pages of no slot can be shared again.
    const refusal = action === 'private' ? this.#converter.check(gpa, size, action) : undefined;
    if (refusal) return `cannot become ${action}: ${refusal.why}`;
    const result = this.#convert(gpa, size, action);
    if (result === 0) return undefined;
    return `cannot become ${action}: KVM_SET_MEMORY_ATTRIBUTES failed with ${errnoName(-result)}`;
  }

  /** Punches poisoned pages out of their guest_memfd: the guest reads zeroes there. */
  #replace(gpa: number, size: number): string | undefined {
    for (const { start, end, slot } of this.#vm.memoryMap.pieces(gpa, gpa + size)) {
      if (slot?.guestMemfd === undefined || slot.guestMemfd.closed)
        return 'has no open guest_memfd to replace pages in';
      const result = slot.guestMemfd.tryPunchHole(slot.guestMemfdOffset + start - slot.start, end - start);
      if (result < 0) return `cannot be replaced: fallocate failed with ${errnoName(-result)}`;
    }
    return undefined;
  }

  /** KVM_PRE_FAULT_MEMORY maps what it can; the rest faults in later as it would have anyway. 0 or a negated errno. */
  #map(vcpu: Vcpu, gpa: number, size: number): number {
    try {
      for (let left = size; left > 0; ) {
        const rest = vcpu.preFaultMemory(gpa + size - left, left);
        if (rest >= left) break;
        left = rest;
      }
      return 0;
    } catch (error) {
      this.#counters.preFaultFailures++;
      return error instanceof KvmError ? error.errno : -Errno.EIO;
    }
  }

  /** The state that a person needs to see what is wrong. */
  #describe(gpa: number, size: number): string {
    const map = this.#vm.memoryMap;
    const slot = map.slotAt(gpa);
    const behind =
      slot === undefined
        ? 'no slot'
        : `slot ${slot.slot} [${hex(slot.start)}, ${hex(slot.end)}) ${
            map.hasPrivate(slot)
              ? 'with guest_memfd'
              : slot.guestMemfd
                ? 'whose guest_memfd was closed'
                : 'without guest_memfd'
          }`;
    const state = map.isPrivate(gpa) ? 'private' : 'shared';
    return `guest memory [${hex(gpa)}, ${hex(gpa + size)}) (now ${state}, ${behind})`;
  }

  #refused(gpa: number, size: number, why: string, flags?: number): VmexitError {
    const by = flags === undefined ? '' : `; the fault's flags are ${hex(flags)}${unknownBits(flags)}`;
    return new VmexitError('ERR_KVM_REFUSED', `${this.#describe(gpa, size)} ${why}${by}`);
  }

  #stuck(vcpu: Vcpu, gpa: number, size: number, flags: number): VmexitError {
    const { rip } = vcpu.getRegs();
    return new VmexitError(
      'ERR_KVM_NO_PROGRESS',
      `vCPU ${vcpu.id} faults again and again at ${this.#describe(gpa, size)}, at the instruction at ` +
        `0x${rip.toString(16)}, with flags ${hex(flags)}${unknownBits(flags)}; an instruction that KVM emulates cannot ` +
        'use private memory, and a policy that answers "retry" must have changed something',
    );
  }
}

/** What was done about a fault; `why` says why that does not resolve it. */
interface Outcome {
  readonly action: MemoryEvent['action'];
  readonly why: string | undefined;
}
const retry: Outcome = { action: 'retry', why: undefined };

const isPrivate = (bits: number): boolean => (bits & MemoryFaultFlag.PRIVATE) !== 0;

const unknownBits = (flags: number): string =>
  flags === (flags & KNOWN_FLAGS) ? '' : ' (with bits that this version does not know)';
