// Idempotency keys: one value for every spelling, and a reason where there is none.
import { describe, expect, it } from "vitest";
import { idempotencyKey, parseKey } from "../../rules/key.ts";
import { parseRules } from "../../rules/rule.ts";
import { context } from "./request.ts";
import type { IdempotencyKey } from "../../rules/key.ts";

function keyOf(key: object, request: Parameters<typeof context>[0]): IdempotencyKey {
  const rule = { match: "POST /a/:id", mode: "replicate", key };
  const [first] = parseRules(JSON.stringify({ version: 1, rules: [rule] }), { file: "r" }).rules.rules;
  return idempotencyKey({ rule: first! }, context(request));
}

describe("the Idempotency-Key header", () => {
  it.each([
    ["8e03978e-40d5-43dd-bc93-6894a57f9324", "8e03978e-40d5-43dd-bc93-6894a57f9324"],
    ['"8e03978e-40d5-43dd-bc93-6894a57f9324"', "8e03978e-40d5-43dd-bc93-6894a57f9324"],
    ["  bare\t", "bare"],
    ['"with space"', "with space"],
    ['"a\\"b\\\\c"', 'a"b\\c'],
    ["YWJj+/=", "YWJj+/="],
    ["a:b/c@d", "a:b/c@d"],
    ["x".repeat(255), "x".repeat(255)],
  ])("%s is the key %s", (line, value) => {
    expect(parseKey(line)).toEqual({ kind: "key", value });
  });

  it.each([
    "",
    '""',
    " ",
    "a b",
    "a,b",
    'a"b',
    '"a',
    'a"',
    '"a";p=1',
    '"a\\b"',
    '"é"',
    "é",
    "a;b",
    "a\u0000",
    "x".repeat(256),
    `"${"x".repeat(256)}"`,
    '"a""b"',
    "(a)",
    "{a}",
  ])("%j is malformed", (line) => {
    expect(parseKey(line).kind).toBe("malformed");
  });

  it("may be absent unless the rule requires it, and may not be there twice", () => {
    expect(keyOf({}, {})).toEqual({ kind: "none" });
    expect(keyOf({ required: true }, {})).toEqual({ kind: "missing" });
    expect(keyOf({}, { headers: ["idempotency-KEY", "a"] })).toEqual({ kind: "key", value: "a" });
    expect(keyOf({}, { headers: ["Idempotency-Key", "a", "Idempotency-Key", "a"] }).kind).toBe("malformed");
  });
});

describe("a key from elsewhere", () => {
  it("is the rendered text", () => {
    expect(keyOf({ from: "{path.id}-{body.ref}" }, { params: { id: "1" }, body: { ref: "x y" } })).toEqual({
      kind: "key",
      value: "1-x y",
    });
    expect(keyOf({ from: "{body.ref}" }, { body: {} })).toEqual({ kind: "none" });
    expect(keyOf({ from: "{body.ref}", required: true }, { body: { ref: 1, REF: 2 } })).toEqual({ kind: "missing" });
    expect(keyOf({ from: "{body.ref}" }, { body: { ref: "x".repeat(256) } }).kind).toBe("malformed");
  });

  it("never exists for a refused request", () => {
    const [rule] = parseRules("version: 1\nrules: [{ match: POST /a, mode: refuse }]", { file: "r" }).rules.rules;
    expect(idempotencyKey({ rule: rule! }, context({ headers: ["Idempotency-Key", "a"] }))).toEqual({ kind: "none" });
  });
});
