// Several gateways with copies of their own, with roles of their own, and one that records.

import { readdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, onTestFinished, test } from "vitest";
import type { Operation } from "../../gateway/status.ts";
import { Clients } from "../helpers/clients.ts";
import { createFolder, removeFolder } from "../helpers/folder.ts";
import { rowsOf } from "../helpers/gateway.ts";
import type { Gateway } from "../helpers/gateway.ts";
import { waitFor } from "../helpers/wait.ts";
import { faultsOfFleet, ownersOf, spread, startFleet } from "./fleet.ts";
import type { FleetSystem } from "./fleet.ts";
import { journalOf, shopProgram } from "./shop.ts";
import { allLive, ask, caughtUp, settled } from "./system.ts";
import { demoShop } from "./recorded.ts";

const at = (system: FleetSystem, n: number): Gateway => system.gateways[n - 1] as Gateway;

function load(front: (client: number) => string, count = 8): Clients {
  const clients = new Clients({ front, count, workload: settled, thinkMs: 2 });
  clients.start();
  onTestFinished(() => clients.stop());
  return clients;
}

function temporaryFolder(): string {
  const folder = createFolder("fleet");
  onTestFinished(() => removeFolder(folder));
  return folder;
}

/** One copy a gateway, started by it, its state in `state`. */
const managed =
  (state: string, command: readonly string[]) =>
  (n: number): Readonly<Record<string, unknown>> => ({
    replicas: { count: 1, name: `g${n}-`, command, state, ready: "GET /health", witness: ["GET /witness"] },
  });

describe("gateways that die", () => {
  test("one that is killed is replaced after its lease, and nothing is lost or done twice", async () => {
    const system = await startFleet({ gateways: 3 });
    await spread(system.gateways, { "gw-1": 1, "gw-2": 1, "gw-3": 1 });
    const clients = load((client) => anyOf(system, client), 12);
    for (let round = 0; round < 3; round++) {
      await clients.busy({ acknowledged: 150, inFlight: 3 });
      const victim = system.gateways[round];
      await victim?.kill9();
      const left = system.gateways.filter((it) => it.isRunning);
      await clients.busy({ acknowledged: 100, inFlight: 2 });
      const counts = Object.fromEntries(
        [1, 2, 3].filter((n) => n !== round + 1).map((n, at) => [`gw-${n}`, at === 0 ? 2 : 1]),
      );
      await spread(left, counts).catch(async () => spread(left, swapped(counts)));
      await victim?.start();
      await spread(system.gateways, { "gw-1": 1, "gw-2": 1, "gw-3": 1 });
    }
    await clients.stop();
    expect(await faultsOfFleet(system, clients)).toEqual([]);
  }, 180_000);
});

/** Each client has a front of its own, and goes to another one when that does not answer. */
function anyOf({ gateways }: FleetSystem, client: number): string {
  const running = gateways.filter((it) => it.isRunning);
  return (running[client % running.length] ?? gateways[0])?.front ?? "";
}

const swapped = (counts: Readonly<Record<string, number>>): Record<string, number> =>
  Object.fromEntries(Object.entries(counts).map(([name, count]) => [name, 3 - count]));

describe("roles", () => {
  test("a front takes requests for copies that other gateways feed, and one of those may go", async () => {
    const system = await startFleet({
      gateways: 0,
      backends: ["a", "b"],
      each: (n) => ({
        roles: n === 1 ? ["front"] : ["applier", "recorder"],
        timeouts: { firstByte: "5s" },
      }),
    });
    await system.join(2);
    await system.join(3);
    await system.join(1);
    const front = system.gateways[2] as Gateway;
    await spread(system.gateways, { "gw-2": 1, "gw-3": 1 });
    const clients = load(() => front.front);
    await clients.busy({ acknowledged: 200, inFlight: 2 });
    // No owner: its copy waits, the other one answers.
    await at(system, 1).kill9();
    await clients.busy({ acknowledged: 200, inFlight: 2 });
    await spread([front, at(system, 2)], { "gw-3": 2 });
    await at(system, 1).start();
    await spread(system.gateways, { "gw-2": 1, "gw-3": 1 });
    await clients.stop();
    expect(await faultsOfFleet(system, clients)).toEqual([]);
  });

  test("copies stay with the gateways that their owners name", async () => {
    const system = await startFleet({
      gateways: 0,
      backends: ["a", "b"],
    });
    const [a, b] = system.shops;
    const replicas = [
      { name: "a", url: a?.url, owners: ["gw-2"], witness: ["GET /witness"] },
      { name: "b", url: b?.url, owners: ["gw-1"], witness: ["GET /witness"] },
    ];
    for (const n of [1, 2]) await system.join(n, { replicas });
    await spread(system.gateways, { "gw-1": 1, "gw-2": 1 });
    expect(await ownersOf(at(system, 1))).toEqual({ a: "gw-2", b: "gw-1" });
    expect(await at(system, 2).stop()).toBe(0);
    await at(system, 1).until("a is nobody's", 10_000, ({ replicas: it }) =>
      it.some(({ name, owner, state }) => name === "a" && owner === null && state !== "live"),
    );
    await at(system, 2).start();
    await spread(system.gateways, { "gw-1": 1, "gw-2": 1 });
  });
});

describe("copies that the gateways start", () => {
  test("are fed each by its own gateway, and an entry that ends copies is parked before it has ended all", async () => {
    const state = temporaryFolder();
    const command = [process.execPath, shopProgram];
    const system = await startFleet({ gateways: 3, backends: [], each: managed(state, command) });
    await spread(system.gateways, { "gw-1": 1, "gw-2": 1, "gw-3": 1 });
    const answer = await ask(at(system, 2).front, "POST", "/poison?id=1", { body: {}, timeoutMs: 60_000 });
    expect([answer.status, answer.code, answer.outcome]).toEqual([503, "GW_PARKED", "not-executed"]);
    for (const it of system.gateways) await caughtUp(it, 30_000);
    const lives = await Promise.all(
      system.gateways.map(async (it) => (await it.status()).replicas.filter(({ pid }) => pid !== null).length),
    );
    expect(lives).toEqual([1, 1, 1]);
    for (const it of system.gateways) expect(rowsOf((await it.api("GET", "/v1/parked")).json)).toHaveLength(1);
    const after = await ask(at(system, 1).front, "POST", "/c/k/add?id=2", { body: { by: 1 } });
    expect([after.status, after.outcome]).toEqual([200, "executed"]);
    for (const it of system.gateways) await caughtUp(it);
    for (const n of [1, 2, 3]) expect(journalOf(join(state, `g${n}-1`)).map((row) => row.id)).toEqual(["2"]);
  });

  test("that answer otherwise are found out by the front, whoever feeds them, and quarantined by their own", async () => {
    const system = await startFleet({
      gateways: 2,
      config: {
        rules: [{ name: "set", match: "PUT /r/:k", mode: "replicate", compare: { status: true, body: "bytes" } }],
      },
    });
    await spread(system.gateways, { "gw-1": 2, "gw-2": 1 });
    const owners = await ownersOf(at(system, 1));
    const lone = Object.entries(owners).find(([, owner]) => owner === "gw-2")?.[0] as string;
    await system.shops.find((it) => it.name === lone)?.fault({ kind: "differ" });
    // The front is not the one that feeds it.
    await ask(at(system, 1).front, "PUT", "/r/k?id=1", { body: { v: "1" } });
    await at(system, 2).until(`${lone} is quarantined`, 10_000, ({ replicas }) =>
      replicas.some(({ name, state }) => name === lone && state === "quarantined"),
    );
    await at(system, 1).until("and the other gateway knows", 10_000, ({ replicas }) =>
      replicas.some(({ name, state }) => name === lone && state === "quarantined"),
    );
  });
});

describe("the roster", () => {
  test("of one gateway is that of all: a copy is drained, removed and comes back with its file", async () => {
    const system = await startFleet({ gateways: 2 });
    await spread(system.gateways, { "gw-1": 2, "gw-2": 1 });
    const clients = load((client) => at(system, 1 + (client % 2)).front);
    const owners = await ownersOf(at(system, 1));
    const ofTwo = Object.entries(owners).find(([, owner]) => owner === "gw-2")?.[0] as string;
    // Ordered where it is not fed.
    const drained = await at(system, 1).api("POST", `/v1/replicas/${ofTwo}/drain`, { reason: "test" });
    expect(drained.status, drained.text).toBeLessThan(300);
    for (const it of system.gateways)
      await it.until(`${ofTwo} is draining`, 5000, ({ replicas }) =>
        replicas.some(({ name, state }) => name === ofTwo && state === "draining"),
      );
    const resumed = await at(system, 1).api("POST", `/v1/replicas/${ofTwo}/resume`, {});
    expect(resumed.status, resumed.text).toBeLessThan(300);
    await allLive(at(system, 1), 10_000);
    await clients.busy({ acknowledged: 50, inFlight: 2 });
    await clients.stop();
    for (const it of system.gateways) await caughtUp(it);
    const removed = await at(system, 1).api("DELETE", `/v1/replicas/${ofTwo}`);
    expect(removed.status, removed.text).toBe(202);
    for (const it of system.gateways)
      await it.until(`${ofTwo} is gone`, 10_000, ({ replicas }) => replicas.length === 2);
    const synced = await at(system, 2).api("POST", "/v1/replicas/sync", {});
    expect(synced.status, synced.text).toBeLessThan(300);
    for (const it of system.gateways)
      await it.until(`${ofTwo} is back`, 10_000, ({ replicas }) => replicas.length === 3);
  });
});

describe("the recorder", () => {
  test("is one of the gateways; the next takes over; a lost copy is rebuilt by its own gateway", async () => {
    const state = temporaryFolder();
    const store = temporaryFolder();
    const system = await startFleet({
      gateways: 3,
      backends: [],
      config: {
        rules: undefined,
        snapshots: { store, every: { entries: 100_000 } },
      },
      each: (n) => ({
        replicas: { count: 1, name: `g${n}-`, command: demoShop, state, ready: "GET /health" },
      }),
    });
    await spread(system.gateways, { "gw-1": 1, "gw-2": 1, "gw-3": 1 });
    const write = (n: number): ReturnType<typeof ask> =>
      ask(at(system, 1 + (n % 3)).front, "POST", "/orders", { body: { item: `i${n}`, count: 1 } });
    for (let n = 0; n < 30; n++) expect((await write(n)).status).toBe(201);
    const leader = await leaderOf(system);
    await operate(leader, "/v1/snapshots");
    for (const it of system.gateways.filter((other) => other !== leader)) {
      const refused = await it.api("POST", "/v1/snapshots", {});
      const operation = await ended(it, refused.json as Operation);
      expect(operation.error?.detail).toMatch(/the gateway gw-\d records/);
    }
    for (let n = 30; n < 40; n++) expect((await write(n)).status).toBe(201);
    // Of a copy that the recorder does not feed.
    const other = system.gateways.find((it) => it !== leader) as Gateway;
    const name = (await other.status()).replicas.find(({ pid }) => pid !== null)?.name as string;
    await other.api("POST", `/v1/replicas/${name}/drain`, { reason: "test" });
    rmSync(join(state, name), { recursive: true });
    const rebuilt = await operate(other, `/v1/replicas/${name}/rebuild`);
    expect(rebuilt.result).toMatch(/replayed answers equal|unverified/);
    for (const it of system.gateways) await caughtUp(it, 30_000);
    // All copies, whoever feeds them, prove that they are equal.
    const audited = await operate(await leaderOf(system), "/v1/audit");
    expect(audited.result).toContain("is equal at");
    for (const it of system.gateways) await caughtUp(it, 30_000);
    const before = readdirSync(join(store, "gw-shop", "manifests")).length;
    await leader.kill9();
    const next = await leaderOf(system);
    expect(next).not.toBe(leader);
    await operate(next, "/v1/snapshots");
    expect(readdirSync(join(store, "gw-shop", "manifests"))).toHaveLength(before + 1);
  }, 180_000);
});

/** The one that takes a snapshot order; waits for there to be one. */
async function leaderOf(system: FleetSystem): Promise<Gateway> {
  return waitFor(
    async () => {
      for (const it of system.gateways.filter(({ isRunning }) => isRunning))
        if ((await it.status()).snapshots?.isRecorder === true) return it;
      return null;
    },
    { what: "a gateway that records", timeoutMs: 30_000 },
  );
}

async function operate(gateway: Gateway, path: string): Promise<Operation> {
  const begun = await gateway.api("POST", path, {});
  expect(begun.status, begun.text).toBe(202);
  const done = await ended(gateway, begun.json as Operation);
  expect(done.state, JSON.stringify(done)).toBe("done");
  return done;
}

function ended(gateway: Gateway, { id }: Operation): Promise<Operation> {
  return waitFor(
    async () => {
      const operation = (await gateway.api("GET", `/v1/operations/${id}`)).json as Operation;
      return operation.state === "running" ? null : operation;
    },
    { what: `operation ${id}`, timeoutMs: 60_000 },
  );
}
