/**
 * The conformance suite's frame: cases are written once and run on every backend. What a host lacks is a skip with
 * the reason beside it; where the lab must have it, a failure.
 */
import { afterAll, beforeAll, describe, expect, it as test } from 'vitest';
import { type BackendName, type Hypervisor, openHypervisor, UnavailableError } from '../../src/index.ts';
import { type Condition, lacking } from './conditions.ts';
import { inLab } from './run.ts';

/**
 * Every backend there is. The lab is there for its kernel: the simulator is the same everywhere, and JS on an emulated
 * processor is slow.
 */
export const backends: readonly BackendName[] = inLab ? ['kvm'] : ['kvm', 'sim'];

/**
 * What the lab's kernel is too old for, or has in no release, and what its emulated processor lacks. Everything else
 * the lab must have.
 */
const beyondLab: readonly Condition[] = [
  'guest-memfd-mmap',
  'hardware-breakpoint',
  ...(process.env.VMEXIT_LAB_KERNEL === 'userfault'
    ? []
    : (['userfault', 'test-private-access'] satisfies Condition[])),
];
/** What the simulator does not model, on any host. Everything else it must have. */
const beyondSim: readonly Condition[] = ['irqchip', 'userfaultfd', 'files', 'test-private-access'];

/** What may be skipped: everything, where a host is what it is. */
const mayLack = (backend: BackendName, condition: Condition): boolean =>
  backend === 'sim' ? beyondSim.includes(condition) : !inLab || beyondLab.includes(condition);

/** A sentence about what the kernel does, and what shows it. */
export type It = (sentence: string, shows: (hv: Hypervisor) => void | Promise<void>) => void;

export interface Suite {
  /** A case that every host can run. */
  readonly it: It;
  /** For cases that need something of the host. */
  needs(...conditions: Condition[]): It;
}

/** Defines the cases of a topic for each backend. */
export function conformance(topic: string, define: (suite: Suite) => void): void {
  describe.each(backends)(`${topic} (%s)`, (backend) => {
    let hv: Hypervisor | undefined;
    let unavailable: string | undefined;
    beforeAll(() => {
      try {
        hv = openHypervisor({ backend });
      } catch (error) {
        // Without the addon nothing could fail: that is no property of the host.
        if (backend === 'sim' || inLab || !(error instanceof UnavailableError) || error.reason === 'addon')
          throw error;
        unavailable = error.message;
      }
    });
    afterAll(() => hv?.close());

    const needs =
      (...conditions: Condition[]): It =>
      (sentence, shows) => {
        test(sentence, async (context) => {
          if (hv === undefined) return context.skip(unavailable);
          expect(hv.backend).toBe(backend);
          for (const condition of conditions) {
            const reason = lacking(hv, condition);
            if (reason === undefined) continue;
            if (!mayLack(backend, condition)) throw new Error(`${backend} lacks ${condition}: ${reason}`);
            context.skip(`${condition}: ${reason}`);
          }
          await shows(hv);
        });
      };
    define({ it: needs(), needs });
  });
}
