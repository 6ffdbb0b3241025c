// The harness itself: a small gateway that keeps its promises passes, and each way of breaking one is found out.

import { fileURLToPath } from "node:url";
import { afterAll, expect, test } from "vitest";
import { Clients } from "../helpers/clients.ts";
import type { Workload } from "../helpers/clients.ts";
import { startGateway } from "../helpers/gateway.ts";
import { checkLedger } from "../helpers/ledger.ts";
import { waitFor } from "../helpers/wait.ts";
import { startShops } from "./shop.ts";

const fake = fileURLToPath(new URL("fake-gateway.mjs", import.meta.url));

const open: { close(): Promise<void> }[] = [];
afterAll(async () => void (await Promise.all(open.map((one) => one.close()))));

const workload: Workload = (client, n) => ({
  method: n % 3 === 0 ? "PUT" : "POST",
  path: n % 3 === 0 ? `/r/k${n % 4}` : `/c/k${n % 4}/add`,
  orderKeys: [],
  isKeyed: client % 2 === 0,
  isRepeatable: false,
  body: n % 3 === 0 ? { v: `${client}-${n}` } : { by: 1 },
});

/** The faults that the ledger finds after a run with one kill -9 in the middle. */
async function faultsUnder(bug: string): Promise<string[]> {
  const shops = await startShops(["a", "b", "c"], { afterMs: 1 });
  open.push(...shops);
  const gateway = await startGateway({
    command: [process.execPath, fake],
    config: { replicas: shops.map(({ name, url }) => ({ name, url })) },
    env: { FAKE_BUG: bug },
  });
  open.push(gateway);
  const clients = new Clients({ front: gateway.front, count: 12, workload, timeoutMs: 5_000, repeatEvery: 5 });
  clients.start();
  await clients.busy({ acknowledged: 100, inFlight: 5 });
  await gateway.kill9();
  await gateway.restart();
  await clients.busy({ acknowledged: 100, inFlight: 5 });
  await clients.stop();
  const last = (await gateway.status()).tail;
  await waitFor(() => shops.every((shop) => shop.journal().some((row) => row.position === last)), {
    what: "all shops to have the last entry",
  });
  return checkLedger({ sent: clients.history, journals: new Map(shops.map((shop) => [shop.name, shop.journal()])) });
}

test.concurrent("a gateway that keeps its promises is accepted, kill -9 included", async () => {
  expect(await faultsUnder("")).toEqual([]);
});

test.concurrent.each([
  ["lose", "was acknowledged and is missing"],
  ["skip", "was acknowledged and is missing"],
  ["double", "was executed 2 times"],
  ["reorder", "was executed before"],
  ["refuse", "was answered not-executed and was executed"],
  ["answers", "was answered twice, with different bodies"],
  ["keyless", "came with the key null"],
])("a gateway with the bug %s is rejected: %s", async (bug, fault) => {
  expect((await faultsUnder(bug)).join("\n")).toContain(fault);
});
