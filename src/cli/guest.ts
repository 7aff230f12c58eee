/** A guest for `vmexit run` and `vmexit snapshot`: from its program, or from a snapshot of it. */
import type { Hypervisor } from '../hypervisor/hypervisor.ts';
import type { Vcpu } from '../hypervisor/vcpu.ts';
import type { Vm } from '../hypervisor/vm.ts';
import { openHypervisor } from '../open.ts';
import { loadGuest } from '../vmm/loader.ts';
import { checkMachineMemory, Machine } from '../vmm/machine.ts';
import type { Pager } from '../vmm/pager/pager.ts';
import { type BACKENDS, oneOf, size, UsageError } from './args.ts';

/** How a program becomes a guest. */
export const PROGRAM_OPTIONS = {
  mode: { type: 'string' },
  memory: { type: 'string' },
  private: { type: 'boolean', default: false },
} as const;

const DEFAULT_MEMORY = '64M';

export interface ProgramValues {
  readonly mode?: string | undefined;
  readonly memory?: string | undefined;
  readonly private?: boolean | undefined;
}

type BackendChoice = (typeof BACKENDS)[number];

export interface OpenGuest extends Disposable {
  readonly hv: Hypervisor;
  readonly vm: Vm;
  readonly vcpu: Vcpu;
  readonly name: string;
  /** How a program begins; undefined of a guest that is restored. */
  readonly mode: string | undefined;
  /** Who brings its memory, where it has begun without. */
  readonly pager?: Pager | undefined;
  /** Of the VMM's devices, by name. */
  readonly devices: ReadonlyMap<string, Uint8Array>;
}

/** What the serial port's state is called in a snapshot. */
export const SERIAL = 'serial';

/** The guest of a program, at its beginning. */
export function loadedGuest(path: string, values: ProgramValues, backend: BackendChoice): OpenGuest {
  const mode = values.mode === undefined ? undefined : oneOf('--mode', values.mode, ['real', 'long']);
  const memory = size('--memory', values.memory ?? DEFAULT_MEMORY);
  const privateMemory = values.private === true;
  checkMachineMemory(memory);
  // The guest is looked at before a machine is made for it; its file can be no larger than the machine's memory.
  const image = loadGuest(path, { mode, most: memory });
  const hv = openHypervisor({ backend, needs: privateMemory ? ['private-memory', 'map-gpa-range'] : [] });
  return closing(hv, () => {
    const machine = new Machine(hv, { memory, privateMemory });
    return closing(machine, () => {
      machine.load(image, image.mode === 'long' ? { rdi: memory, rsi: privateMemory ? 1 : 0 } : {});
      return {
        hv,
        vm: machine.vm,
        vcpu: machine.vcpu,
        name: image.name,
        mode: image.mode,
        devices: new Map(),
        [Symbol.dispose]() {
          machine.close();
          hv.close();
        },
      };
    });
  });
}

/**
 * The guest of a snapshot, where it was.
 * @param backend `auto` is the one that it was saved on, as its guest knows that one's processor
 */
export async function restoredGuest(path: string, lazy: boolean, backend: BackendChoice): Promise<OpenGuest> {
  // Loaded by those alone who want it.
  const { fromHex, openSnapshot, restoreLazily, restoreSnapshot } = await import('../vmm/snapshot/index.ts');
  using snapshot = openSnapshot(path);
  const { state } = snapshot;
  if (state.vcpus.length !== 1)
    throw new UsageError(`--restore: ${path} has ${state.vcpus.length} vCPUs, and vmexit run has one`);
  const hv = openHypervisor({ backend: backend === 'auto' ? state.backend : backend });
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
      vcpu: machine.vcpus[0]!,
      name: path,
      mode: undefined,
      pager,
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
