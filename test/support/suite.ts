/** The conformance suite's frame: cases are written once and run on every backend. */
import { describe } from 'vitest';
import type { Condition } from './conditions.ts';
import { backends, type It, on } from './host.ts';

export interface Suite {
  /** A case that every host can run. */
  readonly it: It;
  /** For cases that need something of the host. */
  needs(...conditions: Condition[]): It;
}

/** Defines the cases of a topic for each backend. */
export function conformance(topic: string, define: (suite: Suite) => void): void {
  describe.each(backends)(`${topic} (%s)`, (backend) =>
    define({ it: on(backend), needs: (...conditions) => on(backend, ...conditions) }),
  );
}
