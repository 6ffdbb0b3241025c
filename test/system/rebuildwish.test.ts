// A copy that is to be made anew because it disagreed is made anew, whatever happens to the gateway that decided it.

import { expect, onTestFinished, test } from "vitest";
import { startKv } from "../chaos/kv.ts";
import { createFolder, removeFolder } from "../helpers/folder.ts";
import { startGateway } from "../helpers/gateway.ts";
import { ask, caughtUp } from "./system.ts";

test("a copy that disagreed is made anew by the next life of a gateway that could not do it", async () => {
  const backends = await Promise.all(["a", "b", "c"].map(startKv));
  const store = createFolder("snapshots");
  const agreement = { onMinority: "rebuild", rebuildsPerHour: 0 };
  const gateway = await startGateway({
    config: {
      rules: [{ name: "incr", match: "POST /kv/:k/incr", mode: "replicate", order: ["kv:{path.k}"] }],
      agreement,
      snapshots: { capture: { export: "GET /dump", import: "PUT /dump" }, quiesce: "none", store },
      replicas: backends.map(({ name, url }) => ({ name, url, witness: ["GET /root"] })),
    },
  });
  onTestFinished(async () => {
    await gateway.close();
    await Promise.all(backends.map((backend) => backend.close()));
    removeFolder(store);
  });
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
