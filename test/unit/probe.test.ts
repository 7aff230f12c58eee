import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { gzipSync } from 'node:zlib';
import { afterAll, describe, expect, it } from 'vitest';
import { type Host, readHost, whyNoDevice, whyNoDriver } from '../../src/host.ts';
import { Cap, type Feature, features, openHypervisor, UnavailableError } from '../../src/index.ts';
import { isOlder, whyNot } from '../../src/probe/host.ts';
import { probe } from '../../src/probe/report.ts';
import { Hypercall } from '../../src/uapi/index.ts';
import { onKvm } from '../support/host.ts';

const folders: string[] = [];
afterAll(() => {
  for (const folder of folders) rmSync(folder, { recursive: true });
});

/** A root folder with these files. */
function rootWith(files: Readonly<Record<string, string | Uint8Array>>): string {
  const root = mkdtempSync(join(tmpdir(), 'vmexit-probe-'));
  folders.push(root);
  for (const [path, content] of Object.entries(files)) {
    mkdirSync(join(root, dirname(path)), { recursive: true });
    writeFileSync(join(root, path), content);
  }
  return root;
}

const bare: Host = {
  platform: 'linux',
  arch: 'x64',
  kernel: '6.12.0',
  processor: { vendor: 'GenuineIntel', virtualization: 'vmx' },
  modules: ['kvm', 'kvm_intel'],
  parameters: {},
  config: undefined,
  device: true,
  registered: true,
  log: [],
};

describe('a host', () => {
  it('is read from its kernel: processor, modules, parameters, options of the build', () => {
    const host = readHost(
      rootWith({
        'proc/cpuinfo': 'processor\t: 0\nvendor_id\t: AuthenticAMD\nflags\t\t: fpu svm nx\n',
        'proc/config.gz': gzipSync(
          'CONFIG_KVM=m\nCONFIG_KVM_AMD=m\n# CONFIG_KVM_SW_PROTECTED_VM is not set\nCONFIG_NET=y\n',
        ),
        'sys/module/kvm/parameters/tdp_mmu': 'Y\n',
        'sys/module/kvm_amd/parameters/npt': '1\n',
        'sys/module/kvmgt/x': '',
        'dev/kvm': '',
        'proc/misc': '234 btrfs-control\n232 kvm\n',
        'dev/kmsg':
          '6,401,305690,-;kvm-clock: using sched offset\n3,402,305700,-;kvm_amd: SVM disabled (by BIOS)\n SUBSYSTEM=x\n' +
          '4,403,305710,-;kvm [812]: ignored rdmsr\n',
      }),
      '6.8.0-generic',
    );
    expect(host).toMatchObject({
      kernel: '6.8.0-generic',
      processor: { vendor: 'AuthenticAMD', virtualization: 'svm' },
      modules: ['kvm', 'kvm_amd'],
      parameters: { 'kvm.tdp_mmu': 'Y', 'kvm_amd.npt': '1' },
      config: { CONFIG_KVM: 'm', CONFIG_KVM_AMD: 'm' },
      device: true,
      registered: true,
      log: ['kvm_amd: SVM disabled (by BIOS)'],
    });
  });

  it('may have its options in /boot, and may tell nothing at all', () => {
    const boot = readHost(rootWith({ 'boot/config-5.10.1': 'CONFIG_KVM_GUEST_MEMFD=y\n' }), '5.10.1');
    expect(boot.config).toEqual({ CONFIG_KVM_GUEST_MEMFD: 'y' });
    expect(readHost(rootWith({}), '5.10.1')).toMatchObject({
      processor: { vendor: undefined, virtualization: undefined },
      modules: [],
      parameters: {},
      config: undefined,
      device: false,
      registered: false,
      log: [],
    });
  });

  it.each([
    ['6.8.0', '6.8', false],
    ['6.7.12-amd64', '6.8', true],
    ['6.10.1', '6.8', false],
    ['5.19.0', '6.0', true],
    ['7.0-rc1', '6.18', false],
    ['6.12.117-vmexit', '6.18', true],
  ])('of kernel %s is older than %s: %s', (kernel, version, older) => {
    expect(isOlder(kernel, version)).toBe(older);
  });

  it('lacks a feature because its kernel is too old, before all else', () => {
    const needs = { since: '6.13', config: 'CONFIG_X', parameters: ['kvm.tdp_mmu'] };
    const host = { ...bare, config: {}, parameters: { 'kvm.tdp_mmu': 'N' } };
    expect(whyNot(needs, host)).toEqual(['it came with Linux 6.13 and this is 6.12.0']);
  });

  it('lacks a feature because of an option or a parameter, where they can be read', () => {
    const needs = { since: '6.8', config: 'CONFIG_X', parameters: ['kvm.tdp_mmu', 'kvm_amd.npt'] };
    expect(whyNot(needs, bare)).toEqual([]);
    expect(whyNot(needs, { ...bare, config: { CONFIG_X: 'y' }, parameters: { 'kvm.tdp_mmu': 'Y' } })).toEqual(
      [],
    );
    expect(
      whyNot(needs, { ...bare, config: {}, parameters: { 'kvm.tdp_mmu': 'N', 'kvm_amd.npt': '0' } }),
    ).toEqual([
      'this kernel was built without CONFIG_X',
      'the module parameter kvm.tdp_mmu is N',
      'the module parameter kvm_amd.npt is 0',
    ]);
  });

  const amd = { vendor: 'AuthenticAMD', virtualization: 'svm' } as const;
  const neither = { vendor: 'AuthenticAMD', virtualization: undefined };
  it.each<[string, Partial<Host>, RegExp | undefined]>([
    ['that has it', { device: true }, undefined],
    [
      'that does not pass it on',
      { registered: true },
      /\/proc\/misc lists it.*docker run --device \/dev\/kvm/,
    ],
    ['built without KVM', { config: {} }, /built without CONFIG_KVM/],
    [
      'whose processor cannot',
      { processor: neither },
      /^the processor shows neither vmx nor svm: turn virtualization on/,
    ],
    [
      'whose module is not loaded',
      { modules: [] },
      /^the module kvm_intel is not loaded: modprobe kvm_intel$/,
    ],
    ['whose AMD module is not loaded', { modules: ['kvm'], processor: amd }, /modprobe kvm_amd/],
    [
      'whose firmware forbids it',
      { log: ['kvm_intel: VMX not enabled', 'kvm: disabled by bios'] },
      /^the module kvm_intel has not bound \(the kernel's log: "kvm: disabled by bios"\)$/,
    ],
    [
      'that is a guest of PVM',
      {
        processor: neither,
        modules: ['kvm', 'kvm_pvm'],
        log: ['kvm-pvm: this kernel is itself a kvm-pvm guest; not binding'],
      },
      /^the module kvm_pvm has not bound \(the kernel's log: "kvm-pvm: .* not binding"\): it cannot in a guest of PVM/,
    ],
    ['that nobody can explain', {}, undefined],
  ])('%s knows why it has no /dev/kvm', (_which, differs, says) => {
    const host = { ...bare, device: false, registered: false, ...differs };
    const why = whyNoDevice(host);
    if (says === undefined) expect(why).toBeUndefined();
    else expect(why).toMatch(says);
    if (!host.device && !host.registered) expect(whyNoDriver(host)).toBe(why);
  });
});

describe('the probe', () => {
  it.each(['device', 'permission', 'addon', 'platform'] as const)(
    'reports a host where KVM cannot be opened for the reason %s',
    (reason) => {
      const host: Host = { ...bare, device: false };
      const report = probe(() => {
        throw new UnavailableError(reason, 'is gone');
      }, host);
      expect(report.kvm).toEqual({ available: false, reason, message: 'is gone' });
      expect(report.host).toBe(host);
      expect(report.features.map(({ name }) => name)).toEqual(Object.keys(features));
      expect(report.features.every(({ available }) => !available)).toBe(true);
      expect([report.vmTypes, report.capabilities]).toEqual([[], []]);
    },
  );

  it('gives as reasons of the simulator none of the host', () => {
    const old: Host = { ...bare, kernel: '4.4.0', config: {} };
    const { kvm, features: found, vmTypes } = probe(() => openHypervisor({ backend: 'sim' }), old);
    expect(kvm).toEqual({ available: true, backend: 'sim', apiVersion: 12 });
    const reasons = [...found, ...vmTypes].flatMap(({ reason }) => reason ?? []);
    expect(reasons.length).toBeGreaterThan(3);
    for (const reason of reasons) expect(reason).not.toMatch(/Linux|this kernel|module/);
  });

  it('hides no bug behind a report', () => {
    const open = () => {
      throw new TypeError('a bug');
    };
    expect(() => probe(open, bare)).toThrow('a bug');
  });

  onKvm('finds on this host what every KVM has, and a reason for all that it does not find', () => {
    const report = probe(() => openHypervisor({ backend: 'kvm' }));
    expect(report.kvm).toEqual({ available: true, backend: 'kvm', apiVersion: 12 });
    const available = new Set(report.features.filter((row) => row.available).map(({ name }) => name));
    const always: Feature[] = ['real-mode', 'long-mode', 'immediate-exit', 'single-step', 'readonly-memory'];
    for (const feature of always) expect(available).toContain(feature);
    for (const row of [...report.features, ...report.vmTypes]) {
      if (row.available) expect(row.reason).toBeUndefined();
      else expect(row.reason).toMatch(/\w{3}/);
    }
    const types = Object.fromEntries(report.vmTypes.map((type) => [type.name, type.available]));
    expect(types.DEFAULT).toBe(true);
    expect(available.has('private-memory')).toBe(types.SW_PROTECTED);
    const userMemory = report.capabilities.find(({ name }) => name === 'KVM_CAP_USER_MEMORY');
    expect(userMemory).toMatchObject({ number: 3, system: 1, vms: { DEFAULT: 1 }, contested: false });
    expect(Object.keys(userMemory!.vms)).toEqual(
      report.vmTypes.filter((type) => type.available).map(({ name }) => name),
    );
  });

  onKvm('lets a guest really ask for a conversion, whatever the capability says', (hv) => {
    using vm = hv.createVm();
    const claimed = (vm.checkExtension(Cap.EXIT_HYPERCALL) & (1 << Hypercall.MAP_GPA_RANGE)) !== 0;
    const reason = features['map-gpa-range'](hv);
    if (!claimed) expect(reason).toMatch(/KVM_CAP_EXIT_HYPERCALL lacks/);
    // There are hosts where it is claimed, and the hypercall never comes back from KVM.
    else if (reason !== undefined)
      expect(reason).toMatch(/a guest that tries it (does not come back|ends with)/);
  });

  onKvm('is what openHypervisor asks about its needs', (hv) => {
    const lacking = (Object.keys(features) as Feature[]).filter((name) => features[name](hv) !== undefined);
    for (const feature of lacking) {
      expect(() => openHypervisor({ backend: 'kvm', needs: [feature] })).toThrow(
        expect.objectContaining({
          code: 'ERR_KVM_UNAVAILABLE',
          reason: 'feature',
          message: expect.stringContaining(feature),
        }),
      );
    }
    openHypervisor({ backend: 'kvm', needs: ['long-mode', 'real-mode'] }).close();
    expect(() => openHypervisor({ needs: ['flying' as never] })).toThrow(
      expect.objectContaining({ code: 'ERR_KVM_INVALID_ARG' }),
    );
  });
});
