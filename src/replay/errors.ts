/** What a recording refuses, and how a replay fails. */
import { VmexitError } from '../hypervisor/errors.ts';

/** Why a replay cannot go on. */
export type ReplayFailure =
  /** The VMM has made another call than the recorded one, or has given something else with it. */
  | 'diverged'
  /** The recording ends here: it was cut off, or the VMM goes on where the recorded one had ended. */
  | 'ended'
  /** The VMM does not make the call that comes next. */
  | 'stalled'
  /** The file is none, of another version, or was altered. */
  | 'damaged';

/** A replay that cannot go on: code ERR_KVM_REPLAY. */
export class ReplayError extends VmexitError {
  /** `ReplayError`. */
  override readonly name = 'ReplayError';
  /** What has happened. */
  readonly failure: ReplayFailure;
  /** The number of the record, from 1; 0 where it is about the file. */
  readonly sequence: number;
  /** What the recording has there, in words. */
  readonly expected: string | undefined;
  /** What the VMM did instead, in words. */
  readonly came: string | undefined;

  /** @param message what has happened, where, and how */
  constructor(
    failure: ReplayFailure,
    message: string,
    {
      sequence = 0,
      expected,
      came,
      ...options
    }: ErrorOptions & {
      readonly sequence?: number;
      readonly expected?: string | undefined;
      readonly came?: string | undefined;
    } = {},
  ) {
    super('ERR_KVM_REPLAY', message, options);
    this.failure = failure;
    this.sequence = sequence;
    this.expected = expected;
    this.came = came;
  }
}

/** The error for what a recording cannot have faithfully. */
export const unrecordable = (what: string): VmexitError =>
  new VmexitError(
    'ERR_KVM_UNRECORDABLE',
    `a recording cannot have ${what}; open the hypervisor without \`record\``,
  );
