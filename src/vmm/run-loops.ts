/** Several vCPUs of one VM, run together in one thread until their guest ends. */
import { wrongType } from '../hypervisor/errors.ts';
import type { Vcpu } from '../hypervisor/vcpu.ts';
import { Bus } from './bus.ts';
import { type RunEnd, type RunLimits, RunLoop, type RunLoopOptions } from './run-loop.ts';

/**
 * A RunLoop for each vCPU, with the same buses and handlers. One vCPU alone is run by RunLoop.run(); several by RunLoop.start(),
 * each on a thread of its own, with their exits served in this one. The guest ends when all of its vCPUs have halted, or
 * with the first other end of one of them, which stops the others.
 * @example
 * ```ts
 * import { Bus, type Device, flatImage, guest, Machine, openHypervisor, RunLoops } from 'vmexit';
 *
 * const hv = openHypervisor();
 * const machine = new Machine(hv, { memory: 0x10_0000, cpus: 2 });
 * // Each says its number, which is in DL.
 * const code = guest(
 *   16,
 *   `
 *   88 d0 | mov al, dl
 *   e6 10 | out 0x10, al
 *   f4    | hlt
 *   `,
 * );
 * machine.load(flatImage(code.code, 'real'));
 * const heard: number[] = [];
 * const ears: Device = { name: 'ears', read() {}, write: (_, data) => void heard.push(data[0]!) };
 * const end = await new RunLoops(machine.vcpus, { ports: new Bus().attach(0x10, 1, ears) }).run();
 * console.log(end.reason, heard.sort());
 * machine.close();
 * hv.close();
 * // prints: halt [ 0, 1 ]
 * ```
 */
export class RunLoops {
  /** One for each vCPU, in their order. */
  readonly loops: readonly RunLoop[];
  /** Who answers port I/O. */
  readonly ports: Bus;
  /** Who answers accesses to guest-physical memory that no slot has. */
  readonly mmio: Bus;
  #ended: Vcpu;
  readonly #halted: Set<RunLoop>;

  /**
   * @param halted ids of those that have halted for good, as `halted` of another one gave them
   * @throws TypeError ERR_KVM_INVALID_ARG without a vCPU; what RunLoop throws
   */
  constructor(vcpus: readonly Vcpu[], options: RunLoopOptions = {}, halted: readonly number[] = []) {
    if (!Array.isArray(vcpus) || vcpus.length === 0)
      throw wrongType('vcpus', vcpus, 'an array of at least one vCPU');
    const { ports = new Bus(), mmio = new Bus() } = options;
    this.ports = ports;
    this.mmio = mmio;
    this.loops = vcpus.map((vcpu) => new RunLoop(vcpu, { ...options, ports, mmio }));
    this.#ended = vcpus[0]!;
    this.#halted = new Set(this.loops.filter(({ vcpu }) => halted.includes(vcpu.id)));
  }

  /** The ids of those of several vCPUs that have halted: they do not run again, and nothing in their registers says so. */
  get halted(): number[] {
    return [...this.#halted].map(({ vcpu }) => vcpu.id).sort((a, b) => a - b);
  }

  /** Whose end was that of the last run: the last that has halted, or the first that has ended otherwise. */
  get vcpu(): Vcpu {
    return this.#ended;
  }

  /** The exits of all vCPUs so far, by name. */
  get exits(): Readonly<Record<string, number>> {
    const all: Record<string, number> = {};
    for (const { exits } of this.loops)
      for (const [name, count] of Object.entries(exits)) all[name] = (all[name] ?? 0) + count;
    return all;
  }

  /** Ends the run of all once the exits in hand are served. @param value what the run's end tells */
  stop(value = 0): void {
    for (const loop of this.loops) loop.stop(value);
  }

  /** Runs the guest until it ends, or until a limit. May be called again: the guest goes on where it was. @throws as RunLoop.run() */
  async run(limits: RunLimits = {}): Promise<RunEnd> {
    const [only, ...more] = this.loops;
    this.#ended = only!.vcpu;
    if (more.length === 0) return only!.run(limits);
    let end: RunEnd | undefined;
    let failed: { readonly error: unknown } | undefined;
    const stopOthers = (ended: RunLoop): void => {
      for (const loop of this.loops) if (loop !== ended && running.has(loop)) loop.stop();
    };
    const running = new Set(this.loops.filter((loop) => !this.#halted.has(loop)));
    const run = async (loop: RunLoop): Promise<void> => {
      try {
        const mine = await loop.start(limits);
        running.delete(loop);
        if (mine.reason === 'halt') this.#halted.add(loop);
        const first = end === undefined || end.reason === 'halt';
        if (!first || failed !== undefined) return;
        end = mine;
        this.#ended = loop.vcpu;
        if (mine.reason !== 'halt') stopOthers(loop);
      } catch (error) {
        running.delete(loop);
        failed ??= { error };
        stopOthers(loop);
      }
    };
    await Promise.all([...running].map(run));
    if (failed !== undefined) throw failed.error;
    return end ?? { reason: 'halt' };
  }
}
