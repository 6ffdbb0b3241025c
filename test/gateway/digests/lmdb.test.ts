// Digests beside the embedded log.
import { expect, test } from "vitest";

import { openLmdbDigests } from "../../../gateway/digests/lmdb.ts";
import { openLmdb } from "../../../gateway/drivers/lmdb.ts";
import { positionOf } from "../../../gateway/entry.ts";
import { createFolder, removeFolder, temporaryFolder } from "../../helpers/folder.ts";
import { all, digestsContract, positions, row } from "./digests.contract.ts";

digestsContract("lmdb", async () => {
  const folder = createFolder("digests");
  return { open: () => openLmdbDigests({ folder }), close: async () => removeFolder(folder) };
});

const rowsFrom = (first: number, count: number) =>
  Array.from({ length: count }, (_, index) => row({ position: first + index }));

test("digests beside the embedded log are bounded, over restarts too: the lowest positions go first", async () => {
  const folder = temporaryFolder();
  const batches = Array.from({ length: 30 }, (_, n) => rowsFrom(positionOf(n * 64, 0), 10));
  for (const start of [0, 10, 20]) {
    const digests = await openLmdbDigests({ folder, rowsMax: 100 });
    for (const batch of batches.slice(start, start + 10)) await digests.append(batch);
    expect(await all(digests, 0, Number.MAX_SAFE_INTEGER)).toEqual(batches.slice(start, start + 10).flat());
    await digests.close();
  }
});

test("digests of one bucket beside the embedded log go in the order they were appended", async () => {
  const digests = await openLmdbDigests({ folder: temporaryFolder(), rowsMax: 100 });
  for (let n = 0; n < 30; n++) await digests.append(rowsFrom(n * 10, 10));
  expect(await positions(digests, 0, 1000)).toEqual(Array.from({ length: 100 }, (_, n) => 200 + n));
  await digests.close();
});

test("digests beside the embedded log exceed their bound by less than one append, whatever the batches are", async () => {
  const digests = await openLmdbDigests({ folder: temporaryFolder(), rowsMax: 1000 });
  for (let n = 0; n < 500; n++) await digests.append([row({ position: positionOf(n * 64, 0) })]); // a bucket each
  for (let n = 0; n < 10; n++) await digests.append(rowsFrom(positionOf(100_000 + n * 64, 0), 4096));
  const left = await positions(digests, 0, Number.MAX_SAFE_INTEGER);
  expect(left.length).toBeGreaterThanOrEqual(1000);
  expect(left.length).toBeLessThan(1000 + 4096);
  expect(left.at(-1)).toBe(positionOf(100_000 + 9 * 64, 4095));
  await digests.close();
});

test("digests beside the embedded log keep count when they are truncated", async () => {
  const digests = await openLmdbDigests({ folder: temporaryFolder(), rowsMax: 100 });
  for (let n = 0; n < 100; n++) await digests.append([row({ position: positionOf(n * 64, 0) })]);
  await digests.truncate(positionOf(50 * 64, 0));
  for (let n = 100; n < 150; n++) await digests.append([row({ position: positionOf(n * 64, 0) })]);
  expect((await positions(digests, 0, Number.MAX_SAFE_INTEGER)).length).toBe(100);
  await digests.append([row({ position: positionOf(150 * 64, 0) })]);
  expect((await positions(digests, 0, Number.MAX_SAFE_INTEGER))[0]).toBe(positionOf(51 * 64, 0));
  await digests.close();
});

test("a batch beside the embedded log that is not what was written is reported where it is read, and can be dropped", async () => {
  const folder = temporaryFolder();
  const before = await openLmdbDigests({ folder });
  await before.append([...rowsFrom(positionOf(1, 0), 100), row({ position: positionOf(64, 0) })]);
  await before.close();
  const root = openLmdb(folder, { maxDbs: 2, durable: false });
  const batches = root.openDB<Buffer, number[]>({ name: "batches", encoding: "binary" });
  const [first] = batches.getRange({ limit: 1 });
  const bytes = Buffer.from(first!.value);
  bytes[bytes.length - 35] = 255 - bytes[bytes.length - 35]!; // of a position
  await batches.put(first!.key, bytes);
  await root.close();

  const digests = await openLmdbDigests({ folder });
  await expect(all(digests, 0, positionOf(63, 0))).rejects.toMatchObject({ code: "GW_LOG_CORRUPT" });
  expect(await positions(digests, positionOf(64, 0), positionOf(64, 0))).toEqual([positionOf(64, 0)]);
  await digests.truncate(positionOf(64, 0));
  expect(await positions(digests, 0, Number.MAX_SAFE_INTEGER)).toEqual([positionOf(64, 0)]);
  await digests.close();
});

test("digests beside the embedded log are read in position order while others are appended and dropped", async () => {
  const digests = await openLmdbDigests({ folder: temporaryFolder() });
  for (let n = 0; n < 20; n++) await digests.append(rowsFrom(positionOf(n * 64, 0), 100));
  const read: number[] = [];
  for await (const { position } of digests.read(0, Number.MAX_SAFE_INTEGER)) {
    read.push(position);
    if (read.length === 50) await digests.truncate(positionOf(10 * 64, 0));
    if (read.length === 150) await digests.append(rowsFrom(positionOf(25 * 64, 0), 10));
  }
  // The bucket that was being read, those that were left, and the new one.
  expect(read.length).toBe(100 + 10 * 100 + 10);
  expect(read).toEqual(read.toSorted((a, b) => a - b));
  await digests.close();
});
