// A state that is cut at a record is the same, whoever folded up to there and however, and who begins with it goes on like everybody else.
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { positionOf } from "../../../gateway/entry.ts";
import type { StoredRecord } from "../../../gateway/log/log.ts";
import { firstHash, sha256 } from "../../../gateway/record.ts";
import { openLmdbState } from "../../../gateway/state/lmdb.ts";
import { policyText, ReaderState, rulesItems } from "../../../gateway/state/state.ts";
import type { Fate, Folded, Policy } from "../../../gateway/state/state.ts";
import { reborn } from "../../../gateway/state/store.ts";
import type { KeyRow, StateCut, StateHead, StateStore } from "../../../gateway/state/store.ts";
import { createFolder, removeFolder, temporaryFolder } from "../../helpers/folder.ts";
import { emptyStore, entry, id16, id32, keyed, Producer, stored } from "../../fixtures/records/samples.ts";
import { claim, randomLog, settled, skip, Writer } from "./logs.ts";

const epoch = "0123456789abcdef";
const p = positionOf;

describe("random logs", () => {
  it("cut anywhere, with any restarts before, give the state of one fold; what is begun with it folds on alike", async () => {
    const after = fc.array(fc.constantFrom("go on", "go on", "commit", "commit beside", "commit fails", "kill"), {
      minLength: 1,
      maxLength: 40,
    });
    await fc.assert(
      fc.asyncProperty(randomLog, after, fc.nat(), async (records, interruptions, pick) => {
        const at = (pick % records.length) + 1;
        const folder = createFolder("cut");
        const wanted = await inOneGo(`${folder}/wanted`, records, at);
        const whole = await inOneGo(`${folder}/whole`, records, records.length);

        const { state, store, cut } = await withInterruptions(`${folder}/cut`, records, at, interruptions);
        expect(JSON.stringify(cut.head)).toBe(JSON.stringify(wanted.head));
        expect(JSON.stringify(cut.skips)).toBe(JSON.stringify(wanted.skips));
        expect(await all(cut.keys())).toEqual(wanted.keys);

        // As it comes back from a manifest: the order of fields is another.
        const begun = openLmdbState(`${folder}/begun`);
        await begun.reset({ head: sorted(cut.head), skips: cut.skips.map(sorted), keys: cut.keys() });
        cut.close();
        const later = new ReaderState(begun, epoch, 1);
        expect(later.sequence).toBe(at);
        const fates = records.slice(at).map((record) => fatesOf(later.fold(record)));
        expect(fates).toEqual(whole.fates.slice(at));
        await later.commit();
        await state.commit();
        for (const it of [begun, store]) {
          expect(JSON.stringify(it.head())).toBe(JSON.stringify(whole.head));
          expect(it.oldestKeys(-1, 1000)).toEqual(whole.keys);
          expect(JSON.stringify(it.skips(1000))).toBe(JSON.stringify(whole.skips));
          expect(await it.bodies(at + 1)).toEqual(await whole.bodies(at + 1));
        }
        expect(store.exceptions(1, records.length)).toEqual(whole.exceptions(1));
        expect(begun.exceptions(at + 1, records.length)).toEqual(whole.exceptions(at + 1));
        for (const it of [begun, store, wanted, whole]) await it.close();
        removeFolder(folder);
      }),
      { numRuns: 40 },
    );
  });
});

describe("a cut", () => {
  it("tells of its record and nothing later, however much is folded and saved while it is read", async () => {
    const store = openLmdbState(temporaryFolder("state"));
    const state = new ReaderState(store, epoch, 1);
    const log = new Writer();
    for (let record = 0; record < 3; record++)
      state.fold(log.add(Array.from({ length: 3000 }, (_, n) => keyed(record * 3000 + n))));
    state.fold(log.add([{ kind: "mark", reason: "snapshot" }]));
    const cutting = state.cut();
    state.fold(log.add([keyed(9001), skip(p(1, 7), "poison")]));
    const saving = state.commit();
    state.fold(log.add([keyed(9002)]));
    await saving;
    const cut = await cutting;
    expect(cut.head).toMatchObject({ sequence: 4, keyCount: 9000, entries: 9000 });

    const rows: KeyRow[] = [];
    for await (const row of cut.keys()) {
      rows.push(row);
      if (rows.length % 1000 !== 0) continue;
      state.fold(log.add([keyed(10_000 + rows.length), skip(p(1, rows.length / 1000), "poison")]));
      await state.commit();
    }
    expect(rows.map((row) => row.position)).toEqual(
      [1, 2, 3].flatMap((record) => Array.from({ length: 3000 }, (_, n) => p(record, n))),
    );
    expect(cut.skips).toEqual([]);
    expect(await all(cut.keys())).toEqual(rows);
    cut.close();
    await store.close();
  });

  it("leaves the event loop to others while its rows are read", async () => {
    const store = openLmdbState(temporaryFolder("state"));
    await store.reset({ head: head({ keyCount: 20_000 }), skips: [], keys: rowsOf(20_000) });
    const cut = store.cut();
    let turns = 0;
    const counting = setInterval(() => turns++, 0);
    expect((await all(cut.keys())).length).toBe(20_000);
    clearInterval(counting);
    expect(turns).toBeGreaterThan(2);
    await store.close();
  });

  it("that is closed, by itself or with its store, says so", async () => {
    const store = openLmdbState(temporaryFolder("state"));
    await store.reset({ head: head({ keyCount: 9000 }), skips: [], keys: rowsOf(9000) });
    const [one, two] = [store.cut(), store.cut()];
    const read = two.keys()[Symbol.asyncIterator]();
    await read.next();
    one.close();
    one.close();
    await expect(all(one.keys())).rejects.toMatchObject({ code: "GW_STOPPING" });
    await store.close();
    await expect(all({ [Symbol.asyncIterator]: () => read })).rejects.toMatchObject({ code: "GW_STOPPING" });
    two.close();
  });

  it("of what was never saved is an error", async () => {
    const store = openLmdbState(temporaryFolder("state"));
    expect(() => store.cut()).toThrow(expect.objectContaining({ code: "GW_INTERNAL" }) as Error);
    await store.close();
  });

  it("is refused while another one waits, and fails with its commit; nothing is lost by either", async () => {
    const store = openLmdbState(temporaryFolder("state"));
    let isFull = true;
    const commit: StateStore["commit"] = (batch) =>
      isFull ? Promise.reject(new Error("no space")) : store.commit(batch);
    const state = new ReaderState({ ...store, commit }, epoch, 1);
    const log = new Writer();
    const again = log.add([keyed(1), claim(2), keyed(1)]);
    const folded = fatesOf(state.fold(again));
    const first = state.cut();
    expect(fatesOf(state.replay(again, firstHash.toString("hex"), 0))).toEqual(folded);
    state.fold(log.add([keyed(3), keyed(1)]));
    await expect(state.cut()).rejects.toMatchObject({ code: "GW_CONFLICT" });
    expect([1, 2, 3].map((it) => state.key(id16(it))?.position)).toEqual([p(1, 0), p(1, 1), p(2, 0)]);
    await expect(state.commit()).rejects.toThrow("no space");
    await expect(first).rejects.toThrow("no space");
    expect([1, 2, 3].map((it) => state.key(id16(it))?.position)).toEqual([p(1, 0), p(1, 1), p(2, 0)]);
    isFull = false;
    const second = state.cut();
    state.fold(log.add([keyed(4)]));
    await state.commit();
    const cut = await second;
    expect([cut.head.sequence, (await all(cut.keys())).map((row) => row.position)]).toEqual([
      2,
      [p(1, 0), p(1, 1), p(2, 0)],
    ]);
    expect([store.head()?.sequence, store.exceptions(1, 9)]).toEqual([
      3,
      [
        { kind: "duplicate", position: p(1, 2), of: p(1, 0) },
        { kind: "duplicate", position: p(2, 1), of: p(1, 0) },
      ],
    ]);
    await store.close();
  });

  it("waits behind a commit that fails, and then brings what that one did not", async () => {
    const store = openLmdbState(temporaryFolder("state"));
    const fails: ((error: Error) => void)[] = [];
    const commit: StateStore["commit"] = (batch) =>
      fails.length === 0 ? new Promise((_, reject) => fails.push(reject)) : store.commit(batch);
    const state = new ReaderState({ ...store, commit }, epoch, 1);
    const log = new Writer();
    state.fold(log.add([keyed(1), claim(2), entry({ body: { sha256: id32(1), sizeBytes: 1 } })]));
    const failing = state.commit();
    state.fold(log.add([settled(p(1, 1), "done"), keyed(1), keyed(3)]));
    const cutting = state.cut();
    state.fold(log.add([skip(p(1, 0), "poison"), entry({ body: { sha256: id32(2), sizeBytes: 1 } })]));
    expect(await state.bodies(1)).toEqual(new Set([id32(1), id32(2)]));
    fails[0]?.(new Error("no space"));
    await expect(failing).rejects.toThrow("no space");
    expect(await state.bodies(1)).toEqual(new Set([id32(1), id32(2)]));
    await state.commit();
    const cut = await cutting;
    const wanted = await inOneGo(temporaryFolder("wanted"), log.records, 2);
    expect(cut.head).toEqual(wanted.head);
    expect(await all(cut.keys())).toEqual(wanted.keys);
    const whole = await inOneGo(temporaryFolder("whole"), log.records, 3);
    expect([store.head(), store.oldestKeys(-1, 9), store.exceptions(1, 3), store.skips(9)]).toEqual([
      whole.head,
      whole.keys,
      whole.exceptions(1),
      whole.skips,
    ]);
    for (const it of [store, wanted, whole]) await it.close();
  });

  it("forgets idle producers at the same records, wherever the process began", async () => {
    const start = 17 * 4096 - 3;
    const [idle, busy] = [new Producer(1), new Producer(2)];
    const base = head({
      sequence: start,
      producers: [
        { producer: idle.boot, n: 0, hash: sha256(idle.record([])).toString("hex"), sequence: 4090 },
        { producer: id16(0), n: 3, hash: id32(3), sequence: start - 65_000 },
      ],
    });
    const records = Array.from({ length: 8 }, (_, n) => stored(start + 1 + n, busy.record([], { base: start })));
    const heads = async (isRestarted: boolean): Promise<string[]> => {
      const folder = temporaryFolder("state");
      let store = openLmdbState(folder);
      await store.reset({ head: base, skips: [], keys: rowsOf(0) });
      let state = new ReaderState(store, epoch, 1);
      const found: string[] = [];
      for (const record of records) {
        state.fold(record);
        await state.commit();
        found.push(JSON.stringify(store.head()));
        if (!isRestarted) continue;
        const cut = store.cut();
        const other = openLmdbState(temporaryFolder("state"));
        await other.reset({ head: cut.head, skips: cut.skips, keys: cut.keys() });
        await store.close();
        store = other;
        state = new ReaderState(store, epoch, 1);
      }
      await store.close();
      return found;
    };
    const wanted = await heads(false);
    const known = wanted.map((it) => (JSON.parse(it) as StateHead).producers.map((row) => row.producer));
    expect(known[0]).toEqual([id16(0), idle.boot, busy.boot]);
    expect(known.map((it) => it.length)).toEqual([3, 3, 2, 2, 2, 2, 2, 2]);
    expect(await heads(true)).toEqual(wanted);
  });

  it("knows a settled claim that was folded long ago and not saved yet", () => {
    const log = new Writer();
    const state = new ReaderState(emptyStore(), epoch, 1);
    for (let record = 0; record < 25; record++)
      state.fold(log.add(Array.from({ length: 4000 }, (_, n) => claim(record * 4000 + n))));
    state.fold(log.add([settled(p(1, 0), "not-started")]));
    expect([state.key(id16(0)), state.keyCount]).toEqual([null, 99_999]);
  });
});

describe("a new epoch", () => {
  const policy: Policy = { rules: "{}", retentionMs: 1000, window: 10 };

  it("begins with the keys, rules and counts of the lost log, and with a chain and producers of its own", async () => {
    const old = openLmdbState(temporaryFolder("state"));
    const before = new ReaderState(old, epoch, 1);
    const log = new Writer();
    before.fold(log.add([...rulesItems(policyText(policy), 10_000), keyed(1), claim(2)]));
    before.fold(log.add([keyed(3), skip(p(1, 1), "poison")]));
    await before.commit();
    const cut = old.cut();
    const begun = reborn(cut.head, "fedcba9876543210", 100);
    expect(begun).toEqual({
      ...cut.head,
      epoch: "fedcba9876543210",
      sequence: 99,
      hash: firstHash.toString("hex"),
      producers: [],
      parts: {},
    });
    const store = openLmdbState(temporaryFolder("state"));
    await store.reset({ head: begun, skips: cut.skips, keys: cut.keys() });
    const state = new ReaderState(store, "fedcba9876543210", 100);
    // The producer of the lost log may not go on in the new one; a new one begins with 0.
    const first = stored(100, new Producer(7).record([keyed(3), keyed(1), settled(p(1, 2), "done")], { base: 99 }));
    expect(fatesOf(state.fold(first))).toEqual([
      { kind: "duplicate", of: p(2, 0) },
      { kind: "applied" },
      { kind: "control" },
    ]);
    expect([state.key(id16(2))?.kind, state.keyCount, state.entries]).toEqual(["done", 3, 3]);
    expect(state.skipped(p(1, 1))).toBe("poison");
    await state.commit();
    expect(store.oldestKeys(-1, 9).map((row) => row.position)).toEqual([p(1, 2), p(2, 0), p(100, 1)]);
    for (const it of [old, store]) await it.close();
  });

  it("never begins at a position that the lost log may have reached", () => {
    expect(() => reborn(head({ sequence: 99 }), "fedcba9876543210", 99)).toThrow(
      expect.objectContaining({ code: "GW_INTERNAL" }) as Error,
    );
  });
});

/** A fold of one process, saved once, at the end. */
async function inOneGo(folder: string, records: readonly StoredRecord[], upTo: number) {
  const store = openLmdbState(folder);
  const state = new ReaderState(store, epoch, 1);
  const fates = records.slice(0, upTo).map((record) => fatesOf(state.fold(record)));
  await state.commit();
  return {
    head: store.head(),
    keys: store.oldestKeys(-1, 1000),
    skips: store.skips(1000),
    fates,
    exceptions: (from: number) => store.exceptions(from, records.length),
    bodies: (from: number) => store.bodies(from),
    close: () => store.close(),
  };
}

/** The same log, with commits beside the fold, commits that fail, kills; cut after the record `at`, folded to its end. */
async function withInterruptions(
  folder: string,
  records: readonly StoredRecord[],
  at: number,
  interruptions: readonly string[],
) {
  let store = openLmdbState(folder);
  let isFull = false;
  const open = (): ReaderState =>
    new ReaderState(
      {
        ...store,
        commit: async (batch) => {
          if (isFull) throw new Error("no space");
          await store.commit(batch);
        },
      },
      epoch,
      1,
    );
  let state = open();
  let committing: Promise<void> | null = null;
  let cutting: Promise<StateCut> | null = null;
  for (let steps = 0; state.sequence < records.length; steps++) {
    state.fold(records[state.sequence] as StoredRecord);
    // As the reader does it: sealed at its record; a commit may be under way, and the fold goes on.
    if (state.sequence === at && cutting === null) {
      cutting = state.cut();
      committing = (committing ?? Promise.resolve()).then(() => state.commit());
    }
    const what = steps < 3 * records.length ? interruptions[steps % interruptions.length] : "go on";
    if (what === "commit fails") {
      await committing;
      isFull = true;
      await state.commit().catch(() => undefined);
      isFull = false;
      committing = null;
    }
    if (what === "commit" || what === "commit beside") {
      await committing;
      committing = state.commit();
      if (what === "commit") await committing;
    }
    // A process that is killed takes its cut with it.
    if (what === "kill" && cutting === null) {
      await committing;
      committing = null;
      await store.close();
      store = openLmdbState(folder);
      state = open();
    }
  }
  await committing;
  if (cutting === null) throw new Error("never cut");
  return { state, store, cut: await cutting };
}

const fatesOf = (folded: Folded): readonly Fate[] => folded.items.map((it) => it.fate);

async function all<T>(rows: AsyncIterable<T>): Promise<T[]> {
  const found: T[] = [];
  for await (const row of rows) found.push(row);
  return found;
}

/** The same with its fields in the order of the alphabet. */
function sorted<T>(value: T): T {
  if (Array.isArray(value)) return value.map(sorted) as T;
  if (typeof value !== "object" || value === null) return value;
  return Object.fromEntries(
    Object.entries(value)
      .toSorted(([a], [b]) => (a < b ? -1 : 1))
      .map(([name, it]) => [name, sorted(it as unknown)]),
  ) as T;
}

async function* rowsOf(count: number): AsyncGenerator<KeyRow> {
  for (let n = 0; n < count; n++)
    yield { id: id16(n), fingerprint: id16(n + 1), position: p(1, 0) + n, timeMs: 5, kind: "entry" };
}

const head = (over: Partial<StateHead>): StateHead => ({
  version: 1,
  epoch,
  sequence: 10,
  hash: id32(9),
  entries: 0,
  logTimeMs: 0,
  keyCount: 0,
  producers: [],
  rules: {},
  parts: {},
  ...over,
});
