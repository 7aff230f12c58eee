/** The destination of a migration: makes the machine, takes the guest over, and runs it while its pages arrive. */
import { createHash, randomBytes } from 'node:crypto';
import { createServer, type Socket } from 'node:net';
import { totalmem } from 'node:os';
import type { AbortSignalLike } from '../../hypervisor/abort.ts';
import { integer, object } from '../../hypervisor/args.ts';
import { KvmError, MigrationError, UnavailableError, VmexitError } from '../../hypervisor/errors.ts';
import type { GuestMemory } from '../../hypervisor/guest-memory.ts';
import type { Hypervisor } from '../../hypervisor/hypervisor.ts';
import type { Vcpu } from '../../hypervisor/vcpu.ts';
import type { Vm } from '../../hypervisor/vm.ts';
import type { PagerOptions } from '../pager/options.ts';
import { Pager } from '../pager/pager.ts';
import {
  fromHex,
  type MachineState,
  parseState,
  RestoredMachine,
  type RestoreOptions,
} from '../snapshot/index.ts';
import { type Address, addressName, parseAddress } from './address.ts';
import { Channel, DIGEST_SIZE, type Frame, TOKEN_SIZE } from './channel.ts';

/** Where receiveGuest() listens, and what it accepts. */
export interface ReceiveOptions extends RestoreOptions {
  /** Where to listen: `unix:PATH`, which must not be there yet, or `tcp:HOST:PORT`, where port 0 is a free one. */
  readonly at: string;
  /** How long the source may say nothing, once it has come, in milliseconds: 30,000 without it. */
  readonly timeoutMs?: number;
  /** The most memory that a guest may have, in bytes: what this host has, without it. */
  readonly maxMemory?: number;
  /** How the guest's memory is paged in: `auto` without it. */
  readonly strategy?: PagerOptions['strategy'];
  /**
   * Called when all is made, before the guest is taken over: the place to restore devices. What it throws refuses the
   * guest, which goes on at its source then.
   */
  readonly accept?: (guest: ArrivingGuest) => void;
  /** Told once somebody can connect, with the address: of `tcp`, with the port that it is. */
  readonly onListening?: (address: string) => void;
  /** Cancels, until the guest is here. */
  readonly signal?: AbortSignalLike | undefined;
}

/** A guest that is being taken over: all is made, and its memory is still at the source. */
export interface ArrivingGuest {
  /** The VM, made as the source's was. */
  readonly vm: Vm;
  /** Its vCPUs, in the source's order. */
  readonly vcpus: readonly Vcpu[];
  /** Its memories. Before reading one: `await memory.ensure(offset, size)`. */
  readonly memories: readonly GuestMemory[];
  /** A handler for each vCPU's RunLoop. Its `complete` resolves when every page is here and the source knows. */
  readonly pager: Pager;
  /** The state of the VMM's devices, by name, as sendGuest() was given it. */
  readonly devices: ReadonlyMap<string, Uint8Array>;
  /** What is other here than at the source, and the guest could notice: a line each. */
  readonly differences: readonly string[];
}

/** A guest that was handed over. It can run at once; its pages are still arriving. */
export interface ReceivedGuest extends ArrivingGuest, Disposable {
  /** Milliseconds from the source's connection until the guest could run. */
  readonly readyMs: number;
  /** Ends it: the source is told that pages are missing, if they are. Idempotent. */
  close(): Promise<void>;
}

const DEFAULT_TIMEOUT_MS = 30_000;

/**
 * Waits for one sendGuest() to come, and takes its guest over. Whatever fails before this is resolved is told to the
 * source, which keeps its guest. After it, a source that fails ends the guest's run with ERR_KVM_MIGRATION, and
 * `pager.missing()` tells which pages are not here; no page is taken for zeroes.
 *
 * Who connects is believed: listen at a Unix socket in a folder of your own, or at the end of a tunnel.
 *
 * An example is at {@link sendGuest}.
 * @throws MigrationError ERR_KVM_MIGRATION for a peer that sends what it must not, or nothing, or a guest that cannot go
 *   on here; UnavailableError where nothing pages on demand; the signal's reason; RangeError ERR_KVM_INVALID_ARG.
 *   Nothing stays open then
 */
export async function receiveGuest(hv: Hypervisor, options: ReceiveOptions): Promise<ReceivedGuest> {
  const { at, strategy = 'auto', accept, onListening, signal, ...restoring } = object('options', options);
  const wanted = parseAddress('at', at);
  const timeoutMs = integer('timeoutMs', options.timeoutMs ?? DEFAULT_TIMEOUT_MS, 2 ** 31 - 1, 1);
  const maxMemory = integer('maxMemory', options.maxMemory ?? totalmem(), Number.MAX_SAFE_INTEGER);
  signal?.throwIfAborted();
  const { socket, address } = await visited(wanted, onListening, signal);
  const begun = performance.now();
  const control = new Channel(socket, 'the source', timeoutMs);
  const abort = () => control.fail(signal!.reason as Error);
  signal?.addEventListener('abort', abort);
  const opened: Opened = { machine: undefined, pager: undefined };
  try {
    await control.greet();
    const state = parseStateFrame(await control.receive(['STATE']));
    checkMemory(state, maxMemory);
    const machine = new RestoredMachine(hv, state, restoring);
    opened.machine = machine;
    const { vm, vcpus, memories, differences } = machine;
    const token = randomBytes(TOKEN_SIZE);
    const source = { kind: 'migration', listen: address, token, timeoutMs } as const;
    const pager = Pager.start(hv, vm, { memories, vcpus, source, strategy, timeoutMs });
    opened.pager = pager;
    await control.send('ACCEPT', token);
    // The pager is there before the registers are set, for that may read guest memory.
    machine.begin();
    const arriving: ArrivingGuest = {
      vm,
      vcpus,
      memories,
      pager,
      devices: new Map(Object.entries(state.devices).map(([name, hex]) => [name, fromHex(hex)])),
      differences,
    };
    accept?.(arriving);
    pager.check();
    const failed = new Promise<never>((_, reject) => pager.complete.catch(reject));
    failed.catch(() => {});
    await control.send('READY');
    await Promise.race([control.receive(['GO']), failed]);
    control.close();
    return {
      ...arriving,
      readyMs: performance.now() - begun,
      close: () => closeAll(opened),
      [Symbol.dispose]: () => {
        closeAll(opened);
      },
    };
  } catch (cause) {
    const error = explained(cause, signal);
    control.refuse(signal?.aborted ? 'it was cancelled' : error.message);
    await closeAll(opened);
    throw error;
  } finally {
    signal?.removeEventListener('abort', abort);
  }
}

interface Opened {
  machine: RestoredMachine | undefined;
  pager: Pager | undefined;
}

/** The VM before the pager lets go: a page that is missing would read as zeroes. */
async function closeAll(opened: Opened): Promise<void> {
  const { machine, pager } = opened;
  opened.machine = undefined;
  opened.pager = undefined;
  const stopped = pager?.stop();
  machine?.close();
  await stopped;
  pager?.[Symbol.dispose]();
}

/** What is wrong with the guest, or with this host for it, is a migration that has failed. */
function explained(cause: unknown, signal: AbortSignalLike | undefined): Error {
  if (signal?.aborted) return signal.reason as Error;
  const known = cause instanceof VmexitError || cause instanceof KvmError;
  if (!known || cause instanceof MigrationError || cause instanceof UnavailableError) return cause as Error;
  return new MigrationError(`the guest cannot go on here: ${cause.message}`, { cause });
}

/** @throws MigrationError for a state that was altered; VmexitError ERR_KVM_SNAPSHOT for what is none */
function parseStateFrame({ body }: Frame): MachineState {
  const json = body.subarray(DIGEST_SIZE);
  if (createHash('sha256').update(json).digest().compare(body, 0, DIGEST_SIZE) !== 0)
    throw new MigrationError("the machine's state was altered on the way: its SHA-256 is another");
  let value: unknown;
  try {
    value = JSON.parse(json.toString('utf8'));
  } catch (cause) {
    throw new MigrationError(`the machine's state is no JSON: ${(cause as Error).message}`, { cause });
  }
  return parseState(value);
}

/** Before any is allocated. */
function checkMemory({ vm: { memories, guestMemfds } }: MachineState, maxMemory: number): void {
  if (memories.length === 0) throw new MigrationError('the guest has no memory');
  const size = [...memories, ...guestMemfds].reduce((sum, one) => sum + one);
  if (size > maxMemory)
    throw new MigrationError(`the guest has ${size} bytes of memory, and may have ${maxMemory} (maxMemory)`);
}

/** The first who connects. Nobody listens any more then. */
function visited(
  address: Address,
  onListening: ((address: string) => void) | undefined,
  signal: AbortSignalLike | undefined,
): Promise<{ socket: Socket; address: Address }> {
  return new Promise((resolve, reject) => {
    const server = createServer();
    let actual = address;
    const over = () => {
      signal?.removeEventListener('abort', abort);
      server.close();
    };
    const abort = () => {
      over();
      reject(signal!.reason);
    };
    signal?.addEventListener('abort', abort);
    server.once('error', (cause: NodeJS.ErrnoException) => {
      over();
      const hint =
        cause.code === 'EADDRINUSE' ? ': somebody listens there, or has left the socket behind' : '';
      const message = `${addressName(address)} cannot be listened at: ${cause.message}${hint}`;
      reject(new MigrationError(message, { cause }));
    });
    server.once('connection', (socket) => {
      over();
      resolve({ socket, address: actual });
    });
    server.listen({ ...address, backlog: 1 }, () => {
      const bound = server.address();
      if ('host' in address && bound !== null && typeof bound === 'object')
        actual = { host: address.host, port: bound.port };
      onListening?.(addressName(actual));
    });
  });
}
