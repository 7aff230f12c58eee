/** How the command writes: colours where somebody looks, columns, sizes. */
import { styleText } from 'node:util';

/** Whether the user of a stream wants colours: a terminal's, unless NO_COLOR; FORCE_COLOR stands for a terminal. */
export function isColourful(stream: NodeJS.WriteStream): boolean {
  if (process.env.NO_COLOR) return false;
  const force = process.env.FORCE_COLOR;
  return force === undefined ? stream.isTTY === true && process.env.TERM !== 'dumb' : force !== '0';
}

const STYLES = ['bold', 'dim', 'red', 'green', 'yellow', 'magenta', 'cyan'] as const;

export type Style = { readonly [S in (typeof STYLES)[number]]: (text: string) => string };

/** Functions that style a text for the stream, or leave it as it is. */
export function styleFor(stream: NodeJS.WriteStream): Style {
  const on = isColourful(stream);
  return Object.fromEntries(
    STYLES.map((name) => [name, (text: string) => (on ? styleText(name, text) : text)]),
  ) as Style;
}

/** Lines of at most `width` characters, all but the first indented. Words are kept whole. */
export function wrap(text: string, width: number, indent: number): string {
  const lines: string[] = [];
  let line = '';
  for (const word of text.split(' ')) {
    if (line !== '' && line.length + 1 + word.length > width) {
      lines.push(line);
      line = word;
    } else {
      line = line === '' ? word : `${line} ${word}`;
    }
  }
  return [...lines, line].join(`\n${' '.repeat(indent)}`);
}

const UNITS = [
  [2 ** 30, 'GiB'],
  [2 ** 20, 'MiB'],
  [2 ** 10, 'KiB'],
] as const;

/** `64 MiB`, `4 KiB`, `17 bytes`. */
export function bytes(count: number): string {
  const [unit, name] = UNITS.find(([unit]) => count >= unit && count % unit === 0) ?? [1, 'bytes'];
  return `${count / unit} ${name}`;
}

/** Progress of what is large enough that somebody would follow it: tells each quarter, in percent, as it is passed. */
export function quarters(least: number, tell: (percent: number, total: number) => void) {
  let told = 0;
  return (done: number, total: number): void => {
    const quarter = Math.floor((4 * done) / total);
    if (total < least || quarter === told) return;
    told = quarter;
    tell(quarter * 25, total);
  };
}
