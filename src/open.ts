/** The one place that chooses a backend. */
import { closeSync, openSync, readSync } from 'node:fs';
import { getEnvironmentData, setEnvironmentData, threadId } from 'node:worker_threads';
import { connectDiagnostics } from './diagnostics.ts';
import { object } from './hypervisor/args.ts';
import type { Backend, BackendName } from './hypervisor/backend.ts';
import { outOfRange, UnavailableError, wrongType } from './hypervisor/errors.ts';
import { Hypervisor } from './hypervisor/hypervisor.ts';
import { kvmBackend } from './kvm/backend.ts';
import { ADDON_WARNED, packageRequire } from './package.ts';
import { type Feature, features, missing } from './probe/features.ts';
import { RecordingFile } from './replay/file.ts';
import { recordingBackend } from './replay/record.ts';
import {
  type KickTable,
  makeKickTable,
  Prepared,
  type SimBackend,
  type SimOptions,
  type SimulatedHost,
  simBackend,
} from './sim/index.ts';

export type { SimulatedHost } from './sim/index.ts';

/** What openHypervisor() is to open, and what it must be able to do. */
export interface OpenOptions {
  /**
   * `kvm`: the kernel. `sim`: the simulator. `auto`, which it is without this: the kernel where it can do all that
   * `needs` names, else the simulator, and `fallback` of what comes says why. Where all that is missing is the addon,
   * which is nearly always a mistake, a warning of the process says so, once, with the code VMEXIT_ADDON.
   */
  readonly backend?: 'auto' | BackendName;
  /** What the VMM will use. It is tried here, so that a host without it is refused with the reason. */
  readonly needs?: readonly Feature[];
  /** Where KVM is; /dev/kvm without it. */
  readonly device?: string;
  /** What the simulated host is, if it comes to that. */
  readonly simulated?: SimulatedHost;
  /**
   * The file in which all that goes on between this Hypervisor and its backend is recorded, for openReplay(). It is whole
   * once all that was opened is closed, or when the process ends. A recording takes time at each exit.
   */
  readonly record?: string;
}

/**
 * Opens KVM, or the simulator.
 * @throws UnavailableError whose `reason` and message say what is missing: the addon, the device, the permission, or
 *   a feature of `needs`; TypeError or RangeError ERR_KVM_INVALID_ARG
 * @example
 * ```ts
 * import { openHypervisor } from 'vmexit';
 *
 * const hv = openHypervisor();
 * if (hv.fallback !== undefined) console.error(`simulated: ${hv.fallback}`);
 * console.log(`the ABI of KVM has version ${hv.getApiVersion()}`);
 * hv.close();
 * // prints: the ABI of KVM has version 12
 * ```
 */
export function openHypervisor(options: OpenOptions = {}): Hypervisor {
  connectDiagnostics();
  const { backend = 'auto', needs = [], device, simulated, record } = object('options', options);
  if (backend !== 'auto' && backend !== 'kvm' && backend !== 'sim')
    throw outOfRange('backend', backend, "'auto', 'kvm' or 'sim'");
  if (!Array.isArray(needs)) throw wrongType('needs', needs, 'an array of features');
  for (const need of needs) {
    if (!Object.hasOwn(features, need))
      throw outOfRange('needs', need, `among ${Object.keys(features).join(', ')}`);
  }
  if (device !== undefined && typeof device !== 'string') throw wrongType('device', device, 'a path');
  if (device === '') throw outOfRange('device', device, 'a path');
  if (simulated !== undefined) object('simulated', simulated);
  if (record !== undefined && (typeof record !== 'string' || record === ''))
    throw wrongType('record', record, 'a path');

  if (backend === 'kvm') return openKvm(needs, record, device);
  if (backend === 'sim') return openSimulator(needs, record, simulated);
  try {
    return openKvm(needs, record, device);
  } catch (error) {
    if (!(error instanceof UnavailableError)) throw error;
    return fallBack(error, needs, record, simulated);
  }
}

const openKvm = (needs: readonly Feature[], record?: string, device?: string): Hypervisor =>
  able(kvmBackend(device), needs, "this host's KVM", record);

const openSimulator = (
  needs: readonly Feature[],
  record?: string,
  host?: SimulatedHost,
  why?: string,
): Hypervisor => able(simulator(host), needs, 'the simulator', record, why);

/** The hypervisor, if it can do all that is needed. That is tried before anything is recorded. */
function able(
  backend: Backend,
  needs: readonly Feature[],
  name: string,
  record: string | undefined,
  why?: string,
): Hypervisor {
  const hv = new Hypervisor(backend, why);
  const lacks = missing(hv, needs);
  if (lacks.length === 0 && record === undefined) return hv;
  hv.close();
  if (record !== undefined && lacks.length === 0)
    return new Hypervisor(recordingBackend(backend, new RecordingFile(record), why), why);
  const list = lacks.map(({ feature, reason }) => `${feature} (${reason})`).join(', ');
  throw new UnavailableError('feature', `${name} lacks ${list}`);
}

/** The simulator in KVM's place. Where it cannot be had either, what is wrong with KVM is what matters. */
function fallBack(
  why: UnavailableError,
  needs: readonly Feature[],
  record?: string,
  host?: SimulatedHost,
): Hypervisor {
  try {
    const hv = openSimulator(needs, record, host, why.message);
    if (why.reason === 'addon') warnOfAddon(why);
    return hv;
  } catch (error) {
    if (!(error instanceof UnavailableError)) throw error;
    throw new UnavailableError(why.reason, `${why.message}; and ${error.message}`, { cause: why.cause });
  }
}

/** Says, once for the process and its later threads, that a host with a device runs guests without it. */
function warnOfAddon({ message }: UnavailableError): void {
  if (getEnvironmentData(ADDON_WARNED)) return;
  setEnvironmentData(ADDON_WARNED, true);
  process.emitWarning(`guests run on the simulator, not on KVM: ${message}`, { code: 'VMEXIT_ADDON' });
}

/**
 * The simulator as a backend, for tests and for what only it can do.
 * @throws UnavailableError when its decoder is not installed; RangeError ERR_KVM_INVALID_ARG
 */
export function simulator(host: SimulatedHost = {}, templates = preparedTemplates()): SimBackend {
  ofIced(() => packageRequire.resolve('iced-x86'));
  return simBackend({ ...host, iced: loadIced, prepared: templates, kicks: kickTable() });
}

/** The decoder, loaded when it is needed first: it takes some tens of milliseconds. @throws UnavailableError */
export const loadIced: SimOptions['iced'] = () =>
  ofIced(() => packageRequire('iced-x86') as ReturnType<SimOptions['iced']>);

let prepared: Prepared | undefined;
/** What was prepared of the simulator, beside the code that it was made of: only compiled code has it. */
function preparedTemplates(): Prepared {
  const file = new URL('../sim/templates.bin', import.meta.url);
  prepared ??= new Prepared((start, length) => {
    let opened: number | undefined;
    try {
      opened = openSync(file, 'r');
      const bytes = new Uint8Array(length);
      return readSync(opened, bytes, 0, length, start) === length ? bytes : undefined;
    } catch {
      return undefined; // all is made as it is needed
    } finally {
      if (opened !== undefined) closeSync(opened);
    }
  });
  return prepared;
}

function ofIced<T>(what: () => T): T {
  try {
    return what();
  } catch (cause) {
    const why = (cause as Error).message.split('\n')[0];
    throw new UnavailableError('addon', `the simulator's decoder iced-x86 cannot be loaded: ${why}`, {
      cause,
    });
  }
}

const KICKS = 'vmexit.kicks';

/** One for this thread and those that it starts from now on, and they. */
function kickTable(): KickTable {
  const known = getEnvironmentData(KICKS);
  if (known instanceof Int32Array) return known as KickTable;
  const table = makeKickTable(threadId);
  setEnvironmentData(KICKS, table);
  return table;
}
// Now, and not with the first simulator: a worker may be started before that is opened.
kickTable();
