/** The ways to another task: far JMP and CALL, IRET with NT, and task gates (SDM volume 3, 8.3; volume 2 for each). */

import { type Descriptor, System, selectorCode } from '../processor/descriptors.ts';
import { raise, Vector } from '../processor/fault.ts';
import { wrapLinear } from '../processor/mode.ts';
import type { Processor } from '../processor/processor.ts';
import { readDescriptor } from './loads.ts';
import { type How, type LateFault, type Leaving, switchTask, type Task } from './task-switch.ts';

const AVAILABLE: readonly number[] = [System.TSS16, System.TSS];
const IN_USE: readonly number[] = [System.TSS16_BUSY, System.TSS_BUSY];

/** The TSS that a selector names. @param vector of all but "not present" */
function taskOf(
  cpu: Processor,
  selector: number,
  {
    vector,
    types,
    ext,
  }: { readonly vector: number; readonly types: readonly number[]; readonly ext: number },
): Task {
  const code = selectorCode(selector, ext);
  const descriptor = (selector & 4) !== 0 ? undefined : readDescriptor(cpu, selector);
  if (descriptor === undefined || descriptor.s || !types.includes(descriptor.type)) raise(vector, code);
  if (!descriptor.present) raise(Vector.NP, code);
  return { selector, descriptor };
}

const gateSelector = ({ lo }: Descriptor) => lo >>> 16;

/** An exception of the task that an instruction has switched to comes before that task's first instruction. */
export function instead(cpu: Processor, late: LateFault | undefined): void {
  if (late === undefined) return;
  const { vector, errorCode, address } = late;
  cpu.exception = { vector, errorCode, payload: vector === Vector.PF ? address : undefined };
}

/** JMP and CALL to a TSS, whose type, rights and presence were looked at. */
export function enterTask(cpu: Processor, task: Task, how: How, next: bigint): void {
  instead(cpu, switchTask(cpu, task, how, { next, ext: 0 }));
}

export function throughTaskGate(cpu: Processor, gate: Descriptor, how: How, next: bigint): void {
  const kind = { vector: Vector.GP, types: AVAILABLE, ext: 0 };
  enterTask(cpu, taskOf(cpu, gateSelector(gate), kind), how, next);
}

/** IRET with NT: to the task that has called. */
export function returnToTask(cpu: Processor, next: bigint): void {
  const link = cpu.memory.readSystem16(wrapLinear(cpu, cpu.tr.base));
  enterTask(cpu, taskOf(cpu, link, { vector: Vector.TS, types: IN_USE, ext: 0 }), 'return', next);
}

/** An event whose gate in the IDT is a task's. */
export function interruptTask(cpu: Processor, selector: number, leaving: Leaving): LateFault | undefined {
  const task = taskOf(cpu, selector, { vector: Vector.GP, types: AVAILABLE, ext: leaving.ext });
  return switchTask(cpu, task, 'interrupt', leaving);
}
