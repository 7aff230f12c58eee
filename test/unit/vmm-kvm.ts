/** What the tests of the VMM layer and the command share: KVM where there is one, and the reason where there is none. */
import { expect, it } from 'vitest';
import { type Feature, type Hypervisor, missing, openHypervisor, UnavailableError } from '../../src/index.ts';

function open(): Hypervisor | string {
  try {
    return openHypervisor({ backend: 'kvm' });
  } catch (error) {
    if (error instanceof UnavailableError) return error.message;
    throw error;
  }
}
const hv = open();

/** Why this host cannot, or undefined when it can. Tried once per process and feature. */
const reasons = new Map<Feature, string | undefined>();
export function whyNot(...needs: Feature[]): string | undefined {
  if (typeof hv === 'string') return hv;
  for (const need of needs) {
    if (!reasons.has(need)) reasons.set(need, missing(hv, [need])[0]?.reason);
    const reason = reasons.get(need);
    if (reason !== undefined) return `${need}: ${reason}`;
  }
  return undefined;
}

/** A test on the real KVM, skipped with the reason where this host lacks it or something of `needs`. */
export const onKvm = (
  sentence: string,
  shows: (hv: Hypervisor) => void | Promise<void>,
  ...needs: Feature[]
): void => {
  it(sentence, async (context) => {
    const reason = whyNot(...needs);
    if (reason !== undefined) return context.skip(reason);
    expect((hv as Hypervisor).backend).toBe('kvm');
    await shows(hv as Hypervisor);
  });
};
