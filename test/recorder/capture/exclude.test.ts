import { expect, test } from "vitest";
import { createExclude } from "../../../recorder/capture/exclude.ts";

test.each([
  ["cache", ["cache", "cache/a", "cache/a/b"], ["cachex", "a/cache", "Cache"]],
  ["cache/**", ["cache/a", "cache/a/b"], ["cache", "a/cache/b"]],
  ["*.tmp", ["a.tmp", ".tmp", "a.tmp/b"], ["a.tmpx", "x/a.tmp"]],
  ["**/*.tmp", ["a.tmp", "x/a.tmp", "x/y/a.tmp/z"], ["x/tmp", "a.tmp2"]],
  ["a/**/b", ["a/b", "a/x/b", "a/x/y/b/c"], ["a", "ab", "x/a/b"]],
  ["**", ["a", "a/b"], []],
  ["/a/", ["a", "a/b"], ["b/a"]],
  ["./a?c", ["abc", "a+c"], ["ac", "a/c"]],
  ["a+(b)[c]{d}^$.|\\", ["a+(b)[c]{d}^$.|\\"], ["aab", "a+(b)[c]{d}^$x|\\"]],
])("%j leaves out what it names, and what is below", (pattern, out, kept) => {
  const isExcluded = createExclude(["never-there", pattern]);
  expect(out.filter((path) => !isExcluded(path))).toEqual([]);
  expect(kept.filter(isExcluded)).toEqual([]);
});

test("no pattern takes long over any name", () => {
  const isExcluded = createExclude([`${"*a".repeat(40)}b`, `${"**/".repeat(40)}b`, `${"**/*a*a*a/".repeat(20)}b`]);
  const began = performance.now();
  expect(isExcluded("a".repeat(255))).toBe(false);
  expect(isExcluded(Array.from({ length: 1000 }, () => "a".repeat(3)).join("/"))).toBe(false);
  expect(performance.now() - began).toBeLessThan(1000);
});

test("several stars find what is there, wherever it is", () => {
  const isExcluded = createExclude(["**/a*b*c/**/d", "x**y"]);
  expect(["a1b2c/d", "z/abcbc/y/d/e", "abc/abc/d", "xy", "x1y"].filter((path) => !isExcluded(path))).toEqual([]);
  expect(["abc/e", "ab/d", "z/acb/d", "x/y", "xyz"].filter(isExcluded)).toEqual([]);
});

test("names are bytes: a pattern of more than ASCII, and names that are no text", () => {
  expect(createExclude(["ü*"])(bytes("übung"))).toBe(true);
  expect(createExclude(["?"])("\u00ff")).toBe(true);
  expect(createExclude(["*.log"])("\u00fe\n.log")).toBe(true);
  expect(createExclude([])("a")).toBe(false);
});

const bytes = (text: string): string => Buffer.from(text).toString("latin1");
