import * as fc from "fast-check";
import { describe, expect, it } from "vitest";
import { assign } from "../../gateway/assignment.ts";
import type { Feedable, Feeder } from "../../gateway/assignment.ts";

const free = (name: string, owners: readonly string[] = []): Feedable => ({ name, owners, home: null });
const gateway = (name: string): Feeder => ({ name, boot: `boot-${name}` });
const plan = (
  replicas: readonly Feedable[],
  gateways: readonly Feeder[],
  current: Readonly<Record<string, string>> = {},
): Readonly<Record<string, string>> => Object.fromEntries(assign(replicas, gateways, new Map(Object.entries(current))));

describe("who feeds which replica", () => {
  it("is spread evenly over all that are there", () => {
    expect(plan([free("a"), free("b"), free("c")], [gateway("2"), gateway("1")])).toEqual({
      a: "boot-1",
      b: "boot-2",
      c: "boot-1",
    });
  });

  it("stays as it is while nobody feeds two more than another", () => {
    const now = { a: "boot-2", b: "boot-2", c: "boot-1" };
    expect(plan([free("a"), free("b"), free("c")], [gateway("1"), gateway("2")], now)).toEqual(now);
  });

  it("moves one replica at a time to a gateway that joins, and the first of the roster last", () => {
    const now = { a: "boot-1", b: "boot-1", c: "boot-1" };
    expect(plan([free("a"), free("b"), free("c")], [gateway("1"), gateway("2")], now)).toEqual({
      ...now,
      c: "boot-2",
    });
  });

  it("goes on with those that are left", () => {
    expect(plan([free("a"), free("b")], [gateway("2")], { a: "boot-1", b: "boot-2" })).toEqual({
      a: "boot-2",
      b: "boot-2",
    });
  });

  it("keeps to `owners`, and to the gateway that starts it", () => {
    const replicas = [free("a", ["2"]), { name: "b", owners: [], home: "1" }, free("c", ["9"])];
    expect(plan(replicas, [gateway("1"), gateway("2")])).toEqual({ a: "boot-2", b: "boot-1" });
  });

  it("becomes even in few moves, from any beginning, and then rests", () => {
    const names = fc.uniqueArray(fc.constantFrom("a", "b", "c", "d", "e", "f", "g"), { minLength: 1 });
    const members = fc.uniqueArray(fc.constantFrom("1", "2", "3", "4"), { minLength: 1 });
    fc.assert(
      fc.property(names, members, fc.array(fc.nat(4), { minLength: 7, maxLength: 7 }), (list, here, start) => {
        const replicas = list.map((name) => free(name));
        const gateways = here.map(gateway);
        let current = new Map<string, string>(list.map((name, at) => [name, `boot-${(start[at] ?? 0) + 1}`]));
        for (let moves = 0; moves <= list.length; moves++) {
          const next = assign(replicas, gateways, current);
          if (moves > 0) {
            const moved = list.filter((name) => next.get(name) !== current.get(name));
            expect(moved.length).toBeLessThanOrEqual(1);
          }
          current = new Map(next);
        }
        const loads = gateways.map(({ boot }) => [...current.values()].filter((it) => it === boot).length);
        expect(Math.max(...loads) - Math.min(...loads)).toBeLessThanOrEqual(1);
        expect(assign(replicas, gateways, current)).toEqual(current);
      }),
    );
  });
});
