// From a folder into packs and back: the same tree, the same root; only what is new is stored; and nothing that was tampered with comes back.
import {
  chmodSync,
  readFileSync,
  readdirSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { dirname, join } from "node:path";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { describe, expect, test } from "vitest";
import { archive, archiveStream, readStream, readTree, restore, rootOf } from "../../recorder/archive.ts";
import type { Archived } from "../../recorder/archive.ts";
import { FolderPlace } from "../../recorder/capture/folder.ts";
import type { Place, Readable, Replacement, TreeEntry } from "../../recorder/capture/place.ts";
import { collect } from "../../recorder/collector.ts";
import { decodeChunks } from "../../recorder/listing.ts";
import { openPacks, openPacksToWrite } from "../../recorder/packs.ts";
import { chunkId, seal, snapshotKey } from "../../recorder/seal.ts";
import type { SnapshotKey } from "../../recorder/seal.ts";
import { openStampCache, stampOf } from "../../recorder/stamps.ts";
import type { StampCache } from "../../recorder/stamps.ts";
import { noise } from "../fixtures/chunks/inputs.ts";
import { temporaryFolder } from "../helpers/folder.ts";
import { contentsOf, everything, fill, inPieces, shown } from "./capture/place.contract.ts";
import type { Item } from "./capture/place.contract.ts";
import { MemoryDisk, MemoryStore } from "./memory-store.ts";

const { signal } = new AbortController();
const key = snapshotKey(Buffer.alloc(32, 7));
/** So far in the future that no stamp is too young. */
const later = (): number => Date.now() + 60_000;

async function newState(items: readonly Item[] = everything): Promise<string> {
  const folder = join(temporaryFolder("archive"), "state");
  await fill(new FolderPlace(folder, []), items);
  return folder;
}

interface CaptureOptions {
  readonly key?: SnapshotKey | null;
  readonly cache?: StampCache | null;
  readonly beganMs?: number;
}

async function capture(disk: MemoryDisk, place: Place, options: CaptureOptions = {}): Promise<Archived> {
  const packs = await openPacksToWrite(new MemoryStore(disk), { key: options.key ?? null, signal });
  try {
    const { cache = null, beganMs } = options;
    const archived = await archive(place, packs, { signal, cache, ...(beganMs === undefined ? {} : { beganMs }) });
    await packs.flush();
    return archived;
  } finally {
    await packs.close();
  }
}

async function bringBack(
  disk: MemoryDisk,
  archived: Archived,
  folder: string,
  key: SnapshotKey | null = null,
): Promise<void> {
  const packs = await openPacks(new MemoryStore(disk), { key, signal });
  await restore(archived, packs, new FolderPlace(folder, []), { signal });
}

const files = (count: number, bytes = 1_000): Item[] =>
  Array.from({ length: count }, (_, i) => ({ path: `file ${i}`, mode: 0o644, content: noise(`file ${i}`, bytes) }));
const rootAt = (folder: string): Promise<string> => rootOf(new FolderPlace(folder, []), { signal, cache: null });
const cacheFile = (): string => join(temporaryFolder("stamps"), "stamps");
const leftovers = (folder: string): string[] =>
  readdirSync(dirname(folder)).filter((name) => name.includes("restoring"));

describe.each([
  ["plain", null],
  ["encrypted", key],
])("a %s snapshot", (_, key) => {
  test("brings back every kind of entry as it was, and has the root that was recorded", async () => {
    const folder = await newState();
    const disk = new MemoryDisk();
    const archived = await capture(disk, new FolderPlace(folder, []), { key });
    expect(archived.treeEntries).toBe(everything.length);
    expect(archived.treeBytes).toBe(everything.reduce((sum, { content }) => sum + (content?.length ?? 0), 0));
    expect(archived.root).toBe(await rootAt(folder));
    const restored = `${folder}-restored`;
    await bringBack(disk, archived, restored, key);
    expect(shown(await contentsOf(new FolderPlace(restored, [])))).toEqual(shown(everything));
    expect(await rootAt(restored)).toBe(archived.root);
  });

  test("of the same state again stores nothing", async () => {
    const folder = await newState();
    const disk = new MemoryDisk();
    const first = await capture(disk, new FolderPlace(folder, []), { key });
    expect(first.newChunks).toBeGreaterThan(10);
    const bytes = disk.bytes("");
    const second = await capture(disk, new FolderPlace(folder, []), { key });
    expect(second).toMatchObject({ root: first.root, listing: first.listing, newBytes: 0, newChunks: 0 });
    expect(disk.bytes("")).toBe(bytes);
  });

  test("of an empty folder is one, and brings back an empty folder", async () => {
    const folder = await newState([]);
    const disk = new MemoryDisk();
    const archived = await capture(disk, new FolderPlace(folder, []), { key });
    expect(archived).toMatchObject({ treeEntries: 0, treeBytes: 0, newChunks: 1 });
    await bringBack(disk, archived, folder, key);
    expect(readdirSync(folder)).toEqual([]);
  });
});

describe("a snapshot", () => {
  test("of equal copies has one root, whatever order files were made in, and whoever captures", async () => {
    const [one, two] = [await newState(), join(temporaryFolder("archive"), "elsewhere")];
    await fill(
      new FolderPlace(two, []),
      everything.toSorted((a, b) => a.path.split("/").length - b.path.split("/").length || (a.path > b.path ? -1 : 1)),
    );
    expect(await rootAt(two)).toBe(await rootAt(one));
    chmodSync(join(two, "a file"), 0o600);
    expect(await rootAt(two)).not.toBe(await rootAt(one));
  });

  test("after a small change stores little more than the change", async () => {
    const folder = await newState([
      ...files(200, 20_000),
      { path: "large", mode: 0o644, content: noise("large", 8_000_000) },
    ]);
    const disk = new MemoryDisk();
    const first = await capture(disk, new FolderPlace(folder, []));
    writeFileSync(join(folder, "file 7"), noise("changed", 20_000));
    const large = readFileSync(join(folder, "large"));
    writeFileSync(
      join(folder, "large"),
      Buffer.concat([large.subarray(0, 4_000_000), Buffer.from("inserted"), large.subarray(4_000_000)]),
    );
    const second = await capture(disk, new FolderPlace(folder, []));
    expect(second.root).not.toBe(first.root);
    expect(first.newBytes).toBeGreaterThan(12_000_000);
    expect(second.newBytes).toBeLessThan(600_000);
    await bringBack(disk, second, `${folder}-restored`);
    expect(await rootAt(`${folder}-restored`)).toBe(second.root);
    await bringBack(disk, first, `${folder}-restored`);
    expect(await rootAt(`${folder}-restored`)).toBe(first.root);
  });

  test("stays whole when older ones are collected", async () => {
    const folder = await newState(files(100, 30_000));
    const disk = new MemoryDisk();
    const first = await capture(disk, new FolderPlace(folder, []));
    for (let i = 0; i < 60; i += 1) writeFileSync(join(folder, `file ${i}`), noise(`changed ${i}`, 30_000));
    const second = await capture(disk, new FolderPlace(folder, []));
    const packs = await openPacks(new MemoryStore(disk), { key: null, signal });
    const { entries } = await readTree(second, packs, signal);
    async function* kept(): AsyncGenerator<string> {
      for (const { id } of second.listing) yield id;
      for (const entry of entries) if (entry.kind === "file") for (const { id } of decodeChunks(entry.chunks)) yield id;
    }
    const before = disk.bytes("packs/");
    expect(await collect(new MemoryStore(disk), kept(), { key: null, signal })).toMatchObject({
      writtenPacks: 1,
      removedPacks: 1,
    });
    expect(disk.bytes("packs/")).toBeLessThan(0.7 * before);
    await bringBack(disk, second, `${folder}-restored`);
    expect(await rootAt(`${folder}-restored`)).toBe(second.root);
    await expect(bringBack(disk, first, `${folder}-restored`)).rejects.toMatchObject({ code: "GW_SNAPSHOT_CORRUPT" });
  });

  test("tells how far it is", async () => {
    const folder = await newState(files(50));
    const disk = new MemoryDisk();
    const packs = await openPacksToWrite(new MemoryStore(disk), { key: null, signal });
    const told: number[] = [];
    const archived = await archive(new FolderPlace(folder, []), packs, {
      signal,
      cache: null,
      onProgress: ({ bytes }) => told.push(bytes),
    });
    await packs.flush();
    expect(told).toHaveLength(50);
    expect(told.at(-1)).toBe(50_000);
    const restoring: number[] = [];
    await restore(archived, packs, new FolderPlace(`${folder}-restored`, []), {
      signal,
      onProgress: ({ bytes, entries }, total) => {
        expect(total).toEqual({ entries: 50, bytes: 50_000 });
        expect(entries).toBe(restoring.length + 1);
        restoring.push(bytes);
      },
    });
    expect(restoring.at(-1)).toBe(50_000);
    await packs.close();
  });

  test("leaves out what vanishes between its listing and its reading, and names it", async () => {
    const folder = await newState(files(30));
    const disk = new MemoryDisk();
    const place = new FolderPlace(folder, []);
    const vanishing = wrapped(place, async function* (stop) {
      for await (const readable of place.read(stop)) {
        if (readable.entry.path === "file 7") rmSync(join(folder, "file 7"));
        yield readable;
      }
    });
    const archived = await capture(disk, vanishing);
    expect(archived).toMatchObject({ treeEntries: 29, skipped: ["file 7"] });
    await bringBack(disk, archived, `${folder}-restored`);
    expect(await rootAt(`${folder}-restored`)).toBe(await rootAt(folder));
  });

  test("of a file that grows while it is read has the bytes that were read", async () => {
    const folder = await newState(files(3));
    const disk = new MemoryDisk();
    const place = new FolderPlace(folder, []);
    const growing = wrapped(place, async function* (stop) {
      for await (const readable of place.read(stop)) {
        if (readable.entry.path === "file 1") writeFileSync(join(folder, "file 1"), noise("grown", 700_000));
        yield readable;
      }
    });
    const archived = await capture(disk, growing);
    expect(archived.treeBytes).toBe(702_000);
    await bringBack(disk, archived, `${folder}-restored`);
    expect(readFileSync(join(`${folder}-restored`, "file 1")).equals(noise("grown", 700_000))).toBe(true);
  });

  test("of a place that gives one entry at a time is taken and brought back one entry at a time", async () => {
    const disk = new MemoryDisk();
    const place = new OneAtATime(everything);
    const archived = await capture(disk, place);
    const packs = await openPacks(new MemoryStore(disk), { key: null, signal });
    const target = new OneAtATime([]);
    await restore(archived, packs, target, { signal });
    expect(shown(target.items)).toEqual(shown(everything));
    expect(await rootOf(target, { signal, cache: null })).toBe(archived.root);
    expect(place.mostAtOnce).toBe(1);
    expect(target.mostAtOnce).toBe(1);
  });

  test("is refused where the tree could not be brought back", async () => {
    for (const items of [
      [
        { path: "a", content: Buffer.from("x"), mode: 0o644 },
        { path: "a", content: Buffer.from("y"), mode: 0o644 },
      ],
      [{ path: "l", target: "../out" }],
      [{ path: "missing/x", content: Buffer.from("x"), mode: 0o644 }],
    ])
      await expect(capture(new MemoryDisk(), new OneAtATime(items))).rejects.toMatchObject({
        code: "GW_SNAPSHOT_FAILED",
      });
  });
});

describe("a capture that fails", () => {
  test.each([
    ["GW_STORE_UNAVAILABLE", "put"],
    ["GW_STORE_FULL", "put"],
  ])("with %s when the store cannot %s ends with that, reads no further and leaves no mark", async (code, deed) => {
    const folder = await newState(files(60, 1_000_000));
    const store = new MemoryStore();
    const packs = await openPacksToWrite(store, { key: null, signal });
    store.before = (it, name) => {
      if (it === deed && name.startsWith("packs/")) throw Object.assign(new Error("no"), { code });
    };
    let read = 0;
    const place = new FolderPlace(folder, []);
    const counting = wrapped(place, async function* (stop) {
      for await (const readable of place.read(stop)) {
        read += 1;
        yield readable;
      }
    });
    await expect(archive(counting, packs, { signal, cache: null })).rejects.toMatchObject({ code });
    expect(read).toBeLessThan(60);
    await expect(packs.flush()).rejects.toMatchObject({ code });
    await packs.close();
    expect(store.disk.names("")).toEqual([]);
  });

  test("because the place does ends with the place's own reason", async () => {
    const place = new FolderPlace(await newState(files(20)), []);
    const broken = wrapped(place, async function* (stop) {
      let n = 0;
      for await (const readable of place.read(stop)) {
        if ((n += 1) === 10) throw new Error("the place broke");
        yield readable;
      }
    });
    await expect(capture(new MemoryDisk(), broken)).rejects.toThrow("the place broke");
    const unreadable = wrapped(place, async function* (stop) {
      for await (const readable of place.read(stop))
        yield readable.entry.path === "file 3" ? { ...readable, content: failing } : readable;
    });
    await expect(capture(new MemoryDisk(), unreadable)).rejects.toThrow("a disk broke");
  });

  test("ends what else is under way, however long that would take", async () => {
    const place = new FolderPlace(await newState(files(2)), []);
    const mixed = wrapped(place, async function* (stop) {
      for await (const readable of place.read(stop))
        yield { ...readable, content: readable.entry.path === "file 0" ? endless : failing };
    });
    await expect(capture(new MemoryDisk(), mixed)).rejects.toThrow("a disk broke");
  });

  test("because it is told to stop stops soon, wherever it is", async () => {
    const folder = await newState(files(40, 500_000));
    for (const after of [0, 1, 5, 20, 39]) {
      const stop = new AbortController();
      const packs = await openPacksToWrite(new MemoryStore(), { key: null, signal: stop.signal });
      let told = 0;
      const archiving = archive(new FolderPlace(folder, []), packs, {
        signal: stop.signal,
        cache: null,
        onProgress: () => {
          if ((told += 1) > after) stop.abort(new Error("stopped"));
        },
      });
      await expect(archiving).rejects.toThrow("stopped");
      await packs.close();
    }
  });
});

describe("a restore", () => {
  test("of a listing that was tampered with is refused before anything is written", async () => {
    const { disk, archived, folder } = await recorded();
    const place = new FolderPlace(folder, []);
    let replacing = 0;
    const watched: Place = Object.assign(
      wrapped(place, (stop) => place.read(stop)),
      {
        replace: (stop: AbortSignal) => {
          replacing += 1;
          return place.replace(stop);
        },
      },
    );
    const other = await capture(disk, new OneAtATime(files(2)));
    const packs = await openPacks(new MemoryStore(disk), { key: null, signal });
    for (const wrong of [
      { ...archived, root: "00".repeat(32) },
      { ...archived, listing: other.listing },
      { ...archived, listing: [] },
      { ...archived, listing: archived.listing.map((ref) => ({ ...ref, sizeBytes: ref.sizeBytes + 1 })) },
      { ...archived, listing: [{ id: "00".repeat(32), sizeBytes: 5 }] },
    ])
      await expect(restore(wrong, packs, watched, { signal })).rejects.toMatchObject({ code: "GW_SNAPSHOT_CORRUPT" });
    expect(replacing).toBe(0);
    expectUntouched(folder);
  });

  test("of a chunk that was tampered with is refused, naming it, and nothing is left", async () => {
    const { disk, archived, folder } = await recorded();
    const [pack] = disk.names("packs/");
    for (const at of [50, 1_000_000, 3_000_000]) {
      const disk_ = new MemoryDisk();
      disk_.objects.set(pack!, disk.objects.get(pack!)!);
      disk_.tamper(pack!, (bytes) => {
        bytes[at]! ^= 1;
        return bytes;
      });
      await expect(bringBack(disk_, archived, folder)).rejects.toMatchObject({
        code: "GW_SNAPSHOT_CORRUPT",
        message: expect.stringMatching(/^chunk [0-9a-f]{64} is not what was recorded.*packs\//) as string,
      });
      expectUntouched(folder);
    }
  });

  test("of chunks that are missing is refused, and nothing is left", async () => {
    const { archived, disk, folder } = await recorded();
    const listing = new MemoryDisk();
    const packs = await openPacks(new MemoryStore(disk), { key: null, signal });
    const pieces: Buffer[] = [];
    for await (const piece of readStream(archived.listing, packs, signal)) pieces.push(piece);
    const writing = await openPacksToWrite(new MemoryStore(listing), { key: null, signal });
    await archiveStream(inPieces(Buffer.concat(pieces)), writing, signal);
    await writing.flush();
    await writing.close();
    await expect(bringBack(listing, archived, folder)).rejects.toMatchObject({
      code: "GW_SNAPSHOT_CORRUPT",
      message: expect.stringContaining("is in no pack") as string,
    });
    expectUntouched(folder);
  });

  test("without the key, or with another one, is refused and says which setting", async () => {
    const folder = await newState(files(3));
    const disk = new MemoryDisk();
    const archived = await capture(disk, new FolderPlace(folder, []), { key });
    for (const wrong of [null, snapshotKey(Buffer.alloc(32, 8))])
      await expect(bringBack(disk, archived, `${folder}-restored`, wrong)).rejects.toMatchObject({
        code: "GW_RECOVERY_REFUSED",
        message: expect.stringContaining("snapshots.encrypt.keyFile") as string,
      });
  });

  test("that is told to stop, or whose store goes away, leaves the live state and nothing else", async () => {
    const { disk, archived, folder } = await recorded();
    for (const after of [0, 3, 39]) {
      const stop = new AbortController();
      const packs = await openPacks(new MemoryStore(disk), { key: null, signal: stop.signal });
      const restoring = restore(archived, packs, new FolderPlace(folder, []), {
        signal: stop.signal,
        onProgress: ({ entries }) => {
          if (entries > after) stop.abort(new Error("stopped"));
        },
      });
      await expect(restoring).rejects.toThrow("stopped");
      expectUntouched(folder);
    }
    const store = new MemoryStore(disk);
    const packs = await openPacks(store, { key: null, signal });
    const restoring = restore(archived, packs, new FolderPlace(folder, []), {
      signal,
      onProgress: () => {
        store.before = () => {
          throw Object.assign(new Error("away"), { code: "GW_STORE_UNAVAILABLE" });
        };
      },
    });
    await expect(restoring).rejects.toMatchObject({ code: "GW_STORE_UNAVAILABLE" });
    expectUntouched(folder);
    await bringBack(disk, archived, folder);
    expect(await rootAt(folder)).toBe(archived.root);
  });

  test("holds little in memory, however large a file is", async () => {
    const disk = new MemoryDisk();
    const size = 192 * 1024 * 1024;
    async function* large(): AsyncGenerator<Buffer> {
      for (let at = 0; at < size; at += 1024 * 1024) yield noise(`large ${at}`, 1024 * 1024);
    }
    const place = new OneAtATime([{ path: "state", mode: 0o600, content: Buffer.alloc(0) }], large);
    const store = new MemoryStore(disk);
    let most = 0;
    const base = (): number => process.memoryUsage().arrayBuffers - disk.bytes("");
    setFlagsFromString("--expose-gc");
    const collectGarbage = runInNewContext("gc") as () => void;
    collectGarbage();
    const before = base();
    const look = (): void => {
      collectGarbage();
      most = Math.max(most, base() - before);
    };
    store.before = look;
    const packs = await openPacksToWrite(store, { key: null, signal });
    const archived = await archive(place, packs, { signal, cache: null });
    await packs.flush();
    await packs.close();
    expect(archived.treeBytes).toBe(size);
    // Three packs, and what is read, hashed and sealed: 63 to 67 MiB, and more where what was freed is not given back yet.
    expect(most).toBeLessThan(128 * 1024 * 1024);
    most = 0;
    let bytes = 0;
    const target = new OneAtATime([], null, (piece) => {
      if (Math.floor((bytes + piece.length) / 2 ** 22) > Math.floor(bytes / 2 ** 22)) look();
      bytes += piece.length;
    });
    await restore(archived, await openPacks(store, { key: null, signal }), target, { signal });
    expect(bytes).toBe(size);
    expect(most).toBeLessThan(64 * 1024 * 1024);
  });
});

describe("a stream", () => {
  test.each([0, 1, 1_000, 3_000_000])(
    "of %d bytes comes back, in order, and only once into the store",
    async (bytes) => {
      const store = new MemoryStore();
      const packs = await openPacksToWrite(store, { key, signal });
      const content = noise("stream", bytes);
      const refs = await archiveStream(inPieces(content, 999), packs, signal);
      await packs.flush();
      expect(refs.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0)).toBe(bytes);
      const pieces: Buffer[] = [];
      for await (const piece of readStream(refs, packs, signal)) pieces.push(piece);
      expect(Buffer.concat(pieces).equals(content)).toBe(true);
      expect(await archiveStream(inPieces(content), packs, signal)).toEqual(refs);
      await packs.flush();
      expect(store.disk.names("packs/")).toHaveLength(bytes === 0 ? 0 : 1);
      await packs.close();
    },
  );

  test("that fails ends with its own reason", async () => {
    const packs = await openPacksToWrite(new MemoryStore(), { key: null, signal });
    await expect(archiveStream(failing(), packs, signal)).rejects.toThrow("a disk broke");
    await packs.close();
  });

  test("whose reader leaves early, or whose chunk is missing, rejects nothing that nobody asked for", async () => {
    const store = new MemoryStore();
    const packs = await openPacksToWrite(store, { key: null, signal });
    const refs = [...(await archiveStream(inPieces(noise("early", 2_000_000)), packs, signal))];
    await packs.flush();
    refs.push({ id: "00".repeat(32), sizeBytes: 1 });
    for await (const _ of readStream(refs.slice(-3), packs, signal)) break;
    const all = async (): Promise<void> => {
      for await (const _ of readStream(refs, packs, signal)) void _;
    };
    await expect(all()).rejects.toMatchObject({ code: "GW_SNAPSHOT_CORRUPT" });
    await packs.close();
  });
});

describe("what is remembered of a place", () => {
  test("spares reading what was not written since, and changes nothing else", async () => {
    const folder = await newState(files(50, 30_000));
    const disk = new MemoryDisk();
    const file = cacheFile();
    const first = await capture(disk, new FolderPlace(folder, []), {
      cache: await openStampCache(file),
      beganMs: later(),
    });
    expect(first.readBytes).toBe(1_500_000);
    const second = await capture(disk, new FolderPlace(folder, []), {
      cache: await openStampCache(file),
      beganMs: later(),
    });
    expect(second).toEqual({ ...first, readBytes: 0, newBytes: 0, newChunks: 0 });
    writeFileSync(join(folder, "file 3"), noise("changed", 30_000));
    renameSync(join(folder, "file 4"), join(folder, "file 4 renamed"));
    const third = await capture(disk, new FolderPlace(folder, []), {
      cache: await openStampCache(file),
      beganMs: later(),
    });
    expect(third.readBytes).toBe(60_000);
    expect(third.root).toBe(await rootAt(folder));
    expect(await rootOf(new FolderPlace(folder, []), { signal, cache: await openStampCache(file) })).toBe(third.root);
  });

  test("does not hide a write that left size and time of modification as they were", async () => {
    const folder = await newState(files(3));
    const disk = new MemoryDisk();
    const cache = await openStampCache(cacheFile());
    await capture(disk, new FolderPlace(folder, []), { cache, beganMs: later() });
    const { atime, mtime } = statSync(join(folder, "file 1"));
    writeFileSync(join(folder, "file 1"), noise("same size", 1_000));
    utimesSync(join(folder, "file 1"), atime, mtime);
    const second = await capture(disk, new FolderPlace(folder, []), { cache, beganMs: later() });
    expect(second.root).toBe(await rootAt(folder));
    expect(second.readBytes).toBe(1_000);
  });

  test("is nothing of files that were written less than two seconds before the capture began", async () => {
    const folder = await newState(files(3));
    const disk = new MemoryDisk();
    const cache = await openStampCache(cacheFile());
    const changedMs = Math.max(...readdirSync(folder).map((name) => statSync(join(folder, name)).ctimeMs));
    await capture(disk, new FolderPlace(folder, []), { cache, beganMs: changedMs + 1_900 });
    expect(
      (await capture(disk, new FolderPlace(folder, []), { cache, beganMs: changedMs + 2_100 })).readBytes,
    ).toBeGreaterThan(0);
    expect((await capture(disk, new FolderPlace(folder, []), { cache, beganMs: changedMs + 2_100 })).readBytes).toBe(0);
  });

  test("counts only while all its chunks are in the store", async () => {
    const folder = await newState(files(3, 100_000));
    const cache = await openStampCache(cacheFile());
    await capture(new MemoryDisk(), new FolderPlace(folder, []), { cache, beganMs: later() });
    const disk = new MemoryDisk();
    const archived = await capture(disk, new FolderPlace(folder, []), { cache, beganMs: later() });
    expect(archived.readBytes).toBe(300_000);
    await bringBack(disk, archived, `${folder}-restored`);
    expect(await rootAt(`${folder}-restored`)).toBe(archived.root);
    // Under a key it is not the same chunk.
    expect((await capture(disk, new FolderPlace(folder, []), { cache, beganMs: later(), key })).readBytes).toBe(
      300_000,
    );
  });

  test("is forgotten when its file is damaged in any byte, cut off or missing", async () => {
    const folder = await newState(files(3));
    const file = cacheFile();
    await capture(new MemoryDisk(), new FolderPlace(folder, []), {
      cache: await openStampCache(file),
      beganMs: later(),
    });
    const sound = readFileSync(file);
    const stamp = stampOf(statSync(join(folder, "file 1"), { bigint: true }));
    expect((await openStampCache(file)).find("file 1", stamp)).not.toBeNull();
    for (let at = 0; at < sound.length; at += 7) {
      const damaged = Buffer.from(sound);
      damaged[at]! ^= 0x10;
      writeFileSync(file, damaged);
      expect((await openStampCache(file)).find("file 1", stamp)).toBeNull();
    }
    for (const length of [0, 1, 14, 40, sound.length - 1]) {
      writeFileSync(file, sound.subarray(0, length));
      expect((await openStampCache(file)).find("file 1", stamp)).toBeNull();
    }
    rmSync(file);
    expect((await openStampCache(file)).find("file 1", stamp)).toBeNull();
  });

  test("of a place without stamps is nothing", async () => {
    const cache = await openStampCache(cacheFile());
    const place = new OneAtATime(files(3));
    await capture(new MemoryDisk(), place, { cache, beganMs: later() });
    expect(await rootOf(place, { signal, cache })).toBe(await rootOf(place, { signal, cache: null }));
    expect(cache.find("file 1", null)).toBeNull();
  });

  test("of a capture that failed is what it was before", async () => {
    const folder = await newState(files(3));
    const cache = await openStampCache(cacheFile());
    const disk = new MemoryDisk();
    await capture(disk, new FolderPlace(folder, []), { cache, beganMs: later() });
    symlinkSync("../out", join(folder, "out"));
    await expect(capture(disk, new FolderPlace(folder, []), { cache, beganMs: later() })).rejects.toMatchObject({
      code: "GW_SNAPSHOT_FAILED",
    });
    rmSync(join(folder, "out"));
    expect((await capture(disk, new FolderPlace(folder, []), { cache, beganMs: later() })).readBytes).toBe(0);
  });
});

test("a chunk that seems stored but is sealed wrongly is found by whoever reads it", async () => {
  const disk = new MemoryDisk();
  const plain = noise("wrong", 1_000);
  const sealed = await seal(chunkId(noise("other", 1_000)), noise("other", 1_000), null);
  const { PackBuilder, noKey } = await import("../../recorder/pack.ts");
  const builder = new PackBuilder(noKey);
  builder.add(chunkId(plain), sealed);
  const { bytes, index } = builder.finish();
  await new MemoryStore(disk).put(index.pack, bytes);
  const packs = await openPacks(new MemoryStore(disk), { key: null, signal });
  expect(packs.has(chunkId(plain))).toBe(true);
  await expect(packs.get(chunkId(plain))).rejects.toMatchObject({ code: "GW_SNAPSHOT_CORRUPT" });
});

/** A snapshot, and a live folder that it could replace. */
async function recorded(items = files(40, 100_000)): Promise<{ disk: MemoryDisk; archived: Archived; folder: string }> {
  const folder = await newState(items);
  const disk = new MemoryDisk();
  const archived = await capture(disk, new FolderPlace(folder, []));
  const target = join(temporaryFolder("restore"), "state");
  await fill(new FolderPlace(target, []), [{ path: "live", mode: 0o644, content: Buffer.from("live") }]);
  return { disk, archived, folder: target };
}
function expectUntouched(folder: string): void {
  expect(readdirSync(folder)).toEqual(["live"]);
  expect(leftovers(folder)).toEqual([]);
}

/** The same place with other entries to read. */
function wrapped(place: Place, read: (signal: AbortSignal) => AsyncIterable<Readable>): Place {
  return {
    isSequential: place.isSequential,
    where: place.where,
    get skipped() {
      return place.skipped;
    },
    read,
    replace: (stop) => place.replace(stop),
    putBack: (stop) => place.putBack(stop),
  };
}

/** As an archive is: each entry only after the one before it. */
class OneAtATime implements Place {
  readonly isSequential = true;
  readonly where = "memory";
  readonly skipped: readonly string[] = [];
  items: readonly Item[];
  mostAtOnce = 0;
  #now = 0;
  readonly #stream: (() => AsyncIterable<Buffer>) | null;
  readonly #onPiece: ((piece: Buffer) => void) | null;

  constructor(
    items: readonly Item[],
    stream: (() => AsyncIterable<Buffer>) | null = null,
    onPiece: ((piece: Buffer) => void) | null = null,
  ) {
    this.items = items;
    this.#stream = stream;
    this.#onPiece = onPiece;
  }

  putBack(): Promise<boolean> {
    return Promise.resolve(false);
  }

  async *read(stop: AbortSignal): AsyncGenerator<Readable> {
    for (const { path, mode = 0, content, target } of this.items) {
      stop.throwIfAborted();
      if (this.#now > 0) throw new Error("the entry before was not read to its end");
      if (target !== undefined) yield { entry: { kind: "link", path, target }, content: null };
      else if (content === undefined) yield { entry: { kind: "folder", path, mode }, content: null };
      else
        yield {
          entry: { kind: "file", path, mode, sizeBytes: content.length, stamp: null },
          content: () => this.#counted(this.#stream?.() ?? inPieces(content)),
        };
    }
  }

  async *#counted(pieces: AsyncIterable<Buffer>): AsyncGenerator<Buffer> {
    this.#now += 1;
    this.mostAtOnce = Math.max(this.mostAtOnce, this.#now);
    yield* pieces;
    this.#now -= 1;
  }

  replace(): Promise<Replacement> {
    const fresh: Item[] = [];
    const put = async (entry: TreeEntry, content: AsyncIterable<Buffer> | null): Promise<void> => {
      this.mostAtOnce = Math.max(this.mostAtOnce, (this.#now += 1));
      if (entry.kind === "link") fresh.push({ path: entry.path, target: entry.target });
      else if (entry.kind === "folder") fresh.push({ path: entry.path, mode: entry.mode });
      else {
        const pieces: Buffer[] = [];
        for await (const piece of content ?? []) {
          if (this.#onPiece === null) pieces.push(piece);
          else this.#onPiece(piece);
        }
        fresh.push({ path: entry.path, mode: entry.mode, content: Buffer.concat(pieces) });
      }
      this.#now -= 1;
    };
    return Promise.resolve({
      put,
      commit: () => {
        this.items = fresh;
        return Promise.resolve();
      },
      abort: () => Promise.resolve(),
    });
  }
}

async function* endless(): AsyncGenerator<Buffer> {
  // Ends when nobody asks any more.
  for (;;) {
    await new Promise((resolve) => setImmediate(resolve));
    yield Buffer.alloc(100_000);
  }
}

async function* failing(): AsyncGenerator<Buffer> {
  yield noise("half", 10_000);
  throw new Error("a disk broke");
}
