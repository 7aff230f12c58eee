/** Which processor executes here: what is exact to the last bit on one may not be on another. */
import { readFileSync } from 'node:fs';

const field = (name: string): string => {
  try {
    return (
      new RegExp(`^${name}\\s*: (.*)$`, 'm').exec(readFileSync('/proc/cpuinfo', 'utf8'))?.[1] ?? 'unknown'
    );
  } catch {
    return 'unknown';
  }
};

export const processor = `${field('vendor_id')} family ${field('cpu family')} model ${field('model')}`;
