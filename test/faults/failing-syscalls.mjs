// Each system call of the addon's fails in turn, in what the first argument names: a program of failing-syscalls.test.ts, which
// runs it with test/support/failing-syscalls.c. Prints what came of each.
import { closeSync, openSync, readSync, writeSync } from 'node:fs';
import { constants } from 'node:os';
import { boot, code, collect, DEADLINE_MS, exitName, filesOpen, Pager } from './fixture.mjs';

const file = openSync(process.env.FAILING_SYSCALLS, 'r+');
const words = new Int32Array(3);
/** The call of this number fails from now on; -1 for none. */
const arm = (at, name = 'EINTR') => {
  writeSync(file, Int32Array.of(at, constants.errno[name], 0), 0, 12, 0);
};
/** How many calls the last play has made. */
let calls = 0;
/** No call fails any more. */
const disarm = () => {
  readSync(file, words, 0, 12, 0);
  calls = words[2];
  arm(-1);
};
const ours = () => filesOpen(/kvm|vmexit|eventfd|userfaultfd/);

/** Whatever makes system calls, but for a pager. Gives what each step came to: `ok`, or the error's code. */
async function playAll(at, name) {
  arm(at, name);
  const said = {};
  const opened = [];
  const keep = (object) => {
    opened.push(object);
    return object;
  };
  const step = async (name, does) => {
    try {
      said[name] = (await does()) ?? 'ok';
    } catch (error) {
      said[name] = error.code ?? String(error);
    }
  };
  let all;
  await step('boot', () => {
    all = boot(code.out);
  });
  if (all !== undefined) {
    const { hv, vm, ram, vcpu } = all;
    opened.push(vcpu, ram, vm, hv);
    await step('run', () => exitName(vcpu.run(DEADLINE_MS)));
    await step('start', async () => {
      const running = vcpu.start([{ handle: () => true }], { timeoutMs: DEADLINE_MS });
      const ended = running.then(exitName, (error) => error.code ?? String(error));
      await step('pause', async () => {
        // An exit that nobody answers any more keeps a pause waiting, until it is undone.
        const paused = vcpu.pause();
        await Promise.race([paused, ended]);
        vcpu.resume();
        await paused;
      });
      vcpu.stop();
      return ended;
    });
    // A stop() that nobody was there to take.
    if (said.start !== 'STOPPED') vcpu.run(DEADLINE_MS);
    await step('registers', () => void vcpu.setRegs(vcpu.getRegs()));
    await step('memory', () => {
      const token = ram.share();
      const again = keep(hv.openMemory(token));
      again.write(0, Uint8Array.of(7));
      again.discard(4096, 4096);
    });
    await step('secret', () => void keep(vm.createGuestMemfd(4096)).punchHole(0, 4096));
    await step('eventFd', () => {
      const eventFd = keep(hv.createEventFd());
      keep(hv.openEventFd(eventFd.share()));
      vm.ioeventfd({ eventFd, address: 0x20, pio: true });
    });
    await step('share', () => void [hv.openVm(vm.share()), hv.openVcpu(vcpu.share())].forEach(keep));
  }
  for (const object of opened.reverse()) object.close();
  disarm();
  return said;
}

const PAGE = 4096;
const PAGES = 4;
const AREA = 0x2_0000;
/** mov ax, 0x2000; mov ds, ax; mov al, [0]; add al, [0x1000]; add al, [0x2000]; add al, [0x3000]; out 0x10, al */
const sum = [
  ...[0xb8, 0x00, 0x20, 0x8e, 0xd8, 0xa0, 0x00, 0x00, 0x02, 0x06, 0x00, 0x10],
  ...[0x02, 0x06, 0x00, 0x20, 0x02, 0x06, 0x00, 0x30, 0xe6, 0x10],
];
const bytes = new Uint8Array(PAGES * PAGE);
for (let page = 0; page < PAGES; page++) bytes[page * PAGE] = 1 << page;

/**
 * A guest whose memory is paged in, by the VMM's thread and the pager's. Whatever fails there, the run and the pager come to their
 * end: with all pages, or with an error and the pages that are missing.
 */
async function playPager(at, name) {
  const { hv, vm, ram, vcpu } = boot(sum);
  const memory = vm.allocate(PAGES * PAGE);
  vm.setUserMemoryRegion({ slot: 1, guestPhysAddr: AREA, memory });
  let pager;
  let said;
  // What is before and behind is the other play's.
  arm(at, name);
  try {
    pager = Pager.start(hv, vm, {
      memories: [memory],
      source: { kind: 'buffer', bytes },
      vcpus: [vcpu],
      batch: 1,
    });
    const exit = await vcpu.start([pager], { timeoutMs: DEADLINE_MS });
    said = exit !== 2 /* IO */ ? exitName(exit) : vcpu.io.value === 15 ? 'ok' : `a sum of ${vcpu.io.value}`;
    await pager.complete;
    if (pager.missing().length > 0) said = 'complete, with pages missing';
  } catch (error) {
    said = error.code ?? String(error);
    if (pager?.report.state === 'failed' && pager.missing().length === 0) said += ', and nothing is missing';
  }
  disarm();
  await pager?.stop();
  for (const object of [vcpu, vm]) object.close();
  pager?.[Symbol.dispose]();
  for (const object of [memory, ram, hv]) object.close();
  return { pager: said };
}

const plays = { all: playAll, pager: playPager };
const play = plays[process.argv[2]];
await play(-1); // what Node opens of its own
const well = JSON.stringify(await play(-1));
const total = calls;
await collect();
const before = ours();
const wrong = [];
const failed = { throughout: 0, told: 0 };
const PAGERS = ['ERR_KVM_SOURCE', 'ERR_KVM_UNAVAILABLE', 'FAULT'];
const NAMES = ['EINTR', 'EAGAIN', 'ENOMEM', 'EFAULT', 'EBUSY'];
for (let at = 0; at < total; at++) {
  const name = NAMES[at % NAMES.length];
  const said = await play(at, name);
  const isTold = JSON.stringify(said) !== well;
  failed.throughout++;
  if (isTold) failed.told++;
  // By its own errno; a timer that cannot be had is ENOMEM, a memory that cannot be looked at is ESTALE, and the pager has words of
  // its own; EFAULT of which KVM says no more is an exit.
  const codes = [...Object.values(JSON.parse(well)), name, 'ENOMEM', 'ESTALE', 'INTERRUPTED', ...PAGERS];
  const others = Object.values(said).filter((code) => !codes.includes(code));
  // A pager's thread is slow to begin in the lab.
  const after = isTold && (play === playAll || at === total - 1) ? JSON.stringify(await play(-1)) : well;
  if (others.length > 0 || after !== well) wrong.push({ at, name, said, after });
  // Where it stood, should it not come to its end.
  process.stderr.write(`${at} of ${total}, ${name}: ${JSON.stringify(said)}\n`);
}
await collect();
const leaked = ours() - before;
closeSync(file);
process.stdout.write(`${JSON.stringify({ well: JSON.parse(well), total, failed, leaked, wrong })}\n`);
