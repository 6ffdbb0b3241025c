// Real servers for tests: finds or unpacks them, starts, kills, pauses and restarts them. Others build on it: mariadb.ts, s3.ts.
import { execFile, spawn } from "node:child_process";
import { accessSync, constants, existsSync } from "node:fs";
import { chmod, mkdir, readFile, readdir, rename, rm, writeFile } from "node:fs/promises";
import { get } from "node:http";
import { connect, createServer } from "node:net";
import { delimiter, dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import type { ChildProcess } from "node:child_process";
import { createFolder, endWithUs, removeFolder } from "./folder.ts";
import { startTcpProxy } from "./tcp-proxy.ts";
import type { TcpProxy } from "./tcp-proxy.ts";
import { waitFor } from "./wait.ts";

// ---- starting ------------------------------------------------------------------------------------------------------

/** A server on the loopback address. Every promise resolves when the thing has happened, not when it was asked for. */
export interface Server {
  readonly url: string;
  readonly port: number;
  /** Of the present process: `restart` changes both. */
  readonly pid: number;
  readonly process: ChildProcess;
  /** Configuration and data; removed by `close`. */
  readonly folder: string;
  /** The last 64 KiB the server printed, over all restarts. */
  output(): string;
  kill9(): Promise<void>;
  /** SIGTERM, then waits for the end. */
  stop(): Promise<void>;
  /** SIGSTOP: connections stay, nothing answers. */
  pause(): Promise<void>;
  resume(): void;
  /** Same port, same folder; a server still running is stopped first. Resolves when it is ready. */
  restart(): Promise<void>;
  /** Kills it and removes the folder. May be called twice. */
  close(): Promise<void>;
}

export interface NatsServer extends Server {
  readonly name: string;
  readonly version: string;
  readonly monitorUrl: string;
  /** What the monitor says at a path such as `/varz`. */
  monitor(path: string): Promise<Record<string, unknown>>;
  /** JetStream's folder. */
  readonly storeDir: string;
}

export interface NatsOptions {
  /** Default true. */
  readonly jetstream?: boolean;
  /** Default: in the server's own folder, removed with it. A folder given here is left alone by `close`. */
  readonly storeDir?: string;
  /** `sync_interval: always`; default true. */
  readonly syncAlways?: boolean;
  /** Default: a free one, kept over restarts. */
  readonly port?: number;
  readonly name?: string;
  readonly maxPayload?: number;
  /** More lines inside `jetstream {}`, such as `max_file_store: 8MB`. */
  readonly jetstreamConfig?: readonly string[];
  /** The monitor speaks TLS, with the certificate of `tls {}` in `config`; then `monitor()` is not for use. */
  readonly monitorsByTls?: boolean;
  /** More lines at the top level: authorization, TLS, accounts. */
  readonly config?: readonly string[];
  /** Put before the server's command line: a program that runs it and becomes it, or leaves its pid to it. */
  readonly under?: readonly string[];
}

export async function startNats(options: NatsOptions = {}): Promise<NatsServer> {
  const binary = await natsServerBinary();
  const name = options.name ?? `test-${process.pid}-${(serial += 1)}`;
  const monitorPort = await freePort();
  const folder = createFolder("nats");
  const storeDir = options.storeDir ?? join(folder, "store");
  let version = "";
  const server = await startServer({
    what: `nats-server ${name}`,
    folder,
    port: options.port,
    command: async (port) => {
      const file = join(folder, "nats.conf");
      await writeFile(file, natsConfig({ ...options, name, port, monitorPort, storeDir }));
      const [program, ...rest] = options.under ?? [];
      return program === undefined ? [binary, "-c", file] : [program, ...rest, binary, "-c", file];
    },
    isReady: async (port) => {
      const hello = await ask(port, "", (text) => text.includes("\r\n"));
      const info = JSON.parse(hello.slice(hello.indexOf("{"), hello.indexOf("\r\n"))) as Record<string, unknown>;
      version = String(info["version"]);
      return info["server_name"] === name;
    },
  });
  const monitorUrl = `${options.monitorsByTls === true ? "https" : "http"}://127.0.0.1:${monitorPort}`;
  return extend(server, {
    name,
    version,
    storeDir,
    monitorUrl,
    url: `nats://127.0.0.1:${server.port}`,
    monitor: (path: string) => getJson(monitorUrl + path),
  });
}

export interface NatsCluster {
  readonly servers: readonly NatsServer[];
  /** All addresses, separated by commas. */
  readonly url: string;
  /** The server that leads the JetStream meta group; waits for one. */
  metaLeader(): Promise<NatsServer>;
  /** The server that leads a stream's group, as the others believe (a paused one counts); waits for one. */
  streamLeader(stream: string): Promise<NatsServer>;
  /** Waits until all servers are up and agree on a meta leader. */
  ready(): Promise<void>;
  /** What one server says to the others and hears of them is held back; clients still reach it. `mend` delivers it late. Needs `hasLinks`. */
  isolate(server: NatsServer): void;
  mend(): Promise<void>;
  close(): Promise<void>;
}

export interface NatsClusterOptions extends Omit<NatsOptions, "port" | "name" | "storeDir"> {
  /** The servers' routes lead through proxies of ours, so that `isolate` can hold them back. */
  readonly hasLinks?: boolean;
  /** The port by which one server (by number, from 0) reaches another that listens on `port`. Then they tell nobody of other ways. */
  readonly link?: (from: number, to: number, port: number) => Promise<number>;
}

/** A cluster that accepts R3 streams: resolves once all servers are healthy and agree on a meta leader. */
export async function startNatsCluster(
  size = 3,
  { hasLinks = false, link, ...options }: NatsClusterOptions = {},
): Promise<NatsCluster> {
  const routePorts: number[] = [];
  for (let n = 0; n < size; n += 1) routePorts.push(await freePort());
  const links = hasLinks ? await linksBetween(routePorts) : [];
  const portOf = (from: number, to: number, port: number): number | Promise<number> => {
    if (link !== undefined) return link(from, to, port);
    if (!hasLinks) return port;
    // Each pair is dialled from one side only, as two sides that dial through proxies sometimes end each other's connection; but each
    // server counts the routes it was given to know how large the cluster is. Nobody listens on the others.
    return links.find((one) => one.from === from && one.to === to)?.proxy.port ?? 1 + to;
  };
  const routesOf = async (from: number): Promise<string> => {
    const ports: number[] = [];
    for (const [to, port] of routePorts.entries())
      if (to !== from) ports.push(await portOf(from, to, port));
      else if (link === undefined) ports.push(port);
    return ports.map((port) => `nats-route://127.0.0.1:${port}`).join(", ");
  };
  // What servers tell each other and their clients would be ways around the links.
  const isDirect = link === undefined && !hasLinks;
  const silence = isDirect ? "" : `, no_advertise: true, advertise: "127.0.0.1:9"`;
  const cluster = `test-${process.pid}-${(serial += 1)}`;
  const started = await Promise.allSettled(
    routePorts.map(async (port, n) =>
      startNats({
        ...options,
        name: `${cluster}-n${n + 1}`,
        config: [
          `cluster { name: "${cluster}", listen: "127.0.0.1:${port}", routes: [${await routesOf(n)}]${silence} }`,
          ...(options.config ?? []),
        ],
      }),
    ),
  );
  const servers = started.flatMap((result) => (result.status === "fulfilled" ? [result.value] : []));
  const close = async (): Promise<void> =>
    void (await Promise.all([...servers, ...links.map(({ proxy }) => proxy)].map((one) => one.close())));
  const failure = started.find((result) => result.status === "rejected");
  if (failure) {
    await close();
    throw failure.reason;
  }

  // After a kill -9 its followers go on naming the dead leader for seconds: a server that has ended leads nothing.
  const byName = (name: unknown): NatsServer | undefined =>
    servers.find((server) => server.name === name && hasNotEnded(server.process));
  // A paused or killed server does not answer: whoever answers first with something speaks for the rest.
  const fromAny = async <T>(path: string, pick: (json: Record<string, unknown>) => T | undefined) => {
    const answers = await Promise.allSettled(servers.map(async (server) => pick(await server.monitor(path))));
    return answers.map((answer) => (answer.status === "fulfilled" ? answer.value : undefined)).find((v) => v);
  };
  const metaLeader = (): Promise<NatsServer> =>
    waitFor(() => fromAny("/jsz", (json) => byName(metaLeaderName(json))), {
      timeoutMs: 30_000,
      what: "a JetStream meta leader",
    });
  const streamLeader = (stream: string): Promise<NatsServer> =>
    waitFor(() => fromAny("/jsz?streams=true", (json) => byName(streamLeaderName(json, stream))), {
      timeoutMs: 30_000,
      what: `a leader of stream ${stream}`,
    });
  const ready = async (): Promise<void> => {
    await waitFor(
      async () => {
        const all = await Promise.all(servers.map((server) => server.monitor("/jsz")));
        // Not the streams: a reader that ended with a partition stays listed, and missing, until the server forgets it.
        await Promise.all(servers.map((server) => server.monitor("/healthz?js-server-only=true")));
        const leaders = new Set(all.map(metaLeaderName));
        const sizes = all.every((json) => (json["meta_cluster"] as { cluster_size?: number }).cluster_size === size);
        return sizes && leaders.size === 1 && byName([...leaders][0]);
      },
      {
        timeoutMs: 30_000,
        what: () => `a healthy cluster; its servers said:\n${servers.map((s) => s.output()).join("\n")}`,
      },
    );
  };
  try {
    if (options.jetstream !== false) await ready();
  } catch (error) {
    await close();
    throw error;
  }
  const isolate = (server: NatsServer): void => {
    const n = servers.indexOf(server);
    if (links.length === 0) throw new Error("the cluster has no links");
    for (const link of links) if (link.from === n || link.to === n) link.proxy.pause();
  };
  const mend = async (): Promise<void> => void (await Promise.all(links.map(({ proxy }) => proxy.heal())));
  const url = servers.map((server) => server.url).join(",");
  return { servers, url, metaLeader, streamLeader, ready, isolate, mend, close };
}

interface Link {
  readonly from: number;
  readonly to: number;
  readonly proxy: TcpProxy;
}

/** One for each pair. */
function linksBetween(routePorts: readonly number[]): Promise<Link[]> {
  const pairs = routePorts.flatMap((_, from) =>
    routePorts.flatMap((targetPort, to) => (from <= to ? [] : [{ from, to, targetPort }])),
  );
  return Promise.all(
    pairs.map(async ({ from, to, targetPort }) => ({ from, to, proxy: await startTcpProxy({ targetPort }) })),
  );
}

export interface RedisServer extends Server {
  readonly version: string;
}

export interface RedisOptions {
  /** Append-only file, fsync per write. Default false: then a kill -9 loses everything, as RDB saves are off. */
  readonly appendonly?: boolean;
  readonly port?: number;
  /** More lines of redis.conf; they come last and win. */
  readonly config?: readonly string[];
}

export async function startRedis(options: RedisOptions = {}): Promise<RedisServer> {
  const binary = await redisServerBinary();
  const folder = createFolder("redis");
  let version = "";
  const server = await startServer({
    what: "redis-server",
    folder,
    port: options.port,
    command: async (port) => {
      const file = join(folder, "redis.conf");
      const lines = ["bind 127.0.0.1", `port ${port}`, `dir ${JSON.stringify(folder)}`, "daemonize no", 'save ""'];
      lines.push(`appendonly ${options.appendonly ? "yes" : "no"}`, "appendfsync always", ...(options.config ?? []));
      await writeFile(file, `${lines.join("\n")}\n`);
      return [binary, file];
    },
    isReady: async (port, pid) => {
      // While it loads the append-only file, PING is answered with -LOADING and INFO with loading:1.
      const answer = await ask(port, "INFO\r\n", (text) => text.startsWith("-NOAUTH") || /\r\nloading:\d/.test(text));
      if (answer.startsWith("-NOAUTH")) return true;
      version = /redis_version:(\S+)/.exec(answer)?.[1] ?? "";
      return answer.includes(`process_id:${pid}\r\n`) && answer.includes("loading:0");
    },
  });
  return extend(server, { version, url: `redis://127.0.0.1:${server.port}` });
}

let serial = 0;

function natsConfig(
  o: NatsOptions & Readonly<{ name: string; port: number; monitorPort: number; storeDir: string }>,
): string {
  const lines = [
    `server_name: "${o.name}"`,
    `listen: "127.0.0.1:${o.port}"`,
    `${o.monitorsByTls === true ? "https" : "http"}: "127.0.0.1:${o.monitorPort}"`,
  ];
  if (o.maxPayload !== undefined) lines.push(`max_payload: ${o.maxPayload}`);
  if (o.jetstream !== false) {
    lines.push("jetstream {", `  store_dir: ${JSON.stringify(o.storeDir)}`);
    if (o.syncAlways !== false) lines.push("  sync_interval: always");
    lines.push(...(o.jetstreamConfig ?? []).map((line) => `  ${line}`), "}");
  }
  return `${[...lines, ...(o.config ?? [])].join("\n")}\n`;
}

function metaLeaderName(jsz: Record<string, unknown>): string | undefined {
  return (jsz["meta_cluster"] as { leader?: string } | undefined)?.leader;
}

function streamLeaderName(jsz: Record<string, unknown>, stream: string): string | undefined {
  const accounts = (jsz["account_details"] ?? []) as readonly {
    stream_detail?: readonly { name: string; cluster?: { leader?: string } }[];
  }[];
  const streams = accounts.flatMap((account) => account.stream_detail ?? []);
  return streams.find((detail) => detail.name === stream)?.cluster?.leader;
}

// ---- one process ---------------------------------------------------------------------------------------------------

export interface ServerPlan {
  readonly what: string;
  readonly folder: string;
  readonly port: number | undefined;
  command(port: number): Promise<readonly [string, ...string[]]>;
  isReady(port: number, pid: number): Promise<boolean>;
}

const readyWithinMs = 30_000;
const outputCharsMax = 64 * 1024;

/** What every kind of server shares; files with a kind of their own use it too. */
export async function startServer(plan: ServerPlan): Promise<Omit<Server, "url">> {
  let port = plan.port ?? (await freePort());
  let child: ChildProcess;
  let output = "";
  let closed = false;

  const isRunning = (): boolean => hasNotEnded(child);
  const launch = async (): Promise<void> => {
    const [file, ...args] = await plan.command(port);
    const from = output.length;
    const launched = spawn(file, args, { stdio: ["ignore", "pipe", "pipe"] });
    child = launched;
    const keep = (chunk: Buffer): void => {
      output = (output + chunk.toString()).slice(-outputCharsMax);
    };
    launched.stdout.on("data", keep);
    launched.stderr.on("data", keep);
    await new Promise<void>((resolve, reject) => {
      launched.once("spawn", resolve);
      launched.once("error", reject);
    });
    launched.once("exit", endWithUs(launched.pid!));
    let ended = false;
    await waitFor(
      async () => {
        ended = !isRunning();
        return ended || (await plan.isReady(port, launched.pid!));
      },
      { timeoutMs: readyWithinMs, what: () => `${plan.what} to be ready on port ${port}; it said:\n${output}` },
    );
    if (ended)
      throw new Error(`${plan.what} ended instead of listening on port ${port}; it said:\n${output.slice(from)}`);
  };
  const signal = async (name: "SIGKILL" | "SIGTERM"): Promise<void> => {
    if (!isRunning()) return;
    const ended = new Promise<true>((resolve) => child.once("exit", () => resolve(true)));
    child.kill("SIGCONT"); // a stopped process would not act on SIGTERM
    child.kill(name);
    await waitFor(() => ended, { what: () => `${plan.what} to end after ${name}; it said:\n${output}` });
  };
  const close = async (): Promise<void> => {
    if (closed) return;
    closed = true;
    await signal("SIGKILL");
    removeFolder(plan.folder);
  };

  // Ends with a server or an error: only a lost race for a port of our own choice is worth another try.
  for (let attempt = 1; ; attempt += 1) {
    try {
      await launch();
      break;
    } catch (error) {
      const isPortTaken = /address already in use/i.test(output);
      await signal("SIGKILL");
      if (plan.port === undefined && isPortTaken && attempt < 5) {
        port = await freePort();
        output = "";
        continue;
      }
      removeFolder(plan.folder);
      throw error;
    }
  }

  return {
    port,
    folder: plan.folder,
    get pid() {
      return child.pid!;
    },
    get process() {
      return child;
    },
    output: () => output,
    kill9: () => signal("SIGKILL"),
    stop: () => signal("SIGTERM"),
    pause: async () => {
      child.kill("SIGSTOP");
      await waitFor(() => isStopped(child.pid!), { what: `${plan.what} to stop` });
    },
    resume: () => void child.kill("SIGCONT"),
    restart: async () => {
      if (closed) throw new Error(`${plan.what} is closed`);
      await signal("SIGTERM");
      await launch();
    },
    close,
  };
}

function hasNotEnded(child: ChildProcess): boolean {
  return child.exitCode === null && child.signalCode === null;
}

/** Adds fields and keeps the getters, which a spread would freeze at their first value. */
export function extend<A extends object, B extends object>(server: A, more: B): A & B {
  return Object.defineProperties(server, Object.getOwnPropertyDescriptors(more)) as A & B;
}

async function isStopped(pid: number): Promise<boolean> {
  if (process.platform !== "linux") return true;
  const stat = await readFile(`/proc/${pid}/stat`, "utf8");
  return stat.slice(stat.lastIndexOf(")") + 2).startsWith("T");
}

const portsGiven = new Set<number>();

/**
 * A port nobody listens on, below the range the system gives to outgoing connections: there, one of those could take
 * the port while its server is down, and `restart` would fail now and then.
 */
export async function freePort(): Promise<number> {
  // Ends at the first free one; of 20,000 a few dozen are in use.
  for (;;) {
    const port = 12_000 + Math.floor(Math.random() * 20_000);
    if (portsGiven.has(port)) continue;
    const isFree = await new Promise<boolean>((resolve) => {
      const probe = createServer();
      probe.once("error", () => resolve(false));
      probe.listen(port, "127.0.0.1", () => probe.close(() => resolve(true)));
    });
    if (!isFree) continue;
    portsGiven.add(port);
    return port;
  }
}

/** Connects, sends, and returns what came back once it is enough. */
export function ask(port: number, line: string, isEnough: (text: string) => boolean): Promise<string> {
  return new Promise((resolve, reject) => {
    let text = "";
    const socket = connect(port, "127.0.0.1", () => void (line !== "" && socket.write(line)));
    socket.setTimeout(2_000, () => socket.destroy(new Error(`port ${port} accepts but does not answer`)));
    socket.on("data", (chunk) => {
      text += chunk.toString();
      if (!isEnough(text)) return;
      resolve(text);
      socket.destroy();
    });
    socket.on("error", reject);
    socket.on("close", () => reject(new Error(`port ${port} closed the connection after ${JSON.stringify(text)}`)));
  });
}

function getJson(url: string): Promise<Record<string, unknown>> {
  return new Promise((resolve, reject) => {
    // No agent: a kept-alive socket to a server that was killed since would fail the next question.
    const request = get(url, { agent: false, timeout: 2_000 }, (response) => {
      let text = "";
      response.setEncoding("utf8");
      response.on("data", (chunk: string) => (text += chunk));
      response.on("error", reject);
      response.on("end", () => {
        if (response.statusCode !== 200) return reject(new Error(`${url}: ${response.statusCode} ${text.trim()}`));
        try {
          resolve(JSON.parse(text) as Record<string, unknown>);
        } catch (error) {
          reject(error);
        }
      });
    });
    request.on("timeout", () => request.destroy(new Error(`${url} did not answer`)));
    request.on("error", reject);
  });
}

// ---- finding the binaries ------------------------------------------------------------------------------------------

export interface Wanted {
  /** Of the program. */
  readonly name: string;
  /** Default: named like the program. */
  readonly package?: string;
  /** More programs of the package or of `libraries`, put beside the first. */
  readonly companions?: readonly string[];
  readonly variable: string;
  /** What makes it say its version; default `-v`. */
  readonly versionFlag?: string;
  readonly versionMin: string;
  /** Suites of the Debian pool to unpack from, best first. "own" is the machine's. */
  readonly suites: readonly string[];
  /** Unpacked too, when the package needs them. */
  readonly libraries: RegExp | undefined;
  /** Libc comes along too and starts the program: that of another suite is newer than the machine's. */
  readonly hasOwnLibc?: boolean;
}

// 2.10.23: older ones lost streams at a kill -9. The package is a Go program that needs libc only and runs on older releases.
const nats: Wanted = {
  name: "nats-server",
  variable: "NATS_SERVER",
  versionMin: "2.10.23",
  suites: ["trixie", "sid"],
  libraries: undefined,
};

// Its libraries come along, so that a machine without any of them will do. Those of libc must be the machine's own.
const redis: Wanted = {
  name: "redis-server",
  variable: "REDIS_SERVER",
  versionMin: "6.2.0",
  suites: ["own"],
  libraries: /^(?:redis|lua|lib(?!c6$|c-bin$))/,
};

const found = new Map<Wanted, Promise<string>>();

/**
 * The path of a nats-server the tests can use: $NATS_SERVER, PATH, the cache folder of this checkout, or freshly
 * unpacked into it. SERVERS_IGNORE_PATH=1 skips PATH, to try what a bare machine does.
 */
export const natsServerBinary = (): Promise<string> => find(nats);

/** The same for redis-server and $REDIS_SERVER. */
export const redisServerBinary = (): Promise<string> => find(redis);

/** The same for any other program, and its variable. */
export const serverBinary = (wanted: Wanted): Promise<string> => find(wanted);

/** What `-v` says; undefined when the file does not run. */
export async function versionOf(binary: string, flag = "-v"): Promise<string | undefined> {
  try {
    const { stdout } = await run(binary, [flag], { timeout: 10_000 });
    return /\sv?=?(\d+\.\d+(?:\.\d+)?)/.exec(stdout)?.[1];
  } catch {
    return undefined;
  }
}

const run = promisify(execFile);
const cacheFolder = fileURLToPath(new URL("../../.cache/servers/", import.meta.url));

function find(wanted: Wanted): Promise<string> {
  const present = found.get(wanted) ?? search(wanted);
  found.set(wanted, present);
  return present;
}

async function search(wanted: Wanted): Promise<string> {
  const { name, variable, versionMin } = wanted;
  const tried: string[] = [];
  const isGood = async (binary: string, where: string): Promise<boolean> => {
    const version = await versionOf(binary, wanted.versionFlag);
    if (version !== undefined && isAtLeast(version, versionMin)) return true;
    tried.push(version === undefined ? `${where}: ${binary} does not run` : `${where}: ${binary} is ${version}`);
    return false;
  };

  const given = process.env[variable];
  if (given) {
    if (await isGood(given, `$${variable}`)) return given;
    throw cannotHave(wanted, tried);
  }
  tried.push(`$${variable}: not set`);

  if (process.env["SERVERS_IGNORE_PATH"]) tried.push("PATH: skipped by $SERVERS_IGNORE_PATH");
  else {
    const binary = onPath(name);
    if (binary === undefined) tried.push("PATH: not there");
    else if (await isGood(binary, "PATH")) return binary;
    else process.stderr.write(`tests: passing over ${tried.at(-1)}, ${versionMin} or newer is needed\n`);
  }

  const cached = join(cacheFolder, name, name);
  if (existsSync(cached) && (await isGood(cached, "cache"))) return cached;
  await mkdir(cacheFolder, { recursive: true });
  return withLock(join(cacheFolder, `.${name}.lock`), async () => {
    // Another process may have unpacked it while this one waited for the lock.
    if (existsSync(cached) && (await isGood(cached, "cache"))) return cached;
    const work = join(cacheFolder, `.${name}.${process.pid}`);
    try {
      const unpacked = await unpack(wanted, work, tried);
      if (!unpacked) throw cannotHave(wanted, tried);
      await rm(join(cacheFolder, name), { recursive: true, force: true });
      await rename(unpacked, join(cacheFolder, name));
      return cached;
    } finally {
      await rm(work, { recursive: true, force: true });
    }
  });
}

function cannotHave({ name, package: its = name, variable, versionMin }: Wanted, tried: readonly string[]): Error {
  return new Error(
    `The tests need ${name} ${versionMin} or newer and found none.\n` +
      tried.map((line) => `  - ${line}\n`).join("") +
      `Mend: install the package ${its} (${versionMin} or newer) so that it is on PATH, or set ` +
      `${variable}=/path/to/${name}.\nOn Debian the tests unpack it by themselves when apt-get, dpkg, the package ` +
      `debian-archive-keyring and a reachable Debian mirror in the apt sources are there.`,
  );
}

function isAtLeast(version: string, min: string): boolean {
  return version.localeCompare(min, "en", { numeric: true }) >= 0;
}

function onPath(name: string): string | undefined {
  // The sbin folders: Debian puts nats-server there, and they are not on everyone's PATH.
  const folders = [...(process.env["PATH"] ?? "").split(delimiter), "/usr/local/sbin", "/usr/sbin"];
  return folders
    .filter(Boolean)
    .map((folder) => join(folder, name))
    .find(isExecutable);
}

function isExecutable(file: string): boolean {
  try {
    accessSync(file, constants.X_OK);
    return true;
  } catch {
    return false;
  }
}

/** One process at a time. The lock of a process that is gone is taken over. */
async function withLock<T>(lock: string, work: () => Promise<T>): Promise<T> {
  const mine = `${lock}.${process.pid}`;
  await mkdir(mine, { recursive: true });
  await writeFile(join(mine, "pid"), String(process.pid));
  try {
    // A rename onto a folder that is not empty fails: so the lock never exists without its owner's pid.
    await waitFor(
      async () => {
        const owner = await readFile(join(lock, "pid"), "utf8").catch(() => undefined);
        if (owner !== undefined && !isAlive(Number(owner))) await rm(lock, { recursive: true, force: true });
        return rename(mine, lock).then(() => true);
      },
      { timeoutMs: 300_000, what: `the lock ${lock} (remove it if no test is running)` },
    );
  } catch (error) {
    await rm(mine, { recursive: true, force: true });
    throw error;
  }
  try {
    return await work();
  } finally {
    await rm(lock, { recursive: true, force: true });
  }
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "EPERM";
  }
}

// ---- unpacking from the Debian pool --------------------------------------------------------------------------------

/**
 * Downloads the package through a private apt state and unpacks it below `work`: needs no root and leaves the machine's
 * apt and packages as they are, and apt checks the signatures against the installed Debian keyring.
 */
async function unpack(wanted: Wanted, work: string, tried: string[]): Promise<string | undefined> {
  if (!["apt-get", "apt-cache", "dpkg"].every((tool) => onPath(tool))) {
    tried.push("Debian pool: this machine has no apt-get, apt-cache and dpkg");
    return undefined;
  }
  const keyring = ["pgp", "gpg"].map((end) => `/usr/share/keyrings/debian-archive-keyring.${end}`).find(existsSync);
  if (keyring === undefined) {
    tried.push("Debian pool: the package debian-archive-keyring is not installed");
    return undefined;
  }
  const ownSuite = /^VERSION_CODENAME=(\w+)/m.exec(await readFile("/etc/os-release", "utf8"))?.[1];
  const mirrors = await debianMirrors(ownSuite);
  if (mirrors.length === 0) tried.push("Debian pool: the apt sources name no archive with a component main");
  process.stderr.write(`tests: unpacking ${wanted.name} from the Debian pool into ${cacheFolder} (once)\n`);

  for (const suite of wanted.suites.map((suite) => (suite === "own" ? ownSuite : suite))) {
    for (const mirror of suite === undefined ? [] : mirrors) {
      const place = `${mirror} ${suite}`;
      try {
        await rm(work, { recursive: true, force: true });
        const root = await unpackFrom(wanted, work, `[signed-by=${keyring} arch=ARCH] ${place} main`);
        const version = await versionOf(join(root, wanted.name), wanted.versionFlag);
        if (version !== undefined && isAtLeast(version, wanted.versionMin)) return root;
        tried.push(
          `Debian pool, ${place}: its ${wanted.name} ${version === undefined ? "does not run" : `is ${version}`}`,
        );
      } catch (error) {
        const { stderr, message } = error as Error & { stderr?: string };
        const lines = (stderr || message).split("\n").filter((line) => /^[EW]: |^Error/.test(line));
        tried.push(`Debian pool, ${place}: ${lines.slice(0, 3).join("; ") || message}`);
      }
    }
  }
  return undefined;
}

/** The archives of the machine's own apt configuration, likeliest first: the repository itself names no host. */
async function debianMirrors(ownSuite: string | undefined): Promise<string[]> {
  const format = "$(RELEASE) $(COMPONENT) $(REPO_URI)";
  const { stdout } = await run("apt-get", ["indextargets", "--no-release-info", "--format", format]);
  const targets = stdout.split("\n").map((line) => line.split(" "));
  const ofMain = targets.filter(([, component]) => component === "main");
  const ofOwn = ofMain.filter(([release]) => release === ownSuite);
  return [...new Set([...ofOwn, ...ofMain].map(([, , uri]) => uri ?? ""))].filter(Boolean);
}

async function unpackFrom(wanted: Wanted, work: string, source: string): Promise<string> {
  const root = join(work, "root");
  const debs = join(work, "debs");
  for (const folder of [root, debs, join(work, "state/lists/partial"), join(work, "cache/archives/partial")])
    await mkdir(folder, { recursive: true });
  const arch = (await run("dpkg", ["--print-architecture"])).stdout.trim();
  await writeFile(join(work, "sources.list"), `deb ${source.replace("ARCH", arch)}\n`);
  await writeFile(join(work, "status"), "");
  const conf = join(work, "apt.conf");
  await writeFile(conf, aptConfig(work));
  const options = { cwd: debs, env: { ...process.env, LC_ALL: "C" }, timeout: 240_000, maxBuffer: 64 * 1024 * 1024 };

  await run("apt-get", ["-c", conf, "update"], options);
  const its = wanted.package ?? wanted.name;
  const packages = [its];
  if (wanted.libraries) {
    const { stdout } = await run("apt-cache", ["-c", conf, "depends", "--recurse", "-i", its], options);
    packages.push(...neededOf(its, stdout, wanted.libraries));
  }
  await run("apt-get", ["-c", conf, "download", ...packages], options);
  for (const deb of await readdir(debs)) await run("dpkg", ["-x", join(debs, deb), root], options);
  for (const program of [wanted.name, ...(wanted.companions ?? [])])
    await writeLauncher(program, root, wanted.hasOwnLibc);
  return root;
}

/** apt's own folders, and none of the machine's: its sources, pins, locks and hooks stay out of it. */
function aptConfig(work: string): string {
  const settings: Record<string, string> = {
    "Dir::Etc::sourcelist": join(work, "sources.list"),
    "Dir::Etc::sourceparts": "/dev/null",
    "Dir::Etc::preferences": "/dev/null",
    "Dir::Etc::preferencesparts": "/dev/null",
    "Dir::State": join(work, "state"),
    "Dir::State::status": join(work, "status"),
    "Dir::Cache": join(work, "cache"),
    "APT::Sandbox::User": "root", // the sandbox user may not enter this folder
    "APT::Update::Error-Mode": "any",
    "Acquire::Languages": "none",
    "Acquire::Retries": "2",
  };
  const cleared = [
    "APT::Default-Release",
    "APT::Update::Pre-Invoke",
    "APT::Update::Post-Invoke",
    "APT::Update::Post-Invoke-Success",
    "Acquire::IndexTargets::deb::DEP-11",
  ];
  const lines = Object.entries(settings).map(([key, value]) => `${key} ${JSON.stringify(value)};`);
  return `${[...lines, ...cleared.map((key) => `#clear ${key};`)].join("\n")}\n`;
}

/** Walks `apt-cache depends --recurse`: what the package needs, directly or through what is kept. */
function neededOf(name: string, listing: string, isKept: RegExp): string[] {
  const needs = new Map<string, string[]>();
  let current: string[] = [];
  let isAlternative = false;
  for (const line of listing.split("\n")) {
    const [, mark, target = ""] = /^ ([ |])(?:Pre)?Depends: (\S+)/.exec(line) ?? [];
    if (/^\S/.test(line)) needs.set(line.trim(), (current = []));
    else if (mark !== undefined) {
      // "|Depends: a" says that the next line is another way to satisfy the same need: the first one is taken.
      if (!isAlternative && isKept.test(target)) current.push(target);
      isAlternative = mark === "|";
    }
  }
  const kept = new Set<string>();
  const pending = [name];
  // Ends when nothing new is needed: each package enters once.
  for (let next = pending.pop(); next !== undefined; next = pending.pop()) {
    const fresh = (needs.get(next) ?? []).filter((need) => need !== name && !kept.has(need));
    for (const need of fresh) kept.add(need);
    pending.push(...fresh);
  }
  return [...kept];
}

/** `root/NAME` starts the program wherever the package put it; `exec` keeps the pid, so a kill -9 hits the server. */
async function writeLauncher(name: string, root: string, hasOwnLibc = false): Promise<void> {
  const files = await readdir(root, { recursive: true });
  const program = files.find((file) => /(?:^|\/)s?bin\//.test(file) && file.endsWith(`/${name}`));
  if (program === undefined) throw new Error(`the package has no program ${name}`);
  const libraries = [...new Set(files.filter((file) => /\.so(?:\.\d+)*$/.test(file)).map((file) => dirname(file)))];
  const path = libraries.map((folder) => `$here/${folder}`).join(":");
  const launcher = join(root, name);
  const loader = files.find((file) => /(?:^|\/)ld-linux[^/]*\.so\.\d+$/.test(file));
  // With the loader's option instead of the variable, children of the program still get the machine's own libraries.
  const start =
    hasOwnLibc && loader !== undefined
      ? `exec "$here/${loader}" --library-path "${path}" "$here/${program}" "$@"`
      : `${path && `export LD_LIBRARY_PATH="${path}"\n`}exec "$here/${program}" "$@"`;
  await writeFile(launcher, `#!/bin/sh\nhere=\${0%/*}\n${start}\n`);
  await chmod(launcher, 0o755);
}
