/** Where a VM's interrupt lines (GSIs) lead: the entries of KVM_SET_GSI_ROUTING. */
import { Irqchip, IrqRouting } from '../uapi/constants.ts';
import type { Input, Value } from '../uapi/layout.ts';
import type {
  kvm_irq_routing_entry,
  kvm_irq_routing_hv_sint,
  kvm_irq_routing_irqchip,
  kvm_irq_routing_msi,
  kvm_irq_routing_xen_evtchn,
} from '../uapi/structs.ts';
import { object, u32 } from './args.ts';
import { wrongType } from './errors.ts';

/** What every route has. */
interface Route {
  /** The line: what irqLine() raises and an irqfd is bound to. From 0 to below 4096 (KVM_MAX_IRQ_ROUTES). */
  readonly gsi: number;
}

/**
 * Where one GSI leads (struct kvm_irq_routing_entry): `type` says which other field there is. A GSI may lead to a pin of
 * the PIC and one of the I/O APIC at once, by two routes; otherwise it has one.
 */
export type GsiRoute =
  | (Route & {
      readonly type: typeof IrqRouting.IRQCHIP;
      /** A pin of an interrupt controller in the kernel: `irqchip` is one of Irqchip; `pin` 0 to 7 of a PIC, 0 to 23. */
      readonly irqchip: Input<Value<typeof kvm_irq_routing_irqchip>>;
    })
  | (Route & {
      readonly type: typeof IrqRouting.MSI;
      /** MsiFlag bits: VALID_DEVID where `devid` counts. 0 without it. */
      readonly flags?: number;
      /** What a device would write, and where (SDM volume 3, "Message Signalled Interrupts"). */
      readonly msi: Input<Value<typeof kvm_irq_routing_msi>>;
    })
  | (Route & {
      readonly type: typeof IrqRouting.HV_SINT;
      /** A synthetic interrupt source of a vCPU, with Cap.HYPERV_SYNIC or HYPERV_SYNIC2 enabled on that. */
      readonly hvSint: Input<Value<typeof kvm_irq_routing_hv_sint>>;
    })
  | (Route & {
      readonly type: typeof IrqRouting.XEN_EVTCHN;
      /** An event channel of a Xen guest (since 5.17); `priority` is KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL, 0xffffffff. */
      readonly xenEvtchn: Input<Value<typeof kvm_irq_routing_xen_evtchn>>;
    });

/** The field that a type has. */
const arms: Readonly<Record<number, 'irqchip' | 'msi' | 'hvSint' | 'xenEvtchn'>> = {
  [IrqRouting.IRQCHIP]: 'irqchip',
  [IrqRouting.MSI]: 'msi',
  [IrqRouting.HV_SINT]: 'hvSint',
  [IrqRouting.XEN_EVTCHN]: 'xenEvtchn',
};

const PIC_PINS = 8;
const IOAPIC_PINS = 24;

/**
 * The routes that createIrqchip() makes: GSI n leads to pin n of the I/O APIC, and the first 16 to the PICs as well. As
 * setGsiRouting() replaces all, a VMM that wants one more gives these with it.
 */
export function defaultGsiRoutes(): GsiRoute[] {
  const to = (gsi: number, irqchip: number, pin: number): GsiRoute => ({
    gsi,
    type: IrqRouting.IRQCHIP,
    irqchip: { irqchip, pin },
  });
  return Array.from({ length: IOAPIC_PINS }, (_, gsi) => {
    const ioapic = to(gsi, Irqchip.IOAPIC, gsi);
    if (gsi >= 2 * PIC_PINS) return [ioapic];
    return [ioapic, to(gsi, gsi < PIC_PINS ? Irqchip.PIC_MASTER : Irqchip.PIC_SLAVE, gsi % PIC_PINS)];
  }).flat();
}

interface Fields {
  readonly gsi: number;
  readonly type: number;
  readonly flags?: number;
  readonly [arm: string]: unknown;
}

/** The route as the kernel's struct. @throws TypeError ERR_KVM_INVALID_ARG for a type without its field */
export function routingEntry(route: GsiRoute, index: number): Input<Value<typeof kvm_irq_routing_entry>> {
  const name = `routes[${index}]`;
  const { gsi, type, flags = 0, ...rest } = object(name, route) as unknown as Fields;
  const arm = arms[type];
  if (arm === undefined)
    throw wrongType(`${name}.type`, type, 'IRQCHIP, MSI, HV_SINT or XEN_EVTCHN of IrqRouting');
  const { [arm]: target, ...unknown } = rest;
  for (const key of Object.keys(unknown))
    throw wrongType(`${name}.${key}`, unknown[key], `left out: a route of type ${type} has \`${arm}\``);
  if (typeof target !== 'object' || target === null)
    throw wrongType(`${name}.${arm}`, target, `an object: a route of type ${type} has \`${arm}\``);
  return { gsi: u32(`${name}.gsi`, gsi), type, flags, u: { [arm]: target } };
}

/** Whether x86 has routes of the type. */
export const isRouteType = (type: number): boolean => type in arms;

/** The struct as a route. */
export const routeOf = ({ gsi, type, flags, u }: Value<typeof kvm_irq_routing_entry>): GsiRoute =>
  ({ gsi, type, ...(flags ? { flags } : {}), [arms[type]!]: u[arms[type]!] }) as unknown as GsiRoute;
