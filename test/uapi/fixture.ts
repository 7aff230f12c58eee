/** The facts of the newest headers that the tables have been held against, made by `node scripts/uapi.mjs --record`. */
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { parse, type Recorded } from './facts.ts';

export const RECORDED = fileURLToPath(new URL('../unit/fixtures/uapi.txt', import.meta.url));
export const readRecorded = (): Recorded => parse(readFileSync(RECORDED, 'utf8'));
