// One side of a migration, in a process of its own. Its argument is JSON; it prints an object of JSON a line.
import { createHash } from 'node:crypto';
import { enterLongMode, openHypervisor, RunLoop, receiveGuest, sendGuest } from '../../dist/index.js';

const PAGE = 4096;
const AREA = 0x4000_0000;
const MIB = 2 ** 20;
const FACTOR = 0x5851_f42dn;
const GOLDEN = 0x9e37_79b9_7f4a_7c15n;
/** A watchdog, as support/run.ts has it. */
const LIMIT_MS = process.env.VMEXIT_LAB === '1' ? 400_000 : 120_000;

const {
  role,
  backend,
  code,
  pages,
  steps,
  stopAt,
  killAt,
  private: secret,
  ...options
} = JSON.parse(process.argv[2]);
const tell = (event, facts = {}) => process.stdout.write(`${JSON.stringify({ event, ...facts })}\n`);
const failure = ({ code, message, handedOver }) => ({ code, message, handedOver });

/** The loop, and how often the guest has made a step. */
function loopOf(vcpu, handlers = [], onStep = () => {}) {
  const loop = new RunLoop(vcpu, { handlers });
  let count = 0;
  loop.ports.attach(0xe0, 1, { name: 'a step', read() {}, write: () => onStep(++count, loop) });
  loop.ports.attach(0xf4, 1, { name: 'the end', read() {}, write: () => loop.stop(1) });
  return { loop, steps: () => count };
}
const digest = (memory) => {
  const hash = createHash('sha256');
  for (let page = 0; page < memory.size / PAGE; page++) hash.update(memory.read(page * PAGE, 8));
  return hash.digest('hex');
};

async function send(hv) {
  const vm = hv.createVm({ type: secret ? 1 : 0 });
  const ram = vm.allocate(MIB);
  const memory = vm.allocate(pages * PAGE);
  vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memory: ram });
  if (secret) {
    const guestMemfd = vm.createGuestMemfd(pages * PAGE);
    vm.setUserMemoryRegion2({ slot: 1, guestPhysAddr: AREA, memory, guestMemfd });
    vm.setMemoryAttributes({ address: AREA + 5 * PAGE, size: 2 * PAGE, attributes: 8 });
  } else vm.setUserMemoryRegion({ slot: 1, guestPhysAddr: AREA, memory });
  ram.write(0x1000, Buffer.from(code, 'hex'));
  for (let page = 0; page < pages; page++) {
    const words = new BigUint64Array(PAGE / 8);
    if (page % 4 !== 3) words.fill(BigInt.asUintN(64, BigInt(page + 1) * GOLDEN));
    memory.write(page * PAGE, new Uint8Array(words.buffer));
  }
  const vcpu = vm.createVcpu(0);
  vcpu.setCpuid2(hv.getSupportedCpuid());
  enterLongMode(vcpu, ram, { tables: 0x1_0000, identity: 2 * 2 ** 30 });
  vcpu.setRegs({ rip: 0x1000, rsp: 0x8000, rflags: 2, rdi: AREA, rcx: steps, r9: pages - 1, r10: FACTOR });

  const { loop, steps: made } = loopOf(vcpu, [], (count, loop) => count === stopAt && loop.stop(0));
  await loop.run({ timeoutMs: LIMIT_MS });
  tell('paused', { steps: made() });
  try {
    const report = await sendGuest(hv, {
      vm,
      vcpus: [vcpu],
      devices: { serial: new Uint8Array([1, 2, 3]) },
      ...options,
    });
    tell('sent', report);
  } catch (error) {
    tell('failed', failure(error));
    if (error.handedOver) return;
    const { reason } = await loop.run({ timeoutMs: LIMIT_MS });
    tell('ended', { reason, steps: made(), sum: `${vcpu.getRegs().rax}`, words: digest(memory) });
  }
}

async function receive(hv) {
  let guest;
  try {
    guest = await receiveGuest(hv, { ...options, onListening: (address) => tell('listening', { address }) });
  } catch (error) {
    tell('failed', failure(error));
    return;
  }
  const { vcpus, memories, pager, devices } = guest;
  tell('received', { devices: [...devices].map(([name, bytes]) => [name, [...bytes]]) });
  const step = (count) => count === killAt && process.kill(process.pid, 'SIGKILL');
  const { loop, steps: made } = loopOf(vcpus[0], [pager], step);
  try {
    const { reason } = await loop.run({ timeoutMs: LIMIT_MS });
    tell('ran', { reason, steps: made(), present: pager.report.present });
    await pager.complete;
    const { present, pages, byCause, strategy, state } = pager.report;
    const report = { present, pages, byCause, strategy, state };
    const sum = `${vcpus[0].getRegs().rax}`;
    tell('ended', {
      reason,
      steps: made(),
      sum,
      words: digest(memories[1]),
      report,
      missing: pager.missing(),
    });
  } catch (error) {
    tell('failed', { ...failure(error), missing: pager.missing(), state: pager.report.state });
  }
  await guest.close();
}

const hv = openHypervisor({ backend });
await (role === 'send' ? send(hv) : receive(hv));
hv.close();
tell('bye');
