// The checker by positions finds what the search finds, and what only positions show; and is fast at any size.

import { describe, expect, test } from "vitest";
import type { Operation } from "./operation.ts";
import { checkPositions } from "./positions.ts";
import { Random } from "./random.ts";
import { operationsOf, trueHistory } from "./samples.ts";
import { checkKey } from "./wgl.ts";

const kindsOf = (text: string): string[] =>
  checkPositions(operationsOf(text)).map((fault) => fault.split(":", 1)[0] as string);

describe("what is wrong is found", () => {
  test.each([
    ["a stale read", "stale read", "a r1 put x @ 1-2 #1\na r1 put y @ 3-4 #2\nb r1 get = x @ 5-6"],
    ["a read of what nobody wrote", "read of what never was", "a r1 put x @ 1-2 #1\nb r1 get = z @ 3-4"],
    ["a read of the future", "read of the future", "b r1 get = x @ 1-2\na r1 put x @ 3-4 #1"],
    [
      "a read of a later write that stands before one of the future",
      "read of the future",
      "a r1 put x @ 1-2 #2\nb r1 get = x @ 3-4\nc r1 put y @ 5-6 #1",
    ],
    ["a read behind another read", "stale read", "a r1 put x @ 1-9 #1\nb r1 get = x @ 2-3\nc r1 get = nothing @ 4-5"],
    ["a lost update", "wrong answer", "a c1 incr 1 = 1 @ 1-3 #1\nb c1 incr 1 = 1 @ 2-4 #2"],
    ["an append done twice", "read of what never was", "a l1 append x = 1 @ 1-2 #1\nb l1 get = x,x @ 3-4"],
    ["two winners of one swap", "wrong answer", "a r1 cas nothing>y = yes @ 3-5 #1\nc r1 cas nothing>z = yes @ 3-5 #2"],
    ["an order that the clock forbids", "out of order", "a r1 put x @ 1-2 #2\na r2 put x @ 3-4 #1"],
    ["a session that forgets what it saw", "session read", "a r1 put x @ 1-2 #7\nb r1 get = nothing @ 3-4 session 7"],
    ["an any read of what never was", "any read", "a r1 put x @ 1-2 #1\nb r1 get = y @ 3-4 any"],
    ["an any read of the future", "read of the future", "b r1 get = x @ 1-2 any\na r1 put x @ 3-4 #1"],
  ])("%s", (_what, kind, text) => {
    expect(kindsOf(text)).toContain(kind);
  });

  test("a write that took effect and has no position", () => {
    expect(checkPositions(operationsOf("a r1 put x @ 1-2"))).toHaveLength(1);
  });
});

describe("what is right is accepted", () => {
  test.each([
    ["a session that has not seen the newest", "a r1 put x @ 1-2 #7\nb r1 get = nothing @ 3-4 session 6"],
    ["an any read of what was true once", "a r1 put x @ 1-2 #1\na r1 put y @ 2-3 #2\nb r1 get = x @ 8-9 any"],
    [
      "a value that was written twice",
      "a r1 put x @ 1-2 #1\na r1 put y @ 3-4 #2\na r1 put x @ 5-6 #3\nb r1 get = x @ 7-8",
    ],
    ["a write without an answer, seen or not", "a r1 put x @ 1-never #1\nb r1 get = nothing @ 3-4\nb r1 get = x @ 8-9"],
  ])("%s", (_what, text) => {
    expect(checkPositions(operationsOf(text))).toEqual([]);
  });
});

test("both checkers say the same of histories whose order is known", () => {
  const counts = { same: 0, broken: 0 };
  for (let seed = 0; seed < 300; seed += 1) {
    const key = ["r1", "l1", "c1"][seed % 3] as string;
    const random = new Random(`spoil ${seed}`);
    const history = trueHistory(`both ${seed}`, key, 40, 6);
    const isSpoilt = random.chance(0.6);
    const judged = isSpoilt ? withWrongRead(history, random) : history;
    const isLinearizable = checkKey(judged).verdict === "linearizable";
    const faults = checkPositions(judged);
    // The order of the log is one of those that the search may find: it can be wrong where another one would be right.
    if (!isLinearizable) expect(faults, `seed ${seed}`).not.toEqual([]);
    if (!isSpoilt) expect([isLinearizable, faults], `seed ${seed}`).toEqual([true, []]);
    counts.same += Number(isLinearizable === (faults.length === 0));
    counts.broken += Number(!isLinearizable);
  }
  expect(counts.broken).toBeGreaterThan(40);
  expect(counts.same).toBeGreaterThan(270);
});

test("a hundred thousand operations are judged within seconds", () => {
  const history = Array.from({ length: 300 }, (_, n) => trueHistory(`big ${n}`, `r${n}`, 340, 12)).flat();
  // Each was made alone: their positions are made one row of by the time at which they were asked, which their own order allows.
  const startedAt = performance.now();
  const perKey = new Map<string, Operation[]>();
  for (const operation of history) perKey.set(operation.key, [...(perKey.get(operation.key) ?? []), operation]);
  for (const own of perKey.values()) expect(checkPositions(own)).toEqual([]);
  expect(performance.now() - startedAt).toBeLessThan(10_000);
}, 30_000);

/** One read gets the answer of another one. */
function withWrongRead(history: readonly Operation[], random: Random): Operation[] {
  const reads = history.filter((it) => it.verb === "get");
  if (reads.length < 2) return [...history];
  const [one, other] = random.shuffled(reads) as [Operation, Operation];
  return history.map((it) => (it === one ? { ...it, result: other.result } : it));
}
