// One pack: an object of the store with many sealed chunks and, at its end, the index that says which ("packs/<SHA-256 of its bytes>").
//
// The chunks one after the other; the index, 36 bytes a chunk in the same order: name (`storedName`, 32 bytes), length (big-endian); 32 bytes of end: id of
// the key (16 bytes, zeros: not encrypted), number of chunks (4), version 1 (4), "br2kpack". Offsets follow from the lengths, which must
// fill the pack exactly. An index is not to be trusted further than that: who unseals a chunk finds out whether it is one.

import { createHash } from "node:crypto";
import type { Hash } from "node:crypto";
import { sealedBytesMax } from "./seal.ts";

export const packPrefix = "packs/";
/** What a pack should have; it ends before the chunk that would make it larger. */
export const packBytes = 16 * 1024 * 1024;
/** Very small chunks would make the index the larger part. */
const packChunksMax = 16_384;
const rowBytes = 36;
const endBytes = 32;
const magic = Buffer.from("\u0000\u0000\u0000\u0001br2kpack", "latin1");
/** Longer than any: chunks, index and end. */
const roomBytes = packBytes + packChunksMax * rowBytes + endBytes;
export const noKey = "0".repeat(32);

/** Where a chunk lies. */
export interface Row {
  /** As in the index: hex. */
  readonly name: string;
  /** Name of the object. */
  readonly pack: string;
  readonly offset: number;
  readonly length: number;
}

export interface PackIndex {
  readonly pack: string;
  readonly keyId: string;
  /** In the order of their offsets. */
  readonly rows: readonly Row[];
  /** Of its chunks together. */
  readonly chunkBytes: number;
}

/** Fills one pack after the other, always in the same memory: what `finish` gave is valid until the next `add`. */
export class PackBuilder {
  readonly #room = Buffer.allocUnsafeSlow(roomBytes);
  readonly #keyId: string;
  #hash: Hash = createHash("sha256");
  #chunks: { readonly name: string; readonly length: number }[] = [];
  #length = 0;

  constructor(keyId: string) {
    this.#keyId = keyId;
  }

  get isEmpty(): boolean {
    return this.#chunks.length === 0;
  }

  /** False: it is full, and the chunk belongs into the next one. */
  add(name: string, sealed: Buffer): boolean {
    if (this.#length + sealed.length > packBytes || this.#chunks.length === packChunksMax) return false;
    sealed.copy(this.#room, this.#length);
    this.#hash.update(sealed);
    this.#chunks.push({ name, length: sealed.length });
    this.#length += sealed.length;
    return true;
  }

  finish(): { readonly bytes: Buffer; readonly index: PackIndex } {
    const chunkBytes = this.#length;
    let at = chunkBytes;
    for (const { name, length } of this.#chunks) {
      this.#room.write(name, at, "hex");
      at = this.#room.writeUInt32BE(length, at + 32);
    }
    this.#room.write(this.#keyId, at, "hex");
    at = this.#room.writeUInt32BE(this.#chunks.length, at + 16);
    at += magic.copy(this.#room, at);
    const bytes = this.#room.subarray(0, at);
    const pack = packPrefix + this.#hash.update(bytes.subarray(chunkBytes)).digest("hex");
    const index = { pack, keyId: this.#keyId, rows: rowsOf(pack, this.#chunks), chunkBytes };
    this.#hash = createHash("sha256");
    this.#chunks = [];
    this.#length = 0;
    return { bytes, index };
  }
}

function rowsOf(pack: string, chunks: readonly { readonly name: string; readonly length: number }[]): Row[] {
  let offset = 0;
  return chunks.map(({ name, length }) => {
    const row = { name, pack, offset, length };
    offset += length;
    return row;
  });
}

/** How much of the end of a pack an index needs, from its last bytes; null: this is no pack. */
export function indexBytes(tail: Buffer): number | null {
  if (tail.length < endBytes || !tail.subarray(-magic.length).equals(magic)) return null;
  const count = tail.readUInt32BE(tail.length - endBytes + 16);
  return count > packChunksMax ? null : count * rowBytes + endBytes;
}

/** From at least `indexBytes` of the end; null: this is no index of a pack of that size. */
export function parseIndex(pack: string, sizeBytes: number, tail: Buffer): PackIndex | null {
  const length = indexBytes(tail);
  if (length === null || length > tail.length) return null;
  const index = tail.subarray(tail.length - length);
  const chunks: { name: string; length: number }[] = [];
  let chunkBytes = 0;
  for (let at = 0; at < length - endBytes; at += rowBytes) {
    const chunk = { name: index.toString("hex", at, at + 32), length: index.readUInt32BE(at + 32) };
    if (chunk.length === 0 || chunk.length > sealedBytesMax) return null;
    chunks.push(chunk);
    chunkBytes += chunk.length;
  }
  if (chunkBytes + length !== sizeBytes) return null;
  const keyId = index.toString("hex", length - endBytes, length - endBytes + 16);
  return { pack, keyId, rows: rowsOf(pack, chunks), chunkBytes };
}

/** Whether these are the bytes that were stored under this name. */
export const isWhole = (pack: string, bytes: Buffer): boolean =>
  pack === packPrefix + createHash("sha256").update(bytes).digest("hex");
