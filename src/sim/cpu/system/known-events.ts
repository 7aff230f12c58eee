/**
 * Events that were delivered before: from the same context, through the same gate to the same code segment. What is left of SDM
 * volume 3, chapter 6, is the stack.
 */
import type { Delivery } from '../processor/contexts.ts';
import { Seg } from '../processor/descriptors.ts';
import { canonical } from '../processor/mode.ts';
import type { Processor } from '../processor/processor.ts';
import { Flag } from '../processor/state.ts';
import { Stack } from '../segments/stack.ts';
import { innerPointer } from '../segments/tss.ts';

/** INT n looks at the gate's DPL, and others do not: both are known by themselves. */
const placeOf = (vector: number, soft: boolean) => vector + (soft ? 256 : 0);

interface Arrival {
  readonly vector: number;
  readonly soft: boolean;
  /** RFLAGS and RIP as the handler finds them. */
  readonly flags: number;
  readonly next: bigint;
  readonly errorCode: number | undefined;
}

/** Delivers an event that is known; false where it is not, or something is not as it was. @throws as events.ts's enter() */
export function enterKnown(cpu: Processor, { vector, soft, flags, next, errorCode }: Arrival): boolean {
  const known = cpu.deliveries[placeOf(vector, soft)];
  const { memory, state, segments, gdtr, idtr } = cpu;
  if (known === undefined || known.from !== cpu.context || known.gdtr !== gdtr || known.idtr !== idtr)
    return false;
  const { gateAt, codeAt, inner, level, ist } = known;
  if (
    memory.readSystem64(gateAt) !== known.gate ||
    memory.readSystem64(gateAt + 8n) !== known.upper ||
    memory.readSystem64(codeAt) !== known.code
  )
    return false;
  const ext = soft ? 0 : 1;
  const rsp = inner || ist !== 0 ? innerPointer(cpu, level, ist, ext) : state.gpr(4);
  if (!canonical(rsp)) return false;
  const ss = segments[Seg.SS]!;
  const options = { pointer: rsp & ~0xfn, bits: 64, rights: inner ? 'system' : 'cpl', code: ext } as const;
  const stack = new Stack(cpu, { segment: ss, ...options });
  const frame = [BigInt(ss.selector), state.gpr(4), BigInt(flags), BigInt(segments[Seg.CS]!.selector), next];
  if (errorCode !== undefined) frame.push(BigInt(errorCode));
  stack.pushAll(frame);
  stack.write();
  stack.commit();
  cpu.enterContext(known.to);
  state.eflags &= ~(Flag.TF | Flag.NT | Flag.RF | Flag.VM | (known.masks ? Flag.IF : 0));
  state.rip = known.rip;
  return true;
}

/** Notes a delivery that has just been made. */
export function noteEvent(
  cpu: Processor,
  vector: number,
  soft: boolean,
  how: Pick<Delivery, 'from' | 'gateAt' | 'codeAt' | 'inner' | 'level' | 'ist' | 'masks'>,
): void {
  const { memory, state, gdtr, idtr } = cpu;
  cpu.changed();
  const to = cpu.numberContext();
  if (how.from === 0 || to === 0) return;
  cpu.deliveries[placeOf(vector, soft)] = {
    ...how,
    to,
    gdtr,
    idtr,
    gate: memory.readSystem64(how.gateAt),
    upper: memory.readSystem64(how.gateAt + 8n),
    code: memory.readSystem64(how.codeAt),
    rip: state.rip,
  };
}
