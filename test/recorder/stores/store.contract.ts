// The law of the store port as tests, run by every adapter.
import { spawn } from "node:child_process";
import { createHash, randomBytes } from "node:crypto";
import { once } from "node:events";
import { fileURLToPath } from "node:url";

import { afterEach, describe, expect, onTestFinished, test } from "vitest";

import { openStore } from "../../../recorder/stores/open.ts";
import { objectBytesMax } from "../../../recorder/stores/store.ts";
import type { SnapshotStore, StoreOptions } from "../../../recorder/stores/store.ts";
import { endWithUs } from "../../helpers/folder.ts";
import { waitFor } from "../../helpers/wait.ts";
import { victim } from "./victim.ts";

export interface StoreTraits {
  /** How many small objects there are in the test of long lists: more than one page, where that is cheap. */
  readonly manyObjects: number;
  /** Only of a server whose ranged reads are known to be wrong. */
  readonly hasNoRanges?: boolean;
}

/** `makePlace` gives the options of a store that is empty and that nobody else uses. */
export function storeContract(name: string, makePlace: () => Promise<StoreOptions>, traits: StoreTraits): void {
  const opened: SnapshotStore[] = [];
  afterEach(async () => {
    for (const store of opened.splice(0).reverse()) await store.close();
  });
  const openedAt = async (options: StoreOptions): Promise<SnapshotStore> => {
    const store = await openStore(options);
    opened.push(store);
    return store;
  };
  const newStore = async (): Promise<SnapshotStore> => openedAt(await makePlace());

  describe(`${name}: a store of snapshots`, () => {
    test("gives back each object byte for byte, from none to the most there may be", async () => {
      const store = await newStore();
      const sizes = [0, 1, 255, 65_536, 1024 ** 2 - 1, 1024 ** 2, 1024 ** 2 + 1, 5_000_001, objectBytesMax];
      const objects = sizes.map((size) => [`sizes/of-${size}`, randomBytes(size)] as const);
      for (const [name, bytes] of objects) await store.put(name, bytes);
      for (const [name, bytes] of objects) expect((await store.get(name))?.equals(bytes), name).toBe(true);
      expect((await listed(store, "sizes/")).toSorted(byName)).toEqual(
        objects.map(([name, bytes]) => ({ name, sizeBytes: bytes.length })).toSorted(byName),
      );
    });

    test("keeps every byte value, and names apart that differ little", async () => {
      const store = await newStore();
      const every = Buffer.from(Array.from({ length: 512 }, (_, n) => n % 256));
      await store.put("every", every);
      expect(await store.get("every")).toEqual(every);
      const names = ["a", "a.a", "a-a", "a_a", "aa", "b/a", "b/a-a", "c/a/a/a", "a..a", longestName];
      for (const name of names) await store.put(name, Buffer.from(name));
      for (const name of names) expect((await store.get(name))?.toString()).toBe(name);
      expect((await listed(store, "")).length).toBe(names.length + 1);
    });

    test("knows nothing of what was never put", async () => {
      const store = await newStore();
      expect(await store.get("a")).toBeNull();
      expect(await store.get("a/b/c/d")).toBeNull();
      expect(await store.get(longestName)).toBeNull();
      expect(await store.get("a", { start: 0, end: 1 })).toBeNull();
      expect(await store.get("a", { start: 0, end: 0 })).toBeNull();
      expect(await listed(store, "")).toEqual([]);
      await store.remove("a");
      await store.remove("a/b/c/d");
    });

    test("replaces an object by a larger and by a smaller one", async () => {
      const store = await newStore();
      for (const size of [3_000_000, 10, 2_500_000, 0, 1]) {
        const bytes = randomBytes(size);
        await store.put("it/changes", bytes);
        expect((await store.get("it/changes"))?.equals(bytes), `${size} bytes`).toBe(true);
        expect(await listed(store, "")).toEqual([{ name: "it/changes", sizeBytes: size }]);
      }
    });

    test.skipIf(traits.hasNoRanges)("gives any range of an object", async () => {
      const store = await newStore();
      const bytes = randomBytes(3 * 1024 ** 2 + 7);
      await store.put("ranges/object", bytes);
      const { length } = bytes;
      const ranges = [
        [0, 1],
        [0, 0],
        [5, 5],
        [17, 4_000],
        [1024 ** 2 - 1, 1024 ** 2 + 1],
        [1024 ** 2, 2 * 1024 ** 2],
        [length - 1, length],
        [length, length],
        [0, length],
        [500_000, length],
      ] as const;
      for (const [start, end] of ranges) {
        const part = await store.get("ranges/object", { start, end });
        expect(part?.equals(bytes.subarray(start, end)), `${start} to ${end}`).toBe(true);
      }
    });

    test.skipIf(traits.hasNoRanges)("says so when an object ends before the range that it must have", async () => {
      const store = await newStore();
      await store.put("short", Buffer.from("0123456789"));
      for (const [start, end] of [
        [5, 11],
        [10, 11],
        [1_000, 2_000],
      ] as const)
        await expect(store.get("short", { start, end })).rejects.toMatchObject({ code: "GW_SNAPSHOT_CORRUPT" });
    });

    test("lists by prefix, with sizes and times, wherever the prefix ends", async () => {
      const store = await newStore();
      const before = Date.now();
      const names = ["chunks/aa/one", "chunks/aa/two", "chunks/ab/three", "chunk", "manifests/1", "manifests/12"];
      for (const name of names) await store.put(name, Buffer.alloc(name.length));
      for (const prefix of [
        "",
        "c",
        "chunk",
        "chunks/",
        "chunks/a",
        "chunks/aa/",
        "manifests/1",
        "manifests/12",
        "z",
      ]) {
        const expected = names.filter((name) => name.startsWith(prefix));
        expect((await listed(store, prefix)).map((object) => object.name).toSorted(), prefix).toEqual(
          expected.toSorted(),
        );
      }
      for await (const { name, sizeBytes, storedAtMs } of store.list("")) {
        expect(sizeBytes).toBe(name.length);
        // S3 gives whole seconds at times.
        expect(storedAtMs).toBeGreaterThanOrEqual(before - 1_000);
        expect(storedAtMs).toBeLessThanOrEqual(Date.now() + 1_000);
      }
    });

    test("lists many objects, each once", { timeout: 60_000 }, async () => {
      const store = await newStore();
      const names = Array.from(
        { length: traits.manyObjects },
        (_, n) => `many/${sha256Of(n).slice(0, 2)}/${sha256Of(n)}`,
      );
      await eachOf(names, 16, (name) => store.put(name, Buffer.from(name.slice(0, 9))));
      const found = await listed(store, "many/");
      expect(found.map((object) => object.name).toSorted()).toEqual(names.toSorted());
      expect(found.every(({ sizeBytes }) => sizeBytes === 9)).toBe(true);
      const some = names.filter((name) => name.startsWith("many/7"));
      expect((await listed(store, "many/7")).length).toBe(some.length);
      // Who stops in the middle of a list has no error and leaves nothing that hinders the next.
      for await (const _ of store.list("many/")) break;
      expect((await listed(store, "many/")).length).toBe(names.length);
    });

    test("removes objects, and takes them again", async () => {
      const store = await newStore();
      for (const name of ["a/1", "a/2", "b"]) await store.put(name, randomBytes(2_000_000));
      await store.remove("a/1");
      await store.remove("a/1");
      expect(await store.get("a/1")).toBeNull();
      expect((await listed(store, "")).map((object) => object.name).toSorted()).toEqual(["a/2", "b"]);
      await store.put("a/1", Buffer.from("again"));
      expect((await store.get("a/1"))?.toString()).toBe("again");
      for (const name of ["a/1", "a/2", "b"]) await store.remove(name);
      expect(await listed(store, "")).toEqual([]);
    });

    test("refuses bad names, ranges and sizes, and does nothing then", async () => {
      const store = await newStore();
      for (const name of badNames) {
        await expect(store.put(name, Buffer.from("x")), name).rejects.toMatchObject({ code: "GW_INTERNAL" });
        await expect(store.get(name), name).rejects.toMatchObject({ code: "GW_INTERNAL" });
        await expect(store.remove(name), name).rejects.toMatchObject({ code: "GW_INTERNAL" });
      }
      const large = Buffer.alloc(objectBytesMax + 1);
      await expect(store.put("large", large)).rejects.toMatchObject({ code: "GW_INTERNAL" });
      for (const [start, end] of [
        [-1, 1],
        [2, 1],
        [0, 1.5],
        [0, Number.NaN],
      ] as const)
        await expect(store.get("a", { start, end })).rejects.toMatchObject({ code: "GW_INTERNAL" });
      expect(await listed(store, "")).toEqual([]);
    });

    test("keeps one of several objects that are put under one name at once, whole", async () => {
      const options = await makePlace();
      const stores = [await openedAt(options), await openedAt(options)];
      for (let round = 0; round < 3; round += 1) {
        const objects = Array.from({ length: 6 }, () => randomBytes(1_000_000 + Math.floor(Math.random() * 1_500_000)));
        await Promise.all(objects.map((bytes, n) => stores[n % 2]!.put("contended", bytes)));
        const kept = await stores[0]!.get("contended");
        expect(objects.filter((bytes) => kept?.equals(bytes)).length).toBe(1);
        expect(await listed(stores[1]!, "")).toEqual([{ name: "contended", sizeBytes: kept?.length }]);
      }
    });

    test("shows a reader the former object or the new one, whole, while it is replaced", async () => {
      const options = await makePlace();
      const [writer, reader] = [await openedAt(options), await openedAt(options)];
      const objects = new Map(
        Array.from({ length: 4 }, (_, n) => [n, Buffer.alloc(700_000 + n * 400_000, `${n}`)] as const),
      );
      await writer.put("replaced", objects.get(0)!);
      const written = new AbortController();
      const writing = (async () => {
        for (let n = 1; n <= 12; n += 1) await writer.put("replaced", objects.get(n % 4)!);
      })().finally(() => written.abort());
      writing.catch(() => {}); // met below
      let reads = 0;
      while (!written.signal.aborted) {
        const bytes = await reader.get("replaced");
        expect(bytes?.equals(objects.get(Number(bytes.subarray(0, 1).toString()))!)).toBe(true);
        reads += 1;
      }
      await writing;
      expect(reads).toBeGreaterThan(0);
    });

    test("is one store through two handles", async () => {
      const options = await makePlace();
      const [one, other] = [await openedAt(options), await openedAt(options)];
      await one.put("shared/object", Buffer.from("1"));
      expect((await other.get("shared/object"))?.toString()).toBe("1");
      expect((await listed(other, "shared/")).length).toBe(1);
      await other.put("shared/object", Buffer.from("2"));
      expect((await one.get("shared/object"))?.toString()).toBe("2");
      await one.remove("shared/object");
      expect(await other.get("shared/object")).toBeNull();
      expect(await listed(other, "")).toEqual([]);
    });

    test("has what was put when it is opened again", async () => {
      const options = await makePlace();
      const first = await openedAt(options);
      const bytes = randomBytes(1_500_000);
      await first.put("kept/object", bytes);
      await first.close();
      const next = await openedAt(options);
      expect((await next.get("kept/object"))?.equals(bytes)).toBe(true);
    });

    test("does nothing once it is closed, and may be closed twice", async () => {
      const options = await makePlace();
      const store = await openedAt(options);
      await store.put("a", Buffer.from("a"));
      const begun = store.list("")[Symbol.asyncIterator]();
      await begun.next();
      await store.close();
      await store.close();
      const closed = { code: "GW_STORE_UNAVAILABLE" };
      await expect(begun.next()).rejects.toMatchObject(closed);
      await expect(store.put("b", Buffer.from("b"))).rejects.toMatchObject(closed);
      await expect(store.get("a")).rejects.toMatchObject(closed);
      await expect(store.remove("a")).rejects.toMatchObject(closed);
      await expect(listed(store, "")).rejects.toMatchObject(closed);
      expect(await listed(await openedAt(options), "")).toEqual([{ name: "a", sizeBytes: 1 }]);
    });

    test(
      "has the former object or the new one after a kill -9 in the middle of a put",
      { timeout: 60_000 },
      async () => {
        const options = await makePlace();
        let former = 0;
        let cutShort = 0;
        for (let round = 0; round < 3; round += 1) {
          const { begun, done } = await killedPutting(options, former);
          const next = await openedAt(options);
          // A server may still be storing what had come before the kill: settled once it says twice the same.
          const bytes = await settled(next);
          const n = bytes === null ? 0 : bytes.readUInt32BE(0);
          expect(n).toBeGreaterThanOrEqual(Math.max(done, former));
          expect(n).toBeLessThanOrEqual(begun);
          if (bytes !== null) expect(bytes.equals(victim(n, bytes.length))).toBe(true);
          if (begun > done) cutShort += 1;
          former = n;
        }
        expect(cutShort).toBeGreaterThan(0);
      },
    );

    test("says where it is without a secret", async () => {
      const options = await makePlace();
      const store = await openedAt(options);
      expect(store.kind).toBe(options.kind);
      expect(store.where.length).toBeGreaterThan(3);
      for (const key of ["password", "secretAccessKey", "accessKeyId"]) {
        const secret = (options as unknown as Record<string, unknown>)[key];
        if (typeof secret === "string") expect(store.where).not.toContain(secret);
      }
    });
  });
}

export const longestName = ["a", "b", "c", "d"].map((letter) => letter.repeat(128)).join("/");

const badNames = [
  "",
  "/",
  "/a",
  "a/",
  "a//b",
  "..",
  "../a",
  "a/../b",
  "a/./b",
  "a/b/c/d/e",
  ".a",
  "-a",
  "_a",
  "A",
  "a b",
  "a\0",
  "a\n",
  "ä",
  "a%2fb",
  "a\\b",
  "*",
  "a".repeat(129),
];

const byName = (a: { name: string }, b: { name: string }): number => (a.name < b.name ? -1 : 1);
const sha256Of = (n: number): string => createHash("sha256").update(`${n}`).digest("hex");

/** Without the times. */
export async function listed(store: SnapshotStore, prefix: string): Promise<{ name: string; sizeBytes: number }[]> {
  const objects: { name: string; sizeBytes: number }[] = [];
  for await (const { name, sizeBytes } of store.list(prefix)) objects.push({ name, sizeBytes });
  return objects;
}

/** Ends when all are done; so many at a time. */
async function eachOf<T>(all: readonly T[], atOnce: number, work: (one: T) => Promise<void>): Promise<void> {
  const left = all.values();
  const worker = async (): Promise<void> => {
    for (const one of left) await work(one);
  };
  await Promise.all(Array.from({ length: atOnce }, worker));
}

/** The victim, once the store's list agrees with it. */
async function settled(store: SnapshotStore): Promise<Buffer | null> {
  const found = await waitFor(
    async () => {
      const bytes = await store.get("victim");
      const sizes = (await listed(store, "")).map(({ sizeBytes }) => sizeBytes);
      return sizes.join() === (bytes === null ? "" : String(bytes.length)) && { bytes };
    },
    { what: "a list that agrees with the object" },
  );
  return found.bytes;
}

/** Puts "victim" in a process of its own, from `former` + 1 on, and kills it while one is under way (as well as one can aim). */
async function killedPutting(options: StoreOptions, former: number): Promise<{ begun: number; done: number }> {
  const program = fileURLToPath(new URL("put-for-ever.ts", import.meta.url));
  const tsx = import.meta.resolve("tsx");
  const child = spawn(process.execPath, ["--import", tsx, program], { stdio: ["pipe", "pipe", "inherit"] });
  child.once("exit", endWithUs(child.pid!));
  onTestFinished(() => void child.kill("SIGKILL"));
  const ended = once(child, "exit");
  child.stdin.end(JSON.stringify({ options, former })); // not by argv: secrets are in it
  let output = "";
  child.stdout.on("data", (chunk: Buffer) => (output += chunk.toString()));
  const last = (word: string): number =>
    Number([...output.matchAll(new RegExp(`${word} (\\d+)\n`, "g"))].at(-1)?.[1] ?? 0);
  await waitFor(() => last("begun") >= former + 3, { what: () => `three puts to begin; it said ${output}` });
  // Somewhere in the put that is under way, by chance.
  const aim = performance.now() + Math.random() * 15;
  await waitFor(() => performance.now() > aim, { what: "the moment" });
  child.kill("SIGKILL");
  await ended;
  return { begun: last("begun"), done: last("done") };
}
