/** A virtual processor: run it, and see why it stopped. */
import { Cap } from '../uapi/cap.ts';
import { type Dialect, dialects } from '../uapi/dialects.ts';
import { Errno } from '../uapi/errno.ts';
import { Exit, exitName } from '../uapi/exit.ts';
import { decodeExit, describeExit, type KvmExit } from '../uapi/exits.ts';
import { ioctls } from '../uapi/ioctls.ts';
import { object } from './args.ts';
import type { Observer } from './backend.ts';
import { CoalescedRing } from './coalesced-ring.ts';
import { diagnostics } from './diagnostics.ts';
import { DirtyRing } from './dirty-ring.ts';
import { closed, UnavailableError, VmexitError, wrongType } from './errors.ts';
import type { ExitArms } from './exit-arms.ts';
import { type Fd, failed } from './fd.ts';
import { type Inspect, inspect, shown, text } from './inspect.ts';
import { RunPage } from './run-page.ts';
import { AsyncRuns, type StartOptions, serve } from './vcpu-start.ts';
import { VcpuThreads } from './vcpu-threads.ts';

/** More exits than any one instruction has: a completion that takes longer is a bug to be shown, not served. */
const MAX_COMPLETIONS = 65_536;

const CANNOT_OBSERVE =
  "KVM's guests run on the processor itself, and it tells of exits alone: only the simulator can be observed";

/** Serves exits of some kind; a MemoryFaultService is one. */
export interface ExitHandler {
  /**
   * Looks at an exit, and serves it if it is of this handler's kind.
   * @returns whether it was this one's exit and the guest can run on; a promise of it from one who must wait for what
   *   the event loop brings
   */
  handle(vcpu: Vcpu, exit: number): boolean | Promise<boolean>;
  /** Asked before the guest runs, and after it has, before its exit is served: throws what ends the run. */
  check?(): void;
}

/**
 * A virtual processor. run() it until something needs the VMM, and read what that is in place. Close what
 * vm.createVcpu() gave, or use `using`.
 */
export class Vcpu extends VcpuThreads implements Disposable, AsyncIterable<number> {
  /** The vCPU's number, which is its initial APIC id. */
  readonly id: number;
  /** What Hypervisor.kick() takes, from any thread of this process. */
  readonly kickId: number;
  readonly #page: RunPage;
  /** The ABI of memory faults. What it says is given in mainline's words. */
  readonly #dialect: Dialect;
  readonly #run: (timeoutMs?: number) => number;
  #async: AsyncRuns | undefined;
  #outcome: number | undefined;
  #coalesced: CoalescedRing | undefined;
  #ring: DirtyRing | undefined;

  /** Made by Vm.createVcpu(). */
  constructor(fd: Fd, id: number, checkExtension: (cap: number) => number) {
    super(fd, checkExtension);
    this.id = id;
    this.#dialect = dialects[fd.backend.dialect ?? 'mainline'];
    this.#page = new RunPage(fd.backend.bytes(fd.handle), this.#dialect);
    this.#run = fd.backend.runner(fd.handle);
    this.kickId = fd.backend.kickId(fd.handle);
  }

  /** kvm_run, raw: exit_reason as it stands, stale or not, and the fields that every exit has. */
  get raw(): RunPage {
    return this.#page;
  }
  /** The port access after Exit.IO, in place. */
  get io() {
    return this.#page.io;
  }
  /** The access to memory-mapped I/O after Exit.MMIO, in place. */
  get mmio() {
    return this.#page.mmio;
  }
  /** The fault after Exit.MEMORY_FAULT or MEMORY_POISONED, in place. */
  get memoryFault() {
    return this.#page.memoryFault;
  }
  /** The call after Exit.HYPERCALL, in place. Set `ret` before the guest runs on. */
  get hypercall() {
    return this.#page.hypercall;
  }
  /**
   * The access after Exit.X86_RDMSR or X86_WRMSR (KVM_CAP_X86_USER_SPACE_MSR, since 5.10), in place: `index`, `reason`
   * (MsrExitReason bits), and `data`, which a WRMSR gives and a RDMSR waits for: set it, or set `error` to 1, and the guest
   * gets #GP(0) instead. KVM begins with `error` 0 and `data` of a RDMSR 0.
   * @example
   * ```ts
   * import { Cap, Exit, enterRealMode, exitName, guest, MsrExitReason, openHypervisor } from 'vmexit';
   *
   * const hv = openHypervisor();
   * const vm = hv.createVm();
   * vm.enableCap({ cap: Cap.X86_USER_SPACE_MSR, args: [MsrExitReason.UNKNOWN] });
   * const ram = vm.allocate(0x1_0000);
   * vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memory: ram });
   * ram.write(
   *   0x1000,
   *   guest(
   *     16,
   *     `
   *     66 b9 00 4f 4f 47 | mov ecx, 0x474f4f00
   *     0f 32             | rdmsr
   *     e6 10             | out 0x10, al
   *     `,
   *   ).code,
   * );
   * const vcpu = vm.createVcpu();
   * enterRealMode(vcpu);
   * vcpu.setRegs({ rip: 0x1000, rflags: 2 });
   *
   * if (vcpu.run(5000) === Exit.X86_RDMSR) vcpu.msr.data = 42n;
   * console.log(`MSR 0x${vcpu.msr.index.toString(16)}`);
   * console.log(`${exitName(vcpu.run(5000))}: ${vcpu.io.value}`);
   * for (const opened of [vcpu, ram, vm, hv]) opened.close();
   * // prints: MSR 0x474f4f00
   * // prints: IO: 42
   * ```
   */
  get msr(): ExitArms['msr'] {
    return this.#page.arms.msr;
  }
  /**
   * What Hyper-V's guest asked after Exit.HYPERV, in place: by `type` (HypervExit) `synic`, `hcall` or `syndbg` holds.
   * Set `hcall.result` or `syndbg.status`.
   */
  get hyperv(): ExitArms['hyperv'] {
    return this.#page.arms.hyperv;
  }
  /** The hypercall of a Xen guest after Exit.XEN, in place. Set `hcall.result`, which the guest receives in RAX. */
  get xen(): ExitArms['xen'] {
    return this.#page.arms.xen;
  }
  /**
   * The TDVMCALL after Exit.TDX (since 6.16), in place: by `nr`, the call's leaf, `getQuote` (0x10002),
   * `getTdvmcallInfo` (0x10000) or `setupEventNotify` (0x10004) holds. Set `unknown.ret`, which is where each of them has its own. Only hardware with TDX shows it.
   */
  get tdx(): ExitArms['tdx'] {
    return this.#page.arms.tdx;
  }
  /**
   * The request for certificates after Exit.SNP_REQ_CERTS, in place. Set `ret`: 0, or a positive errno (ENOSPC, EAGAIN,
   * EIO). Only hardware with SEV-SNP shows it.
   */
  get snpReqCerts(): ExitArms['snpReqCerts'] {
    return this.#page.arms.snpReqCerts;
  }
  /** The vector after Exit.IOAPIC_EOI, in place. */
  get eoi() {
    return this.#page.eoi;
  }
  /** Registers that run() copies out and in without an ioctl (KVM_CAP_SYNC_REGS, since 4.17). */
  get syncRegs() {
    return this.#page.syncRegs;
  }

  /**
   * The ring of coalesced writes in this vCPU's mapping, which is the VM's: see Vm.registerCoalescedMmio().
   * @throws UnavailableError where KVM_CAP_COALESCED_MMIO is 0, as in the simulator
   */
  get coalescedRing(): CoalescedRing {
    if (this.#coalesced === undefined) {
      const page = this.checkExtension(Cap.COALESCED_MMIO);
      if (page === 0)
        throw new UnavailableError('feature', 'no writes are coalesced here: KVM_CAP_COALESCED_MMIO is 0');
      this.#coalesced = new CoalescedRing(this.#page, page);
    }
    return this.#coalesced;
  }

  /**
   * The pages that this vCPU has written, where its VM has rings (Cap.DIRTY_LOG_RING_ACQ_REL); undefined where it has none.
   * @throws KvmError with the errno of mmap(2); VmexitError ERR_KVM_CLOSED
   */
  get dirtyRing(): DirtyRing | undefined {
    const { backend, handle } = this.fd;
    this.#ring ??= DirtyRing.of(backend, handle);
    return this.#ring;
  }

  /** Whether close() was called. */
  get closed(): boolean {
    return this.fd.closed;
  }

  /**
   * Runs the guest until something needs the VMM (KVM_RUN). Synchronous: no JS runs in this thread meanwhile.
   * @param timeoutMs milliseconds, above 0 and below 2^31; without it, no limit
   * @returns what ended the run, one of `Exit`: an exit reason (0 or more, and as it is if this version does not
   *   know it); Exit.MEMORY_FAULT or MEMORY_POISONED, with `memoryFault` valid; FAULT (EFAULT without fault
   *   information); INTERRUPTED (a signal, a kick or immediateExit); AGAIN; or DEADLINE. Allocates nothing.
   * @throws KvmError with any other errno; RangeError ERR_KVM_INVALID_ARG; VmexitError ERR_KVM_CLOSED
   * @example
   * ```ts
   * import { Exit, enterRealMode, exitName, guest, openHypervisor } from 'vmexit';
   *
   * const hv = openHypervisor();
   * const vm = hv.createVm();
   * const ram = vm.allocate(0x1_0000);
   * vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memory: ram });
   * ram.write(
   *   0x1000,
   *   guest(
   *     16,
   *     `
   *     b0 2a | mov al, 42
   *     e6 10 | out 0x10, al
   *     f4    | hlt
   *     `,
   *   ).code,
   * );
   * const vcpu = vm.createVcpu();
   * enterRealMode(vcpu);
   * vcpu.setRegs({ rip: 0x1000, rflags: 2 });
   *
   * const exit = vcpu.run(5000);
   * if (exit === Exit.IO) console.log(`${vcpu.io.value} to port ${vcpu.io.port}`);
   * console.log(exitName(vcpu.run(5000)));
   * for (const opened of [vcpu, ram, vm, hv]) opened.close();
   * // prints: 42 to port 16
   * // prints: HLT
   * ```
   */
  run(timeoutMs?: number): number {
    if (this.fd.closed) throw closed('vCPU');
    if (diagnostics.exit.hasSubscribers) return this.#runTold(timeoutMs);
    // Node-API is slow to find that an argument is undefined.
    return this.#conclude(timeoutMs === undefined ? this.#run() : this.#run(timeoutMs));
  }

  /**
   * KVM_RUN as run() has it, on a thread of the vCPU's own, while the event loop lives on. That thread begins with the first
   * such run, and ends with the vCPU.
   * @param timeoutMs as run() has it
   * @returns what run() gives
   * @throws as run(); VmexitError ERR_KVM_VCPU_RUNNING while another run is in progress, ERR_KVM_CLOSED when it is closed
   *   meanwhile; KvmError EAGAIN when the host gives no more threads
   * @example
   * ```ts
   * import { exitName, flatImage, Machine, openHypervisor } from 'vmexit';
   *
   * const hv = openHypervisor();
   * const machine = new Machine(hv, { memory: 0x10_0000 });
   * machine.load(flatImage(Uint8Array.of(0xeb, 0xfe), 'real')); // jmp $
   * let turns = 0;
   * const timer = setInterval(() => turns++, 1);
   * console.log(exitName(await machine.vcpu.runAsync(1000)), turns > 0);
   * clearInterval(timer);
   * machine.close();
   * hv.close();
   * // prints: DEADLINE true
   * ```
   */
  runAsync(timeoutMs: number = Number.POSITIVE_INFINITY): Promise<number> {
    return new Promise((resolve, reject) => this.#begin(timeoutMs, resolve, reject));
  }

  #begin(timeoutMs: number, then: (outcome: number) => void, thrown: (error: unknown) => void): void {
    const { backend, handle } = this.fd;
    this.#async ??= new AsyncRuns(backend, handle);
    const begun = diagnostics.exit.hasSubscribers ? performance.now() : undefined;
    const result = this.#async.begin(timeoutMs, (result) => {
      let outcome: number;
      try {
        if (this.fd.closed) throw closed('vCPU');
        outcome = this.#conclude(result);
        if (begun !== undefined) this.#tell((performance.now() - begun) * 1000);
      } catch (error) {
        thrown(error);
        return;
      }
      then(outcome);
    });
    if (result !== 0) throw failed(result, ioctls.KVM_RUN);
  }

  /**
   * Runs the guest on a thread of the vCPU's own and serves its exits on this one, until an exit that no handler serves. The
   * event loop lives on: timers, sockets, other vCPUs. Each exit costs a hand-over between two threads: what exits much is
   * faster by run(), in a worker.
   * @param handlers asked in order about each exit; a kick's INTERRUPTED is not one
   * @returns the exit that nobody serves; Exit.STOPPED, Exit.DEADLINE
   * @throws what a handler throws, and as runAsync()
   * @example
   * ```ts
   * import { Exit, exitName, flatImage, Machine, openHypervisor } from 'vmexit';
   *
   * const hv = openHypervisor();
   * const machine = new Machine(hv, { memory: 0x10_0000 });
   * // mov al, 42; out 0x10, al; hlt
   * machine.load(flatImage(Uint8Array.of(0xb0, 42, 0xe6, 0x10, 0xf4), 'real'));
   * const port = {
   *   handle(vcpu: typeof machine.vcpu, exit: number): boolean {
   *     if (exit === Exit.IO) console.log(`port ${vcpu.io.port}: ${vcpu.io.value}`);
   *     return exit === Exit.IO;
   *   },
   * };
   * const end = await machine.vcpu.start([port], { timeoutMs: 5000 });
   * console.log(exitName(end));
   * machine.close();
   * hv.close();
   * // prints: port 16: 42
   * // prints: HLT
   * ```
   */
  async start(handlers: readonly ExitHandler[], options: StartOptions = {}): Promise<number> {
    if (!Array.isArray(handlers)) throw wrongType('handlers', handlers, 'an array of exit handlers');
    const served = {
      begin: (ms: number, then: (outcome: number) => void, thrown: (error: unknown) => void) =>
        this.#begin(ms, then, thrown),
      end: () => this.#async?.end(),
      now: this.#now,
    };
    return serve(this, served, handlers, object('options', options));
  }

  /**
   * The exits one by one, by runAsync(): `for await (const exit of vcpu)`. The guest runs on when the next one is asked for. It
   * ends with stop(); whoever leaves the loop leaves the vCPU as its last exit left it.
   */
  async *[Symbol.asyncIterator](): AsyncIterator<number> {
    for (;;) {
      const exit = await this.runAsync();
      if (exit === Exit.STOPPED) return;
      yield exit;
    }
  }

  /** A recording has the times that it is asked for, so that its replay ends where it did. */
  #now = (): number => {
    const { input } = this.fd.backend;
    return input === undefined ? performance.now() : input('clock', () => performance.now());
  };

  #runTold(timeoutMs: number | undefined): number {
    const begun = performance.now();
    const result = this.#run(timeoutMs);
    const us = (performance.now() - begun) * 1000;
    const outcome = this.#conclude(result);
    this.#tell(us);
    return outcome;
  }
  #tell(us: number): void {
    diagnostics.exit.publish({ vcpu: this.id, exit: this.exit, us });
  }

  #conclude(result: number): number {
    // Whatever the page says, these are what they are.
    if (result === Exit.INTERRUPTED || (result >= 0 && result !== this.#dialect.signal.exitReason)) {
      this.#outcome = result;
      return result;
    }
    return this.#settle(result);
  }

  #settle(result: number): number {
    const page = this.#page;
    const outcome =
      result === -Errno.ETIME || result === -Errno.ECANCELED
        ? (result as Exit)
        : this.#dialect.outcome(Math.min(result, 0), page.exitReason);
    if (outcome === null) throw failed(Math.min(result, -1), ioctls.KVM_RUN);
    if (outcome === Exit.MEMORY_FAULT || outcome === Exit.MEMORY_POISONED) {
      // Read, so that no later EINTR finds it standing. Other reasons are left: some must survive KVM_RUN with
      // immediate_exit (api.rst, KVM_CAP_MEMORY_FAULT_INFO, and the mail that it came with).
      page.exitReason = Exit.UNKNOWN;
    }
    this.#outcome = outcome;
    return outcome;
  }

  /** What the last run() gave. */
  get outcome(): number {
    return this.#outcome ?? Exit.UNKNOWN;
  }

  /** The last run's exit as an object of its own, with every field that its reason has. Allocates. */
  get exit(): KvmExit {
    return decodeExit(this.outcome, this.#page.view, this.#dialect);
  }

  /**
   * While set, run() completes a pending port or memory-mapped access and then gives INTERRUPTED, before the
   * guest's next instruction (KVM_CAP_IMMEDIATE_EXIT). The kernel never clears it.
   */
  get immediateExit(): boolean {
    return this.#page.immediateExit;
  }
  set immediateExit(on: boolean) {
    this.#page.immediateExit = on;
  }

  /**
   * Finishes the instruction that the last exit interrupted. Needed before registers are set or state is saved:
   * the pending write-back would override it. A read-modify-write of memory-mapped I/O exits again on the way.
   * @param service answers such an exit, as after run()
   */
  complete(service: (exit: number) => void): void {
    const before = this.immediateExit;
    this.immediateExit = true;
    try {
      for (let i = 0; i < MAX_COMPLETIONS; i++) {
        const exit = this.run();
        if (exit === Exit.INTERRUPTED) return;
        // It is the next run's.
        if (exit === Exit.STOPPED) {
          this.stop();
          return;
        }
        service(exit);
      }
    } finally {
      this.immediateExit = before;
    }
    throw new VmexitError('ERR_KVM_NO_PROGRESS', `one instruction has exited ${MAX_COMPLETIONS} times`);
  }

  /** Instructions that the guest has completed, by which the simulator tells time. Undefined on KVM: nobody counts. */
  get completed(): bigint | undefined {
    const { backend, handle } = this.fd;
    return backend.completed?.(handle);
  }

  /**
   * Tells an observer what the guest does between exits, from the next run on; without one, nobody. A guest whose
   * instructions are told runs them one by one: the same exits, much later.
   * @throws UnavailableError on KVM, which knows of no single instructions; what the observer throws ends run()
   */
  observe(observer?: Observer): void {
    if (observer !== undefined) object('observer', observer);
    const { backend, handle } = this.fd;
    if (backend.observe === undefined) throw new UnavailableError('feature', CANNOT_OBSERVE);
    backend.observe(handle, observer);
  }

  /** What Node shows of it in a terminal: its number and its last exit. No ioctl is made for it. */
  [inspect](depth: number, options: unknown, nodes: Inspect): string {
    if (this.fd.closed) return `Vcpu { id: ${this.id}, closed }`;
    const ran = this.#outcome !== undefined;
    const exit = ran ? text(`${exitName(this.outcome)}: ${describeExit(this.exit)}`) : text('none');
    return shown('Vcpu', { id: this.id, exit }, depth, options, nodes);
  }

  /** Idempotent. */
  close(): void {
    this.#page.close();
    this.#ring?.close();
    this.fd.close();
  }

  /** As close(): for `using`. */
  [Symbol.dispose](): void {
    this.close();
  }
}
