// Snapshots in NATS: the contract on a real server, and what servers and connections can suffer.
import { randomBytes } from "node:crypto";

import { StorageType, jetstream, jetstreamManager } from "@nats-io/jetstream";
import { Objm } from "@nats-io/obj";
import { connect } from "@nats-io/transport-node";
import type { NatsConnection } from "@nats-io/transport-node";
import { afterAll, beforeAll, describe, expect, onTestFinished, test, vi } from "vitest";

import { openNatsStore } from "../../../recorder/stores/nats.ts";
import type { NatsLimits, NatsStoreOptions } from "../../../recorder/stores/nats.ts";
import { objectBytesMax } from "../../../recorder/stores/store.ts";
import type { SnapshotStore } from "../../../recorder/stores/store.ts";
import { startNats, startNatsCluster } from "../../helpers/servers.ts";
import type { NatsServer } from "../../helpers/servers.ts";
import { startTcpProxy } from "../../helpers/tcp-proxy.ts";
import { listed, storeContract } from "./store.contract.ts";

let server: NatsServer;
let client: NatsConnection;
let buckets = 0;
beforeAll(async () => {
  server = await startNats();
  client = await connect({ servers: server.url, maxReconnectAttempts: -1, reconnectTimeWait: 50 });
});
afterAll(async () => {
  await client?.close();
  await server?.close();
});

const unavailable = { code: "GW_STORE_UNAVAILABLE" };
const newOptions = (): NatsStoreOptions => ({
  kind: "nats",
  bucket: `bucket-${++buckets}`,
  servers: [server.url],
  replicas: 1,
  credentialsFile: null,
  auth: null,
  tls: null,
});

storeContract("nats", () => Promise.resolve(newOptions()), { manyObjects: 300 });

describe("a store in NATS", () => {
  test("is an object store like any other: its clients read what is here, and it reads what they put", async () => {
    const options = newOptions();
    const store = await opened(options);
    const bucket = await new Objm(jetstream(client)).open(options.bucket);
    const ours = randomBytes(3_000_000);
    await store.put("chunks/ours", ours);
    expect(Buffer.from((await bucket.getBlob("chunks/ours")) ?? []).equals(ours)).toBe(true);
    const theirs = randomBytes(1_000_000);
    await bucket.putBlob({ name: "chunks/theirs" }, theirs);
    expect((await store.get("chunks/theirs"))?.equals(theirs)).toBe(true);
    expect((await bucket.list()).map(({ name }) => name).toSorted()).toEqual(["chunks/ours", "chunks/theirs"]);
    expect((await listed(store, "chunks/")).length).toBe(2);
    await bucket.delete("chunks/ours");
    expect(await store.get("chunks/ours")).toBeNull();
    expect((await listed(store, "")).map(({ name }) => name)).toEqual(["chunks/theirs"]);
    await store.remove("chunks/theirs");
    expect(await bucket.getBlob("chunks/theirs")).toBeNull();
    // Marks of removals are all that is left, and not for ever.
    expect((await streamOf(options)).state.messages).toBe(2);
    twoHoursLater();
    expect(await listed(store, "")).toEqual([]);
    expect((await streamOf(options)).state.messages).toBe(0);
  });

  test(
    "keeps what it acknowledged over kill -9 of the server, and finishes what was under way",
    { timeout: 60_000 },
    async () => {
      const options = newOptions();
      const store = await opened(options);
      const objects = [0, 1].map((n) => Buffer.alloc(8_000_000, `${n}`));
      for (let round = 1; round <= 3; round += 1) {
        const putting = (async () => {
          for (let n = 0; n < 6; n += 1) await store.put("object", objects[n % 2]!);
        })();
        await new Promise((resolve) => setTimeout(resolve, 20 + Math.random() * 60)); // anywhere in a put
        await server.kill9();
        await server.restart();
        await putting;
        expect((await store.get("object"))?.equals(objects[1]!)).toBe(true);
      }
      // A kill -9 may undo a removal that was acknowledged: chunks come back, and go with the others that nobody names.
      twoHoursLater();
      await opened(options);
      await expectNoLeftovers(store, options);
    },
  );

  test("knows what became of a put whose request or answer was lost on its way", { timeout: 60_000 }, async () => {
    const proxy = await startTcpProxy({ targetPort: server.port });
    onTestFinished(() => proxy.close());
    const options = newOptions();
    const direct = await opened(options);
    const store = await opened({ ...options, servers: [`nats://127.0.0.1:${proxy.port}`] });
    const objects = Array.from({ length: 4 }, (_, n) => Buffer.alloc(1_000_000 + n, `${n}`));
    await direct.put("object", objects[0]!);
    const over = new AbortController();
    const reading = (async () => {
      while (!over.signal.aborted) {
        const bytes = await direct.get("object");
        expect(objects.some((object) => bytes?.equals(object))).toBe(true);
      }
    })();
    reading.catch(() => {}); // met below
    // Two chunks; their answer is on its way for one delay, a look at what is there for two, the description for one, its answer for one.
    const delayMs = 20;
    for (const afterMs of [0.5, 2.5, 3.5, 4.5, 0.5, 2.5, 3.5, 4.5, 3.5, 4.5].map((delays) => delays * delayMs)) {
      proxy.delay(delayMs);
      let chunks = 0;
      const subscription = client.subscribe(`$O.${options.bucket}.C.>`, {
        callback: () => {
          if ((chunks += 1) === 2) setTimeout(() => void proxy.cut().then(() => proxy.heal()), afterMs);
        },
      });
      await client.flush();
      const object = objects[Math.floor(Math.random() * 4)]!;
      await store.put("object", object);
      expect((await direct.get("object"))?.equals(object), `cut after ${afterMs} ms`).toBe(true);
      subscription.unsubscribe();
    }
    over.abort();
    await reading;
    await store.put("object", objects[0]!);
    await expectNoLeftovers(direct, options);
  });

  test(
    "ends its calls in time when the server is away or says nothing, and goes on when it is back",
    { timeout: 60_000 },
    async () => {
      const limits = { callMs: 3_000, insistMs: 1_500 };
      const options = newOptions();
      const store = await opened(options, limits);
      await store.put("object", Buffer.from("x"));
      const failing = async (): Promise<void> => {
        const begunAt = performance.now();
        const calls = [
          store.get("object"),
          store.put("object", Buffer.from("x")),
          store.remove("none"),
          listed(store, ""),
          openNatsStore(options, limits),
        ];
        for (const result of await Promise.allSettled(calls)) {
          expect(result).toMatchObject({ status: "rejected", reason: unavailable });
        }
        expect(performance.now() - begunAt).toBeLessThan(9_000);
      };
      await server.kill9();
      await failing();
      await server.restart();
      const read = (): Promise<string> => store.get("object").then(String);
      await expect.poll(read, { timeout: 10_000 }).toBe("x");
      await server.pause();
      onTestFinished(() => server.resume());
      await failing();
      server.resume();
      await expect.poll(read, { timeout: 10_000 }).toBe("x");
    },
  );

  test("says that bucket or server are full, keeps what there was, and takes objects again when there is room", async () => {
    const narrow = await startNats({ jetstreamConfig: ["max_file_store: 24MB"] });
    onTestFinished(() => narrow.close());
    for (const limit of [{ max_bytes: 10_000_000 }, { max_bytes: undefined }]) {
      const options = { ...newOptions(), servers: [narrow.url] };
      const own = await connect({ servers: narrow.url });
      onTestFinished(() => own.close());
      await new Objm(jetstream(own)).create(options.bucket, limit.max_bytes === undefined ? {} : limit);
      const store = await opened(options);
      const kept = Buffer.alloc(4_000_000, "k");
      await store.put("kept", kept);
      for (const name of ["new", "kept"]) {
        const full = { code: "GW_STORE_FULL" };
        await expect(store.put(name, Buffer.alloc(objectBytesMax))).rejects.toMatchObject(full);
      }
      expect((await store.get("kept"))?.equals(kept)).toBe(true);
      expect(await listed(store, "")).toEqual([{ name: "kept", sizeBytes: kept.length }]);
      await store.remove("kept");
      await store.put("new", kept);
      // Room for a chunk, but not for the description.
      const filler = `$O.${options.bucket}.C.filler`;
      const { streams } = await jetstreamManager(own);
      await fill(own, filler, 500_000);
      if (limit.max_bytes !== undefined) {
        const { state } = await streams.info(`OBJ_${options.bucket}`);
        const sizeBytes = limit.max_bytes - state.bytes - filler.length - 200;
        await jetstream(own).publish(filler, new Uint8Array(Math.max(0, sizeBytes)));
        await expect(store.put("tiny", Buffer.from("x"))).rejects.toMatchObject({ code: "GW_STORE_FULL" });
        const { state: after } = await streams.info(`OBJ_${options.bucket}`, {
          subjects_filter: `$O.${options.bucket}.C.>`,
        });
        expect(Object.keys(after.subjects ?? {}).length).toBe(2); // the filler's, and those of the object that is there
      }
      // Not even room for the mark of a removal.
      for (const sizeBytes of [10_000, 100, 1]) await fill(own, filler, sizeBytes);
      await store.remove("new");
      expect(await listed(store, "")).toEqual([]);
      await streams.delete(`OBJ_${options.bucket}`);
    }
  });

  test("rejects objects whose chunks or description somebody changed", async () => {
    const options = newOptions();
    const store = await opened(options);
    const manager = await jetstreamManager(client);
    const corrupt = { code: "GW_SNAPSHOT_CORRUPT" };
    await store.put("object", randomBytes(2_000_000));
    const stream = await streamOf(options, `$O.${options.bucket}.C.>`);
    const [chunks = ""] = Object.keys(stream.state.subjects ?? {});
    const first = await manager.streams.getMessage(stream.config.name, { seq: stream.state.first_seq });
    await manager.streams.deleteMessage(stream.config.name, stream.state.first_seq);
    await expect(store.get("object")).rejects.toMatchObject(corrupt);
    await expect(store.get("object", { start: 0, end: 1 })).rejects.toMatchObject(corrupt);
    // All chunks are there again, in another order.
    await jetstream(client).publish(chunks, first!.data);
    await expect(store.get("object")).rejects.toMatchObject(corrupt);
    // A description that is none: putting the object again mends it, removing it works, too.
    const description = `$O.${options.bucket}.M.${Buffer.from("object").toString("base64")}`;
    for (const mend of [() => store.put("object", Buffer.from("x")), () => store.remove("object")]) {
      await jetstream(client).publish(description, "{}");
      await expect(store.get("object")).rejects.toMatchObject(corrupt);
      expect(await listed(await opened(options), "")).toEqual([]);
      await mend();
      expect(["x", "null"]).toContain(String(await store.get("object")));
    }
    expect(await listed(store, "")).toEqual([]);
  });

  test("refuses a bucket that could lose objects, and says why", async () => {
    const objm = new Objm(jetstream(client));
    for (const [settings, why] of [
      [{ ttl: 60_000_000_000 }, "expire"],
      [{ storage: StorageType.Memory }, "memory"],
    ] as const) {
      const options = newOptions();
      await objm.create(options.bucket, settings);
      const message = expect.stringContaining(why) as string;
      await expect(openNatsStore(options)).rejects.toMatchObject({ ...unavailable, message });
    }
    const options = newOptions();
    await opened(options);
    const message = expect.stringContaining("3 are wanted") as string;
    await expect(openNatsStore({ ...options, replicas: 3 })).rejects.toMatchObject({ ...unavailable, message });
  });

  test("removes chunks that a killed put left, once they are an hour old", async () => {
    const options = newOptions();
    const store = await opened(options);
    const bytes = randomBytes(1_000_000);
    await store.put("object", bytes);
    await jetstream(client).publish(`$O.${options.bucket}.C.abandoned`, randomBytes(1_000));
    const subjects = async () => (await streamOf(options)).state.num_subjects;
    await opened(options);
    expect(await subjects()).toBe(3);
    twoHoursLater();
    await opened(options);
    expect(await subjects()).toBe(2);
    expect((await store.get("object"))?.equals(bytes)).toBe(true);
  });

  test("leaves no chunks of objects that were replaced or removed", async () => {
    const options = newOptions();
    const [one, other] = [await opened(options), await opened(options)];
    await Promise.all(
      Array.from({ length: 20 }, (_, n) => {
        const store = n % 2 === 0 ? one : other;
        return n % 5 === 0 ? store.remove("a") : store.put(n % 3 === 0 ? "a" : "b", randomBytes(700_000));
      }),
    );
    await expectNoLeftovers(one, options);
  });

  test("keeps its objects on three servers, over the death of the one that leads", { timeout: 90_000 }, async () => {
    const cluster = await startNatsCluster(3);
    onTestFinished(() => cluster.close());
    const options = { ...newOptions(), servers: cluster.url.split(","), replicas: 3 };
    const store = await opened(options);
    const objects = [0, 1].map((n) => Buffer.alloc(3_000_000, `${n}`));
    await store.put("before", objects[0]!);
    const putting = (async () => {
      for (let n = 0; n < 10; n += 1) await store.put("object", objects[n % 2]!);
    })();
    const leader = await cluster.streamLeader(`OBJ_${options.bucket}`);
    await leader.kill9();
    await putting;
    expect((await store.get("object"))?.equals(objects[1]!)).toBe(true);
    expect((await store.get("before"))?.equals(objects[0]!)).toBe(true);
    expect((await listed(store, "")).length).toBe(2);
  });
});

async function opened(options: NatsStoreOptions, limits?: NatsLimits): Promise<SnapshotStore> {
  const store = await openNatsStore(options, limits);
  onTestFinished(() => store.close());
  return store;
}

/** Until the bucket refuses more. */
async function fill(connection: NatsConnection, subject: string, sizeBytes: number): Promise<void> {
  const publish = (): Promise<boolean> =>
    jetstream(connection)
      .publish(subject, new Uint8Array(sizeBytes))
      .then(
        () => true,
        () => false,
      );
  while (await publish());
}

async function streamOf({ bucket }: NatsStoreOptions, filter?: string) {
  const { streams } = await jetstreamManager(client);
  return streams.info(`OBJ_${bucket}`, filter === undefined ? {} : { subjects_filter: filter });
}

function twoHoursLater(): void {
  vi.useFakeTimers({ toFake: ["Date"], now: Date.now() + 2 * 3_600_000 });
  onTestFinished(() => void vi.useRealTimers());
}

/** One set of chunks an object. */
async function expectNoLeftovers(store: SnapshotStore, options: NatsStoreOptions): Promise<void> {
  const { state } = await streamOf(options, `$O.${options.bucket}.C.>`);
  expect(Object.keys(state.subjects ?? {}).length).toBe((await listed(store, "")).length);
}
