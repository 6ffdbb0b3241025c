// The real flow in simulated worlds: whatever goes wrong in them, what is promised holds, and a seed tells the same story again.
import { describe, expect, it } from "vitest";
import { simulate } from "./simulate.ts";

/** Processor time of one of them is about 30 ms. */
const some = (from: number, count: number): number[] => Array.from({ length: count }, (_, at) => from + at);

describe("a simulated service", () => {
  it.each([1, 2, 3])(
    "keeps its promises whatever goes wrong, with %i gateways",
    async (gateways) => {
      for (const seed of some(1, 60)) {
        const { failures } = await simulate(seed, { gateways });
        expect(failures, `npm run simulate -- --seed ${seed} --seeds 1 --gateways ${gateways}`).toEqual([]);
      }
    },
    120_000,
  );

  it("goes the same way again when its seed is the same", async () => {
    for (const seed of some(1, 5)) {
      const first = await simulate(seed, { keepsTrace: true });
      const second = await simulate(seed, { keepsTrace: true });
      expect(second.trace).toEqual(first.trace);
      expect(second.hash).toBe(first.hash);
      expect(first.trace.length).toBeGreaterThan(100);
    }
  });

  it("goes another way with another seed", async () => {
    const hashes = new Set<string>();
    for (const seed of some(1, 5)) hashes.add((await simulate(seed)).hash);
    expect(hashes.size).toBe(5);
  });
});
