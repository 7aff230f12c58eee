/** Where KVM cannot be had, importing the package works and opening it says why. */
import { chmodSync, cpSync, existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { node } from './child.ts';

const root = fileURLToPath(new URL('../../', import.meta.url));
const NOBODY = 65_534;
const ADDON = join('build', 'Release', 'vmexit.node');
const built = existsSync(join(root, ADDON));
const NOT_BUILT = 'the addon is not built here';

/** A copy of the compiled package, to be broken, that every user can read. */
let copy = '';
beforeAll(() => {
  copy = mkdtempSync(join(tmpdir(), 'vmexit-copy-'));
  chmodSync(copy, 0o755);
  const modules = ['bindings', 'file-uri-to-path'].map((name) => join('node_modules', name));
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
      console.log(JSON.stringify({ imported, name, code, reason, message, tries: cause?.tries }));
    }`;
  const { status, stdout, stderr } = await node(['--input-type=module', '-e', program]);
  expect(status, stderr).toBe(0);
  return JSON.parse(stdout);
}

const unavailable = { imported: true, name: 'UnavailableError', code: 'ERR_KVM_UNAVAILABLE' };

describe('openHypervisor', () => {
  it('says that the device does not exist, and what brings it', async (context) => {
    context.skip(!built, NOT_BUILT);
    const error = await opening({ device: '/nonexistent/kvm' });
    expect(error).toMatchObject({ ...unavailable, reason: 'device' });
    expect(error.message).toMatch(/\/nonexistent\/kvm does not exist: load kvm_intel or kvm_amd/);
  });

  it('says of what is no KVM which errno it gave', async (context) => {
    context.skip(!built, NOT_BUILT);
    const error = await opening({ device: '/dev/null' });
    expect(error).toMatchObject({ ...unavailable, reason: 'device' });
    expect(error.message).toContain('/dev/null cannot be opened as KVM: ENOTTY');
  });

  it('says that the user may not open the device, and how to change that', async (context) => {
    context.skip(!built, NOT_BUILT);
    context.skip(process.getuid?.() !== 0, 'only root can become another user');
    const device = join(copy, 'closed-device');
    writeFileSync(device, '', { mode: 0o600 });
    const nobody = `process.setgroups([]); process.setgid(${NOBODY}); process.setuid(${NOBODY});`;
    const error = await opening({ device }, nobody);
    expect(error).toMatchObject({ ...unavailable, reason: 'permission' });
    expect(error.message).toMatch(/closed-device may not be opened by this user: .*usermod -aG kvm/);
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
  it('says that the addon does not load, and why', async () => {
    mkdirSync(join(copy, 'build', 'Release'), { recursive: true });
    writeFileSync(join(copy, ADDON), 'no ELF file');
    const error = await opening({});
    expect(error).toMatchObject({ ...unavailable, reason: 'addon' });
    expect(error.message).toMatch(/built and does not load: .*(ELF|too short)/);
  });

  it('says that the addon is not built, where it was looked for, and how to build it', async () => {
    rmSync(join(copy, 'build'), { recursive: true });
    const error = await opening({});
    expect(error).toMatchObject({ ...unavailable, reason: 'addon' });
    expect(error.tries).toEqual([join(copy, ADDON)]);
    expect(error.message).toMatch(/not built \(looked for .*vmexit\.node\); npm run setup/);
  });
});
