/** docs/kvm-api.md, made from the tables, and from what the sources and suites name. */
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Exit, exitRows, type Ioctl, ioctls, leftOutIoctls } from '../../src/uapi/index.ts';
import type { Recorded } from './facts.ts';
import { leftOut } from './left-out.ts';

const root = fileURLToPath(new URL('../../', import.meta.url));
export const DOCUMENT = join(root, 'docs/kvm-api.md');
const read = (path: string): string => readFileSync(join(root, path), 'utf8');
const filesOf = (folder: string): string[] =>
  readdirSync(join(root, folder)).filter((name) => name.endsWith('.ts'));

/** The first kernel whose x86 has the ioctl, where that is 4.18 or later: Node runs on none before. */
const since: Readonly<Record<string, string>> = {
  KVM_GET_NESTED_STATE: '4.19',
  KVM_SET_NESTED_STATE: '4.19',
  KVM_CLEAR_DIRTY_LOG: '5.0',
  KVM_GET_SUPPORTED_HV_CPUID: '5.0',
  KVM_SET_PMU_EVENT_FILTER: '5.3',
  KVM_X86_SET_MSR_FILTER: '5.10',
  KVM_RESET_DIRTY_RINGS: '5.11',
  KVM_XEN_HVM_GET_ATTR: '5.12',
  KVM_XEN_HVM_SET_ATTR: '5.12',
  KVM_XEN_VCPU_GET_ATTR: '5.12',
  KVM_XEN_VCPU_SET_ATTR: '5.12',
  KVM_GET_SREGS2: '5.14',
  KVM_SET_SREGS2: '5.14',
  KVM_GET_STATS_FD: '5.14',
  KVM_GET_XSAVE2: '5.17',
  KVM_XEN_HVM_EVTCHN_SEND: '5.19',
  KVM_SET_USER_MEMORY_REGION2: '6.8',
  KVM_SET_MEMORY_ATTRIBUTES: '6.8',
  KVM_CREATE_GUEST_MEMFD: '6.8',
  KVM_PRE_FAULT_MEMORY: '6.11',
  KVM_GET_ONE_REG: '6.18',
  KVM_SET_ONE_REG: '6.18',
  KVM_GET_REG_LIST: '6.18',
};

const attributes = (verb: string): string[] => [
  ...['hv', 'vm', 'vcpu'].map((object) => `${object}.${verb}DeviceAttr()`),
  `device.${verb}Attr()`,
];

/** Where the name of an ioctl stands in something private, or in the addon. */
const within: Readonly<Record<string, readonly string[]>> = {
  KVM_RUN: ['vcpu.run()'],
  KVM_ENABLE_CAP: ['vm.enableCap()', 'vcpu.enableCap()'],
  KVM_IRQFD: ['vm.irqfd()', 'vm.removeIrqfd()'],
  KVM_IOEVENTFD: ['vm.ioeventfd()', 'vm.removeIoeventfd()'],
  KVM_GET_VCPU_MMAP_SIZE: ['vm.createVcpu()'],
  KVM_MEMORY_ENCRYPT_OP: ['vm.memoryEncryptOp()', 'vcpu.memoryEncryptOp()'],
  KVM_SET_DEVICE_ATTR: attributes('set'),
  KVM_GET_DEVICE_ATTR: attributes('get'),
  KVM_HAS_DEVICE_ATTR: attributes('has'),
};

/** What is a call of its own to a backend, and no ioctl there. */
const ownCalls = ['KVM_RUN'];

/** By ioctl, the public methods whose bodies name it. */
function methods(): Map<string, string[]> {
  const found = new Map<string, string[]>(Object.entries(within).map(([name, list]) => [name, [...list]]));
  for (const file of filesOf('src/hypervisor')) {
    const [, object] = /^(hypervisor|vm|vcpu)\b/.exec(file) ?? [];
    if (object === undefined) continue;
    let method: string | undefined;
    for (const line of read(`src/hypervisor/${file}`).split('\n')) {
      const [, name] = /^ {2}(?:async )?(#?\w+)(?:<.*?>)?\(/.exec(line) ?? [];
      if (name !== undefined) method = name.startsWith('#') ? undefined : name;
      for (const [, ioctl] of line.matchAll(/\bioctls\.(KVM_\w+)/g)) {
        const list = found.get(ioctl!) ?? [];
        const own = `${object === 'hypervisor' ? 'hv' : object}.${method}()`;
        if (method !== undefined && !list.includes(own)) found.set(ioctl!, [...list, own]);
      }
    }
  }
  return found;
}

/** The ioctls that the simulator answers: those that its tables of handlers have. */
const simulated = (): Set<string> =>
  new Set(
    ['system', 'vm', 'vcpu'].flatMap((file) =>
      Array.from(
        read(`src/sim/kernel/ioctls/${file}.ts`).matchAll(/^ {2}(KVM_\w+)[:(,]/gm),
        ([, name]) => name!,
      ),
    ),
  );

/** The suites that call one of the methods. */
function suites(calls: readonly string[]): string[] {
  const names = calls.map((call) => call.replace(/^\w+\./, '').replace('()', ''));
  const called = new RegExp(`\\.(${names.join('|')})\\(`);
  return filesOf('test/conformance')
    .filter((file) => file.endsWith('.test.ts') && called.test(read(`test/conformance/${file}`)))
    .map((file) => file.replace('.test.ts', ''));
}

const code = (texts: readonly string[]): string => texts.map((text) => `\`${text}\``).join(', ');
const table = (heads: readonly string[], rows: readonly (readonly string[])[]): string =>
  [heads, heads.map(() => '---'), ...rows].map((row) => `| ${row.join(' | ')} |`).join('\n');

const MAX_SUITES = 3;

/** What would show it, where neither the lab nor the simulator can: hardware, or a newer kernel. */
const needs: Readonly<Record<string, string>> = {
  KVM_MEMORY_ENCRYPT_OP: 'SEV, SEV-SNP or TDX',
  KVM_MEMORY_ENCRYPT_REG_REGION: 'SEV',
  KVM_MEMORY_ENCRYPT_UNREG_REGION: 'SEV',
  KVM_SET_PMU_EVENT_FILTER: 'a PMU that guests have',
  KVM_GET_ONE_REG: 'Linux 6.18',
  KVM_SET_ONE_REG: 'Linux 6.18',
  KVM_GET_REG_LIST: 'Linux 6.18',
  EXCEPTION: 'VMX',
  AP_RESET_HOLD: 'SEV-ES',
  X86_BUS_LOCK: 'detection of bus locks, which no emulated processor has',
  NOTIFY: 'VMX with notify exits',
  SYSTEM_EVENT: 'a Hyper-V guest that crashes, SEV-ES or TDX',
  TDX: 'TDX',
  SNP_REQ_CERTS: 'SEV-SNP, Linux 7.1',
};

function ioctlRows(): string[][] {
  const issuedBy = methods();
  const sim = simulated();
  for (const name of ownCalls) sim.add(name);
  const rows: Ioctl[] = Object.values(ioctls).filter(({ name }) => !(name in leftOutIoctls));
  return rows.map(({ name, on }) => {
    const calls = issuedBy.get(name) ?? [];
    const shown = calls.length > 0 ? suites(calls) : [];
    const more = shown.length > MAX_SUITES ? ` and ${shown.length - MAX_SUITES} more` : '';
    return [
      name,
      on.join(', '),
      since[name] ?? '',
      code(calls) || '-',
      needs[name] === undefined && shown.length > 0 ? 'yes' : '-',
      calls.length === 0 ? '-' : needs[name] === undefined ? 'yes' : `with ${needs[name]}`,
      sim.has(name) ? 'yes' : '-',
      shown.slice(0, MAX_SUITES).join(', ') + more || 'layout only',
    ];
  });
}

/** Those with an accessor that reads them in place, and takes the answer. */
const live: Readonly<Record<string, string>> = {
  IO: 'vcpu.io',
  MMIO: 'vcpu.mmio',
  HYPERCALL: 'vcpu.hypercall',
  HYPERV: 'vcpu.hyperv',
  XEN: 'vcpu.xen',
  IOAPIC_EOI: 'vcpu.eoi',
  MEMORY_FAULT: 'vcpu.memoryFault',
  MEMORY_POISONED: 'vcpu.memoryFault',
  X86_RDMSR: 'vcpu.msr',
  X86_WRMSR: 'vcpu.msr',
  TDX: 'vcpu.tdx',
  SNP_REQ_CERTS: 'vcpu.snpReqCerts',
  DIRTY_RING_FULL: 'vcpu.dirtyRing',
};

function exitRowsOf(): string[][] {
  return Object.entries(Exit)
    .filter(([name]) => name in exitRows)
    .map(([name, number]) => [
      `\`Exit.${name}\``,
      String(number),
      'arm' in exitRows[name as keyof typeof exitRows] || name === 'SET_TPR' ? '`vcpu.exit`' : '-',
      live[name] === undefined ? '-' : `\`${live[name]}\``,
      needs[name] ?? '',
    ]);
}

/** The text of the document, for the headers that the tables are held against. */
export function documentOf({ of, facts }: Recorded): string {
  const names = [...facts.keys()];
  const count = (pattern: RegExp) => names.filter((name) => pattern.test(name) && !/\W/.test(name)).length;
  const reasons = leftOut
    .filter(({ older, why }) => !older && !Object.values(leftOutIoctls).includes(why))
    .map(({ names: pattern, why }) => {
      const all = names.filter((name) => pattern.test(name));
      // A struct's fields are not counted beside it.
      const whole = all.filter((name) => !name.includes('.'));
      const [first, ...more] = whole.length > 0 ? whole : all;
      return [more.length > 0 ? `${first} and ${more.length} more` : first!, why];
    });
  return `# The API of KVM, as vmexit has it

<!-- Made by: node scripts/uapi.mjs --document -->

What of x86's KVM API vmexit knows, issues and tests. Made from the tables in \`src/uapi\`; a test says when it is not up to
date. The tables are held against the headers of ${of}, which have ${count(/^KVM_CAP_/)}
capabilities and ${count(/^kvm_/)} structs, those of other architectures among them.

## Ioctls

"On" is the file descriptor; "since" the first kernel that has it on x86, empty where that is older than 4.18. "Lab": its
real KVM shows what the ioctl does; "host": a host's KVM has it, or has it with the hardware or kernel that is named;
"simulator": it answers, and elsewhere gives ENOTTY. The last column has the suites of \`test/conformance\` that call the
method; they run on each backend that can. "Layout only": no suite does, and its struct is held against the headers.

${table(['ioctl', 'on', 'since', 'method', 'lab', 'host', 'simulator', 'suites'], ioctlRows())}

## Ioctls that are left out

${table(['ioctl', 'why'], Object.entries(leftOutIoctls))}

## Exits

What KVM_RUN can come back with on x86. Negative numbers are errnos, not exit reasons. \`vcpu.raw.arms\` has the live view of
each one's fields; the last column says what it takes to see one, where the lab cannot.

${table(['exit', 'number', 'fields', 'live', 'needs'], exitRowsOf())}

## Names that are left out

${table(['names', 'why'], reasons)}
`;
}
