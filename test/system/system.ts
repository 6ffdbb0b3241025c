// A whole system of real processes for one test: three journaling backends, NATS and Redis where asked for, a gateway in front.
// Everything is closed when the test ends.

import { join } from "node:path";
import { Client } from "undici";
import { onTestFinished } from "vitest";
import type { LogRow, Status } from "../../gateway/status.ts";
import type { Call, Clients, Workload } from "../helpers/clients.ts";
import { createFolder, removeFolder } from "../helpers/folder.ts";
import { rowsOf, startGateway } from "../helpers/gateway.ts";
import type { Gateway, GatewayOptions } from "../helpers/gateway.ts";
import { checkLedger } from "../helpers/ledger.ts";
import type { Executed } from "../helpers/ledger.ts";
import { startNats, startNatsCluster, startRedis } from "../helpers/servers.ts";
import type { NatsCluster, NatsOptions, NatsServer, RedisServer } from "../helpers/servers.ts";
import { waitFor } from "../helpers/wait.ts";
import { journalOf, shopProgram, startShops } from "./shop.ts";
import type { Fault, Shop } from "./shop.ts";

export interface SystemOptions {
  /** nats-r3: a cluster of three, whose routes can be held back. */
  readonly stores?: "embedded" | "nats" | "nats-r3";
  readonly nats?: NatsOptions;
  readonly replicas?: "url" | "managed";
  readonly fault?: Fault;
  /** Laid over the configuration, section by section. */
  readonly config?: Readonly<Record<string, unknown>>;
  /** Laid over each URL replica. */
  readonly each?: Readonly<Record<string, unknown>>;
  readonly gateway?: Omit<GatewayOptions, "config">;
}

export interface System {
  readonly gateway: Gateway;
  /** Empty when the gateway manages the backends. */
  readonly shops: readonly Shop[];
  /** The only server; null where there is none or a cluster. */
  readonly nats: NatsServer | null;
  readonly cluster: NatsCluster | null;
  readonly redis: RedisServer | null;
  readonly names: readonly string[];
  /** By replica. */
  journals(): ReadonlyMap<string, readonly Executed[]>;
  close(): Promise<void>;
}

/** What the tests' clients send, and the rules for it. */
export const rules = [
  { name: "set", match: "PUT /r/:k", mode: "replicate", order: ["r:{path.k}"] },
  {
    name: "add",
    match: "POST /c/:k/add",
    mode: "replicate",
    order: ["c:{path.k}"],
    probe: { request: "GET /probe?id={query.id}", applied: { body: { "/applied": true } } },
  },
  {
    name: "total",
    match: "POST /t/:k/add",
    mode: "replicate",
    probe: { request: "GET /probe?id={query.id}", applied: { body: { "/applied": true } } },
  },
  { name: "neither", match: "POST /n/:k/add", mode: "replicate", order: ["n:{path.k}"] },
  {
    name: "undone",
    match: "POST /u/:k/add",
    mode: "replicate",
    order: ["u:{path.k}"],
    before: "GET /u/:k",
    undo: "PUT /u/:k",
  },
  {
    name: "poison",
    match: "POST /poison",
    mode: "replicate",
    probe: { request: "GET /probe?id={query.id}", applied: { body: { "/applied": true } } },
  },
  {
    name: "any",
    match: { method: "GET", path: "/r/:k", query: { level: "any" } },
    mode: "only-once",
    consistency: "any",
  },
  {
    name: "session",
    match: { method: "GET", path: "/r/:k", query: { level: "session" } },
    mode: "only-once",
    consistency: "session",
  },
  { name: "echo", match: "GET /ws", mode: "only-once", websocket: true },
];

export async function startSystem(options: SystemOptions = {}): Promise<System> {
  const system = await openSystem(options);
  onTestFinished(() => system.close());
  return system;
}

/** For several tests together: whoever opens it closes it. */
export async function openSystem(options: SystemOptions = {}): Promise<System> {
  const hasStores = (options.stores ?? "embedded") !== "embedded";
  const isManaged = options.replicas === "managed";
  const [nats, cluster, redis, shops] = await Promise.all([
    options.stores === "nats" ? startNats(options.nats) : null,
    options.stores === "nats-r3" ? startNatsCluster(3, { ...options.nats, hasLinks: true }) : null,
    hasStores ? startRedis({ appendonly: true }) : null,
    isManaged ? [] : startShops(["a", "b", "c"], options.fault),
  ]);
  const state = createFolder("state");
  let gateway: Gateway | null = null;
  const close = async (): Promise<void> => {
    // The gateway first: it would otherwise spend its last seconds on servers that went away.
    await gateway?.close();
    await Promise.all([nats?.close(), cluster?.close(), redis?.close(), ...shops.map((shop) => shop.close())]);
    removeFolder(state);
  };
  const witness = { witness: ["GET /witness"] };
  const servers = nats === null ? (cluster?.servers ?? []) : [nats];
  const log = {
    ...(servers.length === 0 ? {} : { nats: natsSettings(servers) }),
    ...(options.config?.["log"] as object | undefined),
  };
  try {
    gateway = await startGateway({
      ...options.gateway,
      config: {
        rules,
        health: { request: "GET /health", every: "200ms", fall: 2, rise: 1 },
        logs: { level: "info", format: "json" },
        ...(redis === null ? {} : { keys: { redis: { url: redis.url } } }),
        replicas: isManaged
          ? {
              count: 3,
              command: [process.execPath, shopProgram],
              state,
              ready: "GET /health",
              env: { SHOP_FAULT: JSON.stringify(options.fault ?? {}) },
              ...witness,
            }
          : shops.map(({ name, url }) => ({ name, url, ...witness, ...options.each })),
        ...options.config,
        ...(Object.keys(log).length === 0 ? {} : { log }),
      },
    });
  } catch (error) {
    await close();
    throw error;
  }
  const names = isManaged ? ["r1", "r2", "r3"] : shops.map((shop) => shop.name);
  return {
    gateway,
    shops,
    nats,
    cluster,
    redis,
    names,
    journals: () =>
      new Map(
        isManaged
          ? names.map((name) => [name, journalOf(join(state, name))])
          : shops.map((shop) => [shop.name, shop.journal()]),
      ),
    close,
  };
}

/** `log.nats` for these servers, with as many replicas. */
export const natsSettings = (servers: readonly NatsServer[]): object => ({
  servers: servers.map((server) => server.url),
  replicas: servers.length,
  monitor: servers.map((server) => server.monitorUrl),
});

export const isLive = (status: Status): boolean => status.replicas.every((replica) => replica.state === "live");

export const allLive = (gateway: Gateway, withinMs = 10_000): Promise<Status> =>
  gateway.until("all replicas live", withinMs, (status) => status.replicas.length > 0 && isLive(status));

/** Everything that the log holds was applied by all replicas, which are live. */
export const caughtUp = (gateway: Gateway, withinMs = 20_000): Promise<Status> =>
  gateway.until(
    "all replicas live and without lag",
    withinMs,
    (s) => isLive(s) && s.replicas.every((r) => r.lag === 0),
  );

/** Positions of the log's entries that are to be applied. */
export async function appliedPositions(gateway: Gateway): Promise<ReadonlySet<number>> {
  const positions = new Set<number>();
  let from = 0;
  // Ends at the first empty page.
  for (;;) {
    const answer = await gateway.api("GET", `/v1/log?from=${from}&limit=1000`);
    const rows = rowsOf(answer.json) as LogRow[];
    const last = rows.at(-1);
    if (answer.status !== 200) throw new Error(`/v1/log: ${answer.status} ${answer.text}`);
    if (last === undefined) return positions;
    for (const row of rows) if (row.kind === "entry" && row.fate === "applied") positions.add(row.position);
    from = last.position + 1;
  }
}

/** Waits for all replicas, then looks for everything that the promises forbid. */
export async function faultsOf(system: System, clients: Clients): Promise<string[]> {
  await caughtUp(system.gateway);
  const log = await appliedPositions(system.gateway);
  const faults = checkLedger({ sent: clients.history, journals: system.journals(), log });
  const unknown = await system.gateway.unknown();
  if (unknown.length > 0) faults.push(`still unknown: ${JSON.stringify(unknown)}`);
  return faults;
}

const spread = 32;

export const put = (client: number, n: number, isKeyed: boolean): Call => {
  const k = `k${(client * 7 + n * 3) % spread}`;
  return {
    method: "PUT",
    path: `/r/${k}`,
    orderKeys: [`r:${k}`],
    isKeyed,
    isRepeatable: true,
    body: { v: `${client}-${n}` },
  };
};

export const add = (client: number, n: number, isKeyed: boolean, kind: "c" | "n" | "u" = "c"): Call => {
  const k = `${kind}${(client * 5 + n * 3) % spread}`;
  return {
    method: "POST",
    path: `/${kind}/${k}/add`,
    orderKeys: [`${kind}:${k}`],
    isKeyed,
    isRepeatable: false,
    body: { by: 1 },
  };
};

/** Without order keys: a barrier. */
export const total = (client: number, n: number, isKeyed: boolean): Call => {
  const k = `t${(client + n) % spread}`;
  return { method: "POST", path: `/t/${k}/add`, orderKeys: [], isKeyed, isRepeatable: false, body: { by: 1 } };
};

/** Every copy can be brought back without help: repeatable or probed. Half of it keyed. */
export const settled: Workload = (client, n) => {
  const isKeyed = (client + n) % 2 === 0;
  if (n % 20 === 19) return total(client, n, isKeyed);
  return n % 4 < 2 ? put(client, n, isKeyed) : add(client, n, isKeyed);
};

/** Neither repeatable nor probed. */
export const unsettled: Workload = (client, n) => add(client, n, (client + n) % 2 === 0, "n");

/** Kills one managed backend as the system would: by its pid. */
export async function killManaged(gateway: Gateway, name: string): Promise<void> {
  const replica = (await gateway.status()).replicas.find((one) => one.name === name);
  const pid = replica?.pid ?? null;
  if (pid === null) throw new Error(`${name} has no process`);
  process.kill(pid, "SIGKILL");
  await waitFor(
    () => {
      try {
        process.kill(pid, 0);
        return false;
      } catch {
        return true;
      }
    },
    { what: `${name} (${pid}) to be gone` },
  );
}

export interface Asked {
  readonly status: number;
  readonly outcome: string | null;
  readonly position: string | null;
  readonly headers: Readonly<Record<string, string | string[] | undefined>>;
  /** The gateway's code, when it made the answer itself. */
  readonly code: string | null;
  readonly text: string;
}

/** One request on a connection of its own. */
export async function ask(
  front: string,
  method: Call["method"],
  target: string,
  options: {
    readonly body?: unknown;
    readonly headers?: Readonly<Record<string, string>>;
    readonly timeoutMs?: number;
  } = {},
): Promise<Asked> {
  const client = new Client(front, { headersTimeout: options.timeoutMs ?? 20_000, bodyTimeout: 20_000 });
  try {
    const hasBody = options.body !== undefined;
    const answer = await client.request({
      method,
      path: target,
      headers: { ...(hasBody ? { "content-type": "application/json" } : {}), ...options.headers },
      body: hasBody ? JSON.stringify(options.body) : null,
    });
    const text = await answer.body.text();
    const one = (name: string): string | null => {
      const value = answer.headers[name];
      return typeof value === "string" ? value : null;
    };
    const isProblem = one("content-type")?.startsWith("application/problem+json") === true;
    return {
      status: answer.statusCode,
      outcome: one("replication-outcome"),
      position: one("replication-position"),
      headers: answer.headers,
      code: isProblem ? ((JSON.parse(text) as { code?: string }).code ?? null) : null,
      text,
    };
  } finally {
    await client.destroy();
  }
}
