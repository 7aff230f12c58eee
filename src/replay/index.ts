/** A recorded session again: what openHypervisor() has recorded, as a Hypervisor that needs no KVM. */
import { integer, object } from '../hypervisor/args.ts';
import { wrongType } from '../hypervisor/errors.ts';
import { Hypervisor } from '../hypervisor/hypervisor.ts';
import type { ReplayError } from './errors.ts';
import { ReplayFile } from './file.ts';
import type { Source } from './records.ts';
import { Replayer, STALL_MS } from './replay.ts';

/** How a recording is replayed. */
export interface ReplayOptions {
  /**
   * After how many milliseconds without a call of the VMM's a replay that waits for one has failed, while a run of start()'s
   * or a watched EventFd keeps the event loop alive: from 1 to 2^31 - 1; 30,000 without it.
   */
  readonly stallMs?: number;
}

/**
 * A recording that is being replayed. Made by openReplay().
 *
 * The same VMM runs again over `hypervisor`: it makes the same calls and is given what the recorded one was given, in memory
 * and registers too. No guest runs, so neither KVM nor the simulator is needed. The first call that is another one than
 * the recorded throws a ReplayError, and so does each one after it.
 */
export class Replay implements Disposable {
  /** In the place of what openHypervisor() gave: `backend` and `fallback` are as they were. */
  readonly hypervisor: Hypervisor;
  /** How many records there are. */
  readonly records: number;
  /** Whether the recording was ended; false of one that was cut off, which is replayed up to there. */
  readonly complete: boolean;
  readonly #replayer: Replayer;

  /** Made by openReplay(). */
  constructor(source: Source, options: ReplayOptions = {}) {
    const { stallMs = STALL_MS } = object('options', options);
    const { head, records, complete } = source;
    this.records = records;
    this.complete = complete;
    this.#replayer = new Replayer(source, integer('stallMs', stallMs, 2 ** 31 - 1, 1));
    this.hypervisor = new Hypervisor(this.#replayer.backend(), head.fallback);
  }

  /** The number of the last record that was replayed. */
  get position(): number {
    return this.#replayer.position;
  }
  /** Whether all of it was replayed. */
  get ended(): boolean {
    return this.#replayer.ended;
  }
  /** Why it cannot go on, once it cannot. */
  get error(): ReplayError | undefined {
    return this.#replayer.error;
  }

  /** Idempotent. Closes the hypervisor and the file. */
  close(): void {
    this.hypervisor.close();
    this.#replayer.close();
  }

  /** As close(): for `using`. */
  [Symbol.dispose](): void {
    this.close();
  }
}

/**
 * Opens a recording, to run the VMM that has made it again.
 *
 * What the VMM takes from elsewhere (a clock, a file, what somebody types) it must take by Hypervisor.input(): that is
 * recorded, and is the same in the replay. Time limits of run(), kicks and stops are in the recording by what came of them.
 * What other threads write to guest memory is in it where GuestMemory.markDirty() tells of it, or where the memory was shared by
 * GuestMemory.share(). What a recording cannot have is refused when it is made, with ERR_KVM_UNRECORDABLE.
 * @param path what `record` of openHypervisor() was
 * @throws ReplayError `damaged` for a file that is no recording or was altered, before anything runs; RangeError ERR_KVM_INVALID_ARG
 * @example
 * ```ts
 * import { rmSync } from 'node:fs';
 * import { flatImage, type Hypervisor, Machine, openHypervisor, openReplay } from 'vmexit';
 *
 * // rdtsc; hlt
 * const program = flatImage(Uint8Array.of(0x0f, 0x31, 0xf4), 'real');
 * function timeOf(hv: Hypervisor): bigint {
 *   const machine = new Machine(hv, { memory: 0x10_0000 });
 *   machine.load(program);
 *   machine.vcpu.run(5000);
 *   const { rax } = machine.vcpu.getRegs();
 *   machine.close();
 *   hv.close();
 *   return rax;
 * }
 * const then = timeOf(openHypervisor({ record: 'guest.recording' }));
 * const replay = openReplay('guest.recording');
 * console.log(timeOf(replay.hypervisor) === then, replay.ended);
 * replay.close();
 * rmSync('guest.recording');
 * // prints: true true
 * ```
 */
export function openReplay(path: string, options: ReplayOptions = {}): Replay {
  if (typeof path !== 'string') throw wrongType('path', path, 'a path');
  return new Replay(new ReplayFile(path), options);
}
