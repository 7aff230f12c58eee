/**
 * The exit union of kvm_run decoded: one row per outcome says which arm of the union holds, what a caller gets of
 * it, and how it reads as a sentence. The allocation-free way to the same fields is kvm-run.ts.
 */
import * as c from './constants.ts';
import { dialects, type MemoryFault } from './dialects.ts';
import { Exit, type ExitName, exitName } from './exit.ts';
import { EXIT_OFFSET, exitArms, kvm_run } from './kvm-run.ts';
import { type Struct, u64, type Value } from './layout.ts';
import { flagNames, hex, hexBytes, nameOf, plural } from './text.ts';

interface ExitRow<T extends object> {
  /** The arm that holds, if the exit has one. */
  readonly arm?: Struct;
  decode(page: DataView): T;
  describe(exit: T): string;
}

const bare = (text: string): ExitRow<object> => ({ decode: () => ({}), describe: () => text });

function row<S extends Struct, T extends object>(
  arm: S,
  pick: (fields: Value<S>, page: DataView) => T,
  describe: (exit: T) => string,
): ExitRow<T> {
  return { arm, decode: (page) => pick(arm.get(page, EXIT_OFFSET) as Value<S>, page), describe };
}

/** The flag word at the start of an arm's field, every bit exact. */
const flagsAt = (page: DataView, arm: { fields: { flags: { offset: number } } }): bigint =>
  u64.get(page, EXIT_OFFSET + arm.fields.flags.offset);

const memoryFault = (text: string): ExitRow<MemoryFault> => ({
  arm: exitArms.memoryFault,
  decode: dialects.mainline.decode,
  describe: ({ flags, gpa, size }) =>
    `${text}: ${flags.private ? 'private' : 'shared'} access to ${hex.range(gpa, size)}` +
    (flags.userfault ? ', userfault' : '') +
    (flags.unknown ? `, unknown flags ${hex(flags.unknown)}` : ''),
});

const msr = (verb: string, preposition: string, written: boolean) =>
  row(
    exitArms.msr,
    ({ reason, index, data, error }) => ({ index, data, cause: reason, error }),
    (e) =>
      `${verb} ${preposition} MSR ${hex(e.index)}${written ? ` of ${hex(e.data)}` : ''}` +
      ` (${flagNames(c.MsrExitReason, e.cause)})`,
  );

/** The leaves of TDG.VP.VMCALL that KVM hands on (Intel GHCI 1.5, chapter 3). */
const tdvmcalls = { GET_TD_VM_CALL_INFO: 0x1_0000, GET_QUOTE: 0x1_0002, SETUP_EVENT_NOTIFY: 0x1_0004 };

/** By name of the outcome. What is not here is given as raw bytes. */
export const exitRows = {
  UNKNOWN: row(
    exitArms.hw,
    (hw) => hw,
    (e) => `unknown hardware exit ${hex(e.hardwareExitReason)}`,
  ),
  EXCEPTION: row(
    exitArms.ex,
    (ex) => ex,
    (e) => `exception ${vector(e.exception)}, error code ${hex(e.errorCode)}`,
  ),
  IO: row(
    exitArms.io,
    (io) => ({ ...io, direction: io.direction === c.IoDirection.OUT ? ('out' as const) : ('in' as const) }),
    (e) =>
      `I/O ${e.direction}: ${e.count === 1 ? '' : `${e.count} times `}${plural(e.size, 'byte')} ` +
      `${e.direction === 'out' ? 'to' : 'from'} port ${hex(e.port)}, data at kvm_run+${hex(e.dataOffset)}`,
  ),
  HYPERCALL: row(
    exitArms.hypercall,
    ({ nr, args, ret }, page) => ({ nr, args, ret, ...longMode(flagsAt(page, exitArms.hypercall)) }),
    (e) => `hypercall ${hypercall(e.nr, e.args)}${unknownFlags(e.unknownFlags)}`,
  ),
  DEBUG: row(
    exitArms.debug,
    ({ arch: { exception, pc, dr6, dr7 } }) => ({ exception, pc, dr6, dr7 }),
    (e) => `debug exception ${vector(e.exception)} at ${hex(e.pc)}, DR6 ${hex(e.dr6)}, DR7 ${hex(e.dr7)}`,
  ),
  HLT: bare('hlt'),
  MMIO: row(
    exitArms.mmio,
    ({ physAddr, data, len, isWrite }) => ({
      physAddr,
      len,
      isWrite: isWrite !== 0,
      data: data.slice(0, len),
    }),
    (e) =>
      `MMIO ${e.isWrite ? 'write' : 'read'} of ${plural(e.len, 'byte')} at ${hex(e.physAddr)}` +
      (e.isWrite ? `: ${hexBytes(e.data)}` : ''),
  ),
  IRQ_WINDOW_OPEN: bare('interrupt window open'),
  SHUTDOWN: bare('shutdown (on x86 a triple fault)'),
  FAIL_ENTRY: row(
    exitArms.failEntry,
    (failEntry) => failEntry,
    (e) => `hardware refused to enter the guest: ${hex(e.hardwareEntryFailureReason)} on CPU ${e.cpu}`,
  ),
  INTR: bare('interrupted by a signal'),
  SET_TPR: {
    decode: (page) => ({ cr8: kvm_run.fields.cr8.type.get(page, kvm_run.fields.cr8.offset) }),
    describe: (e) => `task priority lowered: cr8 ${hex(e.cr8)}`,
  } as ExitRow<{ cr8: bigint }>,
  TPR_ACCESS: row(
    exitArms.tprAccess,
    ({ rip, isWrite }) => ({ rip, isWrite: isWrite !== 0 }),
    (e) => `TPR ${e.isWrite ? 'write' : 'read'} at rip ${hex(e.rip)}`,
  ),
  NMI: bare('NMI'),
  INTERNAL_ERROR: row(exitArms.internal, internalError, describeInternalError),
  SYSTEM_EVENT: row(
    exitArms.systemEvent,
    ({ type, ndata, data }) => ({ type, ndata, data: data.slice(0, ndata) }),
    (e) => `system event ${nameOf(c.SystemEvent, e.type)}${dataWords(e.data)}`,
  ),
  IOAPIC_EOI: row(
    exitArms.eoi,
    (eoi) => eoi,
    (e) => `I/O APIC end of interrupt, vector ${hex(e.vector)}`,
  ),
  HYPERV: row(
    exitArms.hyperv,
    ({ type, u: { synic, hcall, syndbg } }) => ({
      type,
      ...(type === c.HypervExit.SYNIC && { synic }),
      ...(type === c.HypervExit.HCALL && { hcall }),
      ...(type === c.HypervExit.SYNDBG && { syndbg }),
    }),
    (e) => `Hyper-V ${nameOf(c.HypervExit, e.type)}${e.hcall ? ` ${hex(e.hcall.input)}` : ''}`,
  ),
  X86_RDMSR: msr('read', 'from', false),
  X86_WRMSR: msr('write', 'to', true),
  DIRTY_RING_FULL: bare('dirty ring full'),
  AP_RESET_HOLD: bare('AP waits for its reset (SEV-ES)'),
  X86_BUS_LOCK: bare('bus lock'),
  XEN: row(
    exitArms.xen,
    ({ type, u: { hcall } }) => ({ type, ...(type === c.XenExit.HCALL && { hcall }) }),
    (e) => `Xen ${nameOf(c.XenExit, e.type)}${e.hcall ? ` ${hex(e.hcall.input)} at CPL ${e.hcall.cpl}` : ''}`,
  ),
  NOTIFY: row(
    exitArms.notify,
    ({ flags }) => ({ flags, contextInvalid: (flags & c.NotifyFlag.CONTEXT_INVALID) !== 0 }),
    (e) => `no event window for too long (${flagNames(c.NotifyFlag, e.flags)})`,
  ),
  MEMORY_FAULT: memoryFault('memory fault'),
  TDX: row(
    exitArms.tdx,
    ({ flags, nr, unknown: { ret, data }, getQuote, getTdvmcallInfo, setupEventNotify }) => ({
      flags,
      nr,
      ret,
      data,
      ...(nr === BigInt(tdvmcalls.GET_QUOTE) && { getQuote }),
      ...(nr === BigInt(tdvmcalls.GET_TD_VM_CALL_INFO) && { getTdvmcallInfo }),
      ...(nr === BigInt(tdvmcalls.SETUP_EVENT_NOTIFY) && { setupEventNotify }),
    }),
    (e) => `TDX call ${nameOf(tdvmcalls, e.nr)}${dataWords(e.data)}${unknownFlags(e.flags)}`,
  ),
  SNP_REQ_CERTS: row(
    exitArms.snpReqCerts,
    (certs) => certs,
    (e) => `SNP guest asks for certificates: ${e.npages} pages at ${hex(e.gpa)}`,
  ),
  MEMORY_POISONED: memoryFault('hardware memory error'),
  INTERRUPTED: bare('interrupted (EINTR)'),
  AGAIN: bare('vCPU not runnable (EAGAIN)'),
  FAULT: bare('guest memory that the kernel could not reach (EFAULT, without fault information)'),
  DEADLINE: bare('deadline passed'),
  STOPPED: bare('stopped'),
  // biome-ignore lint/suspicious/noExplicitAny: each row has its own fields.
} as const satisfies { readonly [K in ExitName]?: ExitRow<any> };

type Rows = typeof exitRows;
type Decoded<R> = R extends ExitRow<infer T> ? T : never;

interface ExitHead {
  /** The number that run() returned. */
  readonly outcome: number;
  /** kvm_run.flags: see RunFlag. */
  readonly runFlags: number;
}

/** An exit of another architecture, or newer than this table: its name if it has one, and the union's bytes. */
export type RawExit = {
  readonly reason: 'OTHER';
  /** Its name, as exitName() gives it. */
  readonly name: string;
  /** The 256 bytes of kvm_run's exit union. */
  readonly raw: Uint8Array;
};

/**
 * A run's outcome with its fields; `reason` tells the arms apart. Each has `reason`, `outcome` (the number that run()
 * gave) and `runFlags` (RunFlag bits), and these, named as in the kernel's struct but in camelCase:
 *
 * | `reason` | fields |
 * | --- | --- |
 * | `IO` | `direction` (`'in'` or `'out'`), `size` (bytes of an element), `port`, `count`, `dataOffset` (in kvm_run) |
 * | `MMIO` | `physAddr`, `len` (bytes), `isWrite`, `data` (a copy of `len` bytes) |
 * | `HYPERCALL` | `nr`, `args` (six), `ret`, `longMode`, `unknownFlags` |
 * | `MEMORY_FAULT`, `MEMORY_POISONED` | `gpa`, `size` (bytes), `flags`: `private`, `userfault`, `unknown` |
 * | `DEBUG` | `exception`, `pc`, `dr6`, `dr7` |
 * | `INTERNAL_ERROR` | `suberror`, `ndata`, `data`; of EMULATION also `instruction` (bytes), `unknownFlags` |
 * | `FAIL_ENTRY` | `hardwareEntryFailureReason`, `cpu` |
 * | `UNKNOWN` | `hardwareExitReason` |
 * | `EXCEPTION` | `exception`, `errorCode` |
 * | `SYSTEM_EVENT` | `type`, `ndata`, `data` |
 * | `X86_RDMSR`, `X86_WRMSR` | `index`, `data`, `cause` (MsrExitReason), `error` |
 * | `SET_TPR` | `cr8` |
 * | `TPR_ACCESS` | `rip`, `isWrite` |
 * | `IOAPIC_EOI` | `vector` |
 * | `NOTIFY` | `flags`, `contextInvalid` |
 * | `HYPERV` | `type`, and by it `synic`, `hcall` or `syndbg` |
 * | `XEN` | `type`, and `hcall` |
 * | `TDX` | `flags`, `nr`, `ret`, `data`, and by `nr` (0x10002, 0x10000, 0x10004) `getQuote`, `getTdvmcallInfo` or `setupEventNotify` |
 * | `SNP_REQ_CERTS` | `gpa`, `npages`, `ret` |
 * | `OTHER` | `name`, `raw`: an exit of another architecture, or newer than this version |
 * | any other | none |
 */
export type KvmExit = ExitHead &
  (RawExit | { [K in keyof Rows]: { readonly reason: K } & Readonly<Decoded<Rows[K]>> }[keyof Rows]);

const rowOf = new Map<number, readonly [string, ExitRow<object>]>(
  Object.entries(exitRows).map(([name, r]) => [Exit[name as ExitName], [name, r as ExitRow<object>]]),
);

/**
 * The outcome of a run (what Vcpu.run() gave, or a caller of KVM_RUN has by outcomeOf() of vmexit/uapi) with the fields that stand in the kvm_run page.
 *
 * @param page a view of at least the first sizeof(struct kvm_run) bytes of the vCPU's mapping
 * @param dialect the ABI in which a memory fault is written there
 */
export function decodeExit(outcome: number, page: DataView, dialect = dialects.mainline): KvmExit {
  const runFlags = kvm_run.fields.flags.type.get(page, kvm_run.fields.flags.offset);
  const found = rowOf.get(outcome);
  if (!found) {
    const raw = exitArms.padding.get(page, EXIT_OFFSET);
    return shown({ reason: 'OTHER', outcome, runFlags, name: exitName(outcome), raw });
  }
  const [reason, { arm, decode }] = found;
  const fields = arm === exitArms.memoryFault ? dialect.decode(page) : decode(page);
  return shown({ reason, outcome, runFlags, ...fields } as KvmExit);
}

/** What Node shows of an exit in a terminal: a sentence, for its numbers mean nothing in decimal. */
const sentence = {
  [Symbol.for('nodejs.util.inspect.custom')](this: KvmExit): string {
    return `${this.reason} { ${describeExit(this)} }`;
  },
};
const shown = (exit: KvmExit): KvmExit => Object.assign(Object.create(sentence), exit);

/** One line: `MMIO write of 8 bytes at 0xfee00000: 0100000000000000`. Unknown flags and numbers are shown in hex. */
export function describeExit(exit: KvmExit): string {
  const state = exit.runFlags ? ` [${flagNames(c.RunFlag, exit.runFlags)}]` : '';
  if (exit.reason === 'OTHER') {
    const used = exit.raw.findLastIndex((byte) => byte !== 0) + 1;
    return `exit ${exit.outcome} (${exit.name}), not decoded: ${hexBytes(exit.raw.subarray(0, used)) || 0}${state}`;
  }
  return exitRows[exit.reason].describe(exit as never) + state;
}

const vector = (number: number): string =>
  Object.values<number>(c.Vector).includes(number) ? `#${nameOf(c.Vector, number)}` : hex(number);

const unknownFlags = (flags: bigint): string => (flags ? `, unknown flags ${hex(flags)}` : '');

const dataWords = (data: readonly bigint[]): string =>
  data.length ? `, data ${data.map((word) => hex(word)).join(' ')}` : '';

const longMode = (flags: bigint) => ({
  longMode: (flags & BigInt(c.HypercallFlag.LONG_MODE)) !== 0n,
  unknownFlags: flags & ~BigInt(c.HypercallFlag.LONG_MODE),
});

function hypercall(nr: bigint, args: readonly bigint[]): string {
  const name = nameOf(c.Hypercall, nr);
  const [gpa = 0n, pages = 0n, attributes = 0n] = args;
  if (nr !== BigInt(c.Hypercall.MAP_GPA_RANGE)) return `${name}(${args.map((arg) => hex(arg)).join(', ')})`;
  const to = attributes & BigInt(c.MapGpaRange.ENCRYPTED) ? 'private' : 'shared';
  return `${name}: make ${hex.range(gpa, pages * 4096n)} ${to} (attributes ${hex(attributes)})`;
}

interface InternalErrorFields {
  readonly suberror: number;
  /** How many words the kernel says it gave; `data` has at most the sixteen that there is room for. */
  readonly ndata: number;
  readonly data: readonly bigint[];
  /** Of suberror EMULATION: the bytes that KVM could not emulate, where it gave them. */
  readonly instruction?: Uint8Array;
  readonly unknownFlags?: bigint;
}

/** data[0] of suberror EMULATION is a flag word; with INSTRUCTION_BYTES the next two hold the instruction. */
function internalError(
  { suberror, ndata, data }: Value<typeof exitArms.internal>,
  page: DataView,
): InternalErrorFields {
  const error = { suberror, ndata, data: data.slice(0, ndata) };
  if (suberror !== c.InternalError.EMULATION || ndata < 1) return error;
  const { insnSize, insnBytes } = exitArms.emulationFailure.get(page, EXIT_OFFSET);
  const known = BigInt(c.EmulationFlag.INSTRUCTION_BYTES);
  const flags = data[0]!;
  return {
    ...error,
    unknownFlags: flags & ~known,
    ...(flags & known && ndata >= 3 && { instruction: insnBytes.slice(0, insnSize) }),
  };
}

function describeInternalError(e: InternalErrorFields): string {
  return (
    `KVM internal error ${nameOf(c.InternalError, e.suberror)}` +
    (e.instruction ? `, instruction bytes ${hexBytes(e.instruction)}` : '') +
    unknownFlags(e.unknownFlags ?? 0n) +
    dataWords(e.data)
  );
}
