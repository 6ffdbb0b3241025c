// Snapshots in S3: the contract on a real server (Ceph's) and on a stub, and on the stub what servers can do.
import { afterAll, afterEach, beforeAll, describe, expect, onTestFinished, test } from "vitest";

import { openS3Store } from "../../../recorder/stores/s3.ts";
import type { S3Limits, S3Options } from "../../../recorder/stores/s3.ts";
import { objectBytesMax } from "../../../recorder/stores/store.ts";
import type { SnapshotStore } from "../../../recorder/stores/store.ts";
import { startS3 } from "../../helpers/s3.ts";
import type { S3Server } from "../../helpers/s3.ts";
import { startS3Stub } from "../../helpers/s3-stub.ts";
import type { S3Fault, S3Stub } from "../../helpers/s3-stub.ts";
import { freePort } from "../../helpers/servers.ts";
import { listed, storeContract } from "./store.contract.ts";

/** On a machine that has none, the server is unpacked from packages first. */
const unpackingMs = 300_000;
let server: S3Server;
let stub: S3Stub;
let prefixes = 0;
beforeAll(async () => {
  [server, stub] = await Promise.all([startS3(), startS3Stub()]);
}, unpackingMs);
afterAll(() => Promise.all([server?.close(), stub?.close()]));
afterEach(() => {
  stub.fault = () => null;
  stub.pageMax = 1_000;
  stub.hasRanges = true;
});

const unavailable = { code: "GW_STORE_UNAVAILABLE" };
const full = { code: "GW_STORE_FULL" };
const newOptions = (): S3Options => ({ kind: "s3", prefix: `a/prefix-${++prefixes}`, ...stub.access });

storeContract("s3 (Ceph)", async () => ({ kind: "s3", prefix: "", ...(await server.newBucket()) }), {
  manyObjects: 1_050,
  hasNoRanges: true,
});
storeContract("s3 (stub)", () => Promise.resolve(newOptions()), { manyObjects: 300 });

describe("a store in S3", () => {
  test("tries again what may pass by itself: no answer, half an answer, a server that is busy", async () => {
    const store = await opened(newOptions(), { attemptMs: 250, retryMs: 10_000 });
    const bytes = Buffer.alloc(300_000, "x");
    const faults: readonly S3Fault[] = [
      "reset",
      "hang",
      "cut",
      { status: 500 },
      { status: 503, code: "SlowDown" },
      { status: 429, body: "<html>later</html>" },
      { status: 400, code: "RequestTimeout" },
    ];
    for (const fault of faults) {
      const once = (method: string): void => {
        let left = 1;
        stub.fault = (line) => (line.startsWith(method) && left-- > 0 ? fault : null);
      };
      once("PUT");
      await store.put("object", bytes);
      once("GET");
      expect((await store.get("object"))?.equals(bytes), JSON.stringify(fault)).toBe(true);
      once("GET");
      expect((await listed(store, "")).length, JSON.stringify(fault)).toBe(1);
      once("DELETE");
      await store.remove("object");
      expect(await store.get("object")).toBeNull();
    }
  });

  test("gives up in time, and says what the server answered", async () => {
    for (const [fault, attemptMs, said] of [
      [{ status: 503, code: "SlowDown" }, 5_000, "503 SlowDown"],
      ["hang", 600, "no answer in time"],
      ["reset", 5_000, "ECONNRESET"],
    ] as const) {
      stub.fault = () => null;
      const store = await opened(newOptions(), { attemptMs, retryMs: 150 });
      stub.fault = () => fault;
      const message = expect.stringContaining(said) as string;
      for (const call of [
        () => store.put("a", Buffer.from("x")),
        () => store.get("a"),
        () => store.remove("a"),
        () => listed(store, ""),
      ]) {
        const begunAt = performance.now();
        await expect(call()).rejects.toMatchObject({ ...unavailable, message });
        expect(performance.now() - begunAt).toBeLessThan(attemptMs + 150 + 2_000);
      }
    }
  });

  test("says that there is no room, at once", async () => {
    const store = await opened(newOptions());
    for (const fault of [
      { status: 507 },
      { status: 403, code: "QuotaExceeded" },
      { status: 507, code: "XMinioStorageFull" },
    ]) {
      stub.fault = () => fault;
      const before = stub.requests.length;
      await expect(store.put("a", Buffer.from("x"))).rejects.toMatchObject(full);
      expect(stub.requests.length).toBe(before + 1);
    }
  });

  test("names the variables of refused credentials and shows neither key, on a real server and on the stub", async () => {
    const real: S3Options = { kind: "s3", prefix: "", ...(await server.newBucket()) };
    for (const options of [real, newOptions()]) {
      for (const wrong of [
        { ...options, secretAccessKey: "another-secret" },
        { ...options, accessKeyId: "ANOTHERKEY" },
      ]) {
        const error = await openS3Store(wrong).then(
          () => null,
          (error: unknown) => error as Error,
        );
        expect(error).toMatchObject(unavailable);
        expect(error?.message).toMatch(/AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY/);
        for (const secret of [wrong.secretAccessKey, wrong.accessKeyId]) expect(told(error)).not.toContain(secret);
      }
    }
  });

  test("says that there is no bucket, on a real server and on the stub", async () => {
    const real: S3Options = { kind: "s3", prefix: "", ...(await server.newBucket()) };
    const message = expect.stringContaining("no bucket nowhere") as string;
    for (const options of [real, newOptions()])
      await expect(openS3Store({ ...options, bucket: "nowhere" })).rejects.toMatchObject({ ...unavailable, message });
    // A bucket that goes later is not mistaken for an object that is not there.
    const store = await opened(newOptions());
    stub.fault = () => ({ status: 404, code: "NoSuchBucket" });
    for (const call of [() => store.get("a"), () => store.remove("a"), () => listed(store, "")])
      await expect(call()).rejects.toMatchObject(unavailable);
  });

  test("reads lists of many pages, and takes nothing else for a list", async () => {
    const store = await opened(newOptions(), { attemptMs: 10_000, retryMs: 50 });
    const names = Array.from({ length: 25 }, (_, n) => `object-${n}`);
    for (const name of names) await store.put(name, Buffer.from("x"));
    stub.pageMax = 7;
    expect((await listed(store, "")).map(({ name }) => name).toSorted()).toEqual(names.toSorted());
    const start = `<ListBucketResult><Contents><Key>a/object-1</Key></Contents>`;
    for (const body of [
      "",
      "<html>Please log in to this network</html>",
      "{}",
      start,
      `${start}<IsTruncated>true</IsTruncated></ListBucketResult>`,
    ]) {
      stub.fault = () => ({ status: 200, body });
      await expect(listed(store, ""), body).rejects.toMatchObject(unavailable);
    }
  });

  test("does with a server that ignores ranges", async () => {
    const store = await opened(newOptions());
    await store.put("object", Buffer.from("0123456789"));
    stub.hasRanges = false;
    expect(String(await store.get("object", { start: 3, end: 6 }))).toBe("345");
    await expect(store.get("object", { start: 3, end: 11 })).rejects.toMatchObject({ code: "GW_SNAPSHOT_CORRUPT" });
  });

  test("refuses an object that is larger than any, and lists no name that it would not give", async () => {
    const options = newOptions();
    const store = await opened(options);
    const [at, metadata] = [new Date(), {}];
    stub.objects.set(`${options.prefix}/large`, { bytes: Buffer.alloc(objectBytesMax + 1), at, metadata });
    stub.objects.set(`${options.prefix}/Not ours`, { bytes: Buffer.alloc(1), at, metadata });
    await expect(store.get("large")).rejects.toMatchObject({ code: "GW_SNAPSHOT_CORRUPT" });
    expect((await listed(store, "")).map(({ name }) => name)).toEqual(["large"]);
  });

  test("rejects bytes that are not those that were stored, unless they are after a second look", async () => {
    const options = newOptions();
    const store = await opened(options);
    await store.put("object", Buffer.from("stored"));
    const key = `${options.prefix}/object`;
    const stored = stub.objects.get(key)!;
    stub.objects.set(key, { ...stored, bytes: Buffer.from("st0red") });
    await expect(store.get("object")).rejects.toMatchObject({ code: "GW_SNAPSHOT_CORRUPT" });
    let reads = 0;
    stub.fault = () => {
      if ((reads += 1) === 2) stub.objects.set(key, stored);
      return null;
    };
    expect(String(await store.get("object"))).toBe("stored");
    // Of one that another program put there nothing is known.
    stub.objects.set(key, { ...stored, bytes: Buffer.from("theirs"), metadata: {} });
    expect(String(await store.get("object"))).toBe("theirs");
  });

  test("follows no redirect: a signature is for one server", async () => {
    const store = await opened(newOptions(), { attemptMs: 10_000, retryMs: 50 });
    const elsewhere = await startS3Stub();
    onTestFinished(() => elsewhere.close());
    for (const status of [301, 302, 307, 308]) {
      stub.fault = () => ({ status, location: `${elsewhere.access.endpoint}/stub/a` });
      const before = stub.requests.length;
      await expect(store.get("a")).rejects.toMatchObject(unavailable);
      expect(stub.requests.length).toBe(before + 1);
    }
    expect(elsewhere.requests).toEqual([]);
  });

  test("is unavailable where nothing listens", async () => {
    const options = { ...newOptions(), endpoint: `http://127.0.0.1:${await freePort()}` };
    await expect(openS3Store(options, { attemptMs: 1_000, retryMs: 300 })).rejects.toMatchObject(unavailable);
  });

  test("has what was put after a kill -9 of the real server, and goes on by itself", async () => {
    const store = await opened({ kind: "s3", prefix: "kept", ...(await server.newBucket()) });
    const bytes = Buffer.alloc(2_000_000, "k");
    await store.put("object", bytes);
    await server.kill9();
    const reading = store.get("object");
    await server.restart();
    expect((await reading)?.equals(bytes)).toBe(true);
    await store.put("object", Buffer.from("after"));
    expect(String(await store.get("object"))).toBe("after");
  });
});

async function opened(options: S3Options, limits?: S3Limits): Promise<SnapshotStore> {
  const store = await openS3Store(options, limits);
  onTestFinished(() => store.close());
  return store;
}

/** Everything that a log line might hold of an error. */
function told(error: unknown): string {
  if (!(error instanceof Error)) return JSON.stringify(error) ?? "";
  return `${error.stack}${JSON.stringify(error, Object.getOwnPropertyNames(error))}${told(error.cause)}`;
}
