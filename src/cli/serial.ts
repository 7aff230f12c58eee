/** The guest's serial output on a stream of this process: byte for byte, a line at a time. */

const NEWLINE = 0x0a;
const BUFFER = 4096;

export interface SerialOutput {
  /** Takes a byte. */
  readonly send: (byte: number) => void;
  /** Writes what there is: a prompt has no end of line. */
  readonly flush: () => void;
}

/** A system call a line instead of one a byte. */
export function serialOutput(stream: NodeJS.WritableStream): SerialOutput {
  const buffer = new Uint8Array(BUFFER);
  let length = 0;
  const flush = () => {
    // A copy: a stream that is slow keeps what it was given.
    if (length > 0) stream.write(buffer.slice(0, length));
    length = 0;
  };
  const send = (byte: number) => {
    buffer[length++] = byte;
    if (byte === NEWLINE || length === BUFFER) flush();
  };
  return { send, flush };
}
