// Chunks in packs: stored once, found again, never other bytes; durable when flush says so; and packs of former versions are still read.
import { readFileSync } from "node:fs";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { PackBuilder, indexBytes, isWhole, noKey, packBytes, parseIndex } from "../../recorder/pack.ts";
import { openPacks, openPacksToWrite } from "../../recorder/packs.ts";
import type { Packs } from "../../recorder/packs.ts";
import { chunkId, seal, snapshotKey } from "../../recorder/seal.ts";
import { lines, noise } from "../fixtures/chunks/inputs.ts";
import { MemoryDisk, MemoryStore } from "./memory-store.ts";

const { signal } = new AbortController();
const key = snapshotKey(Buffer.alloc(32, 7));
const otherKey = snapshotKey(Buffer.alloc(32, 8));
const KiB = 1024;

const chunks = (seed: string, count: number, bytes = 20 * KiB): Buffer[] =>
  Array.from({ length: count }, (_, i) => noise(`${seed} ${i}`, bytes));

async function addAll(packs: Packs, plains: readonly Buffer[]): Promise<number> {
  const bytes = await Promise.all(plains.map((plain) => packs.add(chunkId(plain), plain)));
  return bytes.reduce((sum, n) => sum + n, 0);
}

/** Added, durable, closed. */
async function store(
  disk: MemoryDisk,
  plains: readonly Buffer[],
  key: Parameters<typeof seal>[2] = null,
): Promise<number> {
  const packs = await openPacksToWrite(new MemoryStore(disk), { key, signal });
  const bytes = await addAll(packs, plains);
  await packs.flush();
  await packs.close();
  return bytes;
}

async function expectAll(
  disk: MemoryDisk,
  plains: readonly Buffer[],
  key: Parameters<typeof seal>[2] = null,
): Promise<void> {
  const packs = await openPacks(new MemoryStore(disk), { key, signal });
  for (const plain of plains) expect((await packs.get(chunkId(plain))).equals(plain)).toBe(true);
  await packs.close();
}

describe.each([
  ["plain", null],
  ["encrypted", key],
])("%s packs", (_, key) => {
  test("give back what was added, in any order, from small to large", async () => {
    const disk = new MemoryDisk();
    const plains = [...chunks("a", 30), lines(200_000), Buffer.from("x"), ...chunks("tiny", 200, 40)];
    await store(disk, plains, key);
    await expectAll(disk, plains, key);
    await expectAll(disk, plains.toReversed(), key);
    expect(disk.names("packs/")).toHaveLength(1);
    expect(disk.names("pending/")).toEqual([]);
  });

  test("store a chunk once: within a run, side by side, and from run to run", async () => {
    const disk = new MemoryDisk();
    const plains = chunks("once", 10);
    const packs = await openPacksToWrite(new MemoryStore(disk), { key, signal });
    expect(packs.has(chunkId(plains[0]!))).toBe(false);
    const first = await addAll(packs, [...plains, ...plains]);
    expect(packs.has(chunkId(plains[0]!))).toBe(true);
    expect(first).toBeGreaterThan(10 * 20 * KiB);
    expect(first).toBeLessThan(11 * 20 * KiB);
    await packs.flush();
    expect(await addAll(packs, plains)).toBe(0);
    await packs.flush();
    await packs.close();
    expect(await store(disk, plains, key)).toBe(0);
    expect(disk.names("packs/")).toHaveLength(1);
    expect(await store(disk, [...plains, lines(500)], key)).toBeGreaterThan(0);
    expect(disk.names("packs/")).toHaveLength(2);
  });

  test("are at most 16 MiB and their index, whatever is added", async () => {
    const disk = new MemoryDisk();
    const plains = [...chunks("large", 70, 250 * KiB), ...chunks("medium", 300, 20 * KiB)];
    await store(disk, plains, key);
    const sizes = disk.names("packs/").map((name) => disk.objects.get(name)!.bytes.length);
    expect(sizes.length).toBeGreaterThanOrEqual(2);
    for (const size of sizes) expect(size).toBeLessThan(packBytes + 1024 * KiB);
    await expectAll(disk, plains, key);
  });

  test("of very many very small chunks end early, so that their index stays small", async () => {
    const disk = new MemoryDisk();
    const plains = chunks("small", 17_000, 20);
    await store(disk, plains, key);
    expect(disk.names("packs/")).toHaveLength(2);
    await expectAll(disk, [plains[0]!, plains[16_383]!, plains[16_384]!, plains[16_999]!], key);
  }, 60_000);

  test("refuse what was changed in the store, naming chunk and pack, and give the rest", async () => {
    const disk = new MemoryDisk();
    const plains = chunks("tampered", 5);
    await store(disk, plains, key);
    const [pack] = disk.names("packs/");
    disk.tamper(pack!, (bytes) => {
      bytes[2 * 20 * KiB + 5_000]! ^= 1;
      return bytes;
    });
    const packs = await openPacks(new MemoryStore(disk), { key, signal });
    const results = await Promise.allSettled(plains.map((plain) => packs.get(chunkId(plain))));
    const refused = results.flatMap((result) => (result.status === "rejected" ? [result.reason as Error] : []));
    expect(refused).toHaveLength(1);
    expect(refused[0]).toMatchObject({ code: "GW_SNAPSHOT_CORRUPT" });
    expect(refused[0]!.message).toContain(pack!);
    expect(plains.some((plain) => refused[0]!.message.includes(chunkId(plain)))).toBe(true);
  });

  test("with a damaged end are named, and what was in them is stored again", async () => {
    const plains = chunks("damaged", 5);
    for (const change of [
      (bytes: Buffer) => bytes.subarray(0, -1),
      (bytes: Buffer) => Buffer.concat([bytes, Buffer.alloc(1)]),
      (bytes: Buffer) => bytes.fill(0, bytes.length - 8),
      (bytes: Buffer) => bytes.fill(0xff, bytes.length - 16, bytes.length - 12),
      (bytes: Buffer) => bytes.fill(0, bytes.length - 50, bytes.length - 32),
      () => Buffer.alloc(0),
    ]) {
      const disk = new MemoryDisk();
      await store(disk, plains, key);
      const [pack] = disk.names("packs/");
      disk.tamper(pack!, change);
      const packs = await openPacks(new MemoryStore(disk), { key, signal });
      expect(packs.damaged).toEqual([pack]);
      await expect(packs.get(chunkId(plains[0]!))).rejects.toMatchObject({ code: "GW_SNAPSHOT_CORRUPT" });
      expect(await store(disk, plains, key)).toBeGreaterThan(5 * 20 * KiB);
      await expectAll(disk, plains, key);
    }
  });

  test("that index what is not there, or something else, are found out by whoever reads", async () => {
    const disk = new MemoryDisk();
    const [one, two] = chunks("lie", 2);
    await store(disk, [one!, two!], key);
    const [pack] = disk.names("packs/");
    // The rows of two chunks of one length change places.
    disk.tamper(pack!, (bytes) => {
      const rows = bytes.subarray(-32 - 72, -32);
      return Buffer.concat([bytes.subarray(0, -32 - 72), rows.subarray(36), rows.subarray(0, 36), bytes.subarray(-32)]);
    });
    const packs = await openPacks(new MemoryStore(disk), { key, signal });
    for (const plain of [one!, two!])
      await expect(packs.get(chunkId(plain))).rejects.toMatchObject({ code: "GW_SNAPSHOT_CORRUPT" });
  });
});

describe("packs", () => {
  test("leave nothing that seems to be there when the process dies, and whatever flush promised is there", async () => {
    const plains = chunks("killed", 40, 250 * KiB);
    let kills = 0;
    for (let changes = 0; changes < 100; changes += 1) {
      const disk = new MemoryDisk();
      const store = new MemoryStore(disk).dieAfter(changes);
      const promised: Buffer[] = [];
      const run = async (): Promise<void> => {
        const packs = await openPacksToWrite(store, { key: null, signal });
        try {
          for (const part of [plains.slice(0, 20), plains.slice(20)]) {
            await addAll(packs, part);
            await packs.flush();
            promised.push(...part);
          }
        } finally {
          await packs.close();
        }
      };
      await run().catch(() => {});
      const isDead = store.isDead;
      await expectAll(disk, promised);
      const after = await openPacks(new MemoryStore(disk), { key: null, signal });
      for (const plain of plains) if (after.has(chunkId(plain))) await after.get(chunkId(plain));
      expect(after.damaged).toEqual([]);
      if (!isDead) break;
      kills += 1;
    }
    expect(kills).toBeGreaterThanOrEqual(3);
  });

  test("reject the flush when anything that was added could not be stored", async () => {
    const store = new MemoryStore();
    const packs = await openPacksToWrite(store, { key: null, signal });
    store.before = (deed, name) => {
      if (deed === "put" && name.startsWith("packs/"))
        throw Object.assign(new Error("full"), { code: "GW_STORE_FULL" });
    };
    await addAll(packs, chunks("full", 3));
    await expect(packs.flush()).rejects.toMatchObject({ code: "GW_STORE_FULL" });
    store.before = () => {};
    // Others may have been told that the chunk will be there: no later flush may succeed.
    await expect(packs.flush()).rejects.toMatchObject({ code: "GW_STORE_FULL" });
    await packs.close();
    expect(store.disk.names("")).toEqual([]);
  });

  test("reject the flush when a chunk could not even be sealed", async () => {
    const packs = await openPacksToWrite(new MemoryStore(), { key: null, signal });
    const impossible = Buffer.alloc(256 * KiB + 1);
    await expect(packs.add(chunkId(impossible), impossible)).rejects.toThrow(/larger than any/);
    expect(await packs.add(chunkId(impossible), impossible)).toBe(0);
    await expect(packs.flush()).rejects.toThrow(/larger than any/);
    await packs.close();
  });

  test("keep collectors out from before the first look until they are closed", async () => {
    const store = new MemoryStore();
    const packs = await openPacksToWrite(store, { key: null, signal });
    const [mark, ...others] = store.disk.names("");
    expect(mark).toMatch(/^pending\/write-/);
    expect(others).toEqual([]);
    const looked = store.deeds.findIndex(({ deed, name }) => deed === "list" && name === "packs/");
    expect(store.deeds.findIndex(({ deed, name }) => deed === "put" && name === mark)).toBeLessThan(looked);
    packs.check();
    await packs.close();
    await packs.close();
    expect(store.disk.names("")).toEqual([]);
  });

  test("opened to read write nothing at all", async () => {
    const store = new MemoryStore();
    const packs = await openPacks(store, { key: null, signal });
    await expect(packs.add(chunkId(Buffer.from("x")), Buffer.from("x"))).rejects.toThrow(/opened to read/);
    await packs.close();
    expect(store.deeds.filter(({ deed }) => deed === "put" || deed === "remove")).toEqual([]);
  });

  test("fetch neighbours together: a restore in order reads each byte about once, in few requests", async () => {
    const disk = new MemoryDisk();
    const plains = chunks("order", 500, 60 * KiB);
    await store(disk, plains);
    const reading = new MemoryStore(disk);
    const packs = await openPacks(reading, { key: null, signal });
    reading.deeds.length = 0;
    let now = 0;
    let most = 0;
    reading.before = async () => {
      most = Math.max(most, (now += 1));
      await new Promise((resolve) => setImmediate(resolve));
      now -= 1;
    };
    for (const plain of plains) await packs.get(chunkId(plain));
    // The next piece is fetched while this one is.
    expect(most).toBe(2);
    const gets = reading.deeds.filter(({ deed }) => deed === "get");
    expect(gets.length).toBeLessThan(25);
    expect(gets.reduce((sum, { bytes }) => sum + bytes, 0)).toBeLessThan(1.2 * disk.bytes("packs/"));
  });

  test("one chunk alone costs no more than half a MiB", async () => {
    const disk = new MemoryDisk();
    const plains = chunks("alone", 100, 60 * KiB);
    await store(disk, plains);
    const reading = new MemoryStore(disk);
    const packs = await openPacks(reading, { key: null, signal });
    reading.deeds.length = 0;
    await packs.get(chunkId(plains[50]!));
    expect(reading.deeds).toHaveLength(1);
    expect(reading.deeds[0]!.bytes).toBeLessThanOrEqual(512 * KiB);
  });

  test("find a chunk that was moved or added since they were opened", async () => {
    const disk = new MemoryDisk();
    const plains = chunks("moved", 3);
    await store(disk, plains);
    const packs = await openPacks(new MemoryStore(disk), { key: null, signal });
    const [old] = disk.names("packs/");
    disk.objects.delete(old!);
    await store(disk, [...plains, ...chunks("more", 2)]);
    expect((await packs.get(chunkId(plains[1]!))).equals(plains[1]!)).toBe(true);
    expect((await packs.get(chunkId(chunks("more", 2)[1]!))).length).toBe(20 * KiB);
  });

  test("a chunk that nobody stored is missing, and said to be", async () => {
    const packs = await openPacks(new MemoryStore(), { key: null, signal });
    const id = chunkId(Buffer.from("nowhere"));
    expect(packs.has(id)).toBe(false);
    await expect(packs.get(id)).rejects.toMatchObject({
      code: "GW_SNAPSHOT_CORRUPT",
      message: `chunk ${id} is in no pack of memory`,
    });
  });

  test("an object beside them that is no pack is nobody's business", async () => {
    const disk = new MemoryDisk();
    await new MemoryStore(disk).put("packs/readme.txt", Buffer.from("hello"));
    const packs = await openPacks(new MemoryStore(disk), { key: null, signal });
    expect(packs.damaged).toEqual([]);
  });

  test("a read that failed is tried again by the next one", async () => {
    const disk = new MemoryDisk();
    const plains = chunks("again", 3);
    await store(disk, plains);
    const reading = new MemoryStore(disk);
    const packs = await openPacks(reading, { key: null, signal });
    reading.before = (deed) => {
      if (deed === "get") throw Object.assign(new Error("away"), { code: "GW_STORE_UNAVAILABLE" });
    };
    await expect(packs.get(chunkId(plains[0]!))).rejects.toMatchObject({ code: "GW_STORE_UNAVAILABLE" });
    reading.before = () => {};
    expect((await packs.get(chunkId(plains[0]!))).equals(plains[0]!)).toBe(true);
  });

  test("end when they are told to", async () => {
    const disk = new MemoryDisk();
    await store(disk, chunks("stop", 3));
    const stop = new AbortController();
    const packs = await openPacksToWrite(new MemoryStore(disk), { key: null, signal: stop.signal });
    stop.abort(new Error("stopped"));
    await expect(packs.get(chunkId(chunks("stop", 1)[0]!))).rejects.toThrow("stopped");
    await packs.add(chunkId(Buffer.from("late")), Buffer.from("late")).catch(() => {});
    await expect(packs.flush()).rejects.toThrow("stopped");
    await packs.close();
    expect(disk.names("pending/")).toEqual([]);
  });
});

describe("packs under several keys", () => {
  const plains = chunks("keys", 4);

  test("nothing that was stored without a key, or under another one, counts as stored", async () => {
    const disk = new MemoryDisk();
    await store(disk, plains);
    expect(await store(disk, plains, key)).toBeGreaterThan(0);
    expect(await store(disk, plains, otherKey)).toBeGreaterThan(0);
    expect(await store(disk, plains)).toBe(0);
    expect(await store(disk, plains, key)).toBe(0);
    expect(disk.names("packs/")).toHaveLength(3);
    for (const it of [null, key, otherKey]) await expectAll(disk, plains, it);
  });

  test("what was stored before there was a key is still read", async () => {
    const disk = new MemoryDisk();
    await store(disk, plains);
    await expectAll(disk, plains, key);
  });

  test.each([
    ["without a key", null, /there is no key/],
    ["under another key", otherKey, /under another key/],
  ])("%s they say so and name the setting, instead of calling it damage", async (_, wrong, says) => {
    const disk = new MemoryDisk();
    await store(disk, plains, key);
    const packs = await openPacks(new MemoryStore(disk), { key: wrong, signal });
    const failure = await packs.get(chunkId(plains[0]!)).catch((error: unknown) => error);
    expect(failure).toMatchObject({ code: "GW_RECOVERY_REFUSED", message: expect.stringMatching(says) as string });
    expect((failure as Error).message).toContain("snapshots.encrypt.keyFile");
  });

  test("a store shows no content and no id of what is encrypted", async () => {
    const disk = new MemoryDisk();
    const secret = lines(3_000);
    await store(disk, [secret], key);
    for (const name of disk.names("packs/")) {
      const { bytes } = disk.objects.get(name)!;
      expect(bytes.includes(Buffer.from(chunkId(secret), "hex"))).toBe(false);
      expect(bytes.includes(secret.subarray(0, 16))).toBe(false);
    }
  });
});

/** Of a pack that was written once. */
const read = (name: string): Buffer =>
  Buffer.from(readFileSync(new URL(`../fixtures/packs/${name}`, import.meta.url), "utf8"), "base64");
/** What is in each of them. */
const golden = [lines(3_000), Buffer.from("x"), noise("golden", 500)];

describe("the format of a pack", () => {
  test.each([
    ["plain-v1.base64", null],
    ["encrypted-v1.base64", key],
  ])("%s, written once, is still read", async (file, key) => {
    const bytes = read(file);
    const disk = new MemoryDisk();
    const builder = new PackBuilder(noKey);
    expect(builder.isEmpty).toBe(true);
    const name = `packs/${chunkId(bytes)}`;
    expect(isWhole(name, bytes)).toBe(true);
    await new MemoryStore(disk).put(name, bytes);
    await expectAll(disk, golden, key);
  });

  test("the same chunks in the same order make the same pack", async () => {
    const builder = new PackBuilder(noKey);
    for (const plain of golden.slice(1)) builder.add(chunkId(plain), await seal(chunkId(plain), plain, null));
    const one = builder.finish();
    const [pack, bytes] = [one.index.pack, Buffer.from(one.bytes)];
    for (const plain of golden.slice(1)) builder.add(chunkId(plain), await seal(chunkId(plain), plain, null));
    const two = builder.finish();
    expect(two.index.pack).toBe(pack);
    expect(two.bytes.equals(bytes)).toBe(true);
    expect(parseIndex(pack, bytes.length, bytes)).toEqual(one.index);
  });

  test("whatever stands at the end of an object, reading it gives an index that fits or null", () => {
    const bytes = read("plain-v1.base64");
    fc.assert(
      fc.property(
        fc.nat(250),
        fc.integer({ min: 1, max: 255 }),
        fc.oneof(fc.constant(0), fc.nat(40)),
        (back, flip, cut) => {
          const touched = Buffer.from(bytes.subarray(0, bytes.length - cut));
          touched[touched.length - 1 - back]! ^= flip;
          const index = parseIndex("packs/x", touched.length, touched);
          if (index === null) return;
          expect(cut).toBe(0);
          expect(index.chunkBytes + (indexBytes(touched) ?? 0)).toBe(touched.length);
        },
      ),
      { numRuns: 2_000 },
    );
  });
});
