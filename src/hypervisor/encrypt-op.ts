/** KVM_MEMORY_ENCRYPT_OP: a command, its struct, and what that refers to, put together for a backend. */
import { type EncryptCommandName, type EncryptFamily, encryptCommands } from '../uapi/encrypt-commands.ts';
import { kvm_sev_cmd, kvm_tdx_cmd } from '../uapi/encryption.ts';
import { ioctls } from '../uapi/ioctls.ts';
import { type Input, type Struct, viewOf } from '../uapi/layout.ts';
import { kvm_cpuid_entry2 } from '../uapi/x86.ts';
import { type Integer, object, u32 } from './args.ts';
import type { Reference } from './backend.ts';
import { KvmError, outOfRange, wrongType } from './errors.ts';
import { type Fd, failed } from './fd.ts';
import { type GuestPlace, placeOf } from './guest-place.ts';
import type { CpuidEntry } from './vcpu-state.ts';

/** A command of KVM_MEMORY_ENCRYPT_OP, with what it takes. */
export interface EncryptOp {
  /**
   * The fields of its struct, named as in `vmexit/uapi`. A pointer's takes what it points to: a Uint8Array, or of guest memory
   * a GuestPlace. A length that is left out is that of the Uint8Array.
   */
  readonly data?: { readonly [field: string]: unknown };
  /** Leaves of CPUID behind the struct, of TDX's commands; room for those that the kernel gives. At most 256. */
  readonly entries?: readonly Input<CpuidEntry>[];
  /** Of a command without a struct: the 64 bits of `data`. KVM_TDX_INIT_VCPU: the guest's RCX at its start. */
  readonly value?: Integer;
  /** SEV: the number of an open file descriptor of /dev/sev; 0 without it. */
  readonly sevFd?: number;
  /** TDX: TdxMemRegionFlag; 0 without it. */
  readonly flags?: number;
}

/** What a command has answered. */
export interface EncryptAnswer {
  /** The struct as the kernel left it, with 0 where it has pointers; undefined for a command without one. */
  readonly data: { readonly [field: string]: unknown } | undefined;
  /** The leaves of CPUID behind it. */
  readonly entries: readonly CpuidEntry[];
  /** AMD's firmware's status, or the TDX module's: 0 for success. */
  readonly status: bigint;
}

/**
 * A command that AMD's firmware or the TDX module has refused. Its answer counts all the same: where it was asked with too
 * small a length, the one that is needed is in `answer.data`.
 */
export class FirmwareError extends KvmError {
  /** What was answered; `status` is not 0. */
  readonly answer: EncryptAnswer;

  /** @param result a negated errno */
  constructor(result: number, command: string, answer: EncryptAnswer) {
    super(
      result,
      'ioctl',
      ioctls.KVM_MEMORY_ENCRYPT_OP.name,
      `${command}: status 0x${answer.status.toString(16)}`,
    );
    this.answer = answer;
  }
}

/** KVM_MAX_CPUID_ENTRIES. */
const MAX_ENTRIES = 256;

type Fields = { [field: string]: unknown };

function commandOf(name: EncryptCommandName, family: EncryptFamily) {
  // As a key an object would be turned into a string, which its own code may refuse.
  if (typeof name !== 'string') throw wrongType('command', name, "the kernel's name of one");
  const command = Object.hasOwn(encryptCommands, name) ? encryptCommands[name] : undefined;
  if (command?.family === family) return command;
  const known = Object.entries(encryptCommands).filter(([, row]) => row.family === family);
  throw outOfRange('command', name, `one of ${known.map(([key]) => key).join(', ')}`);
}

/** What a field points to, in a backend's words; sets the length that it implies. */
function referenceOf(
  field: string,
  { to, length }: { readonly to: string; readonly length?: string },
  plain: Fields,
): Reference {
  const value = plain[field];
  delete plain[field];
  if (value === undefined) return null;
  if (to === 'memory') return placeOf(field, value as GuestPlace);
  if (!(value instanceof Uint8Array)) throw wrongType(field, value, 'a Uint8Array');
  if (length !== undefined) plain[length] ??= value.length;
  return value;
}

/** The struct and its leaves, encoded. */
function encoded(struct: Struct, plain: Fields, entries: readonly Input<CpuidEntry>[], list: boolean) {
  const bytes = new Uint8Array(struct.size + entries.length * kvm_cpuid_entry2.size);
  const head = { nent: entries.length };
  const fields = !list ? plain : 'nent' in struct.fields ? { ...plain, ...head } : { ...plain, cpuid: head };
  const view = viewOf(bytes);
  struct.encodeInto(view, fields as Input<never>);
  entries.forEach((entry, i) => {
    kvm_cpuid_entry2.set(view, struct.size + i * kvm_cpuid_entry2.size, entry as CpuidEntry);
  });
  return bytes;
}

function decoded(struct: Struct, bytes: Uint8Array, list: boolean) {
  const data = struct.decode(bytes) as Fields;
  const head = (data.cpuid ?? data) as { nent?: number };
  const room = (bytes.length - struct.size) / kvm_cpuid_entry2.size;
  const entries = Array.from({ length: list ? Math.min(head.nent ?? 0, room) : 0 }, (_, i) =>
    kvm_cpuid_entry2.get(viewOf(bytes), struct.size + i * kvm_cpuid_entry2.size),
  );
  return { data, entries };
}

/** Issues a command. @throws as Vm.memoryEncryptOp() says */
export function encryptOp(
  fd: Fd,
  family: EncryptFamily,
  name: EncryptCommandName,
  op: EncryptOp = {},
): EncryptAnswer {
  const { id, data: struct, list = false, pointers } = commandOf(name, family);
  const { data = {}, entries = [], value = 0, sevFd = 0, flags = 0 } = object('op', op);
  if (!Array.isArray(entries)) throw wrongType('entries', entries, 'an array of CPUID leaves');
  const most = list ? MAX_ENTRIES : 0;
  if (entries.length > most) throw outOfRange("entries' length", entries.length, `at most ${most}`);
  if (struct === undefined && Object.keys(object('data', data)).length > 0)
    throw outOfRange('data', data, `left out: ${name} takes none`);

  const plain: Fields = { ...object('data', data) };
  const inside = Object.entries(pointers).map(([field, pointer]) => referenceOf(field, pointer, plain));
  const bytes = struct && encoded(struct, plain, entries, list);
  const isSev = family === 'Sev';
  const argument = isSev
    ? kvm_sev_cmd.encode({ id, data: value, sevFd: u32('sevFd', sevFd) })
    : kvm_tdx_cmd.encode({ id, flags: u32('flags', flags), data: value });
  const row = ioctls.KVM_MEMORY_ENCRYPT_OP;
  const result = fd.issue(row, argument, [bytes ?? null, ...inside]);

  const status = isSev ? BigInt(kvm_sev_cmd.decode(argument).error) : kvm_tdx_cmd.decode(argument).hwError;
  if (result < 0 && status === 0n) throw failed(result, row, argument, fd.backend.name);
  const { data: left, entries: leaves } = struct
    ? decoded(struct, bytes!, list)
    : { data: undefined, entries: [] };
  const answer = { data: left, entries: leaves, status };
  if (result < 0) throw new FirmwareError(result, name, answer);
  return answer;
}
