// Templates: unknown sources are named, and a value that is missing or not scalar makes null, never a text.
import { describe, expect, it } from "vitest";
import { parseRequestTemplate, parseTemplate, render, renderTarget } from "../../rules/template.ts";
import { context } from "./request.ts";

function rendered(text: string, request = context({}), names?: string[]): string | null {
  const parsed = parseTemplate(text, names === undefined ? {} : { names });
  if (!parsed.ok) throw new Error(parsed.message);
  return render(parsed.value, request);
}

const request = context({
  params: { id: "42" },
  query: "x=1&y=2&y=3&e=",
  headers: ["X-Account", "a7", "Accept", "a", "accept", "b"],
  body: { a: { b: "c" }, n: 1.5, t: true, z: null, list: [{ id: 9 }], o: {}, big: 2 ** 60, "x.y": "dotted" },
});

describe("render", () => {
  it.each([
    ["account:{path.id}", "account:42"],
    ["{query.x}-{header.x-account}-{header.X-ACCOUNT}", "1-a7-a7"],
    ["{body.a.b}{body./a/b}", "cc"],
    ["{body.n} {body.t} {body.list.0.id} {body./list/0/id}", "1.5 true 9 9"],
    ["{body./x.y}", "dotted"],
    ["{query.e}", ""],
    ["{{x}}", "{x}"],
    ["plain", "plain"],
  ])("%s gives %j", (text, result) => {
    expect(rendered(text, request)).toBe(result);
  });

  it.each([
    "{path.other}",
    "{query.z}",
    "{query.y}",
    "{header.none}",
    "{header.accept}",
    "{body.a}",
    "{body.z}",
    "{body.o}",
  ])("%s is null: missing, there twice or not scalar", (text) => {
    expect(rendered(`k:${text}`, request)).toBeNull();
  });

  it.each(["{body.big}", "{body.toString}", "{body.list.length}", "{body.a.b.c}", "{path.constructor}"])(
    "%s is null: no double holds it, or it is no member",
    (text) => {
      expect(rendered(text, request)).toBeNull();
    },
  );

  it("a key that is there in another case is null: another parser would take that one", () => {
    expect(rendered("{body.id}", context({ body: { id: 1, ID: 2 } }))).toBeNull();
    expect(rendered("{body.id}", context({ body: { Id: 2 } }))).toBeNull();
  });

  it("bare names are filled in where they are known", () => {
    expect(rendered("{name}/{state}", { ...request, names: { name: "a", state: "/s" } }, ["name", "state"])).toBe(
      "a//s",
    );
  });
});

describe("parse", () => {
  it.each([
    ["{pth.id}", "{path.id}"],
    ["{bodi.a}", "{body.a}"],
    ["{path.idd}", "{path.id}"],
  ])("%s suggests %s", (text, suggestion) => {
    expect(parseTemplate(text, { params: ["id"] })).toMatchObject({ ok: false, suggestion });
  });

  it.each([
    "{",
    "}",
    "{a",
    "a}",
    "{}",
    "{path.}",
    "{name}",
    "{path}",
    "{cookie.x}",
    "{header.a b}",
    "{body./~2}",
    "{a{b}}",
  ])("%s is refused", (text) => {
    expect(parseTemplate(text).ok).toBe(false);
  });
});

const target = (text: string, from = request): string | null => {
  const parsed = parseRequestTemplate(text);
  if (!parsed.ok) throw new Error(parsed.message);
  return renderTarget(parsed.value, from);
};

describe("requests", () => {
  it("values are percent-encoded, so that none becomes syntax", () => {
    const nasty = context({ params: { id: "a/b?c" }, body: { ref: "x&admin=1#é%" } });
    expect(target("GET /orders?ref={body.ref}", nasty)).toBe("/orders?ref=x%26admin%3D1%23%C3%A9%25");
    expect(target("GET /orders/:id", nasty)).toBe("/orders/a%2Fb%3Fc");
    expect(target("GET /orders/{path.id}", nasty)).toBe("/orders/a%2Fb%3Fc");
  });

  it("a value that would climb or be cut is null", () => {
    expect(target("GET /orders/{body.ref}", context({ body: { ref: ".." } }))).toBeNull();
    expect(target("GET /orders/{body.ref}", context({ body: { ref: "a\u0000" } }))).toBeNull();
    expect(target("GET /orders/{body.ref}", context({ body: { ref: "a\\b" } }))).toBeNull();
    expect(target("GET /orders/{body.ref}", context({}))).toBeNull();
  });

  it.each(["/orders", "GET", "GET orders", "get /orders", "GET /a b", "GET /../x", "GET /a#b", "GET  /a"])(
    "%s is refused",
    (text) => {
      expect(parseRequestTemplate(text).ok).toBe(false);
    },
  );
});
