// Several gateways on one NATS and Redis: any of them takes any request, each copy is fed by one, and whoever dies is replaced.

import { rmSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, onTestFinished, test } from "vitest";
import { Clients } from "../helpers/clients.ts";
import type { Workload } from "../helpers/clients.ts";
import type { Gateway } from "../helpers/gateway.ts";
import { waitFor } from "../helpers/wait.ts";
import { faultsOfFleet, ownersOf, spread, startFleet } from "./fleet.ts";
import type { FleetSystem } from "./fleet.ts";
import type { Shop } from "./shop.ts";
import { ask, settled } from "./system.ts";

/** Each client has a front of its own, and goes to another one when that does not answer. */
function load(system: FleetSystem, count = 12, workload: Workload = settled): Clients {
  const { gateways } = system;
  const clients = new Clients({
    front: (client) => {
      const running = gateways.filter((it) => it.isRunning);
      return (running[client % running.length] ?? gateways[0])?.front ?? "";
    },
    count,
    workload,
    thinkMs: 2,
  });
  clients.start();
  onTestFinished(() => clients.stop());
  return clients;
}

describe("several gateways", () => {
  test("take any request, and share the copies evenly", async () => {
    const system = await startFleet({ gateways: 2 });
    await spread(system.gateways, { "gw-1": 2, "gw-2": 1 });
    const clients = load(system);
    await clients.busy({ acknowledged: 400, inFlight: 3 });
    await clients.stop();
    expect(await faultsOfFleet(system, clients)).toEqual([]);
  }, 60_000);

  test("one that joins gets its share while clients go on, one that stops gives it back at once", async () => {
    const system = await startFleet({ gateways: 1 });
    const clients = load(system);
    await clients.busy({ acknowledged: 100, inFlight: 3 });
    await system.join(2);
    await spread(system.gateways, { "gw-1": 2, "gw-2": 1 });
    await system.join(3);
    await spread(system.gateways, { "gw-1": 1, "gw-2": 1, "gw-3": 1 });
    await clients.busy({ acknowledged: 100, inFlight: 3 });
    const first = system.gateways[0];
    expect(await first?.stop()).toBe(0);
    const left = system.gateways.slice(1);
    const begunMs = performance.now();
    await spread(left, { "gw-2": 2, "gw-3": 1 });
    // No lease is waited for.
    expect(performance.now() - begunMs).toBeLessThan(1500);
    await clients.busy({ acknowledged: 100, inFlight: 3 });
    await clients.stop();
    expect(await faultsOfFleet(system, clients)).toEqual([]);
  }, 90_000);

  test("a read through one sees what was acknowledged by another", async () => {
    const system = await startFleet({ gateways: 2, backends: ["a"] });
    const [one, two] = system.gateways;
    expect(Object.values(await ownersOf(one as never))).toEqual(["gw-1"]);
    for (let n = 0; n < 40; n++) {
      const written = await ask(two?.front ?? "", "PUT", `/r/k?id=w${n}`, { body: { v: `${n}` } });
      expect(written.status, written.text).toBe(200);
      const read = await ask((n % 2 === 0 ? one : two)?.front ?? "", "GET", "/r/k");
      expect(read.text).toContain(`${n}`);
    }
  }, 60_000);
});

test("a gateway that was stopped for longer than its lease and goes on is behind the others, and says nothing of a log that lost its end", async () => {
  const system = await startFleet({ gateways: 2, leaseMs: 1000 });
  const [one, two] = system.gateways as [Gateway, Gateway];
  await spread(system.gateways, { "gw-1": 2, "gw-2": 1 });
  const clients = new Clients({ front: one.front, count: 12, workload: settled, thinkMs: 1 });
  clients.start();
  onTestFinished(() => clients.stop());
  for (let round = 0; round < 3; round += 1) {
    two.pause();
    await waitFor(async () => Object.values(await ownersOf(one)).every((owner) => owner === "gw-1"), {
      timeoutMs: 15_000,
      what: "gw-1 to feed all copies",
    });
    await clients.busy({ acknowledged: 1500, inFlight: 1 });
    two.resume();
    await spread(system.gateways, { "gw-1": 2, "gw-2": 1 });
  }
  await clients.stop();
  expect(await faultsOfFleet(system, clients)).toEqual([]);
  expect(two.output()).not.toContain('"regressed"');
}, 120_000);

test("a copy that came back empty is not live because it is healthy, while the gateway that feeds its siblings cannot be asked", async () => {
  const system = await startFleet({ gateways: 2, leaseMs: 90_000 });
  const [one, two] = system.gateways as [Gateway, Gateway];
  await spread(system.gateways, { "gw-1": 2, "gw-2": 1 });
  const name = Object.entries(await ownersOf(two)).find(([, owner]) => owner === "gw-2")?.[0];
  const lost = system.shops.find((shop) => shop.name === name) as Shop;
  const stateOf = async (): Promise<string | undefined> =>
    (await two.status()).replicas.find((it) => it.name === name)?.state;
  for (let n = 0; n < 5; n += 1) await ask(one.front, "PUT", `/r/k${n}?id=${n}`, { body: { v: n } });
  await waitFor(() => lost.journal().length === 5, { what: "the copy to have all" });
  await lost.kill9();
  rmSync(join(lost.folder, "journal.jsonl"));
  await waitFor(async () => (await stateOf()) !== "live", { what: "the copy to be missed" });
  one.pause();
  await lost.restart();
  // Asked again and again, and healthy all the while.
  const times = (): number => two.output().split("did not answer").length - 1;
  await waitFor(() => times() >= 2, { what: "the other gateway to be asked in vain", timeoutMs: 60_000 });
  expect(two.output()).not.toMatch(new RegExp(`"replica":"${name}","from":"lagging","to":"live"`));
  one.resume();
  await waitFor(async () => (await stateOf()) === "held", { what: "the copy to be held", timeoutMs: 30_000 });
}, 120_000);
