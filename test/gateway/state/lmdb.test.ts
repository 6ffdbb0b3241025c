// What the state's store does beyond commits: it begins with a state that comes from elsewhere, whole or not at all, and forgets the log's past.
import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { readdirSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { open } from "lmdb";
import { describe, expect, it, onTestFinished } from "vitest";
import { positionOf } from "../../../gateway/entry.ts";
import { openLmdbState } from "../../../gateway/state/lmdb.ts";
import { ReaderState } from "../../../gateway/state/state.ts";
import type { StateBatch, StateStore } from "../../../gateway/state/store.ts";
import { endWithUs, temporaryFolder } from "../../helpers/folder.ts";
import { entry, id16, id32, keyed } from "../../fixtures/records/samples.ts";
import { skip, Writer } from "./logs.ts";
import { sampleEpoch as epoch, sampleHead, sampleState } from "./samples.ts";

const p = positionOf;

const batch = (over: Partial<StateBatch>): StateBatch => ({
  head: sampleHead(),
  keys: new Map(),
  gonePositions: [],
  exceptions: [],
  bodies: [],
  ...over,
});

/** Everything that is in it. */
const contents = async (store: StateStore) => ({
  head: store.head(),
  rows: store.oldestKeys(-1, 100_000),
  skips: store.skips(1000),
  exceptions: store.exceptions(0, 1000),
  bodies: [...(await store.bodies(0))],
});
const bodied = (n: number) => entry({ body: { sha256: id32(n), sizeBytes: 1 } });
const nothing = { head: null, rows: [], skips: [], exceptions: [], bodies: [] };
const of = (sequence: number, keys: number) => {
  const { head, skips, rows } = sampleState(sequence, keys);
  return { head, skips, rows: rows(), exceptions: [], bodies: [] };
};

describe("beginning with a state", () => {
  it("replaces everything that was there; the fold goes on behind it, also after a restart", async () => {
    const folder = temporaryFolder("state");
    const store = openLmdbState(folder);
    const log = new Writer();
    const before = new ReaderState(store, epoch, 1);
    const many = Array.from({ length: 4000 }, (_, n) => keyed(n));
    for (let record = 0; record < 3; record++) before.fold(log.add([...many.slice(record * 900), keyed(1), bodied(1)]));
    before.fold(log.add([skip(p(1, 3), "poison")]));
    await before.commit();
    await store.reset(sampleState(50, 5000));
    expect(await contents(store)).toEqual(of(50, 5000));
    expect([store.key(id16(5)), new ReaderState(store, epoch, 1).sequence]).toEqual([null, 50]);
    await store.close();

    const again = openLmdbState(folder);
    expect(await contents(again)).toEqual(of(50, 5000));
    const state = new ReaderState(again, epoch, 1);
    expect([state.sequence, state.hash, state.entries, state.keyCount, state.skipped(p(50, 0))]).toEqual([
      50,
      id32(50),
      350,
      5000,
      "poison of 50",
    ]);
    await again.close();
  });

  it("with other rows than its head tells of is refused, and with a source that fails; nothing of it stays", async () => {
    const folder = temporaryFolder("state");
    const store = openLmdbState(folder);
    await store.commit(batch({ keys: new Map([[id16(1), of(9, 1).rows[0] ?? null]]) }));
    const state = sampleState(50, 6000);
    const tooFew = { ...state, head: { ...state.head, keyCount: 6001 } };
    await expect(store.reset(tooFew)).rejects.toMatchObject({ code: "GW_LOG_CORRUPT" });
    expect(await contents(store)).toEqual(nothing);
    const broken = async function* () {
      yield* state.keys;
      throw new Error("the chunk is gone");
    };
    await expect(store.reset({ ...state, keys: broken() })).rejects.toThrow("the chunk is gone");
    expect(await contents(store)).toEqual(nothing);
    await store.reset(state);
    expect(await contents(store)).toEqual(of(50, 6000));
    await store.close();
  });

  it("that was killed is found out: the next process has that state whole, a later one, or none", async () => {
    const folder = temporaryFolder("state");
    let sequence = 20;
    for (const delayMs of [5, 20, 45]) {
      const { begun, whole } = await killedAfter(folder, sequence, delayMs);
      const store = openLmdbState(folder);
      const found = await contents(store);
      // What was complete but not told of yet is whole as well.
      if (found.head === null) expect(found).toEqual(nothing);
      else {
        expect([whole, begun]).toContain(found.head.sequence);
        expect(found).toEqual(of(found.head.sequence, keysOfChild));
      }
      await store.close();
      sequence = begun + 1;
    }
  });

  it("that was killed half way leaves none, also of what was there before", async () => {
    const folder = temporaryFolder("state");
    await killedAfter(folder, 20, 0, "stall");
    const store = openLmdbState(folder);
    expect(await contents(store)).toEqual(nothing);
    expect(store.key(sampleState(21, keysOfChild).rows()[0]?.id ?? "")).toBe(null);
    await store.reset(sampleState(30, 10));
    expect(await contents(store)).toEqual(of(30, 10));
    await store.close();
  });

  it("finds no room with GW_DISK_FULL, leaves nothing, and finds room later", async () => {
    const folder = memoryFileSystem("3m");
    const store = openLmdbState(folder);
    await expect(store.reset(sampleState(50, 60_000))).rejects.toMatchObject({ code: "GW_DISK_FULL" });
    expect(store.head()).toBe(null);
    await store.reset(sampleState(51, 2000));
    expect(await contents(store)).toEqual(of(51, 2000));
    await store.close();
  });
});

describe("a store that an older version kept", () => {
  it("is begun anew: it does not know which bodies the log refers to", async () => {
    const folder = temporaryFolder("state");
    const store = openLmdbState(folder);
    await store.reset(sampleState(50, 100));
    await store.close();
    const root = open({ path: folder, noSubdir: false, maxDbs: 8 });
    await root.openDB({ name: "layout", encoding: "json" }).remove("layout");
    await root.close();
    const again = openLmdbState(folder);
    expect(await contents(again)).toEqual(nothing);
    await again.close();
  });
});

describe("forgetting", () => {
  it("takes exceptions and bodies of records below the first; skips, keys and all later ones stay", async () => {
    const store = openLmdbState(temporaryFolder("state"));
    const state = new ReaderState(store, epoch, 1);
    const log = new Writer();
    for (let record = 1; record <= 6; record++) {
      const first = log.add([keyed(1), bodied(record), keyed(1), bodied(7)]);
      // Record 3 is the second once more.
      if (record === 2) log.store(first.bytes);
    }
    log.add([skip(p(1, 1), "poison"), skip(p(5, 1), "poison")]);
    for (const record of log.records) state.fold(record);
    await state.commit();
    const before = await contents(store);
    await store.truncate(4);
    const after = await contents(store);
    expect(after).toEqual({
      ...before,
      exceptions: before.exceptions.filter((it) => (it.kind === "dropped" ? it.sequence : it.position / 4096) >= 4),
      bodies: [3, 7, 4, 5, 6].map(id32),
    });
    expect(after.exceptions.length).toBeGreaterThan(5);
    expect(await store.bodies(7)).toEqual(new Set([id32(6), id32(7)]));
    await store.truncate(1);
    expect(await contents(store)).toEqual(after);
    await store.close();
  });

  it("goes in steps, beside commits", async () => {
    const store = openLmdbState(temporaryFolder("state"));
    const dropped = Array.from({ length: 10_000 }, (_, n) => ({ kind: "dropped" as const, sequence: n + 1 }));
    const bodies = Array.from({ length: 10_000 }, (_, n) => ({ position: p(n + 1, 0), sha256: id32(n) }));
    await store.commit(batch({ exceptions: dropped, bodies }));
    const forgetting = store.truncate(9_999);
    await store.commit(batch({ exceptions: [{ kind: "duplicate", position: p(10_001, 0), of: 1 }] }));
    await forgetting;
    expect(store.exceptions(0, 20_000).length).toBe(3);
    expect((await store.bodies(0)).size).toBe(2);
    await store.close();
  });

  it("tells bodies that are not saved yet", async () => {
    const store = openLmdbState(temporaryFolder("state"));
    const state = new ReaderState(store, epoch, 1);
    const log = new Writer();
    state.fold(log.add([bodied(1)]));
    const saving = state.commit();
    state.fold(log.add([bodied(2)]));
    // A record that is dropped refers to nothing.
    state.fold(log.store((log.records[0] as { bytes: Buffer }).bytes));
    expect([await state.bodies(1), await state.bodies(2), await state.bodies(3)]).toEqual([
      new Set([id32(1), id32(2)]),
      new Set([id32(2)]),
      new Set(),
    ]);
    await saving;
    expect(await state.bodies(1)).toEqual(new Set([id32(1), id32(2)]));
    await store.close();
  });
});

const keysOfChild = 9000;

/** A child that begins with one state after the other; killed so many ms after it began with its third, or stalled half way in its second. */
async function killedAfter(folder: string, first: number, delayMs: number, mode: "run" | "stall" = "run") {
  const script = fileURLToPath(new URL("reset-for-ever.ts", import.meta.url));
  const args = ["--import", "tsx", script, folder, String(first), String(keysOfChild), mode];
  const child = spawn(process.execPath, args, { stdio: ["ignore", "pipe", "inherit"] });
  const gone = endWithUs(child.pid ?? 0);
  let [begun, whole] = [0, 0];
  for await (const line of createInterface(child.stdout)) {
    const [what, sequence] = line.split(" ");
    if (what === "begin") begun = Number(sequence);
    if (what === "whole") whole = Number(sequence);
    if (what === "stalled" || (what === "begin" && begun === first + 2))
      void sleep(delayMs).then(() => child.kill("SIGKILL"));
  }
  if (child.signalCode === null) await once(child, "exit");
  gone();
  expect(child.signalCode).toBe("SIGKILL");
  return { begun, whole };
}

function memoryFileSystem(size: string): string {
  const folder = temporaryFolder("tmpfs");
  expect(readdirSync(folder)).toEqual([]);
  execFileSync("mount", ["-t", "tmpfs", "-o", `size=${size}`, "tmpfs", folder]);
  onTestFinished(() => void execFileSync("umount", ["-l", folder]));
  return folder;
}
