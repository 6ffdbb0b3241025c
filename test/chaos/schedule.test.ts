// What a seed plans, it plans again, byte for byte; and what it plans is what a run needs.

import { describe, expect, test } from "vitest";
import { faults } from "./faults.ts";
import { namesFor, planSchedule, serialise } from "./schedule.ts";
import type { Schedule } from "./schedule.ts";
import { shapeOf } from "./service.ts";
import type { LogKind } from "./service.ts";

const plan = (
  seed: number,
  log: LogKind = "nats",
  gateways = 1,
  seconds = 120,
  only: readonly string[] | null = null,
): Schedule =>
  planSchedule({ seed, timeMs: seconds * 1000, shape: shapeOf(log, gateways), clients: 12, rate: 400, only });

describe.each([
  ["embedded", 1],
  ["nats", 1],
  ["nats-r3", 3],
] as const)("%s with %i gateways", (log, gateways) => {
  test("two schedules of one seed are equal byte for byte, those of two seeds are not", () => {
    expect(serialise(plan(7, log, gateways))).toBe(serialise(plan(7, log, gateways)));
    expect(serialise(plan(8, log, gateways))).not.toBe(serialise(plan(7, log, gateways)));
  });

  test("every kind of fault that applies comes once before any comes twice", () => {
    const names = namesFor(shapeOf(log, gateways), null);
    const planned = plan(7, log, gateways).faults.map((one) => one.name);
    expect(planned.length).toBeGreaterThan(30);
    expect(new Set(planned.slice(0, names.length)).size).toBe(Math.min(planned.length, names.length));
  });

  test("every fault hits something that is there, for as long as its kind may last, and ends before the last part", () => {
    const shape = shapeOf(log, gateways);
    for (const { name, target, forMs, atMs } of plan(7, log, gateways).faults) {
      const [least, most] = faults[name]?.forMs ?? [0, 0];
      expect(faults[name]?.targets(shape)).toContain(target);
      expect(forMs).toBeGreaterThanOrEqual(least);
      expect(forMs).toBeLessThanOrEqual(most);
      expect(atMs + forMs).toBeLessThanOrEqual(116_000);
    }
  });
});

test("a part of the time is without any fault", () => {
  const { faults: planned, timeMs } = plan(7);
  const busyMs = planned.reduce((sum, { forMs }) => sum + forMs, 0);
  expect(busyMs).toBeLessThan(timeMs * 0.8);
});

test("clients do what a hundred operations are made of, on few keys at a time, half of them with keys", () => {
  const { clients } = plan(7);
  const all = clients.flat();
  const share = (isMeant: (one: (typeof all)[number]) => boolean): number => all.filter(isMeant).length / all.length;
  expect(all.length).toBe(72_000);
  expect(new Set(all.map((one) => one.id)).size).toBe(all.length);
  expect(share((one) => one.verb === "get" && one.level === "linearizable")).toBeCloseTo(0.36, 1);
  expect(share((one) => one.verb === "put")).toBeCloseTo(0.23, 1);
  expect(share((one) => one.verb === "cas")).toBeCloseTo(0.15, 1);
  expect(share((one) => one.verb === "get" && one.level !== "linearizable")).toBeGreaterThan(0.03);
  expect(share((one) => one.isKeyed) / share((one) => one.verb !== "get")).toBeCloseTo(0.5, 1);
  const perKey = new Map<string, number>();
  for (const { key } of all) perKey.set(key, (perKey.get(key) ?? 0) + 1);
  expect(Math.max(...perKey.values())).toBeLessThanOrEqual(300);
  expect(new Set(all.slice(20_000, 20_050).map((one) => one.key)).size).toBeLessThanOrEqual(10);
});

test("faults that do not exist, or not here, are refused by name", () => {
  expect(() => namesFor(shapeOf("nats", 1), ["nats-kil"])).toThrow("nats-kil");
  expect(() => namesFor(shapeOf("embedded", 1), ["nats-kill"])).toThrow("nats-kill");
  expect(plan(7, "nats", 1, 60, ["nats-kill"]).faults.every((one) => one.name === "nats-kill")).toBe(true);
});
