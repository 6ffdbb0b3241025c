// Order on one replica: side by side where it makes no difference, in log order where it does, and nothing waits for nothing.
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { doConflict, Scheduler } from "../../gateway/scheduler.ts";

/** The law, as plainly as it can be said: everything is looked up in lists. */
class Model {
  readonly nodes: {
    readonly position: number;
    readonly orderKeys: readonly string[] | null;
    isReleased: boolean;
    isFinished: boolean;
  }[] = [];
  readonly start: number;

  constructor(start: number) {
    this.start = start;
  }
  get entries() {
    return this.nodes.filter((it) => it.orderKeys !== null);
  }
  /** Those that may run, in order: nothing before that conflicts with them is still to take effect. */
  get runnable(): number[] {
    const open: (readonly string[])[] = [];
    const found: number[] = [];
    for (const it of this.entries) {
      const keys = it.orderKeys ?? [];
      const mayRun = !open.some((earlier) => conflicts(earlier, keys));
      // What was taken out before its turn takes its place all the same: it is over when its turn comes.
      if (!it.isReleased || !mayRun) open.push(keys);
      if (!it.isReleased && mayRun) found.push(it.position);
    }
    return found;
  }
  get watermark(): number {
    let last = this.start;
    for (const it of this.nodes) {
      if (!it.isFinished) break;
      last = it.position;
    }
    return last;
  }
  get finishedAbove(): number[] {
    return this.entries.filter((it) => it.isFinished && it.position > this.watermark).map((it) => it.position);
  }
  conflicts(position: number, orderKeys: readonly string[]): boolean {
    return this.entries.some(
      (it) => !it.isFinished && it.position <= position && conflicts(it.orderKeys ?? [], orderKeys),
    );
  }
  #at(position: number) {
    const found = this.nodes.find((it) => it.position === position);
    if (found === undefined) throw new Error(`no entry ${position}`);
    return found;
  }
  release(position: number): void {
    this.#at(position).isReleased = true;
  }
  finish(position: number): void {
    this.#at(position).isFinished = true;
  }
}

const conflicts = (a: readonly string[], b: readonly string[]): boolean =>
  a.length === 0 || b.length === 0 || a.some((it) => b.some((other) => it === other));

const orderKeys = fc.oneof(
  { weight: 5, arbitrary: fc.subarray(["a", "b", "c", "d", "e"], { minLength: 1, maxLength: 3 }) },
  { weight: 1, arbitrary: fc.constant<string[]>([]) },
);

type Step =
  | { readonly do: "add"; readonly orderKeys: readonly string[]; readonly gap: number }
  | { readonly do: "close" }
  | { readonly do: "release" | "finish" | "both" | "take out"; readonly pick: number };

const step: fc.Arbitrary<Step> = fc.oneof(
  {
    weight: 5,
    arbitrary: fc.record({
      do: fc.constant("add" as const),
      orderKeys,
      gap: fc.integer({ min: 1, max: 3 }),
    }),
  },
  { weight: 1, arbitrary: fc.record({ do: fc.constant("close" as const) }) },
  {
    weight: 5,
    arbitrary: fc.record({
      do: fc.constantFrom("release" as const, "finish" as const, "both" as const),
      pick: fc.nat(),
    }),
  },
);

/** Runs the steps against the scheduler and the model; what may run is running at once, as it would on a replica with room. */
function run(steps: readonly Step[], start: number): void {
  const scheduler = new Scheduler(start);
  const model = new Model(start);
  const running = new Set<number>();
  const released = new Set<number>();
  let position = start;
  const runnable = (it: number): void => {
    expect(running.has(it), `${it} is told twice`).toBe(false);
    running.add(it);
  };
  const release = (it: number): void => {
    running.delete(it);
    released.add(it);
    model.release(it);
    scheduler.release(it, runnable);
  };
  const finish = (it: number): void => {
    released.delete(it);
    model.finish(it);
    scheduler.finish(it);
  };
  const check = (): void => {
    expect([...running].sort((a, b) => a - b)).toEqual(model.runnable);
    expect(scheduler.watermark).toBe(model.watermark);
    expect(scheduler.size).toBe(running.size + released.size + waiting());
    expect(scheduler.finishedAbove()).toEqual(model.finishedAbove);
  };
  const waiting = (): number =>
    model.entries.filter((it) => !it.isFinished && !running.has(it.position) && !released.has(it.position)).length;

  for (const it of steps) {
    if (it.do === "add") {
      position += it.gap;
      model.nodes.push({ position, orderKeys: it.orderKeys, isReleased: false, isFinished: false });
      if (scheduler.add(position, it.orderKeys)) runnable(position);
    } else if (it.do === "close") {
      position += 1;
      model.nodes.push({ position, orderKeys: null, isReleased: true, isFinished: true });
      scheduler.close(position);
    } else if (it.do === "take out") {
      const all = model.entries.filter((entry) => !entry.isReleased && !running.has(entry.position));
      const chosen = all[it.pick % Math.max(1, all.length)]?.position;
      if (chosen === undefined) continue;
      release(chosen);
      finish(chosen);
    } else {
      const from = [...(it.do === "finish" ? released : running)];
      const chosen = from[it.pick % Math.max(1, from.length)];
      if (chosen === undefined) continue;
      if (it.do !== "finish") release(chosen);
      if (it.do !== "release") finish(chosen);
    }
    check();
    for (const keys of [[], ["a"], ["b", "e"], ["nobody's"]])
      for (const at of [start, position - 2, position, position + 5])
        expect(scheduler.conflicts(at, keys), `conflicts(${at}, ${keys.join()})`).toBe(model.conflicts(at, keys));
  }
  // Whatever the order, everything ends, and nothing is left behind.
  for (let left = running.size + waiting(); left > 0; left = running.size + waiting()) {
    const [first] = running;
    expect(first, "something waits for nothing").toBeDefined();
    release(first as number);
    finish(first as number);
    check();
  }
  for (const it of released) finish(it);
  check();
  expect(scheduler.watermark).toBe(position);
  expect(scheduler.size).toBe(0);
}

describe("scheduler", () => {
  it("runs exactly what the log order allows, whatever arrives, answers and finishes when", () => {
    fc.assert(fc.property(fc.array(step, { maxLength: 120 }), fc.constantFrom(0, 4095, 4096 * 1_000_000), run), {
      numRuns: 400,
    });
  });

  it("runs exactly what the log order allows, though entries are taken out before their turn", () => {
    const takeOut: fc.Arbitrary<Step> = fc.record({
      do: fc.constant("take out" as const),
      pick: fc.nat(),
    });
    const steps = fc.array(fc.oneof({ weight: 12, arbitrary: step }, { weight: 1, arbitrary: takeOut }), {
      maxLength: 120,
    });
    fc.assert(
      fc.property(steps, (list) => run(list, 0)),
      { numRuns: 400 },
    );
  });

  it("an entry that is taken out before its turn lets nobody overtake those before it", () => {
    const scheduler = new Scheduler(0);
    const told: number[] = [];
    expect([1, 2, 3].map((it) => scheduler.add(it, []))).toEqual([true, false, false]);
    // Parked, while 1 is in flight.
    scheduler.release(2, (it) => told.push(it));
    scheduler.finish(2);
    expect(told).toEqual([]);
    scheduler.release(1, (it) => told.push(it));
    expect(told).toEqual([3]);
  });

  it("goes on so over thousands of entries, of which the oldest finishes last", () => {
    const scheduler = new Scheduler(0);
    scheduler.add(1, ["held back"]);
    for (let at = 2; at <= 3000; at++) {
      expect(scheduler.add(at, ["b"])).toBe(true);
      scheduler.release(at, () => expect.unreachable());
      scheduler.finish(at);
    }
    expect(scheduler.watermark).toBe(0);
    expect(scheduler.finishedAbove()).toHaveLength(2999);
    expect(scheduler.conflicts(3000, ["b"])).toBe(false);
    expect(scheduler.conflicts(3000, [])).toBe(true);
    scheduler.release(1, () => expect.unreachable());
    scheduler.finish(1);
    expect(scheduler.watermark).toBe(3000);
    // The list has been shortened: what comes now is judged as before.
    for (let at = 3001; at < 6000; at++) {
      scheduler.add(at, ["c"]);
      scheduler.close(at);
    }
    expect(scheduler.conflicts(6000, ["c"])).toBe(true);
    expect(scheduler.conflicts(3000, ["c"])).toBe(false);
  });

  it("without order keys everything is one after the other", () => {
    const scheduler = new Scheduler(0);
    const told: number[] = [];
    const tell = (it: number): void => void told.push(it);
    expect([1, 2, 3].map((it) => scheduler.add(it, []))).toEqual([true, false, false]);
    scheduler.release(1, tell);
    expect(told).toEqual([2]);
    scheduler.release(2, tell);
    expect(told).toEqual([2, 3]);
  });

  it("an entry takes effect once: a second release wakes nobody", () => {
    const scheduler = new Scheduler(0);
    const told: number[] = [];
    scheduler.add(1, ["a"]);
    scheduler.add(2, ["a"]);
    scheduler.add(3, ["a"]);
    scheduler.release(1, (it) => told.push(it));
    scheduler.release(1, (it) => told.push(it));
    scheduler.release(99, (it) => told.push(it));
    expect(told).toEqual([2]);
  });

  it("what took effect and is not finished holds the watermark, and nothing else", () => {
    const scheduler = new Scheduler(0);
    scheduler.add(1, ["a"]);
    scheduler.add(2, ["a"]);
    scheduler.release(1, () => undefined);
    expect(scheduler.watermark).toBe(0);
    scheduler.release(2, () => undefined);
    scheduler.finish(2);
    expect([scheduler.watermark, scheduler.has(1), scheduler.has(2)]).toEqual([0, true, false]);
    scheduler.finish(1);
    expect(scheduler.watermark).toBe(2);
  });

  it("two entries may change places unless they share a key or one has none", () => {
    fc.assert(
      fc.property(orderKeys, orderKeys, (a, b) => {
        expect(doConflict(a, b)).toBe(conflicts(a, b));
        expect(doConflict(b, a)).toBe(doConflict(a, b));
      }),
    );
  });
});
