// Real processes, real kills: whatever was acknowledged stands exactly once in every backend's journal, in the order of the log,
// and a key has one execution and one answer. Every kill finds at least 5 requests in flight and 200 acknowledged since the last.

import { describe, expect, test } from "vitest";
import { Clients } from "../helpers/clients.ts";
import { waitFor } from "../helpers/wait.ts";
import type { Workload } from "../helpers/clients.ts";
import { add, allLive, ask, caughtUp, faultsOf, killManaged, settled, startSystem, unsettled } from "./system.ts";
import type { System } from "./system.ts";

const clientCount = 32;
/** A small delay before and after the execution: kills find requests sent and not executed, executed and not answered. */
const fault = { beforeMs: 2, afterMs: 3 };
const dueKill = { acknowledged: 200, inFlight: 5 };

function startClients(system: System, workload: Workload): Clients {
  const clients = new Clients({ front: system.gateway.front, count: clientCount, workload });
  clients.start();
  return clients;
}

/** Kills and starts the gateway again under load; every fourth time all replicas must be live again before the next kill. */
async function killGateway({ gateway }: System, clients: Clients, times: number): Promise<void> {
  for (let kill = 1; kill <= times; kill += 1) {
    await clients.busy(dueKill);
    await gateway.kill9();
    await gateway.restart();
    if (kill % 4 === 0) await allLive(gateway);
  }
}

async function killBackends({ gateway, shops, names }: System, clients: Clients): Promise<void> {
  for (const name of names) {
    await allLive(gateway);
    await clients.busy(dueKill);
    const shop = shops.find((one) => one.name === name);
    if (shop) await shop.kill9();
    else await killManaged(gateway, name);
    // The others go on while it is away.
    await clients.busy({ acknowledged: 50, inFlight: 1 });
    await shop?.restart();
    await allLive(gateway, 15_000);
  }
}

/** SIGTERM under load leaves nothing unknown, and loses nothing. */
async function stopGracefully({ gateway }: System, clients: Clients): Promise<void> {
  await clients.busy(dueKill);
  expect(await gateway.stop()).toBe(0);
  await gateway.start();
  expect(await gateway.unknown()).toEqual([]);
  await allLive(gateway);
}

const witnesses = async (system: System): Promise<unknown[]> => {
  const { replicas } = await system.gateway.status();
  return Promise.all(replicas.map(async ({ url }) => (await fetch(`${url}/witness`)).json()));
};

async function expectEqualCopies(system: System, clients: Clients): Promise<void> {
  await clients.stop();
  expect(await faultsOf(system, clients)).toEqual([]);
  expect(new Set((await witnesses(system)).map((one) => JSON.stringify(one))).size).toBe(1);
}

describe.each(["embedded", "nats"] as const)("%s, backends that run already", (stores) => {
  test("twenty kills of the gateway and one of each backend leave three equal copies with everything acknowledged", async () => {
    const system = await startSystem({ stores, fault });
    const clients = startClients(system, settled);
    await killGateway(system, clients, 20);
    await killBackends(system, clients);
    await stopGracefully(system, clients);
    await expectEqualCopies(system, clients);
  }, 150_000);
});

describe.each(["embedded", "nats"] as const)("%s, backends that the gateway starts", (stores) => {
  test("kills of the gateway and of each backend leave three equal copies with everything acknowledged", async () => {
    const system = await startSystem({ stores, fault, replicas: "managed" });
    const clients = startClients(system, settled);
    await killGateway(system, clients, 4);
    await killBackends(system, clients);
    await stopGracefully(system, clients);
    await expectEqualCopies(system, clients);
  }, 90_000);
});

describe("requests that can neither be repeated nor be asked for", () => {
  test.each([
    ["embedded", "url"],
    ["nats", "managed"],
  ] as const)(
    "%s, %s: at most what was in flight is held, never on all copies, and a person settles it",
    async (stores, replicas) => {
      const system = await startSystem({ stores, fault, replicas, gateway: { until: "live" } });
      await allLive(system.gateway);
      const clients = startClients(system, unsettled);
      for (let kill = 1; kill <= 2; kill += 1) {
        await clients.busy(dueKill);
        await system.gateway.kill9();
        await system.gateway.restart();
        await settleByHand(system, clients);
        await allLive(system.gateway);
      }
      await clients.busy(dueKill);
      await stopGracefully(system, clients);
      await expectEqualCopies(system, clients);
    },
    60_000,
  );

  test("a backend that was killed alone is held alone, the others answer", async () => {
    const system = await startSystem({ fault, replicas: "url" });
    const clients = startClients(system, unsettled);
    await clients.busy(dueKill);
    await system.shops[1]?.kill9();
    await clients.busy({ acknowledged: 200, inFlight: 5 });
    await system.shops[1]?.restart();
    await settleByHand(system, clients);
    await allLive(system.gateway);
    await expectEqualCopies(system, clients);
  }, 60_000);
});

/** Looks into the journals and tells the gateway what it cannot know; prints what was held. */
async function settleByHand(system: System, clients: Clients): Promise<void> {
  const { gateway } = system;
  await gateway.until("every replica is live or held", 15_000, (status) =>
    status.replicas.every((replica) => replica.state === "live" || replica.state === "held"),
  );
  // One of them rested, and goes on at once.
  await clients.busy({ acknowledged: 50, inFlight: 1 });
  const rows = await gateway.unknown();
  const held = new Map<string, number>();
  for (const row of rows) held.set(row.replica, (held.get(row.replica) ?? 0) + 1);
  expect(held.size).toBeLessThan(system.names.length);
  expect(gateway.output()).toContain("rest in turn");
  process.stdout.write(`held: ${JSON.stringify(Object.fromEntries(held))}\n`);
  // One of an order key is in flight at a time, and there are as many keys as clients.
  for (const count of held.values()) expect(count).toBeLessThanOrEqual(clientCount);
  const journals = system.journals();
  for (const row of rows) {
    const isApplied = journals.get(row.replica)?.some((executed) => executed.position === row.position) ?? false;
    const answer = await gateway.api("POST", `/v1/replicas/${row.replica}/resolve`, {
      position: row.position,
      applied: isApplied,
    });
    expect(answer.status, answer.text).toBeLessThan(300);
  }
}

test("a gateway that is stopped and started again without load goes on where it was", async () => {
  const system = await startSystem({ replicas: "managed" });
  const clients = new Clients({ front: system.gateway.front, count: 4, workload: (c, n) => add(c, n, true) });
  clients.start();
  await clients.busy({ acknowledged: 50, inFlight: 1 });
  await clients.stop();
  await caughtUp(system.gateway);
  const before = await system.gateway.status();
  expect(await system.gateway.stop()).toBe(0);
  await system.gateway.start();
  const after = await caughtUp(system.gateway);
  expect(after.tail).toBeGreaterThanOrEqual(before.tail);
  expect(after.log.epoch).toBe(before.log.epoch);
  expect(await faultsOf(system, clients)).toEqual([]);
}, 30_000);

test("what was done out of order is not done again when the gateway dies while a backend that came back is being settled", async () => {
  const system = await startSystem();
  const { gateway, shops } = system;
  const copy = shops[2] as (typeof shops)[number];
  // One request never ends on this copy: everything else is finished above the watermark.
  await copy.fault({ kind: "hang", left: 1, only: "/c/hung" });
  await ask(gateway.front, "POST", "/c/hung/add?id=hung", { body: { by: 1 } });
  const sent = Array.from({ length: 30 }, (_, n) => `later-${n}`);
  for (const id of sent) await ask(gateway.front, "POST", `/c/${id}/add?id=${id}`, { body: { by: 1 } });
  await waitFor(() => copy.journal().length === sent.length, { what: "everything but the hung request on the copy" });
  await copy.fault({});
  await copy.restart();
  // It waits before it asks what became of the hung one: this is the moment.
  await waitFor(() => gateway.output().includes("outcome unknown"), { what: "the hung request to be unknown" });
  await gateway.kill9();
  await gateway.start();
  await allLive(gateway, 15_000);
  await caughtUp(gateway);
  expect(copy.journal().map((row) => row.id)).toEqual([...sent, "hung"]);
}, 60_000);
