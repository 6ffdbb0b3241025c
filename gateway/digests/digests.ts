// PORT: what every replica answered to every entry, as digests. Adapters: lmdb.ts, jetstream.ts.
//
// Law
// - Rows are appended in batches by the owner of the replica. A crash may lose the last batches, even of an append that resolved
//   (an entry without a row is "unverified", never "equal").
// - A row appended again is one row, with the version it was appended with last.
// - Rows below the log's first position may be dropped at any time.
// - Bytes that are not what was written are GW_LOG_CORRUPT, never rows: a wrong position would call an entry answered.

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
