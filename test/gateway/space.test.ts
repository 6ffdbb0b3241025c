// How full the log is, without asking it for every request.
import { describe, expect, it } from "vitest";
import type { Fact } from "../../gateway/events.ts";
import { Events } from "../../gateway/events.ts";
import type { Log, LogInfo } from "../../gateway/log/log.ts";
import { Space } from "../../gateway/space.ts";

function bench(bytes: number, maxBytes = 1000) {
  const events = new Events();
  const facts: Fact[] = [];
  events.listen((fact) => fact.type === "log" && facts.push(fact));
  let info: Promise<LogInfo> | null = null;
  const log = { info: () => info } as unknown as Log;
  const at = (of: number): LogInfo => ({ first: 1, last: 1, bytes: of, maxBytes });
  const space = new Space(log, events, at(bytes), 0);
  return {
    space,
    facts,
    append: (size: number) => events.tell({ type: "appended", items: 1, bytes: size, durationMs: 1 }),
    measure: (of: number | null, nowMs: number) => {
      info = of === null ? Promise.reject(new Error("away")) : Promise.resolve(at(of));
      return space.measure(nowMs);
    },
    measureLater: (nowMs: number) => {
      const told: { answer?: (found: LogInfo) => void } = {};
      info = new Promise((answer) => (told.answer = answer));
      const measured = space.measure(nowMs);
      return (of: number): Promise<void> => {
        told.answer?.(at(of));
        return measured;
      };
    },
  };
}

describe("space", () => {
  it("is full at 90 % of the log's size", () => {
    expect([bench(899).space.isFull, bench(900).space.isFull]).toEqual([false, true]);
  });

  it("counts what was appended since the last look", async () => {
    const { space, append, measure } = bench(800);
    append(60);
    expect(space.isFull).toBe(false);
    append(40);
    expect(space.isFull).toBe(true);
    await measure(850, 1000);
    expect(space.isFull).toBe(false);
  });

  it("what is appended during a look counts until the next one", async () => {
    const { space, append, measureLater } = bench(800);
    append(30);
    const resolve = measureLater(1000);
    append(50);
    await resolve(850);
    expect([space.info.bytes, space.isFull]).toEqual([850, true]);
  });

  it("a log that is away keeps its last figures, and what was appended still counts", async () => {
    const { space, append, measure } = bench(800);
    append(100);
    await measure(null, 1000);
    expect([space.info.bytes, space.isFull]).toEqual([800, true]);
  });

  it("full and room are told once each time", async () => {
    const { facts, measure } = bench(800);
    for (const [at, bytes] of [850, 950, 960, 100, 100].entries()) await measure(bytes, 1000 * (at + 1));
    expect(facts).toMatchObject([
      { state: "full", detail: "950 of 1000 bytes" },
      { state: "room", detail: "100 of 1000 bytes" },
    ]);
  });

  it("the time left follows from how it grew", async () => {
    const { space, measure } = bench(0, 10_000);
    expect(space.secondsUntilFull).toBe(null);
    await measure(1000, 1000);
    expect(space.secondsUntilFull).toBeCloseTo(8);
    await measure(2000, 2000);
    expect(space.secondsUntilFull).toBeCloseTo(7);
    // Slower for a second: a little more time.
    await measure(2000, 3000);
    expect(space.secondsUntilFull).toBeCloseTo(7000 / 900);
    await measure(9500, 4000);
    expect(space.secondsUntilFull).toBe(0);
    // Truncated: there is time again.
    await measure(0, 5000);
    expect(space.secondsUntilFull).toBeGreaterThan(9);
  });

  it("a log that does not grow has no end in sight", async () => {
    const { space, measure } = bench(500);
    await measure(500, 1000);
    expect(space.secondsUntilFull).toBe(null);
    await measure(100, 2000);
    expect(space.secondsUntilFull).toBe(null);
  });
});
