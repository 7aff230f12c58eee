/**
 * Private memory: the guest asks for a page to be made private, writes there, and the host still sees what was there
 * before. Where KVM has no private memory (npx vmexit probe), it runs on the simulator.
 *
 * Run it: npm run setup, then node dist/examples/private-and-shared.js
 * or on a real kernel: npx vmexit lab run -- node dist/examples/private-and-shared.js
 */
import { flatImage, guest, Machine, MemoryFaultService, openHypervisor, RunLoop } from 'vmexit';

const PAGE = 0x8000;

const keepsASecret = guest(
  64,
  `
     c7 04 25 00 80 00 00 11 11 11 11 |         mov dword ptr [0x8000], 0x11111111    # shared: the host sees this
     b0 01                            |         mov al, 1
     e6 80                            |         out 0x80, al
                                      |
     ba 10 00 00 00                   |         mov edx, 0x10                         # KVM_MAP_GPA_RANGE_ENCRYPTED: make it private
     e8 29 00 00 00                   |         call map
     c7 04 25 00 80 00 00 22 22 22 22 |         mov dword ptr [0x8000], 0x22222222    # and not this
     8b 1c 25 00 80 00 00             |         mov ebx, [0x8000]                     # but the guest does
     b0 02                            |         mov al, 2
     e6 80                            |         out 0x80, al
                                      |
     31 d2                            |         xor edx, edx                          # make it shared again
     e8 0c 00 00 00                   |         call map
     8b 1c 25 00 80 00 00             |         mov ebx, [0x8000]
     b0 03                            |         mov al, 3
     e6 80                            |         out 0x80, al
     f4                               |         hlt
                                      |
     31 c0                            | map:    xor eax, eax                          # which of the two hypercall instructions this processor has
     52                               |         push rdx
     0f a2                            |         cpuid
     5a                               |         pop rdx
     81 f9 63 41 4d 44                |         cmp ecx, 0x444d4163                   # "AuthenticAMD"
     b8 0c 00 00 00                   |         mov eax, 12                           # KVM_HC_MAP_GPA_RANGE(address, pages, state)
     bb 00 80 00 00                   |         mov ebx, 0x8000
     b9 01 00 00 00                   |         mov ecx, 1
     74 04                            |         je amd
     0f 01 c1                         |         vmcall
     c3                               |         ret
     0f 01 d9                         | amd:    vmmcall
     c3                               |         ret
`,
);

using hv = openHypervisor({ needs: ['private-memory', 'map-gpa-range'] });
using machine = new Machine(hv, { memory: 1024 * 1024, privateMemory: true });
machine.load(flatImage(keepsASecret.code, 'long'));
const { memory, vcpu, vm } = machine;

// Converts what the guest asks for. `private`: a page's shared bytes are kept while it is private.
const service = new MemoryFaultService(vm, { discard: 'private' });
const loop = new RunLoop(vcpu, { handlers: [service] });

// The guest tells how far it has come by port 0x80, as PCs do.
loop.ports.attach(0x80, 1, {
  name: 'progress',
  read: () => {},
  write(_offset, [step]) {
    const state = vm.memoryMap.isPrivate(PAGE) ? 'private' : 'shared';
    const hostSees = Buffer.from(memory.bytes.subarray(PAGE, PAGE + 4)).toString('hex');
    const guestSees = step === 1 ? '' : `, the guest has read ${vcpu.getRegs().rbx.toString(16)}`;
    console.log(`step ${step}: the page is ${state}, the host reads ${hostSees}${guestSees}`);
  },
});

await loop.run({ timeoutMs: 10_000 });
const { conversions, bytes } = service.counters;
console.log(`conversions: ${conversions.toPrivate} to private, ${conversions.toShared} to shared`);
console.log(`bytes: ${bytes.toPrivate} to private, ${bytes.toShared} to shared`);
