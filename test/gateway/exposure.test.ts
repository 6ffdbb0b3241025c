// The poison guard: one copy goes first, a silent one holds nobody up for long, and what ended copies is taken alone, then parked.
import { afterEach, beforeEach, describe, expect, it, onTestFinished, vi } from "vitest";
import { Exposure } from "../../gateway/exposure.ts";

beforeEach(() => void vi.useFakeTimers());
afterEach(() => void vi.useRealTimers());

function bench(options: { kills?: number; live?: readonly string[] } = {}) {
  const parked: [number, number][] = [];
  const clock = { now: () => Date.now(), wallMs: () => Date.now(), sleep: () => Promise.resolve() };
  const exposure = new Exposure(clock, options.kills ?? 2, (position, kills) => parked.push([position, kills]));
  onTestFinished(() => exposure.close());
  let { live = ["a", "b", "c"] } = options;
  exposure.liveIs(() => live);
  const heard = { opened: 0 };
  exposure.onOpened(() => heard.opened++);
  return {
    exposure,
    parked,
    heard,
    setLive: (names: readonly string[]) => (live = names),
    ask: (replica: string, position: number) => exposure.ask(replica, position, "r", null),
    answered: (replica: string, position: number, tookMs = 10) => exposure.answered(replica, position, "r", tookMs),
  };
}

describe("exposure", () => {
  it("the first that asks goes, the others wait until it has answered", () => {
    const { ask, answered, heard } = bench();
    expect([ask("b", 1), ask("a", 1), ask("c", 1), ask("b", 1)]).toEqual(["go", "wait", "wait", "go"]);
    expect(heard.opened).toBe(0);
    answered("b", 1);
    expect(heard.opened).toBe(1);
    expect([ask("a", 1), ask("c", 1)]).toEqual(["go", "go"]);
  });

  it("entries are guarded one by one", () => {
    const { ask, answered } = bench();
    expect([ask("a", 1), ask("b", 2), ask("c", 3)]).toEqual(["go", "go", "go"]);
    expect([ask("b", 1), ask("c", 2), ask("a", 3)]).toEqual(["wait", "wait", "wait"]);
    answered("b", 2);
    expect([ask("c", 2), ask("b", 1)]).toEqual(["go", "wait"]);
  });

  it("a replica that was silent does not wait without an end for another gateway's, whose word was lost", () => {
    const { exposure, ask } = bench();
    exposure.elsewhereIs((name) => name !== "a");
    ask("a", 1);
    vi.advanceTimersByTime(100);
    expect(ask("a", 2)).toBe("wait");
    vi.advanceTimersByTime(100);
    expect(ask("a", 2)).toBe("go");
  });

  it("a suspect that another gateway's replica may have survived is taken after a while, though that is never heard of", () => {
    const { exposure, ask } = bench({ live: ["b", "a"] });
    exposure.elsewhereIs((name) => name === "b");
    expect(exposure.ask("a", 1, "r", "b")).toBe("wait");
    exposure.died("c", [1]);
    expect(ask("a", 1)).toBe("wait");
    vi.advanceTimersByTime(6000);
    expect(ask("a", 1)).toBe("alone");
  });

  it("a copy that catches up does not wait entry by entry for what another gateway's replica has long finished", () => {
    const { exposure } = bench({ live: ["b", "a"] });
    exposure.elsewhereIs((name) => name === "b");
    exposure.finishedIs((position) => position <= 100);
    for (let position = 1; position <= 100; position++) expect(exposure.ask("a", position, "r", "b")).toBe("go");
    expect(exposure.ask("a", 101, "r", "b")).toBe("wait");
  });

  it("what a replica has finished is not parked, also where it is forgotten who survived it", () => {
    const { exposure, parked } = bench();
    exposure.finishedIs((position) => position <= 1);
    for (const name of ["c", "c"]) exposure.died(name, [1, 2]);
    expect(parked).toEqual([[2, 2]]);
  });

  it("nobody is woken who was not refused", () => {
    const { ask, answered, heard } = bench();
    for (const position of [1, 2, 3]) {
      ask("a", position);
      answered("a", position);
    }
    expect(heard.opened).toBe(0);
  });

  it("the others go after 50 ms of silence plus four times the usual time", () => {
    const { ask, answered, heard } = bench();
    ask("a", 1);
    ask("b", 1);
    vi.advanceTimersByTime(40);
    expect([heard.opened, ask("b", 1)]).toEqual([0, "wait"]);
    vi.advanceTimersByTime(20);
    expect([heard.opened, ask("b", 1)]).toEqual([1, "go"]);
    // Now it is known that the rule usually takes 100 ms.
    answered("a", 1, 100);
    ask("a", 2);
    expect(ask("b", 2)).toBe("wait");
    vi.advanceTimersByTime(440);
    expect(ask("b", 2)).toBe("wait");
    vi.advanceTimersByTime(20);
    expect(ask("b", 2)).toBe("go");
  });

  it("usual is a moving average, and each rule has its own", () => {
    const { exposure, ask, answered } = bench();
    answered("a", 1, 1000);
    for (let position = 2; position < 60; position++) answered("a", position, 10);
    exposure.ask("a", 100, "other", null);
    ask("b", 101);
    vi.advanceTimersByTime(60);
    expect(exposure.ask("c", 100, "other", null)).toBe("go");
    expect(ask("c", 101)).toBe("wait");
    vi.advanceTimersByTime(60);
    expect(ask("c", 101)).toBe("go");
  });

  it("one that was silent is nobody's first until it answers again, unless it is alone", () => {
    const { ask, answered, setLive, heard } = bench();
    ask("a", 1);
    vi.advanceTimersByTime(60);
    expect(ask("a", 2)).toBe("wait");
    expect([ask("b", 2), ask("a", 2)]).toEqual(["go", "wait"]);
    answered("b", 2);
    expect(heard.opened).toBe(1);
    setLive(["a"]);
    expect(ask("a", 3)).toBe("go");
    setLive(["a", "b", "c"]);
    expect(ask("a", 4)).toBe("wait");
    answered("a", 1);
    expect(ask("a", 4)).toBe("go");
  });

  it("when all were silent somebody goes first all the same", () => {
    const { ask } = bench({ live: ["a", "b"] });
    ask("a", 1);
    ask("b", 2);
    vi.advanceTimersByTime(60);
    expect([ask("a", 3), ask("b", 3)]).toEqual(["go", "wait"]);
  });
});

describe("suspects", () => {
  it("what was in flight when a replica ended is taken alone, by one after the other", () => {
    const { exposure, ask, heard, parked } = bench({ kills: 3 });
    ask("a", 1);
    ask("b", 1);
    exposure.died("a", [1]);
    expect(heard.opened).toBe(1);
    expect(ask("b", 1)).toBe("alone");
    // It asks until it has nothing else in flight.
    expect([ask("b", 1), ask("c", 1)]).toEqual(["alone", "alone"]);
    exposure.takeAlone("b", 1);
    expect([ask("c", 1), ask("a", 1), ask("b", 1)]).toEqual(["wait", "wait", "alone"]);
    expect(parked).toEqual([]);
  });

  it("who survives a suspect has cleared it for all", () => {
    const { exposure, ask, answered, parked } = bench();
    ask("a", 1);
    exposure.died("a", [1]);
    exposure.takeAlone("b", 1);
    expect(ask("c", 1)).toBe("wait");
    answered("b", 1);
    expect([ask("c", 1), ask("a", 1), parked]).toEqual(["go", "go", []]);
  });

  it("so many deaths park it", () => {
    const { exposure, ask, parked } = bench({ kills: 2 });
    ask("a", 1);
    exposure.died("a", [1]);
    expect(parked).toEqual([]);
    exposure.takeAlone("b", 1);
    exposure.died("b", [1]);
    expect(parked).toEqual([[1, 2]]);
    const once = bench({ kills: 1 });
    once.ask("a", 7);
    once.exposure.died("a", [7, 8]);
    expect(once.parked).toEqual([
      [7, 1],
      [8, 1],
    ]);
  });

  it("silence does not open a suspect: it stays with the one who has it", () => {
    const { exposure, ask } = bench({ kills: 3 });
    ask("a", 1);
    exposure.died("a", [1]);
    exposure.takeAlone("b", 1);
    vi.advanceTimersByTime(10_000);
    expect(ask("c", 1)).toBe("wait");
    exposure.died("b", [1]);
    expect(ask("c", 1)).toBe("alone");
  });

  it("an entry that had been opened by silence becomes a suspect again when one dies of it", () => {
    const { exposure, ask } = bench({ kills: 3 });
    ask("a", 1);
    vi.advanceTimersByTime(60);
    expect(ask("b", 1)).toBe("go");
    exposure.died("b", [1]);
    expect(ask("c", 1)).toBe("alone");
  });

  it("a death with nothing in flight wakes those who wait for the dead", () => {
    const { exposure, ask, heard } = bench();
    ask("a", 1);
    ask("b", 1);
    exposure.died("c", []);
    expect(heard.opened).toBe(1);
  });

  it("an entry that somebody has answered is never parked, however many end with it in flight", () => {
    const { exposure, ask, answered, parked } = bench({ kills: 2 });
    ask("a", 1);
    answered("a", 1);
    expect([ask("b", 1), ask("c", 1)]).toEqual(["go", "go"]);
    // The machine of both was switched off; the client has its answer from a.
    exposure.died("b", [1]);
    exposure.died("c", [1]);
    expect(parked).toEqual([]);
    expect([ask("b", 1), ask("c", 1)]).toEqual(["go", "go"]);
  });
});
