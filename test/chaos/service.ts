// What chaos is done to: gateways, copies, log and key store as real processes, and a proxy of our own on every way between two of them.

import { join } from "node:path";
import { Redis } from "ioredis";
import type { Status } from "../../gateway/status.ts";
import { createFolder, removeFolder } from "../helpers/folder.ts";
import { Gateway } from "../helpers/gateway.ts";
import { freePort, startNats, startNatsCluster, startRedis } from "../helpers/servers.ts";
import type { NatsCluster, NatsServer, RedisServer } from "../helpers/servers.ts";
import { startTcpProxy } from "../helpers/tcp-proxy.ts";
import type { TcpProxy } from "../helpers/tcp-proxy.ts";
import { startKv } from "./kv.ts";
import type { Kv } from "./kv.ts";
import { Output } from "./output.ts";

export type LogKind = "embedded" | "nats" | "nats-r3";

/** What there is, by name: `gw-1`, `a`, `nats-1`, `redis`. */
export interface Shape {
  readonly log: LogKind;
  readonly gateways: readonly string[];
  readonly backends: readonly string[];
  readonly nats: readonly string[];
  readonly hasRedis: boolean;
}

const numbered = (name: string, count: number): string[] => Array.from({ length: count }, (_, n) => `${name}-${n + 1}`);

export function shapeOf(log: LogKind, gateways: number): Shape {
  return {
    log,
    gateways: numbered("gw", gateways),
    backends: ["a", "b", "c"],
    nats: numbered("nats", { embedded: 0, nats: 1, "nats-r3": 3 }[log]),
    hasRedis: log !== "embedded",
  };
}

/** Told to clients and servers as secrets: whoever prints them has leaked them. */
export const canary = "canary-7f3a91";

const probe = { request: "GET /probe?id={query.id}", applied: { body: { "/applied": true } } };
const order = ["kv:{path.k}"];
const rules = [
  { name: "put", match: "PUT /kv/:k", mode: "replicate", order },
  { name: "delete", match: "DELETE /kv/:k", mode: "replicate", order },
  {
    name: "cas",
    match: "POST /kv/:k/cas",
    mode: "replicate",
    order,
    probe,
    respond: "majority",
    compare: { body: "json" },
  },
  { name: "append", match: "POST /kv/:k/append", mode: "replicate", order, probe, compare: { body: "json" } },
  { name: "incr", match: "POST /kv/:k/incr", mode: "replicate", order, probe, compare: { body: "json" } },
  // Without order keys: it waits for everything, and everything waits for it.
  { name: "total", match: "POST /total/:k/incr", mode: "replicate", probe },
  ...(["any", "session"] as const).map((level) => ({
    name: level,
    match: { method: "GET", path: "/kv/:k", query: { level } },
    mode: "only-once",
    consistency: level,
    order,
  })),
  { name: "get", match: "GET /kv/:k", mode: "only-once", order },
];

export interface ServiceOptions {
  readonly shape: Shape;
  /** dist/gateway/cli.js of another build. */
  readonly cli?: string;
}

export class Service {
  readonly shape: Shape;
  readonly folder: string;
  readonly gateways = new Map<string, Gateway>();
  readonly outputs = new Map<string, Output>();
  readonly backends = new Map<string, Kv>();
  readonly nats = new Map<string, NatsServer>();
  cluster: NatsCluster | null = null;
  redis: RedisServer | null = null;
  readonly #links = new Map<string, TcpProxy>();
  /** Gateways that are down because we wanted it. */
  readonly #down = new Set<string>();
  readonly #ended: string[] = [];
  #isClosing = false;

  private constructor(shape: Shape) {
    this.shape = shape;
    this.folder = createFolder("chaos");
  }

  static async start(options: ServiceOptions): Promise<Service> {
    const service = new Service(options.shape);
    try {
      await service.#start(options.cli);
    } catch (error) {
      await service.close();
      throw error;
    }
    return service;
  }

  gateway(name: string): Gateway {
    return found(this.gateways, name);
  }

  backend(name: string): Kv {
    return found(this.backends, name);
  }

  /** The way from one to another; to a backend the same from all gateways (`*`). */
  link(from: string, to: string): TcpProxy {
    return found(this.#links, `${from}>${to}`);
  }

  links(isMeant: (from: string, to: string) => boolean): TcpProxy[] {
    return [...this.#links].filter(([way]) => isMeant(...(way.split(">") as [string, string]))).map(([, link]) => link);
  }

  async redisCall(...words: [string, ...string[]]): Promise<void> {
    if (this.redis === null) throw new Error("there is no redis");
    const client = new Redis(this.redis.port, "127.0.0.1", {
      password: canary,
      maxRetriesPerRequest: 1,
      lazyConnect: true,
    });
    // Whoever asks gets the failure; a connection's own event would end the process.
    client.on("error", () => {});
    try {
      await client.connect();
      await client.call(...words);
    } finally {
      client.disconnect();
    }
  }

  async killGateway(name: string): Promise<void> {
    this.#down.add(name);
    await this.gateway(name).kill9();
  }

  /** SIGTERM. Rejects when it does not end in time, or not well. */
  async stopGateway(name: string): Promise<void> {
    this.#down.add(name);
    const gateway = this.gateway(name);
    const code = await gateway.stop(stopMsMax).catch(async (error: unknown) => {
      await gateway.kill9();
      throw error;
    });
    if (code !== 0)
      throw new Error(`${name} ended with ${code} on SIGTERM: ${found(this.outputs, name).text().slice(-1500)}`);
  }

  /** As whatever supervises it in production does: one that could not start because the log did not answer is started again. */
  async startGateway(name: string): Promise<void> {
    const until = performance.now() + startMsMax;
    // Ends when it lives, when it failed for another reason, or with the time.
    for (;;) {
      const from = found(this.outputs, name).text().length;
      try {
        await this.gateway(name).start({ until: "live" });
        break;
      } catch (error) {
        const isLogAway = found(this.outputs, name).text().slice(from).includes("GW_LOG_UNAVAILABLE");
        if (!isLogAway || this.gateway(name).isRunning || performance.now() > until) throw error;
      }
    }
    this.#down.delete(name);
  }

  /** Takes its way away first, as a kernel refuses connections to a port that nobody listens on: a proxy would accept them. */
  async killBackend(name: string): Promise<void> {
    await this.link("*", name).cut();
    await this.backend(name).kill9();
  }

  async stopBackend(name: string): Promise<void> {
    await this.backend(name).stop();
    await this.link("*", name).cut();
  }

  async startBackend(name: string): Promise<void> {
    await this.backend(name).start();
    await this.link("*", name).heal();
  }

  /** What some running gateway says; all of them say the same of what they share. */
  async status(): Promise<Status> {
    let last: unknown = new Error("no gateway runs");
    for (const [name, gateway] of this.gateways) {
      if (this.#down.has(name) || !gateway.isRunning) continue;
      try {
        return await gateway.status();
      } catch (error) {
        last = error;
      }
    }
    throw last;
  }

  /** Gateways that ended although nobody ended them, with their last words; each is started again. */
  async lookAfterGateways(): Promise<void> {
    for (const [name, gateway] of this.gateways) {
      if (this.#isClosing || this.#down.has(name) || gateway.isRunning) continue;
      this.#down.add(name);
      this.#ended.push(`${name} ended by itself: ${found(this.outputs, name).text().slice(-1500)}`);
      await this.startGateway(name).catch((error: unknown) => {
        this.#ended.push(`${name} could not be started again: ${String(error)}`);
      });
    }
  }

  endedByThemselves(): readonly string[] {
    return this.#ended;
  }

  async close(): Promise<void> {
    this.#isClosing = true;
    // The gateways first: they would otherwise spend their last seconds on servers that went away.
    await Promise.all([...this.gateways.values()].map((gateway) => gateway.close()));
    await Promise.all([
      this.cluster?.close() ?? Promise.all([...this.nats.values()].map((server) => server.close())),
      this.redis?.close(),
      ...[...this.backends.values()].map((backend) => backend.close()),
    ]);
    await Promise.all([...this.#links.values()].map((link) => link.close()));
    removeFolder(this.folder);
  }

  async #start(cli: string | undefined): Promise<void> {
    const { shape } = this;
    await Promise.all([
      this.#startNats(),
      this.#startRedis(),
      ...shape.backends.map((name) => this.#startBackend(name)),
    ]);
    for (const name of shape.gateways) await this.#prepareGateway(name, cli);
    for (const name of shape.gateways) await this.gateway(name).start();
  }

  async #startNats(): Promise<void> {
    const { log, nats } = this.shape;
    if (log === "nats") this.nats.set("nats-1", await startNats());
    if (log !== "nats-r3") return;
    this.cluster = await startNatsCluster(nats.length, {
      link: (from, to, port) => this.#connect(`nats-${from + 1}`, `nats-${to + 1}`, port),
    });
    for (const [n, server] of this.cluster.servers.entries()) this.nats.set(`nats-${n + 1}`, server);
  }

  async #startRedis(): Promise<void> {
    if (!this.shape.hasRedis) return;
    this.redis = await startRedis({ appendonly: true, config: [`requirepass ${canary}`] });
  }

  async #startBackend(name: string): Promise<void> {
    const backend = await startKv(name);
    this.backends.set(name, backend);
    await this.#connect("*", name, backend.port);
  }

  async #prepareGateway(name: string, cli: string | undefined): Promise<void> {
    const { shape } = this;
    const servers: string[] = [];
    for (const [node, server] of this.nats)
      servers.push(`nats://127.0.0.1:${await this.#connect(name, node, server.port)}`);
    const redis = this.redis === null ? null : await this.#connect(name, "redis", this.redis.port);
    const monitor = [...this.nats.values()].map((server) => server.monitorUrl);
    const output = new Output(canary);
    this.outputs.set(name, output);
    const gateway = await Gateway.prepare({
      until: "ready",
      onOutput: (text) => output.take(text),
      ...(cli === undefined ? {} : { command: [process.execPath, cli] }),
      config: {
        service: "chaos",
        name,
        rules,
        timeouts: { connect: "1s", firstByte: "3s" },
        limits: { queueWait: "2s" },
        health: { request: "GET /health", every: "200ms", fall: 2, rise: 1 },
        agreement: { onMinority: "rebuild", rebuildsPerHour: 1000 },
        log: {
          truncate: "never",
          ...(servers.length === 0 ? {} : { nats: { servers, replicas: shape.nats.length, monitor } }),
        },
        ...(redis === null ? {} : { keys: { redis: { url: `redis://:${canary}@127.0.0.1:${redis}` } } }),
        logs: { level: "info", format: "json" },
        snapshots: {
          every: { entries: 2000, atLeast: "5s" },
          keep: 3,
          capture: { export: "GET /dump", import: "PUT /dump" },
          quiesce: "none",
          store: join(this.folder, "snapshots"),
        },
        replicas: shape.backends.map((backend) => ({
          name: backend,
          url: `http://127.0.0.1:${this.link("*", backend).port}`,
          witness: ["GET /root"],
        })),
      },
    });
    this.gateways.set(name, gateway);
  }

  /** A port by which the one reaches the other. */
  async #connect(from: string, to: string, targetPort: number): Promise<number> {
    const link = await startTcpProxy({ targetPort, port: await freePort() });
    this.#links.set(`${from}>${to}`, link);
    return link.port;
  }
}

const startMsMax = 30_000;
/** More than `timeouts.shutdown`. */
const stopMsMax = 30_000;

function found<T>(map: ReadonlyMap<string, T>, name: string): T {
  const one = map.get(name);
  if (one === undefined) throw new Error(`nothing is called ${name}: there are ${[...map.keys()].join(", ")}`);
  return one;
}
