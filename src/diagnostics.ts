/**
 * Node's side of the diagnostics: the channels `vmexit:ioctl` and `vmexit:exit`, and NODE_DEBUG=vmexit, which writes both to
 * standard error, a line each.
 */
import { channel, subscribe } from 'node:diagnostics_channel';
import { debuglog } from 'node:util';
import { type ExitMessage, type IoctlMessage, tellDiagnostics } from './hypervisor/diagnostics.ts';
import { errnoName } from './uapi/errno.ts';
import { exitName } from './uapi/exit.ts';
import { describeExit } from './uapi/exits.ts';
import { hex } from './uapi/text.ts';

const IOCTL = 'vmexit:ioctl';
const EXIT = 'vmexit:exit';

/** Bytes of which no more is shown. */
const SHOWN_BYTES = 16;
/** Elements of which no more is shown. */
const SHOWN_ELEMENTS = 8;

/** A struct as in C, numbers of which no one counts the units in hex: `{ slot: 0, memorySize: 0x10000 }`. */
export function describeArgument(value: unknown): string {
  if (typeof value === 'bigint') return value < 10n && value > -10n ? `${value}` : hex(value);
  if (typeof value === 'number') return value < 10 ? `${value}` : hex(value);
  if (value instanceof Uint8Array) return describeBytes(value);
  if (Array.isArray(value)) {
    const more = value.length > SHOWN_ELEMENTS ? `, ... ${value.length} in all` : '';
    return `[${value.slice(0, SHOWN_ELEMENTS).map(describeArgument).join(', ')}${more}]`;
  }
  if (typeof value !== 'object' || value === null) return value === undefined ? '' : String(value);
  const fields = Object.entries(value).filter(([name]) => !/^(pad|padding|reserved)\d*$/.test(name));
  return `{ ${fields.map(([name, field]) => `${name}: ${describeArgument(field)}`).join(', ')} }`;
}

function describeBytes(bytes: Uint8Array): string {
  if (bytes.every((byte) => byte === 0)) return `${bytes.length} bytes of 0`;
  const start = Buffer.from(bytes.subarray(0, SHOWN_BYTES)).toString('hex');
  return bytes.length <= SHOWN_BYTES ? start : `${start}... ${bytes.length} bytes`;
}

/** `VM KVM_SET_TSS_ADDR(0xfffbd000) = 0 (3 us)` */
export function describeIoctl({ name, on, argument, result, us }: IoctlMessage): string {
  const returned = result < 0 ? `-1 ${errnoName(-result)}` : `${result}`;
  return `${on} ${name}(${describeArgument(argument)}) = ${returned} (${us.toFixed(0)} us)`;
}

/** `vCPU 0 KVM_RUN = IO: I/O out: 1 byte to port 0x10 (30 us)` */
export const describeRun = ({ vcpu, exit, us }: ExitMessage): string =>
  `vCPU ${vcpu} KVM_RUN = ${exitName(exit.outcome)}: ${describeExit(exit)} (${us.toFixed(0)} us)`;

let connected = false;

/** Connects the seam to Node's channels, once a thread. */
export function connectDiagnostics(): void {
  if (connected) return;
  connected = true;
  tellDiagnostics({ ioctl: channel(IOCTL), exit: channel(EXIT) });
  const log = debuglog('vmexit');
  if (!log.enabled) return;
  subscribe(IOCTL, (message) => log('%s', describeIoctl(message as IoctlMessage)));
  subscribe(EXIT, (message) => log('%s', describeRun(message as ExitMessage)));
}
