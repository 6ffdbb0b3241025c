// The checker itself: it must reject what no linearizable register does, and accept what one may do.

import { expect, test } from "vitest";
import type { Attempt, Sent } from "./clients.ts";
import { staleReads } from "./registers.ts";

const attempt = (sentAtMs: number, endedAtMs: number | null, more: Partial<Attempt>): Attempt => ({
  front: "",
  sentAtMs,
  endedAtMs,
  status: 200,
  outcome: null,
  position: null,
  epoch: null,
  isReplayed: false,
  code: null,
  contentType: null,
  body: null,
  error: null,
  ...more,
});

const sent = (method: "PUT" | "GET", v: number | null, attempts: Attempt[]): Sent => ({
  id: "",
  client: 0,
  call: { method, path: "/r/w0", orderKeys: [], isKeyed: false, isRepeatable: true, body: v === null ? null : { v } },
  key: null,
  attempts,
});

const write = (v: number, from: number, to: number): Sent =>
  sent("PUT", v, [attempt(from, to, { outcome: "executed" })]);
const lost = (v: number, from: number): Sent => sent("PUT", v, [attempt(from, null, { error: "ECONNRESET" })]);
const read = (v: number, from: number, to: number): Sent =>
  sent("GET", null, [
    attempt(
      from,
      to,
      v === 0 ? { status: 404, body: Buffer.from("{}") } : { body: Buffer.from(JSON.stringify({ v })) },
    ),
  ]);

test("a read after an acknowledged write that does not see it is stale", () => {
  expect(staleReads([write(1, 0, 1), write(2, 2, 3)], [read(1, 4, 5)])).toEqual([
    "/r/w0: 1 was read after 2 had been written or read",
  ]);
  expect(staleReads([write(1, 0, 1)], [read(0, 2, 3)])).toHaveLength(1);
});

test("a read that goes back behind an earlier read is stale, acknowledged or not", () => {
  expect(staleReads([write(1, 0, 1), lost(2, 2)], [read(2, 3, 4), read(1, 5, 6)])).toHaveLength(1);
});

test("a value from the future is rejected", () => {
  expect(staleReads([write(1, 0, 1), write(2, 8, 9)], [read(2, 3, 4)])).toEqual([
    "/r/w0: 2 was read before it was written (1 was the newest)",
  ]);
});

test("a read beside a write may see either value, and refusals are no reads", () => {
  const refused = sent("GET", null, [attempt(20, 21, { status: 503, code: "GW_NO_REPLICA" })]);
  const writes = [write(1, 0, 1), write(2, 2, 10), lost(3, 11)];
  expect(staleReads(writes, [read(1, 3, 4), read(2, 5, 6), read(2, 12, 13), read(3, 14, 15), refused])).toEqual([]);
});
