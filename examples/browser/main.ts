/**
 * A guest in a page of a browser: it computes for a moment and prints on its serial port, which is an element of the page.
 *
 * Bundle it beside index.html, and open that over HTTP:
 *   npx esbuild main.ts --bundle --platform=browser --format=esm --target=es2022 --outfile=main.js
 *   npx esbuild --servedir=.
 */
import { flatImage, guest, Machine, openSimulator, RunLoop, Serial } from 'vmexit/sim';

const program = guest(
  64,
  `
     b9 40 42 0f 00                      |         mov ecx, 1000000
     01 c8                               | sum:    add eax, ecx         # hot code: the simulator makes WebAssembly of it
     ff c9                               |         dec ecx
     75 fa                               |         jnz sum
     66 ba f8 03                         |         mov dx, 0x3f8        # the serial port's data register
     48 8d 35 09 00 00 00                |         lea rsi, [rip + text]
     ac                                  | next:   lodsb
     84 c0                               |         test al, al
     74 03                               |         jz done
     ee                                  |         out dx, al
     eb f8                               |         jmp next
     f4                                  | done:   hlt
     48 65 6c 6c 6f 2c 20 70 61 67 65 21 | text:   .ascii "Hello, page!"
     0a 00                               |         .byte 10, 0
`,
);

const serial = document.querySelector('#serial')!;
const end = document.querySelector('#end')!;

try {
  using hv = await openSimulator();
  using machine = new Machine(hv, { memory: 1 << 20 });
  machine.load(flatImage(program.code, 'long'));

  // Slices of a few milliseconds leave the page its time to draw and to answer.
  const loop = new RunLoop(machine.vcpu, { sliceMs: 10 });
  Serial.attach(loop.ports, (byte) => {
    serial.textContent += String.fromCharCode(byte);
  });
  const { reason } = await loop.run({ timeoutMs: 60_000 });
  end.textContent = `The guest has ended: ${reason}.`;
} catch (error) {
  end.textContent = `${error}`;
}
