/** What every subcommand does with its command line. */
import { type ParseArgsConfig, parseArgs } from 'node:util';

/** Wrong usage: one line for the user, and exit status 2. */
export class UsageError extends Error {
  override readonly name = 'UsageError';
}

type Options = NonNullable<ParseArgsConfig['options']>;

/** What every subcommand understands. */
const COMMON = { help: { type: 'boolean', short: 'h' }, debug: { type: 'boolean' } } as const;

type Parsed<T extends Options> = ReturnType<
  typeof parseArgs<{ options: T & typeof COMMON; allowPositionals: true; strict: true }>
>;

/**
 * The options and the other words; undefined when help was asked for, and printed.
 * @param words how many other words there must be, with their names: `<guest>`; or what tells them by the options
 * @throws UsageError
 */
export function parse<const T extends Options>(
  argv: string[],
  options: T,
  help: string,
  words: readonly string[] | ((values: Parsed<T>['values']) => readonly string[]) = [],
): Parsed<T> | undefined {
  const { values, positionals } = parseOrExplain(argv, { ...COMMON, ...options });
  if (values.help) {
    process.stdout.write(help);
    return undefined;
  }
  const wanted = typeof words === 'function' ? words(values as Parsed<T>['values']) : words;
  if (positionals.length < wanted.length) throw new UsageError(`${wanted[positionals.length]} is missing`);
  if (positionals.length > wanted.length) {
    throw new UsageError(`'${positionals[wanted.length]}' is one argument too many`);
  }
  return { values, positionals } as Parsed<T>;
}

function parseOrExplain(argv: string[], options: Options) {
  const args = joined(argv, options);
  try {
    return parseArgs({ args, options, allowPositionals: true, strict: true });
  } catch (error) {
    const [, option, why] =
      /^Option '(?:-\w, )?(--[\w-]+)[^']*' argument (is ambiguous|missing)/.exec((error as Error).message) ??
      [];
    if (option !== undefined) {
      const how = why === 'missing' ? '' : "; one that begins with '-' goes behind '='";
      throw new UsageError(`${option} needs a value${how}`);
    }
    // Node's advice about '--' after the first sentence helps nobody here.
    const [sentence] = (error as Error).message.split('. ');
    throw new UsageError(sentence!);
  }
}

/** `--timeout -1` as `--timeout=-1`: no option is a number, so that is a value, and what checks values refuses it. */
function joined(argv: readonly string[], options: Options): string[] {
  const args: string[] = [];
  for (const word of argv) {
    const last = args.at(-1) ?? '';
    const takes =
      !args.includes('--') && /^--[\w-]+$/.test(last) && options[last.slice(2)]?.type === 'string';
    if (takes && /^-(\d|$)/.test(word)) args[args.length - 1] = `${last}=${word}`;
    else args.push(word);
  }
  return args;
}

/** What --backend takes. */
export const BACKENDS = ['auto', 'kvm', 'sim'] as const;

const UNITS = { '': 1, K: 2 ** 10, M: 2 ** 20, G: 2 ** 30 } as const;

/** `64M` as bytes. */
export function size(option: string, text: string): number {
  const [, digits, unit = ''] = /^(\d{1,15})([KMG]?)$/i.exec(text) ?? [];
  if (digits === undefined)
    throw new UsageError(`${option} is '${text}'; it must be a size such as 64M or 1G`);
  return Number(digits) * UNITS[unit.toUpperCase() as keyof typeof UNITS];
}

/** `2.5` seconds as milliseconds. */
export function seconds(option: string, text: string): number {
  const number = /^\d+(\.\d+)?$/.test(text) ? Number(text) : 0;
  if (!(number > 0)) throw new UsageError(`${option} is '${text}'; it must be a number of seconds above 0`);
  return number * 1000;
}

/** `0x7c00` or `31744` as a guest-physical address. */
export function address(option: string, text: string): number {
  const number = /^(0x[\da-f]{1,13}|\d{1,15})$/i.test(text) ? Number(text) : -1;
  if (number >= 0) return number;
  throw new UsageError(`${option} is '${text}'; it must be an address such as 0x7c00`);
}

/** A whole number above 0. */
export function count(option: string, text: string): number {
  const number = /^\d{1,10}$/.test(text) ? Number(text) : 0;
  if (number > 0) return number;
  throw new UsageError(`${option} is '${text}'; it must be a whole number above 0`);
}

/** One of a few words. */
export function oneOf<const T extends string>(option: string, text: string, choices: readonly T[]): T {
  const found = choices.find((choice) => choice === text);
  if (found === undefined) throw new UsageError(`${option} is '${text}'; it must be ${choices.join(' or ')}`);
  return found;
}
