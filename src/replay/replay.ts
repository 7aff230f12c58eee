/** The replaying backend: it answers from a recording, and holds the VMM to what the recorded one did. */
import type { Backend, BackendName, Handle, Observer, Reference, Starter } from '../hypervisor/backend.ts';
import { type DialectName, dialects } from '../uapi/dialects.ts';
import { Errno } from '../uapi/errno.ts';
import { ioctls } from '../uapi/ioctls.ts';
import { decoded, fingerprint, HandleId, type Value } from './codec.ts';
import type { ReplayError } from './errors.ts';
import { Mapping, written } from './mapping.ts';
import { fill } from './outcomes.ts';
import { PageModel } from './page-model.ts';
import { type Answer, Playback } from './playback.ts';
import type { Entry, Kind, Source } from './records.ts';
import { argumentOf, discards, observerNames, referenceOf, rows, touchesPages } from './waist.ts';

const PAGE = 4096;

/** A handle of this backend's. */
interface Opened {
  readonly id: HandleId;
  /** `vCPU 0` */
  readonly name: string;
  readonly size: number;
  closed: boolean;
  /** Of a vCPU or a ring. */
  mapping?: Mapping;
  readonly of?: Opened;
  /** The VM of a vCPU. */
  readonly vm?: Opened;
  /** Of guest memory, once it is needed. */
  memory?: Uint8Array;
  readonly model: PageModel;
  kickId?: number;
  /** Instructions, as the last run or observer has it. */
  completed?: bigint;
  running?: boolean;
  done?: (result: number) => void;
  ready?: (() => void) | undefined;
  observer?: Observer | undefined;
  serve?: ((offset: number) => void) | undefined;
}

/** How long the VMM may keep a replay waiting for its next call, in milliseconds. */
export const STALL_MS = 30_000;

export class Replayer {
  readonly #playback: Playback;
  readonly #opened = new Map<number, Opened>();
  /** vCPUs and rings whose pages are looked at. */
  readonly #mapped = new Set<Opened>();
  /** Writes are coalesced. */
  #coalesces = false;

  constructor(source: Source, stallMs = STALL_MS) {
    this.#playback = new Playback(source, stallMs, {
      nameOf: ({ id }) => this.#opened.get(id)?.name ?? `handle ${id}`,
      apply: this.#apply,
      callBack: this.#callBack,
      stalled: this.#stalled,
    });
  }

  /** The number of the last record that was replayed. */
  get position(): number {
    return this.#playback.position;
  }
  /** Whether all of it was replayed, but for what was closed. */
  get ended(): boolean {
    return this.#playback.ended;
  }
  get error(): ReplayError | undefined {
    return this.#playback.error;
  }
  #take(kind: Kind, given: readonly Value[]): Answer {
    return this.#playback.take(kind, given);
  }

  #apply = (
    entry: Entry,
    mapped: readonly Value[],
    pages: readonly Value[],
    [completed]: readonly Value[],
  ): void => {
    for (const [id, ...changes] of mapped as (readonly [HandleId, ...Value[]])[])
      this.#opened.get(id.id)?.mapping?.apply(changes);
    for (const [id, ...changes] of pages as (readonly [number, ...Value[]])[]) {
      const opened = this.#opened.get(id);
      if (opened === undefined) continue;
      const memory = memoryOf(opened);
      for (let i = 0; i < changes.length; i += 2) {
        const page = changes[i] as number;
        const bytes = changes[i + 1] as Uint8Array | null;
        if (bytes !== null) opened.model.write(page * PAGE, bytes);
        memory.set(bytes ?? opened.model.bytes(page), page * PAGE);
      }
    }
    if (typeof completed !== 'bigint') return;
    const [vcpu] = decoded(entry.given) as [HandleId];
    const opened = this.#opened.get(vcpu.id);
    if (opened) opened.completed = completed;
  };

  #stalled = (): void => {
    for (const opened of this.#opened.values()) {
      if (!opened.running) continue;
      opened.running = false;
      opened.done?.(-Errno.EIO);
    }
  };

  #callBack = (entry: Entry, result: Value): void => {
    const [id, name] = decoded(entry.given) as [HandleId, string];
    const opened = this.#opened.get(id.id);
    if (opened === undefined) return;
    if (entry.kind === 'ready') opened.ready?.();
    else if (entry.kind === 'ownAccess') opened.serve?.((result as number[])[0]!);
    else if (entry.kind === 'observed') {
      const observer = opened.observer as { [name: string]: ((...args: unknown[]) => void) | undefined };
      observer?.[name]?.(...(result as Value[]));
    } else if (opened.running) {
      opened.running = false;
      this.#playback.wait(-1);
      opened.done?.(result as number);
    }
  };

  // The waist

  #of(handle: Handle): Opened {
    return handle as unknown as Opened;
  }
  #id = (handle: Handle): HandleId => this.#of(handle).id;
  #open(result: Value, name: string, also: Partial<Opened> = {}): Handle | number {
    if (!(result instanceof HandleId)) return result as number;
    const opened: Opened = { id: result, name, size: 0, closed: false, model: new PageModel(), ...also };
    this.#opened.set(result.id, opened);
    return opened as unknown as Handle;
  }

  #written(vcpu: Opened): Value[] {
    return written(this.#mapped, vcpu, this.#coalesces);
  }
  #reference = (reference: Reference): Value => referenceOf(reference, this.#id);

  #ioctl = (
    handle: Handle,
    request: number,
    argument?: number | bigint | Uint8Array,
    references: readonly Reference[] = [],
  ): number => {
    const opened = this.#of(handle);
    const row = rows.get(request);
    if (row === ioctls.KVM_REGISTER_COALESCED_MMIO) this.#coalesces = true;
    const touched = touchesPages(row) ? this.#pagesOf(opened) : [];
    const written = touched.flatMap((vcpu) => this.#written(vcpu));
    const given = [opened.id, request, argumentOf(row, argument), references.map(this.#reference), written];
    const { result, rest } = this.#take('ioctl', given);
    fill(argument, references, rest);
    return result as number;
  };
  #pagesOf(opened: Opened): Opened[] {
    if (opened.mapping) return opened.running ? [] : [opened];
    return [...this.#opened.values()].filter(
      ({ vm, mapping, running }) => mapping && vm === opened && !running,
    );
  }

  #create = (
    handle: Handle,
    request: number,
    argument: number | bigint | Uint8Array,
    references: readonly Reference[] = [],
  ): Handle | number => {
    const row = rows.get(request);
    const on = this.#of(handle);
    const given = [on.id, request, argumentOf(row, argument), references.map(this.#reference)];
    const { result, rest } = this.#take('create', given);
    fill(argument, references, rest);
    if (row === ioctls.KVM_CREATE_VCPU) return this.#open(result, `vCPU ${argument}`, { vm: on });
    return this.#open(result, row === ioctls.KVM_CREATE_VM ? 'the VM' : `what ${row?.name} made`);
  };

  #bytes = (handle: Handle): Uint8Array => {
    const opened = this.#of(handle);
    const isPages = opened.size === 0;
    if (opened.closed && isPages) return new Uint8Array(0);
    if (!isPages) {
      this.#take('bytes', [opened.id]);
      return memoryOf(opened);
    }
    // Its size is in the record, and has to be there before the contents are put in place.
    const next = this.#playback.head();
    if (opened.mapping === undefined && next?.kind === 'bytes') {
      opened.mapping = new Mapping(new Uint8Array(decoded(next.got)[1] as number));
      this.#mapped.add(opened);
    }
    this.#take('bytes', [opened.id]);
    return opened.mapping!.bytes;
  };

  #runner = (vcpu: Handle): ((timeoutMs?: number) => number) => {
    const opened = this.#of(vcpu);
    this.#take('runner', [opened.id]);
    return () => {
      if (opened.closed) return -Errno.EBADF;
      const isTold = this.#playback.head()?.kind === 'runBegin';
      const begun = this.#take(isTold ? 'runBegin' : 'run', [opened.id, this.#written(opened)]);
      return (isTold ? this.#toldRun(opened) : begun.result) as number;
    };
  };
  /** Observers are told inside of it. */
  #toldRun(opened: Opened): Value {
    try {
      while (this.#playback.next?.kind === 'observed' || this.#playback.next?.kind === 'ownAccess') {
        const entry = this.#playback.next;
        this.#playback.advance();
        this.#callBack(entry, this.#playback.answer(entry).result);
      }
    } catch (error) {
      // The recorded one has thrown here too, or this one has gone another way.
      if ((this.#playback.next?.kind as Kind | undefined) === 'runEnd') this.#playback.advance();
      throw error;
    }
    return this.#take('runEnd', [opened.id]).result;
  }

  #starter = (vcpu: Handle, done: (result: number) => void): Starter => {
    const opened = this.#of(vcpu);
    opened.done = done;
    this.#take('starter', [opened.id]);
    const start = (): number => {
      if (opened.closed) return -Errno.EBADF;
      const given = [opened.id, opened.running ? [] : this.#written(opened)];
      const result = this.#take('start', given).result as number;
      if (result === 0) {
        opened.running = true;
        this.#playback.wait(1);
        this.#playback.progress();
      }
      return result;
    };
    // What came of it is in the run's record.
    return { start, end() {} };
  };

  #isKicked = (number: number): boolean =>
    [...this.#opened.values()].some(({ kickId, closed }) => kickId === number && !closed);

  #plain = (kind: Kind, ...given: Value[]): number => this.#take(kind, given).result as number;

  backend(): Backend {
    const id = this.#id;
    const { head } = this.#playback.source;
    const has = (name: string) => head.has.includes(name);
    // The recorder has refused them: whoever calls has diverged.
    const none = (name: string) => (): never => {
      throw this.error ?? this.#playback.fail('diverged', undefined, name, `${name}() is in no recording`);
    };
    const plain = this.#plain;
    return {
      name: head.backend as BackendName,
      ...(head.dialect !== undefined && head.dialect in dialects && { dialect: head.dialect as DialectName }),
      open: () => this.#open(this.#take('open', []).result, 'the hypervisor') as Handle,
      ioctl: this.#ioctl,
      create: this.#create,
      ...(has('readStats') && {
        readStats: (stats, offset, bytes) => {
          const { result, rest } = this.#take('readStats', [id(stats), offset, bytes.length]);
          if (rest[0] instanceof Uint8Array) bytes.set(rest[0]);
          return result as number;
        },
      }),
      allocate: (size) => this.#open(this.#take('allocate', [size]).result, 'guest memory', { size }),
      reserve: (size) => this.#open(this.#take('reserve', [size]).result, 'a reservation'),
      mapGuestMemfd: none('mapGuestMemfd'),
      mapDirtyRing: (vcpu) => {
        const of = this.#of(vcpu);
        return this.#open(this.#take('mapDirtyRing', [of.id]).result, `the ring of ${of.name}`, { of });
      },
      share: (memory) => this.#take('share', [id(memory)]).result as never,
      openMemory: none('openMemory'),
      bytes: this.#bytes,
      write: (memory, offset, bytes) => {
        const opened = this.#of(memory);
        this.#take('write', [opened.id, offset, fingerprint(bytes)]);
        memoryOf(opened).set(bytes, offset);
        opened.model.write(offset, bytes);
      },
      read: (memory, offset, into) => {
        const opened = this.#of(memory);
        this.#take('read', [opened.id, offset, into.length]);
        into.set(memoryOf(opened).subarray(offset, offset + into.length));
      },
      fallocate: (handle, mode, offset, size) => {
        const result = plain('fallocate', id(handle), mode, offset, size);
        if (result === 0 && discards.fallocate(mode)) punch(this.#of(handle), offset, size);
        return result;
      },
      seek: (memory, offset, whence) => plain('seek', id(memory), offset, whence),
      madvise: (memory, advice, offset, size) => {
        const result = plain('madvise', id(memory), advice, offset, size);
        if (result === 0 && discards.madvise(advice)) punch(this.#of(memory), offset, size);
        return result;
      },
      eventFds: {
        create: (initial, semaphore) =>
          this.#open(this.#take('createEventFd', [initial, semaphore]).result, 'an eventfd'),
        share: (eventFd) => this.#take('shareEventFd', [id(eventFd)]).result as never,
        open: (token) => this.#open(this.#take('openEventFd', [token.number]).result, 'an eventfd'),
        signal: (eventFd, count) => plain('signal', id(eventFd), count),
        drain: (eventFd) => plain('drain', id(eventFd)),
        watch: (eventFd, callback) => {
          const opened = this.#of(eventFd);
          const result = plain('watch', opened.id, callback !== undefined);
          if (result >= 0) {
            this.#playback.wait((callback ? 1 : 0) - (opened.ready ? 1 : 0));
            opened.ready = callback;
          }
          return result;
        },
      },
      shareVm: none('shareVm'),
      openVm: none('openVm'),
      shareVcpu: none('shareVcpu'),
      openVcpu: none('openVcpu'),
      runner: this.#runner,
      starter: this.#starter,
      kickId: (vcpu) => {
        const opened = this.#of(vcpu);
        opened.kickId = plain('kickId', opened.id);
        return opened.kickId;
      },
      kick: this.#isKicked,
      pause: (number, acknowledged) => plain('pause', number, acknowledged && id(acknowledged)),
      resume: (number) => plain('resume', number),
      stop: this.#isKicked,
      ...(has('completed') && {
        completed: (vcpu) => this.#of(vcpu).completed ?? 0n,
      }),
      ...(has('observe') && {
        observe: (vcpu, observer) => {
          this.#take('observe', [id(vcpu), observerNames(observer)]);
          this.#of(vcpu).observer = observer;
        },
      }),
      ...(has('ownAccesses') && {
        ownAccesses: (memory, serve) => {
          this.#take('ownAccesses', [id(memory), serve !== undefined]);
          this.#of(memory).serve = serve;
        },
      }),
      mark: () => this.#playback.skip(),
      input: <T>(name: string, _read: () => T): T => this.#take('input', [name]).result as T,
      close: (handle) => {
        const opened = this.#of(handle);
        if (opened.closed) return;
        opened.closed = true;
        this.#mapped.delete(opened);
        if (opened.ready) this.#playback.wait(-1);
        opened.ready = undefined;
        if (opened.size > 0) delete opened.memory;
      },
    };
  }

  close(): void {
    this.#playback.close();
  }
}

function memoryOf(opened: Opened): Uint8Array {
  if (opened.closed) return new Uint8Array(0);
  opened.memory ??= new Uint8Array(opened.size);
  return opened.memory;
}
function punch(opened: Opened, offset: number, size: number): void {
  memoryOf(opened).fill(0, offset, offset + size);
  opened.model.punch(offset, size);
}
