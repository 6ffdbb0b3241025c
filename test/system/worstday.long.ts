// The worst day: everything that ran is killed, and what it kept on this machine is gone. What is left is the configuration, the log in NATS, the store
// of snapshots, the chain, and the keys. `gateway recover` brings the service back, and proves that it is what was recorded.

import { existsSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect, onTestFinished, test } from "vitest";
import { developmentKeys, startAnvil } from "../helpers/anvil.ts";
import { Clients, fateOf } from "../helpers/clients.ts";
import type { Call, Sent } from "../helpers/clients.ts";
import { temporaryFolder } from "../helpers/folder.ts";
import { rowsOf, startGateway } from "../helpers/gateway.ts";
import type { Gateway } from "../helpers/gateway.ts";
import { startNats, startRedis } from "../helpers/servers.ts";
import { caughtUp, ask } from "./system.ts";
import { demoShop, runCli, startReference } from "./recorded.ts";

const accounts = 48;

/** Side by side, but for equal accounts: whatever the interleaving, equal states are equal files. */
const rules = [
  { name: "deposit", match: "POST /accounts/:id/deposits", mode: "replicate", order: ["account:{path.id}"] },
  {
    name: "transfer",
    match: "POST /transfers",
    mode: "replicate",
    order: ["account:{body.from}", "account:{body.to}"],
  },
];

/** Half of it keyed. */
const workload = (client: number, n: number): Call => {
  const common = { orderKeys: [], isKeyed: (client + n) % 2 === 0, isRepeatable: false, method: "POST" } as const;
  const from = 1 + ((client * 3 + n) % accounts);
  if (n % 2 === 0) return { ...common, path: `/accounts/${from}/deposits`, body: { amount: 1 + (n % 9) } };
  return { ...common, path: "/transfers", body: { from, to: 1 + ((client + n * 7) % accounts), amount: 1 + (n % 4) } };
};

test("everything is killed and every folder is gone: the service comes back as the acknowledged entries made it, and old keys execute nothing again", async () => {
  const [nats, redis, anvil] = await Promise.all([startNats(), startRedis({ appendonly: true }), startAnvil()]);
  const kept = temporaryFolder("kept");
  const state = join(kept, "state");
  const keyFile = join(kept, "registry.key");
  writeFileSync(keyFile, developmentKeys[0], { mode: 0o600 });
  writeFileSync(join(kept, "snapshot.key"), "5".repeat(64), { mode: 0o600 });
  const deployed = await runCli(["registry", "deploy", "--rpc", anvil.url, "--key-file", keyFile, "--json"]);
  expect(deployed.stderr + deployed.stdout).toContain("contract");
  const { contract } = JSON.parse(deployed.stdout) as { contract: string };

  const gateway = await startGateway({
    config: {
      rules,
      log: { nats: { servers: [nats.url], monitor: [nats.monitorUrl] } },
      keys: { redis: { url: redis.url } },
      replicas: { count: 3, command: demoShop, state },
      snapshots: {
        every: { entries: 2000, atLeast: "500ms" },
        keep: 3,
        store: join(kept, "snapshots"),
        encrypt: { keyFile: join(kept, "snapshot.key") },
      },
      registry: { ethereum: { rpc: [anvil.url], contract, keyFile, confirmations: 1 } },
    },
  });
  onTestFinished(async () => {
    await gateway.close();
    await Promise.all([nats.close(), redis.close(), anvil.close()]);
  });

  const opened = await Promise.all(
    Array.from({ length: accounts }, (_, i) =>
      ask(gateway.front, "POST", `/accounts?id=open-${i}`, { body: { owner: `owner ${i}` } }),
    ),
  );
  expect(opened.map((it) => it.status)).toEqual(opened.map(() => 201));
  const clients = new Clients({ front: gateway.front, count: 32, workload });
  clients.start();
  await clients.busy({ acknowledged: 6000, inFlight: 5, withinMs: 90_000 });
  await gateway.until(
    "two versions are final on the chain",
    30_000,
    ({ registry }) => (registry?.publishedPosition ?? 0) > 0,
  );
  await clients.busy({ acknowledged: 300, inFlight: 5 });

  // The disaster, under load.
  await Promise.all([gateway.kill9(), redis.kill9()]);
  for (const pid of gateway.orphans()) process.kill(pid, "SIGKILL");
  await clients.stop();
  rmSync(gateway.data, { recursive: true });
  rmSync(state, { recursive: true });
  for (const name of ["appendonlydir", "dump.rdb"]) rmSync(join(redis.folder, name), { recursive: true, force: true });
  await redis.restart();

  const dry = await runCli(["recover", "--dry-run", "-c", gateway.file]);
  expect(dry.code, dry.stderr).toBe(0);
  expect(existsSync(state)).toBe(false);
  const recovered = await runCli(["recover", "--yes", "--json", "-c", gateway.file]);
  process.stdout.write(`${recovered.stdout.slice(0, 1500)}\n`);
  expect(recovered.code, recovered.stderr).toBe(0);
  const { plan, result } = JSON.parse(recovered.stdout) as {
    plan: { source: string; log: { entriesToReplay: number } };
    result: { verified: number; differing: string[]; missing: string | null };
  };
  expect(plan.source).toBe("registry");
  expect(result.differing).toEqual([]);
  expect(result.missing).toBeNull();
  expect(result.verified).toBeGreaterThan(0);

  const copies = ["r1", "r2", "r3"].map((name) => readFileSync(join(state, name, "shop.json"), "utf8"));
  expect(new Set(copies).size).toBe(1);
  const before = readFileSync(join(state, "r1", "shop.json"), "utf8");

  await gateway.start();
  await caughtUp(gateway);
  const executed = await executedInOrder(gateway, clients.history, opened.length);
  const reference = await startReference();
  for (let i = 0; i < accounts; i++)
    await reference.send("POST", "/accounts", { owner: `owner ${openOrder(opened, i)}` });
  for (const { call } of executed) await reference.send(call.method, call.path, call.body);
  const expected = await reference.stop();
  expect(
    before === expected,
    `the recovered state is not that of the reference: ${before.length} and ${expected.length} bytes`,
  ).toBe(true);

  // Keys from before the disaster: executed once, and for ever.
  const keyed = clients.history.filter((sent) => sent.key !== null && fateOf(sent) === "executed");
  for (const sent of [...keyed.slice(0, 25), ...keyed.slice(-25)]) {
    const again = await ask(gateway.front, sent.call.method, `${sent.call.path}?id=${sent.id}`, {
      body: sent.call.body,
      headers: { "idempotency-key": sent.key as string },
    });
    expect(again.outcome, again.text).toBe("executed");
  }
  await caughtUp(gateway);
  for (const name of ["r1", "r2", "r3"]) expect(readFileSync(join(state, name, "shop.json"), "utf8")).toBe(expected);
}, 240_000);

/** Which owner got the i-th account: the log decided. */
function openOrder(opened: readonly { readonly position: string | null }[], i: number): number {
  const positions = opened.map((it, index) => ({ index, position: Number(it.position?.split("@")[0]) }));
  return positions.toSorted((a, b) => a.position - b.position)[i]?.index ?? -1;
}

/** What was acknowledged, by the position that the client was told; what nobody was told of stands in the log or was never executed. */
async function executedInOrder(gateway: Gateway, history: readonly Sent[], before: number): Promise<readonly Sent[]> {
  const at = new Map<number, Sent>();
  for (const sent of history)
    for (const { outcome, position } of sent.attempts)
      if (outcome === "executed" && position !== null) at.set(position, sent);
  const unknown = new Map(history.filter((sent) => fateOf(sent) === "unknown").map((sent) => [sent.id, sent]));
  let from = 0;
  // Ends at the first empty page.
  for (;;) {
    const { json } = await gateway.api("GET", `/v1/log?from=${from}&limit=1000`);
    const rows = rowsOf(json) as { position: number; kind: string; fate: string; target: string | null }[];
    const last = rows.at(-1);
    if (last === undefined) break;
    for (const row of rows) {
      const sent = unknown.get(/[?&]id=([^&]+)/.exec(row.target ?? "")?.[1] ?? "");
      if (row.kind === "entry" && row.fate === "applied" && sent !== undefined) at.set(row.position, sent);
    }
    from = last.position + 1;
  }
  expect(before).toBeGreaterThan(0);
  return [...at].toSorted(([a], [b]) => a - b).map(([, sent]) => sent);
}
