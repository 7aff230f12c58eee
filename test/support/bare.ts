/** The least of a machine, in real mode: for what a VM must be asked before its first vCPU. */
import { enterRealMode, type GuestMemory, type Hypervisor, type Vcpu, type Vm } from '../../src/index.ts';

const SIZE = 0x4_0000;
const CODE = 0x1000;

export class Bare implements Disposable {
  readonly vm: Vm;
  readonly memory: GuestMemory;
  readonly vcpu: Vcpu;

  constructor(hv: Hypervisor, prepare: (vm: Vm) => void = () => {}) {
    const made: Disposable[] = [];
    const use = <T extends Disposable>(object: T): T => {
      made.unshift(object);
      return object;
    };
    try {
      this.vm = use(hv.createVm());
      prepare(this.vm);
      this.memory = use(this.vm.allocate(SIZE));
      this.vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memory: this.memory });
      this.vcpu = use(this.vm.createVcpu(0));
    } catch (error) {
      for (const object of made) object[Symbol.dispose]();
      throw error;
    }
  }

  /** Code, to be run from its start. */
  readonly load = (code: Uint8Array): void => {
    this.memory.write(CODE, code);
    enterRealMode(this.vcpu);
    this.vcpu.setRegs({ rip: CODE, rflags: 2 });
  };

  [Symbol.dispose](): void {
    for (const object of [this.vcpu, this.memory, this.vm]) object.close();
  }
}
