/** The x87 floating-point unit. */
import { fxsave } from './fxsave.ts';
import type { Helpers } from './helper.ts';
import { x87Arithmetic } from './x87-arithmetic.ts';
import { x87Move } from './x87-move.ts';
import { x87State } from './x87-state.ts';
import { x87Transcendental } from './x87-transcendental.ts';

export const x87: Helpers = { ...x87Arithmetic, ...x87Move, ...x87State, ...x87Transcendental, ...fxsave };
