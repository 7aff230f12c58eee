/** A VM: its memory, what it was told to be, and how several threads have it (virt/kvm/kvm_main.c, struct kvm). */

import type { SharedVm } from '../../../hypervisor/backend.ts';
import { VmType } from '../../../uapi/constants.ts';
import { Errno } from '../../../uapi/errno.ts';
import { Arena } from '../../arena.ts';
import type { GuestChoice } from '../../cpu/processor/stage.ts';
import { Counted } from '../../memory/host-memory.ts';
import { VmMemory } from '../../memory/vm-memory.ts';
import { isSharedMemory } from '../../shared-memory.ts';
import { type Memory, WebAssembly } from '../../webassembly.ts';
import { VM_TYPES } from '../host/capabilities.ts';
import { Host } from '../host/host.ts';
import { Ioeventfds } from './ioeventfd.ts';
import { VmMsrPolicy } from './msr-policy.ts';
import { Random } from './random.ts';
import { type Config, type SimVmToken, VM_WORDS_BYTES, VmShare } from './share.ts';

/** In use by its fd and by its vCPUs. */
export class KvmVm extends Counted {
  readonly host: Host;
  readonly type: number;
  readonly memory: VmMemory;
  /** kvm_arch_has_private_mem(). */
  readonly hasPrivate: boolean;
  readonly choice: GuestChoice | undefined;
  /** The hypercalls that end KVM_RUN (KVM_CAP_EXIT_HYPERCALL). */
  exitHypercalls = 0;
  readonly msrPolicy = new VmMsrPolicy();
  /** KVM_CAP_EXCEPTION_PAYLOAD: pending exceptions are told apart from injected ones. */
  exceptionPayload = false;
  /** Numbers are given once: a vCPU lives as long as its VM. */
  readonly vcpuIds = new Set<number>();
  readonly ioeventfds = new Ioeventfds();
  /** Decides which of its vCPUs is next. */
  readonly random: Random;

  constructor(host: Host, type: number) {
    super();
    this.host = host;
    this.type = type;
    this.hasPrivate = type !== VmType.DEFAULT;
    this.choice = host.choices.get(type);
    this.random = new Random(host.seed);
    this.memory = new VmMemory({
      arena: host.arena,
      dialect: host.dialect,
      rules: {
        addressSpaces: 1,
        guestMemfd: true,
        userfault: host.dialect.name === 'mainline',
        owner: this,
      },
      hasPrivate: this.hasPrivate,
      choosing: this.choice !== undefined,
      faultSize: host.faultSize,
    });
  }

  static create(host: Host, type: number): KvmVm | number {
    reap();
    return VM_TYPES.includes(type) ? new KvmVm(host, type) : -Errno.EINVAL;
  }

  /** Named for other threads. Undefined when the arena is full. */
  share: VmShare | undefined;

  /** What it is opened by in another thread. */
  token(): SimVmToken | number {
    if (this.share === undefined) {
      this.share = VmShare.create(this);
      if (this.share === undefined) return -Errno.ENOMEM;
      here.set(keyOf(this.host.arena, this.share.token), this);
    }
    return this.share.token;
  }

  /** The VM that a token names, in this thread; or a negated errno. */
  static open(host: Host, token: SharedVm): KvmVm | number {
    if (!isSimToken(token) || token.table !== host.kicks.table[1]) return -Errno.EBADF;
    const arena = arenaOf(host.arena, token.arena);
    const key = keyOf(arena, token);
    const known = here.get(key);
    if (known !== undefined && lent.has(known) && known.share!.isUnused) known.reap();
    else if (known !== undefined) return known.retain();
    if (!VM_TYPES.includes(token.type)) return -Errno.EBADF;
    const vm = new KvmVm(
      new Host({ ...token.host, iced: host.options.iced, prepared: host.options.prepared }, arena, host),
      token.type,
    );
    vm.share = VmShare.open(vm, token);
    if (vm.share === undefined) return -Errno.ESTALE;
    here.set(key, vm);
    vm.enter();
    vm.leave();
    return vm;
  }

  /** Another thread has made it, and changes its slots, attributes and capabilities. */
  get isCopy(): boolean {
    return this.share !== undefined && !this.share.isOwner;
  }
  /** No other thread does anything to it until leave(). */
  enter(): void {
    this.share?.enter();
  }
  leave(): void {
    this.share?.leave();
  }

  get config(): Config {
    const { manual, ringBytes } = this.memory.dirty;
    return {
      exitHypercalls: this.exitHypercalls,
      exceptionPayload: this.exceptionPayload,
      zapsAll: this.memory.zapsAll,
      manual,
      ringBytes,
      msrs: this.msrPolicy.entry,
      ioeventfds: this.ioeventfds.entry,
    };
  }
  /** In a copy. */
  configure({
    exitHypercalls,
    exceptionPayload,
    zapsAll,
    manual,
    ringBytes,
    msrs,
    ioeventfds,
  }: Config): void {
    this.exitHypercalls = exitHypercalls;
    this.exceptionPayload = exceptionPayload;
    this.memory.zapsAll = zapsAll;
    this.memory.dirty.manual = manual;
    this.memory.dirty.ringBytes = ringBytes;
    this.msrPolicy.copy(msrs);
    this.ioeventfds.copy(ioeventfds, this.host.kicks.table.buffer);
  }

  /** The last handle of this thread is gone. What it owns stays as long as another thread has one. */
  protected free(): void {
    if (this.share === undefined) {
      this.#destroy();
      return;
    }
    this.share.release();
    if (this.isCopy) here.delete(keyOf(this.host.arena, this.share.token));
    else lent.add(this);
    reap();
  }
  /** Its owner's handles are gone, and perhaps all others too. */
  reap(): void {
    if (!this.share!.isUnused) return;
    lent.delete(this);
    here.delete(keyOf(this.host.arena, this.share!.token));
    this.share!.free();
    this.#destroy();
  }
  /** Somebody of its owner's thread has it again. */
  override retain(): this {
    if (lent.delete(this)) this.share!.retain();
    return super.retain();
  }
  #destroy(): void {
    this.memory.destroy();
    this.ioeventfds.clear();
  }
}

/** VMs of this thread that others have, or that others have made, by token. */
const here = new Map<string, KvmVm>();
const keyOf = (arena: Arena, { number }: SharedVm): string => `${arena.name} ${number}`;
/** Those that this thread has made and closed, and others have still. */
const lent = new Set<KvmVm>();
function reap(): void {
  for (const vm of lent) vm.reap();
}

/** Arenas of other threads, by name. */
const arenas = new Map<bigint, Arena>();
function arenaOf(own: Arena, memory: Memory): Arena {
  const arena = new Arena(memory);
  if (arena.name === own.name) return own;
  const known = arenas.get(arena.name) ?? arena;
  arenas.set(arena.name, known);
  known.refresh();
  return known;
}

/** A token is data from elsewhere. */
function isSimToken(token: SharedVm): token is SimVmToken {
  const { arena, words, host, number, table } = token as Partial<SimVmToken>;
  return (
    arena instanceof (WebAssembly.Memory as unknown as new () => object) &&
    isSharedMemory(arena.buffer) &&
    isSharedMemory(words) &&
    words.byteLength === VM_WORDS_BYTES &&
    typeof host === 'object' &&
    host !== null &&
    Number.isSafeInteger(number) &&
    typeof table === 'number'
  );
}
