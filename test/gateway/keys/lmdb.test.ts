import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { describe, expect, it } from "vitest";
import { systemClock } from "../../../gateway/clock.ts";
import { openLmdbKeys } from "../../../gateway/keys/lmdb.ts";
import type { LmdbKeysOptions } from "../../../gateway/keys/lmdb.ts";
import { endWithUs, temporaryFolder } from "../../helpers/folder.ts";
import { keysContract, settings } from "./keys.contract.ts";
import { answer, hash, newKey } from "./samples.ts";

const optionsIn = (folder: string, changed: Partial<LmdbKeysOptions> = {}): LmdbKeysOptions => ({
  folder,
  machineBoot: "boot-1",
  retentionMs: settings.retentionMs,
  answerBytesMax: settings.answerBytesMax,
  tail: settings.tail,
  ...changed,
});
const position = 9 * 4096;
const noTail = (): Promise<number> => Promise.reject(new Error("the log is away"));

describe("LMDB keys", () => {
  keysContract(() => {
    const folder = temporaryFolder("keys");
    return Promise.resolve({
      open: ({ retentionMs, answerBytesMax, tail }) =>
        openLmdbKeys(optionsIn(folder, { retentionMs, answerBytesMax, tail })),
    });
  });

  it("what was decided before a kill -9 is what is answered after it", async () => {
    const folder = temporaryFolder("keys");
    const script = fileURLToPath(new URL("decide-for-ever.ts", import.meta.url));
    const child = spawn(process.execPath, ["--import", "tsx", script, folder], {
      stdio: ["ignore", "pipe", "inherit"],
    });
    const gone = endWithUs(child.pid ?? 0);
    const acknowledged: string[] = [];
    for await (const line of createInterface(child.stdout)) {
      acknowledged.push(line);
      if (acknowledged.length === 500) child.kill("SIGKILL");
    }
    if (child.signalCode === null) await once(child, "exit");
    gone();
    expect(child.signalCode).toBe("SIGKILL");
    expect(acknowledged.length).toBeGreaterThanOrEqual(500);

    const keys = await openLmdbKeys(optionsIn(folder, { tail: noTail }));
    for (const line of acknowledged) {
      const [id = "", at, digest = ""] = line.split(" ");
      const decided = await keys.decide(
        { id, fingerprint: id },
        { position: Number(at), digest: hash(), answer: null },
      );
      expect(decided).toEqual({ position: Number(at), digest, answer: answer(digest), isLost: false });
    }
    await keys.close();
  });

  it("after another boot of the machine without a clean close nothing is trusted and the floor is the tail", async () => {
    const folder = temporaryFolder("keys");
    const first = await openLmdbKeys(optionsIn(folder));
    const key = newKey();
    const digest = hash();
    await first.decide(key, { position, digest, answer: answer("before") });
    // A second opening of the files as they are now, as after a power cut: the sentinel says that they were not closed.
    await first.close();
    await reopenWithoutClose(folder);
    const second = await openLmdbKeys(
      optionsIn(folder, { machineBoot: "boot-2", tail: () => Promise.resolve(position + 5) }),
    );
    expect(second.warnings).toHaveLength(1);
    expect(await second.decided(key)).toBeNull();
    expect(await second.decide(key, { position, digest: hash(), answer: answer("other") })).toMatchObject({
      isLost: true,
      answer: null,
    });
    expect((await second.decide(newKey(), { position: position + 6, digest, answer: null })).isLost).toBe(false);
    await second.close();
  });

  it("after a clean close another boot of the machine loses nothing", async () => {
    const folder = temporaryFolder("keys");
    const first = await openLmdbKeys(optionsIn(folder));
    const key = newKey();
    const decision = { position, digest: hash(), answer: answer("before") };
    await first.decide(key, decision);
    await first.close();
    const second = await openLmdbKeys(optionsIn(folder, { machineBoot: "boot-2", tail: noTail }));
    expect(second.warnings).toEqual([]);
    expect(await second.decided(key)).toEqual(decision);
    await second.close();
  });

  it("does not open while the tail that must be the floor is unknown", async () => {
    const folder = temporaryFolder("keys");
    await expect(openLmdbKeys(optionsIn(folder, { tail: noTail }))).rejects.toThrow("the log is away");
    const keys = await openLmdbKeys(optionsIn(folder));
    await keys.close();
    expect(existsSync(folder)).toBe(true);
  });

  it("a sweep takes away exactly what is old, in any number, and keeps what was written again", async () => {
    let nowMs = 1_000_000;
    const clock = { ...systemClock, now: () => nowMs, wallMs: () => nowMs };
    const keys = await openLmdbKeys(optionsIn(temporaryFolder("keys"), { clock, retentionMs: 10_000 }));
    const decided = async (n: number) => {
      const all = Array.from({ length: n }, newKey);
      await Promise.all(all.map((key) => keys.decide(key, { position, digest: key.id, answer: answer(key.id) })));
      return all;
    };
    const old = await decided(2000);
    const [again] = old.splice(0, 1);
    nowMs += 6000;
    const young = await decided(500);
    if (again !== undefined) await keys.offer(again, position, { replica: "late", digest: again.id, answer: null });
    nowMs += 4001;
    await keys.sweep();
    const isThere = async (key: { id: string; fingerprint: string }) => (await keys.decided(key)) !== null;
    expect((await Promise.all(old.map(isThere))).filter(Boolean)).toHaveLength(0);
    expect((await Promise.all(young.map(isThere))).filter(Boolean)).toHaveLength(500);
    expect(await Promise.all([again].filter((key) => key !== undefined).map(isThere))).toEqual([true]);
    nowMs += 10_001;
    await keys.sweep();
    expect((await Promise.all([...young, ...(again ? [again] : [])].map(isThere))).filter(Boolean)).toHaveLength(0);
    await keys.close();
  });
});

/** Leaves the folder as a process does that was running when the power went: opened, not closed. */
async function reopenWithoutClose(folder: string): Promise<void> {
  const script = fileURLToPath(new URL("decide-for-ever.ts", import.meta.url));
  const child = spawn(process.execPath, ["--import", "tsx", script, folder], { stdio: ["ignore", "pipe", "inherit"] });
  const gone = endWithUs(child.pid ?? 0);
  await once(child.stdout, "data");
  child.kill("SIGKILL");
  await once(child, "exit");
  gone();
}
