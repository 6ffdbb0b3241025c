// The YAML machinery: every fault has its place, and hostile text is refused quickly.
import { describe, expect, it } from "vitest";
import { z } from "zod";
import { checkDocument, faultAt, FaultsError, formatFault, parseDocument } from "../../rules/document.ts";
import { durationMs, sizeBytes } from "../../rules/units.ts";
import { expandText, expandVariables } from "../../rules/variables.ts";
import { nearest } from "../../rules/fault.ts";
import { cpuMs } from "./request.ts";
import type { Fault } from "../../rules/fault.ts";

const file = "gateway.yaml";

function faultsOf(act: () => unknown): readonly Fault[] {
  try {
    act();
  } catch (error) {
    if (error instanceof FaultsError) return error.faults;
    throw error;
  }
  return [];
}

function check(text: string, schema: z.ZodType, env?: Record<string, string>): string[] {
  const options = env === undefined ? {} : { env };
  const faults = faultsOf(() => checkDocument(parseDocument(text, { file }), schema, options));
  return faults.map((fault) => formatFault(fault).split("\n")[0]!);
}

const schema = z.strictObject({
  mode: z.enum(["replicate", "only-once", "refuse"]),
  count: z.int().min(1).max(9).default(3),
  wait: durationMs.optional(),
  size: sizeBytes.optional(),
  inner: z.strictObject({ flag: z.boolean().optional(), names: z.array(z.string()).min(1).optional() }).optional(),
});

describe("places", () => {
  it("a fault is printed with file, line, column, path, suggestion, source line and caret", () => {
    const [fault] = faultsOf(() => checkDocument(parseDocument("count: 2\nmode: replicte\n", { file }), schema));
    expect(formatFault(fault!)).toBe(
      [
        'gateway.yaml:2:7: mode: "replicte" is not one of replicate, only-once, refuse (did you mean "replicate"?)',
        " 2 | mode: replicte",
        "   |       ^",
      ].join("\n"),
    );
  });

  it("all faults come at once, from top to bottom, each at the key or value that is wrong", () => {
    expect(
      check(
        "cuont: 1\nmode: refuse\ncount: 12\ninner:\n  flag: yes\n  names: []\n  nmaes: [a]\nwait: 5 s\nsize: -1\n",
        schema,
      ),
    ).toEqual([
      'gateway.yaml:1:1: cuont: is not known here (did you mean "count"?)',
      "gateway.yaml:3:8: count: 12 is out of range: at most 9",
      'gateway.yaml:5:9: inner.flag: expected a boolean, got "yes"',
      "gateway.yaml:6:10: inner.names: has to have at least 1 item",
      'gateway.yaml:7:3: inner.nmaes: is not known here (did you mean "names"?)',
      'gateway.yaml:8:7: wait: "5 s" is not a duration such as "250ms", "5s", "10m", "1h" or "7d"',
      "gateway.yaml:9:7: size: -1 is out of range: at least 0",
    ]);
  });

  it("a missing key is told at its parent", () => {
    const outer = z.strictObject({ a: z.strictObject({ b: z.string() }) });
    expect(check("\na: {}\n", outer)).toEqual(["gateway.yaml:2:4: a.b: is missing"]);
    expect(check("", outer)).toEqual(["gateway.yaml:1:1: expected a map, got null"]);
  });

  it("a node within a document is checked alone and its faults carry the whole path", () => {
    const document = parseDocument("listen: x\nrules:\n  - mode: refus\n  - mode: refuse\n", { file });
    const [fault] = faultsOf(() => checkDocument(document, z.array(schema), { at: ["rules"] }));
    expect(fault).toMatchObject({ line: 3, column: 11, path: "rules[0].mode", suggestion: "refuse" });
  });

  it("a fault behind an alias is told where the aliased value stands", () => {
    const document = parseDocument("a: &x { mode: nope }\nb: *x\n", { file });
    const faults = faultsOf(() => checkDocument(document, z.strictObject({ a: z.unknown(), b: schema })));
    expect(faults[0]).toMatchObject({ line: 1, column: 15, path: "b.mode" });
  });

  it("a place can be asked for by path, for a value, for a key and for what is not there", () => {
    const document = parseDocument("a:\n  bc: 1\n  d:\n", { file });
    const place = (path: string[], key = false): number[] => {
      const { line, column } = faultAt(document, path, "x", { key });
      return [line, column];
    };
    expect(place(["a", "bc"])).toEqual([2, 7]);
    expect(place(["a", "bc"], true)).toEqual([2, 3]);
    expect(place(["a", "d"])).toEqual([3, 3]);
    expect(place(["a", "zz", "y"])).toEqual([2, 3]);
  });

  it("carets stand right under tabs and in lines too long to print", () => {
    const long = `a: "${"x".repeat(500)}"\nb: [${"1, ".repeat(200)}oops]\n`;
    const fault = faultAt(parseDocument(long, { file }), ["b", 200], "wrong");
    const [, source, caret] = formatFault(fault).split("\n");
    expect(source!.slice(caret!.indexOf("^")).startsWith("oops")).toBe(true);
    expect(source!.length).toBeLessThan(180);
    const tabbed = formatFault({ file, line: 1, column: 4, path: "", message: "m", source: "\tab\tc" }).split("\n");
    expect(tabbed[2]).toBe("   | \t  ^");
  });

  it("control characters of a hostile file do not reach the terminal", () => {
    const text = formatFault({ file, line: 1, column: 1, path: "", message: "\u001b[31m", source: "\u001b]0;x\u0007" });
    expect(text).not.toContain("\u001b");
    expect(text).not.toContain("\u0007");
  });
});

describe("syntax", () => {
  it("syntax errors are faults, all at once", () => {
    const faults = faultsOf(() => parseDocument("a: [1\nb: 'x\nc: }\n", { file }));
    expect(faults.length).toBeGreaterThan(0);
    expect(faults.every((fault) => fault.line > 0 && fault.file === file)).toBe(true);
  });

  it("a key that is there twice is a fault at the second", () => {
    const faults = faultsOf(() => parseDocument("a: 1\nb: { c: 1, c: 2 }\na: 2\n", { file }));
    expect(faults).toMatchObject([
      { line: 2, column: 12, path: "b", message: 'the key "c" is there twice, first in line 2' },
      { line: 3, column: 1, path: "", message: 'the key "a" is there twice, first in line 1' },
    ]);
  });

  it.each([
    ["custom tags", "a: !!js/function x"],
    ["local tags", "a: !foo x"],
    ["YAML 1.1", "%YAML 1.1\n---\na: yes\n"],
    ["several documents", "a: 1\n---\nb: 2\n"],
    ["maps as keys", "? {a: 1}\n: 2\n"],
    ["__proto__ as a key", "a: { __proto__: { x: 1 } }"],
    ["unknown aliases", "a: *nope"],
    ["aliases that hold themselves", "a: &a [*a, *a]"],
    [
      "alias bombs",
      `a: &a [1,1,1,1,1,1,1,1,1]\n${"bcdefgh"
        .split("")
        .map((c, i) => `${c}: &${c} [${Array(9).fill(`*${"abcdefg"[i]!}`).join(",")}]`)
        .join("\n")}`,
    ],
    ["deep flow nesting", "[".repeat(50_000) + "]".repeat(50_000)],
    ["deep flow nesting that is never closed", "[".repeat(1_000_000)],
    ["deep maps", `${"{a: ".repeat(65)}1${"}".repeat(65)}`],
    ["deep sequences on one line", "- ".repeat(5000)],
    ["deep keys on one line", "? ".repeat(5000)],
    ["deep indentation", Array.from({ length: 1000 }, (_, i) => `${" ".repeat(i)}k:`).join("\n")],
    ["more than 1 MiB", `a: ${"x".repeat(1024 * 1024)}`],
  ])("%s are refused, and within two seconds", (_, text) => {
    expect(faultsOf(() => parseDocument(text, { file })).length).toBeGreaterThan(0);
    expect(cpuMs(() => faultsOf(() => parseDocument(text, { file })))).toBeLessThan(2000);
  });

  it("nesting that would exhaust the parser is told at the bracket that is too much, before the parser sees it", () => {
    const [flow] = faultsOf(() => parseDocument(`a: 1\nb: ${"[".repeat(100_000)}`, { file }));
    expect(flow).toMatchObject({ line: 2, column: 68, message: "is nested more than 64 levels deep" });
    const [block] = faultsOf(() => parseDocument("- ".repeat(5000), { file }));
    expect(block).toMatchObject({ line: 1, column: 129, message: "is nested more than 64 levels deep" });
  });

  it("64 levels are read, 60,000 keys are read in good time", () => {
    expect(faultsOf(() => parseDocument("[".repeat(60) + "]".repeat(60), { file }))).toEqual([]);
    const text = Array.from({ length: 60_000 }, (_, i) => `k${i}: 1`).join("\n");
    // The parser's own check for duplicate keys takes 12 s.
    expect(cpuMs(() => parseDocument(text, { file }))).toBeLessThan(6000);
  });
});

describe("variables", () => {
  it("are expanded inside values, with defaults and a way to write a dollar", () => {
    const env = { A: "1", EMPTY: "" };
    const text = (value: string): unknown => expandText(value, env);
    expect(text("x${A}y")).toEqual({ ok: true, value: "x1y" });
    expect(text("${B:-two}")).toEqual({ ok: true, value: "two" });
    expect(text("${EMPTY:-x}")).toEqual({ ok: true, value: "x" });
    expect(text("${EMPTY}")).toEqual({ ok: true, value: "" });
    expect(text("$${A} $A 5$ $$")).toEqual({ ok: true, value: "${A} $A 5$ $" });
    expect(text("${B}")).toMatchObject({ ok: false });
    expect(text("${B")).toMatchObject({ ok: false });
    expect(text("${toString}")).toMatchObject({ ok: false });
    expect(expandVariables({ a: ["${A}", 2], "${A}": null }, env)).toEqual({ a: ["1", 2], "${A}": null });
  });

  it("what they hold is never expanded again nor read as YAML", () => {
    expect(expandText("${A}", { A: "${B}" })).toEqual({ ok: true, value: "${B}" });
    const document = parseDocument('mode: "${M}"\n', { file });
    expect(faultsOf(() => checkDocument(document, schema, { env: { M: "refuse\ncount: 1" } }))).toHaveLength(1);
  });

  it("one that is not set is one fault at its value, beside all others", () => {
    expect(check("mode: ${M}\ncount: x\n", schema, {})).toEqual([
      "gateway.yaml:1:7: mode: the variable M is not set and has no default (${M:-…})",
      'gateway.yaml:2:8: count: expected a number, got "x"',
    ]);
  });

  it("one that stands for a number or a boolean is read as one", () => {
    const document = parseDocument("mode: refuse\ncount: ${N}\ninner: { flag: '${F}', names: ['${N}'] }\n", { file });
    const value = checkDocument(document, schema, { env: { N: "7", F: "true" } });
    expect(value).toMatchObject({ count: 7, inner: { flag: true, names: ["7"] } });
    expect(() => checkDocument(document, schema, { env: { N: "many", F: "true" } })).toThrow(/count: expected/);
  });

  it("stay as written in lists and maps that are left to others", () => {
    const any = z.looseObject({});
    const document = parseDocument("rules: ['${A}']\nb: '${A}'\n", { file });
    const value = checkDocument(document, any, { env: { A: "1" }, verbatim: [["rules"]] });
    expect(value).toEqual({ rules: ["${A}"], b: "1" });
  });
});

describe("units", () => {
  it.each([
    ["250ms", 250],
    ["5s", 5000],
    ["1.5s", 1500],
    ["10m", 600_000],
    ["1h", 3_600_000],
    ["7d", 604_800_000],
    ["0", 0],
  ])("the duration %s is %d ms", (text, ms) => {
    expect(durationMs.parse(text)).toBe(ms);
  });

  it.each([
    ["64KiB", 65_536],
    ["1MiB", 1_048_576],
    ["10GiB", 10_737_418_240],
    ["1.5MB", 1_500_000],
    ["4096", 4096],
    [4096, 4096],
    ["0", 0],
  ])("the size %s is %d bytes", (text, bytes) => {
    expect(sizeBytes.parse(text)).toBe(bytes);
  });

  it.each(["5", "5 s", "-5s", "s", "5S", "1e3s", "5s5", "", "999999999999999999d"])("%j is no duration", (text) => {
    expect(durationMs.safeParse(text).success).toBe(false);
  });

  it.each(["64 KiB", "kb", "64kib", "-1", -1, 1.5, "", "99999999TiB"])("%j is no size", (text) => {
    expect(sizeBytes.safeParse(text).success).toBe(false);
  });

  it("are strings with a pattern in JSON schema", () => {
    const options = { target: "draft-7", io: "input" } as const;
    expect(z.toJSONSchema(durationMs, options)).toMatchObject({
      type: "string",
      pattern: expect.any(String) as string,
    });
    const { anyOf } = z.toJSONSchema(sizeBytes, options);
    expect(anyOf).toMatchObject([{ type: "string", pattern: expect.any(String) as string }, { type: "integer" }]);
  });
});

describe("suggestions", () => {
  it.each([
    ["replicte", "replicate"],
    ["onlyonce", "only-once"],
    ["rfeuse", "refuse"],
    ["REFUSE", "refuse"],
    ["zebra", undefined],
    ["", undefined],
  ])("%j was meant as %j", (word, meant) => {
    expect(nearest(word, ["replicate", "only-once", "refuse"])).toBe(meant);
  });
});
