/** A guest's instructions: in the trace while it runs, and around RIP in the report when it has crashed. */
import type { Observer } from '../hypervisor/backend.ts';
import { UnavailableError } from '../hypervisor/errors.ts';
import type { Vcpu } from '../hypervisor/vcpu.ts';
import type { Vm } from '../hypervisor/vm.ts';
import { loadIced } from '../open.ts';
import { Exit } from '../uapi/exit.ts';
import { codeAtRip, Disassembler, describeInstructions, type Instruction } from '../vmm/disassemble.ts';
import { describeException, type GuestException } from '../vmm/exceptions.ts';
import { describeRegisters, isReset } from '../vmm/registers.ts';
import type { Trace } from '../vmm/trace.ts';

/** Instructions that a report has before RIP, and from there on. */
const BEFORE = 8;
const FROM = 5;
/** Exceptions that it has: a triple fault is five at most, of one instruction. */
const EXCEPTIONS = 8;

export class Watch {
  readonly #machine: { readonly vm: Vm; readonly vcpu: Vcpu };
  readonly #recent: Instruction[] = [];
  readonly #lacked = new Set<string>();
  readonly #exceptions: GuestException[] = [];

  /** @param instructions whether each is traced, for which each must be known: in the simulator */
  constructor(
    machine: { readonly vm: Vm; readonly vcpu: Vcpu },
    trace: Trace | undefined,
    instructions: boolean,
  ) {
    this.#machine = machine;
    const { vcpu } = machine;
    if (vcpu.completed === undefined) return;
    const lacking = (what: string) => {
      this.#lacked.add(what);
      trace?.lacking(vcpu, what);
    };
    const exception = (vector: number, errorCode?: number, rip = 0n, address?: bigint) => {
      const raised = { vector, errorCode, rip, address };
      trace?.exception(vcpu, raised);
      this.#exceptions.push(raised);
      if (this.#exceptions.length > EXCEPTIONS) this.#exceptions.shift();
    };
    vcpu.observe({ lacking, exception, ...(instructions && trace ? this.#each(trace) : {}) });
  }

  #each(trace: Trace): Observer {
    const { vcpu } = this.#machine;
    const disassembler = new Disassembler(loadIced());
    trace.begin(vcpu);
    return {
      secondStage: (event) => trace.secondStage(vcpu, event),
      instruction: (rip, bytes, bits) => {
        const [instruction] = disassembler.decode(bytes, bits, rip);
        trace.instruction(vcpu, instruction!);
        this.#recent.push(instruction!);
        if (this.#recent.length > BEFORE) this.#recent.shift();
      },
    };
  }

  /** Registers and code of a guest that has crashed. */
  report(): string {
    const { vcpu } = this.#machine;
    if (isReset(vcpu)) {
      return (
        '  (KVM has reset the processor, as it does on AMD: its registers are gone. --trace shows the exits before;' +
        ' --backend sim tells which exceptions led to it.)'
      );
    }
    const parts = [describeRegisters(vcpu, '  '), ...this.#code(), ...this.#raised()];
    if (this.#lacked.size > 0) {
      parts.push(`  the simulator has no ${[...this.#lacked].join(', ')}: #UD was raised in the guest`);
    }
    return parts.join('\n');
  }

  /** What the simulator knows of the guest's exceptions. KVM tells of none. */
  #raised(): string[] {
    const { vcpu } = this.#machine;
    const led = vcpu.outcome === Exit.SHUTDOWN;
    if (vcpu.completed === undefined)
      return led ? ['  which exceptions led to it KVM does not tell; --backend sim does'] : [];
    if (this.#exceptions.length === 0) return [];
    const title = led ? '  the exceptions that led to it, or came before:' : '  the last exceptions:';
    return [title, ...this.#exceptions.map((exception) => `    ${describeException(exception)}`)];
  }

  #code(): string[] {
    const { vm, vcpu } = this.#machine;
    const disassembler = quietly();
    if (disassembler === undefined) return [];
    const { rip } = vcpu.getRegs();
    const before = this.#recent.at(-1)?.rip === rip ? this.#recent.slice(0, -1) : this.#recent;
    const code = codeAtRip(vm, vcpu, disassembler, FROM);
    return [
      ...(before.length > 0 ? ['  the last instructions:', describeInstructions(before, '    ')] : []),
      ...(typeof code === 'string'
        ? [`  no code to show from rip on: ${code}`]
        : ['  from rip on:', describeInstructions(code, '    ')]),
    ];
  }
}

/** KVM needs no disassembler, so a report does without it where there is none. */
function quietly(): Disassembler | undefined {
  try {
    return new Disassembler(loadIced());
  } catch (error) {
    if (error instanceof UnavailableError) return undefined;
    throw error;
  }
}
