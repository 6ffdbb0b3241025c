// States are captured, compared and brought back while clients go on: nobody notices, nothing is executed twice, copies end up equal.

import { readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, onTestFinished, test } from "vitest";
import type { Operation, SnapshotRow, Status } from "../../gateway/status.ts";
import { Clients } from "../helpers/clients.ts";
import type { Call } from "../helpers/clients.ts";
import { temporaryFolder } from "../helpers/folder.ts";
import { startGateway } from "../helpers/gateway.ts";
import type { Gateway } from "../helpers/gateway.ts";
import { waitFor } from "../helpers/wait.ts";
import { demoShop, runCli } from "./recorded.ts";
import { ask, caughtUp, killManaged } from "./system.ts";

interface Recorded {
  readonly gateway: Gateway;
  readonly kept: string;
  readonly state: string;
}

async function startRecorded(config: Readonly<Record<string, unknown>> = {}): Promise<Recorded> {
  const kept = temporaryFolder("kept");
  const state = join(kept, "state");
  const gateway = await startGateway({
    config: {
      replicas: { count: 3, command: demoShop, state },
      snapshots: { store: join(kept, "snapshots"), every: { entries: 1_000_000 } },
      ...config,
    },
  });
  onTestFinished(() => gateway.close());
  // Version 0 is the state before the first entry: everything below is replayed from there, unless a test takes another.
  await gateway.until("version 0 is taken", 20_000, ({ snapshots: it }) => it?.last !== null && it?.last !== undefined);
  await caughtUp(gateway);
  return { gateway, kept, state };
}

/** What is replayed stays short, and captures, truncations and rebuilds meet. */
const often = (): object => ({ store: join(temporaryFolder("often"), "s"), every: { entries: 150, atLeast: "300ms" } });

/** Nothing here can be repeated or asked for: without snapshots a crash would hold copies. */
const order = (client: number, n: number): Call => ({
  method: "POST",
  path: "/orders",
  orderKeys: [],
  isKeyed: false,
  isRepeatable: false,
  body: { item: `tea ${client}`, count: 1 + (n % 7) },
});

function load(gateway: Gateway, count = 4): Clients {
  // One at a time is what a copy can do: without a pause nobody who is behind would ever catch up.
  const clients = new Clients({ front: gateway.front, count, workload: order, thinkMs: 40 });
  clients.start();
  return clients;
}

/** An operation to its end. */
async function operate(gateway: Gateway, path: string, body: unknown = {}): Promise<Operation> {
  const begun = await gateway.api("POST", path, body);
  expect(begun.status, begun.text).toBe(202);
  return ended(gateway, (begun.json as Operation).id);
}

async function ended(gateway: Gateway, id: string): Promise<Operation> {
  const end = performance.now() + 60_000;
  for (;;) {
    const { json } = await gateway.api("GET", `/v1/operations/${id}`);
    const operation = json as Operation;
    if (operation.state !== "running") return operation;
    if (performance.now() > end) throw new Error(`not within a minute: ${JSON.stringify(operation)}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

const snapshots = async (gateway: Gateway): Promise<readonly SnapshotRow[]> =>
  ((await gateway.api("GET", "/v1/snapshots")).json as { snapshots: SnapshotRow[] }).snapshots;

const files = (state: string): readonly string[] =>
  readdirSync(state, { withFileTypes: true })
    .filter((it) => it.isDirectory() && /^r\d+$/.test(it.name))
    .map(({ name }) => readFileSync(join(state, name, "shop.json"), "utf8"));

/** Everything was applied by everybody, and everybody's file says so. */
async function expectEqualFiles({ gateway, state }: Recorded, clients: Clients, count = 3): Promise<void> {
  await clients.stop();
  await caughtUp(gateway);
  const all = files(state);
  expect(all.length).toBe(count);
  expect(new Set(all).size).toBe(1);
  const { orders } = JSON.parse(all[0] as string) as { orders: { lastId: number } };
  expect(orders.lastId).toBeGreaterThanOrEqual(clients.acknowledged);
}

const stateOf = (status: Status, name: string): string =>
  status.replicas.find((it) => it.name === name)?.state ?? "nobody";

describe("a snapshot", () => {
  test("is taken of another copy than the primary while clients go on, and none of them sees an error", async () => {
    const system = await startRecorded();
    const { gateway } = system;
    const clients = load(gateway);
    await clients.busy({ acknowledged: 100, inFlight: 2 });
    const done = await operate(gateway, "/v1/snapshots");
    expect(done.state, JSON.stringify(done)).toBe("done");
    await clients.busy({ acknowledged: 50, inFlight: 2 });
    const [newest] = await snapshots(gateway);
    expect(newest?.version).toBe(1);
    expect(newest?.replica).not.toBe("r1");
    await expectEqualFiles(system, clients);
    expect(clients.history.filter((sent) => sent.attempts.some((it) => it.status !== 201))).toEqual([]);
    const verified = await operate(gateway, "/v1/snapshots/verify");
    expect(verified.state, JSON.stringify(verified)).toBe("done");
  }, 60_000);

  test("taken of one copy has the root of another: an audit under load finds all of them equal", async () => {
    const system = await startRecorded();
    const clients = load(system.gateway, 4);
    await clients.busy({ acknowledged: 50, inFlight: 1 });
    const audit = await operate(system.gateway, "/v1/audit");
    expect(audit.state, JSON.stringify(audit)).toBe("done");
    expect(audit.result).toContain("is equal");
    await expectEqualFiles(system, clients);
  }, 60_000);

  test("an audit names the copy whose file was changed behind the gateway's back", async () => {
    const system = await startRecorded({ agreement: { onMinority: "rebuild" } });
    const { gateway, state } = system;
    const clients = load(gateway, 2);
    await clients.busy({ acknowledged: 20, inFlight: 0 });
    await clients.stop();
    await caughtUp(gateway);
    const drained = await gateway.api("POST", "/v1/replicas/r2/drain", { reason: "test" });
    expect(drained.status, drained.text).toBe(200);
    // Its process holds the state in memory: it is ended, so that the next life reads what we wrote.
    await killManaged(gateway, "r2");
    const file = join(state, "r2", "shop.json");
    writeFileSync(file, readFileSync(file, "utf8").replace("tea", "gin"));
    await gateway.api("POST", "/v1/replicas/r2/resume");
    await caughtUp(gateway);
    const audit = await operate(gateway, "/v1/audit");
    expect(audit.state).toBe("failed");
    expect(audit.findings.join()).toContain("state of r2 differs from that of r1, r3");
    // onMinority: rebuild.
    await gateway.until("r2 is being rebuilt", 20_000, (status) => stateOf(status, "r2") === "restoring");
    await caughtUp(gateway);
    const again = await operate(gateway, "/v1/audit");
    expect(again.state, JSON.stringify(again)).toBe("done");
  }, 60_000);
});

describe("a copy that must not go on is rebuilt by itself, under load", () => {
  test("killed in the middle of requests that nothing can tell of", async () => {
    const system = await startRecorded({ snapshots: often() });
    const { gateway } = system;
    const clients = load(gateway);
    for (const name of ["r2", "r1"]) {
      await clients.busy({ acknowledged: 60, inFlight: 2 });
      await killManaged(gateway, name);
      await clients.busy({ acknowledged: 60, inFlight: 2 });
      await gateway.until("all live", 30_000, areLive);
    }
    await expectEqualFiles(system, clients);
    expect(await gateway.unknown()).toEqual([]);
  }, 90_000);

  test("with its folder gone", async () => {
    const system = await startRecorded();
    const { gateway, state } = system;
    const clients = load(gateway);
    await clients.busy({ acknowledged: 60, inFlight: 2 });
    await gateway.api("POST", "/v1/replicas/r3/drain", { reason: "test" });
    rmSync(join(state, "r3"), { recursive: true });
    const done = await operate(gateway, "/v1/replicas/r3/rebuild");
    expect(done.state, JSON.stringify(done)).toBe("done");
    await clients.busy({ acknowledged: 60, inFlight: 2 });
    await expectEqualFiles(system, clients);
  }, 60_000);

  test("the gateway killed again and again while it rebuilds", async () => {
    const system = await startRecorded({ snapshots: often() });
    const { gateway } = system;
    const clients = load(gateway);
    await clients.busy({ acknowledged: 100, inFlight: 2 });
    for (const state of ["restoring", "replaying", "restoring"]) {
      // Refused while it is being captured.
      await waitFor(async () => (await gateway.api("POST", "/v1/replicas/r2/rebuild", {})).status === 202, {
        what: "the rebuild of r2 to begin",
      });
      await gateway
        .until(`r2 is ${state}`, 5_000, (status) => stateOf(status, "r2") === state)
        // A short log is replayed faster than anybody can look.
        .catch((error: unknown) => {
          if (state === "restoring") throw error;
        });
      await gateway.kill9();
      await gateway.start();
      await gateway.until("all live", 30_000, areLive);
    }
    await clients.busy({ acknowledged: 50, inFlight: 2 });
    await expectEqualFiles(system, clients);
  }, 120_000);

  test("and the gateway can be stopped at any moment of it", async () => {
    const system = await startRecorded();
    const { gateway } = system;
    const clients = load(gateway);
    await clients.busy({ acknowledged: 150, inFlight: 0 });
    for (const state of ["restoring", "replaying"]) {
      const begun = await gateway.api("POST", "/v1/replicas/r2/rebuild", {});
      expect(begun.status, begun.text).toBe(202);
      await gateway.until(`r2 is ${state}`, 10_000, (status) => stateOf(status, "r2") === state);
      expect(await gateway.stop(10_000)).toBe(0);
      await gateway.start();
      await gateway.until("all live", 30_000, areLive);
    }
    await expectEqualFiles(system, clients);
  }, 90_000);

  test("one more copy joins under load, and leaves", async () => {
    const system = await startRecorded();
    const { gateway } = system;
    const clients = load(gateway);
    await clients.busy({ acknowledged: 60, inFlight: 2 });
    const added = await operate(gateway, "/v1/replicas", {});
    expect(added.state, JSON.stringify(added)).toBe("done");
    await clients.busy({ acknowledged: 60, inFlight: 2 });
    await expectEqualFiles(system, clients, 4);
    await gateway.restart();
    expect((await caughtUp(gateway)).replicas.map((it) => it.name)).toEqual(["r1", "r2", "r3", "r4"]);
    const removed = await gateway.api("DELETE", "/v1/replicas/r4");
    expect(removed.status, removed.text).toBe(202);
    await gateway.until("r4 is gone", 10_000, (status) => status.replicas.length === 3);
  }, 60_000);
});

describe("what is damaged is refused, with its place, and the next older version is taken", () => {
  test("a flipped bit in the store", async () => {
    const system = await startRecorded();
    const { gateway, kept } = system;
    const clients = load(gateway, 4);
    await clients.busy({ acknowledged: 30, inFlight: 1 });
    await operate(gateway, "/v1/snapshots");
    await clients.busy({ acknowledged: 30, inFlight: 1 });
    const before = new Set(objects(kept));
    await operate(gateway, "/v1/snapshots");
    for (const name of objects(kept))
      if (!before.has(name) && name.includes("packs")) flip(join(kept, "snapshots", name));
    const damaged = await operate(gateway, "/v1/snapshots/verify");
    expect(damaged.state).toBe("failed");
    expect(damaged.findings.join()).toMatch(/chunk|pack/);
    const rebuilt = await operate(gateway, "/v1/replicas/r2/rebuild");
    expect(rebuilt.state, JSON.stringify(rebuilt)).toBe("done");
    expect(rebuilt.result).toContain("snapshot 1");
    await expectEqualFiles(system, clients);
  }, 60_000);

  test("an older manifest put in the newest one's place", async () => {
    const system = await startRecorded();
    const { gateway, kept } = system;
    const clients = load(gateway, 2);
    await clients.busy({ acknowledged: 20, inFlight: 1 });
    await operate(gateway, "/v1/snapshots");
    await clients.stop();
    await gateway.until("version 1 is final", 10_000, ({ snapshots: it }) => it?.last?.publication === "final");
    expect(await gateway.stop()).toBe(0);
    const manifests = objects(kept)
      .filter((name) => name.includes("manifests"))
      .toSorted();
    rmSync(join(kept, "snapshots", manifests.at(-1) as string));
    const refused = await runCli(["recover", "--yes", "-c", gateway.file]);
    expect(refused.code, refused.stderr).toBe(1);
    expect(refused.stderr + refused.stdout).toMatch(/version 1 is published and is not in the store/);
    const named = await runCli(["recover", "--yes", "--version", "0", "-c", gateway.file]);
    expect(named.code, named.stderr).toBe(0);
    await gateway.start();
    await expectEqualFiles(system, clients);
  }, 60_000);
});

describe("old credentials", () => {
  const shop = demoShop;
  test("a token that says when it expires is refused before anything is touched, naming the rule", async () => {
    const system = await startRecorded({
      replicas: { count: 3, command: shop, state: join(temporaryFolder(), "state") },
    });
    const { gateway } = system;
    const payload = Buffer.from(JSON.stringify({ exp: Math.floor(Date.now() / 1000) - 5 })).toString("base64url");
    const sent = await ask(gateway.front, "POST", "/orders", {
      body: { item: "tea", count: 1 },
      headers: { authorization: `Bearer eyJhbGciOiJub25lIn0.${payload}.x` },
    });
    expect(sent.status).toBe(201);
    const done = await operate(gateway, "/v1/replicas/r2/rebuild");
    expect(done.state).toBe("failed");
    expect(done.error?.detail).toContain("rule default-other");
    expect((await gateway.status()).live).toBe(3);
  }, 60_000);
});

describe("the log forgets what a kept and verified snapshot holds", () => {
  test("and a gateway goes on from there, with its keys, after the reader state was lost", async () => {
    const system = await startRecorded({
      snapshots: { store: join(temporaryFolder(), "s"), every: { entries: 30, atLeast: "100ms" }, keep: 2 },
    });
    const { gateway } = system;
    const first = await ask(gateway.front, "POST", "/orders", {
      body: { item: "tea", count: 1 },
      headers: { "idempotency-key": "k1" },
    });
    const clients = load(gateway, 4);
    await gateway.until(
      "the log was truncated past the first entry",
      30_000,
      ({ log }) => log.firstPosition > Number(first.position?.split("@")[0]),
    );
    await clients.busy({ acknowledged: 20, inFlight: 1 });
    await clients.stop();
    await caughtUp(gateway);
    const verified = await runCli(["log", "verify", "-c", gateway.file]);
    expect(verified.code, verified.stdout + verified.stderr).toBe(0);
    expect(await gateway.stop()).toBe(0);
    rmSync(join(gateway.data, "state"), { recursive: true });
    await gateway.start();
    await caughtUp(gateway);
    const again = await ask(gateway.front, "POST", "/orders", {
      body: { item: "tea", count: 1 },
      headers: { "idempotency-key": "k1" },
    });
    expect([again.status, again.text, again.headers["idempotency-replayed"]]).toEqual([
      first.status,
      first.text,
      "true",
    ]);
    await expectEqualFiles(system, clients);
  }, 90_000);
});

describe("a recovery to a point in time", () => {
  test("takes in what came before, gives up the rest, and the copies go on from there", async () => {
    const system = await startRecorded();
    const { gateway, state } = system;
    const send = (item: string): ReturnType<typeof ask> =>
      ask(gateway.front, "POST", "/orders", {
        body: { item, count: 1 },
        headers: { "idempotency-key": `key-${item}` },
      });
    for (const item of ["a", "b"]) expect((await send(item)).status).toBe(201);
    const last = await send("c");
    await caughtUp(gateway);
    for (const item of ["wrong-1", "wrong-2"]) expect((await send(item)).status).toBe(201);
    await caughtUp(gateway);
    expect(await gateway.stop()).toBe(0);
    const to = String(last.position?.split("@")[0]);
    const dry = await runCli(["recover", "--to", to, "--dry-run", "-c", gateway.file]);
    expect(dry.stdout + dry.stderr).toContain("2 entries after position");
    const recovered = await runCli(["recover", "--to", to, "--yes", "-c", gateway.file]);
    expect(recovered.code, recovered.stdout + recovered.stderr).toBe(0);
    await gateway.start();
    await caughtUp(gateway);
    const items = (): readonly string[] =>
      Object.values(
        (JSON.parse(files(state)[0] as string) as { orders: { rows: Record<string, { item: string }> } }).orders.rows,
      ).map((it) => it.item);
    expect(items()).toEqual(["a", "b", "c"]);
    // What is known of keys is what the log up to there says.
    expect((await send("c")).outcome).toBe("executed");
    expect((await send("wrong-1")).headers["idempotency-replayed"]).toBeUndefined();
    await caughtUp(gateway);
    expect(items()).toEqual(["a", "b", "c", "wrong-1"]);
    expect(new Set(files(state)).size).toBe(1);
    const verified = await runCli(["log", "verify", "-c", gateway.file]);
    expect(verified.code, verified.stdout + verified.stderr).toBe(0);
  }, 60_000);
});

describe("a recovery to a point in time that was cut off at its very end", () => {
  test.each(["log.create#1", "turn.cursor#2"])(
    "at %s is finished by the gateway that is started next",
    async (point) => {
      const system = await startRecorded();
      const { gateway, state } = system;
      const send = (item: string): ReturnType<typeof ask> =>
        ask(gateway.front, "POST", "/orders", { body: { item, count: 1 } });
      expect((await send("a")).status).toBe(201);
      const last = await send("b");
      await caughtUp(gateway);
      expect((await send("wrong")).status).toBe(201);
      await caughtUp(gateway);
      expect(await gateway.stop()).toBe(0);
      const to = String(last.position?.split("@")[0]);
      const env = { GATEWAY_CRASH_AT: point };
      const cut = await runCli(["recover", "--to", to, "--yes", "-c", gateway.file], { env });
      expect(cut.signal, cut.stdout + cut.stderr).toBe("SIGKILL");
      await gateway.start();
      await caughtUp(gateway);
      expect((await send("c")).status).toBe(201);
      await caughtUp(gateway);
      const orders = JSON.parse(files(state)[0] as string) as { orders: { rows: Record<string, { item: string }> } };
      expect(Object.values(orders.orders.rows).map((it) => it.item)).toEqual(["a", "b", "c"]);
      expect(new Set(files(state)).size).toBe(1);
    },
    60_000,
  );
});

/** Each copy is live, or away for a capture: with snapshots this often there is always one on a slow machine. */
const areLive = ({ replicas }: Status): boolean =>
  replicas.every(({ reason, state }) => state === "live" || reason.startsWith("captured at"));

/** Names of everything in the store. */
function objects(kept: string): readonly string[] {
  return readdirSync(join(kept, "snapshots"), { recursive: true, encoding: "utf8", withFileTypes: true })
    .filter((it) => it.isFile())
    .map((it) => join(it.parentPath, it.name).slice(join(kept, "snapshots").length + 1));
}

function flip(path: string): void {
  const bytes = readFileSync(path);
  const at = Math.floor(bytes.length / 3);
  bytes[at] = (bytes[at] ?? 0) ^ 1;
  writeFileSync(path, bytes);
}
