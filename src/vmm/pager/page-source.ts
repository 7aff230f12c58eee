/** What a source is to who takes its pages, once it is open: source.ts names and opens it. */

/** Pages are numbered from 0, through all of the pager's memories in their order. */
export type PageSource = PullSource | PushSource;

/** Pages in a row. */
export interface Run {
  readonly first: number;
  readonly count: number;
}

/** Asked for pages. */
export interface PullSource {
  /** The contents of `count` pages: exactly so many bytes. */
  read(first: number, count: number): Uint8Array | Promise<Uint8Array>;
  /** The pages that are not all zeroes, where that is known: the others are never asked for. */
  runs?(): Iterable<Run>;
  close(): void;
}

/** Sends all pages in an order of its own. */
export interface PushSource {
  /**
   * Begins. `deliver` takes whole pages, and whether they come because of want(); one that is there already is dropped.
   * `end` is called once, with what went wrong; without an error each page has been delivered.
   */
  start(
    deliver: (first: number, bytes: Uint8Array, asked?: boolean) => void,
    end: (error?: Error) => void,
  ): void;
  /** Somebody waits for this page. */
  want?(page: number): void;
  close(): void;
}
