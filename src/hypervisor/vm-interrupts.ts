/** A VM's interrupts: the controllers and the timer that the kernel has for it, and what reaches them. */
import { Irqchip } from '../uapi/constants.ts';
import { ioctls } from '../uapi/ioctls.ts';
import type { Input, Value } from '../uapi/layout.ts';
import type { kvm_irq_level, kvm_msi } from '../uapi/structs.ts';
import type { kvm_ioapic_state, kvm_pic_state, kvm_pit_state2 } from '../uapi/x86.ts';
import { integer, object, u32 } from './args.ts';
import { wrongType } from './errors.ts';
import { type GsiRoute, routeOf, routingEntry } from './gsi-routing.ts';
import { VmEvents } from './vm-events.ts';

/** An 8259A as the kernel has it (struct kvm_pic_state). */
export type PicState = Value<typeof kvm_pic_state>;
/** The I/O APIC as the kernel has it (struct kvm_ioapic_state). */
export type IoapicState = Value<typeof kvm_ioapic_state>;
/** The 8254 as the kernel has it (struct kvm_pit_state2). */
export type PitState = Value<typeof kvm_pit_state2>;

type Chips<Pic, Ioapic> =
  | { readonly chipId: typeof Irqchip.PIC_MASTER; readonly pic: Pic }
  | { readonly chipId: typeof Irqchip.PIC_SLAVE; readonly pic: Pic }
  | { readonly chipId: typeof Irqchip.IOAPIC; readonly ioapic: Ioapic };
/** An interrupt controller's state: `chipId` says whether it has `pic` or `ioapic`. */
export type IrqchipState = Chips<PicState, IoapicState>;

/** How a VM's timer was made. */
export interface PitSetup {
  /** What createPit2() was given. */
  readonly flags: number;
  /** What reinjectControl() was given last; true without it. */
  readonly reinject: boolean;
}

/** How a VM's interrupts were routed. */
export interface RoutingSetup {
  /** What setGsiRouting() was given beside the routes. */
  readonly flags: number;
  /** All of them. */
  readonly routes: readonly GsiRoute[];
}

/** What was done about a VM's interrupts that the kernel cannot be asked for. */
export interface InterruptSetup {
  /**
   * `kernel`: createIrqchip() was called. `split`: Cap.SPLIT_IRQCHIP was enabled, and only local APICs are in the kernel.
   */
  readonly irqchip: 'kernel' | 'split' | undefined;
  /** What createPit2() and reinjectControl() were given, if there is a timer. */
  readonly pit: PitSetup | undefined;
  /** What setBootCpuId() was given, if it was called. */
  readonly bootCpuId: number | undefined;
  /** What setGsiRouting() was given, if it was called. */
  readonly gsiRouting: RoutingSetup | undefined;
}

/** The part of a Vm that is about its interrupts. */
export abstract class VmInterrupts extends VmEvents {
  protected interrupts: InterruptSetup = {
    irqchip: undefined,
    pit: undefined,
    bootCpuId: undefined,
    gsiRouting: undefined,
  };

  /**
   * KVM_CREATE_IRQCHIP: PIC, I/O APIC and local APICs in the kernel; before the first vCPU. For local APICs alone enable
   * Cap.SPLIT_IRQCHIP instead, with the number of GSIs that a VMM's own I/O APIC has in `args[0]`.
   * @throws KvmError EEXIST when there are some, EINVAL once there is a vCPU, ENOTTY in the simulator
   */
  createIrqchip(): void {
    this.fd.call(ioctls.KVM_CREATE_IRQCHIP);
    this.interrupts = { ...this.interrupts, irqchip: 'kernel' };
  }
  /**
   * KVM_GET_IRQCHIP: the state of a PIC or of the I/O APIC.
   * @param chipId one of Irqchip; it says which field the answer has
   * @throws KvmError ENXIO without createIrqchip(), ENOTTY in the simulator; RangeError ERR_KVM_INVALID_ARG
   */
  getIrqchip<C extends Irqchip>(chipId: C): Extract<IrqchipState, { readonly chipId: C }> {
    const { pic, ioapic } = this.fd.exchange(ioctls.KVM_GET_IRQCHIP, {
      chipId: integer('chipId', chipId, Irqchip.IOAPIC),
    }).chip;
    const state = chipId === Irqchip.IOAPIC ? { chipId, ioapic } : { chipId, pic };
    return state as Extract<IrqchipState, { readonly chipId: C }>;
  }
  /**
   * KVM_SET_IRQCHIP: sets all of a PIC or of the I/O APIC: what is left out becomes 0. An interrupt that is pending then
   * and not masked is delivered.
   * @param state as getIrqchip() gives it
   * @throws KvmError as getIrqchip(); TypeError ERR_KVM_INVALID_ARG for a `chipId` without its field
   */
  setIrqchip(state: Chips<Input<PicState>, Input<IoapicState>>): void {
    const { chipId, ...chips } = object('state', state);
    const arm = integer('state.chipId', chipId, Irqchip.IOAPIC) === Irqchip.IOAPIC ? 'ioapic' : 'pic';
    const chip = (chips as Record<string, unknown>)[arm];
    if (typeof chip !== 'object' || chip === null)
      throw wrongType(`state.${arm}`, chip, `an object: chip ${chipId} has \`${arm}\``);
    this.fd.write(ioctls.KVM_SET_IRQCHIP, { chipId, chip: chips });
  }
  /**
   * KVM_CREATE_PIT2: an 8254 in the kernel; after createIrqchip().
   * @param flags Pit.SPEAKER_DUMMY, or 0
   * @throws KvmError EEXIST when there is one, ENOENT without createIrqchip(), ENOTTY in the simulator
   */
  createPit2(flags = 0): void {
    const config = { flags: u32('flags', flags) };
    this.fd.write(ioctls.KVM_CREATE_PIT2, config);
    this.interrupts = { ...this.interrupts, pit: { ...config, reinject: true } };
  }
  /**
   * KVM_GET_PIT2: the three channels of the 8254. `countLoadTime` is in nanoseconds of the host's monotonic clock.
   * @throws KvmError ENXIO without createPit2(), ENOTTY in the simulator
   */
  getPit2(): PitState {
    return this.fd.read(ioctls.KVM_GET_PIT2);
  }
  /**
   * KVM_SET_PIT2: what is left out becomes 0. Channel 0 begins to count anew, from its `count` (0 is 65536), in its `mode`.
   * @throws KvmError as getPit2()
   */
  setPit2(pit: Input<PitState>): void {
    this.fd.write(ioctls.KVM_SET_PIT2, pit);
  }
  /**
   * KVM_REINJECT_CONTROL: whether ticks of the PIT that the guest has not taken in time are kept and come one after the
   * other, as they are unless it is told, or are lost.
   * @throws KvmError ENXIO without createPit2(), ENOTTY in the simulator
   */
  reinjectControl(pitReinject: boolean): void {
    this.fd.write(ioctls.KVM_REINJECT_CONTROL, { pitReinject: pitReinject ? 1 : 0 });
    const { flags } = this.interrupts.pit!;
    this.interrupts = { ...this.interrupts, pit: { flags, reinject: pitReinject } };
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
   * KVM_IRQ_LINE_STATUS: as irqLine(), and tells what came of it.
   * @returns above 0 when it was delivered, 0 when it was merged with one that is pending, below 0 when it was ignored,
   *   because the line is masked
   * @throws KvmError as irqLine()
   */
  irqLineStatus(line: Input<Value<typeof kvm_irq_level>>): number {
    return this.fd.exchange(ioctls.KVM_IRQ_LINE_STATUS, line).status;
  }
  /**
   * KVM_SIGNAL_MSI: delivers a message-signalled interrupt to the in-kernel local APICs.
   * @param msi what a device would write, and where
   * @returns above 0 when delivered, 0 when the guest blocked it
   * @throws KvmError EINVAL without local APICs in the kernel, ENOTTY in the simulator
   */
  signalMsi(msi: Input<Value<typeof kvm_msi>>): number {
    return this.fd.write(ioctls.KVM_SIGNAL_MSI, msi);
  }
  /**
   * KVM_SET_GSI_ROUTING: where each GSI leads, instead of what was before. With Cap.SPLIT_IRQCHIP the first GSIs are those of
   * the VMM's I/O APIC: the end of a level-triggered interrupt by a route of theirs is Exit.IOAPIC_EOI.
   * @param routes at most 4096; those of createIrqchip() are defaultGsiRoutes()
   * @param flags 0 for any kernel of today
   * @throws KvmError EINVAL without interrupt controllers in the kernel, for a pin that there is not, for a GSI that leads
   *   to one controller twice; ENOTTY in the simulator; TypeError, RangeError ERR_KVM_INVALID_ARG
   */
  setGsiRouting(routes: readonly GsiRoute[], flags = 0): void {
    if (!Array.isArray(routes)) throw wrongType('routes', routes, 'an array');
    const head = { flags: u32('flags', flags) };
    const { elements } = this.fd.exchangeList(ioctls.KVM_SET_GSI_ROUTING, routes.map(routingEntry), head);
    this.interrupts = { ...this.interrupts, gsiRouting: { ...head, routes: elements.map(routeOf) } };
  }
  /**
   * KVM_SET_BOOT_CPU_ID: which vCPU is the boot processor, vCPU 0 without it; before the first vCPU. With interrupt
   * controllers in the kernel it alone begins RUNNABLE: the others wait for INIT.
   * @param id as createVcpu() takes it
   * @throws KvmError EBUSY once there is a vCPU, ENOTTY in the simulator; RangeError ERR_KVM_INVALID_ARG
   */
  setBootCpuId(id: number): void {
    this.fd.call(ioctls.KVM_SET_BOOT_CPU_ID, u32('id', id));
    this.interrupts = { ...this.interrupts, bootCpuId: id };
  }
}
