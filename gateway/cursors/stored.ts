// Cursors as bytes: a checksum line and JSON. What does not read back exactly is a lost cursor, never a guess: a position with one
// flipped digit would skip or repeat entries.

import { crc32 } from "node:zlib";
import { z } from "zod";
import { CursorLostError } from "./cursors.ts";
import type { Cursor } from "./cursors.ts";

const position = z.number().int().nonnegative();

const schema: z.ZodType<Cursor> = z.object({
  version: z.literal(1),
  replica: z.string().min(1),
  owner: z.object({ name: z.string(), boot: z.string() }).nullable(),
  incarnation: z.string(),
  epoch: z.string(),
  applied: position,
  entries: position,
  hash: z.string(),
  state: z.enum(["clean", "busy"]),
  bound: position,
  nonce: z.string(),
  standing: z
    .object({
      state: z.enum(["held", "quarantined", "draining", "restoring"]),
      reason: z.string(),
      rebuild: z.boolean().optional(),
    })
    .nullable(),
  // Cursors of earlier versions do not say.
  isSuspect: z.boolean().default(false),
  restored: position.default(0),
  unknown: z.array(position),
  finished: z.array(position),
  barred: position.nullable(),
  slowestMs: z.record(z.string(), z.number()),
  backendVersion: z.string(),
});

const checksum = (json: Uint8Array): string => crc32(json).toString(16).padStart(8, "0");

export function encodeCursor(cursor: Cursor): Buffer {
  const json = Buffer.from(JSON.stringify(cursor));
  return Buffer.concat([Buffer.from(`${checksum(json)}\n`), json]);
}

/** Throws CursorLostError unless the bytes are a cursor of this replica, as it was encoded. */
export function parseCursor(bytes: Uint8Array, replica: string, revision: number): Cursor {
  const whole = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const json = whole.subarray(9);
  if (whole.length < 9 || whole.toString("latin1", 0, 9) !== `${checksum(json)}\n`) {
    throw cursorLost(replica, revision, "its checksum is wrong");
  }
  let value: unknown;
  try {
    value = JSON.parse(json.toString());
  } catch (error) {
    throw cursorLost(replica, revision, "it is not JSON", error);
  }
  const parsed = schema.safeParse(value);
  if (!parsed.success) {
    const field = parsed.error.issues[0]?.path.join(".") ?? "";
    throw cursorLost(replica, revision, `its field "${field}" is not as this version writes it`, parsed.error);
  }
  if (parsed.data.replica !== replica) {
    throw cursorLost(replica, revision, `it is the cursor of ${parsed.data.replica}`);
  }
  return parsed.data;
}

export const cursorLost = (replica: string, revision: number, why: string, cause?: unknown): CursorLostError =>
  new CursorLostError(
    `The cursor of replica ${replica} cannot be used: ${why}. What the replica executed is unknown: it must be verified or rebuilt.`,
    revision,
    cause,
  );
