// Probes: the question made of a request, and which answers mean that it was applied.
import { describe, expect, it } from "vitest";
import { isApplied, probeRequest } from "../../rules/probe.ts";
import { parseRules } from "../../rules/rule.ts";
import { context } from "./request.ts";

function probed(applied: object): (body: unknown, status?: number) => boolean {
  const probe = { request: "GET /orders?ref={body.ref}", applied };
  const text = JSON.stringify({ version: 1, rules: [{ match: "POST /orders", mode: "replicate", probe }] });
  const rule = parseRules(text, { file: "r" }).rules.rules[0]!;
  const request = context({ body: { ref: "r/1" } });
  expect(probeRequest(rule, request)).toEqual({ method: "GET", target: "/orders?ref=r%2F1" });
  expect(probeRequest(rule, context({}))).toBeNull();
  return (body, status = 200) =>
    isApplied(rule.probe!, request, {
      status,
      body: Buffer.from(typeof body === "string" ? body : JSON.stringify(body)),
    });
}

describe("a probe", () => {
  it("by body says applied when the values stand where they should, in a 2xx", () => {
    const says = probed({ body: { "/0/ref": "{body.ref}" } });
    expect([
      says([{ ref: "r/1" }]),
      says([{ ref: "r/2" }]),
      says([]),
      says("oops"),
      says([{ ref: "r/1" }], 404),
    ]).toEqual([true, false, false, false, false]);
  });

  it("by status says applied for those alone", () => {
    const says = probed({ status: [200, 410] });
    expect([says(""), says("", 410), says("", 204), says("", 404)]).toEqual([true, true, false, false]);
  });

  it("compares numbers, booleans and null as they are, and any of several values is enough", () => {
    const says = probed({ body: { "/n": [1, null], "/t": true } });
    expect([says({ n: 1, t: true }), says({ n: null, t: true }), says({ n: "1", t: true }), says({ t: true })]).toEqual(
      [true, true, false, false],
    );
  });

  it("is no question for a rule without one", () => {
    const [rule] = parseRules("version: 1\nrules: [{ match: POST /a, mode: replicate }]", { file: "r" }).rules.rules;
    expect(probeRequest(rule!, context({}))).toBeNull();
  });
});
