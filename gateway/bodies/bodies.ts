// PORT: bodies above `limits.inline`, kept beside the log with the log's durability. Adapters: lmdb.ts, jetstream.ts.
//
// Law
// - `put` resolves when the whole body is durable, and rejects without leaving a readable body otherwise (what it leaves is garbage
//   that `sweep` removes). Equal bodies may be stored once.
// - `read` yields the bytes that were put, verified against the hash before the last chunk is yielded, or throws.
// - Chunks are at most `chunkBytes` long; nothing ever holds a whole body in memory.

import type { BodyRef } from "../entry.ts";
import { GatewayError } from "../errors.ts";

export const chunkBytes = 256 * 1024;

export interface Bodies {
  /** Stores a body. Rejects with GW_BODY_TOO_LARGE above `limitBytes`, GW_LOG_FULL, GW_LOG_UNAVAILABLE. */
  put(body: AsyncIterable<Buffer>, limitBytes: number): Promise<BodyRef>;
  read(ref: BodyRef): AsyncIterable<Buffer>;
  /**
   * Removes bodies that no entry at or above `firstPosition` refers to: those last put before `olderThanMs` (wall clock, ms since
   * 1970) and not in `kept` (sha256). Resolves with their number. A body put again at the same time stays, or is put anew.
   */
  sweep(kept: ReadonlySet<string>, olderThanMs: number): Promise<number>;
  close(): Promise<void>;
}

/** Pieces of exactly `bytes` but for the last, however they come in. */
export async function* chunked(body: AsyncIterable<Buffer>, bytes: number): AsyncGenerator<Buffer> {
  let parts: Buffer[] = [];
  let partsBytes = 0;
  for await (const piece of body) {
    for (let at = 0; at < piece.length;) {
      const part = piece.subarray(at, at + bytes - partsBytes);
      parts.push(part);
      partsBytes += part.length;
      at += part.length;
      if (partsBytes < bytes) continue;
      yield Buffer.concat(parts, partsBytes);
      parts = [];
      partsBytes = 0;
    }
  }
  if (partsBytes > 0) yield Buffer.concat(parts, partsBytes);
}

export const bodyTooLarge = (limitBytes: number): GatewayError =>
  new GatewayError("GW_BODY_TOO_LARGE", `The request's body is larger than ${limitBytes} bytes; it was not kept.`);

export const bodyUnreadable = (ref: BodyRef, why: string): GatewayError =>
  new GatewayError("GW_LOG_CORRUPT", `The body ${ref.sha256} of ${ref.sizeBytes} bytes cannot be read: ${why}.`);
