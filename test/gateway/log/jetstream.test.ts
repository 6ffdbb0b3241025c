// The log on NATS: the contract on a real server, and what servers, streams and connections can suffer.
import { execFileSync } from "node:child_process";
import { cp, rm } from "node:fs/promises";
import { createServer } from "node:net";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";

import { DiscardPolicy, StorageType } from "@nats-io/jetstream";
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from "vitest";

import { openNats } from "../../../gateway/drivers/nats.ts";
import type { Nats } from "../../../gateway/drivers/nats.ts";
import { openJetStreamLog } from "../../../gateway/log/jetstream.ts";
import type { JetStreamLogOptions } from "../../../gateway/log/jetstream.ts";
import type { Appended, Log } from "../../../gateway/log/log.ts";
import { temporaryFolder } from "../../helpers/folder.ts";
import { freePort, startNats, startNatsCluster } from "../../helpers/servers.ts";
import type { NatsOptions, NatsServer } from "../../helpers/servers.ts";
import { waitFor } from "../../helpers/wait.ts";
import { MiB, appendMany, collect, creation, logContract, range, sequenceOf } from "./log.contract.ts";

let shared: NatsServer;
let sharedNats: Nats;
let services = 0;

beforeAll(async () => {
  shared = await startNats();
  sharedNats = await connected(shared.url);
});
afterAll(async () => {
  await sharedNats?.close();
  await shared?.close();
});

logContract("jetstream", async (maxBytes) => {
  const service = `contract ${++services}`;
  return {
    open: (create) => openJetStreamLog({ nats: sharedNats, service, replicas: 1, maxBytes, monitor: [], create }),
    close: async () => {
      const names = await sharedNats.manager.streams.names().next();
      for (const name of names) await sharedNats.manager.streams.delete(name);
    },
  };
});

describe("the log on NATS, when its server dies", () => {
  test(
    "loses nothing acknowledged, and its reader goes on without a gap and a stall",
    { timeout: 60_000 },
    async () => {
      const { log, server } = await newLog();
      const reading = new AbortController();
      const acknowledged = new Map<number, number>();
      let read = 0;
      const stored: number[] = [];
      const reader = (async () => {
        for await (const { sequence, bytes } of log.read(1, reading.signal)) {
          expect(sequence).toBe(++read);
          stored.push(Number(bytes.toString()));
        }
      })();
      const over = new AbortController();
      let next = 0;
      const appender = async (): Promise<void> => {
        while (!over.signal.aborted) {
          const n = ++next;
          // As a producer does it: the same bytes again until they are known to be stored.
          for (
            let appended = await log.append(Buffer.from(`${n}`));
            ;
            appended = await log.append(Buffer.from(`${n}`))
          ) {
            if (appended.kind === "stored") {
              acknowledged.set(n, appended.sequence);
              break;
            }
            await new Promise((resolve) => setTimeout(resolve, 5));
          }
        }
      };
      const appending = Promise.all(range(1, 8).map(appender));
      for (const round of [1, 2, 3]) {
        await waitFor(() => acknowledged.size > 300 * round && read > 300 * round, { what: "records to flow" });
        await server.kill9();
        const before = read;
        await server.restart();
        const up = performance.now();
        await waitFor(() => read > before + 20, { what: "the reader to go on" });
        expect(performance.now() - up).toBeLessThan(2_000);
      }
      over.abort();
      await appending;
      const tail = await log.tail();
      await waitFor(() => read === tail, { what: () => `the reader at ${tail}, not ${read}` });
      reading.abort();
      await reader;
      for (const [n, sequence] of acknowledged) expect(stored[sequence - 1]).toBe(n);
      expect(new Set(stored).size).toBe(next);
    },
  );

  test("refuses appends at once while there is no connection, tells listeners, and takes them again", async () => {
    const { log, server } = await newLog();
    const heard: boolean[] = [];
    log.onReachable((isReachable) => heard.push(isReachable));
    await server.kill9();
    await waitFor(() => !log.isReachable(), { what: "the log to notice" });
    const since = performance.now();
    expect(await log.append(Buffer.from("lost"))).toMatchObject({
      kind: "refused",
      error: { code: "GW_LOG_UNAVAILABLE" },
    });
    expect(performance.now() - since).toBeLessThan(100);
    await expect(log.tail()).rejects.toMatchObject({ code: "GW_LOG_UNAVAILABLE" });
    await server.restart();
    await waitFor(() => log.isReachable(), { what: "the log to be back" });
    expect(await log.append(Buffer.from("kept"))).toEqual({ kind: "stored", sequence: 1 });
    expect(heard).toEqual([false, true]);
  });

  test("calls an append unknown whose answer was lost with the connection, without waiting for its timeout", async () => {
    const { log, server } = await newLog({ appendTimeoutMs: 20_000 });
    await server.pause();
    const appending = log.append(Buffer.from("x"));
    await server.kill9();
    expect(await appending).toMatchObject({ kind: "unknown" });
  });

  test("calls an append unknown when the server is stopped; appended again, both occurrences are read", async () => {
    const { log, server } = await newLog({ appendTimeoutMs: 300 });
    await log.append(Buffer.from("first"));
    await server.pause();
    const appended: Appended[] = [];
    for (const _ of [1, 2]) appended.push(await log.append(Buffer.from("twice")));
    expect(appended.map(({ kind }) => kind)).toEqual(["unknown", "unknown"]);
    expect(log.isReachable()).toBe(false);
    server.resume();
    const records = await collect(log, 1, 3);
    expect(records.map(({ bytes }) => bytes.toString())).toEqual(["first", "twice", "twice"]);
    expect(sequenceOf(await log.append(Buffer.from("after")))).toBe(4);
    expect(log.isReachable()).toBe(true);
  });
});

describe("the log on NATS, when its server's disk is full", () => {
  test.skipIf(process.getuid?.() !== 0)("is full, and goes on as soon as there is room, over a kill -9", async () => {
    const disk = temporaryFolder("tmpfs");
    execFileSync("mount", ["-t", "tmpfs", "-o", "size=12m", "tmpfs", disk]);
    onTestFinished(() => void execFileSync("umount", ["-l", disk]));
    const storeDir = join(disk, "store");
    const { log, server } = await newLog({}, { storeDir, jetstreamConfig: ["max_file_store: 1GB"] });
    const record = Buffer.alloc(500_000, "d");
    const appended: Appended[] = [];
    for (const _ of range(1, 40)) appended.push(await log.append(record));
    const stored = appended.filter(({ kind }) => kind === "stored").length;
    expect(stored).toBeGreaterThan(10);
    expect(new Set(appended.slice(stored).map(({ kind }) => kind))).toEqual(new Set(["full"]));
    await server.kill9();
    await server.restart();
    await waitFor(() => log.isReachable(), { what: "the log to be back" });
    expect(await log.tail()).toBe(stored);
    execFileSync("mount", ["-o", "remount,size=64m", disk]);
    expect(await log.append(record)).toEqual({ kind: "stored", sequence: stored + 1 });
    expect((await collect(log, 1, stored + 1)).every(({ bytes }) => bytes.equals(record))).toBe(true);
  });
});

describe("the log on NATS, when it is not what it was", () => {
  test("tells a reader and refuses appends when the stream was recreated, also without a disconnect", async () => {
    const { log, nats } = await newLog();
    await appendMany(log, 1, 10);
    const reader = expect(collect(log, 1, 100)).rejects.toMatchObject({ code: "GW_LOG_REGRESSED" });
    const name = (await nats.manager.streams.names().next())[0]!;
    const { config } = await nats.manager.streams.info(name);
    await nats.manager.streams.delete(name);
    await nats.manager.streams.add({ ...config, metadata: { ...config.metadata, "br2k-epoch": "ffffffffffffffff" } });
    const first = await log.append(Buffer.from("into the wrong log"));
    expect(first).toMatchObject({ kind: "unknown", cause: { code: "GW_LOG_REGRESSED" } });
    expect(await log.append(Buffer.from("x"))).toMatchObject({ kind: "refused", error: { code: "GW_LOG_REGRESSED" } });
    await expect(log.tail()).rejects.toMatchObject({ code: "GW_LOG_REGRESSED" });
    await reader;
    expect(log.isReachable()).toBe(false);
  });

  test("appends nothing to another log that stands in its place after a restart, however long that is", async () => {
    const { log, server } = await newLog();
    await appendMany(log, 1, 10);
    const other = await newLog({ create: { epoch: "ffffffffffffffff", firstSequence: 1 } });
    await appendMany(other.log, 1, 20);
    await other.server.stop();
    const reader = expect(collect(log, 1, 100)).rejects.toMatchObject({ code: "GW_LOG_REGRESSED" });
    // All the time, so that one comes right after the reconnect.
    const over = new AbortController();
    const kinds = new Set<string>();
    const appending = (async () => {
      while (!over.signal.aborted) {
        kinds.add((await log.append(Buffer.from("wrong"))).kind);
        await new Promise((resolve) => setImmediate(resolve));
      }
    })();
    await server.kill9();
    const replaced = await startNats({ port: server.port, storeDir: other.server.storeDir });
    onTestFinished(() => replaced.close());
    await reader;
    over.abort();
    await appending;
    expect(await log.append(Buffer.from("wrong"))).toMatchObject({ error: { code: "GW_LOG_REGRESSED" } });
    const nats = await connected(replaced.url);
    expect((await nats.manager.streams.info("GW_shop")).state.last_seq).toBe(20);
    expect(kinds).toContain("refused");
  });

  test("tells of a stream that is gone", async () => {
    const { log, nats } = await newLog();
    await appendMany(log, 1, 3);
    const reader = expect(collect(log, 1, 100)).rejects.toMatchObject({ code: "GW_LOG_REGRESSED" });
    await nats.manager.streams.delete((await nats.manager.streams.names().next())[0]!);
    expect((await log.append(Buffer.from("x"))).kind).toBe("refused");
    await reader;
    await expect(log.tail()).rejects.toMatchObject({ code: "GW_LOG_REGRESSED" });
  });

  test("tells of a store that was rolled back to an earlier copy", async () => {
    const { log, server } = await newLog();
    await appendMany(log, 1, 10);
    const copy = join(temporaryFolder(), "copy");
    await server.stop();
    await cp(server.storeDir, copy, { recursive: true });
    await server.restart();
    await waitFor(() => log.isReachable(), { what: "the log to be back" });
    await appendMany(log, 11, 20);
    const reader = expect(collect(log, 15, 100)).rejects.toMatchObject({ code: "GW_LOG_REGRESSED" });
    await server.kill9();
    await rm(server.storeDir, { recursive: true });
    await cp(copy, server.storeDir, { recursive: true });
    await server.restart();
    await reader;
    expect(await log.append(Buffer.from("x"))).toMatchObject({ kind: "refused", error: { code: "GW_LOG_REGRESSED" } });
  });

  test("refuses a stream that was edited, at the start and while it runs, and goes on when it is mended", async () => {
    const { log, nats } = await newLog();
    await appendMany(log, 1, 3);
    const name = (await nats.manager.streams.names().next())[0]!;
    const { config } = await nats.manager.streams.info(name);
    const edits = [
      { discard: DiscardPolicy.Old },
      { max_age: 60_000_000_000 },
      { max_msgs: 100 },
      { allow_direct: true },
      { allow_rollup_hdrs: true },
      { no_ack: true },
      { duplicate_window: 120_000_000_000 },
      { subjects: [...config.subjects, "more.>"] },
    ];
    for (const edit of edits) {
      await nats.manager.streams.update(name, { ...config, ...edit });
      const field = Object.keys(edit)[0]!;
      const refused = openJetStreamLog({ ...options(nats), create: null });
      await expect(refused, field).rejects.toMatchObject({
        code: "GW_LOG_CONFIGURATION",
        message: expect.stringContaining(field) as string,
      });
      await expect(log.tail(), field).rejects.toMatchObject({ code: "GW_LOG_CONFIGURATION" });
      expect(await log.append(Buffer.from("x"))).toMatchObject({ error: { code: "GW_LOG_CONFIGURATION" } });
      await nats.manager.streams.update(name, { no_ack: false, ...config });
      expect(await log.tail(), field).toBe(3);
    }
    expect(sequenceOf(await log.append(Buffer.from("mended")))).toBe(4);
  });

  test("refuses a stream that somebody else made, and one it cannot make", async () => {
    const nats = sharedNats;
    await nats.manager.streams.add({ name: "GW_foreign", subjects: ["foreign"], storage: StorageType.File });
    onTestFinished(async () => void (await nats.manager.streams.delete("GW_foreign")));
    const foreign = openJetStreamLog({ ...options(nats), service: "foreign", create: creation });
    await expect(foreign).rejects.toMatchObject({ code: "GW_LOG_CONFIGURATION" });
    for (const impossible of [{ replicas: 3 }, { maxBytes: 1e15 }]) {
      const refused = openJetStreamLog({ ...options(nats), service: "impossible", ...impossible, create: creation });
      await expect(refused).rejects.toMatchObject({ code: "GW_LOG_CONFIGURATION" });
    }
  });

  test("two gateways that make the log at the same time get one log", async () => {
    const { nats } = await newLog();
    const other = await connected(nats.connection.getServer());
    const epochs = ["1111111111111111", "2222222222222222"];
    const logs = await Promise.all(
      [nats, other].map((nats, index) =>
        openJetStreamLog({
          ...options(nats),
          service: "race",
          create: { epoch: epochs[index]!, firstSequence: 1 },
        }),
      ),
    );
    expect(logs[0]?.epoch).toBe(logs[1]?.epoch);
    expect(epochs).toContain(logs[0]?.epoch);
  });
});

describe("the log on NATS says what it guarantees", () => {
  test("power loss, when the monitor of its server says that every write is synced", async () => {
    const { log } = await newLog({}, {}, (server) => [server.monitorUrl]);
    expect(await levelOf(log)).toMatch(/^power-loss: .*sync_interval/);
  });

  test("only a crash of the process without a monitor, without an answer, or with another server's", async () => {
    const { nats, server } = await newLog();
    const silent = `http://127.0.0.1:${await freePort()}`;
    const hanging = createServer();
    await new Promise<void>((resolve) => hanging.listen(0, "127.0.0.1", resolve));
    onTestFinished(() => void hanging.close());
    const hangingUrl = `http://127.0.0.1:${(hanging.address() as AddressInfo).port}`;
    const levels = [];
    for (const monitor of [[], [silent], [shared.monitorUrl], [hangingUrl]]) {
      levels.push(await levelOf(await openJetStreamLog({ ...options(nats), monitor })));
    }
    expect(levels[0]).toMatch(/^process-crash: .*log\.nats\.monitor names no/);
    expect(levels[1]).toMatch(/^process-crash: .*did not answer/);
    expect(levels[2]).toContain(`speaks for ${server.name}`);
    expect(levels[3]).toMatch(/^process-crash: .*did not answer/);
  });

  test("only a crash of the process when the server does not sync each write, and finds out again", async () => {
    const { log } = await newLog({}, { syncAlways: false }, (server) => [server.monitorUrl]);
    expect(await levelOf(log)).toMatch(/^process-crash: .*without sync_interval: always/);
  });
});

describe("the connection to NATS", () => {
  test("is refused by a message that says what to do when the server is too old", async () => {
    for (const version of ["2.9.10", "2.10.22", "2.2.0"]) {
      const url = await fakeServer({ version, jetstream: true });
      await expect(connected(url)).rejects.toMatchObject({
        code: "GW_LOG_SERVER_TOO_OLD",
        message: expect.stringMatching(/Upgrade .* 2\.10\.23/) as string,
      });
    }
    await (await connected(await fakeServer({ version: "2.10.23", jetstream: true }))).close();
  });

  test("is refused by a message that says what to do when JetStream is off", async () => {
    await expect(connected(await fakeServer({ version: "2.12.1" }))).rejects.toMatchObject({
      code: "GW_LOG_CONFIGURATION",
      message: expect.stringContaining("JetStream") as string,
    });
  });

  test("waits for a server that is not there yet, until it is told to stop", async () => {
    const port = await freePort();
    const connecting = connected(`nats://127.0.0.1:${port}`);
    const stopping = new AbortController();
    const hopeless = openNats({ servers: [`nats://127.0.0.1:${await freePort()}`], name: "test" }, stopping.signal);
    const server = await startNats({ port });
    onTestFinished(() => server.close());
    expect((await connecting).isConnected()).toBe(true);
    stopping.abort();
    await expect(hopeless).rejects.toMatchObject({ code: "GW_LOG_UNAVAILABLE" });
  });

  test("refuses wrong credentials at once", async () => {
    const server = await startNats({ config: ["authorization { token: s3cret }"] });
    onTestFinished(() => server.close());
    await expect(connected(server.url)).rejects.toMatchObject({ code: "GW_LOG_CONFIGURATION" });
  });
});

describe("a reader of the log on NATS", () => {
  test("holds a bounded part of the log in memory however slow it is taken from", { timeout: 60_000 }, async () => {
    const { log } = await newLog({ maxBytes: 1024 * MiB });
    const record = Buffer.alloc(1_000_000, "m");
    for (const _ of range(1, 200)) sequenceOf(await log.append(record));
    const before = heldBytes();
    const reading = new AbortController();
    const slow = log.read(1, reading.signal)[Symbol.asyncIterator]();
    await slow.next();
    // Long enough for a missing flow control to send everything: a fast reader is through in less.
    let fast = 0;
    const fastReading = new AbortController();
    for await (const _ of log.read(1, fastReading.signal)) if (++fast === 200) fastReading.abort();
    await new Promise((resolve) => setTimeout(resolve, 4_000)); // longer than the silence after which a feed counts as dead
    expect(heldBytes() - before).toBeLessThan(40 * MiB);
    for (const n of range(2, 200)) expect((await slow.next()).value).toMatchObject({ sequence: n });
    reading.abort();
    await slow.return?.();
  });
});

describe("the log on three servers", () => {
  test("survives the kill -9 of its leader: nothing is lost, readers go on", { timeout: 120_000 }, async () => {
    const cluster = await startNatsCluster();
    onTestFinished(() => cluster.close());
    const nats = await connected(...cluster.servers.map(({ url }) => url));
    const monitor = cluster.servers.map(({ monitorUrl }) => monitorUrl);
    const log = await openJetStreamLog({ ...options(nats), replicas: 3, monitor, appendTimeoutMs: 1_000 });
    if (log === null) throw new Error("there is no log");
    onTestFinished(() => log.close());
    expect(log.isTailExact).toBe(false);
    expect(await log.guarantee()).toMatchObject({ level: "power-loss" });
    const unproven = await openJetStreamLog({ ...options(nats), replicas: 3, monitor: monitor.slice(0, 2) });
    expect(await unproven?.guarantee()).toMatchObject({ level: "node-loss" });

    const reading = new AbortController();
    const stored: number[] = [];
    const reader = (async () => {
      for await (const { sequence, bytes } of log.read(1, reading.signal)) {
        expect(sequence).toBe(stored.length + 1);
        stored.push(Number(bytes.toString()));
      }
    })();
    const acknowledged = new Map<number, number>();
    let next = 0;
    const appendUntil = async (count: number): Promise<void> => {
      while (acknowledged.size < count) {
        const n = ++next;
        for (let isStored = false; !isStored;) {
          const appended = await log.append(Buffer.from(`${n}`));
          isStored = appended.kind === "stored";
          if (appended.kind === "stored") acknowledged.set(n, appended.sequence);
          else await new Promise((resolve) => setTimeout(resolve, 20));
        }
      }
    };
    await appendUntil(200);
    const leader = await cluster.streamLeader("GW_shop");
    await leader.kill9();
    await appendUntil(400);
    const tail = await log.tail();
    await waitFor(() => stored.length >= tail, {
      timeoutMs: 30_000,
      what: () => `${tail} records, not ${stored.length}`,
    });
    await leader.restart();
    await appendUntil(500);
    await waitFor(() => stored.length >= [...acknowledged.values()].at(-1)!, {
      timeoutMs: 30_000,
      what: "the last record",
    });
    reading.abort();
    await reader;
    for (const [n, sequence] of acknowledged) expect(stored[sequence - 1]).toBe(n);
  });
});

async function levelOf(log: Log | null): Promise<string> {
  const { level, why } = await log!.guarantee();
  return `${level}: ${why}`;
}

async function connected(...servers: string[]): Promise<Nats> {
  const nats = await openNats({ servers, name: "test" }, AbortSignal.timeout(15_000));
  try {
    onTestFinished(() => nats.close());
  } catch {
    // Opened by beforeAll, closed by afterAll.
  }
  return nats;
}

/** Of buffers that are still referred to. */
function heldBytes(): number {
  setFlagsFromString("--expose-gc");
  (runInNewContext("gc") as () => void)();
  return process.memoryUsage().arrayBuffers;
}

function options(nats: Nats): JetStreamLogOptions {
  return { nats, service: "shop", replicas: 1, maxBytes: 64 * MiB, monitor: [], create: creation };
}

/** A server of its own: these tests kill it. */
async function newLog(
  more: Partial<JetStreamLogOptions> = {},
  server: NatsOptions = {},
  monitor: (server: NatsServer) => string[] = () => [],
): Promise<{ log: Log; server: NatsServer; nats: Nats }> {
  const started = await startNats(server);
  onTestFinished(() => started.close());
  const nats = await connected(started.url);
  const log = await openJetStreamLog({ ...options(nats), monitor: monitor(started), ...more });
  if (log === null) throw new Error("there is no log");
  onTestFinished(() => log.close());
  return { log, server: started, nats };
}

/** Says hello as a server with these facts, and answers pings. */
async function fakeServer(facts: { version: string; jetstream?: boolean }): Promise<string> {
  const server = createServer((socket) => {
    const info = { server_id: "fake", max_payload: MiB, proto: 1, headers: true, ...facts };
    socket.write(`INFO ${JSON.stringify(info)}\r\n`);
    socket.on("data", (data) => {
      if (data.includes("PING\r\n")) socket.write("PONG\r\n");
    });
    socket.on("error", () => {});
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  onTestFinished(() => void server.close());
  return `nats://127.0.0.1:${(server.address() as AddressInfo).port}`;
}
