// What a rebuild promises while other things go wrong: it is done whatever happens to the gateway that decided it, and it skips nothing.

import { expect, onTestFinished, test } from "vitest";
import { startKv } from "../chaos/kv.ts";
import type { Kv } from "../chaos/kv.ts";
import { createFolder, removeFolder } from "../helpers/folder.ts";
import { startGateway } from "../helpers/gateway.ts";
import type { Gateway } from "../helpers/gateway.ts";
import { waitFor } from "../helpers/wait.ts";
import { ask, caughtUp } from "./system.ts";

interface Rebuildable {
  readonly gateway: Gateway;
  readonly backends: readonly Kv[];
}

async function startRebuildable(config: object, each: object): Promise<Rebuildable> {
  const backends = await Promise.all(["a", "b", "c"].map(startKv));
  const store = createFolder("snapshots");
  const probe = { request: "GET /probe?id={query.id}", applied: { body: { "/applied": true } } };
  const gateway = await startGateway({
    config: {
      rules: [{ name: "incr", match: "POST /kv/:k/incr", mode: "replicate", order: ["kv:{path.k}"], probe }],
      snapshots: { capture: { export: "GET /dump", import: "PUT /dump" }, quiesce: "none", store },
      replicas: backends.map(({ name, url }) => ({ name, url, ...each })),
      ...config,
    },
  });
  onTestFinished(async () => {
    await gateway.close();
    await Promise.all(backends.map((backend) => backend.close()));
    removeFolder(store);
  });
  return { gateway, backends };
}

test("a copy that disagreed is made anew by the next life of a gateway that could not do it", async () => {
  const agreement = { onMinority: "rebuild", rebuildsPerHour: 0 };
  const { gateway, backends } = await startRebuildable({ agreement }, { witness: ["GET /root"] });
  await ask(gateway.front, "POST", "/kv/c1/incr?id=1", { body: { by: 1 } });
  await caughtUp(gateway);
  await backends[2]?.fault({ kind: "differ" });
  await ask(gateway.front, "POST", "/kv/c1/incr?id=2", { body: { by: 1 } });
  await gateway.until("c quarantined", 15_000, ({ replicas }) =>
    replicas.some((it) => it.name === "c" && it.state === "quarantined"),
  );
  await backends[2]?.fault({ kind: "none" });
  await gateway.configure({ agreement: { ...agreement, rebuildsPerHour: 10 } });
  await gateway.restart();
  await caughtUp(gateway);
  expect(await backends[2]?.root()).toBe(await backends[0]?.root());
}, 90_000);

test("what was in flight when a backend died in the middle of its replay is not taken for done because its former state had answered it", async () => {
  const { gateway, backends } = await startRebuildable({}, { onReturn: "trust" });
  const copy = backends[2] as Kv;
  await gateway.until("a snapshot", 20_000, (status) => (status.snapshots?.last ?? null) !== null);
  for (let n = 0; n < 100; n += 1) await ask(gateway.front, "POST", `/kv/c1/incr?id=${n}`, { body: { by: 1 } });
  await caughtUp(gateway);
  await copy.fault({ kind: "slow", ms: 10 });
  expect((await gateway.api("POST", "/v1/replicas/c/rebuild")).status).toBe(202);
  await waitFor(() => copy.pastJournals().length === 1 && copy.journal().length >= 20, {
    what: "the replay to be under way",
  });
  // The next one reaches the backend and is not executed.
  await copy.fault({ kind: "hang" });
  const executed = copy.journal().length;
  await waitFor(() => gateway.status().then((s) => s.replicas.some((it) => it.name === "c" && it.inFlight > 0)), {
    what: "one in flight",
  });
  await copy.start();
  await caughtUp(gateway);
  expect(executed).toBeLessThan(100);
  expect(copy.journal().map((row) => row.id)).toEqual(backends[0]?.journal().map((row) => row.id));
}, 90_000);
