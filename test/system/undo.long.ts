// Real processes, real kills: requests that can neither be repeated nor asked for, whose rule says how to put back what they changed.

import { describe, expect, test } from "vitest";
import { Clients } from "../helpers/clients.ts";
import type { Workload } from "../helpers/clients.ts";
import { temporaryFolder } from "../helpers/folder.ts";
import type { Executed } from "../helpers/ledger.ts";
import { waitFor } from "../helpers/wait.ts";
import { add, allLive, ask, caughtUp, faultsOf, killManaged, startSystem } from "./system.ts";
import type { System } from "./system.ts";

type Row = Executed & {
  readonly kind: string;
  readonly k: string;
  readonly by: number;
  readonly total?: number | null;
};

const undone: Workload = (client, n) => add(client, n, (client + n) % 2 === 0, "u");
const fault = { beforeMs: 2, afterMs: 3 };
const dueKill = { acknowledged: 200, inFlight: 5 };

const putBacks = (system: System): readonly Row[] =>
  [...system.journals().values()].flatMap((rows) => (rows as readonly Row[]).filter(({ kind }) => kind === "put-back"));

/** What is left of a journal when everything that was put back is taken out of it. */
function remaining(rows: readonly Row[]): readonly Row[] {
  const left = new Map<string, Row[]>();
  for (const row of rows) {
    const own = left.get(row.k) ?? [];
    left.set(row.k, own);
    if (row.kind !== "put-back") own.push(row);
    else while (own.reduce((sum, { by }) => sum + by, 0) > (row.total ?? 0)) own.pop();
  }
  const kept = new Set([...left.values()].flat());
  return rows.filter((row) => kept.has(row));
}

async function expectOnceEverywhere(system: System, clients: Clients): Promise<void> {
  await clients.stop();
  const journals = () => new Map([...system.journals()].map(([name, rows]) => [name, remaining(rows as Row[])]));
  expect(await faultsOf({ ...system, journals }, clients)).toEqual([]);
  const { replicas } = await system.gateway.status();
  const states = await Promise.all(replicas.map(async ({ url }) => (await fetch(`${url}/witness`)).text()));
  expect(new Set(states).size).toBe(1);
}

describe("requests whose rule has before and undo", () => {
  test.each([
    ["embedded", "url"],
    ["nats", "managed"],
  ] as const)(
    "%s, %s: after kills of the gateway and of a backend all copies are live again without help, and nothing took effect twice",
    async (stores, replicas) => {
      const system = await startSystem({ stores, fault, replicas });
      const { gateway, shops, names } = system;
      const clients = new Clients({ front: gateway.front, count: 32, workload: undone });
      clients.start();
      for (let kill = 1; kill <= 3; kill += 1) {
        await clients.busy(dueKill);
        await gateway.kill9();
        await gateway.restart();
        await allLive(gateway);
      }
      await clients.busy(dueKill);
      await (shops[1]?.kill9() ?? killManaged(gateway, names[1] as string));
      await shops[1]?.restart();
      await allLive(gateway, 15_000);
      await clients.busy(dueKill);
      await expectOnceEverywhere(system, clients);
      expect(putBacks(system).length).toBeGreaterThan(0);
    },
    120_000,
  );

  test("a connection that is reset after the execution: what it did is put back, and done once", async () => {
    const system = await startSystem({ replicas: "url" });
    const { gateway, shops } = system;
    const shop = shops[0];
    for (const n of [1, 2]) {
      await shop?.fault({ kind: "reset-after", left: 1, only: "/add" });
      expect((await ask(gateway.front, "POST", `/u/x/add?id=${n}`, { body: { by: 5 } })).status).toBe(200);
      await gateway.until("the reset was settled", 15_000, (status) =>
        status.replicas.every((it) => it.applied === status.tail),
      );
      await caughtUp(gateway);
      for (const it of shops) expect(await it.get("/u/x")).toEqual({ total: 5 * n });
    }
    // At first there was nothing; then there was 5.
    expect(putBacks(system).map(({ total }) => total)).toEqual([null, 5]);
    expect(await gateway.unknown()).toEqual([]);
  }, 30_000);

  test("what another owner saved is not put back: the entry is held", async () => {
    const system = await startSystem({ stores: "nats", config: { lease: "2s" }, gateway: { until: "live" } });
    const { gateway, shops } = system;
    await allLive(gateway);
    expect((await ask(gateway.front, "POST", "/u/x/add?id=1", { body: { by: 5 } })).status).toBe(200);
    await caughtUp(gateway);
    for (const it of shops) await it.fault({ kind: "hang-after", only: "/add" });
    const hung = ask(gateway.front, "POST", "/u/x/add?id=2", { body: { by: 5 } }).catch(() => null);
    // The poison guard lets the others have it when the first was silent.
    await waitFor(() => [...system.journals().values()].every((rows) => rows.length === 2), {
      what: "all have executed it",
    });
    await gateway.kill9();
    await hung;
    await gateway.configure({ name: "gw-2", data: temporaryFolder("other") });
    await gateway.start();
    await gateway.until("every replica is held", 20_000, (status) =>
      status.replicas.every(({ state }) => state === "held"),
    );
    expect((await gateway.unknown()).map(({ replica }) => replica).sort()).toEqual(["a", "b", "c"]);
    expect(putBacks(system)).toEqual([]);
    for (const it of shops) expect(await it.get("/u/x")).toEqual({ total: 10 });
  }, 60_000);
});
