// Putting back: the question asked before a request is applied, and what its answer becomes.
import { describe, expect, it } from "vitest";
import { parseRules } from "../../rules/rule.ts";
import { beforeRequest, isPutBack, undoRequest } from "../../rules/undo.ts";
import { context } from "./request.ts";

const ruleOf = (before: string, undo: string) =>
  parseRules(
    JSON.stringify({ version: 1, rules: [{ match: "POST /orders/:id/pay", mode: "replicate", before, undo }] }),
    { file: "r" },
  ).rules.rules[0]!;
const answer = (status: number, body = "", headers: string[] = []) => ({ status, headers, body: Buffer.from(body) });

const pay = ruleOf("GET /orders/:id", "PUT /orders/:id?quiet={query.q}");
const request = context({ params: { id: "a b" }, query: "q=1" });

describe("before", () => {
  it("is asked of the request's own values", () => {
    expect(beforeRequest(pay, request)).toEqual({ method: "GET", target: "/orders/a%20b" });
  });

  it("is not asked where a value is missing, in it or in undo, or where there is none", () => {
    expect(beforeRequest(pay, context({ query: "q=1" }))).toBeNull();
    expect(beforeRequest(pay, context({ params: { id: "1" } }))).toBeNull();
    expect(beforeRequest({ before: null, undo: null }, request)).toBeNull();
  });
});

describe("undo", () => {
  it("puts what was there with the headers that say how to read it", () => {
    const headers = ["content-type", "text/x", "ETag", '"1"', "Content-Encoding", "gzip", "Set-Cookie", "a=b"];
    expect(undoRequest(pay, request, answer(200, "old", headers))).toEqual({
      method: "PUT",
      target: "/orders/a%20b?quiet=1",
      headers: ["Content-Type", "text/x", "Content-Encoding", "gzip"],
      body: Buffer.from("old"),
    });
  });

  it("deletes what was not there", () => {
    for (const status of [404, 410])
      expect(undoRequest(pay, request, answer(status, "no such order"))).toEqual({
        method: "DELETE",
        target: "/orders/a%20b?quiet=1",
        headers: [],
        body: Buffer.alloc(0),
      });
  });

  it("does nothing about an answer that says something else, or a part", () => {
    for (const status of [206, 301, 304, 401, 403, 409, 500, 503])
      expect(undoRequest(pay, request, answer(status)), String(status)).toBeNull();
  });

  it("that can only delete does not delete what was there", () => {
    const create = ruleOf("GET /orders/:id", "DELETE /orders/:id");
    expect(undoRequest(create, request, answer(200, "old"))).toBeNull();
    expect(undoRequest(create, request, answer(404))).toMatchObject({ method: "DELETE", target: "/orders/a%20b" });
  });

  it("is done by any 2xx, and a deletion by there being nothing as well", () => {
    const put = undoRequest(pay, request, answer(200))!;
    const remove = undoRequest(pay, request, answer(404))!;
    expect([200, 204, 404, 409, 500].map((status) => isPutBack(put, status))).toEqual([
      true,
      true,
      false,
      false,
      false,
    ]);
    expect([200, 204, 404, 410, 500].map((status) => isPutBack(remove, status))).toEqual([
      true,
      true,
      true,
      true,
      false,
    ]);
  });
});
