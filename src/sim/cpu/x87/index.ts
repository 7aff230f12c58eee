/** The x87 floating-point unit. */

import type { Helpers } from '../processor/helper.ts';
import { x87Arithmetic } from './arithmetic.ts';
import { fxsave } from './fxsave.ts';
import { x87Move } from './move.ts';
import { x87State } from './state.ts';
import { x87Transcendental } from './transcendental.ts';

export const x87: Helpers = { ...x87Arithmetic, ...x87Move, ...x87State, ...x87Transcendental, ...fxsave };

export { leaving } from './leaving.ts';
