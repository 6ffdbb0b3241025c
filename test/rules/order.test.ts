// Order keys: what shares none may run side by side, and what cannot be told is a barrier.
import { describe, expect, it } from "vitest";
import { orderKeys } from "../../rules/order.ts";
import { parseRules } from "../../rules/rule.ts";
import { context } from "./request.ts";

function keys(
  order: string[] | null,
  request: Parameters<typeof context>[0],
  batch: "none" | "uniform" | "mixed" = "none",
): readonly string[] {
  const rule = { match: "POST /a/:x/:y", mode: "replicate", ...(order === null ? {} : { order }) };
  const [first] = parseRules(JSON.stringify({ version: 1, rules: [rule] }), { file: "r" }).rules.rules;
  return orderKeys({ rule: first!, batch }, context(request));
}

const both = (x: string, y: string): readonly string[] => keys(["{path.x}:{path.y}"], { params: { x, y } });

const long = (c: string): readonly string[] => keys(["a:{body.b}"], { body: { b: c.repeat(100_000) } });

describe("order keys", () => {
  it("are the rendered templates, each once", () => {
    expect(keys(["a:{path.x}", "b:{body.b}", "a:{path.x}"], { params: { x: "1" }, body: { b: 2 } })).toEqual([
      "a:1",
      "b:2",
    ]);
  });

  it("without order, or with a value that is missing, there is a barrier", () => {
    expect(keys(null, {})).toEqual([]);
    expect(keys(["a:{path.x}", "b:{body.b}"], { params: { x: "1" }, body: {} })).toEqual([]);
    expect(keys(["b:{body.b}"], { body: { b: {} } })).toEqual([]);
    expect(keys(["b:{body.b}"], { body: { b: 1, B: 2 } })).toEqual([]);
    expect(keys(["b:{query.b}"], { query: "b=1&b=2" })).toEqual([]);
  });

  it("never read two ways, whatever is in the values", () => {
    expect(both("a:b", "c")).not.toEqual(both("a", "b:c"));
    expect(both("a%3A", "c")).not.toEqual(both("a:", "c"));
    expect(both("\ud800", "c")).not.toEqual(both("\ud801", "c"));
    expect(both("é", "c")).toEqual(["%C3%A9:c"]);
  });

  it("agree between a number in a body and the same in a path", () => {
    expect(keys(["a:{body.b}"], { body: { b: 7 } })).toEqual(keys(["a:{path.x}"], { params: { x: "7" } }));
  });

  it("are short, however long the value", () => {
    expect(long("x")[0]).toMatch(/^sha256:[0-9a-f]{64}$/);
    expect(long("x")).not.toEqual(long("y"));
  });

  it("of a batch under one rule are those of all members, else there is a barrier", () => {
    const body = [{ b: 1 }, { b: 2 }, { b: 1 }];
    expect(keys(["a:{body.b}"], { body }, "uniform")).toEqual(["a:1", "a:2"]);
    expect(keys(["a:{body.b}"], { body: [...body, {}] }, "uniform")).toEqual([]);
    expect(keys(["a:{body.b}"], { body }, "mixed")).toEqual([]);
    expect(keys(["a:{body.b}"], { body: Array.from({ length: 5000 }, (_, b) => ({ b })) }, "uniform")).toEqual([]);
  });
});
