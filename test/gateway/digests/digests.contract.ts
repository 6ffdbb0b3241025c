// The law of the digests port as tests, run by every adapter.
import { afterEach, describe, expect, test } from "vitest";

import type { DigestRow, Digests } from "../../../gateway/digests/digests.ts";
import { positionOf } from "../../../gateway/entry.ts";

export interface DigestsPlace {
  /** Finds what was appended before. */
  open(): Promise<Digests>;
  close(): Promise<void>;
}

export function digestsContract(name: string, makePlace: () => Promise<DigestsPlace>): void {
  const toClose: { close(): Promise<void> }[] = [];
  afterEach(async () => {
    for (const open of toClose.splice(0).reverse()) await open.close();
  });
  const opened = async (place: DigestsPlace): Promise<Digests> => {
    const digests = await place.open();
    toClose.push(digests);
    return digests;
  };
  const newPlace = async (): Promise<DigestsPlace> => {
    const place = await makePlace();
    toClose.push(place);
    return place;
  };

  describe(`${name}: digests`, () => {
    test("come back in position order, whoever appended them first", async () => {
      const digests = await opened(await newPlace());
      const rows = [9, 3, 5_000_000, 3_000, 1, 70_000_000].map((position) => row({ position }));
      await digests.append(rows.slice(0, 3));
      await digests.append(rows.slice(3));
      expect(await positions(digests, 0, Number.MAX_SAFE_INTEGER)).toEqual([1, 3, 9, 3_000, 5_000_000, 70_000_000]);
    });

    test("come back whole", async () => {
      const digests = await opened(await newPlace());
      const rows = [
        row({ position: positionOf(123_456_789, 4095) }),
        row({ replica: "réplique", incarnation: "", backendVersion: "sha256:0123", isFirstSend: false }),
      ];
      await digests.append(rows);
      expect(await all(digests, 0, Number.MAX_SAFE_INTEGER)).toEqual([rows[1], rows[0]]);
    });

    test("are given for both ends of a range and nothing outside it", async () => {
      const digests = await opened(await newPlace());
      await digests.append([1, 2, 3, 4, 5].map((n) => row({ position: positionOf(n, n) })));
      expect(await positions(digests, positionOf(2, 2), positionOf(4, 4))).toEqual(
        [2, 3, 4].map((n) => positionOf(n, n)),
      );
      expect(await positions(digests, positionOf(2, 3), positionOf(3, 2))).toEqual([]);
      expect(await positions(digests, positionOf(4, 4), positionOf(4, 4))).toEqual([positionOf(4, 4)]);
    });

    test("of several replicas, sends and lives stand side by side", async () => {
      const digests = await opened(await newPlace());
      const rows = [
        row({ replica: "a" }),
        row({ replica: "b" }),
        row({ replica: "b", isFirstSend: false }),
        row({ replica: "b", incarnation: "second" }),
        row({ replica: "c", digest: "f".repeat(32) }),
        row({ replica: "c", epoch: "ffffffffffffffff" }),
        row({ replica: "c", rules: "other" }),
      ];
      await digests.append(rows);
      const read = await all(digests, 0, 100);
      expect(read.length).toBe(rows.length);
      expect(read).toEqual(expect.arrayContaining(rows));
    });

    test("appended again are there once", async () => {
      const digests = await opened(await newPlace());
      for (const _ of [1, 2, 3]) await digests.append([row({ position: 7 }), row({ position: 8 })]);
      expect(await positions(digests, 0, 100)).toEqual([7, 8]);
    });

    test("appended again with another version are there once, as they were appended last", async () => {
      const digests = await opened(await newPlace());
      await digests.append([row({ backendVersion: "1" }), row({ backendVersion: "2" })]);
      await digests.append([row({ backendVersion: "3" })]);
      expect(await all(digests, 0, 100)).toEqual([row({ backendVersion: "3" })]);
    });

    test("of replicas that append turn by turn are merged by position", async () => {
      const digests = await opened(await newPlace());
      for (let n = 0; n < 20; n++) {
        for (const [index, replica] of ["a", "b", "c"].entries()) {
          await digests.append([row({ replica, position: (n * 7 + index) % 20 })]); // 7 and 20 share no factor: each once
        }
      }
      const read = await all(digests, 0, 19);
      expect(read.map(({ position }) => position)).toEqual(Array.from({ length: 60 }, (_, n) => Math.floor(n / 3)));
      for (const replica of ["a", "b", "c"]) expect(read.filter((it) => it.replica === replica).length).toBe(20);
    });

    test("may come in large batches, over many records, and are all there after a restart", async () => {
      const place = await newPlace();
      const digests = await opened(place);
      const rows = Array.from({ length: 5_000 }, (_, n) => row({ position: n * 2_000, replica: `r${n % 3}` }));
      await Promise.all([digests.append(rows.slice(0, 2_500)), digests.append(rows.slice(2_500))]);
      await digests.append([]);
      await digests.close();
      expect(await all(await opened(place), 0, Number.MAX_SAFE_INTEGER)).toEqual(rows);
    });

    test("below a truncation may go, those above stay", async () => {
      const digests = await opened(await newPlace());
      const rows = Array.from({ length: 500 }, (_, n) => row({ position: positionOf(n * 100, 0) }));
      await digests.append(rows);
      const first = positionOf(40_050, 0);
      await digests.truncate(first);
      await digests.truncate(first);
      const left = await positions(digests, 0, Number.MAX_SAFE_INTEGER);
      expect(left.filter((position) => position >= first)).toEqual(
        rows.map(({ position }) => position).filter((position) => position >= first),
      );
      expect(left.length).toBeLessThan(105); // 99 and what may stay
    });

    test("whose append was called before a close are there after it", async () => {
      const place = await newPlace();
      const digests = await opened(place);
      const rows = Array.from({ length: 10_000 }, (_, position) => row({ position }));
      const appending = [digests.append(rows), digests.append([row({ position: 10_000 })])];
      await digests.close();
      await Promise.all(appending);
      expect((await all(await opened(place), 0, 20_000)).length).toBe(10_001);
    });

    test("are refused after a close, which may happen twice", async () => {
      const digests = await opened(await newPlace());
      await digests.close();
      await digests.close();
      await expect(digests.append([row({})])).rejects.toMatchObject({ code: "GW_STOPPING" });
      await expect(all(digests, 0, 1)).rejects.toMatchObject({ code: "GW_STOPPING" });
    });
  });
}

export function row(fields: Partial<DigestRow>): DigestRow {
  return {
    epoch: "0123456789abcdef",
    position: 1,
    replica: "a",
    incarnation: "first",
    backendVersion: "1",
    rules: "0".repeat(32),
    digest: "0123456789abcdef0123456789abcdef",
    isFirstSend: true,
    ...fields,
  };
}

export async function all(digests: Digests, from: number, to: number): Promise<DigestRow[]> {
  const rows: DigestRow[] = [];
  for await (const row of digests.read(from, to)) rows.push(row);
  return rows;
}

export async function positions(digests: Digests, from: number, to: number): Promise<number[]> {
  return (await all(digests, from, to)).map(({ position }) => position);
}
