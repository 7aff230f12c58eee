// Calls every method of the package's classes with whatever JS can make, and reports every error that is not typed.
//
//   node --expose-gc hostile-api.mjs SEED CALLS
import { boot, code, KvmError, native, openHypervisor } from './fixture.mjs';
import {
  arrays,
  below,
  bigints,
  chance,
  choice,
  hugeBigints,
  numbers,
  objects,
  others,
  Sprung,
  seed,
} from './hostile-values.mjs';

const [, , SEED, CALLS] = process.argv;
seed(Number(SEED));

const hv = openHypervisor();
let all = boot(code.out, hv);
let elsewhere = boot(code.out, hv);

/** Fresh objects, and some of them closed. */
function furnish() {
  for (const one of [all, elsewhere]) {
    for (const object of objectsOf(one)) if (!object.closed) object.close();
  }
  [all, elsewhere] = [boot(code.out, hv), boot(code.out, hv)];
  for (const one of [all, elsewhere]) {
    try {
      one.file = one.vm.createGuestMemfd(8192);
    } catch (error) {
      if (!(error instanceof KvmError)) throw error;
    }
    try {
      // Of memory that nobody has: who touches it waits for ever.
      one.faults = one.vm.allocate(16_384).userfaultfd();
    } catch (error) {
      if (!(error instanceof KvmError)) throw error;
    }
  }
  for (const name of ['vm', 'ram', 'vcpu', 'file', 'faults']) if (chance(0.1)) all[name]?.close();
}

const objectsOf = ({ vm, ram, vcpu, file, faults }) =>
  [faults, file, vcpu, vm, ram].filter((object) => object !== undefined);

function value() {
  switch (below(8)) {
    case 0:
      return choice(numbers);
    case 1:
      return choice(chance(0.7) ? bigints : hugeBigints);
    case 2:
      return choice(others);
    case 3:
      return choice(objects);
    case 4:
      return choice(arrays)(choice([0, 8, 64]));
    case 5:
      return choice(objectsOf(chance(0.5) ? all : elsewhere));
    case 6:
      return record();
    default:
      return below(100);
  }
}

/** Options of every method, each perhaps left out, perhaps wrong. */
const fields = [
  ...['slot', 'addressSpace', 'flags', 'guestPhysAddr', 'memorySize', 'memory', 'memoryOffset', 'guestMemfd'],
  ...[
    'guestMemfdOffset',
    'address',
    'size',
    'attributes',
    'type',
    'cap',
    'args',
    'rip',
    'rflags',
    'cs',
    'index',
  ],
  ...['data', 'irq', 'level', 'backend', 'fd', 'inode', 'control', 'function', 'entries', 'mpState'],
  ...['chipId', 'pic', 'ioapic', 'channels', 'gsi', 'msi', 'irqchip'],
];
const good = {
  ...{
    slot: 1,
    flags: 0,
    guestPhysAddr: 2 ** 20,
    address: 0,
    size: 4096,
    attributes: 8,
    type: 0,
    cap: 1,
    index: 1,
  },
  ...{ rip: 0x1000, rflags: 2, irq: 1, level: 1, backend: 'kvm', fd: 1, inode: 1 },
};
const made = new WeakSet();
function record() {
  const options = {};
  for (const field of fields) {
    if (chance(0.3))
      options[field] = chance(0.5)
        ? good[field]
        : choice([...numbers, ...bigints, null, 'x', {}, [], all.ram]);
  }
  if (chance(0.3)) options.memory = all.ram;
  made.add(options);
  return options;
}

/** What a class offers: methods, and properties to read and to set. */
function members(object) {
  const found = [];
  for (let at = object; at !== Object.prototype; at = Object.getPrototypeOf(at)) {
    for (const [name, { value, get, set }] of Object.entries(Object.getOwnPropertyDescriptors(at))) {
      if (name === 'constructor') continue;
      if (typeof value === 'function') found.push({ name, use: (target, args) => target[name](...args) });
      if (get) found.push({ name, use: (target) => target[name] });
      if (set) {
        found.push({
          name: `${name} =`,
          use(target, [given]) {
            target[name] = given;
          },
        });
      }
    }
  }
  return found;
}

/** The kernel is busy for minutes with attributes, or pages, of huge ranges. */
const unbounded = ['setMemoryAttributes', 'trySetMemoryAttributes', 'allocate', 'advise', 'preFaultMemory'];
const small = (size) => (typeof size === 'number' && size > 2 ** 20 ? 4096 : size);
const tame = (argument) => {
  if (argument === null || typeof argument !== 'object' || !made.has(argument)) return small(argument);
  return { ...argument, size: small(argument.size) };
};

const untyped = new Map();
const byName = {};
let thrown = 0;

const isOurs = (result) =>
  typeof result === 'object' &&
  result !== null &&
  objectsOf(all).some((one) => result instanceof one.constructor);

function typed(error) {
  if (error instanceof KvmError) return typeof error.code === 'string' && error.errno < 0;
  return error instanceof Error && /^ERR_KVM_/.test(error.code) && error.message.length > 0;
}

function judge(label, error) {
  thrown++;
  // A class that is given as a callback is its caller's own mistake, told by the engine when it is called back.
  const isCallbacks = error instanceof TypeError && /^Class constructor/.test(error.message);
  if (error instanceof Sprung || isCallbacks || typed(error) || untyped.has(label)) return;
  const stack = String(error?.stack ?? error).split('\n');
  untyped.set(label, stack.slice(0, 3).join(' '));
}

for (let i = 0; i < Number(CALLS); i++) {
  if (i % 100 === 0) furnish();
  if (i % 2000 === 0) globalThis.gc?.();
  const { vcpu } = all;
  const target = choice([
    hv,
    ...objectsOf(all),
    ...objectsOf(all),
    ...(vcpu.closed ? [] : [vcpu.raw, vcpu.io, vcpu.mmio, vcpu.memoryFault, vcpu.hypercall, vcpu.syncRegs]),
  ]);
  const { name, use } = choice(members(target));
  if (target === hv && name === 'close') continue;
  let args = Array.from({ length: below(5) }, value);
  if (unbounded.includes(name)) {
    args = args.map(tame);
  }
  // Nothing here waits for a guest.
  if (!vcpu.closed) native.kick(vcpu.kickId);
  const label = `${target.constructor.name}.${name}`;
  byName[label] = (byName[label] ?? 0) + 1;
  try {
    const result = use(target, args);
    if (isOurs(result) && !objectsOf(all).includes(result)) result.close();
    if (result instanceof Promise) result.catch((error) => judge(label, error));
  } catch (error) {
    judge(label, error);
  }
}

await new Promise((turn) => setImmediate(turn)); // for the promises
furnish(); // what is still watched keeps the process alive
for (const { faults } of [all, elsewhere]) faults?.close();
process.stdout.write(
  `${JSON.stringify({ thrown, members: Object.keys(byName).length, untyped: Object.fromEntries(untyped) }, undefined, 1)}\n`,
);
