/** The loop of a command's guest, with what each of them finds: a serial port, a way to end, conversions of memory. */
import type { ExitHandler, Vcpu } from '../hypervisor/vcpu.ts';
import { DebugExit, Serial } from '../vmm/devices.ts';
import { MemoryFaultService } from '../vmm/memory-faults.ts';
import { RunLoops } from '../vmm/run-loops.ts';
import type { Trace } from '../vmm/trace.ts';
import type { OpenGuest } from './guest.ts';
import { serialOutput } from './serial.ts';

/** What their states are called in a snapshot: the serial port's, and which of several vCPUs have halted. */
const SERIAL = 'serial';
const HALTED = 'halted';

interface GuestLoop {
  readonly loop: RunLoops;
  /** Of the VMM's devices, by name, for a snapshot. */
  readonly state: () => Record<string, Uint8Array>;
  readonly debugExit: DebugExit;
  readonly faults: MemoryFaultService;
}

export interface LoopOptions {
  /** Who looks at an exit before the memory-fault service does. */
  readonly handlers?: readonly ExitHandler[];
  /** Where serial output goes: stdout without it. */
  readonly output?: NodeJS.WritableStream;
  readonly trace?: Trace | undefined;
  /** The clock of a recorded run. */
  readonly now?: (() => number) | undefined;
}

export function guestLoop(
  { vm, vcpus, devices }: Pick<OpenGuest, 'vm' | 'vcpus' | 'devices'>,
  { handlers = [], output = process.stdout, trace, now }: LoopOptions = {},
): GuestLoop {
  const faults = new MemoryFaultService(vm, { trace: (event) => trace?.memory(event) });
  const { send, flush } = serialOutput(output);
  const options = {
    handlers: [...handlers, faults],
    onSlice: flush,
    ...(now && { now }),
    ...(trace ? { onExit: (vcpu: Vcpu) => trace.exit(vcpu) } : {}),
  };
  const loop = new RunLoops(vcpus, options, [...(devices.get(HALTED) ?? [])]);
  const serial = Serial.attach(loop.ports, send);
  const registers = devices.get(SERIAL);
  if (registers !== undefined) serial.restore(registers);
  const debugExit = DebugExit.attach(loop.ports, (value) => loop.stop(value));
  const state = () => ({
    [SERIAL]: serial.state,
    ...(loop.halted.length > 0 && { [HALTED]: Uint8Array.from(loop.halted) }),
  });
  return { loop, state, debugExit, faults };
}
