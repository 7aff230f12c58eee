/**
 * The smallest VMM: a guest in 16-bit real mode prints on the serial port and halts. Everything is done by hand here;
 * long-mode-mmio.ts shows the pieces that do it for you.
 *
 * Run it: npm run setup, then node dist/examples/hello-real-mode.js
 */
import { describeExit, Exit, enterRealMode, guest, openHypervisor } from 'vmexit';
import { IoDirection } from 'vmexit/uapi';

// Machine code on the left, its source on the right: node scripts/guests.mjs writes the left side.
const hello = guest(
  16,
  `
     ba f8 03          |         mov dx, 0x3f8        # the serial port's data register
     e8 00 00          |         call here            # the text's address: this code can lie anywhere
     5e                | here:   pop si
     81 c6 0f 00       |         add si, text - here
     2e ac             | next:   cs lodsb
     84 c0             |         test al, al
     74 03             |         jz done
     ee                |         out dx, al           # leaves the guest: KVM_EXIT_IO
     eb f7             |         jmp next
     f4                | done:   hlt                  # leaves it for good: KVM_EXIT_HLT
     48 65 6c 6c 6f 21 | text:   .ascii "Hello!"
     0a 00             |         .byte 10, 0
`,
);
const ADDRESS = 0x1000;
const DEADLINE_MS = 1000;

// A VM has memory and processors, and they are given to it one by one.
using hv = openHypervisor();
using vm = hv.createVm();
using ram = vm.allocate(64 * 1024);
vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memory: ram });
ram.write(ADDRESS, hello.code);

using vcpu = vm.createVcpu();
enterRealMode(vcpu);
// Bit 1 of the flags is always 1. The stack grows down from the code.
vcpu.setRegs({ rip: ADDRESS, rsp: ADDRESS, rflags: 2 });

/** Serves one exit. Gives whether the guest can go on. */
function serve(exit: number): boolean {
  if (exit === Exit.IO && vcpu.io.direction === IoDirection.OUT && vcpu.io.port === 0x3f8) {
    process.stdout.write(vcpu.io.data);
    return true;
  }
  console.log(`The guest has ended with: ${describeExit(vcpu.exit)}`);
  return false;
}

// run() keeps the thread until the guest needs something, or until the deadline.
while (serve(vcpu.run(DEADLINE_MS)));
