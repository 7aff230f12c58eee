/**
 * A hypervisor whose backend a test can reach: to issue ioctls with arguments that the API cannot express, and to
 * inject outcomes that no test can bring the kernel to.
 */
import type { Handle } from '../../src/hypervisor/backend.ts';
import { type Backend, type BackendName, type GuestMemory, Hypervisor } from '../../src/index.ts';
import { kvmBackend } from '../../src/kvm/backend.ts';
import { simulator } from '../../src/open.ts';
import { errnoName, type Ioctl, ioctls, type Struct, type StructRow, viewOf } from '../../src/uapi/index.ts';

const backendOf: { readonly [name in BackendName]: () => Backend } = { kvm: kvmBackend, sim: simulator };

/** A run that is not made: what it returns, and what it leaves in kvm_run. */
export interface Injected {
  /** A negated errno, or an exit reason. */
  readonly result: number;
  readonly leaves?: (page: DataView) => void;
}

export class Tap implements Disposable {
  readonly hv: Hypervisor;
  readonly backend: Backend;
  readonly #made = new Map<number, Handle>();
  readonly #injected: Injected[] = [];

  constructor(name: BackendName) {
    const backend = backendOf[name]();
    const opened: Handle[] = [];
    this.backend = {
      ...backend,
      open: () => {
        const handle = backend.open();
        opened.push(handle);
        return handle;
      },
      create: (handle, request, argument, references) => {
        const made = backend.create(handle, request, argument, references);
        if (typeof made !== 'number') this.#made.set(request, made);
        return made;
      },
      runner: (vcpu) => {
        const run = backend.runner(vcpu);
        return (timeoutMs) => {
          const injected = this.#injected.shift();
          if (injected === undefined) return run(timeoutMs);
          injected.leaves?.(viewOf(backend.bytes(vcpu)));
          return injected.result;
        };
      },
    };
    this.hv = new Hypervisor(this.backend);
    this.#made.set(0, opened[0]!);
  }

  /** The handle of the system, or of what the request made last. */
  handle(made?: Ioctl): Handle {
    return this.#made.get(made?.request ?? 0)!;
  }

  /** The ioctl on the last VM or vCPU made, with these fields: the errno's name, or `ok`. */
  ioctl(row: StructRow<Struct>, values: RawValues): string {
    const on = row.on.includes('vm') ? ioctls.KVM_CREATE_VM : ioctls.KVM_CREATE_VCPU;
    return answerOf(this.backend.ioctl(this.handle(on), row.request, rawStruct(row.struct, values)));
  }

  /** A slot of the last VM made. @param file stands for its guest_memfd */
  setRegion(values: RawValues, memory: GuestMemory, file?: Handle): string {
    const row = file === undefined ? ioctls.KVM_SET_USER_MEMORY_REGION : ioctls.KVM_SET_USER_MEMORY_REGION2;
    const vm = this.handle(ioctls.KVM_CREATE_VM);
    const region = rawStruct(row.struct, values);
    const place = { memory: memory.handle, offset: 0 };
    const references = file === undefined ? [place] : [place, file];
    return answerOf(this.backend.ioctl(vm, row.request, region, references));
  }

  /** A guest_memfd of the last VM made, closed at once. */
  createGuestMemfd(values: RawValues): string {
    const { request, struct } = ioctls.KVM_CREATE_GUEST_MEMFD;
    const vm = this.handle(ioctls.KVM_CREATE_VM);
    const made = this.backend.create(vm, request, rawStruct(struct, values));
    if (typeof made === 'number') return answerOf(made);
    this.backend.close(made);
    return 'ok';
  }

  /** The next run does not happen and ends so. */
  injectRun(injected: Injected): void {
    this.#injected.push(injected);
  }

  [Symbol.dispose](): void {
    this.hv.close();
  }
}

type RawValues = { readonly [field: string]: number | bigint };

const answerOf = (result: number): string => (result < 0 ? errnoName(-result) : 'ok');

/** A struct with its 64-bit fields as they are given: also values that the API refuses to write. */
function rawStruct(struct: Struct, values: RawValues): Uint8Array<ArrayBuffer> {
  const data = new Uint8Array(struct.size);
  const view = viewOf(data);
  for (const [name, value] of Object.entries(values)) {
    const { offset, type } = struct.fields[name]!;
    if (type.size === 8) view.setBigUint64(offset, BigInt(value), true);
    else view.setUint32(offset, Number(value), true);
  }
  return data;
}
