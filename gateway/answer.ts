// Answers as bytes for the key stores, with a checksum: what cannot be read back whole is a miss, never an exception.

import { crc32 } from "node:zlib";
import type { Answer, RawHeaders } from "./entry.ts";

// version u8 | crc32 u32 of all that follows | status u16 | headers u16 | trailers u16 | (length u32, latin1)… | body
const version = 1;
const headBytes = 11;

export function encodeAnswer(answer: Answer): Buffer {
  let size = headBytes + answer.body.length;
  for (const text of answer.headers) size += 4 + text.length;
  for (const text of answer.trailers) size += 4 + text.length;
  const bytes = Buffer.allocUnsafe(size);
  bytes[0] = version;
  bytes.writeUInt16LE(answer.status, 5);
  bytes.writeUInt16LE(answer.headers.length, 7);
  bytes.writeUInt16LE(answer.trailers.length, 9);
  let at = headBytes;
  for (const fields of [answer.headers, answer.trailers]) {
    for (const text of fields) {
      at = bytes.writeUInt32LE(text.length, at);
      at += bytes.write(text, at, "latin1");
    }
  }
  answer.body.copy(bytes, at);
  bytes.writeUInt32LE(crc32(bytes.subarray(5)), 1);
  return bytes;
}

/** Null when the bytes are not exactly what `encodeAnswer` made. The body shares its memory with `bytes`. */
export function decodeAnswer(bytes: Buffer): Answer | null {
  if (bytes.length < headBytes || bytes[0] !== version) return null;
  if (crc32(bytes.subarray(5)) !== bytes.readUInt32LE(1)) return null;
  const headers: string[] = [];
  const trailers: string[] = [];
  let at = headBytes;
  for (const [fields, count] of [
    [headers, bytes.readUInt16LE(7)],
    [trailers, bytes.readUInt16LE(9)],
  ] as const) {
    for (let i = 0; i < count; i += 1) {
      if (at + 4 > bytes.length) return null;
      const end = at + 4 + bytes.readUInt32LE(at);
      if (end > bytes.length) return null;
      fields.push(bytes.toString("latin1", at + 4, end));
      at = end;
    }
  }
  return { status: bytes.readUInt16LE(5), headers: headers satisfies RawHeaders, body: bytes.subarray(at), trailers };
}

/** Lower-case hex of 16 bytes: ids, fingerprints and digests as they are kept. */
export const isHash16 = (text: string): boolean => /^[0-9a-f]{32}$/.test(text);
