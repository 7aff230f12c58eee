/** What the package's build prepares of the simulator's templates, for all processors that it models. */
import { instructions } from './cpu/instructions.ts';
import { Decoder, type Iced } from './cpu/translate/decode.ts';
import { prepare } from './cpu/translate/prepare.ts';
import { absentFeatures } from './kernel/host/cpu-model.ts';

/** The least and the most that each vendor's processors have: what both have alike all between them do. */
export function templates(iced: Iced): Uint8Array {
  const decoders = (['amd', 'intel'] as const).flatMap((vendor) =>
    ['max', 'x86-64-v1'].map((cpu) => new Decoder(() => iced, vendor, absentFeatures(cpu, vendor))),
  );
  return prepare(decoders, instructions.lower);
}
