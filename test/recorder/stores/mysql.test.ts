// Snapshots in MariaDB: the contract on a real server, and what a database can suffer.
import { randomBytes } from "node:crypto";

import { afterAll, beforeAll, describe, expect, onTestFinished, test } from "vitest";

import { openMysqlStore } from "../../../recorder/stores/mysql.ts";
import type { MysqlLimits, MysqlOptions } from "../../../recorder/stores/mysql.ts";
import { objectBytesMax } from "../../../recorder/stores/store.ts";
import type { SnapshotStore } from "../../../recorder/stores/store.ts";
import { startMariadb } from "../../helpers/mariadb.ts";
import type { MariadbServer } from "../../helpers/mariadb.ts";
import { startTcpProxy } from "../../helpers/tcp-proxy.ts";
import { listed, storeContract } from "./store.contract.ts";

/** On a machine that has none, servers are unpacked from packages first. */
const unpackingMs = 300_000;
let server: MariadbServer;
/** Its files cannot grow beyond 52 MiB, and its packets are small. */
let narrow: MariadbServer;
beforeAll(async () => {
  [server, narrow] = await Promise.all([
    startMariadb(),
    startMariadb({ fileBytesMax: 52 * 1024 ** 2, options: ["--max-allowed-packet=64K"] }),
  ]);
}, unpackingMs);
afterAll(() => Promise.all([server?.close(), narrow?.close()]));

const unavailable = { code: "GW_STORE_UNAVAILABLE" };
const newOptions = async (on = server): Promise<MysqlOptions> => ({ kind: "mysql", ...(await on.newDatabase()) });

storeContract("mysql", () => newOptions(), { manyObjects: 1_100 });

describe("a store in MariaDB", () => {
  test("keeps every object whole over kill -9 of the server in the middle of puts, and goes on by itself", async () => {
    const options = await newOptions();
    const store = await opened(options);
    const objects = [0, 1].map((n) => Buffer.alloc(6_000_000, `${n}`));
    await store.put("object", objects[0]!);
    for (let round = 1; round <= 3; round += 1) {
      const over = new AbortController();
      const putting = (async () => {
        // Ends once the server is gone; what is retried meanwhile is carried out after its return.
        for (let n = 0; !over.signal.aborted; n += 1) await store.put("object", objects[n % 2]!).catch(() => {});
      })();
      await new Promise((resolve) => setTimeout(resolve, 30 + Math.random() * 100)); // anywhere in a put
      await server.kill9();
      over.abort();
      await server.restart();
      await putting;
      const bytes = await store.get("object");
      expect(objects.some((object) => bytes?.equals(object))).toBe(true);
      expect(await orphans(options)).toBe(0);
    }
    await store.put("object", Buffer.from("after"));
    expect((await store.get("object"))?.toString()).toBe("after");
  });

  test("is unavailable while the server is away, and available when it is back", async () => {
    const options = await newOptions();
    const store = await opened(options, { callMs: 5_000, retryMs: 200 });
    await store.put("object", Buffer.from("x"));
    await server.kill9();
    await expect(store.get("object")).rejects.toMatchObject(unavailable);
    await expect(store.put("object", Buffer.from("y"))).rejects.toMatchObject(unavailable);
    await expect(store.remove("object")).rejects.toMatchObject(unavailable);
    await expect(listed(store, "")).rejects.toMatchObject(unavailable);
    await expect(openMysqlStore(options, { callMs: 5_000, retryMs: 200 })).rejects.toMatchObject(unavailable);
    await server.restart();
    expect((await store.get("object"))?.toString()).toBe("x");
  });

  test("ends its calls in time when the server is there but says nothing", async () => {
    const options = await newOptions();
    const store = await opened(options, { callMs: 1_500, retryMs: 100 });
    await store.put("object", Buffer.from("x"));
    await server.pause();
    onTestFinished(() => server.resume());
    const begunAt = performance.now();
    const calls = [
      store.get("object"),
      store.put("object", Buffer.from("y")),
      store.remove("object"),
      listed(store, ""),
    ];
    const results = await Promise.allSettled(calls);
    const opening = await Promise.allSettled([openMysqlStore(options, { callMs: 1_500, retryMs: 100 })]);
    expect(performance.now() - begunAt).toBeLessThan(8_000);
    server.resume();
    for (const result of [...results, ...opening])
      expect(result).toMatchObject({ status: "rejected", reason: unavailable });
    // Whether those were carried out is not known; that the store is well again is.
    await expect.poll(() => store.put("object", Buffer.from("z")).then(() => "put"), { timeout: 5_000 }).toBe("put");
    expect((await store.get("object"))?.toString()).toBe("z");
  });

  test("is not disturbed by connections that died while nobody used them", async () => {
    const options = await newOptions();
    const proxy = await startTcpProxy({ targetPort: options.port });
    onTestFinished(() => proxy.close());
    const store = await opened({ ...options, port: proxy.port });
    await Promise.all([1, 2, 3, 4].map((n) => store.put(`object-${n}`, Buffer.from(`${n}`))));
    const asked = (): Promise<string[]> =>
      Promise.all([1, 2, 3, 4].map(async (n) => String(await store.get(`object-${n}`))));
    await proxy.cut();
    await proxy.heal();
    expect(await asked()).toEqual(["1", "2", "3", "4"]);
    const threads = await server.query(`SELECT id FROM information_schema.processlist WHERE user = '${options.user}'`);
    for (const { id } of threads) await server.query(`KILL ${String(id)}`);
    expect(threads.length).toBeGreaterThan(0);
    expect(await asked()).toEqual(["1", "2", "3", "4"]);
    await store.put("object-1", Buffer.from("5"));
    expect(await asked()).toEqual(["5", "2", "3", "4"]);
  });

  test("leaves no rows of objects that were replaced or removed", async () => {
    const options = await newOptions();
    const [one, other] = [await opened(options), await opened(options)];
    const names = ["a", "b"];
    await Promise.all(
      Array.from({ length: 24 }, (_, n) => {
        const [store, name] = [n % 2 === 0 ? one : other, names[n % 3 === 0 ? 0 : 1]!];
        return n % 5 === 0 ? store.remove(name) : store.put(name, randomBytes(1_200_000));
      }),
    );
    expect(await orphans(options)).toBe(0);
    for (const name of names) await one.remove(name);
    const [rows] = await server.query(`SELECT COUNT(*) AS n FROM ${options.database}.gateway_object_rows`);
    expect(Number(rows?.["n"])).toBe(0);
  });

  test("says that the database is full, keeps what there was, and takes objects again when there is room", async () => {
    const store = await opened(await newOptions(narrow));
    const kept = Buffer.alloc(24_000_000, "k");
    await store.put("kept", kept);
    for (const name of ["new", "kept"]) {
      const full = { code: "GW_STORE_FULL" };
      await expect(store.put(name, Buffer.alloc(objectBytesMax))).rejects.toMatchObject(full);
    }
    expect(await listed(store, "")).toEqual([{ name: "kept", sizeBytes: kept.length }]);
    expect((await store.get("kept"))?.equals(kept)).toBe(true);
    await store.put("small", Buffer.alloc(100_000, "s"));
    expect((await store.get("small"))?.equals(Buffer.alloc(100_000, "s"))).toBe(true);
    await store.remove("kept");
    // The server gives the room free a little later.
    const put = (): Promise<string> => store.put("new", kept).then(() => "put");
    await expect.poll(put, { timeout: 10_000 }).toBe("put");
  });

  test("fits its rows into the packets that the server takes", async () => {
    const options = await newOptions(narrow);
    const store = await opened(options);
    const bytes = randomBytes(500_000);
    await store.put("object", bytes);
    expect((await store.get("object"))?.equals(bytes)).toBe(true);
    for (const [start, end] of [
      [0, 1],
      [7_991, 7_993],
      [100_000, 400_000],
      [499_999, 500_000],
    ] as const)
      expect((await store.get("object", { start, end }))?.equals(bytes.subarray(start, end))).toBe(true);
    // Rows keep their size when the server takes larger ones later.
    await narrow.query("SET GLOBAL max_allowed_packet = 16777216");
    onTestFinished(async () => void (await narrow.query("SET GLOBAL max_allowed_packet = 65536")));
    const later = await opened(options);
    expect((await later.get("object", { start: 40_000, end: 300_000 }))?.equals(bytes.subarray(40_000, 300_000))).toBe(
      true,
    );
  });

  test("rejects what somebody changed in the tables", async () => {
    const options = await newOptions();
    const store = await opened(options);
    const bytes = randomBytes(1_500_000);
    const corrupt = { code: "GW_SNAPSHOT_CORRUPT" };
    const rows = `${options.database}.gateway_object_rows`;
    await store.put("object", bytes);
    await server.query(`UPDATE ${rows} SET bytes = CONCAT(SUBSTRING(bytes, 2), 'x') WHERE n = 1`);
    await expect(store.get("object")).rejects.toMatchObject(corrupt);
    await store.put("object", bytes);
    await server.query(`DELETE FROM ${rows} WHERE n = 1`);
    await expect(store.get("object")).rejects.toMatchObject(corrupt);
    await expect(store.get("object", { start: 0, end: 1_000_000 })).rejects.toMatchObject(corrupt);
    await expect(store.get("object", { start: 8_100, end: 8_101 })).rejects.toMatchObject(corrupt);
    await server.query(`DELETE FROM ${rows}`);
    await expect(store.get("object")).rejects.toMatchObject(corrupt);
  });

  test("says what is wrong with user, password, database and rights, and never the password", async () => {
    const options = await newOptions();
    const failures = [
      { ...options, password: "another-password" },
      { ...options, user: "nobody" },
      { ...options, database: "elsewhere" },
    ];
    for (const wrong of failures) {
      const error = await openMysqlStore(wrong).then(
        () => null,
        (error: unknown) => error as Error,
      );
      expect(error).toMatchObject(unavailable);
      expect(error?.message).toMatch(/storePassword|there is no database/);
      expect(told(error)).not.toContain(wrong.password);
    }
    // Tables that exist need no right to make them.
    await (await opened(options)).put("object", Buffer.from("x"));
    await server.query(`REVOKE CREATE, DROP, ALTER ON ${options.database}.* FROM ${options.user}@'%'`);
    expect(String(await (await opened(options)).get("object"))).toBe("x");
    await server.query(`REVOKE SELECT ON ${options.database}.* FROM ${options.user}@'%'`);
    await expect((await opened(options)).get("object")).rejects.toMatchObject(unavailable);
  });
});

async function opened(options: MysqlOptions, limits?: MysqlLimits): Promise<SnapshotStore> {
  const store = await openMysqlStore(options, limits);
  onTestFinished(() => store.close());
  return store;
}

/** Rows of bytes that no object names. */
async function orphans({ database }: MysqlOptions): Promise<number> {
  const [row] = await server.query(
    `SELECT COUNT(*) AS n FROM ${database}.gateway_object_rows WHERE generation NOT IN (SELECT generation FROM ${database}.gateway_objects)`,
  );
  return Number(row?.["n"]);
}

/** Everything that a log line might hold of an error. */
function told(error: unknown): string {
  if (!(error instanceof Error)) return JSON.stringify(error) ?? "";
  return `${error.stack}${JSON.stringify(error, Object.getOwnPropertyNames(error))}${told(error.cause)}`;
}
