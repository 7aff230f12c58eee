/** `vmexit demo`: a guest keeps a secret from its host, and the host shows what it can and cannot see. */
import { join } from 'node:path';
import type { BackendName } from '../hypervisor/backend.ts';
import { VmexitError } from '../hypervisor/errors.ts';
import type { Hypervisor } from '../hypervisor/hypervisor.ts';
import { type LabStatus, labStatus, runInLab } from '../lab/index.ts';
import { type OpenOptions, openHypervisor } from '../open.ts';
import { packageRoot } from '../package.ts';
import { missing } from '../probe/features.ts';
import { MemoryAttribute } from '../uapi/constants.ts';
import { describeExit } from '../uapi/exits.ts';
import type { Device } from '../vmm/bus.ts';
import { DebugExit, Serial } from '../vmm/devices.ts';
import { Machine } from '../vmm/machine.ts';
import { type MemoryEvent, MemoryFaultService } from '../vmm/memory-faults.ts';
import { defaultPolicy, type Policy } from '../vmm/policy.ts';
import { describeRegisters } from '../vmm/registers.ts';
import { RunLoop } from '../vmm/run-loop.ts';
import { conversionsAccount, exitsAccount, mapAccount } from './account.ts';
import { BACKENDS, oneOf, parse } from './args.ts';
import { ANSWER, demoGuest, NOTE, Place, SECRET, Step } from './demo-guest.ts';
import { interruptible } from './interrupt.ts';
import { bytes, isColourful, type Style, styleFor, wrap } from './text.ts';

const HELP = `vmexit demo [options]: see a guest keep a secret from its host

  --backend NAME   kvm, sim (the simulator), or auto (default): KVM where it has private memory, else the simulator
  --lab            on the lab's kernel, which has it (npx vmexit lab build makes it once)

Runs a guest of a few hundred bytes that shares a page with its host, makes it private, writes a secret there, gives
the page back, and touches memory that KVM cannot give it until the VMM has dealt with the memory fault. With
--backend kvm on a host whose KVM has no private memory, the part that needs none.

Exit status: 0 when a guest has run to its end; 1 when it crashed; 69 when there is nothing here to run it.
`;

const MIB = 2 ** 20;
const MEMORY = 8 * MIB;
const ORPHANS_SIZE = 16 * 4096;
const NOWHERE_SIZE = 16 * 4096;
/** What is made private of each before the guest begins. */
const TOUCHED = 4 * 4096;
/** The guest is over in milliseconds, in an emulated lab in a second or two. */
const TIMEOUT_MS = 60_000;
const UNAVAILABLE = 69;

const POST_PORT = 0x80;
const hex = (address: number) => `0x${address.toString(16)}`;

type Say = (text: string) => void;

/** Lines with who says them in front. */
function speakers(style: Style): { guest: Say; host: Say; plain: Say } {
  const write = (line: string) => process.stdout.write(`${line}\n`);
  const speaker = (name: string) => (text: string) => write(`${name} ${style.dim('|')} ${wrap(text, 98, 8)}`);
  return { guest: speaker(style.cyan('guest')), host: speaker(style.magenta(' host')), plain: write };
}

const NEEDS = ['private-memory', 'map-gpa-range'] as const;

export async function demo(argv: string[]): Promise<number> {
  const options = {
    backend: { type: 'string', default: 'auto' },
    lab: { type: 'boolean', default: false },
  } as const;
  const parsed = parse(argv, options, HELP);
  if (!parsed) return 0;
  const backend = oneOf('--backend', parsed.values.backend, BACKENDS);
  const style = styleFor(process.stdout);
  return await interruptible((signal) =>
    parsed.values.lab ? runInTheLab(style, signal) : runHere(backend, style, signal),
  );
}

const places: { readonly [B in BackendName]: string } = {
  kvm: process.env.VMEXIT_LAB ? "the lab's KVM" : "this host's KVM",
  sim: 'the simulator',
};

/** The whole of it, or with a KVM that has no private memory the shared-only part. */
async function runHere(
  backend: NonNullable<OpenOptions['backend']>,
  style: Style,
  signal: AbortSignal,
): Promise<number> {
  const { plain } = speakers(style);
  using hv = openHypervisor(backend === 'auto' ? { backend, needs: NEEDS } : { backend });
  const lacks = missing(hv, NEEDS);
  const without = lacks.length > 0 ? ', without private memory' : '';
  plain(style.bold(`A guest on ${places[hv.backend]}${without}`));
  if (hv.fallback !== undefined) plain(style.dim(wrap(`and not on this host's KVM: ${hv.fallback}`, 106, 0)));
  plain('');
  const status = await runGuest(hv, style, signal, lacks.length === 0);
  if (lacks.length > 0) {
    plain('');
    plain(style.bold('What is missing here'));
    for (const { feature, reason } of lacks) plain(`  ${feature}: ${wrap(reason, 96, 4)}`);
  }
  if (hv.backend === 'sim' && !signal.aborted) plain(`\n${onARealKernel(labStatus(), style)}`);
  return status;
}

async function runGuest(hv: Hypervisor, style: Style, signal: AbortSignal, whole: boolean): Promise<number> {
  const { guest, host, plain } = speakers(style);
  using machine = new Machine(hv, { memory: MEMORY, privateMemory: whole });
  machine.load(demoGuest, { rsi: whole ? 1 : 0 });
  const { memory, vcpu, vm } = machine;

  // Two places where a private access finds nothing, as an earlier guest or a bug of the VMM could leave them.
  using orphans = vm.allocate(ORPHANS_SIZE);
  vm.setUserMemoryRegion({ slot: 1, guestPhysAddr: Place.ORPHANS, memory: orphans });
  using nowhere = whole ? vm.createGuestMemfd(NOWHERE_SIZE) : undefined;
  if (whole) {
    for (const address of [Place.ORPHANS, Place.NOWHERE]) {
      vm.setMemoryAttributes({ address, size: TOUCHED, attributes: MemoryAttribute.PRIVATE });
    }
  }
  const policy: Policy = (request) => {
    if (request.cause !== 'unbacked') return defaultPolicy(request);
    // A slot that cannot have private pages: its pages become shared. No slot: now there is one, of private memory.
    if (request.slot) return 'allow';
    vm.setUserMemoryRegion2({ slot: 2, guestPhysAddr: Place.NOWHERE, guestMemfd: nowhere });
    return 'retry';
  };
  // `private`: what the host can see of a page stays as it is while the page is private.
  const faults = new MemoryFaultService(vm, {
    policy,
    discard: 'private',
    trace: (event) => host(tell(event)),
  });

  const loop = new RunLoop(vcpu, { handlers: [faults] });
  let line = '';
  const decoder = new TextDecoder();
  Serial.attach(loop.ports, (byte) => {
    line += decoder.decode(Uint8Array.of(byte), { stream: true });
    if (!line.endsWith('\n')) return;
    guest(line.trimEnd());
    line = '';
  });
  DebugExit.attach(loop.ports, (value) => loop.stop(value));
  const steps: { readonly [step: number]: () => void } = {
    [Step.NOTE_WRITTEN]: () => {
      host(`I look into page ${hex(Place.NOTE)} of the memory that I gave it: ${see(memory.bytes)}`);
      host('I write an answer below it.');
      memory.bytes.set(new TextEncoder().encode(ANSWER), Place.ANSWER);
    },
    [Step.SECRET_READ]: () => {
      host(`I look into the same page, and what I see is still ${see(memory.bytes)}`);
      host(`I search all ${bytes(memory.size)} that I can see. The note: ${count(memory.bytes, NOTE)}.`);
      host(style.bold(`The guest's secret: ${count(memory.bytes, SECRET)}.`));
    },
    [Step.GIVEN_BACK]: () => {
      host(`I look into the page: ${see(memory.bytes)}. The private copy is gone, and the secret with it.`);
    },
  };
  loop.ports.attach(
    POST_PORT,
    1,
    postCodes((step) => steps[step]?.()),
  );

  const end = await loop.run({ timeoutMs: TIMEOUT_MS, signal });
  if (end.reason === 'unhandled') {
    host(`The guest ended with ${describeExit(end.exit)}.\n${describeRegisters(vcpu, '  ')}`);
    return 1;
  }
  if (end.reason === 'timeout') throw new VmexitError('ERR_KVM_NO_PROGRESS', "the demo's guest does not end");
  if (end.reason !== 'halt') return 1;

  for (const part of [mapAccount(vm, style), exitsAccount(loop.exits, style)]) plain(`\n${part}`);
  if (whole) {
    plain(`\n${conversionsAccount(faults.counters, style)}`);
    plain('');
    plain(
      style.dim(
        'Private pages are not mapped into the VMM: no bug in it can leak them. A VM of type SW_PROTECTED does not\n' +
          "encrypt them, so the host's kernel could; SEV-SNP and TDX, with the same API, keep them from that too.",
      ),
    );
  }
  return 0;
}

/** Tells which code the guest wrote to the port. */
const postCodes = (told: (step: number) => void): Device => ({
  name: 'POST codes',
  read: (_offset, data) => void data.fill(0),
  write: (_offset, data) => told(data[0]!),
});

/** The text that the host finds in the page. */
function see(memory: Uint8Array): string {
  const end = memory.indexOf(0, Place.NOTE);
  return `"${new TextDecoder().decode(memory.slice(Place.NOTE, end))}"`;
}

/** How often a text is in the memory, in words. */
function count(memory: Uint8Array, text: string): string {
  const all = Buffer.from(memory.buffer, memory.byteOffset, memory.byteLength);
  let found = 0;
  for (let at = all.indexOf(text); at >= 0; at = all.indexOf(text, at + 1)) found++;
  return ['not once', 'once', 'twice'][found] ?? `${found} times`;
}

/** What the memory-fault service did, in a sentence. */
function tell({ cause, gpa, size, action, result }: MemoryEvent): string {
  const range = `${bytes(size)} at ${hex(gpa)}`;
  if (cause === 'hypercall') {
    const answer = result === 0 ? `become ${action}` : `do not become ${action} (${result})`;
    return `It asks by hypercall: ${range} ${answer}.`;
  }
  const fault = `A memory fault: ${range}, private, with nothing private behind it.`;
  return action === 'retry'
    ? `${fault} I bind a guest_memfd there; it tries again.`
    : `${fault} I make it ${action}.`;
}

async function runInTheLab(style: Style, signal: AbortSignal): Promise<number> {
  const { plain } = speakers(style);
  const { kernels, missing: lacks } = labStatus();
  const kernel = kernels.find(({ built }) => built)?.name;
  if (kernel === undefined || lacks.run.length > 0) {
    plain(onARealKernel(labStatus(), style));
    return UNAVAILABLE;
  }
  const { status: result } = await runInLab({
    command: process.execPath,
    args: [join(packageRoot(), 'dist', 'cli', 'main.js'), 'demo', '--backend', 'kvm'],
    kernel,
    timeoutMs: 3 * TIMEOUT_MS,
    env: isColourful(process.stdout) ? { FORCE_COLOR: '1' } : {},
    signal,
    onStart: (description) => plain(style.dim(`${description}; this takes some seconds`)),
    onStdout: (chunk) => process.stdout.write(chunk),
    onStderr: (chunk) => process.stderr.write(chunk),
  });
  return result;
}

function onARealKernel({ kernels, missing: lacks }: LabStatus, style: Style): string {
  const built = kernels.some(({ built }) => built);
  const packages =
    lacks.build.length > 0 ? ` It needs packages first (${lacks.build.join(' ')}): --install.` : '';
  const command = '  npx vmexit lab build    ';
  const says = wrap(`once, in some minutes.${packages}`, 106 - command.length, command.length);
  const build = built ? '' : `${command}${says}\n`;
  return `${style.bold('See it on a real kernel')}
The lab boots a kernel that has private guest memory, on any x86-64 Linux:

${build}  npx vmexit demo --lab`;
}
