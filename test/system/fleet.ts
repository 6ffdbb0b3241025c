// Several gateways of one service on one NATS and Redis, in front of backends that any of them can feed.

import { onTestFinished } from "vitest";
import type { ReplicaStatus } from "../../gateway/status.ts";
import type { Clients } from "../helpers/clients.ts";
import { startGateway } from "../helpers/gateway.ts";
import type { Gateway } from "../helpers/gateway.ts";
import { checkLedger } from "../helpers/ledger.ts";
import type { Executed } from "../helpers/ledger.ts";
import { startNats, startRedis } from "../helpers/servers.ts";
import type { NatsServer, RedisServer } from "../helpers/servers.ts";
import { waitFor } from "../helpers/wait.ts";
import { startShops } from "./shop.ts";
import type { Shop } from "./shop.ts";
import { appliedPositions, caughtUp, rules } from "./system.ts";

export interface FleetOptions {
  readonly gateways?: number;
  readonly backends?: readonly string[];
  /** Laid over the configuration of each gateway, section by section. */
  readonly config?: Readonly<Record<string, unknown>>;
  /** Laid over that of one of them. */
  readonly each?: (gateway: number) => Readonly<Record<string, unknown>>;
  readonly leaseMs?: number;
}

export interface FleetSystem {
  readonly gateways: readonly Gateway[];
  readonly shops: readonly Shop[];
  readonly nats: NatsServer;
  readonly redis: RedisServer;
  /** One more gateway, as the others are. */
  join(n: number, over?: Readonly<Record<string, unknown>>): Promise<Gateway>;
  journals(): ReadonlyMap<string, readonly Executed[]>;
}

export async function startFleet(options: FleetOptions = {}): Promise<FleetSystem> {
  const [nats, redis, shops] = await Promise.all([
    startNats(),
    startRedis({ appendonly: true }),
    startShops([...(options.backends ?? ["a", "b", "c"])]),
  ]);
  const gateways: Gateway[] = [];
  onTestFinished(async () => {
    await Promise.all(gateways.map((it) => it.close()));
    await Promise.all([nats.close(), redis.close(), ...shops.map((shop) => shop.close())]);
  });
  const join = async (n: number, over: Readonly<Record<string, unknown>> = {}): Promise<Gateway> => {
    const gateway = await startGateway({
      config: {
        rules,
        health: { request: "GET /health", every: "200ms", fall: 2, rise: 1 },
        logs: { level: "info", format: "json" },
        keys: { redis: { url: redis.url } },
        replicas: shops.map(({ name, url }) => ({ name, url, witness: ["GET /witness"] })),
        log: { nats: { servers: [nats.url], replicas: 1, monitor: [nats.monitorUrl] } },
        lease: `${options.leaseMs ?? 2000}ms`,
        name: `gw-${n}`,
        ...options.config,
        ...options.each?.(n),
        ...over,
      },
    });
    gateways.push(gateway);
    return gateway;
  };
  for (let n = 1; n <= (options.gateways ?? 2); n++) await join(n);
  return {
    gateways,
    shops,
    nats,
    redis,
    join,
    journals: () => new Map(shops.map((shop) => [shop.name, shop.journal()])),
  };
}

/** Which gateway feeds each replica, as this one sees it. */
export async function ownersOf(gateway: Gateway): Promise<Readonly<Record<string, string | null>>> {
  const { replicas } = await gateway.status();
  return Object.fromEntries(replicas.map((it) => [it.name, it.owner]));
}

/** How many replicas each gateway feeds, as all of them agree. */
export async function spread(gateways: readonly Gateway[], counts: Readonly<Record<string, number>>): Promise<void> {
  let last = "";
  await waitFor(
    async () => {
      const seen = await Promise.all(gateways.map((it) => it.status().catch(() => null)));
      last = seen
        .map((it) =>
          it?.replicas.map(({ name, owner, state, reason }) => `${name} ${owner} ${state} ${reason}`).join("; "),
        )
        .join("\n");
      return seen.every((status) => status !== null && isSpread(status.replicas, counts));
    },
    { what: () => `all gateways to see ${JSON.stringify(counts)}:\n${last}`, timeoutMs: 20_000 },
  );
}

function isSpread(replicas: readonly ReplicaStatus[], counts: Readonly<Record<string, number>>): boolean {
  if (replicas.some((it) => it.state !== "live")) return false;
  const fedBy = (name: string): number => replicas.filter((it) => it.owner === name).length;
  const wanted = Object.values(counts).reduce((sum, count) => sum + count, 0);
  return wanted === replicas.length && Object.entries(counts).every(([name, count]) => fedBy(name) === count);
}

/** Waits until every gateway sees all replicas live and without lag, then looks for everything that the promises forbid. */
export async function faultsOfFleet(
  system: FleetSystem,
  clients: Clients,
  isTheirs: (id: string) => boolean = () => true,
): Promise<string[]> {
  const running = system.gateways.filter((it) => it.isRunning);
  for (const it of running) await caughtUp(it, 30_000);
  const log = new Set(await appliedPositions(running[0] as Gateway));
  const journals = new Map<string, readonly Executed[]>();
  for (const [name, rows] of system.journals()) {
    for (const row of rows) if (!isTheirs(row.id)) log.delete(row.position);
    journals.set(
      name,
      rows.filter((row) => isTheirs(row.id)),
    );
  }
  const faults = checkLedger({ sent: clients.history, journals, log });
  for (const it of running) {
    const unknown = await it.unknown();
    if (unknown.length > 0) faults.push(`still unknown: ${JSON.stringify(unknown)}`);
  }
  return faults;
}
