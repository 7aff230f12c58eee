/**
 * Who of the vCPUs that a thread has started runs, and for how long: from the event loop, in ticks of about a millisecond.
 * Which vCPU of a VM is next, and for how many instructions (a quantum), is drawn from the VM's seed. The clock decides only
 * between which two quanta a tick ends, so the guests' processors never know of it.
 *
 * A vCPU that exits is begun again by its `done`, and then goes on with the rest of its quantum. Where `done` has not begun
 * it, the tick ends before anybody else executes an instruction: a handler that waits for no more than promises which are
 * settled already has begun it by the next one, so its run can be replayed too. One that waits for the world lets the others
 * go on meanwhile, and when it answers is an input as any other.
 */

import type { KickWord } from '../threads/kicks.ts';
import type { KvmVm } from '../vm/vm.ts';

/** Instructions that a vCPU executes at most before another one's turn comes. */
const QUANTUM = 2 ** 14;
/** What an exit counts as, in instructions: serving one takes longer than most instructions between two. */
const EXIT = 2 ** 9;
/** Of one quantum, how many slices that end early, because the code is cold. */
const SLICES = 4;
const TICK_MS = 1;
/** A timer may not be set later. */
const LATEST = 2 ** 31 - 1;
/** Milliseconds between two looks at what no word tells, while all are paused. */
const LOOK_MS = 100;

/** As far as it is used here: TypeScript declares it among the DOM's types and Node's. */
interface Channel {
  readonly port1: { onmessage: () => void };
  readonly port2: { postMessage(message: unknown): void };
}
/** Not looked at where nobody asks: Node loads it then. */
const host = globalThis as unknown as {
  readonly setImmediate?: (call: () => void) => void;
  readonly MessageChannel?: new () => Channel;
};

/** Calls back from the event loop, as soon as it has looked at all else. */
const soon: (call: () => void) => void =
  host.setImmediate ?? bySending() ?? ((call) => void setTimeout(call, 0));

/** Browsers let a timer wait for some milliseconds, and a message not. */
function bySending(): ((call: () => void) => void) | undefined {
  if (host.MessageChannel === undefined) return undefined;
  const { port1, port2 } = new host.MessageChannel();
  const calls: (() => void)[] = [];
  port1.onmessage = () => calls.shift()?.();
  return (call) => {
    calls.push(call);
    port2.postMessage(0);
  };
}

/** What a step of a started run gives: how the run has ended, that it is paused, or that it goes on. */
export type Step = number | 'paused' | undefined;

/** A vCPU, as far as it takes turns. */
export interface Taker {
  readonly vm: KvmVm;
  readonly id: number;
  readonly kick: KickWord;
  readonly isOpen: boolean;
  /** Instructions that were begun: cheaper than those that are completed, and the same between two slices. */
  readonly instructions: bigint;
  /** Others may have written to its code: it is compared before it is executed. */
  looksAnew(): void;
}

/** A vCPU's run that takes turns with others. */
export interface Scheduled {
  readonly vcpu: Taker;
  /** Begun by a starter, and not done. */
  readonly started: boolean;
  /** In performance.now()'s time. */
  readonly deadline: number;
  /** Waits for resume(). */
  readonly parked: boolean;
  /** Parked, and somebody asks something else of it by now. */
  readonly released: boolean;
  /** Instructions of a slice, where it makes no difference to the guest how many they are. */
  readonly slice: number;
  /** A part of it. */
  step(instructions: number, exactly: boolean): Step;
  /** @param ms what the last slice took */
  adapt(ms: number): void;
  /** Its deadline has passed, or it was closed. */
  expire(): number;
  /** It is over, with what the next one may need already. */
  finish(): void;
  /** Tells its starter. */
  done(result: number): void;
}

class Scheduler {
  /** What is started in this thread, of each VM in the order of the vCPUs' numbers. */
  readonly #started = new Map<KvmVm, Scheduled[]>();
  /** Whose end is being told: it may begin again. */
  #telling: Scheduled | undefined;
  #armed = false;
  /** In a tick: what is started now needs no other. */
  #ticking = false;
  #sleeper: ReturnType<typeof setTimeout> | undefined;
  readonly #watched = new Set<Scheduled>();

  add(runs: Scheduled): void {
    if (runs === this.#telling) return; // it is where it was
    const { vm, id } = runs.vcpu;
    const all = this.#started.get(vm) ?? [];
    const at = all.findIndex((other) => other.vcpu.id > id);
    all.splice(at < 0 ? all.length : at, 0, runs);
    this.#started.set(vm, all);
    this.wake();
  }

  /** Something has changed for those that wait. */
  readonly wake = (): void => {
    clearTimeout(this.#sleeper);
    this.#sleeper = undefined;
    if (this.#armed || this.#ticking || this.#started.size === 0) return;
    this.#armed = true;
    soon(this.#tick);
  };

  readonly #tick = (): void => {
    this.#armed = false;
    this.#ticking = true;
    let goesOn = false;
    try {
      goesOn = this.#run(performance.now() + TICK_MS);
    } catch (thrown) {
      goesOn = true;
      throw thrown; // by who was called back: an uncaught exception, as from any callback
    } finally {
      this.#ticking = false;
      if (goesOn) this.wake();
      else this.#sleep();
    }
  };

  /** Gives whether anybody can go on. */
  #run(until: number): boolean {
    // What was written to the guests' code since is looked for once a tick.
    let now = performance.now();
    for (const all of this.#started.values())
      for (const { vcpu } of all) {
        vcpu.looksAnew();
        vcpu.kick.beat(now);
      }
    for (; now < until; now = performance.now()) {
      let any = false;
      for (const [vm, all] of [...this.#started]) {
        const outcome = this.#quantum(vm, all, now);
        if (outcome === 'ends') return true;
        any ||= outcome;
      }
      if (!any) return false;
    }
    return true;
  }

  /** Gives whether anybody of the VM could go on; `ends` where the tick has to end. */
  #quantum(vm: KvmVm, all: Scheduled[], now: number): boolean | 'ends' {
    const late = all.find(({ deadline, vcpu }) => deadline <= now || !vcpu.isOpen);
    if (late !== undefined) return this.#done(late, late.expire()) || 'ends';
    const ready = all.filter((runs) => !runs.parked || runs.released);
    if (ready.length === 0) return false;
    const alone = ready.length === 1;
    const runs = alone ? ready[0]! : ready[vm.random.below(ready.length)]!;
    // Of one that is alone nobody could tell where its quanta end.
    let left = alone ? runs.slice : 1 + vm.random.below(QUANTUM);
    let exits = false;
    for (let slices = 0; slices < SLICES && left > 0; ) {
      const before = runs.vcpu.instructions;
      const step: Step = runs.step(left, !alone);
      if (step === 'paused') return true;
      left -= Number(runs.vcpu.instructions - before);
      if (step === undefined) {
        slices++;
        vm.share?.lock.yield();
      } else if (!this.#done(runs, step)) return 'ends';
      else {
        exits = true;
        left -= EXIT;
      }
    }
    if (alone && !exits) runs.adapt(performance.now() - now);
    return true;
  }

  /** Tells how a run has ended; gives whether the next one has begun. */
  #done(runs: Scheduled, result: number): boolean {
    runs.finish();
    this.#telling = runs;
    try {
      runs.done(result);
    } finally {
      this.#telling = undefined;
      if (!runs.started) this.#remove(runs);
    }
    return runs.started;
  }
  #remove(runs: Scheduled): void {
    const { vm } = runs.vcpu;
    const all = this.#started.get(vm)!;
    all.splice(all.indexOf(runs), 1);
    if (all.length === 0) this.#started.delete(vm);
  }

  /** All that are started are paused: until somebody is resumed, or is late. That also keeps the event loop alive. */
  #sleep(): void {
    if (this.#started.size === 0 || this.#sleeper !== undefined || this.#armed) return;
    let next = LOOK_MS;
    for (const all of this.#started.values())
      for (const runs of all) {
        next = Math.min(next, runs.deadline - performance.now());
        if (this.#watched.has(runs)) continue;
        this.#watched.add(runs);
        runs.vcpu.kick.whenChanged(() => {
          this.#watched.delete(runs);
          this.wake();
        });
      }
    this.#sleeper = setTimeout(this.wake, Math.min(Math.max(next, 0), LATEST));
  }
}

/** This thread's. */
export const scheduler = new Scheduler();
