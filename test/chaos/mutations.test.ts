// Every mutation can be planted in what is compiled today, where there is something compiled, and hits something that exists.

import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";
import { mutations } from "./mutations.ts";
import { plant } from "./plant.ts";
import { namesFor } from "./schedule.ts";
import { shapeOf } from "./service.ts";

const dist = fileURLToPath(new URL("../../dist/", import.meta.url));

test("a place that is missing, or there twice, is refused", () => {
  const mutation = { name: "m", file: "f", find: "a", replace: "b" };
  expect(plant("xay", mutation)).toBe("xby");
  expect(() => plant("xy", mutation)).toThrow("0 places");
  expect(() => plant("aa", mutation)).toThrow("2 places");
});

test.each(mutations)("$name can be planted, and chaos can be aimed at it", (mutation) => {
  const file = join(dist, mutation.file);
  expect(existsSync(file), `${file}: npm run build makes it`).toBe(true);
  const text = readFileSync(file, "utf8");
  expect(plant(text, mutation)).not.toBe(text);
  const { log, gateways, faults } = mutation.aim;
  expect(namesFor(shapeOf(log, gateways), faults)).toHaveLength(faults.length);
});

test("there are at least eight, each of its own name", () => {
  expect(new Set(mutations.map((it) => it.name)).size).toBe(mutations.length);
  expect(mutations.length).toBeGreaterThanOrEqual(8);
});
