// Each system call of the addon's fails in turn: a program of failing-syscalls.test.ts, which runs it with
// test/support/failing-syscalls.c. Prints what came of each.
import { closeSync, openSync, readSync, writeSync } from 'node:fs';
import { constants } from 'node:os';
import { boot, code, collect, DEADLINE_MS, exitName, filesOpen } from './fixture.mjs';

const file = openSync(process.env.FAILING_SYSCALLS, 'r+');
const words = new Int32Array(3);
/** The call of this number fails from now on; -1 for none. */
const arm = (at, name = 'EINTR') => {
  writeSync(file, Int32Array.of(at, constants.errno[name], 0), 0, 12, 0);
};
const count = () => {
  readSync(file, words, 0, 12, 0);
  return words[2];
};
const ours = () => filesOpen(/kvm|vmexit|eventfd/);

/** Whatever makes system calls. Gives what each step came to: `ok`, or the error's code. */
async function play() {
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
  return said;
}

arm(-1);
await play(); // what Node opens of its own
const well = JSON.stringify(await play());
arm(-1);
await play();
const total = count();
await collect();
const before = ours();
const wrong = [];
const failed = { throughout: 0, told: 0 };
const NAMES = ['EINTR', 'EAGAIN', 'ENOMEM', 'EFAULT', 'EBUSY'];
for (let at = 0; at < total; at++) {
  const name = NAMES[at % NAMES.length];
  arm(at, name);
  const said = await play();
  failed.throughout++;
  if (JSON.stringify(said) !== well) failed.told++;
  // By its own errno; a timer that cannot be had is ENOMEM, and a memory that cannot be looked at is ESTALE.
  const codes = [...Object.values(JSON.parse(well)), name, 'ENOMEM', 'ESTALE', 'INTERRUPTED'];
  const others = Object.values(said).filter((code) => !codes.includes(code));
  arm(-1);
  const after = JSON.stringify(await play());
  if (others.length > 0 || after !== well) wrong.push({ at, name, said, after });
  // Where it stood, should it not come to its end.
  process.stderr.write(`${at} of ${total}, ${name}: ${JSON.stringify(said)}\n`);
}
await collect();
const leaked = ours() - before;
closeSync(file);
process.stdout.write(`${JSON.stringify({ well: JSON.parse(well), total, failed, leaked, wrong })}\n`);
