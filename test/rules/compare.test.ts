// Answers: digests that are equal when the rule says so, and differences that a person can read.
import * as fc from "fast-check";
import { describe, expect, it } from "vitest";
import { describeDifferences, digestAnswer } from "../../rules/compare.ts";
import { parseRules } from "../../rules/rule.ts";
import type { Answer } from "../../rules/compare.ts";
import type { Rule } from "../../rules/rule.ts";

function rule(compare: object): Rule {
  const text = JSON.stringify({ version: 1, rules: [{ match: "POST /a", mode: "replicate", compare }] });
  return parseRules(text, { file: "r" }).rules.rules[0]!;
}

function answer(body: unknown = "", status = 200, headers: string[] = []): Answer {
  const bytes = Buffer.isBuffer(body) ? body : Buffer.from(typeof body === "string" ? body : JSON.stringify(body));
  return { status, headers, body: bytes };
}

/** `=` or `≠`, first for what decides, then for all. */
function compare(by: Rule, a: Answer, b: Answer): string {
  const [x, y] = [digestAnswer(by, a), digestAnswer(by, b)];
  return (x.decisive.equals(y.decisive) ? "=" : "≠") + (x.full.equals(y.full) ? "=" : "≠");
}

const status = rule({});
const json = rule({ body: "json", ignore: ["/at", "/items/*/id", "/list/0"] });
const bytes = rule({ body: "bytes" });
const headers = rule({ headers: ["Location", "x-v"] });

const nested = (inner: string): Answer => answer("[".repeat(100_000) + inner + "]".repeat(100_000));

describe("digests", () => {
  it("are 16 bytes, the same on every machine and for ever", () => {
    const { decisive, full } = digestAnswer(status, answer("hello"));
    expect([decisive.toString("hex"), full.toString("hex")]).toEqual([
      "c11e3f4837efde2441e23a7b9da02131",
      "7c8c44fc1b063cec9c42f3c885091a38",
    ]);
    expect([decisive.length, full.length]).toEqual([16, 16]);
  });

  it("by default the status alone decides, and the body is told", () => {
    expect(compare(status, answer("a"), answer("a"))).toBe("==");
    expect(compare(status, answer("a"), answer("b"))).toBe("=≠");
    expect(compare(status, answer("a", 200), answer("a", 201))).toBe("≠≠");
    expect(compare(status, answer("a", 200, ["Date", "1"]), answer("a", 200, ["Date", "2"]))).toBe("==");
  });

  it("a rule may have bytes decide", () => {
    expect(compare(bytes, answer('{"a":1}'), answer('{"a": 1}'))).toBe("≠≠");
    expect(compare(bytes, answer(Buffer.from([0, 255])), answer(Buffer.from([0, 255])))).toBe("==");
    expect(compare(bytes, answer(Buffer.alloc(5000, 1)), answer(Buffer.alloc(5000, 1)))).toBe("==");
    expect(compare(bytes, answer(Buffer.alloc(5000, 1)), answer(Buffer.alloc(5001, 1)))).toBe("≠≠");
  });

  it("a rule may have JSON decide, without what is ignored", () => {
    expect(compare(json, answer('{"b":1,"a":[2]}'), answer(' {"a": [2.0], "b": 1} '))).toBe("==");
    expect(compare(json, answer({ a: 1, at: 1 }), answer({ a: 1, at: 2 }))).toBe("==");
    expect(compare(json, answer({ a: 1, at: 1 }), answer({ a: 1 }))).toBe("==");
    expect(compare(json, answer({ a: 1 }), answer({ a: 2 }))).toBe("≠≠");
    expect(compare(json, answer({ items: [{ id: 1, n: 1 }] }), answer({ items: [{ id: 2, n: 1 }] }))).toBe("==");
    expect(compare(json, answer({ items: [{ id: 1, n: 1 }] }), answer({ items: [{ id: 1, n: 2 }] }))).toBe("≠≠");
    expect(compare(json, answer({ list: [1, 2] }), answer({ list: [3, 2] }))).toBe("==");
    expect(compare(json, answer({ list: [1, 2] }), answer({ list: [2] }))).toBe("≠≠");
    expect(compare(json, answer([1, 2]), answer([2, 1]))).toBe("≠≠");
    expect(compare(json, answer({ a: "1" }), answer({ a: 1 }))).toBe("≠≠");
  });

  it("numbers that no double holds are not rounded into being equal", () => {
    expect(compare(json, answer('{"a":12345678901234567}'), answer('{"a":12345678901234568}'))).toBe("≠≠");
    expect(compare(json, answer('{"a":"12345678901234567"}'), answer('{"a":12345678901234567}'))).toBe("≠≠");
    expect(compare(json, answer('{"at":12345678901234567,"b":1}'), answer('{"at":1,"b":1}'))).toBe("==");
  });

  it("what is no JSON, or too deep, is compared by its bytes", () => {
    expect(compare(json, answer("oops"), answer("oops"))).toBe("==");
    expect(compare(json, answer("oops"), answer("ooops"))).toBe("≠≠");
    expect(compare(json, nested(""), nested(""))).toBe("==");
    expect(compare(json, answer('{"a":12345678901234567'), answer('{"a":12345678901234567'))).toBe("==");
  });

  it("a rule may have headers decide, whatever the case of their names", () => {
    const at = (...pairs: string[]): Answer => answer("", 200, pairs);
    expect(compare(headers, at("Location", "/1"), at("LOCATION", "/1", "Server", "x"))).toBe("==");
    expect(compare(headers, at("Location", "/1"), at("Location", "/2"))).toBe("≠=");
    expect(compare(headers, at("Location", "/1"), at())).toBe("≠=");
    expect(compare(headers, at("X-V", "1", "X-V", "2"), at("X-V", "1, 2"))).toBe("≠=");
    expect(compare(headers, at("Location", "a"), at("X-V", "a"))).toBe("≠=");
    const only = rule({ status: false, headers: ["location"] });
    expect(compare(only, answer("", 200, ["location", "a"]), answer("", 201, ["location", "a"]))).toBe("=≠");
  });

  it("of any JSON do not depend on how it is written", () => {
    fc.assert(
      fc.property(fc.jsonValue(), (value) => {
        const text = JSON.stringify(value);
        const shuffled = JSON.stringify(
          value,
          (_, v: unknown) =>
            typeof v === "object" && v !== null && !Array.isArray(v)
              ? Object.fromEntries(Object.entries(v).reverse())
              : v,
          1,
        );
        expect(compare(rule({ body: "json" }), answer(text), answer(shuffled))).toBe("==");
      }),
      { numRuns: 300 },
    );
  });
});

const big = (n: number): Answer =>
  answer(Object.fromEntries(Array.from({ length: 1000 }, (_, i) => [`k${i}`, String(n).repeat(1000)])));

describe("differences", () => {
  it("are told by place, with both sides", () => {
    const by = rule({ headers: ["location"], body: "json", ignore: ["/at"] });
    const a = answer({ at: 1, items: [{ id: 1, "a/b": [] }], same: 1 }, 200, ["Location", "/1"]);
    const b = answer({ at: 2, items: [{ id: 2, "a/b": {} }, null], same: 1, more: "x" }, 201, []);
    expect(describeDifferences(by, a, b)).toEqual([
      { where: "status", left: "200", right: "201" },
      { where: "header location", left: "/1", right: "" },
      { where: "body /items/0/a~1b", left: "[]", right: "{}" },
      { where: "body /items/0/id", left: "1", right: "2" },
      { where: "body /items/1", left: "(absent)", right: "null" },
      { where: "body /more", left: "(absent)", right: '"x"' },
    ]);
  });

  it("of bodies are told even where they do not decide", () => {
    expect(describeDifferences(status, answer({ a: 1 }), answer({ a: 2 }))).toEqual([
      { where: "body /a", left: "1", right: "2" },
    ]);
    expect(describeDifferences(status, answer("abc"), answer("abd"))).toEqual([
      { where: "body byte 2", left: "abc", right: "abd" },
    ]);
    expect(describeDifferences(status, answer("same"), answer("same"))).toEqual([]);
    expect(describeDifferences(json, answer('{"a":1}'), answer('{ "a":1}'))).toEqual([]);
    expect(describeDifferences(bytes, answer('{"a":1}'), answer('{ "a":1}'))[0]!.where).toBe("body byte 1");
    expect(describeDifferences(status, answer("1"), answer("2"))).toEqual([{ where: "body", left: "1", right: "2" }]);
    expect(describeDifferences(status, answer('{"a":12345678901234567}'), answer('{"a":1}'))[0]!.left).toBe(
      "12345678901234567",
    );
  });

  it("are few and short, whatever the answers", () => {
    const found = describeDifferences(status, big(1), big(2));
    expect(found).toHaveLength(20);
    expect(Math.max(...found.map((d) => d.left.length))).toBeLessThanOrEqual(200);
    expect(describeDifferences(status, nested("1"), nested("2"))[0]!.where).toBe("body byte 100000");
  });
});
