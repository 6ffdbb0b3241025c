// Who the copies are, as gateways on one NATS agree on it: changed at one of them and seen by all, kept over restarts, made as a file says when asked.

import { expect, test } from "vitest";
import type { Gateway } from "../helpers/gateway.ts";
import { startFleet } from "./fleet.ts";

const names = async (gateway: Gateway): Promise<readonly string[]> =>
  (await gateway.status()).replicas.map((it) => it.name);

const until = (gateway: Gateway, what: string, wanted: readonly string[]): Promise<unknown> =>
  gateway.until(
    what,
    20_000,
    ({ replicas }) =>
      replicas.length === wanted.length && replicas.every((it) => wanted.includes(it.name) && it.state === "live"),
  );

test("a copy that was removed at one gateway is none of another that starts, until a sync brings it back", async () => {
  const system = await startFleet({ gateways: 1 });
  const first = system.gateways[0] as Gateway;
  await until(first, "all live", ["a", "b", "c"]);
  const removed = await first.api("DELETE", "/v1/replicas/c");
  expect(removed.status, removed.text).toBe(202);
  await until(first, "c is gone", ["a", "b"]);
  await first.restart();
  await until(first, "both live after the restart", ["a", "b"]);
  const second = await system.join(2);
  await until(second, "both live at the second", ["a", "b"]);
  expect(second.output()).toContain(
    "c stands in this gateway's file, and was removed at run time: gateway replica sync",
  );
  const synced = await second.api("POST", "/v1/replicas/sync", {});
  expect(JSON.parse(synced.text)).toEqual({ added: ["c"], changed: [], removed: [] });
  await until(second, "c is back at the second", ["a", "b", "c"]);
  await until(first, "c is back at the first, which was not asked", ["a", "b", "c"]);
  expect(await names(first)).toEqual(await names(second));
}, 60_000);
