// PORT: where a process keeps its reader state between runs. Adapter: lmdb.ts.
//
// Law
// - `commit` is atomic: head, key rows and exceptions of one batch are all there or none, whatever is killed. It need not survive power loss:
//   what is behind the log is folded again.
// - Reads are synchronous and see committed batches only; the fold keeps what is not committed yet in memory.
// - `reset` ends with the new state or, whatever is killed or rejects, with that or an empty store: never with parts of either.

import type { Hash16 } from "../entry.ts";
import { GatewayError } from "../errors.ts";
import { firstHash } from "../record.ts";

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
  | SkipRow;

/** An entry that is executed nowhere. */
export interface SkipRow {
  readonly kind: "skip";
  readonly position: number;
  readonly reason: string;
  readonly maybeSent: readonly string[];
}

export interface ProducerRow {
  readonly producer: string;
  readonly n: number;
  /** Hash of its last record, hex. */
  readonly hash: string;
  readonly sequence: number;
}

/** An entry's body that is kept beside the log. */
export interface BodyRow {
  /** Of the entry. */
  readonly position: number;
  readonly sha256: string;
}

/** Everything but the rows; small. Canonical: whoever folded the same log has the same text, producers and digests sorted. */
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
  readonly bodies: readonly BodyRow[];
}

/** Reader state at one record, as it travels. */
export interface StateAt {
  readonly head: StateHead;
  /** In position order. */
  readonly skips: readonly SkipRow[];
  /** In position order; may be read once. */
  readonly keys: AsyncIterable<KeyRow>;
}

/** Reader state at one record, held still while commits go on. What it holds stays on the disk until it is closed: not for long. */
export interface StateCut {
  readonly head: StateHead;
  readonly skips: readonly SkipRow[];
  /** In position order; leaves the event loop to others between two batches. Throws GW_STOPPING after `close`. */
  keys(): AsyncIterable<KeyRow>;
  /** May be called twice. */
  close(): void;
}

export interface StateStore {
  head(): StateHead | null;
  key(id: Hash16): KeyRow | null;
  /** Up to `limit` rows above a position, oldest first. */
  oldestKeys(abovePosition: number, limit: number): readonly KeyRow[];
  /** Exceptions that concern the records from `fromSequence` to `toSequence`. */
  exceptions(fromSequence: number, toSequence: number): readonly Exception[];
  /** All skips, oldest first, at most `limit`. */
  skips(limit: number): readonly SkipRow[];
  /** SHA-256 of the bodies that entries of `fromSequence` and later refer to. */
  bodies(fromSequence: number): Promise<ReadonlySet<string>>;
  commit(batch: StateBatch): Promise<void>;
  /** What was committed last. Throws when nothing ever was. */
  cut(): StateCut;
  /**
   * Replaces everything by `state`, as durable as a commit; the fold goes on behind it. Before anything reads this store. Rejects with what its rows
   * throw, and with GW_LOG_CORRUPT when they are not those that the head tells of. */
  reset(state: StateAt): Promise<void>;
  /** Forgets what concerns records below `firstSequence` alone; skips stay. */
  truncate(firstSequence: number): Promise<void>;
  /** Closes its cuts as well. */
  close(): Promise<void>;
}

/**
 * What a new log begins from when the one of `head` was lost: a new chain under a new epoch; keys, rules and counts go on. Every position
 * of the new log is above those in the rows. */
export function reborn(head: StateHead, epoch: string, firstSequence: number): StateHead {
  if (firstSequence <= head.sequence)
    throw new GatewayError(
      "GW_INTERNAL",
      `a new log cannot begin at record ${firstSequence}: its state is that of record ${head.sequence}`,
    );
  return { ...head, epoch, sequence: firstSequence - 1, hash: firstHash.toString("hex"), producers: [], parts: {} };
}
