/** `vmexit probe`: the probe's report, for a person or for a program. */
import { openHypervisor } from '../open.ts';
import { type Feature, features } from '../probe/features.ts';
import {
  type CapabilityReport,
  type FeatureReport,
  type ProbeReport,
  probe as report,
} from '../probe/report.ts';
import { Cap } from '../uapi/cap.ts';
import { BACKENDS, oneOf, parse, UsageError } from './args.ts';
import { type Style, styleFor, wrap } from './text.ts';

const names = Object.keys(features);

const HELP = `vmexit probe [options]: what KVM can do on this host, and why not

  --json           the whole report as one JSON object on stdout
  --require A,B    exit with status 1 unless this host has these features, and say why it has not
  --device PATH    where KVM is (default /dev/kvm)
  --backend NAME   kvm (default); sim: what the simulator can do; or auto: the one that guests would run on

Features are tried on scratch VMs that are thrown away; some run a guest of a few instructions, each for a second
at most. They are:
  ${wrap(names.join(', '), 100, 2)}

Exit status: 0, also on a host without KVM; 1 when something that --require names is missing; 2 wrong usage.
`;

/** The capabilities of the table. The JSON report has all. */
const SHOWN = [
  'USER_MEMORY',
  'NR_MEMSLOTS',
  'MULTI_ADDRESS_SPACE',
  'NR_VCPUS',
  'MAX_VCPUS',
  'IMMEDIATE_EXIT',
  'SYNC_REGS',
  'READONLY_MEM',
  'DIRTY_LOG_RING',
  'EXIT_HYPERCALL',
  'USER_MEMORY2',
  'MEMORY_FAULT_INFO',
  'MEMORY_ATTRIBUTES',
  'GUEST_MEMFD',
  'GUEST_MEMFD_FLAGS',
  'VM_TYPES',
  'PRE_FAULT_MEMORY',
] as const satisfies readonly (keyof typeof Cap)[];

export async function probe(argv: string[]): Promise<number> {
  const options = {
    json: { type: 'boolean' },
    require: { type: 'string' },
    device: { type: 'string' },
    backend: { type: 'string', default: 'kvm' },
  } as const;
  const parsed = parse(argv, options, HELP);
  if (!parsed) return 0;
  const { json, require, device } = parsed.values;
  const backend = oneOf('--backend', parsed.values.backend, BACKENDS);
  const required = require === undefined ? [] : requiredFeatures(require);

  const found = report(() => openHypervisor({ backend, ...(device === undefined ? {} : { device }) }));
  if (json) process.stdout.write(`${JSON.stringify(found, undefined, 2)}\n`);
  else if (require === undefined) process.stdout.write(table(found, styleFor(process.stdout)));

  const whose = found.kvm.available && found.kvm.backend === 'sim' ? 'the simulator' : 'this host';
  const lacking = found.features.filter(({ name, available }) => required.includes(name) && !available);
  for (const [reason, names] of byReason(lacking)) {
    const why = found.kvm.available ? reason : found.kvm.message;
    process.stderr.write(`vmexit: ${whose} lacks ${names.join(', ')}: ${why}\n`);
  }
  if (require !== undefined && !json && lacking.length === 0) {
    process.stdout.write(`${whose} has ${required.join(', ')}\n`);
  }
  return lacking.length > 0 ? 1 : 0;
}

/** Names by what they are missing for, in their order: one cause is told once. */
function byReason(lacking: readonly FeatureReport[]): Map<string, Feature[]> {
  const found = new Map<string, Feature[]>();
  for (const { name, reason = '' } of lacking) found.set(reason, [...(found.get(reason) ?? []), name]);
  return found;
}

function requiredFeatures(text: string): Feature[] {
  const wanted = text.split(',').map((name) => name.trim());
  for (const name of wanted) {
    if (!Object.hasOwn(features, name)) {
      throw new UsageError(`--require: there is no feature '${name}'; there is ${names.join(', ')}`);
    }
  }
  return wanted as Feature[];
}

const NAME = 19;
const WIDTH = 110;

/** `  name   text`, with the text in a column of its own. */
function row(name: string, text: string, mark = ''): string {
  const indent = NAME + 3 + (mark ? 5 : 0);
  return `  ${name.padEnd(NAME)} ${mark ? `${mark}  ` : ''}${wrap(text, WIDTH - indent, indent)}`;
}

function table({ host, kvm, vmTypes, features, capabilities }: ProbeReport, style: Style): string {
  const { processor } = host;
  const parameters = Object.entries(host.parameters).map(([name, value]) => `${name}=${value}`);
  const mark = (available: boolean) => (available ? style.green('yes') : style.red('no '));
  const tried = (name: string, available: boolean, lines: readonly string[]) => [
    row(name, lines[0] ?? '', mark(available)),
    ...lines.slice(1).map((line) => style.yellow(row('', line, '   '))),
  ];

  const reasons = byReason(features.filter(({ available }) => !available));
  const lines = [
    style.bold('Host'),
    row('kernel', `${host.platform} ${host.kernel} on ${host.arch}`),
    row(
      'processor',
      `${processor.vendor ?? 'unknown'}, ${processor.virtualization ?? 'neither vmx nor svm'} shown`,
    ),
    row('KVM modules', [...host.modules, ...parameters].join(' ') || 'none'),
    kvm.available
      ? row('KVM', `${kvm.backend}, API version ${kvm.apiVersion}${kvm.fallback ? `: ${kvm.fallback}` : ''}`)
      : style.red(row('KVM', `not available: ${kvm.message}`)),
  ];
  if (kvm.available) {
    const available = vmTypes.filter((type) => type.available).map(({ name }) => name);
    lines.push(
      '',
      style.bold('VM types'),
      ...vmTypes.flatMap(({ name, type, available, reason }) =>
        tried(`${type} ${name}`, available, reason === undefined ? [] : [reason]),
      ),
      '',
      style.bold('Features (tried, not asked for)'),
      ...features.flatMap(({ name, available, summary, reason }) => {
        if (reason === undefined) return tried(name, available, [summary]);
        const [first] = reasons.get(reason)!;
        return tried(name, available, [summary, first === name ? reason : `as ${first}`]);
      }),
      '',
      ...capabilityTable(capabilities, available, style),
    );
  }
  const hasPrivate = features.some(({ name, available }) => name === 'private-memory' && available);
  if (!kvm.available) {
    lines.push('', 'Guests run on the simulator here: npx vmexit probe --backend sim tells what it can do.');
  }
  if (!hasPrivate && labHelps(kvm)) {
    lines.push(
      '',
      'Private guest memory without another kernel: npx vmexit lab build (some minutes, once), then',
      'npx vmexit lab run -- COMMAND.',
    );
  }
  return `${lines.map((line) => line.trimEnd()).join('\n')}\n`;
}

/** The lab brings its own KVM, and not its own addon or processor. */
const labHelps = (kvm: ProbeReport['kvm']): boolean =>
  kvm.available || (kvm.reason !== 'addon' && kvm.reason !== 'platform');

function capabilityTable(all: readonly CapabilityReport[], types: readonly string[], style: Style): string[] {
  const width = Math.max(...['/dev/kvm', ...types].map((column) => column.length));
  const line = (name: string, cells: readonly (string | number)[]) =>
    name.padEnd(30) + cells.map((cell) => `  ${String(cell).padStart(width)}`).join('');
  let contested = false;
  const rows = SHOWN.map((name) => {
    const found = all.find(({ number }) => number === Cap[name]);
    contested ||= found?.contested === true;
    const title = `  ${name}${found?.contested ? ' *' : ''}`;
    const values = types.map((type) => found?.vms[type] ?? 0);
    return line(title.padEnd(24) + String(Cap[name]).padStart(4), [found?.system ?? 0, ...values]);
  });
  return [
    style.bold(line('Capabilities (what KVM claims)', ['/dev/kvm', ...types])),
    ...rows,
    ...(contested ? ['  * some kernels use this number for another capability: it proves nothing'] : []),
    `  ${all.length} are above 0 here; --json has them all`,
  ];
}
