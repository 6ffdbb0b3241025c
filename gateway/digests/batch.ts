// Digest rows as bytes: batches of one bucket of positions each, checked by a CRC, read back in position order and each row once.
//
// Replicas that replay append rows of old positions long after those of new ones, so the place of a batch says nothing: a store
// keeps batches by bucket, and who reads a bucket needs all of its batches, in the order they were appended, and nothing else.

import { crc32 } from "node:zlib";

import { sequenceOf } from "../entry.ts";
import { GatewayError } from "../errors.ts";
import type { DigestRow } from "./digests.ts";

export interface Batch {
  readonly bucket: number;
  /** How many rows are in it. */
  readonly rows: number;
  readonly bytes: Buffer;
}

/** Records a bucket; small enough that all batches of one fit into memory to be sorted. */
const bucketRecords = 64;
export const bucketOf = (position: number): number => Math.floor(sequenceOf(position) / bucketRecords);

/** At 35 bytes a row and five strings a row at most, so that every index into the table fits into 16 bits. */
const rowsMaxOfAll = 8192;

/** The rows, grouped by bucket, at most `rowsMax` a batch. Rows of one bucket keep their order. */
export function batchesOf(rows: readonly DigestRow[], rowsMax: number): Batch[] {
  const buckets = new Map<number, DigestRow[]>();
  let bucket = -1;
  let group: DigestRow[] = [];
  for (const row of rows) {
    const its = bucketOf(row.position);
    if (its !== bucket) {
      bucket = its; // neighbours mostly share it: one look-up a change, not a row
      group = buckets.get(bucket) ?? [];
      buckets.set(bucket, group);
    }
    group.push(row);
  }
  const size = Math.min(rowsMax, rowsMaxOfAll);
  const batches: Batch[] = [];
  for (const [bucket, all] of buckets) {
    for (let at = 0; at < all.length; at += size) {
      const part = all.length <= size ? all : all.slice(at, at + size);
      batches.push({ bucket, rows: part.length, bytes: encode(part) });
    }
  }
  return batches;
}

/**
 * Rows with `from <= position <= to` of all batches of a bucket, given in the order of their appends: by position, and those of one
 * position in that order. A row appended again is one row, as it was appended last. `place` names the store in errors.
 * Throws GW_LOG_CORRUPT for bytes that are not what `batchesOf` made.
 */
export function* rowsOf(place: string, batches: readonly Buffer[], from: number, to: number): Generator<DigestRow> {
  const found = batches.flatMap((bytes) => decode(place, bytes, from, to)).sort((a, b) => a.position - b.position);
  // Ends after the last position.
  for (let at = 0, end = 0; at < found.length; at = end) {
    const first = found[at] as Stored;
    while (found[end]?.position === first.position) end++;
    if (end - at === 1) {
      yield rowOf(first);
      continue;
    }
    const once = new Map<string, DigestRow>();
    for (const row of found.slice(at, end).map(rowOf)) once.set(identityOf(row), row);
    yield* once.values();
  }
}

/** All but the version: it only tells whether rows may be compared. */
const identityOf = ({ replica, epoch, incarnation, rules, digest, isFirstSend }: DigestRow): string =>
  `${replica}\n${epoch}\n${incarnation}\n${rules}\n${digest}\n${isFirstSend}`;

// A batch: format (1 byte), CRC-32 of what follows (4), bytes of the table (4), the table (JSON: strings), then rows of 35 bytes:
// position (double), five indexes into the table (2 each: replica, epoch, incarnation, version, rules), digest (16), first send (1).
// Without the CRC one flipped bit of a position makes an entry "answered before", and nobody would send it again.
// Format 1 had no CRC and was never released.
const format = 2;
const crcAt = 1;
const tableBytesAt = 5;
const headBytes = 9;
const rowBytes = 35;

function encode(rows: readonly DigestRow[]): Buffer {
  const table = new Table();
  const body = Buffer.allocUnsafe(rows.length * rowBytes);
  let at = 0;
  for (const row of rows) {
    at = body.writeDoubleLE(row.position, at);
    at = putIndex(body, at, table.indexOf(row.replica));
    at = putIndex(body, at, table.indexOf(row.epoch));
    at = putIndex(body, at, table.indexOf(row.incarnation));
    at = putIndex(body, at, table.indexOf(row.backendVersion));
    at = putIndex(body, at, table.indexOf(row.rules));
    at = putHex(body, at, row.digest);
    body[at++] = row.isFirstSend ? 1 : 0;
  }
  const strings = Buffer.from(JSON.stringify(table.strings));
  const bytes = Buffer.concat([Buffer.allocUnsafe(headBytes), strings, body]);
  bytes.writeUInt8(format, 0);
  bytes.writeUInt32LE(strings.length, tableBytesAt);
  bytes.writeUInt32LE(crc32(bytes.subarray(tableBytesAt)), crcAt);
  return bytes;
}

class Table {
  readonly strings: string[] = [];
  readonly #indexes = new Map<string, number>();

  indexOf(text: string): number {
    let index = this.#indexes.get(text);
    if (index === undefined) {
      index = this.strings.push(text) - 1;
      this.#indexes.set(text, index);
    }
    return index;
  }
}

function putIndex(bytes: Buffer, at: number, index: number): number {
  bytes[at] = index & 0xff;
  bytes[at + 1] = index >>> 8;
  return at + 2;
}

/** `Buffer.write(…, "hex")` leaves JavaScript for 16 bytes: dearer than all the rest of the row. */
function putHex(bytes: Buffer, from: number, digest: string): number {
  let wrong = digest.length === 32 ? 0 : notHex;
  for (let at = 0; at < 16; at++) {
    const upper = nibbles[digest.charCodeAt(at * 2)] ?? notHex;
    const lower = nibbles[digest.charCodeAt(at * 2 + 1)] ?? notHex;
    wrong |= upper | lower;
    bytes[from + at] = (upper << 4) | lower;
  }
  if (wrong >= notHex) throw new GatewayError("GW_INTERNAL", `${digest} is no digest of 32 lower-case hex digits.`);
  return from + 16;
}

const notHex = 16;
/** By character code. */
const nibbles = new Uint8Array(128).fill(notHex);
for (let value = 0; value < 16; value++) nibbles[value.toString(16).charCodeAt(0)] = value;

/** Where a row is; its strings are made when somebody takes it. */
interface Stored {
  readonly position: number;
  readonly strings: readonly string[];
  readonly bytes: Buffer;
  readonly at: number;
}

function decode(place: string, bytes: Buffer, from: number, to: number): Stored[] {
  if (bytes.length < headBytes || bytes.readUInt8(0) !== format) throw corrupt(place, "is of an unknown format");
  if (crc32(bytes.subarray(tableBytesAt)) !== bytes.readUInt32LE(crcAt))
    throw corrupt(place, "is not what was written");
  const rowsAt = headBytes + bytes.readUInt32LE(tableBytesAt);
  const strings = JSON.parse(bytes.toString("utf8", headBytes, rowsAt)) as readonly string[];
  const found: Stored[] = [];
  for (let at = rowsAt; at < bytes.length; at += rowBytes) {
    const position = bytes.readDoubleLE(at);
    if (position >= from && position <= to) found.push({ position, strings, bytes, at });
  }
  return found;
}

function rowOf({ position, strings, bytes, at }: Stored): DigestRow {
  const text = (at: number): string => strings[bytes.readUInt16LE(at)] as string;
  return {
    epoch: text(at + 10),
    position,
    replica: text(at + 8),
    incarnation: text(at + 12),
    backendVersion: text(at + 14),
    rules: text(at + 16),
    digest: bytes.toString("hex", at + 18, at + 34),
    isFirstSend: bytes.readUInt8(at + 34) === 1,
  };
}

const corrupt = (place: string, why: string): GatewayError =>
  new GatewayError("GW_LOG_CORRUPT", `A batch of digests in ${place} ${why}.`);
