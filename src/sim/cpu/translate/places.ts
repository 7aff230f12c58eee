/** Where an operand's register is in the state page, as records have it. */
import { State } from '../processor/state.ts';
import { NONE } from './forms.ts';

/** The place of a register: NONE is the one that is always zero. */
export const placeOf = (register: number): number => (register === NONE ? State.zero : register * 8);
/** The same of an operand of one byte: without REX, 4 to 7 are the high bytes of the first four. */
export const bytePlaceOf = (register: number, legacy: boolean): number =>
  legacy && register >= 4 && register < 8 ? (register - 4) * 8 + 1 : placeOf(register);
