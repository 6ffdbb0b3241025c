// A JetStream cluster of three real servers under a gateway and load: whatever happens to its members, what was acknowledged stands
// exactly once on every replica, in the log's order; no read is stale; and the log's hash is the same whoever leads.
// One system for all tests, as clusters elect slowly: each test leaves it whole.

import { rmSync } from "node:fs";
import { jetstreamManager } from "@nats-io/jetstream";
import { connect } from "@nats-io/transport-node";
import { afterAll, beforeAll, expect, onTestFinished, test } from "vitest";
import { Clients, fateOf } from "../helpers/clients.ts";
import type { Gateway } from "../helpers/gateway.ts";
import { checkLedger } from "../helpers/ledger.ts";
import { Registers, staleReads } from "../helpers/registers.ts";
import type { NatsCluster, NatsServer } from "../helpers/servers.ts";
import { waitFor } from "../helpers/wait.ts";
import { appliedPositions, ask, caughtUp, openSystem, settled } from "./system.ts";
import type { System } from "./system.ts";

const stream = "GW_shop";
let system: System;
let cluster: NatsCluster;
let gateways: readonly Gateway[];
/** Of all tests: the backends remember everything that was ever asked for. */
const loads: Load[] = [];

beforeAll(async () => {
  system = await openSystem({ stores: "nats-r3", config: { limits: { queueWait: "2s" } } });
  if (system.cluster === null) throw new Error("there is no cluster");
  cluster = system.cluster;
  gateways = [system.gateway];
});
afterAll(() => system?.close());

const front = (client: number): string => gateways[client % gateways.length]?.front ?? "";

interface Load {
  readonly clients: Clients;
  readonly registers: Registers;
}

function startLoad(): Load {
  const clients = new Clients({ front, count: 8, workload: settled, thinkMs: 10 });
  const registers = new Registers({ name: `w${loads.length}`, front, count: 2, readersOfEach: 2, thinkMs: 10 });
  const load = { clients, registers };
  loads.push(load);
  clients.start();
  registers.start();
  // A test that failed leaves the others a cluster of which they can say something.
  onTestFinished(async () => {
    await cluster.mend();
    for (const server of cluster.servers) {
      server.resume();
      if (server.process.exitCode !== null || server.process.signalCode !== null) await server.restart();
    }
    await Promise.all([clients.stop(), registers.stop()]);
  });
  return load;
}

/** Brings the load to its end and looks for everything that is forbidden. */
async function expectAllIsWell({ clients, registers }: Load): Promise<void> {
  await Promise.all([clients.stop(), registers.stop()]);
  for (const gateway of gateways) await caughtUp(gateway, 30_000);
  const [gateway] = gateways as [Gateway];
  const sent = loads.flatMap((load) => [...load.clients.history, ...load.registers.writes]);
  const faults = checkLedger({ sent, journals: system.journals(), log: await appliedPositions(gateway) });
  expect(faults).toEqual([]);
  expect(staleReads(registers.writes, registers.reads)).toEqual([]);
  expect(registers.reads.length).toBeGreaterThan(50);
  for (const one of gateways) expect(await one.unknown()).toEqual([]);
}

/** The log read as a whole: no finding, and the hash that the gateways' own state has. */
async function verified(): Promise<string> {
  const hashes = new Set<string>();
  for (const gateway of gateways) {
    const { status, json } = await gateway.api("GET", "/v1/log/verify");
    expect([status, json.findings]).toEqual([200, []]);
    hashes.add(json.hash as string);
  }
  expect(hashes.size).toBe(1);
  return [...hashes].join();
}

async function membersOf(): Promise<{ leader: NatsServer; followers: readonly NatsServer[] }> {
  const leader = await cluster.streamLeader(stream);
  return { leader, followers: cluster.servers.filter((server) => server !== leader) };
}

/** Somebody else leads, and what it acknowledges reaches clients. */
async function succeeded(former: NatsServer, { clients }: Load): Promise<void> {
  const others = cluster.servers.filter((server) => server !== former);
  await waitFor(
    async () => {
      const told = await Promise.all(others.map((server) => leaderAccordingTo(server)));
      return told.some((name) => name !== undefined && name !== "" && name !== former.name);
    },
    { timeoutMs: 20_000, what: "a successor" },
  );
  await clients.busy({ acknowledged: 100, inFlight: 1, withinMs: 20_000 });
}

async function leadsAnything(server: NatsServer): Promise<boolean> {
  if ((await cluster.metaLeader()) === server) return true;
  return (await streamsAt(server)).some((detail) => detail.cluster?.leader === server.name);
}

async function leaderAccordingTo(server: NatsServer): Promise<string | undefined> {
  return (await streamsAt(server)).find((detail) => detail.name === stream)?.cluster?.leader;
}

interface StreamDetail {
  readonly name: string;
  readonly cluster?: { readonly leader?: string };
}

async function streamsAt(server: NatsServer): Promise<readonly StreamDetail[]> {
  const accounts = ((await server.monitor("/jsz?streams=true"))["account_details"] ?? []) as readonly {
    stream_detail?: readonly StreamDetail[];
  }[];
  return accounts.flatMap((account) => account.stream_detail ?? []);
}

/** All copies of the stream are current again: the next fault must not be the second. */
async function whole(): Promise<void> {
  await cluster.ready();
  let seen: unknown;
  await withManager(cluster.url, (manager) =>
    waitFor(
      async () => {
        const streams = await manager.streams.list().next();
        seen = streams.map(({ config, cluster: of }) => [config.name, of?.leader, of?.replicas]);
        return streams.every(
          ({ cluster: of }) =>
            of?.leader && of.replicas?.length === 2 && of.replicas.every((peer) => peer.current && !peer.offline),
        );
      },
      { timeoutMs: 45_000, what: () => `all streams to be current on all servers: ${JSON.stringify(seen)}` },
    ),
  );
}

async function withManager<T>(
  url: string,
  work: (manager: Awaited<ReturnType<typeof jetstreamManager>>) => Promise<T>,
): Promise<T> {
  const connection = await connect({ servers: url.split(",") });
  try {
    return await work(await jetstreamManager(connection, { checkAPI: false, timeout: 1_000 }));
  } finally {
    await connection.close();
  }
}

/** What clients saw since then: the longest time without any acknowledgement, and how long requests took, with their retries. */
function gapSince(fromMs: number, { clients }: Load, what: string): { silentMs: number } {
  const toMs = performance.now();
  const acknowledged = clients.history.filter((sent) => fateOf(sent) === "executed");
  const ends = acknowledged.map((sent) => sent.attempts.find(({ outcome }) => outcome === "executed")?.endedAtMs ?? 0);
  const marks = [fromMs, ...ends.filter((at) => at > fromMs).toSorted((a, b) => a - b), toMs];
  const silentMs = Math.max(...marks.slice(1).map((at, n) => at - (marks[n] ?? at)));
  const took = acknowledged
    .flatMap((sent, n) => ((ends[n] ?? 0) > fromMs ? [(ends[n] ?? 0) - (sent.attempts[0]?.sentAtMs ?? 0)] : []))
    .toSorted((a, b) => a - b);
  const p99 = took[Math.floor(took.length * 0.99)] ?? Number.NaN;
  process.stdout.write(
    `${what}: longest time without an answer ${Math.round(silentMs)} ms; requests p99 ${Math.round(p99)} ms, ` +
      `max ${Math.round(took.at(-1) ?? 0)} ms (${took.length})\n`,
  );
  return { silentMs };
}

test("a follower that is killed is hardly noticed, and goes on from its disk", async () => {
  const load = startLoad();
  await load.clients.busy({ acknowledged: 100, inFlight: 1 });
  const { followers } = await membersOf();
  for (const follower of followers) {
    const isLeading = await leadsAnything(follower);
    const at = performance.now();
    await follower.kill9();
    await load.clients.busy({ acknowledged: 200, inFlight: 1 });
    const gap = gapSince(at, load, isLeading ? "follower killed that led another group" : "follower killed");
    // Of the cluster's other groups each has a leader: cursors and new readers wait for the successor.
    expect(gap.silentMs).toBeLessThan(isLeading ? 15_000 : 3_000);
    await follower.restart();
    await whole();
  }
  await expectAllIsWell(load);
}, 90_000);

test("a leader that is killed is followed by another, and nothing is lost", async () => {
  const load = startLoad();
  await load.clients.busy({ acknowledged: 100, inFlight: 1 });
  const { leader } = await membersOf();
  const at = performance.now();
  await leader.kill9();
  await load.clients.busy({ acknowledged: 200, inFlight: 1 });
  expect(gapSince(at, load, "leader killed").silentMs).toBeLessThan(15_000);
  await leader.restart();
  await whole();
  await expectAllIsWell(load);
}, 90_000);

test("a leader that is stopped for seconds neither answers late nor lets anybody read what is old", async () => {
  const load = startLoad();
  await load.clients.busy({ acknowledged: 100, inFlight: 1 });
  const { leader } = await membersOf();
  const at = performance.now();
  await leader.pause();
  await succeeded(leader, load);
  gapSince(at, load, "leader stopped");
  leader.resume();
  await load.clients.busy({ acknowledged: 200, inFlight: 1 });
  await whole();
  await expectAllIsWell(load);
}, 90_000);

test("a leader that only the gateway can reach neither answers late nor lets anybody read what is old", async () => {
  const load = startLoad();
  await load.clients.busy({ acknowledged: 100, inFlight: 1 });
  const { leader } = await membersOf();
  const at = performance.now();
  cluster.isolate(leader);
  await succeeded(leader, load);
  gapSince(at, load, "leader cut off");
  await cluster.mend();
  await load.clients.busy({ acknowledged: 200, inFlight: 1 });
  await whole();
  await expectAllIsWell(load);
}, 90_000);

test("without a majority writes wait and are then refused, and nothing is lost", async () => {
  const load = startLoad();
  await load.clients.busy({ acknowledged: 100, inFlight: 1 });
  const { leader, followers } = await membersOf();
  await Promise.all([leader.kill9(), followers[0]?.kill9()]);
  const from = performance.now();
  await waitFor(() => load.clients.lately(40).includes("503"), { timeoutMs: 20_000, what: "503" });
  const read = await ask(front(0), "GET", "/r/k0");
  expect(read.status).toBe(503);
  const acknowledged = load.clients.acknowledged;
  await Promise.all([leader.restart(), followers[0]?.restart()]);
  expect(load.clients.acknowledged - acknowledged).toBe(0);
  await load.clients.busy({ acknowledged: 100, inFlight: 1 });
  gapSince(from, load, "two killed");
  await whole();
  await expectAllIsWell(load);
}, 90_000);

test("a server whose disk was wiped catches up", async () => {
  const load = startLoad();
  await load.clients.busy({ acknowledged: 100, inFlight: 1 });
  const { followers } = await membersOf();
  const [wiped] = followers;
  await wiped?.kill9();
  rmSync(wiped?.storeDir ?? "", { recursive: true });
  await load.clients.busy({ acknowledged: 50, inFlight: 1 });
  await wiped?.restart();
  await whole();
  await expectAllIsWell(load);
}, 90_000);

test("all servers killed at once lose nothing", async () => {
  const load = startLoad();
  await load.clients.busy({ acknowledged: 100, inFlight: 1 });
  const at = performance.now();
  await Promise.all(cluster.servers.map((server) => server.kill9()));
  await Promise.all(cluster.servers.map((server) => server.restart()));
  await load.clients.busy({ acknowledged: 100, inFlight: 1, withinMs: 40_000 });
  gapSince(at, load, "all killed");
  await whole();
  await expectAllIsWell(load);
}, 90_000);

test("after all that each server holds the same log", async () => {
  const hashes = new Map<string, string>();
  for (const server of cluster.servers) {
    await withManager(cluster.url, async (manager) => {
      await waitFor(
        async () => {
          const info = await manager.streams.info(stream);
          if (info.cluster?.leader === server.name) return true;
          await stepDown(cluster.url);
          return false;
        },
        { timeoutMs: 20_000, what: `${server.name} to lead` },
      );
    });
    hashes.set(server.name, await verified());
  }
  expect(hashes.size).toBe(3);
  expect(new Set(hashes.values()).size).toBe(1);
}, 90_000);

/** Whoever follows is chosen by the servers. */
async function stepDown(url: string): Promise<void> {
  const connection = await connect({ servers: url.split(",") });
  try {
    await connection.request(`$JS.API.STREAM.LEADER.STEPDOWN.${stream}`, "", { timeout: 2_000 });
  } finally {
    await connection.close();
  }
}
