// What a gateway printed is judged line by line, in whatever pieces it comes.

import { expect, test } from "vitest";
import { Output } from "./output.ts";

test("a secret, a defect and a rejection that nobody handled are faults, however the pieces fall, and the secret is not printed again", () => {
  const output = new Output("hush");
  for (const piece of [
    "all is we",
    "ll\nBearer hu",
    "sh-1\n",
    'x "code":"GW_INTERNAL" y\n',
    "Unhandled",
    "Rejection\nlast",
  ])
    output.take(piece);
  expect(output.faults()).toEqual([
    "a secret was printed: Bearer (secret)-1",
    'it said: x "code":"GW_INTERNAL" y',
    "it said: UnhandledRejection",
  ]);
  expect(output.text().split("\n")).toHaveLength(5);
});

test("lines about single requests are judged and not kept", () => {
  const output = new Output("hush");
  output.take('{"msg":"request","path":"/a"}\n{"msg":"started"}\n{"msg":"request","token":"hush"}\n');
  expect(output.text()).toBe('{"msg":"started"}\n');
  expect(output.faults()).toHaveLength(1);
});
