// A thread is held just before KVM_RUN, or just behind it, while something is asked of its vCPU: scenarios of
// vcpu-races.test.ts, for a process with test/support/late-kvm.c.
import { openSync, read as readFile, readSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { boot, code, exitName, filesOpen, main } from './fixture.mjs';

/** The names of its files. */
const KVM = /^anon_inode:kvm|^\/dev\/kvm/;
const folder = process.env.LATE_KVM;
const at = openSync(join(folder, 'at'), 'r+');
const go = openSync(join(folder, 'go'), 'r+');

/** Waits until the vCPU's thread is there. */
function held(where) {
  const byte = Buffer.alloc(1);
  readSync(at, byte);
  if (byte.toString() !== where) throw new Error(`the thread is at ${byte}, and not at ${where}`);
}
/** The same, of a thread that the event loop sends there. */
const comes = (where) =>
  new Promise((resolve, reject) => {
    readFile(at, Buffer.alloc(1), 0, 1, null, (error, _, byte) => {
      if (error === null && byte.toString() === where) resolve();
      else reject(error ?? new Error(`the thread is at ${byte}, and not at ${where}`));
    });
  });
const release = (how = 'g') => writeSync(go, how);

/** A run in which `before` happens before KVM_RUN and `after` behind it: how it ends. */
async function run(vcpu, { before = () => {}, after = () => {}, how, timeoutMs } = {}) {
  const ended = vcpu.runAsync(timeoutMs);
  held('b');
  before();
  release(how);
  held('a');
  after();
  release();
  return exitName(await ended);
}

const settled = async (promise) => {
  let is = false;
  promise.then(() => (is = true));
  for (let i = 0; i < 5; i++) await new Promise(setImmediate);
  return is;
};

const scenarios = {
  /** The guest never exits: whatever is lost is never heard of. */
  async before() {
    const { vcpu } = boot(code.spin);
    const ends = [
      await run(vcpu, { before: () => vcpu.kick() }),
      await run(vcpu, { before: () => vcpu.stop() }),
      await run(vcpu, {
        timeoutMs: 1,
        before: () => Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 20),
      }),
    ];
    const flags = [vcpu.immediateExit];
    const ended = vcpu.runAsync();
    held('b');
    const paused = vcpu.pause();
    release();
    held('a');
    release();
    await paused;
    flags.push(vcpu.immediateExit);
    const { rip } = vcpu.getRegs();
    vcpu.resume();
    // It runs on.
    held('b');
    const again = vcpu.pause();
    release();
    held('a');
    release();
    await again;
    vcpu.stop();
    ends.push(exitName(await ended));
    vcpu.resume();
    return { ends, flags, rip: Number(rip) };
  },

  /** What comes behind KVM_RUN's end takes nothing from the exit, and is not lost. */
  async behind() {
    const { vcpu } = boot(code.out);
    const kicked = [await run(vcpu, { after: () => vcpu.kick() }), vcpu.immediateExit];
    kicked.push(await run(vcpu), vcpu.immediateExit, await run(vcpu));
    const stopped = [await run(vcpu, { after: () => vcpu.stop() }), await run(vcpu), await run(vcpu)];
    let paused;
    const ends = [
      await run(vcpu, {
        after: () => {
          paused = vcpu.pause();
        },
      }),
    ];
    const early = await settled(paused);
    const ended = vcpu.runAsync();
    held('b');
    const unfinished = await settled(paused);
    release();
    held('a');
    release();
    await paused;
    // Behind the OUT.
    const { rip } = vcpu.getRegs();
    const flag = vcpu.immediateExit;
    vcpu.kick();
    vcpu.resume();
    held('b');
    release();
    held('a');
    release();
    ends.push(exitName(await ended));
    return { kicked, stopped, ends, early, unfinished, rip: Number(rip), flag };
  },

  /** The user's immediate_exit outlasts a kick that comes on top of it. */
  async kept() {
    const { vcpu } = boot(code.spin);
    vcpu.immediateExit = true;
    const ends = [await run(vcpu, { before: () => vcpu.kick() }), vcpu.immediateExit];
    vcpu.immediateExit = false;
    ends.push(await run(vcpu, { before: () => vcpu.kick() }), vcpu.immediateExit);
    return ends;
  },

  /** EAGAIN and an EINTR that nobody has asked for are ends of a run, and none of what start() runs. */
  async errors() {
    const { vcpu } = boot(code.halt);
    const ends = [await run(vcpu, { how: 'E' }), await run(vcpu, { how: 'I' })];
    const started = vcpu.start([]);
    for (const how of ['E', 'I', 'g']) {
      // start() goes on from the event loop, after EAGAIN a millisecond later.
      await comes('b');
      release(how);
      held('a');
      release();
    }
    ends.push(exitName(await started));
    return ends;
  },

  /** KVM_RUN does not come back, for what it waits for is this thread's to give. */
  async closed() {
    const { hv, vm, ram, vcpu } = boot(code.spin);
    const before = filesOpen(KVM);
    const ended = vcpu.runAsync().catch(({ code }) => code);
    held('b');
    for (const object of [vcpu, ram, vm, hv]) object.close();
    const early = await settled(ended);
    release();
    held('a');
    release();
    return { early, end: await ended, files: [before, filesOpen(KVM)] };
  },
};

await main(scenarios);
