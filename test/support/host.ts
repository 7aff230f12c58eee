/**
 * What this host has: the one place where tests ask. A case that needs a backend, or a feature of it, is skipped with the
 * reason where the host has not got it, and fails where the host must have it.
 */
import { existsSync } from 'node:fs';
import { delimiter, join } from 'node:path';
import { expect, type TestContext, it as test } from 'vitest';
import { type BackendName, Hypervisor, openHypervisor, Replay, UnavailableError } from '../../src/index.ts';
import { kvmBackend } from '../../src/kvm/backend.ts';
import { loadNative } from '../../src/kvm/native.ts';
import { simulator } from '../../src/open.ts';
import { recordingBackend } from '../../src/replay/record.ts';
import { Memo } from '../../src/replay/records.ts';
import { type Condition, lacking } from './conditions.ts';
import { inLab, TEST_MS } from './limits.ts';

/**
 * Every backend that there is a suite for. The lab is there for its kernel: the simulator is the same everywhere, and JS
 * on an emulated processor is slow.
 */
export const backends: readonly BackendName[] = inLab ? ['kvm'] : ['kvm', 'sim'];

/**
 * What the lab's kernel is too old for, or has in no release, and what its emulated processor lacks. Everything else
 * the lab must have, unless its kernel was booted with parameters of a test's own.
 */
const beyondLab: readonly Condition[] = [
  'alignment-checks',
  'guest-memfd-mmap',
  'hardware-breakpoint',
  ...(process.env.VMEXIT_LAB_KERNEL === 'userfault'
    ? []
    : (['userfault', 'test-private-access'] satisfies Condition[])),
];
const isWholeLab = inLab && process.env.VMEXIT_LAB_PARAMETERS === undefined;
/** What the simulator does not model, on any host. Everything else it must have. */
const beyondSim: readonly Condition[] = [
  'irqchip',
  'userfaultfd',
  'files',
  'test-private-access',
  'hyperv',
  'xen',
  'xen-hva',
];

const mayLack = (backend: BackendName, condition: Condition): boolean =>
  backend === 'sim' ? beyondSim.includes(condition) : !isWholeLab || beyondLab.includes(condition);

const hasCommand = (name: string): boolean =>
  (process.env.PATH ?? '').split(delimiter).some((folder) => existsSync(join(folder, name)));

/**
 * Undefined when the call can be made here, else why not.
 * @throws what it throws where it must not: on every backend but KVM, in the lab, and when the addon is missing though
 *   this host could have built it
 */
function unavailable(backend: BackendName, call: () => void): string | undefined {
  try {
    call();
    return undefined;
  } catch (error) {
    if (backend === 'sim' || inLab || !(error instanceof UnavailableError)) throw error;
    if (error.reason === 'addon' && hasCommand('g++') && hasCommand('make')) throw error;
    return error.message;
  }
}

/** Why there can be no KVM here, whatever is in /dev; undefined on Linux on x86-64. */
export const notLinux =
  process.platform === 'linux' && process.arch === 'x64'
    ? undefined
    : `KVM is for Linux on x86-64, and this is ${process.platform} on ${process.arch}`;
/** Why the addon cannot be loaded here; undefined when it can. */
export const noAddon = unavailable('kvm', loadNative);
/** Why there is no compiler of C and C++ here; undefined when there is one. */
export const noCompiler = hasCommand('g++') && hasCommand('gcc') ? undefined : 'there is no g++ on the PATH';
/** Why GNU as and ld cannot be run here; undefined when they can. */
export const noAssembler =
  hasCommand('as') && hasCommand('ld') ? undefined : 'there is no as and ld on the PATH';

/** Why this process has no terabytes of addresses; undefined when it has. */
export const noTerabytes = process.env.VMEXIT_SANITIZER?.includes('tsan')
  ? 'the sanitizer of threads has taken most addresses'
  : undefined;

/** Cases about /dev/kvm and the addon, which no other operating system has. */
export const onLinux = (sentence: string, shows: (context: TestContext) => void | Promise<void>): void =>
  test(sentence, async (context) => {
    context.skip(notLinux !== undefined, notLinux);
    await shows(context);
  });

const opened = new Map<BackendName, Hypervisor | string>();

/** The backend, opened once in a process; or why this host has not got it. */
function open(backend: BackendName): Hypervisor | string {
  let known = opened.get(backend);
  if (known === undefined) {
    let hv: Hypervisor | undefined;
    const reason = unavailable(backend, () => {
      hv = openHypervisor({ backend });
    });
    known = reason ?? hv!;
    opened.set(backend, known);
  }
  return known;
}

/**
 * Why this host has not got the backend, or one of the conditions on it; undefined when it has all.
 * @throws Error when the backend must have the condition
 */
export function whyNot(backend: BackendName, ...conditions: readonly Condition[]): string | undefined {
  const hv = open(backend);
  if (typeof hv === 'string') return hv;
  for (const condition of conditions) {
    const reason = lacking(hv, condition);
    if (reason === undefined) continue;
    if (!mayLack(backend, condition)) throw new Error(`${backend} lacks ${condition}: ${reason}`);
    return `${condition}: ${reason}`;
  }
  return undefined;
}

/** A sentence about what is so, and what shows it; with a time limit in milliseconds of its own if need be. */
export type It = (
  sentence: string,
  shows: (hv: Hypervisor, context: TestContext) => void | Promise<void>,
  limitMs?: number,
) => void;

/** Each case is recorded, and shown once more by a replay (VMEXIT_TEST_REPLAY): what a recording refuses is skipped. */
async function shownTwice(
  backend: BackendName,
  shows: (hv: Hypervisor) => void | Promise<void>,
  context: TestContext,
): Promise<void> {
  const memo = new Memo();
  try {
    await shows(new Hypervisor(recordingBackend(backend === 'kvm' ? kvmBackend() : simulator(), memo)));
  } catch (error) {
    const { code, message, cause } = error as { code?: string; message: string; cause?: { code?: string } };
    if (
      code === 'ERR_KVM_UNRECORDABLE' ||
      cause?.code === 'ERR_KVM_UNRECORDABLE' ||
      /UNRECORDABLE|recording cannot/.test(message)
    )
      return context.skip(message);
    throw error;
  }
  await shows(new Replay(memo).hypervisor);
}

/** Cases on a backend, with conditions on it. */
export const on =
  (backend: BackendName, ...conditions: readonly Condition[]): It =>
  (sentence, shows, limitMs = TEST_MS) =>
    test(sentence, { timeout: limitMs }, async (context) => {
      const reason = whyNot(backend, ...conditions);
      if (reason !== undefined) return context.skip(reason);
      const hv = open(backend) as Hypervisor;
      expect(hv.backend).toBe(backend);
      if (process.env.VMEXIT_TEST_REPLAY) await shownTwice(backend, (hv) => shows(hv, context), context);
      else await shows(hv, context);
    });

/** Cases on the real KVM. */
export const onKvm: It = on('kvm');

/** The same cases on each backend, which their names say. */
export const onEachWith =
  (...conditions: readonly Condition[]): It =>
  (sentence, shows, limitMs) => {
    for (const backend of backends) on(backend, ...conditions)(`${sentence} (${backend})`, shows, limitMs);
  };
export const onEach: It = onEachWith();
