/** The kernel's ABI as data: nothing here opens a device, and all of it runs in a browser. */
export * from './cap.ts';
export * from './constants.ts';
export * from './dialects.ts';
export * from './encrypt-commands.ts';
export * from './encryption.ts';
export * from './errno.ts';
export * from './exit.ts';
export * from './exits.ts';
export * from './ioctls.ts';
export * from './kvm-run.ts';
export * from './layout.ts';
export * from './outcome.ts';
export * from './structs.ts';
export { flagNames } from './text.ts';
export * from './x86.ts';
export * from './xen.ts';
export * from './xsave.ts';
