// A part of `npm run test:crash` (test/crash): kill -9 at a few steps of each kind. All of them are run by hand.

import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { knownSteps, pointsOf } from "../crash/points.ts";
import { runAll } from "../crash/run.ts";
import { embedded, withLog } from "../crash/scenarios.ts";
import type { Point } from "../crash/points.ts";
import type { Scenario } from "../crash/scenarios.ts";

const faultsAt = async (scenario: Scenario, points: readonly Point[]): Promise<readonly string[]> =>
  (await runAll(scenario, points, 2, () => undefined)).flatMap(({ point, faults }) =>
    faults.map((fault) => `${point.step}@${point.occurrence}: ${fault}`),
  );

test("every step is known by its name, and its first, middle and last occurrence are points", () => {
  expect(knownSteps().length).toBeGreaterThan(40);
  expect(
    pointsOf(
      new Map([
        ["store.put", 9],
        ["lock.rename", 1],
      ]),
    ),
  ).toEqual([
    { step: "store.put", occurrence: 1 },
    { step: "store.put", occurrence: 5 },
    { step: "store.put", occurrence: 9 },
    { step: "lock.rename", occurrence: 1 },
  ]);
});

describe("killed at a step, the gateway's next start goes on and nothing is lost", () => {
  let scenario: Scenario;
  beforeAll(() => {
    scenario = embedded();
  });
  afterAll(() => scenario.close());

  test("of taking requests, capturing, publishing and truncating", async () => {
    const points = [
      { step: "log.append", occurrence: 20 },
      { step: "cursor.save", occurrence: 8 },
      { step: "store.put", occurrence: 3 },
      { step: "registry.append", occurrence: 1 },
      { step: "log.truncate", occurrence: 1 },
      { step: "folder.rename", occurrence: 2 },
    ];
    expect(await faultsAt(scenario, points)).toEqual([]);
  }, 300_000);

  // The log is truncated by then: a copy that was never fed knows no running hash to begin with.
  test("of adding a copy", async () => {
    expect(await faultsAt(scenario, [{ step: "seed.rename", occurrence: 4 }])).toEqual([]);
  }, 300_000);
});

test("gateway recover that was killed at a step goes on when it is run again, and gives the same", async () => {
  const scenario = await withLog();
  try {
    const points = [
      { step: "folder.rename", occurrence: 2 },
      { step: "cursor.save", occurrence: 3 },
    ];
    expect(await faultsAt(scenario, points)).toEqual([]);
  } finally {
    await scenario.close();
  }
}, 300_000);
