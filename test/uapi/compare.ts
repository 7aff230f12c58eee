/** The tables of src/uapi beside the facts of headers. */
import type { Facts } from './facts.ts';
import { whyLeftOut } from './left-out.ts';
import { type Claim, claims } from './tables.ts';

export interface Comparison {
  /** In the headers, and neither in a table nor on the list of what is left out. */
  readonly lacking: readonly string[];
  /** In both, with other numbers. */
  readonly otherwise: readonly (Claim & { readonly header: readonly bigint[] })[];
  /** In a table, and not in the headers, which may be older. */
  readonly unknown: readonly Claim[];
}

const same = (a: readonly bigint[], b: readonly bigint[]): boolean =>
  a.length === b.length && a.every((value, i) => value === b[i]);

export function compare(facts: Facts): Comparison {
  const all = claims();
  const known = new Set(all.map(({ name }) => name));
  return {
    lacking: [...facts.keys()].filter((name) => !known.has(name) && whyLeftOut(name) === undefined),
    otherwise: all.flatMap((claim) => {
      const header = facts.get(claim.name);
      return header === undefined || same(header, claim.values) ? [] : [{ ...claim, header }];
    }),
    unknown: all.filter(({ name }) => !facts.has(name)),
  };
}

/** `KVM_EXIT_SNP_REQ_CERTS is 42 in Exit.SNP_REQ_CERTS and 43 in the headers` */
export const describeOtherwise = ({ label, name, values, header }: Comparison['otherwise'][number]): string =>
  `${name} is ${shown(values)} in ${label === name ? 'its table' : label} and ${shown(header)} in the headers`;

const shown = (values: readonly bigint[]): string =>
  values.length === 2 ? `${values[1]} bytes at ${values[0]}` : (values[0]?.toString() ?? 'no number');
