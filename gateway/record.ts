// What is appended at once: a header and up to 4,096 items, as bytes. The format is versioned and read for ever.
//
// Layout (big endian): "GWR" + version, producer[16], n f64, previous[32], base f64, rules[32], time f64,
// gateway str8, live u8 × str8, primary u8 (index in live, 255: none), items u16, then each item: kind u8, length u32, payload.

import { createHash } from "node:crypto";
import type { Entry, Item } from "./entry.ts";
import { itemsMax } from "./entry.ts";
import { GatewayError } from "./errors.ts";

export interface RecordHeader {
  /** Random boot id of the process that appended it, 32 hex digits. */
  readonly producer: string;
  /** Counts the producer's records from 0. */
  readonly n: number;
  /** Hash of the producer's previous record; zeros for its first. */
  readonly previous: Buffer;
  /** The tail's sequence known at the first publish. */
  readonly base: number;
  /** Digest of the rules in force at the producer, 64 hex digits. */
  readonly rules: string;
  readonly timeMs: number;
  readonly gateway: string;
  /** Names of the replicas that were live for the producer. */
  readonly live: readonly string[];
  /** The replica that is told `Replication-Role: primary`; null: nobody. */
  readonly primary: string | null;
}

export interface DecodedRecord {
  readonly header: RecordHeader;
  readonly items: readonly Item[];
}

const magic = Buffer.from("GWR\x01", "latin1");
const kinds = ["entry", "tick", "mark", "rules", "claim", "settled", "skip"] as const;
const noHash = Buffer.alloc(32);

export const sha256 = (bytes: Buffer): Buffer => createHash("sha256").update(bytes).digest();
/** H after a record: SHA-256 over the former H and the record's own SHA-256. */
export const chain = (hash: Buffer, recordHash: Buffer): Buffer =>
  createHash("sha256").update(hash).update(recordHash).digest();
export const firstHash = noHash;

/** One item, encoded once, when it arrives; a record is only the concatenation. */
export function encodeItem(item: Item): Buffer {
  if (item.kind === "entry") return encodeEntry(item);
  const w = Writer.item(kinds.indexOf(item.kind), 64);
  switch (item.kind) {
    case "tick":
      break;
    case "mark":
      w.str16(item.reason);
      break;
    case "rules":
      w.hex(item.digest, 32).u16(item.part).u16(item.parts).bytes32(item.text);
      break;
    case "claim":
      w.hex(item.key.id, 16).hex(item.key.fingerprint, 16).f64(item.timeMs).optional64(item.retryOf);
      break;
    case "settled":
      w.f64(item.position)
        .u8(settledOutcomes.indexOf(item.outcome))
        .u8(item.digest === null ? 0 : 1);
      if (item.digest !== null) w.hex(item.digest, 16);
      break;
    case "skip":
      w.f64(item.position).str16(item.reason).u8(item.maybeSent.length);
      for (const name of item.maybeSent) w.str8(name);
      break;
    default:
      item satisfies never;
  }
  return w.framed();
}

export function encodeRecord(header: RecordHeader, items: readonly Buffer[]): Buffer {
  const w = new Writer(256);
  w.raw(magic).hex(header.producer, 16).f64(header.n).raw(header.previous).f64(header.base).hex(header.rules, 32);
  w.f64(header.timeMs).str8(header.gateway).u8(header.live.length);
  for (const name of header.live) w.str8(name);
  w.u8(header.primary === null ? 255 : header.live.indexOf(header.primary) & 255).u16(items.length);
  return Buffer.concat([w.done(), ...items]);
}

/** Bodies are views into `bytes`. Throws GW_LOG_CORRUPT on anything that was not written by `encodeRecord`. */
export function decodeRecord(bytes: Buffer, sequence: number): DecodedRecord {
  try {
    const r = new Reader(bytes);
    if (!r.raw(4).equals(magic)) throw new RangeError("unknown format");
    const producer = r.hex(16);
    const n = r.f64();
    const previous = r.raw(32);
    const base = r.f64();
    const rules = r.hex(32);
    const timeMs = r.f64();
    const gateway = r.str8();
    const live: string[] = [];
    for (let left = r.u8(); left > 0; left--) live.push(r.str8());
    const primaryIndex = r.u8();
    const count = r.u16();
    if (count > itemsMax) throw new RangeError("too many items");
    const items: Item[] = [];
    for (let index = 0; index < count; index++) {
      const kind = kinds[r.u8()];
      const payload = new Reader(r.raw(r.u32()));
      items.push(decodeItem(kind, payload));
      payload.end();
    }
    r.end();
    const primary = live[primaryIndex] ?? null;
    return { header: { producer, n, previous, base, rules, timeMs, gateway, live, primary }, items };
  } catch (cause) {
    throw new GatewayError("GW_LOG_CORRUPT", `record ${sequence} of the log cannot be read: ${String(cause)}`, {
      cause,
    });
  }
}

const settledOutcomes = ["done", "not-started", "unknown"] as const;

function decodeItem(kind: (typeof kinds)[number] | undefined, r: Reader): Item {
  switch (kind) {
    case "entry":
      return decodeEntry(r);
    case "tick":
      return { kind };
    case "mark":
      return { kind, reason: r.str16() };
    case "rules":
      return { kind, digest: r.hex(32), part: r.u16(), parts: r.u16(), text: r.bytes32() };
    case "claim":
      return {
        kind,
        key: { id: r.hex(16), fingerprint: r.hex(16) },
        timeMs: r.f64(),
        retryOf: r.optional64(),
      };
    case "settled": {
      const position = r.f64();
      const outcome = settledOutcomes[r.u8()];
      if (outcome === undefined) throw new RangeError("unknown outcome");
      return { kind, position, outcome, digest: r.u8() === 0 ? null : r.hex(16) };
    }
    case "skip": {
      const position = r.f64();
      const reason = r.str16();
      const maybeSent: string[] = [];
      for (let left = r.u8(); left > 0; left--) maybeSent.push(r.str8());
      return { kind, position, reason, maybeSent };
    }
    case undefined:
      throw new RangeError("unknown kind of item");
    default:
      kind satisfies never;
      throw new RangeError("unknown kind of item");
  }
}

// Entry flags.
const hasKey = 1;
const hasBodyRef = 2;
const hasRetryOf = 4;

function encodeEntry(entry: Entry): Buffer {
  const headers = entry.headers.join("\n");
  const trailers = entry.trailers.join("\n");
  const size =
    128 +
    entry.target.length +
    headers.length +
    trailers.length +
    (Buffer.isBuffer(entry.body) ? entry.body.length : 0);
  const w = Writer.item(kinds.indexOf("entry"), size);
  w.u8(
    (entry.key === null ? 0 : hasKey) |
      (Buffer.isBuffer(entry.body) ? 0 : hasBodyRef) |
      (entry.retryOf === null ? 0 : hasRetryOf),
  );
  w.u16(entry.rule).f64(entry.timeMs).hex(entry.seed, 16).str8(entry.method);
  if (entry.key !== null) w.hex(entry.key.id, 16).hex(entry.key.fingerprint, 16);
  if (entry.retryOf !== null) w.f64(entry.retryOf);
  w.u16(entry.orderKeys.length);
  for (const key of entry.orderKeys) w.str16(key);
  w.latin32(entry.target).latin32(headers).latin32(trailers);
  if (Buffer.isBuffer(entry.body)) w.bytes32(entry.body);
  else w.hex(entry.body.sha256, 32).f64(entry.body.sizeBytes);
  return w.framed();
}

function decodeEntry(r: Reader): Entry {
  const flags = r.u8();
  const rule = r.u16();
  const timeMs = r.f64();
  const seed = r.hex(16);
  const method = r.str8();
  const key = (flags & hasKey) === 0 ? null : { id: r.hex(16), fingerprint: r.hex(16) };
  const retryOf = (flags & hasRetryOf) === 0 ? null : r.f64();
  const orderKeys: string[] = [];
  for (let left = r.u16(); left > 0; left--) orderKeys.push(r.str16());
  const target = r.latin32();
  const headers = fields(r.latin32());
  const trailers = fields(r.latin32());
  const body = (flags & hasBodyRef) === 0 ? r.bytes32() : { sha256: r.hex(32), sizeBytes: r.f64() };
  return { kind: "entry", method, target, headers, trailers, body, key, rule, orderKeys, timeMs, seed, retryOf };
}

/** Field names and values never hold a line feed: the front refuses it. */
const fields = (joined: string): readonly string[] => (joined === "" ? [] : joined.split("\n"));

const frameBytes = 5;

class Writer {
  #bytes: Buffer;
  #at = 0;

  constructor(size: number) {
    this.#bytes = Buffer.allocUnsafe(size);
  }
  /** For an item: its kind, and room for the length that `framed` fills in. */
  static item(kind: number, size: number): Writer {
    return new Writer(frameBytes + size).u8(kind).u32(0);
  }

  #room(size: number): void {
    if (this.#at + size <= this.#bytes.length) return;
    const larger = Buffer.allocUnsafe(Math.max(this.#bytes.length * 2, this.#at + size));
    this.#bytes.copy(larger, 0, 0, this.#at);
    this.#bytes = larger;
  }
  u8(value: number): this {
    this.#room(1);
    this.#at = this.#bytes.writeUInt8(value, this.#at);
    return this;
  }
  u16(value: number): this {
    this.#room(2);
    this.#at = this.#bytes.writeUInt16BE(value, this.#at);
    return this;
  }
  u32(value: number): this {
    this.#room(4);
    this.#at = this.#bytes.writeUInt32BE(value, this.#at);
    return this;
  }
  /** Positions and times: integers below 2^53, exact as a double. */
  f64(value: number): this {
    this.#room(8);
    this.#at = this.#bytes.writeDoubleBE(value, this.#at);
    return this;
  }
  optional64(value: number | null): this {
    return value === null ? this.u8(0) : this.u8(1).f64(value);
  }
  hex(value: string, length: number): this {
    this.#room(length);
    if (this.#bytes.write(value, this.#at, length, "hex") !== length)
      throw new RangeError(`not ${length} bytes of hex`);
    this.#at += length;
    return this;
  }
  raw(value: Buffer): this {
    this.#room(value.length);
    value.copy(this.#bytes, this.#at);
    this.#at += value.length;
    return this;
  }
  bytes32(value: Buffer): this {
    return this.u32(value.length).raw(value);
  }
  latin32(value: string): this {
    this.u32(value.length);
    this.#room(value.length);
    this.#at += this.#bytes.write(value, this.#at, "latin1");
    return this;
  }
  str8(value: string): this {
    const bytes = Buffer.from(value, "utf8");
    if (bytes.length > 255) throw new RangeError("longer than 255 bytes");
    return this.u8(bytes.length).raw(bytes);
  }
  str16(value: string): this {
    const bytes = Buffer.from(value, "utf8");
    return this.u16(bytes.length).raw(bytes);
  }
  done(): Buffer {
    return this.#bytes.subarray(0, this.#at);
  }
  framed(): Buffer {
    this.#bytes.writeUInt32BE(this.#at - frameBytes, 1);
    return this.done();
  }
}

class Reader {
  readonly #bytes: Buffer;
  #at = 0;

  constructor(bytes: Buffer) {
    this.#bytes = bytes;
  }

  u8(): number {
    return this.#bytes.readUInt8(this.#advance(1));
  }
  u16(): number {
    return this.#bytes.readUInt16BE(this.#advance(2));
  }
  u32(): number {
    return this.#bytes.readUInt32BE(this.#advance(4));
  }
  f64(): number {
    return this.#bytes.readDoubleBE(this.#advance(8));
  }
  optional64(): number | null {
    return this.u8() === 0 ? null : this.f64();
  }
  hex(length: number): string {
    const at = this.#advance(length);
    return this.#bytes.toString("hex", at, at + length);
  }
  raw(length: number): Buffer {
    const at = this.#advance(length);
    return this.#bytes.subarray(at, at + length);
  }
  bytes32(): Buffer {
    return this.raw(this.u32());
  }
  latin32(): string {
    const length = this.u32();
    const at = this.#advance(length);
    return this.#bytes.toString("latin1", at, at + length);
  }
  str8(): string {
    return this.raw(this.u8()).toString("utf8");
  }
  str16(): string {
    return this.raw(this.u16()).toString("utf8");
  }
  end(): void {
    if (this.#at !== this.#bytes.length) throw new RangeError("bytes left over");
  }
  #advance(length: number): number {
    const at = this.#at;
    this.#at += length;
    if (this.#at > this.#bytes.length) throw new RangeError("cut short");
    return at;
  }
}
