/** A VM's interrupts: the controllers and the timer that the kernel has for it, and what reaches them. */
import { ioctls } from '../uapi/ioctls.ts';
import type { Input, Value } from '../uapi/layout.ts';
import type { kvm_irq_level, kvm_msi } from '../uapi/structs.ts';
import { u32 } from './args.ts';
import { VmEvents } from './vm-events.ts';

/** The part of a Vm that is about its interrupts. */
export abstract class VmInterrupts extends VmEvents {
  protected readonly devices: ('irqchip' | 'pit')[] = [];

  /**
   * KVM_CREATE_IRQCHIP: PIC, I/O APIC and local APICs in the kernel; before the first vCPU.
   * @throws KvmError EEXIST when there are some, EINVAL once there is a vCPU, ENOTTY in the simulator
   */
  createIrqchip(): void {
    this.fd.call(ioctls.KVM_CREATE_IRQCHIP);
    this.devices.push('irqchip');
  }
  /**
   * KVM_CREATE_PIT2: an 8254 in the kernel; after createIrqchip().
   * @param flags Pit.SPEAKER_DUMMY, or 0
   * @throws KvmError EEXIST when there is one, ENOENT without createIrqchip(), ENOTTY in the simulator
   */
  createPit2(flags = 0): void {
    this.fd.write(ioctls.KVM_CREATE_PIT2, { flags: u32('flags', flags) });
    this.devices.push('pit');
  }
  /**
   * KVM_IRQ_LINE: raises or lowers a line of the in-kernel interrupt controllers.
   * @param line `irq` is the line (a GSI), `level` 1 raises it and 0 lowers it
   * @throws KvmError ENXIO without createIrqchip(), ENOTTY in the simulator
   */
  irqLine(line: Input<Value<typeof kvm_irq_level>>): void {
    this.fd.write(ioctls.KVM_IRQ_LINE, line);
  }
  /**
   * KVM_SIGNAL_MSI: delivers a message-signalled interrupt to the in-kernel local APICs.
   * @param msi what a device would write, and where
   * @returns above 0 when delivered, 0 when the guest blocked it
   * @throws KvmError EINVAL without createIrqchip(), ENOTTY in the simulator
   */
  signalMsi(msi: Input<Value<typeof kvm_msi>>): number {
    return this.fd.write(ioctls.KVM_SIGNAL_MSI, msi);
  }
}
