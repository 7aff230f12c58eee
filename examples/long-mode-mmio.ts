/**
 * A device in memory: a 64-bit guest talks to a counter that the VMM keeps, by loads and stores to an address that no
 * memory slot has. The machine, the bus and the loop are the package's; the device is written here.
 *
 * Run it: npm run setup, then node dist/examples/long-mode-mmio.js
 */
import { type Device, flatImage, guest, Machine, openHypervisor, RunLoop, Serial } from 'vmexit';

// The counter: writing to its first register adds to it, reading the second gives the sum.
const COUNTER = 0xd000_0000;
const Register = { ADD: 0, SUM: 8 } as const;

const adds = guest(
  64,
  `
     bf 00 00 00 d0 |         mov edi, 0xd0000000
     b9 0a 00 00 00 |         mov ecx, 10
     89 0f          | add:    mov [rdi], ecx           # leaves the guest: KVM_EXIT_MMIO, a write
     e2 fc          |         loop add
     48 8b 47 08    |         mov rax, [rdi + 8]       # and a read: rax is what the VMM answers
                    |
     bb 0a 00 00 00 |         mov ebx, 10              # prints rax, which has two digits
     31 d2          |         xor edx, edx
     48 f7 f3       |         div rbx
     89 d1          |         mov ecx, edx
     66 ba f8 03    |         mov dx, 0x3f8
     04 30          |         add al, '0'
     ee             |         out dx, al
     8d 41 30       |         lea eax, [rcx + '0']
     ee             |         out dx, al
     b0 0a          |         mov al, 10
     ee             |         out dx, al
     f4             |         hlt
`,
);

class Counter implements Device {
  readonly name = 'counter';
  sum = 0n;

  // `data` is the access: as many bytes as the guest's instruction has.
  read(offset: number, data: Uint8Array): void {
    const answer = new Uint8Array(BigUint64Array.of(offset === Register.SUM ? this.sum : 0n).buffer);
    data.set(answer.subarray(0, data.length));
  }

  write(offset: number, data: Uint8Array): void {
    const value = data.reduceRight((value, byte) => (value << 8n) | BigInt(byte), 0n);
    if (offset === Register.ADD) this.sum += value;
  }
}

using hv = openHypervisor();
using machine = new Machine(hv, { memory: 1024 * 1024 });
machine.load(flatImage(adds.code, 'long'));

const counter = new Counter();
const loop = new RunLoop(machine.vcpu);
loop.mmio.attach(COUNTER, 16, counter);
Serial.attach(loop.ports, (byte) => void process.stdout.write(Uint8Array.of(byte)));

// The loop gives the thread back between slices: timers and promises go on while the guest runs.
const end = await loop.run({ timeoutMs: 5000 });
console.log(`The guest has ended: ${end.reason}. The counter says ${counter.sum}.`);
console.log('Exits:', loop.exits);
