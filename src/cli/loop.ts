/** The loop of a command's guest, with what each of them finds: a serial port, a way to end, conversions of memory. */
import type { ExitHandler } from '../hypervisor/vcpu-start.ts';
import { DebugExit, Serial } from '../vmm/devices.ts';
import { MemoryFaultService } from '../vmm/memory-faults.ts';
import { RunLoop } from '../vmm/run-loop.ts';
import type { Trace } from '../vmm/trace.ts';
import { type OpenGuest, SERIAL } from './guest.ts';
import { serialOutput } from './serial.ts';

interface GuestLoop {
  readonly loop: RunLoop;
  readonly serial: Serial;
  readonly debugExit: DebugExit;
  readonly faults: MemoryFaultService;
}

export interface LoopOptions {
  /** Who looks at an exit before the memory-fault service does. */
  readonly handlers?: readonly ExitHandler[];
  /** Where serial output goes: stdout without it. */
  readonly output?: NodeJS.WritableStream;
  readonly trace?: Trace | undefined;
}

export function guestLoop(
  { vm, vcpu, devices }: Pick<OpenGuest, 'vm' | 'vcpu' | 'devices'>,
  { handlers = [], output = process.stdout, trace }: LoopOptions = {},
): GuestLoop {
  const faults = new MemoryFaultService(vm, { trace: (event) => trace?.memory(event) });
  const { send, flush } = serialOutput(output);
  const loop = new RunLoop(vcpu, {
    handlers: [...handlers, faults],
    onSlice: flush,
    ...(trace ? { onExit: (vcpu) => trace.exit(vcpu) } : {}),
  });
  const serial = Serial.attach(loop.ports, send);
  const registers = devices.get(SERIAL);
  if (registers !== undefined) serial.restore(registers);
  const debugExit = DebugExit.attach(loop.ports, (value) => loop.stop(value));
  return { loop, serial, debugExit, faults };
}
