// PORT: what every replica answered to every entry, as digests. Adapters: lmdb.ts, jetstream.ts.
//
// Law
// - Rows are appended in batches by the owner of the replica and are as durable as the log; losing the last batch in a crash is allowed
//   (an entry without a row is "unverified", never "equal").
// - Rows below the log's first position may be dropped at any time.

import type { Hash16 } from "../entry.ts";

export interface DigestRow {
  readonly epoch: string;
  readonly position: number;
  readonly replica: string;
  readonly incarnation: string;
  readonly backendVersion: string;
  /** Digest of the rules the entry was treated by. */
  readonly rules: string;
  /** Of the whole answer as the rule compares it. */
  readonly digest: Hash16;
  /** False for an answer to a second send: it never enters agreement. */
  readonly isFirstSend: boolean;
}

export interface Digests {
  append(rows: readonly DigestRow[]): Promise<void>;
  /** Rows with `from <= position <= to`, in position order. */
  read(from: number, to: number): AsyncIterable<DigestRow>;
  truncate(firstPosition: number): Promise<void>;
  close(): Promise<void>;
}
