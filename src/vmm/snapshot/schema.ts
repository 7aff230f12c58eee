/**
 * What a saved machine is: plain data that JSON can hold, and that is checked whole before anything is made of it. The
 * kernel's structs are their own bytes, in hex, so that nothing of them is lost, and known by their size.
 */

import { PAGE_SIZE as PAGE } from '../../hypervisor/args.ts';
import { VmexitError } from '../../hypervisor/errors.ts';
import { isRouteType } from '../../hypervisor/gsi-routing.ts';
import { MAX_MEMORY } from '../../hypervisor/guest-memory.ts';
import type { Struct, Type } from '../../uapi/layout.ts';
import { kvm_irq_routing_entry } from '../../uapi/structs.ts';
import {
  kvm_cpuid_entry2,
  kvm_debugregs,
  kvm_ioapic_state,
  kvm_lapic_state,
  kvm_msr_entry,
  kvm_pic_state,
  kvm_pit_state2,
  kvm_regs,
  kvm_sregs,
  kvm_sregs2,
  kvm_vcpu_events,
  kvm_xcrs,
} from '../../uapi/x86.ts';

/** Goes up when a state has more than before, or means something else. What earlier ones had not is in `earlier`. */
export const STATE_VERSION = 2;

/** Gives the value if it is one, else throws what is wrong `at` a path. */
type Check<T> = (value: unknown, at: string) => T;
type Checked<C> = C extends Check<infer T> ? T : never;

const wrong = (at: string, expected: string): VmexitError =>
  new VmexitError('ERR_KVM_SNAPSHOT', `the machine's state is not one: ${at} must be ${expected}`);

const whole =
  (high: number = Number.MAX_SAFE_INTEGER, low = 0, unit = 1): Check<number> =>
  (value, at) => {
    if (Number.isSafeInteger(value) && (value as number) >= low && (value as number) <= high)
      if ((value as number) % unit === 0) return value as number;
    throw wrong(at, `a whole number from ${low} to ${high}${unit > 1 ? `, a multiple of ${unit}` : ''}`);
  };
const pages = (high?: number, low?: number) => whole(high, low, PAGE);
const u16 = whole(0xffff);
const u32 = whole(0xffff_ffff);

const orNull =
  <T>(check: Check<T>): Check<T | null> =>
  (value, at) =>
    value === null ? null : check(value, at);

const list =
  <T>(check: Check<T>, most: number): Check<readonly T[]> =>
  (value, at) => {
    if (!Array.isArray(value) || value.length > most) throw wrong(at, `an array of at most ${most} elements`);
    return value.map((element, i) => check(element, `${at}[${i}]`));
  };

/** With these keys and no others: one that is not known might be a state that would be lost. */
const record =
  <S extends Record<string, Check<unknown>>>(shape: S): Check<{ readonly [K in keyof S]: Checked<S[K]> }> =>
  (value, at) => {
    const keys = Object.keys(shape);
    const object = typeof value === 'object' && value !== null ? (value as Record<string, unknown>) : {};
    if (Object.keys(object).length !== keys.length || !keys.every((key) => Object.hasOwn(object, key)))
      throw wrong(at || 'it', `an object of ${keys.join(', ')}`);
    return Object.fromEntries(
      keys.map((key) => [key, shape[key]!(object[key], at === '' ? key : `${at}.${key}`)]),
    ) as never;
  };

const MAX_BYTES = 65_536;
/** Bytes as hex; of a struct, as many as it has, or as so many of them. */
const hex =
  (struct?: Pick<Struct, 'name' | 'size'>, several = false): Check<string> =>
  (value, at) => {
    const digits = typeof value === 'string' && /^(?:[0-9a-f]{2})*$/.test(value) ? value.length / 2 : -1;
    const fits =
      struct === undefined
        ? digits <= MAX_BYTES
        : several
          ? digits % struct.size === 0
          : digits === struct.size;
    if (digits >= 0 && fits) return value as string;
    const size = struct === undefined ? '' : ` of struct ${struct.name}${several ? 's' : ''}`;
    throw wrong(at, `bytes${size} in hex`);
  };

function flag(value: unknown, at: string): boolean {
  if (typeof value === 'boolean') return value;
  throw wrong(at, 'true or false');
}

/** KVM_ENABLE_CAP. The arguments are numbers, as strings: they have 64 bits. */
const cap = record({ cap: u32, flags: u32, args: list(decimal, 4) });

const slot = record({
  slot: u16,
  addressSpace: u16,
  flags: u32,
  start: pages(),
  size: pages(undefined, PAGE),
  /** Which of the memories, and from where on. */
  memory: orNull(u32),
  memoryOffset: pages(MAX_MEMORY),
  guestMemfd: orNull(u32),
  guestMemfdOffset: pages(),
});

const vcpu = record({
  id: u32,
  caps: list(cap, 256),
  cpuid: hex(kvm_cpuid_entry2, true),
  regs: hex(kvm_regs),
  /** Where KVM has it (since 5.14), and else the other one. */
  sregs2: orNull(hex(kvm_sregs2)),
  sregs: orNull(hex(kvm_sregs)),
  /** In the format of XSAVE, without the zeroes at its end. */
  xsave: hex(),
  xcrs: orNull(hex(kvm_xcrs)),
  msrs: hex(kvm_msr_entry, true),
  /** Listed by KVM_GET_MSR_INDEX_LIST, and not to be read here. */
  unreadableMsrs: list(u32, 1024),
  events: hex(kvm_vcpu_events),
  debugRegs: hex(kvm_debugregs),
  mpState: u32,
  /** Where it is in the kernel. */
  lapic: orNull(hex(kvm_lapic_state)),
  tscKhz: u32,
  /** What KVM_GET_NESTED_STATE gives, of a guest that is a hypervisor. */
  nested: orNull(hex()),
});

const machine = record({
  version: whole(),
  /** Which backend ran it: for messages. */
  backend: (value: unknown, at: string) => {
    if (value === 'kvm' || value === 'sim') return value;
    throw wrong(at, "'kvm' or 'sim'");
  },
  vm: record({
    type: u32,
    caps: list(cap, 1024),
    tssAddress: orNull(u32),
    identityMapAddress: orNull(u32),
    bootCpuId: orNull(u32),
    /** Those of KVM_CREATE_IRQCHIP. With KVM_CAP_SPLIT_IRQCHIP there are only the local APICs, of the vCPUs. */
    irqchip: orNull(
      record({ master: hex(kvm_pic_state), slave: hex(kvm_pic_state), ioapic: hex(kvm_ioapic_state) }),
    ),
    pit: orNull(record({ flags: u32, reinject: flag, state: hex(kvm_pit_state2) })),
    /** Where it was set: null is the kernel's own. */
    gsiRouting: orNull(record({ flags: u32, routes: hex(kvm_irq_routing_entry, true) })),
    /** Their sizes, in bytes. */
    memories: list(pages(MAX_MEMORY, PAGE), 32_768),
    /** Sizes of those that slots are bound to. They come back empty: no page of them is the guest's. */
    guestMemfds: list(pages(undefined, PAGE), 32_768),
    slots: list(slot, 65_536),
    attributes: list(record({ start: pages(), end: pages(), attributes: whole() }), 1_000_000),
    /** Nanoseconds of kvmclock, where there is one. */
    clock: orNull(decimal),
  }),
  vcpus: list(vcpu, 4096),
  /** Of the VMM's own devices, by name. */
  devices: (value: unknown, at: string): Readonly<Record<string, string>> => {
    if (typeof value !== 'object' || value === null) throw wrong(at, 'an object');
    return Object.fromEntries(
      Object.entries(value).map(([name, bytes]) => [name, hex()(bytes, `${at}.${name}`)]),
    );
  },
});

function decimal(value: unknown, at: string): string {
  if (typeof value === 'string' && /^\d{1,20}$/.test(value) && BigInt(value) < 1n << 64n) return value;
  throw wrong(at, 'a number of 64 bits, as a string');
}

/**
 * A machine as plain data that JSON can hold: all that its guest could notice but the contents of memory.
 * Structs of the kernel are in it as hex.
 */
export type MachineState = Checked<typeof machine>;
export type VcpuState = MachineState['vcpus'][number];
export type SlotState = MachineState['vm']['slots'][number];

/** By version, what a later one has besides: a machine that such a version could save has none of it. */
const earlier: Readonly<Record<number, { readonly vm: object; readonly vcpu: object }>> = {
  1: {
    vm: { bootCpuId: null, irqchip: null, pit: null, gsiRouting: null },
    vcpu: { caps: [], lapic: null, nested: null },
  },
};

const withMore = (value: unknown, more: object): unknown =>
  typeof value === 'object' && value !== null ? { ...value, ...more } : value;

/** A state of an earlier version as one of this. Nothing of it was checked yet. */
function upgraded(value: unknown): unknown {
  const { version, vm, vcpus } = (value ?? {}) as { version?: unknown; vm?: unknown; vcpus?: unknown };
  if (typeof version !== 'number' || version === STATE_VERSION) return value;
  const more = Object.hasOwn(earlier, version) ? earlier[version] : undefined;
  if (more === undefined)
    throw new VmexitError(
      'ERR_KVM_SNAPSHOT',
      `the machine's state is of version ${version}, and this vmexit knows versions 1 to ${STATE_VERSION}: use the one that saved it`,
    );
  return withMore(value, {
    version: STATE_VERSION,
    vm: withMore(vm, more.vm),
    vcpus: Array.isArray(vcpus) ? vcpus.map((one) => withMore(one, more.vcpu)) : vcpus,
  });
}

/**
 * The state in what JSON.parse() gave, also of an earlier version.
 * @throws VmexitError ERR_KVM_SNAPSHOT that names what is wrong, and a later version by its number
 */
export function parseState(value: unknown): MachineState {
  const state = machine(upgraded(value), '');
  const { memories, guestMemfds, slots, attributes, gsiRouting } = state.vm;
  for (const [i, { memory, memoryOffset, guestMemfd, guestMemfdOffset, size }] of slots.entries()) {
    const within = (sizes: readonly number[], index: number | null, offset: number) =>
      index === null || (index < sizes.length && offset + size <= sizes[index]!);
    if (!within(memories, memory, memoryOffset) || !within(guestMemfds, guestMemfd, guestMemfdOffset))
      throw wrong(`vm.slots[${i}]`, 'within its memory');
  }
  if (!unpackAll(kvm_irq_routing_entry, gsiRouting?.routes ?? '').every(({ type }) => isRouteType(type)))
    throw wrong('vm.gsiRouting', 'routes of types that there are');
  if (attributes.some(({ start, end }) => end <= start)) throw wrong('vm.attributes', 'ranges of pages');
  if (state.vcpus.some(({ sregs, sregs2 }) => (sregs === null) === (sregs2 === null)))
    throw wrong('vcpus', 'with either sregs or sregs2');
  if (new Set(state.vcpus.map(({ id }) => id)).size !== state.vcpus.length)
    throw wrong('vcpus', 'of different ids');
  return state;
}

export const toHex = (bytes: Uint8Array): string => {
  let text = '';
  for (const byte of bytes) text += byte.toString(16).padStart(2, '0');
  return text;
};

export function fromHex(text: string): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(text.length / 2);
  for (let i = 0; i < bytes.length; i++) bytes[i] = Number.parseInt(text.slice(2 * i, 2 * i + 2), 16);
  return bytes;
}

/** A value as its struct's bytes, and back. */
export const pack = <T>(type: Type<T>, value: T): string => packAll(type, [value]);
export function packAll<T>(type: Type<T>, values: readonly T[]): string {
  const bytes = new Uint8Array(values.length * type.size);
  const view = new DataView(bytes.buffer);
  for (const [i, value] of values.entries()) type.set(view, i * type.size, value);
  return toHex(bytes);
}
export const unpack = <T>(type: Type<T>, text: string): T => unpackAll(type, text)[0]!;
export function unpackAll<T>(type: Type<T>, text: string): T[] {
  const bytes = fromHex(text);
  const view = new DataView(bytes.buffer);
  return Array.from({ length: bytes.length / type.size }, (_, i) => type.get(view, i * type.size));
}
