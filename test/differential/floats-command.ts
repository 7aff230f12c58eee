/** The command: `node scripts/differential.mjs floats`. */
import { parseArgs } from 'node:util';
import { FloatComparison } from './floats.ts';
import { SiliconComparison } from './floats-silicon.ts';
import { X87Comparison } from './floats-x87.ts';

const USAGE = `Compares floating point in WebAssembly with the exact path, on random operands with a bias to special ones.

  node scripts/differential.mjs floats [options]
    --count N         how many cases, of some numbers each (1000000000); Ctrl-C ends it before, with its report
    --x87             the x87's, not SSE's
    --silicon         the x87's functions of WebAssembly with the host's own x87
    --seed N          the cases' seed (1)
    --filter REGEXP   only instructions with such a name
    --examples N      how many differences to show (20)
`;

const options = {
  count: { type: 'string', default: '1000000000' },
  seed: { type: 'string', default: '1' },
  filter: { type: 'string', default: '' },
  x87: { type: 'boolean' },
  silicon: { type: 'boolean' },
  examples: { type: 'string', default: '20' },
  help: { type: 'boolean' },
} as const;

/** Between two looks at the clock and at signals. */
const TURNS = 20;
const SAY_MS = 5000;

export async function floatsCommand(argv: string[]): Promise<number> {
  const { values } = parseArgs({ args: argv, options });
  if (values.help) {
    process.stdout.write(USAGE);
    return 0;
  }
  // Exceptions are many, and nobody looks at their stacks.
  Error.stackTraceLimit = 0;
  const Comparison = values.silicon ? SiliconComparison : values.x87 ? X87Comparison : FloatComparison;
  const comparison = new Comparison(Number(values.seed), new RegExp(values.filter, 'i'));
  const count = Number(values.count);
  const began = performance.now();
  let stopped = false;
  const stop = () => {
    stopped = true;
  };
  process.once('SIGINT', stop);
  let different = 0;
  const report = () => {
    const seconds = (performance.now() - began) / 1000;
    const { cases, raised, changed, gaveUp } = comparison;
    const of = `${cases} cases, in ${cases - gaveUp} of which the attempt was all`;
    return `${of}, ${raised} raised exceptions, ${changed} set flags; ${different} different; ${seconds.toFixed(0)} s`;
  };
  for (let said = began; !stopped && comparison.cases < count; ) {
    for (let i = 0; i < (values.silicon ? 1 : TURNS); i++)
      for (const { text } of comparison.turn())
        if (different++ < Number(values.examples)) process.stdout.write(`${text}\n`);
    if (performance.now() - said > SAY_MS) {
      said = performance.now();
      process.stderr.write(`${report()}\n`);
    }
    await new Promise((resolve) => setImmediate(resolve));
  }
  process.removeListener('SIGINT', stop);
  if (comparison instanceof SiliconComparison) comparison[Symbol.dispose]();
  process.stdout.write(`${report()}${stopped ? ' (stopped)' : ''}\n`);
  return different === 0 ? 0 : 1;
}
