// What all stores have in common, on a backing that does whatever a test wants: nothing is sent that should not be, and every call ends.
import { describe, expect, onTestFinished, test } from "vitest";

import { GatewayError } from "../../../gateway/errors.ts";
import { openGuarded } from "../../../recorder/stores/guarded.ts";
import type { Backing } from "../../../recorder/stores/guarded.ts";
import { objectBytesMax } from "../../../recorder/stores/store.ts";
import type { SnapshotStore, StoredObject } from "../../../recorder/stores/store.ts";

const unavailable = { code: "GW_STORE_UNAVAILABLE" };
const object = (name: string): StoredObject => ({ name, sizeBytes: 1, storedAtMs: 0 });

describe("a guarded store", () => {
  test("sends nothing for a name, a range or a size that may not be", async () => {
    const { store, calls } = await guarded();
    calls.length = 0;
    for (const call of [
      () => store.put("../a", Buffer.alloc(1)),
      () => store.get("a//b"),
      () => store.remove("A"),
      () => store.put("a", Buffer.alloc(objectBytesMax + 1)),
      () => store.get("a", { start: 2, end: 1 }),
    ])
      await expect(call()).rejects.toMatchObject({ code: "GW_INTERNAL" });
    expect(calls).toEqual([]);
    await store.put("a", Buffer.alloc(objectBytesMax));
    expect(calls).toEqual(["put"]);
  });

  test("ends calls in time, tells what they work for to stop, and says what was asked", async () => {
    const signals: AbortSignal[] = [];
    const hang = (signal: AbortSignal): Promise<never> => {
      signals.push(signal);
      return new Promise((_, reject) => signal.addEventListener("abort", () => reject(new Error("stopped"))));
    };
    const { store } = await guarded({
      callMs: 50,
      put: (_name, _bytes, signal) => hang(signal),
      get: (_name, _range, signal) => hang(signal),
      remove: (_name, signal) => hang(signal),
      // One object, then silence.
      list: async function* (_prefix, signal) {
        yield object("a");
        yield await hang(signal);
      },
    });
    const late = { ...unavailable, message: expect.stringMatching(/a.* within 0\.05 s/) as string };
    await expect(store.put("a", Buffer.alloc(1))).rejects.toMatchObject(late);
    await expect(store.get("a")).rejects.toMatchObject(late);
    await expect(store.remove("a")).rejects.toMatchObject(late);
    const seen: string[] = [];
    const listing = (async () => {
      for await (const { name } of store.list("a")) seen.push(name);
    })();
    await expect(listing).rejects.toMatchObject(late);
    expect(seen).toEqual(["a"]);
    expect(signals.map(({ aborted }) => aborted)).toEqual([true, true, true, true]);
  });

  test("lets a list last as long as its reader likes, and gives its resources back when the reader leaves", async () => {
    let isGivenBack = false;
    const { store } = await guarded({
      callMs: 50,
      list: async function* () {
        try {
          for (const name of ["a", "b", "c"]) yield object(name);
        } finally {
          isGivenBack = true;
        }
      },
    });
    for await (const { name } of store.list("")) {
      await new Promise((resolve) => setTimeout(resolve, 70)); // longer than a step may take
      if (name === "b") break;
    }
    expect(isGivenBack).toBe(true);
  });

  test("ends what is under way when it is closed, waits for it to clean up, and closes its backing once", async () => {
    const steps: string[] = [];
    const { store, calls } = await guarded({
      put: async (_name, _bytes, signal) => {
        await new Promise((resolve) => signal.addEventListener("abort", resolve));
        await new Promise((resolve) => setTimeout(resolve, 20));
        steps.push("cleaned up");
        throw new Error("stopped");
      },
      close: async () => void steps.push("closed"),
    });
    const putting = expect(store.put("a", Buffer.alloc(1))).rejects.toMatchObject(unavailable);
    await Promise.all([store.close(), store.close()]);
    await putting;
    expect(steps).toEqual(["cleaned up", "closed"]);
    calls.length = 0;
    await expect(store.get("a")).rejects.toMatchObject(unavailable);
    expect(calls).toEqual([]);
  });

  test("translates what drivers say, once, and passes on what is said in its own words", async () => {
    let error: Error = new Error("driver");
    const { store } = await guarded({ get: () => Promise.reject(error) });
    await expect(store.get("a")).rejects.toMatchObject({ ...unavailable, message: "Reading a from here: driver." });
    error = new GatewayError("GW_LOG_UNAVAILABLE", "of the log");
    await expect(store.get("a")).rejects.toMatchObject({ ...unavailable, message: "Reading a from here: of the log." });
    error = new GatewayError("GW_SNAPSHOT_CORRUPT", "as it is");
    await expect(store.get("a")).rejects.toBe(error);
  });

  test("says why it cannot be opened, and closes what was opened of it", async () => {
    const calls: string[] = [];
    const backing = backingWith({ open: () => Promise.reject(new Error("not today")) }, calls);
    const message = "Opening here: not today.";
    await expect(openGuarded(backing)).rejects.toMatchObject({ ...unavailable, message });
    await expect.poll(() => calls).toEqual(["close"]);
  });
});

async function guarded(parts: Partial<Backing> = {}): Promise<{ store: SnapshotStore; calls: string[] }> {
  const calls: string[] = [];
  const store = await openGuarded(backingWith(parts, calls));
  onTestFinished(() => store.close());
  return { store, calls };
}

function backingWith(parts: Partial<Backing>, calls: string[]): Backing {
  const told = (call: string): Promise<void> => Promise.resolve(void calls.push(call));
  return {
    kind: "folder",
    where: "here",
    callMs: 10_000,
    open: () => told("open"),
    put: () => told("put"),
    get: () => told("get").then(() => null),
    list: async function* () {
      await told("list");
      yield* [];
    },
    remove: () => told("remove"),
    close: () => told("close"),
    failure: (error, what) =>
      new GatewayError("GW_STORE_UNAVAILABLE", `${what}: ${(error as Error).message.replace(/\.$/, "")}.`),
    ...parts,
  };
}
