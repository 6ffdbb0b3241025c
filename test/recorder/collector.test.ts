// A collection removes what no manifest needs and never anything else: killed after any operation, with damage, under several keys, beside writers.
import { describe, expect, test } from "vitest";
import { collect } from "../../recorder/collector.ts";
import type { Collected } from "../../recorder/collector.ts";
import { openPacks, openPacksToWrite } from "../../recorder/packs.ts";
import { chunkId, snapshotKey } from "../../recorder/seal.ts";
import type { SnapshotKey } from "../../recorder/seal.ts";
import { noise } from "../fixtures/chunks/inputs.ts";
import { MemoryDisk, MemoryStore } from "./memory-store.ts";

const { signal } = new AbortController();
const key = snapshotKey(Buffer.alloc(32, 7));
const otherKey = snapshotKey(Buffer.alloc(32, 8));
const KiB = 1024;

const chunks = (seed: string, count: number, bytes = 10 * KiB): Buffer[] =>
  Array.from({ length: count }, (_, i) => noise(`${seed} ${i}`, bytes));

/** One pack with these chunks. */
async function pack(disk: MemoryDisk, plains: readonly Buffer[], key: SnapshotKey | null = null): Promise<void> {
  const packs = await openPacksToWrite(new MemoryStore(disk), { key, signal });
  for (const plain of plains) await packs.add(chunkId(plain), plain);
  await packs.flush();
  await packs.close();
}

async function* idsOf(plains: readonly Buffer[]): AsyncGenerator<string> {
  for (const plain of plains) yield chunkId(plain);
}

const collectOn = (
  store: MemoryStore,
  kept: readonly Buffer[],
  key: SnapshotKey | null = null,
): Promise<Collected | null> => collect(store, idsOf(kept), { key, signal });

async function expectAll(disk: MemoryDisk, plains: readonly Buffer[], key: SnapshotKey | null = null): Promise<void> {
  const packs = await openPacks(new MemoryStore(disk), { key, signal });
  for (const plain of plains) expect((await packs.get(chunkId(plain))).equals(plain)).toBe(true);
}

describe("a collection", () => {
  test("of an empty store does nothing", async () => {
    const store = new MemoryStore();
    expect(await collectOn(store, [])).toMatchObject({ removedPacks: 0, writtenPacks: 0 });
    expect(store.disk.names("")).toEqual([]);
  });

  test("removes packs of which nothing is kept, and leaves those of which half and more is", async () => {
    const disk = new MemoryDisk();
    const [gone, half, whole] = [chunks("gone", 10), chunks("half", 10), chunks("whole", 10)];
    for (const plains of [gone, half, whole]) await pack(disk, plains);
    const before = disk.names("packs/");
    const kept = [...half.slice(0, 5), ...whole];
    expect(await collectOn(new MemoryStore(disk), kept)).toMatchObject({
      removedPacks: 1,
      writtenPacks: 0,
      damaged: [],
    });
    expect(disk.names("packs/").every((name) => before.includes(name))).toBe(true);
    expect(disk.names("packs/")).toHaveLength(2);
    expect(disk.names("pending/")).toEqual([]);
    await expectAll(disk, kept);
  });

  test("writes packs anew of which less than half is kept, several into one", async () => {
    const disk = new MemoryDisk();
    const packs = [chunks("a", 10), chunks("b", 10), chunks("c", 10)];
    for (const plains of packs) await pack(disk, plains);
    const kept = packs.flatMap((plains) => plains.slice(0, 4));
    expect(await collectOn(new MemoryStore(disk), kept)).toMatchObject({ removedPacks: 3, writtenPacks: 1 });
    expect(disk.names("packs/")).toHaveLength(1);
    expect(disk.bytes("packs/")).toBeLessThan(13 * 10 * KiB);
    await expectAll(disk, kept);
    expect(await collectOn(new MemoryStore(disk), kept)).toMatchObject({ removedPacks: 0, writtenPacks: 0 });
  });

  test("of nothing kept empties the store", async () => {
    const disk = new MemoryDisk();
    for (const seed of ["a", "b"]) await pack(disk, chunks(seed, 3));
    expect(await collectOn(new MemoryStore(disk), [])).toMatchObject({ removedPacks: 2 });
    expect(disk.names("")).toEqual([]);
  });

  test("gathers small packs once there are more than sixteen, and then leaves them alone", async () => {
    const disk = new MemoryDisk();
    const all = Array.from({ length: 17 }, (_, i) => chunks(`small ${i}`, 2, KiB));
    for (const plains of all) await pack(disk, plains);
    expect(await collectOn(new MemoryStore(disk), all.flat())).toMatchObject({ removedPacks: 17, writtenPacks: 1 });
    expect(disk.names("packs/")).toHaveLength(1);
    await expectAll(disk, all.flat());
    for (let n = 0; n < 3; n += 1)
      expect(await collectOn(new MemoryStore(disk), all.flat())).toMatchObject({ removedPacks: 0, writtenPacks: 0 });
  });

  test("fills several packs where one is not enough", async () => {
    const disk = new MemoryDisk();
    const all = Array.from({ length: 7 }, (_, i) => chunks(`big ${i}`, 63, 250 * KiB));
    for (const plains of all) await pack(disk, plains);
    const kept = all.flatMap((plains) => plains.slice(10, 36));
    const collected = await collectOn(new MemoryStore(disk), kept);
    expect(collected!.writtenPacks).toBeGreaterThanOrEqual(2);
    expect(collected).toMatchObject({ removedPacks: 7 });
    await expectAll(disk, kept);
  });

  test("killed after any operation has lost nothing, and the next one finishes", async () => {
    const [gone, sparse, dense] = [chunks("gone", 6), chunks("sparse", 10), chunks("dense", 10)];
    const small = Array.from({ length: 17 }, (_, i) => chunks(`small ${i}`, 2, KiB));
    const kept = [
      ...sparse.slice(3, 6),
      ...dense,
      ...small.flatMap((plains) => plains.slice(0, 1)),
      ...small.flat().slice(-4),
    ];
    let kills = 0;
    // Ends with the collection that is not killed any more.
    for (let changes = 0; ; changes += 1) {
      const disk = new MemoryDisk();
      for (const plains of [gone, sparse, dense, ...small]) await pack(disk, plains);
      const store = new MemoryStore(disk).dieAfter(changes);
      const result = await collectOn(store, kept).catch(() => "killed");
      await expectAll(disk, kept);
      disk.nowMs += 16 * 60_000;
      expect(await collectOn(new MemoryStore(disk), kept)).not.toBeNull();
      await expectAll(disk, kept);
      // Another one finds nothing to do: what was left twice is there once.
      expect(await collectOn(new MemoryStore(disk), kept)).toMatchObject({ removedPacks: 0, writtenPacks: 0 });
      expect(disk.names("pending/")).toEqual([]);
      expect(disk.bytes("packs/")).toBeLessThan(1.5 * (3 + 10) * 10 * KiB + 30 * KiB);
      if (!store.isDead && result !== "killed") break;
      kills += 1;
    }
    expect(kills).toBeGreaterThan(15);
  }, 60_000);

  test("that fails at any operation has lost nothing and leaves the gate", async () => {
    const [sparse, dense] = [chunks("sparse", 10), chunks("dense", 10)];
    const kept = [...sparse.slice(0, 3), ...dense];
    let failures = 0;
    for (let failing = 0; ; failing += 1) {
      const disk = new MemoryDisk();
      for (const plains of [sparse, dense]) await pack(disk, plains);
      const store = new MemoryStore(disk);
      let deeds = 0;
      store.before = () => {
        if (deeds++ === failing) throw Object.assign(new Error("no"), { code: "GW_STORE_UNAVAILABLE" });
      };
      const result = await collectOn(store, kept).catch(() => "failed");
      await expectAll(disk, kept);
      if (deeds <= failing) break;
      // A mark that could not be removed is a dead process's mark, or a dead mark soon.
      failures += result === "failed" ? 1 : 0;
    }
    expect(failures).toBeGreaterThan(5);
  });

  test("does not begin while somebody writes, and asks for nothing then", async () => {
    const disk = new MemoryDisk();
    await pack(disk, chunks("a", 3));
    const writer = await openPacksToWrite(new MemoryStore(disk), { key: null, signal });
    let isAsked = false;
    const kept = (async function* () {
      isAsked = true;
      yield* [];
    })();
    expect(await collect(new MemoryStore(disk), kept, { key: null, signal })).toBeNull();
    expect(isAsked).toBe(false);
    expect(disk.names("packs/")).toHaveLength(1);
    await writer.close();
    expect(await collectOn(new MemoryStore(disk), [])).toMatchObject({ removedPacks: 1 });
  });

  test("that cannot learn what is kept removes nothing", async () => {
    const disk = new MemoryDisk();
    await pack(disk, chunks("a", 3));
    const kept = (async function* () {
      yield chunkId(chunks("a", 1)[0]!);
      throw new Error("a manifest cannot be read");
    })();
    await expect(collect(new MemoryStore(disk), kept, { key: null, signal })).rejects.toThrow(
      "a manifest cannot be read",
    );
    expect(disk.names("packs/")).toHaveLength(1);
    expect(disk.names("pending/")).toEqual([]);
  });

  test("a reader that is under way goes on after it", async () => {
    const disk = new MemoryDisk();
    const plains = chunks("read", 20, 100 * KiB);
    await pack(disk, plains);
    const packs = await openPacks(new MemoryStore(disk), { key: null, signal });
    const kept = plains.slice(0, 8);
    await packs.get(chunkId(kept[0]!));
    await collectOn(new MemoryStore(disk), kept);
    for (const plain of kept) expect((await packs.get(chunkId(plain))).equals(plain)).toBe(true);
  });

  test("ends when it is told to", async () => {
    const disk = new MemoryDisk();
    await pack(disk, chunks("a", 3));
    const stop = new AbortController();
    const kept = (async function* () {
      stop.abort(new Error("stopped"));
      yield* [];
    })();
    await expect(collect(new MemoryStore(disk), kept, { key: null, signal: stop.signal })).rejects.toThrow("stopped");
    expect(disk.names("packs/")).toHaveLength(1);
    expect(disk.names("pending/")).toEqual([]);
  });
});

describe("a collection in a store with damage", () => {
  test("does not write a pack anew whose bytes are not what its name says, and does not remove it", async () => {
    const disk = new MemoryDisk();
    const plains = chunks("damaged", 10);
    await pack(disk, plains);
    const [name] = disk.names("packs/");
    disk.tamper(name!, (bytes) => bytes.fill(0, 5, 50));
    const kept = plains.slice(6, 9);
    expect(await collectOn(new MemoryStore(disk), kept)).toMatchObject({ removedPacks: 0, damaged: [name] });
    await expectAll(disk, kept);
  });

  test("leaves a pack without an index alone", async () => {
    const disk = new MemoryDisk();
    await pack(disk, chunks("damaged", 3));
    const [name] = disk.names("packs/");
    disk.tamper(name!, (bytes) => bytes.fill(0, bytes.length - 20));
    expect(await collectOn(new MemoryStore(disk), [])).toMatchObject({ removedPacks: 0, damaged: [name] });
    expect(disk.names("packs/")).toEqual([name]);
  });

  test("does not take a second copy for needless when the first is damaged", async () => {
    for (const isFirstDamaged of [true, false]) {
      const disk = new MemoryDisk();
      const plains = chunks("twice", 4);
      // Two writers that did not see each other: the same chunks in two packs.
      const two = [new MemoryDisk(), new MemoryDisk()];
      await pack(two[0]!, plains);
      await pack(two[1]!, [...plains, ...chunks("more", 1)]);
      for (const other of two) for (const [name, object] of other.objects) disk.objects.set(name, object);
      const larger = two[1]!.names("packs/")[0]!;
      if (isFirstDamaged) disk.tamper(larger, (bytes) => bytes.fill(0, 5, 50));
      const result = await collectOn(new MemoryStore(disk), [...plains, ...chunks("more", 1)]);
      expect(result).toMatchObject({ removedPacks: isFirstDamaged ? 0 : 1 });
      if (!isFirstDamaged) await expectAll(disk, [...plains, ...chunks("more", 1)]);
      else expect(disk.names("packs/")).toHaveLength(2);
    }
  });
});

describe("a collection in a store with several keys", () => {
  const [plain, mine, foreign] = [chunks("plain", 6), chunks("mine", 6), chunks("foreign", 6)];

  async function filled(): Promise<MemoryDisk> {
    const disk = new MemoryDisk();
    await pack(disk, plain);
    await pack(disk, mine, key);
    await pack(disk, foreign, otherKey);
    return disk;
  }

  test("judges what is not encrypted and what is under its own key", async () => {
    const disk = await filled();
    const kept = [...plain.slice(0, 2), ...mine.slice(0, 2), foreign[0]!];
    expect(await collectOn(new MemoryStore(disk), kept, key)).toMatchObject({
      removedPacks: 2,
      writtenPacks: 2,
      foreign: 1,
    });
    await expectAll(disk, [...plain.slice(0, 2), ...mine.slice(0, 2)], key);
    await expectAll(disk, foreign, otherKey);
  });

  test("leaves what is under another key while anything kept may be in it", async () => {
    const disk = await filled();
    await collectOn(new MemoryStore(disk), [foreign[0]!]);
    expect(disk.names("packs/")).toHaveLength(2);
    await expectAll(disk, foreign, otherKey);
  });

  test("removes what is under another key once all that is kept is elsewhere", async () => {
    const disk = await filled();
    expect(await collectOn(new MemoryStore(disk), [...plain, ...mine], key)).toMatchObject({
      removedPacks: 1,
      foreign: 0,
    });
    await expectAll(disk, [...plain, ...mine], key);
    expect(disk.names("packs/")).toHaveLength(2);
  });

  test("does not write the encrypted anew without encryption, nor the other way round", async () => {
    const disk = await filled();
    const kept = [...plain.slice(0, 2), ...mine.slice(0, 2)];
    await collectOn(new MemoryStore(disk), kept, key);
    await expectAll(disk, plain.slice(0, 2));
    await expect(expectAll(disk, mine.slice(0, 2))).rejects.toMatchObject({ code: "GW_RECOVERY_REFUSED" });
  });
});
