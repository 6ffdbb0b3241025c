// A Map in what it gives, and not one in what it keeps.
import { getHeapSpaceStatistics, setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import fc from "fast-check";
import { expect, it } from "vitest";
import { ByPosition } from "../../gateway/byposition.ts";

interface Thing {
  readonly n: number;
}

const step = fc.record({
  do: fc.constantFrom("next" as const, "next" as const, "set" as const, "delete" as const, "delete" as const),
  pick: fc.nat({ max: 300 }),
});

it("holds what a Map would hold, in the order of positions", () => {
  fc.assert(
    fc.property(fc.array(step, { maxLength: 400 }), (steps) => {
      const tested = new ByPosition<Thing>();
      const model = new Map<number, Thing>();
      let last = 0;
      for (const [n, { do: what, pick }] of steps.entries()) {
        const position = what === "next" ? (last += 1 + (pick % 3)) : last - pick;
        if (what === "delete") expect(tested.delete(position)).toBe(model.delete(position));
        else {
          tested.set(position, { n });
          model.set(position, { n });
        }
        expect(tested.get(position)).toEqual(model.get(position));
        expect(tested.size).toBe(model.size);
      }
      const inOrder = [...model].sort(([a], [b]) => a - b).map(([, thing]) => thing);
      expect([...tested.values()]).toEqual(inOrder);
    }),
  );
});

it("is walked while things go from it", () => {
  const tested = new ByPosition<Thing>();
  for (let n = 0; n < 200; n++) tested.set(n, { n });
  const seen: number[] = [];
  for (const { n } of tested.values()) {
    seen.push(n);
    // Enough to make the rest move together.
    if (n === 10) for (let gone = 11; gone < 190; gone++) tested.delete(gone);
  }
  expect(seen).toEqual([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, ...Array.from({ length: 10 }, (_, i) => 190 + i)]);
  tested.clear();
  expect([tested.size, tested.get(199), [...tested.values()]]).toEqual([0, undefined, []]);
});

it("keeps nothing alive that was deleted, however old it is itself", () => {
  setFlagsFromString("--expose-gc");
  const collect = runInNewContext("gc") as () => void;
  const tested = new ByPosition<object>();
  const inFlight = 32;
  const pass = (from: number, to: number): void => {
    for (let n = from; n < to; n++) {
      tested.set(n, { large: Array.from({ length: 500 }, () => n) });
      tested.delete(n - inFlight);
    }
  };
  pass(0, 100);
  // What lives through a full collection is old.
  collect();
  collect();
  const before = oldBytes();
  // 80 MB. Of a Map's more than half would be there afterwards.
  pass(100, 20_000);
  expect(oldBytes() - before).toBeLessThan(8 * 1024 * 1024);
});

const oldBytes = (): number =>
  getHeapSpaceStatistics().find(({ space_name: name }) => name === "old_space")?.space_used_size ?? 0;
