// Request targets: one canonical form, refused where it could be read two ways.
import { readFileSync } from "node:fs";
import * as fc from "fast-check";
import { describe, expect, it } from "vitest";
import { canonicalTarget, targetCharsMax } from "../../rules/target.ts";
import { canonicalOf } from "../helpers/strict-http.ts";
import { cpuMs } from "./request.ts";

interface Row {
  readonly target: string;
  readonly method?: string;
  readonly expect: 400 | string;
  readonly note: string;
}

const rows = JSON.parse(readFileSync(new URL("../fixtures/targets.json", import.meta.url), "utf8")) as Row[];
const refuse = { encodedSlash: "refuse" } as const;
const keep = { encodedSlash: "keep" } as const;

// Pieces that make paths go wrong, and some that do not.
const pieces = [
  "/",
  "//",
  ".",
  "..",
  "/..",
  "/./",
  "a",
  "orders",
  "%2e",
  "%2E",
  "%2f",
  "%2F",
  "%5c",
  "%5C",
  "\\",
  ";",
  "%3b",
  "%3B",
  "%00",
  "%0a",
  "%7f",
  "%c2%85",
  "%25",
  "%252e",
  "%252f",
  "%c0%ae",
  "%c0%af",
  "%e0%80%af",
  "%ff",
  "%c3%a9",
  "%ed%a0%80",
  "%",
  "%4",
  "%zz",
  "%u002e",
  "#",
  "%23",
  "?",
  "%3f",
  "*",
  ":",
  "@",
  "~",
  "%7e",
  "%61",
  "%41",
  " ",
  "\t",
  "\u0001",
  "\u007f",
  "\u0080",
  "\u00e9",
  "\u00ff",
  "..;",
  "%2e%2e;",
  ".%2e",
  "http:",
  "+",
  "&",
  "=",
  '"',
  "<",
  "{",
  "|",
  "é",
];
const target = fc
  .array(
    fc.oneof({ weight: 6, arbitrary: fc.constantFrom(...pieces) }, fc.string({ unit: "binary-ascii", maxLength: 3 })),
    {
      maxLength: 10,
    },
  )
  .map((parts) => `/${parts.join("")}`);

describe("the fixture", () => {
  it("has at least 100 rows, each with a note of its own", () => {
    expect(rows.length).toBeGreaterThanOrEqual(100);
    expect(new Set(rows.map((row) => row.note)).size).toBe(rows.length);
  });

  it.each(rows.map((row) => [row.note, row] as const))("%s", (_, row) => {
    const result = canonicalTarget(row.target, refuse);
    expect(result.ok ? result.target : 400).toBe(row.expect);
  });
});

describe("the canonical form", () => {
  it("gives decoded segments and the raw query", () => {
    expect(canonicalTarget("/a%20b//caf%C3%A9/?x=%61", refuse)).toEqual({
      ok: true,
      target: "/a%20b//caf%C3%A9/?x=%61",
      path: "/a%20b//caf%C3%A9/",
      segments: ["a b", "", "café", ""],
      query: "x=%61",
    });
    expect(canonicalTarget("/", refuse)).toMatchObject({ segments: [""], query: null });
  });

  it("keeps an encoded slash byte for byte in one segment, where that is wanted", () => {
    expect(canonicalTarget("/a%2fb/c", keep)).toMatchObject({ target: "/a%2Fb/c", segments: ["a/b", "c"] });
    for (const raw of ["/a%2f..%2Fb", "/..%2fb", "/a%2F.", "/a%2F..;x", "/%2e%2e%2f"]) {
      expect(canonicalTarget(raw, keep).ok, raw).toBe(false);
    }
  });

  it("is refused beyond 16 KiB", () => {
    expect(canonicalTarget(`/${"a".repeat(targetCharsMax - 1)}`, refuse).ok).toBe(true);
    expect(canonicalTarget(`/${"a".repeat(targetCharsMax)}`, refuse).ok).toBe(false);
  });

  it("costs little, however the target is made", () => {
    for (const unit of ["%61", "/", ".", "a.", "/a;", "%c3%a9", "%25", "?", "=%41"]) {
      const raw = `/${unit.repeat(Math.floor((targetCharsMax - 1) / unit.length))}`;
      expect(
        cpuMs(() => canonicalTarget(raw, refuse)),
        unit,
      ).toBeLessThan(50);
    }
  });

  it("is the canonical form of itself", () => {
    fc.assert(
      fc.property(target, fc.constantFrom(refuse, keep), (raw, options) => {
        const once = canonicalTarget(raw, options);
        if (once.ok) expect(canonicalTarget(once.target, options)).toEqual(once);
      }),
      { numRuns: 20_000 },
    );
  });
});

// As a careless server decodes: every escape, once, whatever comes out.
const naive = (path: string): string =>
  path.replaceAll(/%([0-9A-Fa-f]{2})/g, (_, hex: string) => String.fromCharCode(Number.parseInt(hex, 16)));

const folders = (path: string): number => path.split("/").length;

describe("100,000 targets of any kind", () => {
  it("hide nothing from a parser that reads them otherwise, once they are forwarded", () => {
    let forwarded = 0;
    for (const raw of fc.sample(target, { numRuns: 100_000, seed: 20_240_501 })) {
      const result = canonicalTarget(raw, refuse);
      // Written anew from the documentation, byte by byte: it refuses the same targets and gives the same form.
      const other = canonicalOf(raw);
      if ((result.ok ? result.target : null) !== other)
        expect.unreachable(`${JSON.stringify(raw)}: ${other} elsewhere`);
      if (!result.ok) continue;
      forwarded++;
      // Plain expectations: a hundred thousand times ten matchers would take minutes.
      const fail = (what: string): never => expect.unreachable(`${JSON.stringify(raw)}: ${what}`);
      if (!/^\/[!-~]*$/.test(result.target) || result.target.includes("#")) fail("bytes");
      const decoded = naive(result.path);
      if (folders(decoded) !== folders(result.path)) fail("a new slash");
      if (decoded.split("/").some((part) => /^\.\.?(;|$)/.test(part))) fail("a dot segment");
      // oxlint-disable-next-line no-control-regex
      if (/[\\\u0000-\u001f\u007f]/.test(decoded)) fail("a backslash or control character");
      if (result.segments.some((part) => part === "." || part === ".." || part.includes("/"))) fail("segments");
      if (result.segments.length !== folders(result.path) - 1) fail("the number of segments");
      const url = new URL(`http://backend.test${result.target}`);
      if (url.host !== "backend.test" || url.hash !== "") fail("another host, or a fragment");
      if (folders(url.pathname) !== folders(result.path)) fail("another path for URL");
      if (naive(url.pathname) !== decoded) fail("other bytes for URL");
      if (
        url.search !== (result.query === null || result.query === "" ? "" : new URL(`http://x/?${result.query}`).search)
      ) {
        fail("another query");
      }
    }
    // Neither does it pass by refusing everything.
    expect(forwarded).toBeGreaterThan(5000);
  });
});
