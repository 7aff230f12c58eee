/**
 * A policy: what the VMM does when the guest touches private memory with nothing private behind it. KVM cannot go on
 * (KVM_EXIT_MEMORY_FAULT). The policy adds memory in one range, shares what cannot be private in another, and ends a
 * guest that goes anywhere else. Where KVM has no private memory (npx vmexit probe), it runs on the simulator.
 *
 * Run it: npm run setup, then node dist/examples/memory-fault-policy.js
 * or on a real kernel: npx vmexit lab run -- node dist/examples/memory-fault-policy.js
 */
import {
  flatImage,
  guest,
  Machine,
  MemoryAttribute,
  MemoryFaultService,
  openHypervisor,
  type Policy,
  RunLoop,
  VmexitError,
} from 'vmexit';

const PLUGGED = { start: 0x20_0000, size: 0x1_0000 }; // private memory, added when it is first touched
const SHARED = { start: 0x30_0000, size: 0x1_0000 }; // a slot that has shared memory alone
const NOBODYS = { start: 0x40_0000, size: 0x1_0000 }; // neither memory nor policy

const wanders = guest(
  64,
  `
     c7 04 25 00 00 20 00 01 00 00 00 |         mov dword ptr [0x200000], 1
     c7 04 25 00 10 20 00 02 00 00 00 |         mov dword ptr [0x201000], 2
     c7 04 25 00 00 30 00 03 00 00 00 |         mov dword ptr [0x300000], 3
     c7 04 25 00 00 40 00 04 00 00 00 |         mov dword ptr [0x400000], 4
     f4                               |         hlt
`,
);

using hv = openHypervisor({ needs: ['private-memory', 'memory-fault'] });
using machine = new Machine(hv, { memory: 1024 * 1024, privateMemory: true });
machine.load(flatImage(wanders.code, 'long'));
const { vcpu, vm } = machine;

using shared = vm.allocate(SHARED.size);
vm.setUserMemoryRegion({ slot: 1, guestPhysAddr: SHARED.start, memory: shared });
using plugged = vm.createGuestMemfd(PLUGGED.size);
for (const { start, size } of [PLUGGED, SHARED, NOBODYS]) {
  vm.setMemoryAttributes({ address: start, size, attributes: MemoryAttribute.PRIVATE });
}

const isIn = ({ start, size }: typeof PLUGGED, gpa: number) => gpa >= start && gpa < start + size;

/** Asked about each fault and each request; what it cannot mend ends the run. */
const policy: Policy = ({ cause, gpa, slot }) => {
  if (cause !== 'unbacked') return 'deny';
  if (slot) return 'allow'; // shares the page
  if (!isIn(PLUGGED, gpa)) return 'deny';
  vm.setUserMemoryRegion2({ slot: 2, guestPhysAddr: PLUGGED.start, guestMemfd: plugged });
  return 'retry'; // it is mended: run the guest again
};

const service = new MemoryFaultService(vm, {
  policy,
  trace: ({ gpa, action }) => console.log(`fault at 0x${gpa.toString(16)}: ${action}`),
});

try {
  await new RunLoop(vcpu, { handlers: [service] }).run({ timeoutMs: 10_000 });
} catch (error) {
  if (!(error instanceof VmexitError)) throw error;
  console.log(`${error.code}: ${error.message}`);
}
const { memoryFaults, retries, refusals } = service.counters;
console.log(
  `${memoryFaults} faults: ${retries} mended, ${refusals} refused; the host reads ${shared.bytes[0]}`,
);
