/** A backend one of whose calls fails before it is made, as a kernel's may at any time. */
import { expect } from 'vitest';
import type { Backend, Handle } from '../../src/hypervisor/backend.ts';
import { Hypervisor, KvmError, type Vm, VmexitError } from '../../src/index.ts';
import { kvmBackend } from '../../src/kvm/backend.ts';
import { simulator } from '../../src/open.ts';
import { Errno, ioctls } from '../../src/uapi/index.ts';
import { inLab } from './limits.ts';

const names = new Map(Object.values(ioctls).map(({ request, name }) => [request, name]));

/** What a call that can fail at any time may give. */
export const FAILURES = ['EINTR', 'EAGAIN', 'ENOMEM', 'EFAULT', 'EBUSY'] as const;
export type Failure = (typeof FAILURES)[number];

/** Calls of the waist that give a negated errno where they fail; of ioctl() and create() the second argument is the request. */
const CALLS = [
  ...[
    'ioctl',
    'create',
    'allocate',
    'reserve',
    'mapGuestMemfd',
    'mapDirtyRing',
    'openMemory',
    'openVm',
    'openVcpu',
  ],
  ...['shareVm', 'shareVcpu', 'fallocate', 'seek', 'madvise', 'pause'],
] as const;

/** Those of its parts. A count of an eventfd's is written and read at once, or not at all. */
const PARTS = {
  eventFds: ['create', 'open', 'watch'],
  userfaults: ['create', 'share', 'open', 'fill', 'zero', 'wake', 'read', 'watch'],
} as const;
const MAKES = /^(open|create|allocate|reserve|map)|\.(open|create)$/;

type Call = (...args: never[]) => unknown;

export class Failing {
  readonly backend: Backend;
  readonly hv: Hypervisor;
  /** Handles that are open. */
  readonly open = new Set<Handle>();
  /** What was called since the count began. */
  calls: string[] = [];
  /** The call that failed, by its name, if one did. */
  failed: string | undefined;
  /** What the call gives. */
  failure: Failure = 'EINTR';
  #at = -1;

  constructor(name: 'kvm' | 'sim') {
    const inner = name === 'kvm' ? kvmBackend() : simulator();
    this.backend = this.#around(inner);
    this.hv = new Hypervisor(this.backend);
  }

  /** From now on the call of this number fails; none without it. */
  arm(at = -1, failure: Failure = 'EINTR'): void {
    this.calls = [];
    this.failed = undefined;
    this.#at = at;
    this.failure = failure;
  }

  /** For what is not to fail, and not to be counted: until rearm() with what this gives. */
  disarm(): [calls: string[], at: number] {
    const saved: [string[], number] = [this.calls, this.#at];
    this.calls = [];
    this.#at = -1;
    return saved;
  }
  rearm(calls: string[], at: number): void {
    this.calls = calls;
    this.#at = at;
  }

  /** What of the simulator's is behind a Vm; undefined on another backend. */
  objectOf<T>(vm: Vm): T | undefined {
    if (this.hv.backend !== 'sim') return undefined;
    return (vm as unknown as { fd: { handle: { object: T } } }).fd.handle.object;
  }

  /** The call's negated errno, if it is its turn. */
  #fails(name: string): number | undefined {
    if (this.calls.push(name) - 1 !== this.#at) return undefined;
    this.failed = name;
    return -Errno[this.failure];
  }

  #call(name: string, call: Call): Call {
    const failable = name.includes('.') || (CALLS as readonly string[]).includes(name);
    return (...args) => {
      const request = name === 'ioctl' || name === 'create' ? names.get(args[1]!) : undefined;
      const result = (failable ? this.#fails(request ?? name) : undefined) ?? call(...args);
      if (typeof result === 'object' && result !== null && MAKES.test(name)) this.open.add(result as Handle);
      if (name === 'close') this.open.delete(args[0]!);
      return result;
    };
  }

  #part<T extends object>(part: keyof typeof PARTS, inner: T): T {
    const calls: readonly string[] = PARTS[part];
    return new Proxy(inner, {
      get: (target, name: keyof T & string) => {
        const call = (target[name] as Call).bind(target);
        const failing = this.#call(`${part}.${name}`, call);
        if (name !== 'watch') return calls.includes(name) ? failing : call;
        // To watch no more makes no call of the kernel's.
        return (...args: never[]) => (args[1] === undefined ? call : failing)(...args);
      },
    });
  }

  #around(inner: Backend): Backend {
    const own: Partial<Backend> = {
      runner: (vcpu) => {
        const run = inner.runner(vcpu);
        const id = inner.kickId(vcpu);
        return (timeoutMs) => {
          const failure = this.#fails('KVM_RUN');
          // That KVM_RUN was interrupted says that it has completed what was pending: a signal must do it.
          if (failure === -Errno.EINTR) inner.kick(id);
          else if (failure !== undefined) return failure;
          return run(timeoutMs);
        };
      },
      starter: (vcpu, done) => {
        const starter = inner.starter(vcpu, done);
        const id = inner.kickId(vcpu);
        const start: typeof starter.start = (...how) => {
          const refused = this.#fails('start');
          if (refused !== undefined) return refused;
          const failure = this.#fails('KVM_RUN');
          if (failure === -Errno.EINTR) inner.kick(id);
          else if (failure !== undefined) {
            setImmediate(done, failure);
            return 0;
          }
          return starter.start(...how);
        };
        return { start, end: () => starter.end() };
      },
      ...(inner.prepare && {
        prepare: (handle, request) => {
          const name = names.get(request)!;
          const prepared = this.#fails(`prepare ${name}`) ?? inner.prepare!(handle, request);
          if (typeof prepared === 'number') return prepared;
          return { bytes: prepared.bytes, issue: () => this.#fails(name) ?? prepared.issue() };
        },
      }),
      eventFds: this.#part('eventFds', inner.eventFds),
      ...(inner.userfaults && { userfaults: this.#part('userfaults', inner.userfaults) }),
    };
    return new Proxy(inner, {
      get: (target, name: keyof Backend) => {
        if (own[name] !== undefined) return own[name];
        const value = target[name];
        return typeof value === 'function' ? this.#call(name, (value as Call).bind(target)) : value;
      },
    });
  }
}

/** Whether it is the error of the call that was made to fail, or has that as its cause. */
export function isFailure(error: unknown, failure: Failure): boolean {
  for (let at = error; at instanceof Error; at = at.cause)
    if (at instanceof KvmError && at.code === failure) return true;
  return false;
}

/** How often each call fails, each time with another errno; and in the lab, which is slow, only one of each of these names. */
export interface Rounds {
  readonly rounds: number;
  readonly inLab?: RegExp;
}

/** Plays it once for each of its calls, which then fails. Gives the names of the calls. */
export async function eachCallOf(failing: Failing, play: () => unknown, { rounds, inLab: names }: Rounds) {
  // What is used again and again is prepared when it is used for the second time.
  for (let i = 0; i < 3; i++) {
    failing.arm();
    await play();
  }
  const { calls } = failing;
  const before = failing.open.size;
  const failed = new Set<string>();
  for (let round = 0; round < rounds; round++) {
    for (const [at, name] of calls.entries()) {
      const isLast = at === calls.lastIndexOf(name);
      if (inLab && names !== undefined && !(isLast && names.test(name))) continue;
      const failure = FAILURES[(at + round) % FAILURES.length]!;
      failing.arm(at, failure);
      try {
        await play();
      } catch (error) {
        // An outcome of KVM_RUN is none to the snapshot, which says so itself.
        const isTold = failing.failed === 'KVM_RUN' && error instanceof VmexitError;
        if (!isFailure(error, failure) && !isTold)
          throw new Error(`after call ${at}, ${failing.failed}, with ${failure}`, { cause: error });
      }
      if (failing.failed !== undefined) failed.add(failing.failed);
      expect(failing.open.size, `open after call ${at}, ${failing.failed}, with ${failure}`).toBe(before);
    }
  }
  failing.arm();
  await play();
  const chosen = inLab && names !== undefined ? calls.filter((name) => names.test(name)) : calls;
  // What was touched once is looked at in another order.
  expect([...failed].sort()).toEqual([...new Set(chosen)].sort());
  return calls;
}

/** Makes something, and closes it again, without failures; the calls in between count. */
export async function unfailing<T extends Disposable>(
  failing: Failing,
  make: () => T,
  use: (made: T) => unknown,
): Promise<void> {
  const [calls, at] = failing.disarm();
  using made = make();
  failing.rearm(calls, at);
  await use(made);
}
