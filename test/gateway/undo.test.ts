// Putting back until it is certain, and what is kept for it.
import { describe, expect, it } from "vitest";
import type { Execution } from "../../gateway/backend/backend.ts";
import { decodeUndo, encodeUndo, putBack } from "../../gateway/undo.ts";
import type { Undo } from "../../rules/undo.ts";

const undo: Undo = { method: "PUT", target: "/a/ü", headers: ["Content-Type", "x/y"], body: Buffer.from([0, 255, 10]) };
const done = (status: number): Execution => ({
  kind: "done",
  answer: { status, headers: [], body: Buffer.alloc(0), trailers: [] },
  tookMs: 1,
});
const closed: Execution = { kind: "unknown", reason: "closed", cause: "reset", late: null };
const away: Execution = { kind: "not-started", cause: "refused" };
const broken = (isTooLarge: boolean): Execution => ({ kind: "broken", status: 200, isTooLarge, cause: "garbage" });

async function outcome(answers: readonly Execution[]): Promise<{ result: boolean; pauses: string[] }> {
  const left = [...answers];
  const pauses: string[] = [];
  const result = await putBack(
    undo,
    () => Promise.resolve(left.shift() ?? done(418)),
    (why, attempt) => {
      pauses.push(`${why} ${attempt}`);
      return Promise.resolve();
    },
  );
  expect(left).toEqual([]);
  return { result, pauses };
}

describe("putting back", () => {
  it("is over with the first answer that says so", async () => {
    expect(await outcome([done(204)])).toEqual({ result: true, pauses: [] });
    expect(await outcome([broken(true)])).toEqual({ result: true, pauses: [] });
  });

  it("is tried again while the backend is away or too busy, and after what is unknown only when that was outwaited", async () => {
    expect(await outcome([away, away, done(503), closed, broken(false), done(200)])).toEqual({
      result: true,
      pauses: ["away 0", "away 1", "refused 2", "unknown 3", "unknown 4"],
    });
  });

  it("is given up when the backend refuses it", async () => {
    expect(await outcome([done(409)])).toEqual({ result: false, pauses: [] });
    expect((await outcome([done(500), done(500), done(429), done(500), done(500)])).result).toBe(false);
  });

  it("ends with the life of the backend", async () => {
    const over = new Error("over");
    await expect(
      putBack(
        undo,
        () => Promise.resolve(closed),
        () => Promise.reject(over),
      ),
    ).rejects.toBe(over);
  });

  it("is kept as bytes that say the same", () => {
    expect(decodeUndo(encodeUndo(undo))).toEqual(undo);
    const empty: Undo = { method: "DELETE", target: "/", headers: [], body: Buffer.alloc(0) };
    expect(decodeUndo(encodeUndo(empty))).toEqual(empty);
  });
});
