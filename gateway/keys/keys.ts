// PORT: answers of keyed requests, and hints about running ones. Adapters: lmdb.ts (embedded), redis.ts.
//
// Law
// - The log is the truth: whether a key was used is read from reader state. This store holds only answers, candidates and running
//   hints; losing all of it loses answers, never exactly-once.
// - `claim` is a hint with the owner's lease: it ends with `release`, with `decide`, or when the lease is not renewed. The adapter renews it
//   by itself while the process lives, at most for `retentionMs`; `close` renews no more.
// - `decide` is set-if-absent: the first decision for (key, position) wins for ever; every caller gets the winner.
// - Answers and decisions live at least `retentionMs` after they were written.
// - A store that lost its content is noticed by its sentinel (random id, run id of the server, floor): the floor becomes the log's tail
//   (option `tail`), looked up after the loss was noticed; answers at or below the floor that are not stored are lost, and
//   `offer`/`decide` at or below it store nothing: `decide` says `isLost`, since another front may have sent another answer.
// - What cannot be read back (foreign bytes, a wrong type) was never written: a miss.
// - Every call rejects with GW_KEYS_UNAVAILABLE when the store cannot be reached within its own short time limit (breaker: 250 ms).

import type { Answer, EntryKey, Hash16 } from "../entry.ts";

export type KeyClaim =
  /** Nobody runs it as far as the store knows; the caller now does. */
  | { readonly kind: "fresh" }
  | { readonly kind: "running" }
  | { readonly kind: "done"; readonly decision: Decision }
  /** Known with another fingerprint. Never tells anything else. */
  | { readonly kind: "other" };

/** One replica's answer to a keyed entry. */
export interface Candidate {
  readonly replica: string;
  readonly digest: Hash16;
  /** Null when larger than `keys.maxAnswer`, or when another candidate with this digest brought the bytes. */
  readonly answer: Answer | null;
}

export interface Decision {
  readonly position: number;
  readonly digest: Hash16;
  readonly answer: Answer | null;
}

/** The winner, or that nobody can know it any more. */
export interface Decided extends Decision {
  /** True: the position is at or below the floor and no decision is stored. Nothing was decided, no answer may be sent (GW_ANSWER_LOST). */
  readonly isLost: boolean;
}

export interface Keys {
  readonly kind: "embedded" | "redis";
  claim(key: EntryKey, holder: string): Promise<KeyClaim>;
  /** Frees the hint of `holder` after a `not-executed` answer. */
  release(key: EntryKey, holder: string): Promise<void>;
  /** Puts one replica's candidate; the first of a replica stays. Candidates of one digest keep their bytes once. */
  offer(key: EntryKey, position: number, candidate: Candidate): Promise<void>;
  /** All candidates of a position, bytes filled in from their digest where they are kept. */
  candidates(key: EntryKey, position: number): Promise<readonly Candidate[]>;
  /**
   * Sets the winner if absent, and returns the winner. `answer` null: no bytes are kept for it; then a caller whose own answer has the
   * winner's digest may send that one, unless it `isLost`.
   */
  decide(key: EntryKey, decision: Decision): Promise<Decided>;
  /** The decision for the key at its highest decided position, if it is still kept. */
  decided(key: EntryKey): Promise<Decision | null>;
  /** Whether the store can be reached now, as far as is known. */
  isReachable(): boolean;
  close(): Promise<void>;
}
