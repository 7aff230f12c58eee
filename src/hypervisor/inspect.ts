/** How objects look in a terminal: what util.inspect() of Node, and with it console.log(), shows of them. */

/** The registered symbol that Node asks for; elsewhere nobody does. */
export const inspect: unique symbol = Symbol.for('nodejs.util.inspect.custom') as never;

/** Node's own, which it hands to a custom one. */
export type Inspect = (value: unknown, options: unknown) => string;

/** Text that is shown as it is, without quotes. */
export class Text {
  readonly #text: string;

  constructor(text: string) {
    this.#text = text;
  }
  [inspect](): string {
    return this.#text;
  }
}
export const text = (value: string): Text => new Text(value);

/** `Vm { type: DEFAULT }`: the name of a class, and what is worth seeing of an object. */
export const shown = (
  name: string,
  fields: object,
  depth: number,
  options: unknown,
  nodes: Inspect,
): string => (depth < 0 ? `[${name}]` : `${name} ${nodes(fields, options)}`);

const UNITS = ['bytes', 'KiB', 'MiB', 'GiB', 'TiB'];

/** `64 KiB`: in the largest unit of which it is a whole number. */
export function inUnits(bytes: number): string {
  let unit = 0;
  let count = bytes;
  while (count > 0 && count % 1024 === 0 && unit < UNITS.length - 1) {
    count /= 1024;
    unit++;
  }
  return `${count} ${UNITS[unit]}`;
}
