/**
 * Who is told of ioctls and exits. The seam asks one question before each, whether anybody listens; that imports nothing
 * of Node's, whose diagnostics channels have this very shape.
 */
import type { KvmExit } from '../uapi/exits.ts';

/** An ioctl that was made, by whatever method. */
export interface IoctlMessage {
  /** The kernel's name. */
  readonly name: string;
  /** What it was issued on: `KVM`, `VM`, `vCPU 0`, `guest_memfd`. */
  readonly on: string;
  /**
   * What the kernel was given or has answered: the struct's fields, a list's elements, an integer, bytes. Undefined where it
   * takes nothing.
   */
  readonly argument: unknown;
  /** What the kernel returned: 0 or more, or a negated errno. A file descriptor's number is not told: 0 stands for it. */
  readonly result: number;
  /** Microseconds that it took. */
  readonly us: number;
}

/** A KVM_RUN that has ended. */
export interface ExitMessage {
  /** The vCPU's number. */
  readonly vcpu: number;
  /** What ended it, with every field. */
  readonly exit: KvmExit;
  /** Microseconds in KVM_RUN. */
  readonly us: number;
}

/** Somebody who may listen: a channel of node:diagnostics_channel, or what looks like one. */
export interface DiagnosticsChannel<Message> {
  /** Whether anybody does. Asked before each ioctl and each run, so it must be cheap. */
  readonly hasSubscribers: boolean;
  /** Tells them. It must not throw. */
  publish(message: Message): void;
}

/** Where ioctls and exits are told. */
export interface Diagnostics {
  /** Of each ioctl but KVM_RUN. */
  readonly ioctl: DiagnosticsChannel<IoctlMessage>;
  /** Of each KVM_RUN. */
  readonly exit: DiagnosticsChannel<ExitMessage>;
}

const nobody = { hasSubscribers: false, publish() {} };

/** Those of this thread. */
export const diagnostics: { ioctl: Diagnostics['ioctl']; exit: Diagnostics['exit'] } = {
  ioctl: nobody,
  exit: nobody,
};

/**
 * Tells the channels of each ioctl and exit of this thread from now on. `vmexit` does it with the channels `vmexit:ioctl` and
 * `vmexit:exit` of node:diagnostics_channel; where there is no Node, `vmexit/sim` has nobody listening until this is called.
 */
export function tellDiagnostics(channels: Diagnostics): void {
  diagnostics.ioctl = channels.ioctl;
  diagnostics.exit = channels.exit;
}
