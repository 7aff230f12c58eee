// Calls every function of the addon with whatever JS can make, and reports what came back. Run as a process of its
// own by hostile.test.ts, for what it looks for is this process's death.
//
//   node --expose-gc hostile-native.mjs SEED CALLS [LOG|- [EACH]]
//
// It goes on until each function has had EACH calls (0 without it). LOG always holds the call in progress: the last line of a
// process that died. How far it is comes to stderr each half minute. SIGINT ends it early: it prints what it has, with status
// 130. VMEXIT_ADDON names another build of the addon (a sanitizer's). As a worker it is one of several: hostile-threads.mjs.
import { openSync, readdirSync, writeSync } from 'node:fs';
import { createRequire } from 'node:module';
import { fileURLToPath } from 'node:url';
import { isExternal, isUint8Array } from 'node:util/types';
import { workerData } from 'node:worker_threads';
import {
  arrays,
  below,
  bigints,
  bytes,
  chance,
  choice,
  hugeBigints,
  numbers,
  objects,
  others,
  seed,
  sizes,
} from './hostile-values.mjs';

const [, , SEED, CALLS, LOG, EACH = 0] = process.argv;
const addon = process.env.VMEXIT_ADDON ?? new URL('../../build/Release/vmexit.node', import.meta.url);
const native = createRequire(import.meta.url)(fileURLToPath(new URL(addon, 'file:')));
seed(Number(SEED));
const log = LOG === undefined || LOG === '-' ? undefined : openSync(LOG, 'w');

const PAGE = 4096;
const POOL = 48; // open handles at most
const BIG = 2 ** 20; // memory larger than this is closed at once, lest a call fills it
const rows = native.requests();
const row = (name) => rows.find((other) => other.name === name);
const request = (name) => row(name).request;

// --- handles -----------------------------------------------------------------------------------------------------

/** Open handles by kind; `functions` are what runner() made, each with the kickId of its vCPU. */
const open = {
  system: [],
  vm: [],
  vcpu: [],
  gmem: [],
  memory: [],
  reservation: [],
  userfaultfd: [],
  device: [],
  eventfd: [],
  stats: [],
  ring: [],
  functions: [],
};
const kinds = Object.keys(open).filter((kind) => kind !== 'functions');
/** Of the only memory whose pages may be missing: nobody else gets it, for who touches it waits for ever. */
let paged;
const closedHandles = [];

function keep(kind, handle) {
  if (!isExternal(handle)) return undefined; // an errno, or what `new` makes of one
  open[kind].push(handle);
  return handle;
}

function discard(kind, index = below(open[kind].length)) {
  const [handle] = open[kind].splice(index, 1);
  if (handle === undefined) return;
  // Some are left to the garbage collector.
  if (chance(0.8)) native.close(handle);
  closedHandles.push(handle);
  if (closedHandles.length > 16) closedHandles.shift();
}

const forgetClosed = (handle) => {
  for (const kind of kinds) {
    const index = open[kind].indexOf(handle);
    if (index >= 0) open[kind].splice(index, 1);
  }
};

/** A VM with RAM full of random code, a vCPU, and what else this KVM allows. Without a KVM, what needs none. */
function furnish() {
  const system = open.system[0] ?? keep('system', native.open('/dev/kvm'));
  if (system !== undefined) furnishVm(system);
  keep('reservation', native.reserve(16 * PAGE));
  paged = native.allocate(16 * PAGE);
  keep('userfaultfd', native.userfaultfd(paged));
  keep('eventfd', native.eventfd(0, false));
}

function furnishVm(system) {
  if (open.vm.length > 3) discard('vm', 0);
  const vm = keep('vm', native.create(system, request('KVM_CREATE_VM'), chance(0.2) ? below(6) : 0));
  if (vm === undefined) return;
  if (chance(0.5)) native.ioctl(vm, request('KVM_ENABLE_CAP'), ringsOf(16_384));
  const memory = keep('memory', native.allocate(16 * PAGE));
  const ram = new Uint8Array(native.buffer(memory));
  for (let i = 0; i < ram.length; i += 1 + below(8)) ram[i] = below(256);
  const region = new Uint8Array(32);
  new DataView(region.buffer).setBigUint64(16, BigInt(ram.length), true);
  if (chance(0.5)) region[4] = 1; // KVM_MEM_LOG_DIRTY_PAGES
  native.ioctl(vm, request('KVM_SET_USER_MEMORY_REGION'), region, [{ memory, offset: 0 }]);
  const vcpu = keep('vcpu', native.create(vm, request('KVM_CREATE_VCPU'), 0));
  if (vcpu !== undefined) {
    startAtZero(vcpu);
    open.functions.push({ run: native.runner(vcpu), id: native.kickId(vcpu) });
  }
  const wanted = new Uint8Array(64);
  new DataView(wanted.buffer).setBigUint64(0, BigInt(16 * PAGE), true);
  new DataView(wanted.buffer).setBigUint64(8, BigInt(choice([0, 0, 3])), true);
  keep('gmem', native.create(vm, request('KVM_CREATE_GUEST_MEMFD'), wanted));
  while (open.functions.length > 8) open.functions.shift();
}

/** KVM_CAP_DIRTY_LOG_RING_ACQ_REL, as an argument of KVM_ENABLE_CAP. */
function ringsOf(bytes) {
  const cap = new Uint8Array(104);
  const view = new DataView(cap.buffer);
  view.setUint32(0, 223, true);
  view.setBigUint64(8, BigInt(bytes), true);
  return cap;
}

/** Real mode, at the first byte of the RAM. */
function startAtZero(vcpu) {
  const sregs = new Uint8Array(312);
  native.ioctl(vcpu, request('KVM_GET_SREGS'), sregs);
  sregs.fill(0, 0, 8).fill(0, 12, 14); // cs.base, cs.selector
  native.ioctl(vcpu, request('KVM_SET_SREGS'), sregs);
  const regs = new Uint8Array(144);
  regs[136] = 2; // rflags; rip is 0
  native.ioctl(vcpu, request('KVM_SET_REGS'), regs);
}

function bound() {
  for (const kind of kinds) {
    while (open[kind].length > POOL / kinds.length) discard(kind, 0);
  }
}

/** By kind: tokens of VMs, eventfds and memories, and numbers of vCPUs. */
const TOKENS = { vm: 0, eventfd: 1, fd: 2, inode: 3, vcpu: 4 };
const SLOTS = 8;
/** What threads tell each other: this one's token, or another's. */
function exchanged(kind, token) {
  const { board } = workerData ?? {};
  if (board === undefined || typeof token !== 'number') return token;
  const at = TOKENS[kind] * SLOTS + below(SLOTS);
  const given = board[at];
  board[at] = token;
  return given === 0 || chance(0.3) ? token : given;
}

// --- values ------------------------------------------------------------------------------------------------------

const structSizes = rows.map(({ request }) => (request >>> 16) & 0x3fff);

/** Guest memory, or kvm_run itself. */
function own() {
  const handle = choice([...open.memory, ...open.vcpu]);
  if (handle === undefined) return bytes(8);
  const buffer = native.buffer(handle);
  return new Uint8Array(buffer);
}

const anyHandle = () => {
  const kind = choice(kinds);
  return open[kind].length > 0 ? choice(open[kind]) : (closedHandles[0] ?? null);
};

function value() {
  switch (below(9)) {
    case 0:
      return choice(numbers);
    case 1:
      return choice(chance(0.7) ? bigints : hugeBigints);
    case 2:
      return below(2 ** 32);
    case 3:
      return choice(others);
    case 4:
      return choice(objects);
    case 5: {
      const size = choice(chance(0.5) ? sizes : structSizes);
      return chance(0.1) ? own().subarray(below(2), size) : choice(arrays)(size);
    }
    case 6:
      return closedHandles.length > 0 ? choice(closedHandles) : null;
    case 7:
      return rows[below(rows.length)].request;
    default:
      return anyHandle();
  }
}

// --- calls -------------------------------------------------------------------------------------------------------

/** Requests that the kernel took, and runs that entered it: that the storm gets past the addon's own checks. */
const accepted = new Set();
let runs = 0;
const EINTR = -4;
const ETIME = -62;

const names = [...Object.keys(native), 'run', 'start', 'issue'];
const deep = ['ioctl', 'ioctl', 'ioctl', 'create', 'run'];
/** enum Kind of native/handle.h. */
const kindOf = {
  1: 'system',
  2: 'vm',
  4: 'vcpu',
  8: 'gmem',
  16: 'device',
  32: 'memory',
  64: 'reservation',
  128: 'userfaultfd',
  256: 'eventfd',
  512: 'stats',
  1024: 'ring',
};
const handleFor = (on) => {
  const suitable = Object.keys(kindOf).filter((bit) => (on & bit) !== 0 && open[kindOf[bit]].length > 0);
  return suitable.length > 0 ? choice(open[kindOf[choice(suitable)]]) : anyHandle();
};

/** Of a size that the row allows, and mostly with the truth about it in the struct. */
function sized(least, most, at, countSize) {
  const area = bytes(choice([least, least + 4096, most, most + 1, least - 1]));
  if (countSize > 0 && area.length >= least)
    new DataView(area.buffer).setUint32(at, chance(0.8) ? area.length : below(2 ** 32), true);
  return area;
}

/** An argument of the right shape for the row, with any contents. */
function argumentFor({ arg, request, element, least, most, count: at, countSize }) {
  const fixed = (request >>> 16) & 0x3fff;
  if (arg === 0) return undefined;
  if (arg === 1) return chance(0.5) ? below(300) : choice(numbers);
  if (arg === 4) return sized(least, most, at, countSize);
  if (arg !== 3) return bytes(fixed + element);
  const count = choice([0, 1, 2, 3, 16, 128, 256, 257, 4096]);
  const list = bytes(fixed + count * element);
  if (list.length >= at + countSize) {
    new DataView(list.buffer).setUint32(at, count, true);
    // The upper half of a count of 64 bits, which the kernel believes as well.
    if (countSize > 4) new DataView(list.buffer).setUint32(at + 4, chance(0.3) ? 1 : 0, true);
  }
  return list;
}

const making = rows.filter(({ makes }) => makes !== 0);
const referring = rows.filter(({ references }) => references.length > 0);

/** Of the right kind for the row; now and then of another, missing, or bytes of another length. */
function referenceFor({ is, kinds }) {
  if (chance(0.2)) return choice([null, undefined, anyHandle(), value()]);
  if (is === 2) return bytes(choice([0, 1, 2, 4, 8, 16, 64, 4096, 65_536, 65_537]));
  const handle = handleFor(kinds);
  return is === 0 ? handle : { memory: handle, offset: choice([0, 0, 0, PAGE, 1, 15 * PAGE, 2 ** 40]) };
}

function callOf(wanted) {
  const call = [handleFor(wanted.on), wanted.request, argumentFor(wanted)];
  if (wanted.references.length === 0 && chance(0.9)) return call;
  for (const { offset, size } of wanted.references) if (chance(0.95)) call[2].fill(0, offset, offset + size);
  const references = wanted.references.map(referenceFor);
  const command = choice(wanted.references[0]?.inside ?? []);
  if (command !== undefined) {
    // A command that the addon knows, and what its own struct refers to.
    new DataView(call[2].buffer).setUint32(0, command.id, true);
    if (chance(0.8)) references[0] = command.size === 0 ? null : bytes(command.size % 65_535);
    for (const { is } of command.references) references.push(referenceFor({ is, kinds: 32 }));
  }
  if (chance(0.1)) references.push(value());
  return [...call, references];
}

/** A memory, an offset into it, and bytes: of JS's, or of guest memory too. */
const copied = () => {
  const array = chance(0.2) ? own() : choice(arrays)(choice(sizes));
  return [choice(open.memory), choice([0, 1, 4095, 4096, 65_535, 65_536, 2 ** 53 - 1]), array];
};

const vcpuNumber = () =>
  chance(0.3) || open.vcpu.length === 0 ? below(2000) : exchanged('vcpu', native.kickId(choice(open.vcpu)));

/** Runs that were begun on threads of vCPUs' own and have ended. */
let ticks = 0;
const tick = () => {
  if (++ticks % 50 === 0)
    throw Object.assign(new Error('a callback that throws'), { code: 'ERR_KVM_CLOSED' });
};
// Callbacks are anything that can be called: what they throw is theirs, and comes as from any callback.
let uncaught = 0;
process.on('uncaughtException', (error, origin) => {
  uncaught++;
  if (origin === 'uncaughtException') return;
  // This program's own, as none of the addon's promises is rejected.
  process.stderr.write(`${error?.stack}\n`);
  process.exit(1);
});

const pageOffsets = [0, PAGE, 15 * PAGE, 16 * PAGE, 1, 2 ** 52];

/** Arguments that the function may well accept. */
const plausible = {
  open: () => [
    choice(['/dev/kvm', '/dev/null', '/dev/zero', '/', '/nonexistent', '/dev/kvm\0', 'x'.repeat(5000)]),
  ],
  ioctl: () => callOf(choice(chance(0.3) ? referring : rows)),
  create: () => callOf(choice(making)),
  prepare: () => {
    const wanted = choice(rows);
    return [handleFor(wanted.on), wanted.request];
  },
  readStats: () => [
    choice([...open.stats, ...open.vm]),
    choice([0, 0, 24, 2 ** 31, 2 ** 53 - 1]),
    bytes(choice([0, 24, 4096])),
  ],
  requests: () => [],
  allocate: () => [choice([4096, 8192, 65_536, BIG, 2 ** 32])],
  reserve: () => [choice([4096, 8192, 65_536, 2 ** 32, 2 ** 46])],
  openMemory: () => {
    const memory = choice(open.memory);
    if (memory === undefined) return [];
    return [
      chance(0.8) ? exchanged('fd', native.fd(memory)) : below(64),
      chance(0.8) ? exchanged('inode', native.inode(memory)) : below(2 ** 32),
    ];
  },
  mapGuestMemfd: () => [choice(open.gmem)],
  mapDirtyRing: () => [choice(open.vcpu)],
  inode: () => [choice([...open.memory, ...open.gmem])],
  fallocate: () => [
    choice([...open.memory, ...open.gmem]),
    choice([0, 1, 3, 3, 2, 8, 0x10, 0x20, 0x40]),
    choice([0, 4096, 8192, 1]),
    choice([0, 4096, 65_536, 1, 2 ** 20]),
  ],
  seek: () => [choice([...open.memory, ...open.reservation]), choice(pageOffsets), choice([3, 4, 0, 2])],
  madvise: () => [
    choice(open.memory),
    choice([0, 1, 3, 4, 9, 14, 15, 22, 23, 100]),
    choice([0, 4096, 1]),
    4096,
  ],
  write: copied,
  read: copied,
  buffer: () => [choice([...open.memory, ...open.vcpu, ...open.ring])],
  fd: () => [anyHandle()],
  close: () => [anyHandle()],
  shareVm: () => [choice(open.vm)],
  openVm: () => {
    const vm = choice(open.vm);
    return [vm !== undefined && chance(0.8) ? exchanged('vm', native.shareVm(vm)) : below(64)];
  },
  openVcpu: () => [vcpuNumber()],
  runner: () => [choice(open.vcpu)],
  starter: () => [choice(open.vcpu), choice([() => {}, () => {}, tick])],
  kickId: () => [choice(open.vcpu)],
  kick: () => [vcpuNumber()],
  stop: () => [vcpuNumber()],
  pause: () => [vcpuNumber(), choice([undefined, choice(open.eventfd)])],
  resume: () => [vcpuNumber()],
  userfaultfd: () => [paged],
  shareUserfaultfd: () => [choice(open.userfaultfd)],
  openUserfaultfd: () => {
    const faults = choice(open.userfaultfd);
    if (faults === undefined) return [];
    const { fd, inode, base, size } = native.shareUserfaultfd(faults);
    return [
      chance(0.8) ? fd : below(64),
      chance(0.8) ? inode : below(2 ** 32),
      chance(0.5) ? base : choice(bigints),
      size,
    ];
  },
  fillPages: () => [
    choice(open.userfaultfd),
    choice(pageOffsets),
    chance(0.1) ? own() : bytes(choice([0, 1, PAGE, 2 * PAGE, 17 * PAGE])),
  ],
  zeroPages: () => [choice(open.userfaultfd), choice(pageOffsets), choice(pageOffsets)],
  wakePages: () => [choice(open.userfaultfd), choice(pageOffsets), choice(pageOffsets)],
  readFaults: () => [choice(open.userfaultfd)],
  issue: () => [],
  eventfd: () => [choice([0, 1, 2 ** 32 - 1, 2 ** 32]), chance(0.5)],
  shareEventfd: () => [choice(open.eventfd)],
  openEventfd: () => {
    const eventfd = choice(open.eventfd);
    return [
      eventfd !== undefined && chance(0.8) ? exchanged('eventfd', native.shareEventfd(eventfd)) : below(64),
    ];
  },
  signalEventfd: () => [choice(open.eventfd), choice([0, 1, 2 ** 32, 2 ** 53 - 1, 2n ** 64n - 2n])],
  drainEventfd: () => [choice(open.eventfd)],
  watch: () => [choice([...open.userfaultfd, ...open.eventfd]), choice([undefined, () => {}])],
  run: () => [choice([0.0001, 0.01, 0.5, 1, 2])],
  start: () => [choice([0.0001, 0.01, 0.5, 1, 2])],
};

/** Keeps a call from taking the host's memory or time; what JS may do to itself is not what is tested. */
function tame(name, args) {
  if (
    name === 'open' &&
    typeof args[0] === 'string' &&
    args[0].startsWith('/dev/') &&
    args[0] !== '/dev/kvm'
  ) {
    args[0] = '/dev/null';
  }
  const [, wanted, argument] = args;
  const is = (ioctl) => wanted === request(ioctl) && isUint8Array(argument);
  // The kernel is busy for minutes with the attributes of all addresses.
  if (name === 'ioctl' && is('KVM_SET_MEMORY_ATTRIBUTES') && readable(argument) >= 16)
    argument.fill(0, 12, 16);
  // Pages of a file that is too large would be allocated by fallocate().
  if (name === 'create' && is('KVM_CREATE_GUEST_MEMFD') && readable(argument) >= 8) argument.fill(0, 3, 8);
  const unlimited = args[0] === undefined || (typeof args[0] === 'number' && args[0] > 10);
  // As many as there are would share the processors for ever.
  if (name === 'start' && unlimited) args[0] = 1;
  // Without a limit, and with none to stop it, a guest may run for ever: also that of a vCPU which is left to
  // the garbage collector.
  // Another thread may pause it meanwhile.
  if (name === 'run' && unlimited && workerData) args[0] = 1;
  if (name === 'run' && !(typeof args[0] === 'number' && args[0] <= 10)) {
    for (const { id } of open.functions) {
      // A run of one that is paused waits, whoever kicks it.
      while (native.resume(id) === 0);
      native.kick(id);
    }
  }
}

/** byteLength without the array's own opinion about it. */
const readable = (array) => Reflect.get(Object.getPrototypeOf(Uint8Array.prototype), 'byteLength', array);

function call(name) {
  const style = below(10);
  let args = style < 6 ? plausible[name]() : [];
  if (style >= 6) while (args.length < below(7)) args.push(value());
  // A good call with one bad argument goes deepest.
  if (style < 6 && style > 2) args[below(args.length + 1)] = value();
  args = args.slice();
  tame(name, args);
  const { start, end } = choice(starters) ?? {};
  const mine = { run: choice(open.functions)?.run, start, end, issue: choice(prepared)?.() };
  const target = mine[name] ?? native[name];
  if (target === undefined) return;
  if (log !== undefined) writeSync(log, describe(name, args), 0);

  const result = chance(0.02)
    ? Reflect.construct(target, args)
    : Reflect.apply(target, chance(0.1) ? value() : native, args);
  if (name === 'ioctl' && result >= 0) accepted.add(rows.find((other) => other.request === args[1]).name);
  if (name === 'run' && (result >= 0 || result === EINTR || result === ETIME)) runs++;
  if (name === 'prepare') keepPrepared(args[1], result);
  if (name === 'open') keep('system', result);
  if (name === 'create') keepCreated(args, result);
  if (name === 'allocate' || name === 'openMemory' || name === 'mapGuestMemfd') keepMemory(result);
  if (name === 'mapDirtyRing') keep('ring', result);
  if (name === 'reserve') keep('reservation', result);
  if (name === 'openUserfaultfd') keep('userfaultfd', result);
  if (name === 'eventfd' || name === 'openEventfd') keep('eventfd', result);
  // Of memory that others use, it is closed before anybody touches a page.
  if (name === 'userfaultfd' && isExternal(result)) native.close(result);
  if (name === 'runner' && typeof result === 'function')
    open.functions.push({ run: result, id: native.kickId(args[0]) });
  if (name === 'starter' && typeof result === 'object') starters.push(result);
  if (name === 'openVm') keep('vm', result);
  if (name === 'openVcpu') keep('vcpu', result);
  while (starters.length > 8) starters.shift();
  if (name === 'close') forgetClosed(args[0]);
}

/** What begins and ends runs on a thread of the vCPU's own. */
const starters = [];

/** Ioctls that were made ready; their bytes are filled with anything, and now and then taken away. */
const prepared = [];
function keepPrepared(wanted, made) {
  // The kernel would be busy for minutes: see tame().
  if (typeof made !== 'object' || made === null || Number(wanted) === request('KVM_SET_MEMORY_ATTRIBUTES'))
    return;
  const { buffer, issue } = made;
  let bytes = new Uint8Array(buffer);
  prepared.push(() => {
    if (chance(0.05)) bytes = new Uint8Array(structuredClone(bytes.buffer, { transfer: [bytes.buffer] }));
    for (let i = 0; i < bytes.length; i += 1 + below(16)) bytes[i] = choice([0, 1, below(256)]);
    return issue;
  });
  if (prepared.length > 16) prepared.shift();
}

function keepCreated([, wanted], result) {
  if (!isExternal(result)) return;
  keep(kindOf[rows.find((other) => other.request === Number(wanted)).makes], result);
}

function keepMemory(result) {
  if (!isExternal(result)) return;
  if (native.buffer(result).byteLength > BIG) native.close(result);
  else keep('memory', result);
}

function describe(name, args) {
  const shown = args.map((argument) => {
    if (isUint8Array(argument)) {
      const hex =
        readable(argument) > 0
          ? Buffer.from(argument.buffer, argument.byteOffset, Math.min(readable(argument), 64)).toString(
              'hex',
            )
          : '';
      return `${readable(argument)} bytes ${hex}`;
    }
    return typeof argument === 'object' && argument !== null ? 'an object' : String(argument).slice(0, 40);
  });
  const asked =
    name === 'ioctl' || name === 'create' ? rows.find(({ request }) => request === args[1])?.name : '';
  return `${name} ${asked}(${shown.join(', ')})`.padEnd(600).slice(0, 600).concat('\n');
}

// --- the storm ---------------------------------------------------------------------------------------------------

const count = { calls: 0, returned: 0, thrown: 0, wrong: [] };
const byName = {};

function attempt(name) {
  count.calls++;
  byName[name] = (byName[name] ?? 0) + 1;
  try {
    call(name);
    count.returned++;
  } catch (error) {
    count.thrown++;
    const typed = error instanceof Error && /^ERR_KVM_(INVALID_ARG|CLOSED)$/.test(error.code);
    if (!typed && count.wrong.length < 10) count.wrong.push(`${name}: ${error?.stack ?? String(error)}`);
  }
}

const callsOf = (name) => byName[name] ?? 0;
/** A function that has not had its calls yet. */
const behind = () => names.find((name) => callsOf(name) < Number(EACH));

const PROGRESS_MS = 30_000;
let told = performance.now();
let before = 0;
function tellProgress() {
  const now = performance.now();
  if (now - told < PROGRESS_MS) return;
  const rate = Math.round(((count.calls - before) * 1000) / (now - told));
  const wanting = names.filter((name) => callsOf(name) < Number(EACH));
  const left = wanting.reduce((sum, name) => sum + Number(EACH) - callsOf(name), 0);
  const each =
    wanting.length > 0 ? `; ${left} more to go for ${wanting.length} of ${names.length} functions` : '';
  process.stderr.write(`hostile: ${count.calls} calls, ${rate} a second${each}\n`);
  told = now;
  before = count.calls;
}

let interrupted = false;
if (!workerData)
  process.once('SIGINT', () => {
    interrupted = true;
  });

for (let i = 0, next = behind(); !interrupted && (count.calls < Number(CALLS) || next !== undefined); i++) {
  if (i % 400 === 0) furnish();
  if (i % 5000 === 0) globalThis.gc?.();
  if (i % 1000 === 0) {
    // Finalizers and the ends of detached buffers come with the event loop.
    await new Promise((resolve) => setImmediate(resolve));
    tellProgress();
  }
  bound();
  if (i % 100 === 0) next = behind();
  attempt(next !== undefined && chance(0.5) ? next : choice(chance(0.4) ? deep : names));
}

for (const kind of kinds) while (open[kind].length > 0) discard(kind, 0);
open.functions.length = 0;
starters.length = 0;
closedHandles.length = 0;
for (let i = 0; i < 3; i++) {
  globalThis.gc?.();
  await new Promise((resolve) => setTimeout(resolve, 10));
}
process.stdout.write(
  `${JSON.stringify({
    ...count,
    byName,
    accepted: [...accepted],
    runs,
    fds: readdirSync('/proc/self/fd').length,
    ticks,
    uncaught,
    maxRssMiB: process.resourceUsage().maxRSS >> 10,
  })}\n`,
);
if (interrupted) process.exitCode = 130;
