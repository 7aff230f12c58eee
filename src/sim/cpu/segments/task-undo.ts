/** Takes a task switch back that the second stage has stopped: KVM_RUN ends, and the switch begins anew when it goes on. */

import { wrapLinear } from '../processor/mode.ts';
import type { Processor } from '../processor/processor.ts';

export class Undo {
  readonly #cpu: Processor;
  readonly #registers: () => void;
  readonly #written: { readonly linear: bigint; readonly bytes: Uint8Array }[] = [];

  constructor(cpu: Processor) {
    this.#cpu = cpu;
    const { state, ldtr, tr, cr0, cr3 } = cpu;
    const { rip, flags } = state;
    const dr7 = cpu.dr[7]!;
    const segments = [...cpu.segments];
    const gprs = Array.from({ length: 16 }, (_, index) => state.gpr(index));
    this.#registers = () => {
      Object.assign(cpu, { ldtr, tr, cr0, cr3 });
      state.flags = flags;
      state.rip = rip;
      cpu.dr[7] = dr7;
      cpu.segments.splice(0, segments.length, ...segments);
      for (const [index, value] of gprs.entries()) state.setGpr(index, value);
    };
  }

  /** Writes to one of the tables, and remembers what was there. */
  write(linear: bigint, size: 1 | 2 | 4, value: number): void {
    const cpu = this.#cpu;
    const at = wrapLinear(cpu, linear);
    const bytes = cpu.memory.readBytes(at, size, 'system');
    if (size === 1) cpu.memory.writeSystem8(at, value);
    else if (size === 2) cpu.memory.writeSystem16(at, value);
    else cpu.memory.writeSystem32(at, value);
    this.#written.push({ linear: at, bytes });
  }

  all(): void {
    const cpu = this.#cpu;
    this.#registers();
    cpu.flushTlb();
    cpu.changed();
    for (const { linear, bytes } of this.#written.reverse()) cpu.memory.writeBytes(linear, bytes, 'system');
  }
}
