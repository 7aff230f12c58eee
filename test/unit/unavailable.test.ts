/** Where KVM cannot be had, importing the package works and opening it says why. */
import { chmodSync, cpSync, existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { node } from '../faults/child.ts';
import { onLinux } from '../support/host.ts';

const root = fileURLToPath(new URL('../../', import.meta.url));
const NOBODY = 65_534;
const ADDON = join('build', 'Release', 'vmexit.node');
const built = existsSync(join(root, ADDON));
const NOT_BUILT = 'the addon is not built here';
/** There on every host, for every user, and a device: only the addon can tell that it is not KVM's. */
const DEVICE = '/dev/null';
const AS_NOBODY = `process.setgroups([]); process.setgid(${NOBODY}); process.setuid(${NOBODY});`;

/** A copy of the compiled package, to be broken, that every user can read. */
let copy = '';
beforeAll(() => {
  copy = mkdtempSync(join(tmpdir(), 'vmexit-copy-'));
  chmodSync(copy, 0o755);
  const modules = ['bindings', 'file-uri-to-path', 'iced-x86'].map((name) => join('node_modules', name));
  for (const part of ['dist', 'package.json', ...modules, ...(built ? [ADDON] : [])]) {
    cpSync(join(root, part), join(copy, part), { recursive: true });
  }
});
afterAll(() => rmSync(copy, { recursive: true, force: true }));

/** What an importing program sees: whether the import worked, and the error of openHypervisor(). */
async function opening(options: object, prelude = '') {
  const program = `
    const { openHypervisor, Exit } = await import(${JSON.stringify(`file://${copy}/dist/index.js`)});
    const imported = Exit.IO === 2;
    ${prelude}
    try {
      openHypervisor({ backend: 'kvm', ...${JSON.stringify(options)} }).close();
      console.log(JSON.stringify({ imported, opened: true }));
    } catch ({ name, code, reason, message, cause }) {
      console.log(JSON.stringify({ imported, name, code, reason, message, cause: cause?.code }));
    }`;
  const { status, stdout, stderr } = await node(['--input-type=module', '-e', program]);
  expect(status, stderr).toBe(0);
  return JSON.parse(stdout);
}

const unavailable = { imported: true, name: 'UnavailableError', code: 'ERR_KVM_UNAVAILABLE' };

describe('openHypervisor', () => {
  onLinux('says that the device does not exist, and what brings it', async (context) => {
    context.skip(!built, NOT_BUILT);
    const error = await opening({ device: '/nonexistent/kvm' });
    expect(error).toMatchObject({ ...unavailable, reason: 'device' });
    expect(error.message).toMatch(/^\/nonexistent\/kvm does not exist: \S/);
  });

  onLinux('says of another device that it is one', async (context) => {
    context.skip(!built, NOT_BUILT);
    const error = await opening({ device: '/dev/null' });
    expect(error).toMatchObject({ ...unavailable, reason: 'device' });
    expect(error.message).toContain(
      "/dev/null cannot be opened as KVM: it is another device (1:3, and KVM's is 10:232)",
    );
  });

  onLinux('says that the user may not open the device, and how to change that', async (context) => {
    context.skip(!built, NOT_BUILT);
    context.skip(process.getuid?.() !== 0, 'only root can become another user');
    const device = join(copy, 'closed-device');
    writeFileSync(device, '', { mode: 0o600 });
    const error = await opening({ device }, AS_NOBODY);
    expect(error).toMatchObject({ ...unavailable, reason: 'permission' });
    expect(error.message).toMatch(
      /closed-device may not be opened by this user: it is root's, group root, mode 0600; its group may not either: .*chmod 0660/,
    );
  });

  onLinux('says of a regular file in the place of the device that it is one', async (context) => {
    context.skip(!built, NOT_BUILT);
    const device = join(copy, 'file');
    writeFileSync(device, '');
    const error = await opening({ device });
    expect(error).toMatchObject({ ...unavailable, reason: 'device' });
    expect(error.message).toMatch(/file cannot be opened as KVM: it is a regular file, not a device/);
  });

  it('says on another operating system or processor that KVM is not for it', async () => {
    for (const [property, value] of [
      ['platform', 'darwin'],
      ['arch', 'arm64'],
    ]) {
      const prelude = `Object.defineProperty(process, '${property}', { value: '${value}' });`;
      const error = await opening({}, prelude);
      expect(error).toMatchObject({ ...unavailable, reason: 'platform' });
      expect(error.message).toContain(value);
    }
  });

  // From here on the copy has no addon that loads.
  onLinux('says that the addon does not load, why, and what builds it in an installed package', async () => {
    mkdirSync(join(copy, 'build', 'Release'), { recursive: true });
    writeFileSync(join(copy, ADDON), 'no ELF file');
    const error = await opening({ device: DEVICE });
    expect(error).toMatchObject({ ...unavailable, reason: 'addon', cause: 'ERR_DLOPEN_FAILED' });
    expect(error.message).toMatch(/does not load: .*(ELF|too short).*; npx vmexit setup builds it/);
  });

  onLinux(
    'says that the addon is not built, where it was looked for, and what builds it in an installed package',
    async () => {
      rmSync(join(copy, 'build'), { recursive: true });
      const error = await opening({ device: DEVICE });
      expect(error).toMatchObject({ ...unavailable, reason: 'addon' });
      const prebuilt = join(copy, 'prebuilds', 'linux-x64-');
      expect(error.message).toContain(`not built (looked for ${join(copy, ADDON)}, ${prebuilt}`);
      expect(error.message).toMatch(/; npx vmexit setup builds it, with g\+\+, make and python3$/);
    },
  );

  onLinux('names the script of a clone in a clone', async () => {
    mkdirSync(join(copy, 'scripts'));
    cpSync(join(root, 'scripts', 'setup.mjs'), join(copy, 'scripts', 'setup.mjs'));
    const { message } = await opening({ device: DEVICE });
    expect(message).toContain('; npm run setup builds it');
  });

  onLinux('tells of the device where neither that nor the addon is there', async (context) => {
    const missing = await opening({ device: '/nonexistent/kvm' });
    expect(missing).toMatchObject({ ...unavailable, reason: 'device' });
    expect(missing.message).toContain('/nonexistent/kvm does not exist');
    const device = join(copy, 'file');
    writeFileSync(device, '', { mode: 0o600 });
    const file = await opening({ device });
    expect(file).toMatchObject({ ...unavailable, reason: 'device' });
    expect(file.message).toContain('it is a regular file');
    context.skip(process.getuid?.() !== 0, 'only root can become another user');
    const closed = await opening({ device }, AS_NOBODY);
    expect(closed).toMatchObject({ ...unavailable, reason: 'permission' });
  });

  onLinux('warns once, with a code, when the simulator stands in for want of the addon alone', async () => {
    const { stdout, stderr } = await falling(DEVICE);
    expect(JSON.parse(stdout)).toEqual(['sim', 'sim']);
    expect(stderr.match(/\[VMEXIT_ADDON\]/g)).toHaveLength(1);
    expect(stderr).toMatch(
      /guests run on the simulator, not on KVM: the addon is not built .*setup builds it/,
    );
  });

  onLinux('does not warn where there is no device: the simulator is what such a host has', async () => {
    const { stdout, stderr } = await falling('/nonexistent/kvm');
    expect(JSON.parse(stdout)).toEqual(['sim', 'sim']);
    expect(stderr).toBe('');
  });
});

/** Opens twice what there is. */
const falling = (device: string) =>
  node([
    '--input-type=module',
    '-e',
    `const { openHypervisor } = await import(${JSON.stringify(`file://${copy}/dist/index.js`)});
    const open = () => openHypervisor({ device: ${JSON.stringify(device)} }).backend;
    console.log(JSON.stringify([open(), open()]));`,
  ]);
