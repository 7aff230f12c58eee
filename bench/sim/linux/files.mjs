// What the Linux row boots: Debian's kernel for clouds, unpacked and not installed, and an initrd of one program, busybox.
import { execFileSync } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { homedir } from 'node:os';
import { join } from 'node:path';

const PACKAGE = 'linux-image-cloud-amd64';
const BUSYBOX = '/bin/busybox';
const INIT = '#!/bin/busybox sh\n/bin/busybox poweroff -f\n';

const cache = () => join(process.env.XDG_CACHE_HOME || join(homedir(), '.cache'), 'vmexit', 'bench', PACKAGE);

const run = (command, args, cwd) =>
  execFileSync(command, args, { cwd, encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] });

/** The kernel, downloaded once. */
export function kernel() {
  const folder = cache();
  if (!existsSync(folder)) download(folder);
  const [name] = readdirSync(join(folder, 'boot')).filter((file) => file.startsWith('vmlinuz-'));
  return { path: join(folder, 'boot', name), version: name.slice('vmlinuz-'.length) };
}

/** PACKAGE itself is empty: it depends on the kernel of the day. */
function download(folder) {
  const parent = join(folder, '..');
  mkdirSync(parent, { recursive: true });
  const work = mkdtempSync(join(parent, 'download-'));
  try {
    const [, image] = /Depends: (linux-image-\S+)/.exec(run('apt-cache', ['depends', PACKAGE], work)) ?? [];
    if (image === undefined) throw new Error(`apt knows no ${PACKAGE}: apt-get update`);
    run('apt-get', ['download', image], work);
    const [archive] = readdirSync(work).filter((file) => file.endsWith('.deb'));
    run('dpkg-deb', ['-x', archive, folder], work);
  } finally {
    rmSync(work, { recursive: true });
  }
}

/** Why there is no row, or undefined. */
export function filesMissing() {
  if (!existsSync(BUSYBOX)) return `${BUSYBOX} is not here: apt-get install busybox-static`;
  try {
    kernel();
    return undefined;
  } catch (error) {
    return `there is no kernel of Debian's: ${error.message.split('\n')[0]}`;
  }
}

/** A file of an archive in cpio's "newc" format (Documentation/driver-api/early-userspace/buffer-format.rst). */
function member(name, mode, data) {
  const padded = (bytes) => Buffer.concat([bytes, Buffer.alloc(-bytes.length & 3)]);
  const fields = [0, mode, 0, 0, 1, 0, data.length, 0, 0, 0, 0, name.length + 1, 0];
  const head = `070701${fields.map((value) => value.toString(16).padStart(8, '0')).join('')}${name}\0`;
  return Buffer.concat([padded(Buffer.from(head)), padded(data)]);
}

/** An initrd whose /init turns the machine off. */
export function initrd() {
  const [folder, program] = [0o040755, 0o100755];
  return Buffer.concat([
    ...['bin', 'dev'].map((name) => member(name, folder, Buffer.alloc(0))),
    member('bin/busybox', program, readFileSync(BUSYBOX)),
    member('init', program, Buffer.from(INIT)),
    member('TRAILER!!!', 0, Buffer.alloc(0)),
  ]);
}
