// The search accepts what some order explains and rejects what none does; where it is small enough, it agrees with trying every order.

import { describe, expect, test } from "vitest";
import { createModel, kindOf } from "./operation.ts";
import type { Operation, State } from "./operation.ts";
import { Random } from "./random.ts";
import { operationsOf, trueHistory } from "./samples.ts";
import { checkEachKey, checkKey } from "./wgl.ts";

const verdictOf = (text: string): string => checkKey(operationsOf(text)).verdict;

describe("a broken history is rejected", () => {
  test.each([
    ["a stale read", "a r1 put x @ 1-2\na r1 put y @ 3-4\nb r1 get = x @ 5-6"],
    ["a read of a value that nobody wrote", "a r1 put x @ 1-2\nb r1 get = z @ 3-4"],
    ["a read of nothing after a write", "a r1 put x @ 1-2\nb r1 get = nothing @ 3-4"],
    ["a read of the future", "b r1 get = x @ 1-2\na r1 put x @ 3-4"],
    ["a read that goes back behind another read", "a r1 put x @ 1-9\nb r1 get = x @ 2-3\nc r1 get = nothing @ 4-5"],
    ["a write that was lost", "a r1 put x @ 1-2\nb r1 get = nothing @ 3-4\nb r1 get = nothing @ 5-6"],
    ["an update that was lost", "a c1 incr 1 = 1 @ 1-3\nb c1 incr 1 = 1 @ 2-4"],
    ["an increment that was done twice", "a c1 incr 1 = 1 @ 1-2\nb c1 get = 2 @ 3-4"],
    ["an increment of unknown outcome that was done twice", "a c1 incr 1 @ 1-never\nb c1 get = 2 @ 3-4"],
    ["an append that was done twice", "a l1 append x = 1 @ 1-2\nb l1 get = x,x @ 3-4"],
    ["appends that changed places", "a l1 append x @ 1-2\na l1 append y @ 3-4\nb l1 get = y,x @ 5-6"],
    ["an append that fell out of the middle", "a l1 append x @ 1-2\na l1 append y @ 3-4\nb l1 get = y @ 5-6"],
    [
      "lists that disagree about an order",
      "a l1 append x @ 1-9\nb l1 append y @ 1-9\nc l1 get = x,y @ 2-3\nc l1 get = y,x @ 4-5",
    ],
    ["two winners of one swap", "a r1 put x @ 1-2\nb r1 cas x>y = yes @ 3-5\nc r1 cas x>z = yes @ 3-5"],
    ["a swap that failed for no reason", "a r1 put x @ 1-2\nb r1 cas x>y = w @ 3-4"],
    ["a swap that failed and left its value", "a r1 put x @ 1-2\nb r1 cas w>y = x @ 3-4\nc r1 get = y @ 5-6"],
    ["a removed value that comes back", "a r1 put x @ 1-2\na r1 delete @ 3-4\nb r1 get = x @ 5-6"],
    ["a write that counts although it was asked after it was seen", "b r1 cas x>y = yes @ 1-2\na r1 put x @ 3-4"],
  ])("%s", (_what, text) => {
    expect(verdictOf(text)).toBe("broken");
  });
});

describe("a true history is accepted", () => {
  test.each([
    [
      "reads before, while and after something is written",
      "a r1 put x @ 2-5\nb r1 get = nothing @ 1-3\nc r1 get = x @ 3-4\nb r1 get = x @ 6-7",
    ],
    ["writes at one time in the order that a read tells", "a r1 put x @ 1-5\nb r1 put y @ 1-5\nc r1 get = x @ 6-7"],
    ["and the other way round", "a r1 put x @ 1-5\nb r1 put y @ 1-5\nc r1 get = y @ 6-7"],
    [
      "a write without an answer that is seen much later",
      "a r1 put x @ 1-never\nb r1 get = nothing @ 3-4\nb r1 get = x @ 8-9",
    ],
    ["a write without an answer that is never seen", "a r1 put x @ 1-never\nb r1 get = nothing @ 3-4"],
    ["a swap whose answer is not known", "a r1 put x @ 1-2\nb r1 cas x>y @ 3-4\nc r1 get = y @ 5-6"],
    [
      "an append without an answer between two others",
      "a l1 append x = 1 @ 1-2\nb l1 append y @ 1-never\na l1 append z = 3 @ 3-4\nc l1 get = x,y,z @ 5-6",
    ],
    ["increments at one time", "a c1 incr 1 = 3 @ 1-5\nb c1 incr 2 = 2 @ 1-5\nc c1 get = 2 @ 2-4"],
  ])("%s", (_what, text) => {
    expect(verdictOf(text)).toBe("linearizable");
  });

  test.each(["r1", "l1", "c1"])(
    "hundreds of operations by many clients at once on %s, some without an answer",
    (key) => {
      for (let seed = 0; seed < 20; seed += 1)
        expect(checkKey(trueHistory(`true ${seed}`, key, 300, 12))).toEqual({ verdict: "linearizable", detail: "" });
    },
  );
});

test("small histories, true or not, get the verdict that trying every order gives", () => {
  const verdicts = { linearizable: 0, broken: 0, unknown: 0 };
  for (let seed = 0; seed < 600; seed += 1) {
    const key = ["r1", "l1", "c1"][seed % 3] as string;
    const history = spoil(trueHistory(`small ${seed}`, key, 6, 4), new Random(`spoil ${seed}`));
    const { verdict } = checkKey(history);
    expect(verdict, JSON.stringify(history)).toBe(isExplained(history) ? "linearizable" : "broken");
    verdicts[verdict] += 1;
  }
  expect(verdicts.linearizable).toBeGreaterThan(100);
  expect(verdicts.broken).toBeGreaterThan(100);
});

test("keys are judged each for itself, and reads that promise less are not judged", () => {
  const history = operationsOf(`
    a r1 put x @ 1-2
    b r2 get = nothing @ 3-4
    b r1 get = nothing @ 3-4 session
    b r1 get = nothing @ 3-4 any
    a c1 incr 1 = 2 @ 3-4
  `);
  expect(checkEachKey(history).map((fault) => fault.split(" ", 2).join(" "))).toEqual(["c1: broken:"]);
});

test("when the time is over the verdict is unknown, and that is a fault", () => {
  const history = trueHistory("hard", "r1", 2000, 12);
  let now = 0;
  const options = { budgetMs: 1, now: () => (now += 1) };
  expect(checkKey(history, options).verdict).toBe("unknown");
  now = 0;
  expect(checkEachKey(history, options)).toHaveLength(1);
});

test("what is said of a broken history names the operation that has no place", () => {
  const { detail } = checkKey(operationsOf("a r1 put x @ 1-2\na r1 put y @ 3-4\nb r1 get = x @ 5-6"));
  expect(detail).toContain('b2: r1 get = {"value":"x"} [5.0, 6.0]');
});

/** Tries every order, without any cleverness. */
function isExplained(history: readonly Operation[]): boolean {
  const model = createModel(kindOf(history[0]?.key ?? "r"));
  const tryFrom = (state: State, left: readonly Operation[]): boolean =>
    left.length === 0 ||
    left.some((one) => {
      if (left.some((other) => other.respondedAt < one.invokedAt)) return false;
      const after = model.step(state, one);
      return (
        after !== undefined &&
        tryFrom(
          after,
          left.filter((other) => other !== one),
        )
      );
    });
  return tryFrom(model.initial, history);
}

/** Half of the histories: the answers of two operations are exchanged, or one is moved in time. */
function spoil(history: readonly Operation[], random: Random): Operation[] {
  const copy = [...history];
  if (random.chance(0.3)) return copy;
  const [a, b] = [random.below(copy.length), random.below(copy.length)];
  const [one, other] = [copy[a] as Operation, copy[b] as Operation];
  if (random.chance(0.5) && one.verb === other.verb && one.respondedAt !== Infinity && other.respondedAt !== Infinity) {
    copy[a] = { ...one, result: other.result };
    copy[b] = { ...other, result: one.result };
  } else {
    const by = random.next() * 40 - 20;
    copy[a] = { ...one, invokedAt: one.invokedAt + by, respondedAt: one.respondedAt + by };
  }
  return copy;
}
