import { PassThrough } from "node:stream";
import { expect, test } from "vitest";
import { OutputLines } from "../../../gateway/launch/output.ts";

const limits = { lineCharsMax: 10, linesPerSecond: 10, burst: 3 };

test("lines are put together over chunks, also within a character; the unfinished last one comes at the end", async () => {
  const { stream, lines, output } = start();
  const bytes = Buffer.from("ab\r\ncé\nlast");
  stream.write(bytes.subarray(0, 6));
  stream.write(bytes.subarray(6));
  await tick();
  expect(lines).toEqual(["ab", "cé"]);
  output.flush();
  expect(lines).toEqual(["ab", "cé", "last"]);
});

test("a long line is cut, and one without end is not kept", async () => {
  const { stream, lines } = start();
  for (let i = 0; i < 100; i++) stream.write("x".repeat(1_000));
  stream.write("\nshort\n");
  await tick();
  expect(lines).toEqual([`${"x".repeat(10)}…`, "short"]);
});

test("lines above the rate are dropped, and it is said how many", async () => {
  const { stream, lines, clock } = start();
  stream.write("1\n2\n3\n4\n5\n6\n");
  await tick();
  expect(lines).toEqual(["1", "2", "3"]);
  clock.nowMs += 100;
  stream.write("7\n8\n");
  await tick();
  expect(lines.slice(3)).toEqual(["(3 lines dropped)", "7"]);
});

const tick = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

function start() {
  const stream = new PassThrough();
  const lines: string[] = [];
  const clock = { nowMs: 0 };
  const output = new OutputLines(
    stream,
    (line) => lines.push(line),
    limits,
    () => clock.nowMs,
  );
  return { stream, lines, clock, output };
}
