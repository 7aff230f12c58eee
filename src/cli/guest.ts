/** A guest for `vmexit run` and `vmexit snapshot`: from its program, or from a snapshot of it. */
import type { Hypervisor } from '../hypervisor/hypervisor.ts';
import type { Vcpu } from '../hypervisor/vcpu.ts';
import type { Vm } from '../hypervisor/vm.ts';
import { openHypervisor } from '../open.ts';
import type { Replay } from '../replay/index.ts';
import type { DirtyPages } from '../vmm/dirty-pages.ts';
import { badGuest, type GuestImage } from '../vmm/image.ts';
import { guestIn, type LoadOptions, loadGuest } from '../vmm/loader.ts';
import { checkMachineMemory, MAX_MACHINE_CPUS, Machine } from '../vmm/machine.ts';
import type { Pager } from '../vmm/pager/pager.ts';
import { address, type BACKENDS, count, oneOf, size, UsageError } from './args.ts';
import { layNoKernel, layVectors } from './no-system.ts';

/** How a program becomes a guest, and where KVM is. */
export const PROGRAM_OPTIONS = {
  mode: { type: 'string' },
  at: { type: 'string' },
  entry: { type: 'string' },
  force: { type: 'boolean', default: false },
  device: { type: 'string' },
  memory: { type: 'string' },
  cpus: { type: 'string' },
  private: { type: 'boolean', default: false },
} as const;

const DEFAULT_MEMORY = '64M';

export interface ProgramValues {
  readonly mode?: string | undefined;
  readonly at?: string | undefined;
  readonly entry?: string | undefined;
  readonly force?: boolean | undefined;
  readonly device?: string | undefined;
  readonly memory?: string | undefined;
  readonly cpus?: string | undefined;
  readonly private?: boolean | undefined;
  /** Where its session is recorded, with its time limit. */
  readonly record?: string | undefined;
  readonly timeoutMs?: number | undefined;
}

/** The first option that says what a snapshot's guest already is. */
export const fixedOption = (values: ProgramValues): string | undefined =>
  (['private', 'memory', 'cpus', 'mode', 'at', 'entry', 'force'] as const).find((name) => values[name]);

type BackendChoice = (typeof BACKENDS)[number];

export interface OpenGuest extends Disposable {
  readonly hv: Hypervisor;
  readonly vm: Vm;
  readonly vcpus: readonly Vcpu[];
  readonly name: string;
  /** How a program begins; undefined of a guest that is restored. */
  readonly mode: string | undefined;
  /** Who brings its memory, where it has begun without. */
  readonly pager?: Pager | undefined;
  /** What it has written since it was restored, where that was asked for. */
  readonly dirty?: DirtyPages | undefined;
  /** Of the VMM's devices, by name. */
  readonly devices: ReadonlyMap<string, Uint8Array>;
  /** What its VMM takes from elsewhere is kept, or comes from where it was kept. */
  readonly recorded?: boolean;
  /** The time limit of a recorded run. */
  readonly timeoutMs?: number | undefined;
}

/** What makes a program's guest: of a recording, all that a replay needs beside it. */
interface Program {
  readonly image: GuestImage;
  readonly memory: number;
  readonly cpus: number;
  readonly privateMemory: boolean;
  readonly timeoutMs: number | undefined;
}

/** The guest of a program, at its beginning. */
export async function loadedGuest(
  path: string,
  values: ProgramValues,
  backend: BackendChoice,
): Promise<OpenGuest> {
  const mode = values.mode === undefined ? undefined : oneOf('--mode', values.mode, ['real', 'long']);
  const at = values.at === undefined ? undefined : address('--at', values.at);
  const entry = values.entry === undefined ? undefined : address('--entry', values.entry);
  const memory = size('--memory', values.memory ?? DEFAULT_MEMORY);
  const privateMemory = values.private === true;
  const cpus = values.cpus === undefined ? 1 : count('--cpus', values.cpus);
  if (cpus > MAX_MACHINE_CPUS)
    throw new UsageError(`--cpus is ${cpus}, and a guest has at most ${MAX_MACHINE_CPUS} processors`);
  checkMachineMemory(memory);
  // The guest is looked at before a machine is made for it; its file can be no larger than the machine's memory.
  const image = await program(path, { mode, at, entry, force: values.force, most: memory });
  const needs = privateMemory ? (['private-memory', 'map-gpa-range'] as const) : [];
  const { record, timeoutMs } = values;
  const recording = record === undefined ? {} : { record };
  const hv = openHypervisor({ backend, needs, ...deviceOf(values), ...recording });
  return programGuest(hv, () => ({ image, memory, cpus, privateMemory, timeoutMs }), record !== undefined);
}

function programGuest(hv: Hypervisor, given: () => Program, recorded: boolean): OpenGuest {
  return closing(hv, () => {
    const { image, memory, cpus, privateMemory, timeoutMs } = hv.input('program', given);
    const machine = new Machine(hv, { memory, privateMemory, cpus });
    return closing(machine, () => {
      if (image.mode === 'long') for (const vcpu of machine.vcpus) layNoKernel(vcpu);
      else layVectors(machine);
      machine.load(image, image.mode === 'long' ? { rdi: memory, rsi: privateMemory ? 1 : 0 } : {});
      return {
        hv,
        vm: machine.vm,
        vcpus: machine.vcpus,
        name: image.name,
        mode: image.mode,
        devices: new Map(),
        recorded,
        timeoutMs,
        [Symbol.dispose]() {
          machine.close();
          hv.close();
        },
      };
    });
  });
}

/** The guest of a recorded run, with its program. @throws ReplayError for a recording that vmexit run has not made */
export const replayedGuest = (replay: Replay): OpenGuest =>
  programGuest(replay.hypervisor, () => undefined as never, true);

/** For openHypervisor(), which takes no undefined. */
export const deviceOf = ({ device }: { readonly device?: string | undefined }) =>
  device === undefined ? {} : { device };

/** `-` is standard input; what a file of that name is called is `./-`. */
async function program(path: string, options: LoadOptions & { readonly most: number }): Promise<GuestImage> {
  if (path !== '-') return loadGuest(path, options);
  const name = 'standard input';
  if (process.stdin.isTTY) throw badGuest(name, 'is a terminal: give a file, or send one through a pipe');
  const chunks: Buffer[] = [];
  let size = 0;
  for await (const chunk of process.stdin) {
    size += chunk.length;
    if (size > options.most)
      throw badGuest(
        name,
        `has more bytes than the guest's memory of ${options.most}: give it more (--memory)`,
      );
    chunks.push(chunk);
  }
  return guestIn(Buffer.concat(chunks), name, options);
}

/**
 * The guest of a snapshot, where it was.
 * @param backend `auto` is the one that it was saved on, as its guest knows that one's processor
 * @param tracked whether `dirty` is wanted
 */
export async function restoredGuest(
  path: string,
  lazy: boolean,
  backend: BackendChoice,
  values: { readonly device?: string | undefined } = {},
  tracked = false,
): Promise<OpenGuest> {
  // Loaded by those alone who want it.
  const { dirtySince, fromHex, openSnapshot, restoreLazily, restoreSnapshot } = await import(
    '../vmm/snapshot/index.ts'
  );
  using snapshot = openSnapshot(path);
  const { state } = snapshot;
  const hv = openHypervisor({ backend: backend === 'auto' ? state.backend : backend, ...deviceOf(values) });
  return closing(hv, () => {
    const { machine, pager } = lazy
      ? restoreLazily(hv, snapshot)
      : { machine: restoreSnapshot(hv, snapshot), pager: undefined };
    if (pager?.report.uncovered !== undefined)
      process.stderr.write(
        `vmexit: what KVM itself reads of memory is not paged: ${pager.report.uncovered}\n`,
      );
    for (const difference of machine.differences) process.stderr.write(`vmexit: ${difference}\n`);
    return {
      hv,
      vm: machine.vm,
      vcpus: machine.vcpus,
      name: path,
      mode: undefined,
      pager,
      // All that writes to its memory here marks it: there are no devices with direct access.
      dirty: tracked ? dirtySince(snapshot, machine, { marksAll: true }) : undefined,
      devices: new Map(Object.entries(state.devices).map(([name, hex]) => [name, fromHex(hex)])),
      [Symbol.dispose]() {
        machine.close();
        pager?.[Symbol.dispose]();
        hv.close();
      },
    };
  });
}

/** What `make` gives, or the end of what was opened for it. */
function closing<T>(opened: { close(): void }, make: () => T): T {
  try {
    return make();
  } catch (error) {
    opened.close();
    throw error;
  }
}
