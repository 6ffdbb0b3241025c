// The law of the log port as tests, run by every adapter.
import { afterEach, describe, expect, test } from "vitest";

import type { Appended, Log, LogCreation, StoredRecord } from "../../../gateway/log/log.ts";
import { waitFor } from "../../helpers/wait.ts";

export interface LogPlace {
  /** Finds what was stored before: the same log at every call. */
  open(create: LogCreation | null): Promise<Log | null>;
  close(): Promise<void>;
}

/** `makePlace` gives a place where there is no log yet; `maxBytes` holds for every log opened there. */
export function logContract(name: string, makePlace: (maxBytes: number) => Promise<LogPlace>): void {
  const toClose: { close(): Promise<void> }[] = [];
  afterEach(async () => {
    for (const open of toClose.splice(0).reverse()) await open.close();
  });
  const newPlace = async (maxBytes = 256 * MiB): Promise<LogPlace> => {
    const place = await makePlace(maxBytes);
    toClose.push(place);
    return place;
  };
  const opened = async (place: LogPlace, create: LogCreation | null = creation): Promise<Log> => {
    const log = await place.open(create);
    if (log === null) throw new Error("there is no log");
    toClose.push(log);
    return log;
  };
  const newLog = async (maxBytes?: number): Promise<Log> => opened(await newPlace(maxBytes));

  describe(`${name}: a log`, () => {
    test("is not made by a look at it", async () => {
      const place = await newPlace();
      expect(await place.open(null)).toBeNull();
      expect(await place.open(null)).toBeNull();
    });

    test("begins empty, with the epoch it was made with", async () => {
      const log = await newLog();
      expect(log.epoch).toBe(creation.epoch);
      expect(await log.info()).toMatchObject({ first: 1, last: 0, maxBytes: 256 * MiB });
      expect(await log.tail()).toBe(0);
      expect(log.isReachable()).toBe(true);
    });

    test("begins at the sequence its creation names", async () => {
      const log = await opened(await newPlace(), { epoch: "00000000000000ff", firstSequence: 70_000 });
      expect(await log.info()).toMatchObject({ first: 70_000, last: 69_999 });
      expect(await log.append(Buffer.from("a"))).toEqual({ kind: "stored", sequence: 70_000 });
      expect(await texts(log, 70_000, 1)).toEqual(["a"]);
      expect(await log.info()).toMatchObject({ first: 70_000, last: 70_000 });
    });

    test("keeps epoch and records when it is opened again, whatever creation is asked for then", async () => {
      const place = await newPlace();
      const before = await opened(place);
      await before.append(Buffer.from("kept"));
      await before.close();
      const after = await opened(place, { epoch: "ffffffffffffffff", firstSequence: 500 });
      expect(after.epoch).toBe(creation.epoch);
      expect(await texts(after, 1, 1)).toEqual(["kept"]);
      expect(await after.append(Buffer.from("next"))).toEqual({ kind: "stored", sequence: 2 });
    });

    test("gives back each record's bytes, from one byte to the largest", async () => {
      const log = await newLog();
      const sizes = [1, 2, 100, 1_999, 2_000, 4_096, 65_535, 65_536, 300_000, log.recordBytesMax];
      const records = sizes.map((size) => Buffer.alloc(size, `${size}:`));
      for (const record of records) expect((await log.append(record)).kind).toBe("stored");
      const read = await collect(log, 1, sizes.length);
      expect(read.map(({ sequence }) => sequence)).toEqual(sizes.map((_, index) => index + 1));
      read.forEach(({ bytes }, index) => expect(bytes.equals(records[index]!)).toBe(true));
    });

    test("gives concurrent appends dense sequences in the order of the calls", async () => {
      const log = await newLog();
      const appended = await Promise.all(range(1, 500).map((n) => log.append(Buffer.from(`record ${n}`))));
      expect(appended.map(sequenceOf)).toEqual(range(1, 500));
      expect(await texts(log, 1, 500)).toEqual(range(1, 500).map((n) => `record ${n}`));
    });

    test("stores the same bytes twice when they are appended twice", async () => {
      const log = await newLog();
      for (const _ of [1, 2]) await log.append(Buffer.from("same"));
      expect(await texts(log, 1, 2)).toEqual(["same", "same"]);
    });

    test("hands a reader at the end what is appended later, and ends it at its signal without an error", async () => {
      const log = await newLog();
      await log.append(Buffer.from("old"));
      const reading = new AbortController();
      const seen: string[] = [];
      const reader = (async () => {
        for await (const { bytes } of log.read(2, reading.signal)) seen.push(bytes.toString());
      })();
      for (const text of ["x", "y", "z"]) await log.append(Buffer.from(text));
      await waitFor(() => seen.length === 3, { what: () => `three records, not ${seen.length}` });
      reading.abort();
      await reader;
      expect(seen).toEqual(["x", "y", "z"]);
    });

    test("lets a reader from the beginning join the end without a gap while appends go on", async () => {
      const log = await newLog();
      await appendMany(log, 1, 3_000);
      let last = 3_000;
      const reading = new AbortController();
      const appending = (async () => {
        while (!reading.signal.aborted) {
          await appendMany(log, last + 1, last + 50);
          last += 50;
        }
      })();
      let next = 1;
      for await (const { sequence, bytes } of log.read(1, reading.signal)) {
        expect(sequence).toBe(next++);
        expect(bytes.toString()).toBe(`record ${sequence}`);
        if (sequence > 3_500 && sequence >= last) reading.abort();
      }
      await appending;
      expect(next).toBeGreaterThan(3_500);
    });

    test("keeps readers independent: one that stops in the middle holds nobody up", async () => {
      const log = await newLog();
      const reading = new AbortController();
      const slow = log.read(1, reading.signal)[Symbol.asyncIterator]();
      const record = Buffer.alloc(100_000, "s");
      for (const _ of range(1, 400)) await log.append(record);
      expect((await slow.next()).value).toMatchObject({ sequence: 1 });
      expect((await collect(log, 1, 400)).at(-1)?.sequence).toBe(400);
      for (const n of range(2, 400)) expect((await slow.next()).value).toMatchObject({ sequence: n });
      reading.abort();
      expect((await slow.next()).done).toBe(true);
    });

    test("refuses to read beyond its end: whoever asks has seen more than there is", async () => {
      const log = await newLog();
      await log.append(Buffer.from("only"));
      await expect(collect(log, 3, 1)).rejects.toMatchObject({ code: "GW_LOG_REGRESSED" });
    });

    test("is full at its limit, stores nothing then, and takes appends again after a truncation", async () => {
      const log = await newLog(2 * MiB);
      const record = Buffer.alloc(200_000, "f");
      const appended: Appended[] = [];
      for (const _ of range(1, 15)) appended.push(await log.append(record));
      const stored = appended.filter(({ kind }) => kind === "stored").length;
      expect(stored).toBeGreaterThanOrEqual(8);
      expect(stored).toBeLessThanOrEqual(10);
      expect(appended.slice(stored).every(({ kind }) => kind === "full")).toBe(true);
      expect(await log.tail()).toBe(stored);
      expect((await log.info()).bytes).toBeLessThanOrEqual(2 * MiB);
      await log.truncate(5);
      expect(await log.append(record)).toEqual({ kind: "stored", sequence: stored + 1 });
      expect((await collect(log, 5, stored - 3)).map(({ sequence }) => sequence)).toEqual(range(5, stored + 1));
    });

    test("refuses a record that is too large and goes on", async () => {
      const log = await newLog();
      expect((await log.append(Buffer.alloc(log.recordBytesMax + 1))).kind).toBe("refused");
      expect(await log.append(Buffer.from("small"))).toEqual({ kind: "stored", sequence: 1 });
    });

    test("forgets what is below a truncation, for readers, for the next opening and in its size", async () => {
      const place = await newPlace();
      const log = await opened(place);
      await appendMany(log, 1, 2_500);
      const before = await log.info();
      await log.truncate(2_401);
      await log.truncate(1); // what is gone already is no news
      const info = await log.info();
      expect(info).toMatchObject({ first: 2_401, last: 2_500 });
      expect(info.bytes).toBeLessThan(before.bytes / 20);
      await expect(collect(log, 2_400, 1)).rejects.toMatchObject({ code: "GW_LOG_REGRESSED" });
      expect(await texts(log, 2_401, 1)).toEqual(["record 2401"]);
      await log.close();
      expect(await (await opened(place, null)).info()).toEqual(info);
    });

    test("goes on counting after everything was truncated, and never truncates beyond its end", async () => {
      const place = await newPlace();
      const log = await opened(place);
      await appendMany(log, 1, 10);
      await expect(log.truncate(12)).rejects.toMatchObject({ code: "GW_LOG_REGRESSED" });
      await log.truncate(11);
      expect(await log.info()).toMatchObject({ first: 11, last: 10 });
      await log.close();
      const again = await opened(place, null);
      expect(await again.tail()).toBe(10);
      expect(await again.append(Buffer.from("eleven"))).toEqual({ kind: "stored", sequence: 11 });
      expect(await texts(again, 11, 1)).toEqual(["eleven"]);
    });

    test("tells a reader that a truncation overtook it", async () => {
      const log = await newLog();
      const record = Buffer.alloc(500_000, "t");
      for (const _ of range(1, 150)) await log.append(record);
      const reading = new AbortController();
      const slow = log.read(1, reading.signal)[Symbol.asyncIterator]();
      await slow.next();
      await log.truncate(149);
      const rest = (async () => {
        for (let next = await slow.next(); !next.done; next = await slow.next());
      })();
      await expect(rest).rejects.toMatchObject({ code: "GW_LOG_REGRESSED" });
    });

    test("says in a sentence what its guarantee rests on", async () => {
      const { level, why } = await (await newLog()).guarantee();
      expect(["process-crash", "node-loss", "power-loss"]).toContain(level);
      expect(why.length).toBeGreaterThan(20);
    });

    test("refuses appends and ends readers with an error once it is closed, and may be closed twice", async () => {
      const log = await newLog();
      const waiting = expect(collect(log, 1, 1)).rejects.toMatchObject({ code: "GW_LOG_UNAVAILABLE" });
      await log.close();
      await log.close();
      await waiting;
      expect(await log.append(Buffer.from("late"))).toMatchObject({
        kind: "refused",
        error: { code: "GW_LOG_UNAVAILABLE" },
      });
      await expect(log.tail()).rejects.toMatchObject({ code: "GW_LOG_UNAVAILABLE" });
      expect(log.isReachable()).toBe(false);
    });
  });
}

export const MiB = 1024 * 1024;
export const creation: LogCreation = { epoch: "0123456789abcdef", firstSequence: 1 };
export const range = (from: number, to: number): number[] => Array.from({ length: to - from + 1 }, (_, n) => from + n);

export function sequenceOf(appended: Appended): number {
  if (appended.kind !== "stored") throw new Error(`appended: ${JSON.stringify(appended)}`);
  return appended.sequence;
}

/** `record <n>` for each n; they are appended together. */
export async function appendMany(log: Log, from: number, to: number): Promise<void> {
  const appended = await Promise.all(range(from, to).map((n) => log.append(Buffer.from(`record ${n}`))));
  expect(appended.map(sequenceOf)).toEqual(range(from, to));
}

export async function collect(log: Log, from: number, count: number): Promise<StoredRecord[]> {
  const reading = new AbortController();
  const records: StoredRecord[] = [];
  for await (const record of log.read(from, reading.signal)) {
    records.push(record);
    if (records.length === count) reading.abort();
  }
  return records;
}

async function texts(log: Log, from: number, count: number): Promise<string[]> {
  return (await collect(log, from, count)).map(({ bytes }) => bytes.toString());
}
