// The key-value service does what a service does that nobody wrote for a gateway: it answers, remembers, and says what it executed.

import { onTestFinished, expect, test } from "vitest";
import { request } from "undici";
import { startKv } from "./kv.ts";
import type { Kv } from "./kv.ts";

async function started(name = "a"): Promise<Kv> {
  const kv = await startKv(name);
  onTestFinished(() => kv.close());
  return kv;
}

let position = 0;

async function send(kv: Kv, method: "GET" | "PUT" | "POST" | "DELETE", path: string, body?: object): Promise<unknown> {
  position += 1;
  const answer = await request(`${kv.url}${path}?id=op${position}`, {
    method,
    headers: { "replication-position": String(position), "replication-role": "primary" },
    ...(body === undefined ? {} : { body: JSON.stringify(body) }),
  });
  return [answer.statusCode, await answer.body.json()];
}

test("registers, lists and counters do what their names say", async () => {
  const kv = await started();
  expect(await send(kv, "GET", "/kv/r1")).toEqual([404, { k: "r1", value: null }]);
  expect(await send(kv, "PUT", "/kv/r1", { value: "x" })).toEqual([200, { k: "r1", value: "x" }]);
  expect(await send(kv, "POST", "/kv/r1/cas", { expected: "w", value: "y" })).toEqual([409, { k: "r1", value: "x" }]);
  expect(await send(kv, "POST", "/kv/r1/cas", { expected: "x", value: "y" })).toEqual([200, { k: "r1", value: "y" }]);
  expect(await send(kv, "DELETE", "/kv/r1")).toEqual([200, { k: "r1" }]);
  expect(await send(kv, "POST", "/kv/r1/cas", { expected: null, value: "z" })).toEqual([200, { k: "r1", value: "z" }]);
  expect(await send(kv, "POST", "/kv/l1/append", { value: "x" })).toEqual([200, { k: "l1", length: 1 }]);
  expect(await send(kv, "POST", "/kv/l1/append", { value: "y" })).toEqual([200, { k: "l1", length: 2 }]);
  expect(await send(kv, "GET", "/kv/l1")).toEqual([200, { k: "l1", value: ["x", "y"] }]);
  expect(await send(kv, "POST", "/total/t1/incr", { by: 2 })).toEqual([200, { k: "t1", total: 2 }]);
  expect(await send(kv, "GET", "/total/t1")).toEqual([200, { k: "t1", value: 2 }]);
  expect(kv.journal().map((row) => row.verb)).toEqual([
    "put",
    "cas",
    "cas",
    "delete",
    "cas",
    "append",
    "append",
    "incr",
  ]);
});

test("what it executed outlives kill -9, and it knows by its id", async () => {
  const kv = await started();
  await send(kv, "POST", "/kv/c1/incr", { by: 1 });
  const [row] = kv.journal();
  const root = await kv.root();
  await kv.kill9();
  await kv.start();
  expect(await kv.root()).toBe(root);
  expect((await kv.get(`/probe?id=${row?.id}`)).text).toBe('{"applied":true}');
  expect((await kv.get("/probe?id=other")).text).toBe('{"applied":false}');
});

test("emptied or set back it is another one; an import makes it equal, and what it had executed is still to be seen", async () => {
  const [one, other] = [await started("a"), await started("b")];
  for (let n = 0; n < 10; n += 1) {
    position += 2;
    const at = position;
    for (const kv of [one, other]) {
      position = at;
      await send(kv, "POST", "/kv/l1/append", { value: `v${n}` });
    }
  }
  expect(await other.root()).toBe(await one.root());
  await other.kill9();
  expect(other.setBack(0.7)).toBe(3);
  await other.start();
  expect(await other.root()).not.toBe(await one.root());
  await other.kill9();
  other.empty();
  await other.start();
  expect(other.journal()).toEqual([]);
  await send(other, "PUT", "/kv/r1", { value: "stray" });
  const { text } = await one.get("/dump");
  await request(`${other.url}/dump`, { method: "PUT", body: text }).then((answer) => answer.body.dump());
  expect(await other.root()).toBe(await one.root());
  expect((await other.get("/dump")).text).toBe(text);
  expect(other.pastJournals().map((rows) => rows.map((row) => row.k))).toEqual([["r1"]]);
});

test("dumps of copies that executed independent requests in another order, or repeated a PUT, are equal", async () => {
  const [one, other] = [await started("a"), await started("b")];
  for (const [kv, order] of [
    [one, [1, 2, 3]],
    [other, [2, 1, 1, 3]],
  ] as const)
    for (const n of order) {
      position = 1000 + n;
      await send(kv, "PUT", `/kv/r${n}`, { value: `v${n}` });
    }
  expect(other.journal()).toHaveLength(4);
  expect((await other.get("/dump")).text).toBe((await one.get("/dump")).text);
});
