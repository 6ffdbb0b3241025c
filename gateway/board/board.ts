// PORT: what all gateways of a service agree on, as small named documents: who the copies are, who records, which copies are live.
// Adapters: file.ts (one gateway), jetstream.ts (KV).
//
// Law
// - A document is a JSON value. Names are words of a-z, 0-9 and "-", of at most 32 characters.
// - `save` is a compare-and-set on the revision: it succeeds only if nobody saved since that revision was read (0: never saved).
// - `saved` is durable like the log. `conflict` is certain: not saved. `unknown`: it may be saved; the caller loads again and sees
//   whether its value is there. A decision is made only by a save that succeeded, or by what a load gave.
// - `load` never gives a value older than one whose `save` had resolved before the call, also on several servers, and none that a
//   crash could still take back.
// - Revisions of one document only grow, also over restarts. What a crash leaves of a save is the former value or the new one.
// - A value that does not read back exactly as it was saved is none: GW_BOARD_LOST, until a person takes it away.

import type { Saved } from "../saved.ts";

export type { Saved } from "../saved.ts";

export interface Posted {
  readonly value: unknown;
  readonly revision: number;
}

export interface Board {
  /** Null: never saved. Rejects with GW_BOARD_LOST (unreadable, or the board itself is gone) and GW_LOG_UNAVAILABLE (away, closed). */
  load(name: string): Promise<Posted | null>;
  /** Rejects only when the board is closed (GW_LOG_UNAVAILABLE). */
  save(name: string, value: unknown, revision: number): Promise<Saved>;
  /** May be called twice. */
  close(): Promise<void>;
}
