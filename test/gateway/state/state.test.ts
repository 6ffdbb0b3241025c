// The fold: the same state from the same log, in every process, however often it was saved, killed or begun again.
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { positionOf } from "../../../gateway/entry.ts";
import type { Item } from "../../../gateway/entry.ts";
import type { StoredRecord } from "../../../gateway/log/log.ts";
import { chain, encodeItem, encodeRecord, firstHash, sha256 } from "../../../gateway/record.ts";
import { openLmdbState } from "../../../gateway/state/lmdb.ts";
import { policyDigest, policyText, ReaderState, rulesItems, staleRecords } from "../../../gateway/state/state.ts";
import type { Fate, Folded, FoldedItem, Policy } from "../../../gateway/state/state.ts";
import type { StateHead, StateStore } from "../../../gateway/state/store.ts";
import { createFolder, removeFolder, temporaryFolder } from "../../helpers/folder.ts";
import {
  emptyStore,
  entry,
  id16,
  id32,
  keyed,
  Producer,
  recordHeader,
  stored,
} from "../../fixtures/records/samples.ts";
import { claim, keyNumbers, policy, randomLog, rules, settled, skip, Writer } from "./logs.ts";

const epoch = "0123456789abcdef";
const corrupt = expect.objectContaining({ code: "GW_LOG_CORRUPT" }) as Error;
const regressed = expect.objectContaining({ code: "GW_LOG_REGRESSED" }) as Error;

const inMemory = (first = 1): ReaderState => new ReaderState(emptyStore(), epoch, first);
const fates = (folded: Folded): readonly Fate[] => folded.items.map((it) => it.fate);
const p = positionOf;

describe("records", () => {
  it("H is chained over every stored record, those that are dropped included", () => {
    const log = new Writer();
    const first = log.add([entry()]);
    log.store(first.bytes);
    log.add([{ kind: "tick" }]);
    const state = inMemory();
    let hash: Buffer = firstHash;
    for (const record of log.records) {
      const folded = state.fold(record);
      expect(folded.previousHash).toBe(hash.toString("hex"));
      hash = chain(hash, sha256(record.bytes));
      expect(folded.hash).toBe(hash.toString("hex"));
      expect(folded.recordHash).toBe(sha256(record.bytes).toString("hex"));
    }
    expect(state.hash).toBe(hash.toString("hex"));
  });

  it("one that was stored twice counts once, wherever the second comes", () => {
    const log = new Writer();
    const first = log.add([keyed(1), entry()]);
    log.add([entry()], { producer: 1 });
    log.add([entry()]);
    log.store(first.bytes);
    const state = inMemory();
    const folded = log.records.map((record) => state.fold(record));
    expect(folded.map((it) => it.isDropped)).toEqual([false, false, false, true]);
    expect(folded.map((it) => it.entries)).toEqual([2, 3, 4, 4]);
    expect(fates(folded[3] as Folded)).toEqual([{ kind: "control" }, { kind: "control" }]);
    expect(state.key(id16(1))?.position).toBe(p(1, 0));
  });

  it("one whose base is 65,536 records back counts, one that is a record older does not", () => {
    const first = 70_000;
    const at = (base: number): Folded =>
      inMemory(first).fold(stored(first, new Producer(0).record([entry()], { base })));
    expect(at(first - 1 - staleRecords)).toMatchObject({ isDropped: false, entries: 1 });
    expect(at(first - 2 - staleRecords)).toMatchObject({ isDropped: true, entries: 0 });
    expect(staleRecords).toBe(65_536);
  });

  it("a stale one leaves its producer where it was: the next may have the same number", () => {
    const first = 70_000;
    const state = inMemory(first);
    const stale = new Producer(0).record([entry()], { base: 0 });
    expect(state.fold(stored(first, stale)).isDropped).toBe(true);
    expect(state.fold(stored(first + 1, new Producer(0).record([entry()], { base: first }))).isDropped).toBe(false);
  });

  it("a producer's missing record is GW_LOG_CORRUPT, by number and by hash", () => {
    const producer = new Producer(0);
    const [one, , three] = [0, 1, 2].map(() => producer.record([entry()])) as [Buffer, Buffer, Buffer];
    const gap = inMemory();
    gap.fold(stored(1, one));
    expect(() => gap.fold(stored(2, three))).toThrow(corrupt);

    const other = inMemory();
    other.fold(stored(1, one));
    const stranger = encodeRecord(recordHeader({ producer: producer.boot, n: 1, previous: Buffer.alloc(32, 1) }), []);
    expect(() => other.fold(stored(2, stranger))).toThrow(corrupt);
  });

  it("a gap, a repeated sequence or another epoch is GW_LOG_REGRESSED", () => {
    const log = new Writer();
    log.add([entry()]);
    const state = inMemory();
    const [record] = log.records as [StoredRecord];
    expect(() => state.fold(stored(2, record.bytes))).toThrow(regressed);
    state.fold(record);
    expect(() => state.fold(record)).toThrow(regressed);
    const store: StateStore = { ...emptyStore(), head: () => head({ epoch: "another" }) };
    expect(() => new ReaderState(store, epoch, 1)).toThrow(regressed);
  });

  it("bytes that no gateway wrote are GW_LOG_CORRUPT and leave the state as it was", () => {
    const state = inMemory();
    expect(() => state.fold(stored(1, Buffer.from("garbage")))).toThrow(corrupt);
    expect([state.sequence, state.entries, state.hash]).toEqual([0, 0, firstHash.toString("hex")]);
  });

  it("producers idle for 65,536 records are forgotten; a late repeat of theirs is stale, a new record is taken", () => {
    const idle = new Producer(1);
    const old = idle.record([entry()], { base: 0 });
    const sequence = 17 * 4096 - 1;
    const producers = [{ producer: idle.boot, n: 0, hash: sha256(old).toString("hex"), sequence: 1 }];
    const state = new ReaderState({ ...emptyStore(), head: () => head({ sequence, producers }) }, epoch, 1);
    // Until the tidying up that every 4,096th record does it is known, and must follow its own record.
    expect(state.fold(stored(sequence + 1, new Producer(2).record([], { base: sequence }))).isDropped).toBe(false);
    expect(state.fold(stored(sequence + 2, old)).isDropped).toBe(true);
    const later = encodeRecord(recordHeader({ producer: idle.boot, n: 9, base: sequence }), [encodeItem(entry())]);
    expect(state.fold(stored(sequence + 3, later)).isDropped).toBe(false);
  });

  it("log time is the greatest record time, whatever clocks do", () => {
    const log = new Writer();
    log.add([], { timeMs: 5000 });
    log.add([keyed(1)], { producer: 1, timeMs: 100 });
    log.add([keyed(2)], { timeMs: 6000 });
    const state = foldAll(inMemory(), log);
    expect(state.logTimeMs).toBe(6000);
    expect([state.key(id16(1))?.timeMs, state.key(id16(2))?.timeMs]).toEqual([5000, 6000]);
  });
});

describe("keys", () => {
  it("the first occurrence in the log wins, within a record and over records, whoever appended it", () => {
    const log = new Writer();
    log.add([keyed(1), keyed(2), keyed(1)]);
    log.add([keyed(2, {}, 99)], { producer: 1 });
    const state = inMemory();
    expect(log.records.map((record) => fates(state.fold(record)))).toEqual([
      [{ kind: "applied" }, { kind: "applied" }, { kind: "duplicate", of: p(1, 0) }],
      [{ kind: "duplicate", of: p(1, 1) }],
    ]);
    expect(state.key(id16(2))).toMatchObject({
      position: p(1, 1),
      fingerprint: id16(1002),
      kind: "entry",
    });
    expect([state.entries, state.keyCount]).toEqual([2, 2]);
    expect(state.key(id16(3))).toBe(null);
  });

  it("claims and entries share one name space: the one is a duplicate of the other", () => {
    const log = new Writer();
    log.add([claim(1), keyed(1), keyed(2), claim(2)]);
    const state = inMemory();
    expect(fates(state.fold(log.records[0] as StoredRecord))).toEqual([
      { kind: "control" },
      { kind: "duplicate", of: p(1, 0) },
      { kind: "applied" },
      { kind: "duplicate", of: p(1, 2) },
    ]);
    expect([state.key(id16(1))?.kind, state.key(id16(2))?.kind]).toEqual(["claimed", "entry"]);
    expect(state.entries).toBe(1);
  });

  it("a settled claim is done or unknown and stays used; one that did not start frees its key", () => {
    const log = new Writer();
    log.add([claim(1), claim(2), claim(3)]);
    log.add([settled(p(1, 0), "done"), settled(p(1, 1), "unknown"), settled(p(1, 2), "not-started")]);
    const state = foldAll(inMemory(), log);
    expect([1, 2, 3].map((it) => state.key(id16(it))?.kind)).toEqual(["done", "unknown", undefined]);
    expect(state.keyCount).toBe(2);
    expect(fates(state.fold(log.add([claim(1), claim(2), claim(3)])))).toEqual([
      { kind: "duplicate", of: p(1, 0) },
      { kind: "duplicate", of: p(1, 1) },
      { kind: "control" },
    ]);
  });

  it("a settlement of what is no claim changes nothing", () => {
    const log = new Writer();
    log.add([keyed(1), entry()]);
    log.add([settled(p(1, 0), "not-started"), settled(p(1, 1), "not-started"), settled(999_999, "unknown")]);
    const state = foldAll(inMemory(), log);
    expect(state.key(id16(1))).toMatchObject({ kind: "entry", position: p(1, 0) });
    expect(state.keyCount).toBe(1);
  });

  it("a skip frees the key of its entry, counts once, and is known to all", () => {
    const log = new Writer();
    log.add([keyed(1), entry()]);
    log.add([skip(p(1, 0), "poison"), skip(p(1, 0), "again"), skip(p(1, 1), "no key")]);
    const state = foldAll(inMemory(), log);
    expect([...state.skips]).toEqual([
      [p(1, 0), "poison"],
      [p(1, 1), "no key"],
    ]);
    expect([state.skipped(p(1, 0)), state.skipped(p(2, 0))]).toEqual(["poison", null]);
    expect([state.key(id16(1)), state.keyCount]).toEqual([null, 0]);
    expect(fates(state.fold(log.add([keyed(1)])))).toEqual([{ kind: "applied" }]);
    // A late repetition of the skip does not free the key for a second time.
    state.fold(log.add([skip(p(1, 0), "poison")]));
    expect(state.key(id16(1))?.position).toBe(p(3, 0));
  });

  it("a retry of a parked entry passes the key check, of that entry only and once", () => {
    const log = new Writer();
    log.add([keyed(1), keyed(2)]);
    const state = foldAll(inMemory(), log);
    const retry = keyed(1, { retryOf: p(1, 0) });
    expect(fates(state.fold(log.add([retry, retry, keyed(2, { retryOf: p(1, 0) })])))).toEqual([
      { kind: "applied" },
      { kind: "duplicate", of: p(2, 0) },
      { kind: "duplicate", of: p(1, 1) },
    ]);
    expect([state.key(id16(1))?.position, state.keyCount]).toEqual([p(2, 0), 2]);
  });

  it("a key is forgotten only beyond the window and older than the retention", () => {
    const policy: Policy = { rules: "{}", retentionMs: 1000, window: 2 };
    const rules = policyDigest(policyText(policy));
    const log = new Writer();
    log.add(rulesItems(policyText(policy), 1000), { rules, timeMs: 1 });
    log.add([keyed(1), keyed(2)], { rules, timeMs: 10_000 });
    const state = foldAll(inMemory(), log);
    expect(state.isKeyWindowFull(policy)).toBe(true);
    // Beyond the window, and too young.
    state.fold(log.add([keyed(3)], { rules, timeMs: 11_000 }));
    expect([state.keyCount, state.key(id16(1))?.position]).toEqual([3, p(2, 0)]);
    // Old enough: down to the window.
    state.fold(log.add([keyed(4)], { rules, timeMs: 11_001 }));
    expect([1, 2, 3, 4].map((it) => state.key(id16(it)) === null)).toEqual([true, true, false, false]);
    expect([state.keyCount, state.isKeyWindowFull(policy)]).toEqual([2, true]);
    // Within the window nothing is forgotten, however old.
    state.fold(log.add([entry()], { rules, timeMs: 99_000 }));
    expect([state.key(id16(3))?.position, state.isKeyWindowFull(policy)]).toEqual([p(3, 0), false]);
  });
});

describe("rules", () => {
  const text = policyText({
    rules: JSON.stringify({ rules: "x".repeat(50), noise: id32(1) }),
    retentionMs: 5,
    window: 7,
  });
  const digest = policyDigest(text);

  it("a policy assembled from several records, out of order, is known from its last part on", () => {
    const parts = rulesItems(text, 20);
    expect(parts.length).toBeGreaterThan(3);
    const log = new Writer();
    const state = inMemory();
    for (const part of [...parts].reverse()) {
      expect(state.policy(digest)).toBe(null);
      state.fold(log.add([part]));
    }
    expect(state.policy(digest)).toEqual(JSON.parse(text));
    // Every gateway brings them once more.
    state.fold(log.add(parts, { producer: 1 }));
    expect(state.policy(digest)).toEqual(JSON.parse(text));
  });

  it("half a policy survives a restart", async () => {
    const folder = temporaryFolder("state");
    const parts = rulesItems(text, 30);
    const log = new Writer();
    for (const part of parts) log.add([part]);
    for (const record of log.records) {
      const store = openLmdbState(folder);
      const state = new ReaderState(store, epoch, 1);
      state.fold(record);
      await state.commit();
      await store.close();
    }
    const store = openLmdbState(folder);
    expect(new ReaderState(store, epoch, 1).policy(digest)).toEqual(JSON.parse(text));
    await store.close();
  });

  const part = (over: { part?: number; parts?: number }): Item => ({
    kind: "rules",
    digest,
    part: 0,
    parts: 1,
    text: Buffer.from("no gzip"),
    ...over,
  });

  it("parts that make no text are GW_LOG_CORRUPT", () => {
    const log = new Writer();
    log.add([part({})]);
    expect(() => foldAll(inMemory(), log)).toThrow(corrupt);
    const other = new Writer();
    other.add([part({ part: 7, parts: 2 })]);
    expect(() => foldAll(inMemory(), other)).toThrow(corrupt);
    const third = new Writer();
    third.add([part({ parts: 2 }), part({ part: 1, parts: 3 })]);
    expect(() => foldAll(inMemory(), third)).toThrow(corrupt);
  });

  it("a text with another digest than its items name is GW_LOG_CORRUPT", () => {
    const log = new Writer();
    log.add(rulesItems(text, 1000).map((it) => ({ ...it, digest: id32(666) })));
    expect(() => foldAll(inMemory(), log)).toThrow(corrupt);
  });
});

describe("replay", () => {
  it("tells a duplicate, before and after a commit and after a restart", async () => {
    const folder = temporaryFolder("state");
    const log = new Writer();
    log.add([keyed(1), keyed(1), claim(1)]);
    log.add([keyed(1), keyed(2)]);
    const store = openLmdbState(folder);
    const state = new ReaderState(store, epoch, 1);
    const folded = log.records.map((record) => state.fold(record));
    const told = folded.map(withoutOutgoing);
    expect(replayAll(state, log.records).map(withoutOutgoing)).toEqual(told);
    await state.commit();
    expect(replayAll(state, log.records).map(withoutOutgoing)).toEqual(told);
    expect(replayAll(new ReaderState(store, epoch, 1), log.records).map(withoutOutgoing)).toEqual(told);
    await store.close();
  });

  it("tells a dropped record, and what was skipped since", async () => {
    const folder = temporaryFolder("state");
    const log = new Writer();
    const first = log.add([entry(), entry(), { kind: "tick" }]);
    log.store(first.bytes);
    log.add([skip(p(1, 1), "poison")]);
    for (const hasCommitted of [false, true]) {
      const store = openLmdbState(folder);
      const state = new ReaderState(store, epoch, 1);
      const folded = log.records.map((record) => state.fold(record));
      if (hasCommitted) await state.commit();
      const again = replayAll(state, log.records);
      expect(again.map(fates)).toEqual([
        [{ kind: "applied" }, { kind: "skipped", reason: "poison" }, { kind: "control" }],
        [{ kind: "control" }, { kind: "control" }, { kind: "control" }],
        [{ kind: "control" }],
      ]);
      expect(again.map(({ hash, entries, isDropped }) => ({ hash, entries, isDropped }))).toEqual(
        folded.map(({ hash, entries, isDropped }) => ({ hash, entries, isDropped })),
      );
      await store.close();
    }
  });
});

describe("saving", () => {
  it("what a commit could not save the next one saves, and nothing is forgotten in between", async () => {
    const folder = temporaryFolder("state");
    const store = openLmdbState(folder);
    let isFull = true;
    const commit: StateStore["commit"] = (batch) =>
      isFull ? Promise.reject(new Error("no space")) : store.commit(batch);
    const state = new ReaderState({ ...store, commit }, epoch, 1);
    const log = new Writer();
    const first = log.add([keyed(1), keyed(1), claim(2)]);
    state.fold(first);
    const failing = state.commit();
    state.fold(log.add([settled(p(1, 2), "not-started"), keyed(3), skip(p(1, 0), "poison")]));
    await expect(failing).rejects.toThrow("no space");
    state.fold(log.store(first.bytes));
    state.fold(log.add([keyed(4), keyed(4)]));
    const known = () => [1, 2, 3, 4].map((it) => state.key(id16(it))?.position ?? null);
    expect(known()).toEqual([null, null, p(2, 1), p(4, 0)]);
    isFull = false;
    await state.commit();
    expect(known()).toEqual([null, null, p(2, 1), p(4, 0)]);
    const again = new ReaderState(store, epoch, 1);
    expect(seen(again)).toEqual(seen(state));
    expect(replayAll(again, log.records)).toEqual(replayAll(state, log.records));
    expect(replayAll(again, log.records).map(fates)).toMatchObject([
      [{ kind: "skipped" }, { kind: "duplicate" }, { kind: "control" }],
      [{ kind: "control" }, { kind: "applied" }, { kind: "control" }],
      [{ kind: "control" }, { kind: "control" }, { kind: "control" }],
      [{ kind: "applied" }, { kind: "duplicate" }],
    ]);
    await store.close();
  });

  it("keys that were freed or replaced leave nothing behind: the oldest is found after any number of them", async () => {
    const store = openLmdbState(temporaryFolder("state"));
    const state = new ReaderState(store, epoch, 1);
    const log = new Writer();
    const numbers = Array.from({ length: 600 }, (_, at) => at + 1);
    state.fold(log.add(numbers.map((it) => keyed(it))));
    await state.commit();
    // The first 299 are freed, the 300th is used again.
    state.fold(log.add(numbers.slice(0, 299).map((it) => skip(p(1, it - 1), "poison"))));
    state.fold(log.add([keyed(300, { retryOf: p(1, 299) })]));
    await state.commit();
    expect(store.oldestKeys(-1, 2).map((it) => it.position)).toEqual([p(1, 300), p(1, 301)]);
    expect(store.oldestKeys(p(1, 599), 2).map((it) => it.id)).toEqual([id16(300)]);
    await store.close();
  });

  it("what was not committed is folded again, with the same result", async () => {
    const folder = temporaryFolder("state");
    const log = new Writer();
    log.add([keyed(1)]);
    log.add([keyed(2), keyed(1)]);
    const before = openLmdbState(folder);
    const first = new ReaderState(before, epoch, 1);
    first.fold(log.records[0] as StoredRecord);
    await first.commit();
    const lost = first.fold(log.records[1] as StoredRecord);
    await before.close();
    const after = openLmdbState(folder);
    const second = new ReaderState(after, epoch, 1);
    expect([second.sequence, second.key(id16(2))]).toEqual([1, null]);
    expect(second.fold(log.records[1] as StoredRecord)).toEqual(lost);
    await after.close();
  });
});

describe("random logs", () => {
  it("one fold does what the law says, record by record", () => {
    fc.assert(
      fc.property(randomLog, (records) => {
        const state = inMemory();
        const model = new Model();
        for (const record of records) {
          const folded = state.fold(record);
          expect(fates(folded)).toEqual(model.fold(folded));
          expect(state.keyCount).toBe(model.keys.size);
          for (const number of keyNumbers)
            expect(state.key(id16(number)), `key ${number}`).toEqual(model.keys.get(id16(number)) ?? null);
        }
      }),
      { numRuns: 300 },
    );
  });

  it("a fold that is saved, killed and begun again at any point is the same as one that never was", async () => {
    const after = fc.array(fc.constantFrom("go on", "go on", "commit", "commit beside", "kill", "commit and kill"), {
      minLength: 1,
      maxLength: 40,
    });
    await fc.assert(
      fc.asyncProperty(randomLog, after, async (records, interruptions) => {
        const plain = inMemory();
        const expected = records.map((record) => plain.fold(record));
        const folder = createFolder("state");
        let store = openLmdbState(folder);
        let state = new ReaderState(store, epoch, 1);
        let committing: Promise<void> | null = null;
        const restart = async (): Promise<void> => {
          await committing;
          committing = null;
          await store.close();
          store = openLmdbState(folder);
          state = new ReaderState(store, epoch, 1);
        };
        let at = 0;
        for (let steps = 0; state.sequence < records.length; steps++) {
          const record = records[state.sequence] as StoredRecord;
          const wanted = expected[state.sequence] as Folded;
          expect(state.fold(record)).toEqual(wanted);
          const what = steps < 3 * records.length ? interruptions[at++ % interruptions.length] : "go on";
          if (what === "commit" || what === "commit and kill") {
            await committing;
            await state.commit();
          }
          if (what === "commit beside") {
            await committing;
            committing = state.commit();
          }
          if (what === "kill" || what === "commit and kill") await restart();
        }
        await committing;
        expect(seen(state)).toEqual(seen(plain));
        await state.commit();
        expect(seen(state)).toEqual(seen(plain));
        await restart();
        expect(seen(state)).toEqual(seen(plain));
        // What it tells of the past is what it told then, but that skips are known from the start.
        const again = replayAll(state, records);
        for (const [index, folded] of expected.entries()) {
          const { items } = again[index] as Folded;
          expect(withoutOutgoing({ ...(again[index] as Folded), items: items.map(forgetSkip) })).toEqual(
            withoutOutgoing(folded),
          );
          for (const it of items)
            if (it.item.kind === "entry" && !folded.isDropped && it.fate.kind !== "duplicate")
              expect(it.fate.kind).toBe(plain.skipped(it.position) === null ? "applied" : "skipped");
        }
        await store.close();
        removeFolder(folder);
      }),
      { numRuns: 60 },
    );
  });
});

/** Everything one can ask of a state. */
const seen = (state: ReaderState) => ({
  sequence: state.sequence,
  hash: state.hash,
  entries: state.entries,
  keyCount: state.keyCount,
  logTimeMs: state.logTimeMs,
  isFull: state.isKeyWindowFull(policy),
  policy: state.policy(rules),
  keys: keyNumbers.map((it) => state.key(id16(it))),
  skips: [...state.skips].sort(([a], [b]) => a - b),
});

/** The law of keys, with lists instead of cleverness. */
class Model {
  readonly keys = new Map<
    string,
    { id: string; fingerprint: string; position: number; timeMs: number; kind: string }
  >();
  readonly #skipped = new Set<number>();
  #logTimeMs = 0;

  fold(folded: Folded): Fate[] {
    if (folded.isDropped) return folded.items.map(() => ({ kind: "control" }));
    this.#logTimeMs = Math.max(this.#logTimeMs, folded.header.timeMs);
    return folded.items.map(({ item, position }): Fate => {
      switch (item.kind) {
        case "entry":
        case "claim": {
          const of =
            item.key === null
              ? null
              : this.#use(item.key, position, item.kind === "entry" ? "entry" : "claimed", item.retryOf);
          if (of !== null) return { kind: "duplicate", of };
          return { kind: item.kind === "entry" ? "applied" : "control" };
        }
        case "settled": {
          const row = [...this.keys.values()].find((it) => it.position === item.position);
          if (row !== undefined && row.kind !== "entry") {
            if (item.outcome === "not-started") this.keys.delete(row.id);
            else row.kind = item.outcome;
          }
          return { kind: "control" };
        }
        case "skip": {
          if (!this.#skipped.has(item.position)) {
            this.#skipped.add(item.position);
            for (const row of this.keys.values()) if (row.position === item.position) this.keys.delete(row.id);
          }
          return { kind: "control" };
        }
        default:
          return { kind: "control" };
      }
    });
  }

  #use(
    key: { id: string; fingerprint: string },
    position: number,
    kind: string,
    retryOf: number | null,
  ): number | null {
    const first = this.keys.get(key.id);
    if (first !== undefined && first.position !== retryOf) return first.position;
    this.keys.set(key.id, { ...key, position, timeMs: this.#logTimeMs, kind });
    for (const oldest of [...this.keys.values()].sort((a, b) => a.position - b.position)) {
      if (this.keys.size <= policy.window || oldest.timeMs >= this.#logTimeMs - policy.retentionMs) break;
      this.keys.delete(oldest.id);
    }
    return null;
  }
}

// ---- helpers -----------------------------------------------------------------------------------------------------------------------

const head = (over: Partial<StateHead>): StateHead => ({
  version: 1,
  epoch,
  sequence: 0,
  hash: firstHash.toString("hex"),
  entries: 0,
  logTimeMs: 0,
  keyCount: 0,
  producers: [],
  rules: {},
  parts: {},
  ...over,
});

/** Made from the rest, and only where something is sent. */
const withoutOutgoing = ({ items, ...rest }: Folded) => ({
  ...rest,
  items: items.map(({ position, item, fate }) => ({ position, item, fate })),
});
const forgetSkip = (it: FoldedItem): FoldedItem =>
  it.fate.kind === "skipped" ? { ...it, fate: { kind: "applied" } } : it;

function foldAll(state: ReaderState, log: Writer): ReaderState {
  for (const record of log.records) state.fold(record);
  return state;
}

function replayAll(state: ReaderState, records: readonly StoredRecord[]): Folded[] {
  let hash = firstHash.toString("hex");
  let entries = 0;
  return records.map((record) => {
    const folded = state.replay(record, hash, entries);
    ({ hash, entries } = folded);
    return folded;
  });
}
