/**
 * Post-copy migration: a guest counts in one process, and goes on counting in another, which has its registers and none
 * of its memory yet. The pages that it touches are pulled, the rest is pushed behind it; it never notices.
 *
 * Run it: npm run setup, then node dist/examples/post-copy-migration.js
 */
import { fork } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import {
  DebugExit,
  type ExitHandler,
  flatImage,
  guest,
  Machine,
  openHypervisor,
  RunLoop,
  receiveGuest,
  sendGuest,
  type Vcpu,
} from 'vmexit';

const HALF = 500; // pages that are summed up when it is handed over
const MEMORY = 8 * 2 ** 20;

/** Adds up a number in each of a thousand pages, which it writes there first, and tells port 0x80 of each. */
const counts = guest(
  64,
  `
 bf 00 00 10 00       |        mov edi, 0x100000
 b9 e8 03 00 00       |        mov ecx, 1000
 48 89 0f             | fill:  mov [rdi], rcx
 48 81 c7 00 10 00 00 |        add rdi, 0x1000
 e2 f4                |        loop fill
 bf 00 00 10 00       |        mov edi, 0x100000
 b9 e8 03 00 00       |        mov ecx, 1000
 48 03 07             | sum:   add rax, [rdi]
 48 81 c7 00 10 00 00 |        add rdi, 0x1000
 e6 80                |        out 0x80, al
 e2 f2                |        loop sum
 e7 f4                |        out 0xf4, eax
 f4                   |        hlt
`,
);

/** What both sides do: the guest's ports. It is stopped when it has told of so many pages. */
function loopFor(
  vcpu: Vcpu,
  stopAfter = Number.POSITIVE_INFINITY,
  handlers: readonly ExitHandler[] = [],
): RunLoop {
  const loop = new RunLoop(vcpu, { handlers });
  let told = 0;
  const write = () => ++told === stopAfter && loop.stop();
  loop.ports.attach(0x80, 1, { name: 'progress', read: () => {}, write });
  DebugExit.attach(loop.ports, (sum) => loop.stop(sum));
  return loop;
}

async function source(): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), 'vmexit-migration-'));
  const address = `unix:${join(folder, 'socket')}`;
  try {
    const destination = fork(fileURLToPath(import.meta.url), [address]);
    const ended = once(destination, 'exit');
    using hv = openHypervisor();
    using machine = new Machine(hv, { memory: MEMORY });
    machine.load(flatImage(counts.code, 'long'));
    const { vm, vcpu } = machine;
    await loopFor(vcpu, HALF).run({ timeoutMs: 10_000 });
    console.log(`source: ${HALF} pages summed up, rax is ${vcpu.getRegs().rax}`);
    await once(destination, 'message'); // it listens
    const { pages } = await sendGuest(hv, { vm, vcpus: [vcpu], to: address });
    await ended;
    console.log(`source: all ${pages} pages are there, and the guest here is given up`);
  } finally {
    rmSync(folder, { recursive: true });
  }
}

async function destination(at: string): Promise<void> {
  using hv = openHypervisor();
  const guest = await receiveGuest(hv, { at, onListening: (address) => process.send!(address) });
  const { vcpus, pager } = guest;
  const end = await loopFor(vcpus[0]!, undefined, [pager]).run({ timeoutMs: 10_000 });
  await pager.complete;
  console.log(`destination: ${end.reason === 'stop' ? `the sum is ${end.value}` : end.reason}`);
  await guest.close();
  process.disconnect();
}

const [, , address] = process.argv;
await (address === undefined ? source() : destination(address));
