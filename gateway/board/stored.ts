// A document of the board as bytes: a checksum line and JSON that names the document.

import { crc32 } from "node:zlib";
import { GatewayError } from "../errors.ts";

const checksum = (json: Uint8Array): string => crc32(json).toString(16).padStart(8, "0");

/** A name is part of a subject and of a path. */
export function checkName(name: string): void {
  if (!/^[a-z0-9-]{1,32}$/.test(name)) throw new RangeError(`"${name}" is no name of a document`);
}

export function encodeDocument(name: string, value: unknown): Buffer {
  const json = Buffer.from(JSON.stringify({ name, value }));
  return Buffer.concat([Buffer.from(`${checksum(json)}\n`), json]);
}

/** The value. Throws GW_BOARD_LOST unless the bytes are this document, as it was encoded. */
export function parseDocument(bytes: Uint8Array, name: string): unknown {
  const whole = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const json = whole.subarray(9);
  if (whole.length < 9 || whole.toString("latin1", 0, 9) !== `${checksum(json)}\n`)
    throw boardLost(name, "its checksum is wrong");
  try {
    const document = JSON.parse(json.toString()) as { readonly name?: unknown; readonly value?: unknown };
    if (document.name === name && "value" in document) return document.value;
  } catch (error) {
    throw boardLost(name, "it is not JSON", error);
  }
  throw boardLost(name, "it is another document");
}

export const boardLost = (name: string, why: string, cause?: unknown): GatewayError =>
  new GatewayError(
    "GW_BOARD_LOST",
    `What the gateways agreed on as "${name}" cannot be used: ${why}.`,
    cause === undefined ? {} : { cause },
  );
