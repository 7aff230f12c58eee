/**
 * The recording backend: another one, with an account of all that goes through. It answers as that one does, and refuses by
 * name what no replay could have.
 */
import type { Backend, Handle, Observer, Reference, Starter } from '../hypervisor/backend.ts';
import { isHandle } from '../hypervisor/backend.ts';
import { dataOf } from '../hypervisor/error-data.ts';
import { ioctls } from '../uapi/ioctls.ts';
import { encoded, fingerprint, HandleId, type Value } from './codec.ts';
import { unrecordable } from './errors.ts';
import { Mapping, written } from './mapping.ts';
import { type Behind, MemoryWatch, type Watched, type WatchedRing, type WatchedVm } from './memory-watch.ts';
import { answers } from './outcomes.ts';
import type { Kind, Sink } from './records.ts';
import { argumentOf, discards, observerNames, referenceOf, refusal, rows, touchesPages } from './waist.ts';

/** What a handle of the recorded backend is here. */
interface Opened {
  readonly id: HandleId;
  readonly handle: Handle;
  readonly memory?: Watched;
  /** Of a VM itself. */
  readonly vm?: WatchedVm;
  /** Of a vCPU. */
  readonly vcpuOf?: WatchedVm;
  /** Of a vCPU or a ring: what VMM and kernel both write. */
  mapping?: Mapping;
  /** Of a vCPU: the ring that it fills. */
  ring?: WatchedRing;
  /** Of a ring: its vCPU. */
  readonly of?: Opened;
  /** Of a vCPU: start() has begun a run that is not done. */
  running?: boolean;
}

/** A call's result beside what it has changed. */
type Got = readonly Value[];

/** What a backend must not have, to keep its record: a faster way around it. */
export function recordingBackend(inner: Backend, sink: Sink, fallback?: string): Backend {
  return new Recorder(inner, sink, fallback).backend();
}

class Recorder {
  readonly #inner: Backend;
  readonly #sink: Sink;
  readonly #watch: MemoryWatch;
  readonly #opened = new WeakMap<Handle, Opened>();
  /** vCPUs and rings whose pages are looked at. */
  readonly #mapped = new Set<Opened>();
  #handles = 0;
  #open = 0;
  /** Of what VMM is told in the middle of a run. */
  readonly #told = new Set<number>();
  #ended = false;
  readonly #zones = new Set<WatchedVm>();

  constructor(inner: Backend, sink: Sink, fallback?: string) {
    this.#inner = inner;
    this.#sink = sink;
    this.#watch = new MemoryWatch(inner);
    const has = (['readStats', 'completed', 'observe', 'ownAccesses'] as const).filter(
      (name) => inner[name] !== undefined,
    );
    sink.begin({ backend: inner.name, dialect: inner.dialect, fallback, has });
  }

  #add(kind: Kind, given: Uint8Array, got: Got): void {
    if (!this.#ended) this.#sink.add({ kind, given, got: encoded(got) });
  }

  /** Makes the call, and keeps it with what came of it. */
  #call<T>(kind: Kind, given: readonly Value[], act: () => T, tell: (result: T) => Got): T {
    const before = encoded(given);
    let result: T;
    try {
      result = act();
    } catch (error) {
      this.#add(kind, before, [true, dataOf(error)]);
      throw error;
    }
    this.#add(kind, before, [false, ...tell(result)]);
    return result;
  }

  #of(handle: Handle): Opened {
    return this.#opened.get(handle) ?? { id: new HandleId(0), handle };
  }
  #id = (handle: Handle): HandleId => this.#of(handle).id;

  /** A call that gives a handle. */
  #make(
    kind: Kind,
    given: readonly Value[],
    act: () => Handle | number,
    also: (id: number, handle: Handle) => Partial<Opened> = () => ({}),
    rest: () => Got = () => [],
  ): Handle | number {
    return this.#call(kind, given, act, (result) => {
      if (!isHandle(result)) return [result, [], [], ...rest()];
      const id = new HandleId(++this.#handles);
      this.#open++;
      this.#opened.set(result, { id, handle: result, ...also(id.id, result) });
      return [id, [], [], ...rest()];
    });
  }

  /** What the VMM has written since to pages that it shares with the kernel, of a vCPU and its ring. */
  #written(vcpu: Opened): Value[] {
    return written(this.#mapped, vcpu, this.#zones.size > 0);
  }
  /** After a run: the same of the kernel's doing, and guest memory. */
  #effects(vcpu: Opened): Got {
    if (vcpu.ring) this.#watch.peek(vcpu.ring);
    return [this.#written(vcpu), this.#watch.collect(), this.#inner.completed?.(vcpu.handle)];
  }

  #ioctl = (
    handle: Handle,
    request: number,
    argument?: number | bigint | Uint8Array,
    references: readonly Reference[] = [],
  ): number => {
    const opened = this.#of(handle);
    const row = rows.get(request);
    const refused = refusal(row, references);
    if (refused !== undefined) throw unrecordable(refused);
    if (row === ioctls.KVM_REGISTER_COALESCED_MMIO && opened.vm) this.#coalesce(opened.vm);
    const touched = touchesPages(row) ? this.#pagesOf(opened) : [];
    const written = touched.flatMap((vcpu) => this.#written(vcpu));
    const given = [opened.id, request, argumentOf(row, argument), references.map(this.#reference), written];
    const bytes = argument instanceof Uint8Array ? argument : undefined;
    const act = () =>
      opened.vm && bytes
        ? this.#watch.issue(opened.vm, row, request, bytes, references, this.#behind(references))
        : this.#inner.ioctl(handle, request, argument, references);
    return this.#call('ioctl', given, act, (result) => [
      result,
      touched.flatMap((vcpu) => this.#written(vcpu)),
      [],
      ...answers(row, argument, references),
    ]);
  };
  #pagesOf(opened: Opened): Opened[] {
    if (opened.mapping) return opened.running ? [] : [opened];
    return [...this.#mapped].filter(({ vcpuOf, running }) => vcpuOf === opened.vm && !running);
  }
  #reference = (reference: Reference): Value => referenceOf(reference, this.#id);
  /** The memory of a slot. */
  #behind([place]: readonly Reference[]): Behind | undefined {
    if (!place || !('memory' in place)) return undefined;
    const { memory } = this.#of(place.memory);
    return memory && { memory, offset: place.offset };
  }

  /** A coalesced ring is one page for all vCPUs of the VM, which a replay could not give to several. */
  #coalesce(vm: WatchedVm): void {
    this.#zones.add(vm);
    this.#checkZones(vm, 0);
  }
  #checkZones(vm: WatchedVm, more: number): void {
    const vcpus = [...this.#mapped].filter(({ vcpuOf }) => vcpuOf === vm);
    if (this.#zones.has(vm) && vcpus.length + more > 1)
      throw unrecordable('a ring of coalesced writes that several vCPUs have (KVM_REGISTER_COALESCED_MMIO)');
  }

  #create = (
    handle: Handle,
    request: number,
    argument: number | bigint | Uint8Array,
    references: readonly Reference[] = [],
  ): Handle | number => {
    const opened = this.#of(handle);
    const row = rows.get(request);
    const refused = refusal(row, references);
    if (refused !== undefined) throw unrecordable(refused);
    if (row === ioctls.KVM_CREATE_VCPU && opened.vm) this.#checkZones(opened.vm, 1);
    const given = [opened.id, request, argumentOf(row, argument), references.map(this.#reference)];
    const also = (_: number, made: Handle) => {
      if (row === ioctls.KVM_CREATE_VM) return { vm: this.#watch.addVm(made) };
      return row === ioctls.KVM_CREATE_VCPU && opened.vm ? { vcpuOf: opened.vm } : {};
    };
    const act = () => this.#inner.create(handle, request, argument, references);
    return this.#make('create', given, act, also, () => answers(row, argument, references));
  };

  /** The pages that are mapped for it, or guest memory. */
  #bytes = (handle: Handle): Uint8Array => {
    const opened = this.#of(handle);
    return this.#call(
      'bytes',
      [opened.id],
      () => this.#inner.bytes(handle),
      (bytes) => {
        const { memory } = opened;
        if (memory !== undefined) return [bytes.length, [], this.#watch.expose(memory)];
        if (bytes.length === 0) return [0, [], []];
        opened.mapping ??= new Mapping(bytes);
        this.#mapped.add(opened);
        return [bytes.length, [[opened.id, ...opened.mapping.changes()]], []];
      },
    );
  };

  #runner = (vcpu: Handle): ((timeoutMs?: number) => number) => {
    const opened = this.#of(vcpu);
    const run = this.#silent('runner', [opened.id], () => this.#inner.runner(vcpu));
    return (timeoutMs) => {
      const lacks = this.#prepare(opened);
      const given = [opened.id, this.#written(opened)];
      const act = () => lacks || (timeoutMs === undefined ? run() : run(timeoutMs));
      const tell = (result: number): Got => [result, ...this.#effects(opened), timeoutMs];
      if (this.#told.size === 0) return this.#call('run', given, act, tell);
      this.#add('runBegin', encoded(given), []);
      return this.#call('runEnd', [opened.id], act, tell);
    };
  };

  #starter = (vcpu: Handle, done: (result: number) => void): Starter => {
    const opened = this.#of(vcpu);
    const finished = (result: number): void => {
      opened.running = false;
      this.#add('done', encoded([opened.id]), [false, result, ...this.#effects(opened)]);
      done(result);
    };
    const starter = this.#silent('starter', [opened.id], () => this.#inner.starter(vcpu, finished));
    const start = (timeoutMs?: number, ends?: boolean): number => {
      const lacks = this.#prepare(opened);
      const given = [opened.id, opened.running ? [] : this.#written(opened)];
      const begun = this.#call(
        'start',
        given,
        () => lacks || starter.start(timeoutMs, ends),
        (result) => [result, [], [], timeoutMs],
      );
      if (begun === 0) opened.running = true;
      return begun;
    };
    // What comes of it is in the run's record.
    return { start, end: () => starter.end() };
  };

  /** Before a run: 0, or the negated errno of one that cannot be recorded, and is not made. */
  #prepare(vcpu: Opened): number {
    this.#watch.look();
    return this.#findRing(vcpu);
  }
  /** In a VM with rings, the vCPU's, mapped once more: 0, or a negated errno. */
  #findRing(vcpu: Opened): number {
    if (!vcpu.vcpuOf?.rings || vcpu.ring !== undefined) return 0;
    const ring = this.#inner.mapDirtyRing(vcpu.handle);
    if (!isHandle(ring)) return ring;
    const { buffer, byteOffset, length } = this.#inner.bytes(ring);
    vcpu.ring = {
      handle: ring,
      vm: vcpu.vcpuOf,
      words: new Int32Array(buffer, byteOffset, length / 4),
      at: 0,
    };
    return 0;
  }

  /** Counts who is told in the middle of runs. */
  #tells<T>(handle: Handle, told: T | undefined): T | undefined {
    if (told) this.#told.add(this.#id(handle).id);
    else this.#told.delete(this.#id(handle).id);
    return told;
  }
  #observer(vcpu: Handle, observer: Observer, names: readonly (keyof Observer)[]): Observer {
    const id = this.#id(vcpu);
    const told =
      (name: keyof Observer) =>
      (...args: Value[]) => {
        // Of an instruction's bytes, a copy: they are the simulator's.
        this.#add('observed', encoded([id, name]), [false, args, [], [], this.#inner.completed?.(vcpu)]);
        (observer[name] as (...args: Value[]) => void)(...args);
      };
    return Object.fromEntries(names.map((name) => [name, told(name)])) as Observer;
  }

  #close = (handle: Handle): void => {
    const opened = this.#opened.get(handle);
    this.#inner.close(handle);
    if (opened === undefined) return;
    if (opened.ring) this.#inner.close(opened.ring.handle);
    this.#opened.delete(handle);
    this.#mapped.delete(opened);
    if (opened.memory) this.#watch.dropMemory(opened.memory);
    this.#add('close', encoded([opened.id]), [false]);
    if (--this.#open > 0 || this.#ended) return;
    this.#ended = true;
    this.#sink.end();
  };

  /** A call whose arguments are handles and plain values, and whose result is one. */
  #plain<T extends Value>(kind: Kind, given: readonly Value[], act: () => T): T {
    return this.#call(kind, given, act, (result) => [result]);
  }
  /** A call that gives nothing, or what a record cannot have. */
  #silent<T>(kind: Kind, given: readonly Value[], act: () => T): T {
    return this.#call(kind, given, act, () => []);
  }

  backend(): Backend {
    const inner = this.#inner;
    const id = this.#id;
    const refuse = (what: string) => (): never => {
      throw unrecordable(what);
    };
    const threads = refuse(
      'a VM, a vCPU or memory that another thread has: what it does there is not seen here',
    );
    const faults = refuse('a userfaultfd: which pages have come is not seen here');
    const { eventFds } = inner;
    return {
      name: inner.name,
      ...(inner.dialect && { dialect: inner.dialect }),
      open: () => this.#make('open', [], () => inner.open()) as Handle,
      ioctl: this.#ioctl,
      create: this.#create,
      ...(inner.readStats && {
        readStats: (stats, offset, bytes) =>
          this.#call(
            'readStats',
            [id(stats), offset, bytes.length],
            () => inner.readStats!(stats, offset, bytes),
            (result) => [result, [], [], bytes.slice()],
          ),
      }),
      allocate: (size) =>
        this.#make(
          'allocate',
          [size],
          () => inner.allocate(size),
          (number, handle) => ({ memory: this.#watch.addMemory(number, handle, size) }),
        ),
      reserve: (size) => this.#make('reserve', [size], () => inner.reserve(size)),
      mapGuestMemfd: refuse('private memory'),
      mapDirtyRing: (vcpu) =>
        this.#make(
          'mapDirtyRing',
          [id(vcpu)],
          () => inner.mapDirtyRing(vcpu),
          () => ({ of: this.#of(vcpu) }),
        ),
      share: (memory) => {
        const { memory: watched, id: number } = this.#of(memory);
        return this.#call(
          'share',
          [number],
          () => inner.share(memory),
          (token) => {
            const changed = watched ? this.#watch.expose(watched) : [];
            if (watched) watched.shared = true;
            return [{ ...token }, [], changed];
          },
        );
      },
      openMemory: threads,
      bytes: this.#bytes,
      write: (memory, offset, bytes) =>
        this.#call(
          'write',
          [id(memory), offset, fingerprint(bytes)],
          () => inner.write(memory, offset, bytes),
          () => {
            this.#of(memory).memory?.model.write(offset, bytes);
            return [];
          },
        ),
      read: (memory, offset, into) => {
        const { memory: watched } = this.#of(memory);
        this.#call(
          'read',
          [id(memory), offset, into.length],
          () => inner.read(memory, offset, into),
          () => {
            // What is told, and no later state of it: the guest may be running.
            const told = watched ? this.#watch.range(watched, offset, into.length) : [];
            watched?.model.read(offset, into);
            return [undefined, [], told];
          },
        );
      },
      fallocate: (handle, mode, offset, size) => {
        const result = this.#plain('fallocate', [id(handle), mode, offset, size], () =>
          inner.fallocate(handle, mode, offset, size),
        );
        if (result === 0 && discards.fallocate(mode)) this.#of(handle).memory?.model.punch(offset, size);
        return result;
      },
      seek: (memory, offset, whence) =>
        this.#plain('seek', [id(memory), offset, whence], () => inner.seek(memory, offset, whence)),
      madvise: (memory, advice, offset, size) => {
        const result = this.#plain('madvise', [id(memory), advice, offset, size], () =>
          inner.madvise(memory, advice, offset, size),
        );
        if (result === 0 && discards.madvise(advice)) this.#of(memory).memory?.model.punch(offset, size);
        return result;
      },
      userfaults: {
        create: faults,
        share: faults,
        open: faults,
        fill: faults,
        zero: faults,
        wake: faults,
        read: faults,
        watch: faults,
      },
      eventFds: {
        create: (initial, semaphore) =>
          this.#make('createEventFd', [initial, semaphore], () => eventFds.create(initial, semaphore)),
        share: (eventFd) =>
          this.#call(
            'shareEventFd',
            [id(eventFd)],
            () => eventFds.share(eventFd),
            (token) => [{ backend: token.backend, number: token.number }],
          ),
        open: (token) => this.#make('openEventFd', [token.number], () => eventFds.open(token)),
        signal: (eventFd, count) =>
          this.#plain('signal', [id(eventFd), count], () => eventFds.signal(eventFd, count)),
        drain: (eventFd) => this.#plain('drain', [id(eventFd)], () => eventFds.drain(eventFd)),
        watch: (eventFd, callback) => {
          const told = (): void => {
            this.#add('ready', encoded([id(eventFd)]), [false]);
            callback!();
          };
          return this.#plain('watch', [id(eventFd), callback !== undefined], () =>
            eventFds.watch(eventFd, callback && told),
          );
        },
      },
      shareVm: threads,
      openVm: threads,
      shareVcpu: threads,
      openVcpu: threads,
      runner: this.#runner,
      starter: this.#starter,
      kickId: (vcpu) => this.#plain('kickId', [id(vcpu)], () => inner.kickId(vcpu)),
      kick: (number) => this.#plain('kick', [number], () => inner.kick(number)),
      pause: (number, acknowledged) =>
        this.#plain('pause', [number, acknowledged && id(acknowledged)], () =>
          inner.pause(number, acknowledged),
        ),
      resume: (number) => this.#plain('resume', [number], () => inner.resume(number)),
      stop: (number) => this.#plain('stop', [number], () => inner.stop(number)),
      // It changes in runs and where observers are told, and is in their records.
      ...(inner.completed && { completed: (vcpu) => inner.completed!(vcpu) }),
      ...(inner.observe && {
        observe: (vcpu, observer) => {
          const names = observerNames(observer);
          const told = this.#tells(vcpu, observer && this.#observer(vcpu, observer, names));
          this.#silent('observe', [id(vcpu), names], () => inner.observe!(vcpu, told));
        },
      }),
      ...(inner.ownAccesses && {
        ownAccesses: (memory, serve) => {
          const told = this.#tells(
            memory,
            serve &&
              ((offset: number) => {
                this.#add('ownAccess', encoded([id(memory)]), [false, [offset]]);
                serve(offset);
              }),
          );
          this.#silent('ownAccesses', [id(memory), serve !== undefined], () =>
            inner.ownAccesses!(memory, told),
          );
        },
      }),
      mark: (memory, offset, size) => {
        const { memory: watched } = this.#of(memory);
        if (watched === undefined) return;
        const told = this.#watch.range(watched, offset, size);
        this.#add('mark', encoded([id(memory), offset, size]), [false, undefined, [], told]);
      },
      input: <T>(name: string, read: () => T): T => this.#plain('input', [name], read as () => Value) as T,
      close: this.#close,
    };
  }
}
