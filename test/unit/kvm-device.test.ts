/** Why the device cannot be had: the cause, and what helps against that one. */
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import type { Host } from '../../src/host.ts';
import { UnavailableError } from '../../src/index.ts';
import { type Node, nodeAt, refusal, type Surroundings } from '../../src/kvm/device.ts';
import { Errno } from '../../src/uapi/index.ts';
import { onLinux } from '../support/host.ts';

const folder = mkdtempSync(join(tmpdir(), 'vmexit-device-'));
afterAll(() => rmSync(folder, { recursive: true }));
mkdirSync(join(folder, 'etc'));
writeFileSync(join(folder, 'etc', 'passwd'), 'root:x:0:0:root:/root:/bin/sh\n');
writeFileSync(join(folder, 'etc', 'group'), 'root:x:0:\nkvm:x:106:\n');

const kvm: Node = { other: undefined, number: '10:232', uid: 0, gid: 106, mode: 0o660 };
const host: Host = {
  platform: 'linux',
  arch: 'x64',
  kernel: '6.12.0',
  processor: { vendor: 'AuthenticAMD', virtualization: 'svm' },
  modules: ['kvm'],
  parameters: {},
  config: undefined,
  device: false,
  registered: false,
  log: [],
};
const why = (errno: number, around: Surroundings = {}) => {
  const error = refusal('/dev/kvm', errno, { node: kvm, root: folder, host, env: {}, ...around });
  expect(error).toBeInstanceOf(UnavailableError);
  return [error.reason, error.message];
};

describe('a device that may not be opened', () => {
  const denied = (differs: Partial<Node>) => why(Errno.EACCES, { node: { ...kvm, ...differs } });
  const says = (text: string) => ['permission', `/dev/kvm may not be opened by this user: ${text}`];

  it('says whose it is, and to join its group where that helps', () => {
    expect(denied({})).toEqual(
      says("it is root's, group kvm, mode 0660; join its group (usermod -aG kvm USER, then log in again)"),
    );
  });

  it('does not say so where the group may not open it either', () => {
    expect(denied({ gid: 0, mode: 0o600 })).toEqual(
      says(
        "it is root's, group root, mode 0600; its group may not either: chgrp kvm /dev/kvm; chmod 0660 /dev/kvm " +
          '(a udev rule keeps it), or run as its owner',
      ),
    );
  });

  it("asks nobody to join root's group", () => {
    expect(denied({ gid: 0 })).toEqual(
      says(
        "it is root's, group root, mode 0660; nobody should join that group: chgrp kvm /dev/kvm; chmod 0660 /dev/kvm " +
          '(a udev rule keeps it), or run as its owner',
      ),
    );
  });

  it('gives the number where the group has no name, as in a container', () => {
    expect(denied({ uid: 7, gid: 993 })).toEqual(
      says(
        "it is user 7's, group 993, mode 0660; its group has no name here, as in a container: docker run --group-add 993",
      ),
    );
  });

  it('is told of on a CI runner with what a workflow can do', () => {
    expect(why(Errno.EACCES, { env: { CI: 'true' } })[1]).toMatch(
      /; on a CI runner: sudo chmod 0666 \/dev\/kvm as a step before$/,
    );
  });

  it("may be a container's rule, which no group changes", () => {
    expect(why(Errno.EPERM)).toEqual([
      'permission',
      expect.stringMatching(/forbid it \(docker run --device \/dev\/kvm\)$/),
    ]);
  });
});

describe('a device that is not KVM', () => {
  it.each([Errno.ENXIO, Errno.ENODEV])('is there without its driver (errno %i)', (errno) => {
    expect(why(errno)).toEqual([
      'device',
      '/dev/kvm is there, and KVM is not behind it: the module kvm_amd is not loaded: modprobe kvm_amd',
    ]);
  });

  it('is not there: the cause comes first, and what is said in general only where none is known', () => {
    const missing = (around: Surroundings) => why(Errno.ENOENT, { node: undefined, ...around })[1];
    expect(missing({})).toBe('/dev/kvm does not exist: the module kvm_amd is not loaded: modprobe kvm_amd');
    expect(missing({ host: { ...host, modules: ['kvm_amd'] } })).toMatch(
      /^\/dev\/kvm does not exist: load kvm_intel or kvm_amd, /,
    );
    expect(missing({ host: { ...host, registered: true } })).toMatch(
      /lists it.*docker run --device \/dev\/kvm/,
    );
    expect(missing({ env: { GITHUB_ACTIONS: 'true' } })).toMatch(/; on a CI runner: one whose host nests/);
    const elsewhere = refusal('/dev/kvm2', Errno.ENOENT, { host: { ...host, device: true }, env: {} });
    expect(elsewhere.message).toBe('/dev/kvm2 does not exist: /dev/kvm does');
  });

  onLinux('is something else, which is named', () => {
    const file = join(folder, 'file');
    writeFileSync(file, '');
    for (const [path, errno, says] of [
      [file, Errno.ENOTTY, 'it is a regular file, not a device'],
      [folder, Errno.EISDIR, 'it is a folder, not a device'],
      ['/dev/null', Errno.ENOTTY, "it is another device (1:3, and KVM's is 10:232)"],
    ] as const) {
      const { reason, message } = refusal(path, errno, { node: nodeAt(path), env: {} });
      expect([reason, message]).toEqual(['device', `${path} cannot be opened as KVM: ${says}`]);
    }
  });

  it('is told of by its errno where nothing else is known', () => {
    expect(why(Errno.EBUSY)).toEqual(['device', '/dev/kvm cannot be opened as KVM: EBUSY']);
  });
});
