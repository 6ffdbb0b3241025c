// PORT: reader state at the beginning of a log that was truncated, or begun anew after a loss: what a process that knows nothing starts from.
// Adapters: file.ts (beside the embedded log), jetstream.ts (an object beside the stream).
//
// Law
// - `save` resolves when the base is as durable as the log, and replaces the former one at once; a crash leaves the former or the new one, whole.
//   The log is truncated only after that, and never past the base's sequence + 1.
// - `save` never goes back: a base below the stored one, or a second saver at the same time, is GW_CONFLICT; the stored one stays.
// - `load` verifies what it reads (a hash over all of it): damage is GW_LOG_CORRUPT, never another base. It yields rows in position order.

import type { KeyRow, SkipRow, StateHead } from "../state/store.ts";

export interface Base {
  readonly head: StateHead;
  readonly skips: readonly SkipRow[];
  /** Oldest first; may be read once. */
  readonly keys: AsyncIterable<KeyRow>;
}

export interface Bases {
  save(base: Base): Promise<void>;
  /** Null: the log was never truncated. */
  load(): Promise<Base | null>;
  close(): Promise<void>;
}
