/**
 * What kernel headers say, as facts by name: a macro's or an enumerator's value, a struct's size, a field's offset and size
 * (`kvm_regs.rax`). No values: a macro that is no number on x86-64. As text a fact is a line, its name and then its numbers.
 */
export type Facts = ReadonlyMap<string, readonly bigint[]>;

export const isField = (name: string): boolean => /^[a-z_]+[a-z0-9_]*\./.test(name);
export const isStruct = (name: string): boolean => /^[a-z_][a-z0-9_]*$/.test(name);
export const isMacro = (name: string): boolean => !isField(name) && !isStruct(name);

/** The facts of headers that go by a name with a version. */
export interface Recorded {
  /** What the headers are of: `linux-libc-dev 7.3.4-1`. */
  readonly of: string;
  readonly facts: Facts;
}

export const format = ({ of, facts }: Recorded): string =>
  `${of}\n${[...facts].map(([name, values]) => [name, ...values].join(' ')).join('\n')}\n`;

export function parse(text: string): Recorded {
  const [of, ...lines] = text.trimEnd().split('\n');
  return {
    of: of!,
    facts: new Map(
      lines.map((line) => {
        const [name, ...values] = line.split(' ');
        return [name!, values.map(BigInt)];
      }),
    ),
  };
}
