/**
 * The small constants of <linux/kvm.h>, <asm/kvm.h> and <linux/kvm_para.h>, one object per kernel prefix.
 * Capabilities are in cap.ts, exits in exit.ts, errnos in errno.ts.
 */
export * from './constants/counters.ts';
export * from './constants/devices.ts';
export * from './constants/encryption.ts';
export * from './constants/exits.ts';
export * from './constants/interrupts.ts';
export * from './constants/paravirt.ts';
export * from './constants/registers.ts';
export * from './constants/vcpu.ts';
export * from './constants/vm.ts';
export * from './constants/xen.ts';
