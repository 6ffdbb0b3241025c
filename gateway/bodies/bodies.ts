// PORT: bodies above `limits.inline`, kept beside the log with the log's durability. Adapters: lmdb.ts, jetstream.ts.
//
// Law
// - `put` resolves when the whole body is durable, and rejects without leaving a readable body otherwise (what it leaves is garbage
//   that `sweep` removes). Equal bodies may be stored once.
// - `read` yields the bytes that were put, verified against the hash before the last chunk is yielded, or throws.
// - Chunks are at most `chunkBytes` long; nothing ever holds a whole body in memory.

import type { BodyRef } from "../entry.ts";

export const chunkBytes = 256 * 1024;

export interface Bodies {
  /** Stores a body. Rejects with GW_BODY_TOO_LARGE above `limitBytes`, GW_LOG_FULL, GW_LOG_UNAVAILABLE. */
  put(body: AsyncIterable<Buffer>, limitBytes: number): Promise<BodyRef>;
  read(ref: BodyRef): AsyncIterable<Buffer>;
  /** Removes bodies that no entry at or above `firstPosition` refers to: those put before `olderThanMs` and not in `kept` (sha256). */
  sweep(kept: ReadonlySet<string>, olderThanMs: number): Promise<number>;
  close(): Promise<void>;
}
