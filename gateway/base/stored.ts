// A base as bytes, the same in every place. Versioned, read for ever, and worthless unless all of it is what was written.
//
// Layout (big endian): "GWB" + version, u32 length of the head, the head (JSON: head, skips), head.keyCount key rows of 49 bytes,
// SHA-256 over everything before it.

import { createHash } from "node:crypto";
import { GatewayError } from "../errors.ts";
import { decodeKeyRows, encodeKeyRows, keyRowBytes } from "../state/keyrows.ts";
import type { KeyRow, SkipRow, StateHead } from "../state/store.ts";
import type { Base } from "./base.ts";

const magic = Buffer.from("GWB\x01", "latin1");
const prefixBytes = 8;
const hashBytes = 32;
/** Of policies, producers and skips: above it a length is damage, and is not read into memory. */
const headBytesMax = 256 * 1024 * 1024;

/** Rejects with GW_INTERNAL when there are not as many rows as the head tells of: such a base could not be begun with. */
export async function* encodeBase(base: Base): AsyncGenerator<Buffer> {
  const hash = createHash("sha256");
  const json = Buffer.from(JSON.stringify({ head: base.head, skips: base.skips }), "utf8");
  const prefix = Buffer.alloc(prefixBytes);
  magic.copy(prefix);
  prefix.writeUInt32BE(json.length, magic.length);
  const head = Buffer.concat([prefix, json]);
  hash.update(head);
  yield head;
  let rowsBytes = 0;
  for await (const piece of encodeKeyRows(base.keys)) {
    rowsBytes += piece.length;
    hash.update(piece);
    yield piece;
  }
  const count = rowsBytes / keyRowBytes;
  if (count !== base.head.keyCount)
    throw new GatewayError(
      "GW_INTERNAL",
      `the state at record ${base.head.sequence} tells of ${base.head.keyCount} keys and has ${count}: it was not kept as a base`,
    );
  yield hash.digest();
}

/** What is known of a stored base once all of it was read. */
export interface VerifiedBase {
  readonly head: StateHead;
  readonly skips: readonly SkipRow[];
  /** Before the key rows. */
  readonly headBytes: number;
  readonly sizeBytes: number;
  /** Over everything before it. */
  readonly hash: Buffer;
}

/** Reads all of a stored base. Throws GW_LOG_CORRUPT unless it is one. `place` reads "the base in /data/base". */
export async function verifyBase(pieces: AsyncIterable<Buffer>, place: string): Promise<VerifiedBase> {
  const hash = createHash("sha256");
  const begin: Buffer[] = [];
  let beginBytes = 0;
  let beginNeeded = prefixBytes;
  // The last bytes so far: they are the hash if nothing comes after them.
  let end: Buffer = Buffer.alloc(0);
  let sizeBytes = 0;
  for await (const piece of pieces) {
    sizeBytes += piece.length;
    if (beginBytes < beginNeeded) {
      begin.push(Buffer.from(piece));
      beginBytes += piece.length;
      if (beginNeeded === prefixBytes && beginBytes >= prefixBytes)
        beginNeeded += headLength(Buffer.concat(begin), place);
    }
    const all = Buffer.concat([end, piece]);
    hash.update(all.subarray(0, Math.max(0, all.length - hashBytes)));
    end = Buffer.from(all.subarray(Math.max(0, all.length - hashBytes)));
  }
  if (end.length < hashBytes || !hash.digest().equals(end)) throw damagedBase(place, "its bytes have changed");
  const { head, skips } = parseHead(Buffer.concat(begin).subarray(prefixBytes, beginNeeded), place);
  if (sizeBytes !== beginNeeded + head.keyCount * keyRowBytes + hashBytes)
    throw damagedBase(place, `it tells of ${head.keyCount} keys and has another length`);
  return { head, skips, headBytes: beginNeeded, sizeBytes, hash: end };
}

/** The rows of a base that was verified, from its bytes once more. Throws GW_LOG_CORRUPT at the end when they are others by now. */
export async function* keysOfBase(
  pieces: AsyncIterable<Buffer>,
  verified: VerifiedBase,
  place: string,
): AsyncGenerator<KeyRow> {
  const hash = createHash("sha256");
  const rowsEnd = verified.sizeBytes - hashBytes;
  const rows = async function* (): AsyncGenerator<Buffer> {
    let at = 0;
    for await (const piece of pieces) {
      const from = Math.max(0, verified.headBytes - at);
      const to = Math.min(piece.length, rowsEnd - at);
      hash.update(piece.subarray(0, Math.max(0, to)));
      at += piece.length;
      if (from < to) yield piece.subarray(from, to);
    }
  };
  yield* decodeKeyRows(rows(), (why) => damagedBase(place, why));
  if (!hash.digest().equals(verified.hash)) throw damagedBase(place, "its bytes changed while it was read");
}

function headLength(bytes: Buffer, place: string): number {
  if (!bytes.subarray(0, magic.length).equals(magic))
    throw damagedBase(place, "it is none, or one of a version that is not known here");
  const length = bytes.readUInt32BE(magic.length);
  if (length > headBytesMax) throw damagedBase(place, "the length of its head has changed");
  return length;
}

function parseHead(bytes: Buffer, place: string): { head: StateHead; skips: readonly SkipRow[] } {
  const { head, skips } = JSON.parse(bytes.toString("utf8")) as { head: StateHead; skips: readonly SkipRow[] };
  if (head.version !== 1) throw damagedBase(place, "its head is of a version that is not known here");
  return { head, skips };
}

export const damagedBase = (place: string, why: string, cause?: unknown): GatewayError =>
  new GatewayError(
    "GW_LOG_CORRUPT",
    `${place} cannot be begun with: ${why}. A gateway with a data folder of its own goes on; a new one needs it: bring it back, or recover from a snapshot.`,
    { cause },
  );

/** Of what is stored already; null: nothing is, or what is cannot be read, and then a new base is only better. */
export function refuseOlder(base: Base, storedSequence: number | null): void {
  if (storedSequence !== null && base.head.sequence < storedSequence)
    throw new GatewayError(
      "GW_CONFLICT",
      `a base at record ${base.head.sequence} would stand before the one that is kept, at record ${storedSequence}: it was not kept`,
    );
}
