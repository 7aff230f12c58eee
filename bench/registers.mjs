// Registers beside C: all eighteen as an object of bigints. Used by run.mjs. By sync regs there is no ioctl at all.
import { flatImage, Machine, openHypervisor } from '../dist/index.js';
import { expect, nanoseconds } from './support.mjs';

const vcpuOf = () => {
  const machine = new Machine(openHypervisor(), { memory: 0x10_0000 });
  machine.load(flatImage(Uint8Array.of(0xf4), 'real'), { rax: 7 });
  return machine.vcpu;
};

const timed = (use) => () => {
  const step = use(vcpuOf());
  return (count) => {
    const start = process.hrtime.bigint();
    for (let i = 0; i < count; i++) step();
    return nanoseconds(start, count);
  };
};

const getRegs = timed((vcpu) => () => expect(vcpu.getRegs().rax === 7n));
const setRegs = timed((vcpu) => {
  const regs = vcpu.getRegs();
  return () => vcpu.setRegs(regs);
});
const inPlace = timed(({ regs }) => () => {
  regs.load();
  expect(regs.rax === 7n);
});

// A processor that is emulated runs what is beside the ioctl many times slower, and the ioctl too.
const target = process.env.VMEXIT_LAB === '1' ? { ratio: 1.15 } : { more: 150 };
export const benches = {
  'regs-in-place': {
    what: 'KVM_GET_REGS in place, and one register of it',
    prepare: inPlace,
    count: 50_000,
    args: (count) => ['get-regs', String(count)],
    target,
  },
  'get-regs': { what: 'KVM_GET_REGS', prepare: getRegs, count: 50_000, target },
  'set-regs': { what: 'KVM_SET_REGS', prepare: setRegs, count: 50_000, target },
};
