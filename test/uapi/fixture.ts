import { fileURLToPath } from 'node:url';

/** The facts of the newest headers that the tables have been held against, made by `node scripts/uapi.mjs --record`. */
export const RECORDED = fileURLToPath(new URL('../unit/fixtures/uapi.txt', import.meta.url));
