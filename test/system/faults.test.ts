// What bad input and faults get: each fault is made for real, and what clients see of it is what the documents promise.

import { execFileSync } from "node:child_process";
import { cpSync, readdirSync, readFileSync, rmSync, statfsSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { jetstreamManager } from "@nats-io/jetstream";
import { connect } from "@nats-io/transport-node";
import { Redis } from "ioredis";
import { WebSocket } from "undici";
import { describe, expect, onTestFinished, test } from "vitest";
import { Clients } from "../helpers/clients.ts";
import type { Call, Workload } from "../helpers/clients.ts";
import { createFolder, removeFolder } from "../helpers/folder.ts";
import { Gateway, rowsOf, runToExit, startGateway } from "../helpers/gateway.ts";
import { checkLedger } from "../helpers/ledger.ts";
import { freePort } from "../helpers/servers.ts";
import { startTcpProxy } from "../helpers/tcp-proxy.ts";
import { waitFor } from "../helpers/wait.ts";
import { startShop, startShops } from "./shop.ts";
import type { Fault, Shop } from "./shop.ts";
import { add, allLive, ask, caughtUp, faultsOf, put, rules, settled, startSystem } from "./system.ts";
import type { System } from "./system.ts";

const twoSeconds = { timeouts: { firstByte: "2s" }, limits: { queueWait: "2s" } };

function startClients(system: System, workload: Workload, count = 16): Clients {
  const clients = new Clients({ front: system.gateway.front, count, workload });
  clients.start();
  return clients;
}

const big: Workload = (client, n): Call => ({
  ...put(client, n, false),
  body: { v: `${client}-${n}-${"x".repeat(16_384)}` },
});

describe("start", () => {
  test("without a reachable backend the gateway starts, is unready, answers 503, and becomes ready by itself", async () => {
    const ports = [await freePort(), await freePort(), await freePort()];
    const gateway = await startGateway({
      until: "live",
      config: {
        rules,
        ...twoSeconds,
        health: { request: "GET /health", every: "200ms", fall: 2, rise: 1 },
        replicas: ports.map((port, i) => ({
          name: "abc"[i],
          url: `http://127.0.0.1:${port}`,
          witness: ["GET /witness"],
        })),
      },
    });
    onTestFinished(() => gateway.close());
    expect((await gateway.api("GET", "/readyz")).status).toBe(503);
    const write = await ask(gateway.front, "PUT", "/r/k", { body: { v: 1 } });
    expect([write.status, write.outcome]).toEqual([503, "not-executed"]);
    expect(write.code).toMatch(/^GW_/);
    expect(write.headers["retry-after"]).toBeDefined();
    const read = await ask(gateway.front, "GET", "/r/k");
    expect([read.status, read.code]).toEqual([503, "GW_NO_REPLICA"]);
    const shops = await startShops(["a", "b", "c"], {}, ports);
    onTestFinished(async () => void (await Promise.all(shops.map((shop) => shop.close()))));
    await gateway.waitFor("/readyz", 10_000);
    await allLive(gateway);
    expect((await ask(gateway.front, "PUT", "/r/k?id=1", { body: { v: 2 } })).outcome).toBe("executed");
    expect(shops.map((shop) => shop.journal().length)).toContain(1);
  });

  test("wrong configuration ends with exit code 2 and every fault with its place", async () => {
    const exit = await runToExit({
      config: {
        listn: "127.0.0.1:1",
        limits: { body: "64 apples" },
        agreement: { onMinority: "quarantin" },
        replicas: [
          { name: "a", url: "http://127.0.0.1:1" },
          { name: "a", url: "gopher://127.0.0.1:2" },
        ],
        rules: [{ match: "POST /a/:id", mode: "replicte", order: ["a:{path.other}"] }],
      },
    });
    expect(exit.code).toBe(2);
    const places = exit.stderr.match(/gateway\.yaml:\d+:\d+/g) ?? [];
    expect(new Set(places).size, exit.stderr).toBeGreaterThanOrEqual(5);
    for (const word of ["listen", "64 apples", "quarantine", "gopher", "replicate"])
      expect(exit.stderr).toContain(word);
  });

  test("a start that waits for a NATS server says so, and ends when it is told to", async () => {
    const gateway = await Gateway.prepare({
      config: {
        replicas: [{ name: "a", url: `http://127.0.0.1:${await freePort()}` }],
        log: { nats: { servers: [`nats://127.0.0.1:${await freePort()}`] } },
      },
      until: "none",
    });
    onTestFinished(() => gateway.close());
    await gateway.start();
    await waitFor(() => gateway.output().includes("No NATS server answers at"), { what: "a word of it" });
    expect(await gateway.stop(5_000)).toBe(0);
  });

  test("a second gateway on the same data folder is refused and the first goes on", async () => {
    const system = await startSystem();
    const exit = await runToExit({
      config: { data: system.gateway.data, rules, replicas: system.shops.map(({ name, url }) => ({ name, url })) },
    });
    expect(exit.code).toBe(1);
    expect(exit.stderr).toContain("GW_DATA_LOCKED");
    expect((await ask(system.gateway.front, "PUT", "/r/k?id=1", { body: { v: 1 } })).outcome).toBe("executed");
  });

  test("replicas whose states differ before the first entry are refused", async () => {
    const shops = await startShops(["a", "b", "c"]);
    onTestFinished(async () => void (await Promise.all(shops.map((shop) => shop.close()))));
    await fetch(`${shops[1]?.url}/r/k?id=0`, { method: "PUT", body: '{"v":1}' });
    const exit = await runToExit({
      config: { rules, replicas: shops.map(({ name, url }) => ({ name, url, witness: ["GET /witness"] })) },
    });
    expect(exit.code).toBe(1);
    expect(exit.stderr).toContain("GW_REPLICAS_DIFFER_AT_START");
  });

  test("two replicas at one address are refused", async () => {
    const shop = await startShop("a");
    onTestFinished(() => shop.close());
    const exit = await runToExit({
      config: {
        rules,
        replicas: [
          { name: "a", url: shop.url },
          { name: "b", url: `http://localhost:${shop.port}` },
        ],
      },
    });
    expect(exit.code === 1 || exit.code === 2).toBe(true);
    expect(exit.stderr).toContain("GW_REPLICAS_SHARE_STATE");
  });

  test("two addresses of one state are found out at the first entry", async () => {
    const shop = await startShop("a");
    onTestFinished(() => shop.close());
    const proxy = await startTcpProxy({ targetPort: shop.port });
    onTestFinished(() => proxy.close());
    const gateway = await startGateway({
      config: {
        rules,
        replicas: [
          { name: "a", url: shop.url, witness: ["GET /witness"] },
          { name: "b", url: `http://127.0.0.1:${proxy.port}`, witness: ["GET /witness"] },
        ],
      },
    });
    onTestFinished(() => gateway.close());
    await ask(gateway.front, "POST", "/c/k/add?id=1", { body: { by: 1 } });
    await waitFor(() => gateway.output().includes("GW_REPLICAS_SHARE_STATE"), { what: "GW_REPLICAS_SHARE_STATE" });
    expect(shop.journal()).toHaveLength(1);
  });
});

describe("backends", () => {
  const kinds: readonly (readonly [string, Fault])[] = [
    ["answers garbage", { kind: "garbage" }],
    ["answers something that is not HTTP", { kind: "noise" }],
    ["resets connections before it executes", { kind: "reset" }],
    ["resets connections after it executed", { kind: "reset-after" }],
    ["hangs", { kind: "hang", left: 5 }],
  ];
  test.each(kinds)("one that %s suffers alone, and comes back", async (_name, fault) => {
    const system = await startSystem({ fault: { afterMs: 1 }, config: twoSeconds });
    const [, bad] = system.shops;
    const clients = startClients(system, settled);
    await clients.busy({ acknowledged: 100, inFlight: 1 });
    await bad?.fault(fault);
    const from = clients.history.length;
    await clients.busy({ acknowledged: 400, inFlight: 1, withinMs: 15_000 });
    const during = clients.history.slice(from, from + 300).flatMap((sent) => sent.attempts);
    expect(during.filter((attempt) => attempt.error !== null)).toEqual([]);
    expect(during.filter((attempt) => attempt.outcome !== "executed").length).toBeLessThanOrEqual(during.length / 20);
    const status = await system.gateway.status();
    expect(status.replicas.filter((replica) => replica.state === "live").map((r) => r.name)).toEqual(
      expect.arrayContaining(["a", "c"]),
    );
    await bad?.fault({ afterMs: 1 });
    // What hangs is never answered: only a new life of the backend ends it.
    if (fault.kind === "hang") await bad?.restart();
    await allLive(system.gateway, 15_000);
    await clients.stop();
    expect(await faultsOf(system, clients)).toEqual([]);
  });

  test("one that is away for long under load slows nobody, costs no memory, and catches up by itself", async () => {
    const system = await startSystem({ fault: { afterMs: 1 } });
    const [, , away] = system.shops;
    const clients = startClients(system, settled, 8);
    await clients.busy({ acknowledged: 1000, inFlight: 1 });
    const healthy = await p99During(clients, 1500);
    const rss = rssOf(system.gateway.pid);
    away?.pause();
    await clients.busy({ acknowledged: 200, inFlight: 1 });
    const without = await p99During(clients, 5000);
    const grown = rssOf(system.gateway.pid) - rss;
    process.stdout.write(
      `p99 healthy ${healthy.toFixed(1)} ms, one away ${without.toFixed(1)} ms, memory +${grown >> 20} MiB\n`,
    );
    expect(without).toBeLessThan(healthy * 1.5 + 5);
    expect(grown).toBeLessThan(150 << 20);
    away?.resume();
    await clients.stop();
    await allLive(system.gateway, 20_000);
    expect(await faultsOf(system, clients)).toEqual([]);
  }, 60_000);

  test("one that came back empty is not taken for the one that was left when the gateway dies before it could tell", async () => {
    const system = await startSystem({ gateway: { until: "live" } });
    const { gateway, shops } = system;
    const lost = shops[2] as Shop;
    await ask(gateway.front, "PUT", "/r/first?id=first", { body: { v: 1 } });
    await caughtUp(gateway);
    await lost.kill9();
    rmSync(join(lost.folder, "journal.jsonl"));
    // What it missed keeps it busy for a while after it came back.
    for (let n = 0; n < 200; n += 1) await ask(gateway.front, "PUT", `/r/k?id=${n}`, { body: { v: n } });
    await lost.fault({ beforeMs: 30 }).catch(() => {});
    await lost.restart();
    await waitFor(
      async () => (await gateway.status()).replicas.some((it) => it.name === "c" && it.state === "replaying"),
      {
        what: "the copy to be catching up",
      },
    );
    await gateway.kill9();
    await gateway.start();
    const status = await gateway.until("the copy is live or held", 25_000, ({ replicas }) =>
      replicas.some((it) => it.name === "c" && (it.state === "live" || it.state === "held")),
    );
    expect(status.replicas.find((it) => it.name === "c")?.state).toBe("held");
  }, 60_000);

  test("one that waits for its proof does not hold up a gateway that stops", async () => {
    const system = await startSystem();
    const { gateway, shops } = system;
    const returned = shops[2] as Shop;
    await ask(gateway.front, "PUT", "/r/first?id=first", { body: { v: 1 } });
    await caughtUp(gateway);
    await returned.kill9();
    for (let n = 0; n < 60; n += 1) await ask(gateway.front, "PUT", `/r/k?id=${n}`, { body: { v: n } });
    // Busy until after the others have gone.
    await returned.fault({ beforeMs: 30 }).catch(() => {});
    await returned.restart();
    await waitFor(
      async () => (await gateway.status()).replicas.some((it) => it.name === "c" && it.state === "replaying"),
      {
        what: "the copy to be catching up",
      },
    );
    expect(await gateway.stop(10_000)).toBe(0);
  }, 60_000);

  test("one that disagrees is quarantined and its answers are shown, while the others go on", async () => {
    const system = await startSystem();
    await system.shops[2]?.fault({ kind: "differ" });
    const answer = await ask(system.gateway.front, "PUT", "/r/k?id=1", { body: { v: 1 } });
    const status = await system.gateway.until("c quarantined", 10_000, (s) =>
      s.replicas.some((replica) => replica.name === "c" && replica.state === "quarantined"),
    );
    expect(status.replicas.filter((replica) => replica.state === "live").map((r) => r.name)).toEqual(["a", "b"]);
    const rows = rowsOf((await system.gateway.api("GET", "/v1/disagreements")).json) as {
      position: number;
      minority: string[];
      decisive: boolean;
    }[];
    expect(rows).toMatchObject([{ minority: ["c"], decisive: true }]);
    expect(`${rows[0]?.position}`).toBe(answer.position?.split("@")[0]);
    expect(await system.gateway.metric("gateway_disagreements_total", { rule: "set" })).toBe(1);
    expect((await ask(system.gateway.front, "PUT", "/r/k?id=2", { body: { v: 2 } })).status).toBe(200);
  });

  test("quarantine never leaves fewer than minLive", async () => {
    const system = await startSystem({ config: { agreement: { minLive: 3 } } });
    await system.shops[2]?.fault({ kind: "differ", left: 1 });
    await ask(system.gateway.front, "PUT", "/r/k?id=1", { body: { v: 1 } });
    await waitFor(async () => (await system.gateway.metric("gateway_disagreements_total")) === 1, {
      what: "the count",
    });
    expect((await system.gateway.status()).live).toBe(3);
  });

  test("an entry that kills backends is parked after two, and the service goes on", async () => {
    const system = await startSystem({ replicas: "managed" });
    const answer = await ask(system.gateway.front, "POST", "/poison?id=1", { body: {}, timeoutMs: 25_000 });
    expect([answer.status, answer.code, answer.outcome]).toEqual([503, "GW_PARKED", "not-executed"]);
    expect(rowsOf((await system.gateway.api("GET", "/v1/parked")).json)).toHaveLength(1);
    expect(await system.gateway.metric("gateway_parked_entries")).toBe(1);
    await allLive(system.gateway, 15_000);
    const after = await ask(system.gateway.front, "POST", "/c/k/add?id=2", { body: { by: 1 } });
    expect([after.status, after.outcome]).toEqual([200, "executed"]);
    await caughtUp(system.gateway);
    for (const journal of system.journals().values()) expect(journal.map((row) => row.id)).toEqual(["2"]);
  }, 60_000);

  test("what a killed gateway left running is ended by the next", async () => {
    const system = await startSystem({ replicas: "managed" });
    await system.gateway.kill9();
    expect(system.gateway.orphans()).toHaveLength(3);
    await system.gateway.start();
    expect(system.gateway.orphans()).toEqual([]);
    await allLive(system.gateway);
  });
});

describe("log", () => {
  test.each(["embedded", "nats"] as const)(
    "%s: a full one refuses, loses nothing that was acknowledged, and reads go on",
    async (stores) => {
      const system = await startSystem({ stores, config: { log: { max: "1MiB" } } });
      const clients = startClients(system, big, 4);
      await waitFor(() => clients.lately(20).includes("GW_LOG_FULL"), { timeoutMs: 20_000, what: "GW_LOG_FULL" });
      await clients.stop();
      const refused = await ask(system.gateway.front, "PUT", "/r/k?id=late", { body: { v: "x".repeat(16_384) } });
      expect([refused.status, refused.code, refused.outcome]).toEqual([503, "GW_LOG_FULL", "not-executed"]);
      expect((await ask(system.gateway.front, "GET", "/r/k0")).status).toBe(200);
      expect(await faultsOf(system, clients)).toEqual([]);
      expect((await system.gateway.api("GET", "/readyz?for=writes")).status).toBe(503);
      // Room is made by a person.
      await system.gateway.configure({ log: { ...(stores === "nats" ? natsOf(system) : {}), max: "16MiB" } });
      await system.gateway.restart();
      await allLive(system.gateway);
      expect((await ask(system.gateway.front, "PUT", "/r/k?id=later", { body: { v: 1 } })).outcome).toBe("executed");
    },
  );

  test("a full disk refuses, loses nothing that was acknowledged, and writes resume when there is room", async () => {
    const disk = mountSmallDisk(48);
    if (disk === null) {
      process.stdout.write("full disk: NOT TESTED, a small file system can be mounted by root only\n");
      return;
    }
    const system = await startSystem({ config: { data: join(disk, "data") } });
    const clients = startClients(system, big, 4);
    await clients.busy({ acknowledged: 50, inFlight: 1 });
    const filler = join(disk, "filler");
    fillUp(disk, filler);
    await waitFor(() => /GW_DISK_FULL|GW_LOG_FULL/.test(clients.lately(20)), {
      timeoutMs: 20_000,
      what: "GW_DISK_FULL",
    });
    rmSync(filler);
    await clients.busy({ acknowledged: 20, inFlight: 1 });
    await clients.stop();
    expect(await faultsOf(system, clients)).toEqual([]);
  }, 60_000);

  test("nats away: writes wait and then say honestly what is known, reads of level any go on, all resumes by itself", async () => {
    const system = await startSystem({ stores: "nats", config: twoSeconds });
    const { gateway, nats } = system;
    await ask(gateway.front, "PUT", "/r/k1?id=first", { body: { v: 1 } });
    const clients = startClients(system, settled);
    await clients.busy({ acknowledged: 200, inFlight: 5 });
    await nats?.kill9();
    const startedAt = performance.now();
    const write = await ask(gateway.front, "POST", "/c/k/add?id=away", { body: { by: 1 } });
    expect(write.status).toBe(503);
    expect(["unknown", "not-executed"]).toContain(write.outcome);
    expect(write.code).toBe("GW_LOG_UNAVAILABLE");
    expect(performance.now() - startedAt).toBeGreaterThan(500);
    const read = await ask(gateway.front, "GET", "/r/k1?level=any");
    expect([read.status, JSON.parse(read.text).k]).toEqual([200, "k1"]);
    expect((await ask(gateway.front, "GET", "/r/k1")).status).toBe(503);
    await nats?.restart();
    await clients.busy({ acknowledged: 200, inFlight: 5 });
    await clients.stop();
    await caughtUp(gateway);
    const journals = [...system.journals().values()];
    const times = journals.map((journal) => journal.filter((row) => row.id === "away").length);
    expect(new Set(times).size, "the request without an answer stands everywhere or nowhere").toBe(1);
    if (write.outcome === "not-executed") expect(times[0]).toBe(0);
    const others = new Map(
      [...system.journals()].map(([name, rows]) => [
        name,
        rows.filter((row) => row.id !== "away" && row.id !== "first"),
      ]),
    );
    expect(checkLedger({ sent: clients.history, journals: others })).toEqual([]);
  }, 60_000);

  test("nats: a stream that was deleted is not begun anew", async () => {
    const system = await startSystem({ stores: "nats" });
    await ask(system.gateway.front, "PUT", "/r/k?id=1", { body: { v: 1 } });
    await caughtUp(system.gateway);
    await system.gateway.stop();
    const streams = await deleteStreams(system);
    expect(streams.length).toBeGreaterThan(0);
    await system.gateway.start({ until: "none" });
    const exit = await system.gateway.exited(20_000);
    expect(exit.code).toBe(1);
    expect(exit.stderr).toContain("GW_LOG_MISSING");
    expect(system.shops.map((shop) => shop.journal().length)).toEqual([1, 1, 1]);
  });

  test("nats: a stream that was replaced under a running gateway is noticed, and nothing of it is applied", async () => {
    const system = await startSystem({ stores: "nats", config: twoSeconds });
    const { gateway } = system;
    await ask(gateway.front, "PUT", "/r/k?id=1", { body: { v: 1 } });
    await caughtUp(gateway);
    await replaceStreams(system);
    await waitFor(
      async () => (await ask(gateway.front, "PUT", "/r/k?id=2", { body: { v: 2 } })).code === "GW_LOG_REGRESSED",
      {
        timeoutMs: 15_000,
        what: "GW_LOG_REGRESSED",
      },
    );
    for (const shop of system.shops) expect(shop.journal().map((row) => row.id)).toEqual(["1"]);
  });

  test("embedded: a log that was deleted is not begun anew, unless a person says so", async () => {
    const system = await startSystem();
    await ask(system.gateway.front, "PUT", "/r/k?id=1", { body: { v: 1 } });
    await caughtUp(system.gateway);
    await system.gateway.stop();
    for (const name of logFiles(system.gateway)) rmSync(join(system.gateway.data, name), { recursive: true });
    await system.gateway.start({ until: "none" });
    const exit = await system.gateway.exited(20_000);
    expect(exit.code).toBe(1);
    expect(exit.stderr).toContain("GW_LOG_MISSING");
  });

  test("embedded: an older copy of the log is noticed, and nothing is applied", async () => {
    const system = await startSystem({ config: twoSeconds });
    const { gateway } = system;
    await ask(gateway.front, "PUT", "/r/k?id=1", { body: { v: 1 } });
    await caughtUp(gateway);
    await gateway.stop();
    const copy = createFolder("old-log");
    onTestFinished(() => removeFolder(copy));
    for (const name of logFiles(gateway)) cpSync(join(gateway.data, name), join(copy, name), { recursive: true });
    await gateway.start();
    for (const id of ["2", "3"]) await ask(gateway.front, "PUT", `/r/k?id=${id}`, { body: { v: id } });
    await caughtUp(gateway);
    await gateway.stop();
    for (const name of logFiles(gateway)) rmSync(join(gateway.data, name), { recursive: true });
    cpSync(copy, gateway.data, { recursive: true });
    await gateway.start({ until: "live" });
    const write = await ask(gateway.front, "PUT", "/r/k?id=4", { body: { v: 4 } });
    expect([write.status, write.code, write.outcome]).toEqual([503, "GW_LOG_REGRESSED", "not-executed"]);
    for (const shop of system.shops) expect(shop.journal().map((row) => row.id)).toEqual(["1", "2", "3"]);
  });
});

describe("keys", () => {
  test("redis away: keyed requests get 503 and unkeyed ones go on; afterwards keyed ones do, too", async () => {
    const { gateway, redis } = await startSystem({ stores: "nats" });
    await redis?.kill9();
    const keyed = await ask(gateway.front, "PUT", "/r/k?id=1", {
      body: { v: 1 },
      headers: { "idempotency-key": "one" },
    });
    expect([keyed.status, keyed.code]).toEqual([503, "GW_KEYS_UNAVAILABLE"]);
    expect(keyed.outcome).toBe("not-executed");
    const unkeyed = await ask(gateway.front, "PUT", "/r/k?id=2", { body: { v: 2 } });
    expect([unkeyed.status, unkeyed.outcome]).toEqual([200, "executed"]);
    await redis?.restart();
    await waitFor(
      async () => {
        const again = await ask(gateway.front, "PUT", "/r/k?id=1", {
          body: { v: 1 },
          headers: { "idempotency-key": "one" },
        });
        return again.status === 200;
      },
      { what: "a keyed request to be executed" },
    );
  });

  test("redis loses everything: no key is executed twice", async () => {
    const system = await startSystem({ stores: "nats", fault: { afterMs: 2 } });
    const admin = new Redis(system.redis?.url ?? "", { maxRetriesPerRequest: 1 });
    onTestFinished(() => admin.disconnect());
    const clients = new Clients({
      front: system.gateway.front,
      count: 16,
      repeatEvery: 2,
      workload: (client, n) => add(client, n, true),
    });
    clients.start();
    for (let times = 0; times < 5; times += 1) {
      await clients.busy({ acknowledged: 100, inFlight: 5 });
      await admin.flushall();
    }
    await clients.busy({ acknowledged: 100, inFlight: 5 });
    await clients.stop();
    expect(await faultsOf(system, clients)).toEqual([]);
    const lost = clients.history.flatMap((sent) => sent.attempts).filter((attempt) => attempt.code !== null);
    // What can no longer be answered says that it was executed, and where.
    for (const attempt of lost.filter((one) => one.code === "GW_ANSWER_LOST")) {
      expect([attempt.outcome, attempt.position !== null]).toEqual(["executed", true]);
    }
  }, 60_000);
});

describe("reads", () => {
  test.each(["embedded", "nats"] as const)(
    "%s: whoever was told that a write is done reads it, on any connection",
    async (stores) => {
      const system = await startSystem({ stores });
      await system.shops[1]?.fault({ beforeMs: 15 });
      await system.shops[2]?.fault({ beforeMs: 40 });
      await Promise.all(
        Array.from({ length: 8 }, async (_, client) => {
          for (let n = 0; n < 15; n += 1) {
            const write = await ask(system.gateway.front, "PUT", `/r/k${client}?id=${client}-${n}`, { body: { v: n } });
            expect(write.outcome).toBe("executed");
            const read = await ask(system.gateway.front, "GET", `/r/k${client}`);
            expect([read.status, JSON.parse(read.text).v], read.text).toEqual([200, n]);
          }
        }),
      );
    },
  );

  test("a session read sees what the position it brings stands for", async () => {
    const system = await startSystem();
    await system.shops[1]?.fault({ beforeMs: 20 });
    await system.shops[2]?.fault({ beforeMs: 40 });
    for (let n = 0; n < 15; n += 1) {
      const write = await ask(system.gateway.front, "PUT", `/r/k?id=${n}`, { body: { v: n } });
      expect(write.position).toMatch(/^\d+@[0-9a-f]+$/);
      const read = await ask(system.gateway.front, "GET", "/r/k?level=session", {
        headers: { "replication-position": write.position ?? "" },
      });
      expect([read.status, JSON.parse(read.text).v]).toEqual([200, n]);
      expect(read.position).toMatch(/^\d+@[0-9a-f]+$/);
    }
  });

  test("a websocket is passed on where a rule allows it, and refused elsewhere", async () => {
    const { gateway } = await startSystem();
    const socket = new WebSocket(`${gateway.front.replace("http", "ws")}/ws`);
    const heard = await new Promise<unknown>((resolve, reject) => {
      socket.addEventListener("open", () => socket.send("hello"));
      socket.addEventListener("message", (event) => resolve(event.data));
      socket.addEventListener("error", () => reject(new Error("the websocket failed")));
    });
    expect(heard).toBe("hello");
    socket.close();
    const elsewhere = new WebSocket(`${gateway.front.replace("http", "ws")}/r/k`);
    await new Promise<void>((resolve, reject) => {
      elsewhere.addEventListener("open", () => reject(new Error("it was opened")));
      elsewhere.addEventListener("error", () => resolve());
    });
  });
});

/** Milliseconds that 99 of 100 answers took, of those that came within the next `ms`. */
async function p99During(clients: Clients, ms: number): Promise<number> {
  const from = performance.now();
  await waitFor(() => performance.now() - from > ms, { timeoutMs: ms + 5_000, what: "the time of the measurement" });
  const times = clients.history
    .flatMap((sent) => sent.attempts)
    .filter((attempt) => attempt.sentAtMs >= from && attempt.endedAtMs !== null)
    .map((attempt) => (attempt.endedAtMs ?? 0) - attempt.sentAtMs)
    .sort((a, b) => a - b);
  return times[Math.floor(times.length * 0.99)] ?? Number.NaN;
}

function rssOf(pid: number): number {
  const status = readFileSync(`/proc/${pid}/status`, "latin1");
  return Number(/VmRSS:\s+(\d+) kB/.exec(status)?.[1]) * 1024;
}

/** A tmpfs of so many MiB, unmounted when the test ends. Null: not allowed here. */
function mountSmallDisk(mebibytes: number): string | null {
  if (process.getuid?.() !== 0) return null;
  const folder = createFolder("disk");
  try {
    execFileSync("mount", ["-t", "tmpfs", "-o", `size=${mebibytes}m`, "tmpfs", folder], { stdio: "ignore" });
  } catch {
    removeFolder(folder);
    return null;
  }
  onTestFinished(() => {
    execFileSync("umount", ["-l", folder]);
    removeFolder(folder);
  });
  return folder;
}

/** Leaves less than one large request. */
/** Leaves no room; the gateway writes meanwhile, so the last bytes may be gone already. */
function fillUp(disk: string, filler: string): void {
  const { bavail, bsize } = statfsSync(disk);
  try {
    writeFileSync(filler, Buffer.alloc(Math.max(0, bavail * bsize - 8192)));
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ENOSPC") throw error;
  }
}

/** Where the embedded log stands below the data folder. */
const logFiles = (gateway: Gateway): string[] => {
  const names = readdirSync(gateway.data).filter((name) => /^log\b/.test(name));
  if (names.length === 0) throw new Error(`no log in ${gateway.data}: ${readdirSync(gateway.data).join(" ")}`);
  return names;
};

const natsOf = ({ nats }: System): object => ({
  nats: { servers: [nats?.url], replicas: 1, monitor: [nats?.monitorUrl] },
});

/** All streams that hold entries: KV buckets, where cursors stand, are left alone. */
async function deleteStreams(system: System): Promise<string[]> {
  return withStreams(system, async (manager, names) => {
    for (const name of names) await manager.streams.delete(name);
  });
}

async function replaceStreams(system: System): Promise<void> {
  await withStreams(system, async (manager, names) => {
    for (const name of names) {
      const { config } = await manager.streams.info(name);
      await manager.streams.delete(name);
      await manager.streams.add({ ...config, metadata: {} });
    }
  });
}

async function withStreams(
  { nats }: System,
  act: (manager: Awaited<ReturnType<typeof jetstreamManager>>, names: readonly string[]) => Promise<void>,
): Promise<string[]> {
  const connection = await connect({ servers: nats?.url ?? "" });
  try {
    const manager = await jetstreamManager(connection);
    const all = await manager.streams.list().next();
    const names = all
      .map((info) => info.config.name)
      .filter((name) => !name.startsWith("KV_") && !name.startsWith("OBJ_"));
    await act(manager, names);
    return names;
  } finally {
    await connection.close();
  }
}
