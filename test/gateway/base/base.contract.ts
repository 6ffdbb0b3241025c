// The law of the bases port as tests, run by every adapter.
import { spawn } from "node:child_process";
import { once } from "node:events";
import { setTimeout as sleep } from "node:timers/promises";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";

import { afterEach, describe, expect, test } from "vitest";

import type { Base, Bases } from "../../../gateway/base/base.ts";
import { openLmdbState } from "../../../gateway/state/lmdb.ts";
import { endWithUs, temporaryFolder } from "../../helpers/folder.ts";
import { sampleState } from "../state/samples.ts";

export interface BasesPlace {
  /** Finds what was saved before. */
  open(): Promise<Bases>;
  /** What `saver.ts` needs to save there. */
  readonly childArguments: readonly string[];
  /** Stores other bytes instead of the base's. */
  damage(change: (bytes: Buffer) => Buffer): Promise<void>;
  close(): Promise<void>;
}

/** `makePlace` gives an empty place. */
export function basesContract(name: string, makePlace: () => Promise<BasesPlace>): void {
  const toClose: { close(): Promise<void> }[] = [];
  afterEach(async () => {
    for (const open of toClose.splice(0).reverse()) await open.close();
  });
  const newPlace = async (): Promise<BasesPlace> => {
    const place = await makePlace();
    toClose.push(place);
    return place;
  };
  const opened = async (place: BasesPlace): Promise<Bases> => {
    const bases = await place.open();
    toClose.push(bases);
    return bases;
  };

  describe(`${name}: a base`, () => {
    test("is none at first, then what was saved last, also after a restart", async () => {
      const place = await newPlace();
      const before = await opened(place);
      expect(await before.load()).toBe(null);
      // None, some, and many times the size of a piece.
      for (const [sequence, keys] of [
        [7, 0],
        [8, 3],
        [20, 30_000],
      ] as const) {
        await before.save(sampleState(sequence, keys));
        expect(await whole(before)).toEqual(expected(sequence, keys));
      }
      await before.close();
      expect(await whole(await opened(place))).toEqual(expected(20, 30_000));
    });

    test("may be replaced by one at the same record or a later one, never by an earlier one", async () => {
      const bases = await opened(await newPlace());
      await bases.save(sampleState(20, 10));
      await expect(bases.save(sampleState(19, 5))).rejects.toMatchObject({ code: "GW_CONFLICT" });
      expect(await whole(bases)).toEqual(expected(20, 10));
      await bases.save(sampleState(20, 4));
      expect(await whole(bases)).toEqual(expected(20, 4));
      // A lost log that is begun anew: another epoch, above every record of the former.
      const anew = sampleState(21, 4);
      await bases.save({ ...anew, head: { ...anew.head, epoch: "fedcba9876543210" } });
      expect((await bases.load())?.head.epoch).toBe("fedcba9876543210");
    });

    test("whose rows break off, or are not as many as its head tells of, is not saved; the former one stays", async () => {
      const bases = await opened(await newPlace());
      await bases.save(sampleState(20, 10));
      const next = sampleState(30, 20_000);
      const brokenOff = async function* () {
        yield* next.keys;
        throw new Error("the cut is closed");
      };
      await expect(bases.save({ ...next, keys: brokenOff() })).rejects.toThrow("the cut is closed");
      const tooMany = { ...next, head: { ...next.head, keyCount: 19_999 } };
      await expect(bases.save(tooMany)).rejects.toMatchObject({ code: "GW_INTERNAL" });
      expect(await whole(bases)).toEqual(expected(20, 10));
      await bases.save(next);
      expect(await whole(bases)).toEqual(expected(30, 20_000));
    });

    test("that was changed anywhere is GW_LOG_CORRUPT, and gives way to a new one", async () => {
      const place = await newPlace();
      const bases = await opened(place);
      const changes: readonly ((bytes: Buffer) => Buffer)[] = [
        flipped(() => 0),
        flipped(() => 3),
        flipped(() => 4),
        flipped(() => 7),
        flipped(() => 100),
        flipped((bytes) => bytes.length - 40),
        flipped((bytes) => bytes.length - 1),
        (bytes) => bytes.subarray(0, -49),
        (bytes) => bytes.subarray(0, 10),
        (bytes) => bytes.subarray(0, 2),
        (bytes) => Buffer.concat([bytes, bytes.subarray(-49)]),
      ];
      for (const [index, change] of changes.entries()) {
        await bases.save(sampleState(20 + index, 5000));
        await place.damage(change);
        await expect(bases.load(), `change ${index}`).rejects.toMatchObject({ code: "GW_LOG_CORRUPT" });
      }
      await bases.save(sampleState(50, 5000));
      expect(await whole(bases)).toEqual(expected(50, 5000));
    });

    test("that is replaced while it is read is read to its end, or is GW_LOG_UNAVAILABLE: never parts of two", async () => {
      const bases = await opened(await newPlace());
      await bases.save(sampleState(20, 30_000));
      const base = (await bases.load()) as Base;
      const rows = base.keys[Symbol.asyncIterator]();
      await rows.next();
      await bases.save(sampleState(21, 30_000));
      const rest: unknown[] = [];
      try {
        for (let it = await rows.next(); it.done !== true; it = await rows.next()) rest.push(it.value);
        expect(rest).toEqual(sampleState(20, 30_000).rows().slice(1));
      } catch (error) {
        expect(error).toMatchObject({ code: "GW_LOG_UNAVAILABLE" });
      }
      expect(await whole(bases)).toEqual(expected(21, 30_000));
    });

    test("is what a store of reader state begins with", async () => {
      const bases = await opened(await newPlace());
      const [before, after] = [openLmdbState(temporaryFolder("state")), openLmdbState(temporaryFolder("state"))];
      await before.reset(sampleState(20, 3000));
      const cut = before.cut();
      await bases.save({ head: cut.head, skips: cut.skips, keys: cut.keys() });
      cut.close();
      await after.reset((await bases.load()) as Base);
      expect([after.head(), after.skips(9), after.oldestKeys(-1, 9000)]).toEqual([
        before.head(),
        before.skips(9),
        sampleState(20, 3000).rows(),
      ]);
      for (const store of [before, after]) await store.close();
    });

    test("is neither saved nor loaded after a close, which may happen twice", async () => {
      const bases = await opened(await newPlace());
      await bases.save(sampleState(20, 10));
      await bases.load(); // and never read
      await bases.close();
      await bases.close();
      await expect(bases.save(sampleState(21, 10))).rejects.toMatchObject({ code: "GW_STOPPING" });
      await expect(bases.load()).rejects.toMatchObject({ code: "GW_STOPPING" });
    });

    test("is never held whole in memory", async () => {
      const bases = await opened(await newPlace());
      const keys = 1_000_000; // 46 MiB
      const state = sampleState(2000, keys);
      let most = 0;
      const watched = async function* <T>(rows: AsyncIterable<T>): AsyncGenerator<T> {
        let count = 0;
        for await (const row of rows) {
          if (count++ % 200_000 === 199_999) most = Math.max(most, heldBytes());
          yield row;
        }
      };
      const before = heldBytes();
      await bases.save({ ...state, keys: watched(state.keys) });
      const loaded = (await bases.load()) as Base;
      let count = 0;
      for await (const _ of watched(loaded.keys)) count++;
      expect(count).toBe(keys);
      expect(most - before).toBeLessThan(26 * 1024 * 1024);
    });

    test("is the one before or the one after, whole, whenever its saver is killed; the next save goes on", async () => {
      const place = await newPlace();
      let sequence = 20;
      for (const delayMs of [3, 25]) {
        const { begun, saved } = await killedAfter(place.childArguments, sequence, delayMs);
        const bases = await opened(place);
        const found = await whole(bases);
        expect([saved, begun]).toContain(found.head.sequence);
        expect(found).toEqual(expected(found.head.sequence, keysOfChild));
        sequence = begun + 1;
        await bases.save(sampleState(sequence, 100));
        expect(await whole(bases)).toEqual(expected(sequence, 100));
        await bases.close();
      }
    });
  });
}

const flipped = (at: (bytes: Buffer) => number) => (bytes: Buffer) => {
  const index = at(bytes);
  bytes[index] = (bytes[index] ?? 0) ^ 1;
  return bytes;
};

const keysOfChild = 8000;

/** A child that saves one base after the other, killed so many ms after it began to save its fourth. */
async function killedAfter(childArguments: readonly string[], first: number, delayMs: number) {
  const script = fileURLToPath(new URL("saver.ts", import.meta.url));
  const args = ["--import", "tsx", script, "1000", String(first), String(keysOfChild), ...childArguments];
  const child = spawn(process.execPath, args, { stdio: ["ignore", "pipe", "inherit"] });
  const gone = endWithUs(child.pid ?? 0);
  let [begun, saved] = [0, 0];
  for await (const line of createInterface(child.stdout)) {
    const [what, sequence] = line.split(" ");
    if (what === "begin") begun = Number(sequence);
    else saved = Number(sequence);
    if (what === "begin" && begun === first + 3) void sleep(delayMs).then(() => child.kill("SIGKILL"));
  }
  if (child.signalCode === null) await once(child, "exit");
  gone();
  expect(child.signalCode).toBe("SIGKILL");
  expect(saved).toBeGreaterThanOrEqual(first + 2);
  return { begun, saved };
}

export const expected = (sequence: number, keys: number) => {
  const { head, skips, rows } = sampleState(sequence, keys);
  return { head, skips, rows: rows() };
};

export async function whole(bases: Bases) {
  const base = await bases.load();
  if (base === null) throw new Error("there is no base");
  const rows: unknown[] = [];
  for await (const row of base.keys) rows.push(row);
  return { head: base.head, skips: base.skips, rows };
}

/** Of buffers that are still referred to. */
function heldBytes(): number {
  setFlagsFromString("--expose-gc");
  (runInNewContext("gc") as () => void)();
  return process.memoryUsage().arrayBuffers;
}
