// Batches of digest rows: what goes in comes out, and bytes that are anything else never become rows.
import { crc32 } from "node:zlib";

import * as fc from "fast-check";
import { describe, expect, test } from "vitest";

import { batchesOf, bucketOf, rowsOf } from "../../../gateway/digests/batch.ts";
import type { DigestRow } from "../../../gateway/digests/digests.ts";
import { positionOf } from "../../../gateway/entry.ts";
import { row } from "./digests.contract.ts";

const hex = (bytes: number) =>
  fc.uint8Array({ minLength: bytes, maxLength: bytes }).map((them) => Buffer.from(them).toString("hex"));
const text = fc.string({ unit: "binary", maxLength: 20 });
const rowsIn = (positionMax: number): fc.Arbitrary<DigestRow[]> =>
  fc.uniqueArray(
    fc.record({
      epoch: text,
      position: fc.integer({ min: 0, max: positionMax }),
      replica: text,
      incarnation: text,
      backendVersion: text,
      rules: text,
      digest: hex(16),
      isFirstSend: fc.boolean(),
    }),
    { maxLength: 40, selector: ({ digest }) => digest },
  );

const bytesOf = (rows: readonly DigestRow[]): Buffer[] => batchesOf(rows, 4096).map(({ bytes }) => bytes);
const read = (batches: readonly Buffer[], from = 0, to = Number.MAX_SAFE_INTEGER) => [
  ...rowsOf("a place", batches, from, to),
];
const byPosition = (rows: readonly DigestRow[]) => rows.toSorted((a, b) => a.position - b.position);

describe("batches of digest rows", () => {
  test("give back any rows, by position", () => {
    fc.assert(
      fc.property(rowsIn(1000), (rows) => {
        expect(read(bytesOf(rows))).toEqual(byPosition(rows));
      }),
    );
  });

  test("are of one bucket each, bounded, and hold each row once, in the order they came", () => {
    fc.assert(
      fc.property(rowsIn(positionOf(300, 0)), fc.integer({ min: 1, max: 10 }), (rows, rowsMax) => {
        const batches = batchesOf(rows, rowsMax);
        const found = batches.flatMap(({ bucket, rows: count, bytes }) => {
          const its = read([bytes]);
          expect(its.length).toBe(count);
          expect(count).toBeLessThanOrEqual(rowsMax);
          expect(new Set(its.map(({ position }) => bucketOf(position)))).toEqual(new Set([bucket]));
          return its;
        });
        expect(byPosition(found)).toEqual(byPosition(rows));
      }),
    );
  });

  test("are cut where 64 records end", () => {
    const rows = [positionOf(63, 4095), positionOf(64, 0), positionOf(0, 0)].map((position) => row({ position }));
    expect(batchesOf(rows, 10).map(({ bucket, rows }) => [bucket, rows])).toEqual([
      [0, 2],
      [1, 1],
    ]);
    expect(batchesOf([], 10)).toEqual([]);
  });

  test("take 35 bytes a row, and their strings once", () => {
    const [one, many] = [1, 1001].map((count) => bytesOf(Array.from({ length: count }, () => row({})))[0]?.length);
    expect((many ?? 0) - (one ?? 0)).toBe(35_000);
  });

  test("never hold more strings than their table can name", () => {
    const rows = Array.from({ length: 20_000 }, (_, n) => {
      const fields = {
        replica: `r${n}`,
        epoch: `e${n}`,
        incarnation: `i${n}`,
        backendVersion: `v${n}`,
        rules: `u${n}`,
      };
      return row({ ...fields, position: n });
    });
    expect(read(batchesOf(rows, 100_000).map(({ bytes }) => bytes))).toEqual(rows);
  });

  test("are read for both ends of a range and nothing outside it", () => {
    const batches = bytesOf([5, 1, 3, 2, 4].map((position) => row({ position })));
    expect(read(batches, 2, 4).map(({ position }) => position)).toEqual([2, 3, 4]);
    expect(read(batches, 6, 9)).toEqual([]);
    expect(read([], 0, 9)).toEqual([]);
  });

  test("give a row that is in several of them once, as the last one has it", () => {
    const batches = ["1", "2", "3"].flatMap((backendVersion) =>
      bytesOf([row({ backendVersion }), row({ replica: "b" })]),
    );
    expect(read(batches)).toEqual([row({ backendVersion: "3" }), row({ replica: "b" })]);
  });

  test("refuse a digest that is not 32 lower-case hex digits", () => {
    for (const digest of [
      "",
      "0".repeat(31),
      "0".repeat(33),
      "A".repeat(32),
      "g".repeat(32),
      `${"0".repeat(31)}é`,
      `${"0".repeat(31)}☃`,
    ])
      expect(() => batchesOf([row({ digest })], 1), digest).toThrow(expect.objectContaining({ code: "GW_INTERNAL" }));
  });
});

describe("damaged batches of digest rows", () => {
  const [whole = Buffer.alloc(0)] = bytesOf([1, 2, 3].map((position) => row({ position, replica: `r${position}` })));
  const isCorrupt = expect.objectContaining({
    code: "GW_LOG_CORRUPT",
    message: expect.stringContaining("a place") as string,
  }) as Error;
  const changed = (change: (bytes: Buffer) => void): Buffer => {
    const bytes = Buffer.from(whole);
    change(bytes);
    return bytes;
  };

  test("are told by any one bit", () => {
    for (let bit = 0; bit < whole.length * 8; bit++) {
      const bytes = changed((it) => (it[bit >> 3] = (it[bit >> 3] ?? 0) ^ (1 << (bit & 7))));
      expect(() => read([bytes]), `bit ${bit}`).toThrow(isCorrupt);
    }
  });

  test("are told wherever they end early or go on", () => {
    for (let end = 0; end < whole.length; end++)
      expect(() => read([whole.subarray(0, end)]), `${end}`).toThrow(isCorrupt);
    expect(() => read([Buffer.concat([whole, Buffer.alloc(35)])])).toThrow(isCorrupt);
  });

  test("are told when pages of them are zeros, or all of them", () => {
    for (let from = 0; from < whole.length; from++) {
      expect(() => read([changed((it) => it.fill(0, from))]), `from ${from}`).toThrow(isCorrupt);
    }
  });

  test("are told even when none of their rows is asked for", () => {
    expect(() => read([changed((it) => (it[20] = 0))], 100, 200)).toThrow(isCorrupt);
  });

  test("of the format that had no checksum are told, too", () => {
    expect(() => read([changed((it) => (it[0] = 1))])).toThrow(isCorrupt);
    expect(crc32(whole.subarray(5))).toBe(whole.readUInt32LE(1)); // what is above would otherwise prove nothing
  });
});
