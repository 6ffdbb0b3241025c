// Key rows as bytes, 49 each, in position order: the one form in which they travel, in a snapshot's `keys` and in a base. Read for ever.
//
// Row (big endian): id[16], fingerprint[16], position f64, time f64, kind u8.

import type { Hash16 } from "../entry.ts";
import type { KeyRow } from "./store.ts";

export const keyRowBytes = 49;
const idBytes = 16;
const kinds = ["entry", "claimed", "done", "unknown"] as const;
/** Of one piece of a stream: just below 64 KiB. */
const rowsAtOnce = 1337;

/** Pieces of whole rows. Throws RangeError on rows that are not in position order. */
export async function* encodeKeyRows(rows: AsyncIterable<KeyRow>): AsyncGenerator<Buffer> {
  let piece = Buffer.allocUnsafe(rowsAtOnce * keyRowBytes);
  let at = 0;
  let last = -1;
  for await (const row of rows) {
    if (!(row.position > last)) throw new RangeError(`the key row at ${row.position} comes after that at ${last}`);
    last = row.position;
    at += piece.write(row.id, at, idBytes, "hex");
    at += encodeKeyValue(row).copy(piece, at);
    if (at < piece.length) continue;
    yield piece;
    piece = Buffer.allocUnsafe(rowsAtOnce * keyRowBytes);
    at = 0;
  }
  if (at > 0) yield piece.subarray(0, at);
}

/** Rows from pieces of any size. Throws what `damaged` makes of the reason for bytes that `encodeKeyRows` did not write. */
export async function* decodeKeyRows(
  pieces: AsyncIterable<Uint8Array>,
  damaged: (why: string) => Error,
): AsyncGenerator<KeyRow> {
  let rest: Buffer = Buffer.alloc(0);
  let last = -1;
  for await (const piece of pieces) {
    const bytes = rest.length === 0 ? Buffer.from(piece.buffer, piece.byteOffset, piece.length) : joined(rest, piece);
    let at = 0;
    for (; at + keyRowBytes <= bytes.length; at += keyRowBytes) {
      const id = bytes.toString("hex", at, at + idBytes);
      const row = decodeKeyValue(id, bytes.subarray(at + idBytes, at + keyRowBytes));
      if (row === null || !Number.isSafeInteger(row.position) || row.position <= last)
        throw damaged(`the key row ${id} is none, or not in its place`);
      last = row.position;
      yield row;
    }
    // A copy: the piece may be used again by whoever gave it.
    rest = Buffer.from(bytes.subarray(at));
  }
  if (rest.length > 0) throw damaged(`${rest.length} bytes are left behind the last key row`);
}

const joined = (rest: Buffer, piece: Uint8Array): Buffer => Buffer.concat([rest, piece]);

/** Everything but the id, as a store keeps it under the id. */
export function encodeKeyValue(row: KeyRow): Buffer {
  const bytes = Buffer.allocUnsafe(keyRowBytes - idBytes);
  bytes.write(row.fingerprint, 0, 16, "hex");
  bytes.writeDoubleBE(row.position, 16);
  bytes.writeDoubleBE(row.timeMs, 24);
  bytes[32] = kinds.indexOf(row.kind);
  return bytes;
}

/** Null: no kind of row that is known. */
export function decodeKeyValue(id: Hash16, bytes: Buffer): KeyRow | null {
  const kind = kinds[bytes[32] as number];
  if (kind === undefined) return null;
  return {
    id,
    fingerprint: bytes.toString("hex", 0, 16),
    position: bytes.readDoubleBE(16),
    timeMs: bytes.readDoubleBE(24),
    kind,
  };
}
