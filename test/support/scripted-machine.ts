/** A VM on the scripted backend, with slots of both kinds and the memory-fault service. */
import { expect } from 'vitest';
import {
  Hypervisor,
  MemoryAttribute,
  type MemoryEvent,
  type MemoryFaultOptions,
  MemoryFaultService,
  VmexitError,
} from '../../src/index.ts';
import { kvm_memory_attributes } from '../../src/uapi/structs.ts';
import { ScriptedBackend, type Step } from './scripted-backend.ts';

export const PAGE = 4096;

/** Slots: 0 at [0, 64K) with guest_memfd, 1 at [64K, 128K) with guest_memfd, 2 at [1M, 1M+64K) without. */
export function machine(type: number, options: MemoryFaultOptions = {}) {
  const backend = new ScriptedBackend();
  const vm = new Hypervisor(backend).createVm({ type });
  const ram = vm.allocate(0x30000);
  const secret = vm.createGuestMemfd(0x40000);
  vm.setUserMemoryRegion2({
    slot: 0,
    guestPhysAddr: 0,
    memorySize: 0x10000,
    memory: ram,
    guestMemfd: secret,
  });
  vm.setUserMemoryRegion2({
    slot: 1,
    guestPhysAddr: 0x10000,
    memorySize: 0x10000,
    memory: ram,
    memoryOffset: 0x10000,
    guestMemfd: secret,
    guestMemfdOffset: 0x20000,
  });
  vm.setUserMemoryRegion2({
    slot: 2,
    guestPhysAddr: 0x10_0000,
    memorySize: 0x10000,
    memory: ram,
    memoryOffset: 0x20000,
  });
  const vcpu = vm.createVcpu(0);
  const events: MemoryEvent[] = [];
  const service = new MemoryFaultService(vm, { trace: (event) => events.push(event), ...options });
  backend.calls.length = 0;
  const play = (step: Step) => {
    backend.script.push(step);
    return service.handle(vcpu, vcpu.run());
  };
  const conversions = () =>
    backend.calls
      .filter(({ name }) => name === 'KVM_SET_MEMORY_ATTRIBUTES')
      .map(({ argument }) => kvm_memory_attributes.decode(argument as Uint8Array));
  const punches = () =>
    backend.calls.filter(({ name }) => name === 'fallocate').map(({ argument }) => argument);
  const makePrivate = (address: number, size = PAGE) => {
    vm.setMemoryAttributes({ address, size, attributes: MemoryAttribute.PRIVATE });
    backend.calls.length = 0;
  };
  return { backend, vm, ram, secret, vcpu, service, events, play, conversions, punches, makePrivate };
}

export const thrown = (run: () => unknown): VmexitError => {
  try {
    run();
  } catch (error) {
    expect(error).toBeInstanceOf(VmexitError);
    return error as VmexitError;
  }
  throw new Error('nothing was thrown');
};
