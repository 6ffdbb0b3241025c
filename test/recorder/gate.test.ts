// Writers side by side, or one collector alone: whatever order they come in, and whoever of them dies.
import { spawn } from "node:child_process";
import { once } from "node:events";
import { describe, expect, test } from "vitest";
import type { Clock } from "../../gateway/clock.ts";
import { enterAsCollector, enterAsWriter } from "../../recorder/gate.ts";
import { isHolderGone, thisHolder } from "../../recorder/holder.ts";
import { waitFor } from "../helpers/wait.ts";
import { MemoryDisk, MemoryStore } from "./memory-store.ts";

const minuteMs = 60_000;
const { signal } = new AbortController();

/** Time as the test wants it: sleepers wake when it passes them. */
class HandClock implements Clock {
  #nowMs = 0;
  readonly #sleepers = new Set<{ readonly atMs: number; readonly wake: () => void }>();

  now(): number {
    return this.#nowMs;
  }
  wallMs(): number {
    return 1_700_000_000_000 + this.#nowMs;
  }
  get sleepers(): number {
    return this.#sleepers.size;
  }
  sleep(ms: number, signal?: AbortSignal): Promise<void> {
    return new Promise((resolve) => {
      const sleeper = {
        atMs: this.#nowMs + ms,
        wake: () => {
          this.#sleepers.delete(sleeper);
          signal?.removeEventListener("abort", sleeper.wake);
          resolve();
        },
      };
      this.#sleepers.add(sleeper);
      if (signal?.aborted === true) sleeper.wake();
      signal?.addEventListener("abort", sleeper.wake, { once: true });
    });
  }
  /** In steps, so that what wakes can sleep again. */
  async pass(ms: number, disk?: MemoryDisk): Promise<void> {
    for (let left = ms; left > 0; left -= 1_000) {
      this.#nowMs += Math.min(1_000, left);
      if (disk !== undefined) disk.nowMs += Math.min(1_000, left);
      for (const sleeper of this.#sleepers) if (sleeper.atMs <= this.#nowMs) sleeper.wake();
      for (let i = 0; i < 4; i += 1) await new Promise((resolve) => setImmediate(resolve));
    }
  }
}

/** A few turns of the loop, at random. */
async function jitter(): Promise<void> {
  for (let n = Math.floor(Math.random() * 4); n > 0; n -= 1) await new Promise((resolve) => setImmediate(resolve));
}

/** A mark of a process of another machine. */
async function strangersMark(disk: MemoryDisk, kind: "write" | "collect"): Promise<string> {
  const name = `pending/${kind}-00000000000000aa`;
  await new MemoryStore(disk).put(name, Buffer.from("somewhere else"));
  return name;
}

describe("the gate of a store", () => {
  test("lets writers in side by side, and leaves no mark behind them", async () => {
    const disk = new MemoryDisk();
    const one = await enterAsWriter(new MemoryStore(disk), { signal });
    const two = await enterAsWriter(new MemoryStore(disk), { signal });
    expect(disk.names("pending/write-")).toHaveLength(2);
    await Promise.all([one.leave(), one.leave(), two.leave()]);
    expect(disk.names("")).toEqual([]);
  });

  test("lets no collector in while somebody writes or collects, and lets it in afterwards", async () => {
    const disk = new MemoryDisk();
    for (const enter of [enterAsWriter, enterAsCollector]) {
      const other = await enter(new MemoryStore(disk), { signal });
      expect(await enterAsCollector(new MemoryStore(disk), { signal })).toBeNull();
      expect(disk.names("pending/")).toHaveLength(1);
      await other!.leave();
    }
    const mark = await enterAsCollector(new MemoryStore(disk), { signal });
    expect(mark).not.toBeNull();
    await mark!.leave();
    expect(disk.names("")).toEqual([]);
  });

  test("lets a writer wait until the collector has gone", async () => {
    const disk = new MemoryDisk();
    const clock = new HandClock();
    const collector = await enterAsCollector(new MemoryStore(disk), { signal });
    let isIn = false;
    const entering = enterAsWriter(new MemoryStore(disk), { signal, clock }).then((mark) => {
      isIn = true;
      return mark;
    });
    await clock.pass(10_000);
    expect(isIn).toBe(false);
    await collector!.leave();
    await clock.pass(2_000);
    await (await entering).leave();
    expect(disk.names("")).toEqual([]);
  });

  test("never has a writer and a collector inside at once, whoever comes when", async () => {
    // Every operation on the store may come before or after every one of the other side: turns are taken at random, many times.
    let together = 0;
    let collected = 0;
    for (let round = 0; round < 150; round += 1) {
      const disk = new MemoryDisk();
      const inside = { writers: 0, collectors: 0 };
      const store = (): MemoryStore => Object.assign(new MemoryStore(disk), { before: jitter });
      const visit = async (kind: "writers" | "collectors"): Promise<void> => {
        await jitter();
        const clock = new HandClock();
        const entering =
          kind === "writers" ? enterAsWriter(store(), { signal, clock }) : enterAsCollector(store(), { signal, clock });
        const ended = new AbortController();
        void entering.finally(() => ended.abort());
        while (!ended.signal.aborted) await clock.pass(1_000);
        const mark = await entering;
        if (mark === null) return;
        inside[kind] += 1;
        if (kind === "collectors") collected += 1;
        for (let n = 0; n < 5; n += 1) {
          if (inside.collectors > 1 || (inside.collectors > 0 && inside.writers > 0)) together += 1;
          await new Promise((resolve) => setImmediate(resolve));
        }
        inside[kind] -= 1;
        await mark.leave();
      };
      await Promise.all([visit("writers"), visit("collectors"), visit("writers"), visit("collectors")]);
      expect(disk.names("")).toEqual([]);
    }
    expect(together).toBe(0);
    expect(collected).toBeGreaterThan(10);
  });

  test("a mark is renewed every minute, by the store's clock", async () => {
    const disk = new MemoryDisk();
    const clock = new HandClock();
    const mark = await enterAsWriter(new MemoryStore(disk), { signal, clock });
    for (let minutes = 0; minutes < 40; minutes += 1) {
      await clock.pass(minuteMs, disk);
      expect(await enterAsCollector(new MemoryStore(disk), { signal, clock })).toBeNull();
      mark.check();
    }
    await mark.leave();
    expect(clock.sleepers).toBe(0);
  });

  test("a stranger's mark that was not renewed for 15 minutes is dead, and removed by the next collector", async () => {
    const disk = new MemoryDisk();
    for (const kind of ["write", "collect"] as const) {
      await strangersMark(disk, kind);
      disk.nowMs += 14 * minuteMs;
      expect(await enterAsCollector(new MemoryStore(disk), { signal })).toBeNull();
      disk.nowMs += 2 * minuteMs;
      const mark = await enterAsCollector(new MemoryStore(disk), { signal });
      expect(mark).not.toBeNull();
      await mark!.leave();
      expect(disk.names("")).toEqual([]);
    }
  });

  test("a writer goes on after a stranger's collector that died", async () => {
    const disk = new MemoryDisk();
    const clock = new HandClock();
    await strangersMark(disk, "collect");
    let isIn = false;
    const entering = enterAsWriter(new MemoryStore(disk), { signal, clock }).then((mark) => {
      isIn = true;
      return mark;
    });
    await clock.pass(14 * minuteMs, disk);
    expect(isIn).toBe(false);
    await clock.pass(3 * minuteMs, disk);
    await (await entering).leave();
  });

  test("a process of this machine that was killed delays nobody", async () => {
    const disk = new MemoryDisk();
    const child = spawn(process.execPath, ["--import", "tsx", "-e", script], { stdio: ["ignore", "pipe", "inherit"] });
    const [bytes] = (await once(child.stdout, "data")) as [Buffer];
    const holder = bytes.toString();
    expect(isHolderGone(holder)).toBe(false);
    await new MemoryStore(disk).put("pending/write-00000000000000aa", Buffer.from(holder));
    expect(await enterAsCollector(new MemoryStore(disk), { signal })).toBeNull();
    child.kill("SIGKILL");
    await waitFor(() => isHolderGone(holder), { what: "the holder's end" });
    const mark = await enterAsCollector(new MemoryStore(disk), { signal });
    expect(mark).not.toBeNull();
    await mark!.leave();
  });

  test("only what is certain counts as gone", () => {
    const own = JSON.parse(thisHolder()) as Record<string, unknown>;
    expect(isHolderGone(thisHolder())).toBe(false);
    expect(isHolderGone(JSON.stringify({ ...own, started: "1" }))).toBe(true);
    expect(isHolderGone(JSON.stringify({ ...own, pid: 2 ** 22 + 1 }))).toBe(true);
    for (const other of [{ boot: "another" }, { namespace: "another" }, { pid: "1" }, { started: 1 }])
      expect(isHolderGone(JSON.stringify({ ...own, ...other, ...(other.pid ? {} : { pid: 2 ** 22 + 1 }) }))).toBe(
        false,
      );
    for (const text of ["", "null", "[]", "{", "7"]) expect(isHolderGone(text)).toBe(false);
  });

  test("whoever cannot renew its mark for five minutes takes itself for dead, ten minutes before the others do", async () => {
    const disk = new MemoryDisk();
    const clock = new HandClock();
    const store = new MemoryStore(disk);
    const mark = await enterAsWriter(store, { signal, clock });
    store.before = (deed) => {
      if (deed === "put") throw new Error("the store is away");
    };
    await clock.pass(4 * minuteMs, disk);
    mark.check();
    await clock.pass(1.5 * minuteMs, disk);
    expect(() => mark.check()).toThrow(expect.objectContaining({ code: "GW_STORE_UNAVAILABLE" }) as Error);
    store.before = () => {};
    await clock.pass(15_000, disk);
    mark.check();
    await mark.leave();
  });

  test("a mark that is being renewed while it is left stays away", async () => {
    const clock = new HandClock();
    const store = new MemoryStore();
    const mark = await enterAsWriter(store, { signal, clock });
    const held: (() => void)[] = [];
    store.before = (deed) => (deed === "put" ? new Promise((resolve) => held.push(resolve)) : undefined);
    await clock.pass(minuteMs + 1_000);
    expect(store.deeds.at(-1)).toMatchObject({ deed: "put" });
    const leaving = mark.leave();
    await clock.pass(1_000);
    for (const goOn of held) goOn();
    await leaving;
    await clock.pass(1_000);
    expect(store.disk.names("")).toEqual([]);
  });

  test("a writer that stops waiting leaves no mark", async () => {
    const disk = new MemoryDisk();
    const collector = await enterAsCollector(new MemoryStore(disk), { signal });
    const stop = new AbortController();
    const entering = enterAsWriter(new MemoryStore(disk), { signal: stop.signal });
    await waitFor(() => disk.names("pending/write-").length === 1, { what: "the writer's mark" });
    stop.abort(new Error("stopped"));
    await expect(entering).rejects.toThrow("stopped");
    expect(disk.names("pending/write-")).toEqual([]);
    await collector!.leave();
  });

  test("a mark that the store does not show is no mark", async () => {
    const store = new MemoryStore();
    store.before = (deed) => {
      if (deed === "list") store.disk.objects.clear();
    };
    await expect(enterAsWriter(store, { signal })).rejects.toMatchObject({ code: "GW_STORE_UNAVAILABLE" });
    await expect(enterAsCollector(store, { signal })).rejects.toMatchObject({ code: "GW_STORE_UNAVAILABLE" });
  });
});

const script = `
import(${JSON.stringify(new URL("../../recorder/holder.ts", import.meta.url).href)})
  .then(({ thisHolder }) => { process.stdout.write(thisHolder()); setInterval(() => {}, 1000); });
`;
