/** That a host which `npm run test:hosts` has made is what it should be, and what everything is told of a host here. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { missing, openHypervisor, UnavailableError } from '../../src/index.ts';
import { noCompiler } from '../support/host.ts';
import { root } from './cli-vmexit.ts';

const kind = process.env.VMEXIT_HOST_KIND;

/** Why KVM cannot be opened here, or undefined when it can. */
function reason(): string | undefined {
  try {
    openHypervisor({ backend: 'kvm' }).close();
    return undefined;
  } catch (error) {
    if (error instanceof UnavailableError) return error.reason;
    throw error;
  }
}

/** Whether KVM has private memory. */
function hasPrivateMemory(): boolean {
  using hv = openHypervisor({ backend: 'kvm' });
  return missing(hv, ['private-memory']).length === 0;
}

const shows: { readonly [kind: string]: () => void } = {
  'no-device'() {
    expect(existsSync('/dev/kvm')).toBe(false);
    expect(reason()).toBe('device');
  },
  'no-permission'() {
    expect(existsSync('/dev/kvm')).toBe(true);
    expect(process.getuid!()).not.toBe(0);
    expect(reason()).toBe('permission');
  },
  'regular-file'() {
    expect(existsSync('/dev/kvm')).toBe(true);
    expect(reason()).toBe('device');
  },
  'no-compiler'() {
    expect(noCompiler).toBeDefined();
    expect(existsSync(join(root, 'build'))).toBe(false);
    // Without a device that is what matters first.
    expect(reason()).toBe(existsSync('/dev/kvm') ? 'addon' : 'device');
  },
  'other-platform'() {
    expect(process.platform).not.toBe('linux');
    expect(reason()).toBe('platform');
  },
  lab: () => expect(hasPrivateMemory()).toBe(true),
  'lab-no-private-memory': () => expect(hasPrivateMemory()).toBe(false),
};

it('is of the kind that test:hosts has made', (context) => {
  if (kind === undefined) return context.skip('these tests run on a host as it is');
  shows[kind]!();
});
