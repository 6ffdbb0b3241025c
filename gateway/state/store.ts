// PORT: where a process keeps its reader state between runs. Adapter: lmdb.ts.
//
// Law
// - `commit` is atomic: head, key rows and exceptions of one batch are all there or none, whatever is killed. It need not survive power loss:
//   what is behind the log is folded again.
// - Reads are synchronous and see committed batches only; the fold keeps what is not committed yet in memory.

import type { Hash16 } from "../entry.ts";

/** What reader state knows of one key. */
export interface KeyRow {
  readonly id: Hash16;
  readonly fingerprint: Hash16;
  /** Position of its first occurrence. */
  readonly position: number;
  /** Log time of that, ms. */
  readonly timeMs: number;
  /** What the first occurrence is, and for a claim what became of it. */
  readonly kind: "entry" | "claimed" | "done" | "unknown";
}

/** What the fold decided against the plain reading of the log. */
export type Exception =
  /** A repeated or stale record: none of its items counts. */
  | { readonly kind: "dropped"; readonly sequence: number }
  /** A later occurrence of a key. */
  | { readonly kind: "duplicate"; readonly position: number; readonly of: number }
  | {
      readonly kind: "skip";
      readonly position: number;
      readonly reason: string;
      readonly maybeSent: readonly string[];
    };

export interface ProducerRow {
  readonly producer: string;
  readonly n: number;
  /** Hash of its last record, hex. */
  readonly hash: string;
  readonly sequence: number;
}

/** Everything but the key rows and exceptions; small. */
export interface StateHead {
  readonly version: 1;
  readonly epoch: string;
  readonly sequence: number;
  readonly hash: string;
  readonly entries: number;
  readonly logTimeMs: number;
  readonly keyCount: number;
  readonly producers: readonly ProducerRow[];
  /** Canonical policy texts by digest. */
  readonly rules: Readonly<Record<string, string>>;
  /** Parts of texts that are not complete yet: digest → base64 parts. */
  readonly parts: Readonly<Record<string, readonly (string | null)[]>>;
}

export interface StateBatch {
  readonly head: StateHead;
  /** Null: the key is forgotten. */
  readonly keys: ReadonlyMap<Hash16, KeyRow | null>;
  /** Positions of rows that are gone or replaced, so that the index by position stays exact. */
  readonly gonePositions: readonly number[];
  readonly exceptions: readonly Exception[];
}

export interface StateStore {
  head(): StateHead | null;
  key(id: Hash16): KeyRow | null;
  /** Up to `limit` rows above a position, oldest first. */
  oldestKeys(abovePosition: number, limit: number): readonly KeyRow[];
  /** Exceptions that concern the records from `fromSequence` to `toSequence`. */
  exceptions(fromSequence: number, toSequence: number): readonly Exception[];
  /** All skips, oldest first, at most `limit`. */
  skips(limit: number): readonly Extract<Exception, { kind: "skip" }>[];
  commit(batch: StateBatch): Promise<void>;
  close(): Promise<void>;
}
