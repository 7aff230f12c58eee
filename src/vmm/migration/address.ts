/** Where a destination listens: `unix:PATH`, or `tcp:HOST:PORT` with an IPv6 address in brackets. */
import { outOfRange } from '../../hypervisor/errors.ts';

/** As net.connect() and Server.listen() take it. */
export type Address = { readonly path: string } | { readonly host: string; readonly port: number };

/** sun_path of struct sockaddr_un, with its final zero. */
const MAX_PATH = 107;

/** @throws RangeError ERR_KVM_INVALID_ARG */
export function parseAddress(name: string, text: string): Address {
  const path = /^unix:([^\0]+)$/.exec(String(text))?.[1];
  if (path !== undefined && Buffer.byteLength(path) <= MAX_PATH) return { path };
  const [, bracketed, plain, digits] = /^tcp:(?:\[([^\]]+)\]|([^:[\]]+)):(\d{1,5})$/.exec(String(text)) ?? [];
  const host = bracketed ?? plain;
  if (host !== undefined && Number(digits) < 2 ** 16) return { host, port: Number(digits) };
  throw outOfRange(name, text, `unix:PATH, of at most ${MAX_PATH} bytes, or tcp:HOST:PORT`);
}

export const addressName = (address: Address): string => {
  if ('path' in address) return `unix:${address.path}`;
  return `tcp:${address.host.includes(':') ? `[${address.host}]` : address.host}:${address.port}`;
};
