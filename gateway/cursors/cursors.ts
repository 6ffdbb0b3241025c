// PORT: what is durably known of each replica by all gateways. Adapters: lmdb.ts, jetstream.ts (KV).
//
// Law
// - `save` is a compare-and-set on the revision: it succeeds only if nobody saved since that revision was read (0: never saved).
// - `saved` is durable like the log. `conflict` is certain: not saved. `unknown`: it may be saved; the caller loads again and
//   recognises its own nonce. A decision is made only by a save that succeeded.
// - `load` never returns a value older than one whose `save` had resolved before the call (KV without direct reads).
// - Revisions of one replica only grow, also over restarts of the store.

import { GatewayError } from "../errors.ts";
import type { Saved } from "../saved.ts";

export type { Saved } from "../saved.ts";

export interface Cursor {
  readonly version: 1;
  readonly replica: string;
  /** Which gateway feeds the replica: its name and its random boot id (32 hex digits). Null: nobody. */
  readonly owner: { readonly name: string; readonly boot: string } | null;
  /** One life of the backend: boot identity that its launcher gave it. Empty before the first. */
  readonly incarnation: string;
  /** The log's epoch that W, U and H belong to. */
  readonly epoch: string;
  /** Everything up to this position is finished on the replica. 0 before the first entry. */
  readonly applied: number;
  /** How many entries the whole records up to `applied` hold: lag is counted in entries, never in positions. */
  readonly entries: number;
  /** Running hash of the log after the record that contains `applied`, lower-case hex. */
  readonly hash: string;
  /** clean: nothing in flight. busy: anything in (applied, bound] may have been sent. */
  readonly state: "clean" | "busy";
  /** Dispatch bound U: nothing above it was ever sent. Equal to `applied` when clean. */
  readonly bound: number;
  /** Random, written at clean → busy: the intents that count carry it. */
  readonly nonce: string;
  /** Replica state that must survive a restart; null when it follows from the rest. */
  readonly standing: {
    /** restoring: its state is being replaced and is nothing that could be fed. */
    readonly state: "held" | "quarantined" | "draining" | "restoring";
    readonly reason: string;
    /** It is to be made anew, whoever owns it then. */
    readonly rebuild?: boolean | undefined;
  } | null;
  /** It came back from an end that we did not bring about, and its state has not been compared since. */
  readonly isSuspect: boolean;
  /** Answers up to here that were published under its name were those of a state that was replaced since. 0: it never was. */
  readonly restored: number;
  /** Entries whose outcome is unknown and that wait for a person. */
  readonly unknown: readonly number[];
  /** Entries above `applied` that are known to be finished (a held replica, or order keys). Bounded by the in-flight limit. */
  readonly finished: readonly number[];
  /** This position is never sent by the owner from here on (a skip is being agreed). */
  readonly barred: number | null;
  /** Slowest answer seen of each rule, ms. */
  readonly slowestMs: Readonly<Record<string, number>>;
  /** `version:` of the backend, as configured. */
  readonly backendVersion: string;
}

export interface StoredCursor {
  readonly cursor: Cursor;
  readonly revision: number;
}

/** GW_CURSOR_LOST: there is a value that cannot be read. */
export class CursorLostError extends GatewayError {
  /** What a `save` over it must name, once the replica was verified or rebuilt. */
  readonly revision: number;

  constructor(message: string, revision: number, cause?: unknown) {
    super("GW_CURSOR_LOST", message, cause === undefined ? {} : { cause });
    this.revision = revision;
  }
}

export interface Cursors {
  /** Null: nothing was ever saved for this replica. Rejects with CursorLostError (unreadable) or GW_LOG_UNAVAILABLE. */
  load(replica: string): Promise<StoredCursor | null>;
  save(cursor: Cursor, revision: number): Promise<Saved>;
  /** Names of all replicas with a cursor. */
  list(): Promise<readonly string[]>;
  close(): Promise<void>;
}
