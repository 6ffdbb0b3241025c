// The helpers themselves: what other tests believe about kill -9, fsync, clusters and cut connections must be true.
import { spawn } from "node:child_process";
import { existsSync, readFileSync, readdirSync, writeFileSync } from "node:fs";
import { createConnection, createServer } from "node:net";
import { once } from "node:events";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { jetstream, jetstreamManager } from "@nats-io/jetstream";
import { connect } from "@nats-io/transport-node";
import { Redis } from "ioredis";
import { describe, expect, onTestFinished, test } from "vitest";
import type { AddressInfo, Socket } from "node:net";
import { removeFolder, temporaryFolder } from "./folder.ts";
import { startNats, startNatsCluster, startRedis } from "./servers.ts";
import { startTcpProxy } from "./tcp-proxy.ts";
import { waitFor } from "./wait.ts";

describe("nats", () => {
  test("fsync per write is on by default and the monitor says so", async () => {
    const server = await given(startNats());
    const without = await given(startNats({ syncAlways: false }));
    expect(await jetstreamConfig(server)).toMatchObject({ sync_always: true });
    expect(await jetstreamConfig(without)).not.toHaveProperty("sync_always");
  });

  test("an acknowledged message survives kill -9 and a restart on the same port", async () => {
    const server = await given(startNats());
    const { port, pid, url } = server;
    await publish(url, ["one", "two", "three"]);
    await server.kill9();
    expect(server.process.signalCode).toBe("SIGKILL");
    await server.restart();
    expect(server.port).toBe(port);
    expect(server.pid).not.toBe(pid);
    expect(await stored(url)).toEqual(["one", "two", "three"]);
  });

  test("a paused server keeps its connections and answers again when it is resumed", async () => {
    const server = await given(startNats());
    const client = await connect({ servers: server.url });
    onTestFinished(() => client.close());
    await server.pause();
    const answer = client.flush().then(() => "answered");
    await expect(server.monitor("/varz")).rejects.toThrow("did not answer");
    expect(await Promise.race([answer, Promise.resolve("silent")])).toBe("silent");
    server.resume();
    expect(await answer).toBe("answered");
  });

  test("a refused configuration fails at once with what the server said", async () => {
    await expect(startNats({ config: ["no_such_setting: 1"] })).rejects.toThrow(/no_such_setting/);
  });

  test("extra configuration and the payload limit reach the server", async () => {
    const server = await given(startNats({ maxPayload: 4096, config: ['authorization { token: "t" }'] }));
    await expect(connect({ servers: server.url, reconnect: false })).rejects.toThrow(/authorization/i);
    const client = await connect({ servers: server.url, token: "t" });
    onTestFinished(() => client.close());
    expect(client.info?.max_payload).toBe(4096);
  });

  test("close removes the folder and may be called twice", async () => {
    const server = await startNats();
    expect(existsSync(server.folder)).toBe(true);
    await server.close();
    await server.close();
    expect(existsSync(server.folder)).toBe(false);
    expect(server.process.signalCode).toBe("SIGKILL");
  });
});

test("a cluster of three takes an R3 stream, and loses its leader without losing messages", async () => {
  const cluster = await given(startNatsCluster(3));
  expect(cluster.servers.map((server) => server.name)).toContain((await cluster.metaLeader()).name);
  await publish(cluster.url, ["one", "two"], 3);
  const leader = await cluster.streamLeader("TEST");
  await leader.kill9();
  const next = await cluster.streamLeader("TEST");
  expect(next).not.toBe(leader);
  expect(await stored(next.url)).toEqual(["one", "two"]);
  await leader.restart();
  await cluster.ready();
});

describe("redis", () => {
  test("with the append-only file an answered write survives kill -9, without it nothing does", async () => {
    for (const appendonly of [true, false]) {
      const server = await given(startRedis({ appendonly }));
      const client = redisClient(server.url);
      await client.set("key", "value");
      await server.kill9();
      await server.restart();
      await waitFor(() => client.ping(), { what: "the client to reconnect" });
      expect(await client.get("key")).toBe(appendonly ? "value" : null);
    }
  });

  test("extra configuration wins", async () => {
    const server = await given(startRedis({ config: ["appendonly yes", "requirepass secret"] }));
    await expect(redisClient(server.url).ping()).rejects.toThrow("NOAUTH");
    const client = redisClient(server.url, "secret");
    expect(await client.config("GET", "appendonly")).toEqual(["appendonly", "yes"]);
  });
});

describe("tcp proxy", () => {
  test("cut resets what is open and refuses what is new, heal accepts again", async () => {
    const proxy = await given(startTcpProxy({ targetPort: await echoServer() }));
    const socket = await dial(proxy.port);
    expect(await echo(socket, "hello")).toBe("hello");
    expect(proxy.connections).toBe(1);
    const reset = closed(socket);
    await proxy.cut();
    await reset;
    expect(socket.errored).toMatchObject({ code: "ECONNRESET" });
    expect(proxy.connections).toBe(0);
    await expect(dial(proxy.port)).rejects.toMatchObject({ code: "ECONNREFUSED" });
    await proxy.heal();
    expect(await echo(await dial(proxy.port), "again")).toBe("again");
  });

  test("a paused proxy accepts and forwards nothing until it is healed, then everything in order", async () => {
    const proxy = await given(startTcpProxy({ targetPort: await echoServer() }));
    const before = await dial(proxy.port);
    expect(await echo(before, "a")).toBe("a");
    proxy.pause();
    const after = await dial(proxy.port);
    const answers = [echo(before, "b".repeat(300_000)), echo(after, "c")];
    // A bystander's round trip through the same event loop, twice: what was going to arrive has arrived.
    const bystander = await given(startTcpProxy({ targetPort: await echoServer() }));
    const other = await dial(bystander.port);
    await echo(other, "x");
    await echo(other, "x");
    expect(await Promise.race([...answers, Promise.resolve("nothing")])).toBe("nothing");
    await proxy.heal();
    expect(await Promise.all(answers)).toEqual(["b".repeat(300_000), "c"]);
  });

  test("a delay holds each direction that long", async () => {
    const proxy = await given(startTcpProxy({ targetPort: await echoServer() }));
    const socket = await dial(proxy.port);
    proxy.delay(60);
    const startedAt = performance.now();
    expect(await echo(socket, "slow")).toBe("slow");
    expect(performance.now() - startedAt).toBeGreaterThanOrEqual(115);
  });

  test("more than the proxy holds passes through whole, and an end is passed on", async () => {
    const proxy = await given(startTcpProxy({ targetPort: await echoServer() }));
    const socket = await dial(proxy.port);
    const sent = "0123456789abcdef".repeat(512 * 1024); // 8 MiB
    const ended = once(socket, "end");
    socket.end(sent);
    let received = "";
    socket.on("data", (chunk: Buffer) => (received += chunk.toString()));
    await ended;
    expect(received.length).toBe(sent.length);
    expect(received === sent).toBe(true);
  });

  test("a target that refuses looks like a reset", async () => {
    const proxy = await given(startTcpProxy({ targetPort: 1 }));
    const socket = await dial(proxy.port);
    await closed(socket);
    expect(socket.errored).toMatchObject({ code: "ECONNRESET" });
  });
});

describe("waiting and folders", () => {
  test("waitFor gives the truthy value, and its failure names the thing and the last error", async () => {
    let calls = 0;
    expect(await waitFor(() => (calls += 1) > 3 && `call ${calls}`, { what: "the fourth call" })).toBe("call 4");
    await expect(
      waitFor(() => Promise.reject(new Error("not today")), { timeoutMs: 20, what: "luck" }),
    ).rejects.toThrow(/20 ms.*luck.*not today/s);
    const hanging = new Promise<true>(() => {});
    await expect(waitFor(() => hanging, { timeoutMs: 20, what: "an answer" })).rejects.toThrow("an answer");
  });

  let earlier = "";
  test("a temporary folder is there during its test", () => {
    earlier = temporaryFolder("kept");
    writeFileSync(join(earlier, "file"), "");
    expect(readdirSync(earlier)).toEqual(["file"]);
  });
  test("a temporary folder is gone after its test", () => {
    expect(existsSync(earlier)).toBe(false);
  });

  test.each(["SIGKILL", "SIGTERM"] as const)(
    "after %s of a test process its servers and folders are gone",
    async (how) => {
      const program = [
        `import { startNats } from ${JSON.stringify(fileURLToPath(new URL("servers.ts", import.meta.url)))};`,
        `const server = await startNats();`,
        `console.log(JSON.stringify({ pid: server.pid, folder: server.folder }));`,
      ].join("\n");
      const folder = temporaryFolder("orphan");
      const file = join(folder, "program.mts");
      writeFileSync(file, program);
      const tsx = fileURLToPath(import.meta.resolve("tsx"));
      const { VITEST_WORKER_ID: _, ...env } = process.env;
      const child = spawn(process.execPath, ["--import", `file://${tsx}`, file], {
        stdio: ["ignore", "pipe", "inherit"],
        env,
      });
      onTestFinished(() => void child.kill("SIGKILL"));
      const [line] = (await once(child.stdout, "data")) as [Buffer];
      const left = JSON.parse(line.toString()) as { pid: number; folder: string };
      expect(existsSync(left.folder)).toBe(true);
      expect(isRunning(left.pid)).toBe(true);
      child.kill(how);
      await waitFor(() => !isRunning(left.pid) && !existsSync(left.folder), { what: "the orphans to be gone" });
      removeFolder(folder);
    },
  );
});

/** Closes the thing when the running test ends. */
async function given<T extends { close(): Promise<void> }>(starting: Promise<T>): Promise<T> {
  const thing = await starting;
  onTestFinished(() => thing.close());
  return thing;
}

async function jetstreamConfig(server: Awaited<ReturnType<typeof startNats>>): Promise<unknown> {
  return ((await server.monitor("/varz"))["jetstream"] as { config: unknown }).config;
}

async function publish(url: string, texts: readonly string[], replicas = 1): Promise<void> {
  const client = await connect({ servers: url.split(",") });
  const manager = await jetstreamManager(client);
  await manager.streams.add({ name: "TEST", subjects: ["test"], num_replicas: replicas });
  for (const text of texts) await jetstream(client).publish("test", text);
  await client.close();
}

async function stored(url: string): Promise<string[]> {
  const client = await connect({ servers: url });
  const manager = await jetstreamManager(client);
  const { state } = await manager.streams.info("TEST");
  const texts: string[] = [];
  for (let seq = state.first_seq; seq <= state.last_seq; seq += 1)
    texts.push((await manager.streams.getMessage("TEST", { seq }))?.string() ?? "missing");
  await client.close();
  return texts;
}

function redisClient(url: string, password?: string): Redis {
  const client = new Redis(url, { ...(password && { password }), retryStrategy: () => 20 });
  client.on("error", () => {}); // it reconnects
  onTestFinished(() => client.disconnect());
  return client;
}

async function echoServer(): Promise<number> {
  const server = createServer((socket) => {
    socket.on("error", () => {});
    socket.pipe(socket);
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  onTestFinished(() => void server.close());
  return (server.address() as AddressInfo).port;
}

async function dial(port: number): Promise<Socket> {
  const socket = createConnection(port, "127.0.0.1");
  await once(socket, "connect");
  socket.on("error", () => {}); // the tests read `errored`
  onTestFinished(() => void socket.destroy());
  return socket;
}

/** Unlike `once`, which rejects when an error comes first. */
function closed(socket: Socket): Promise<void> {
  return new Promise((resolve) => void socket.once("close", () => resolve()));
}

async function echo(socket: Socket, text: string): Promise<string> {
  socket.write(text);
  let received = "";
  // Ends when as much came back as was sent; a reset rejects.
  while (received.length < text.length) received += String((await once(socket, "data"))[0]);
  return received;
}

/** A zombie has ended too: it waits for an init that reaps late, or in some containers never. */
function isRunning(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return !/^State:\s+Z/m.test(readFileSync(`/proc/${pid}/status`, "utf8"));
  } catch {
    return false;
  }
}
