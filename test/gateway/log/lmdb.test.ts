// The embedded log: the contract, and what only a file can suffer.
import { execFileSync, spawn, spawnSync } from "node:child_process";
import type { SpawnSyncReturns } from "node:child_process";
import { mkdirSync, readFileSync, statSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

import { describe, expect, onTestFinished, test } from "vitest";

import { openLmdb } from "../../../gateway/drivers/lmdb.ts";
import { openLmdbLog } from "../../../gateway/log/lmdb.ts";
import type { Log } from "../../../gateway/log/log.ts";
import { createFolder, endWithUs, removeFolder, temporaryFolder } from "../../helpers/folder.ts";
import { waitFor } from "../../helpers/wait.ts";
import { MiB, appendMany, collect, creation, logContract, range } from "./log.contract.ts";

const hasStrace = spawnSync("strace", ["-o", "/dev/null", "true"]).status === 0;
const canMount = process.getuid?.() === 0;

logContract("lmdb", async (maxBytes) => {
  const folder = createFolder("log");
  return {
    open: (create) => openLmdbLog({ folder, maxBytes, create }),
    close: async () => removeFolder(folder),
  };
});

describe("the embedded log", () => {
  test("is synced before it acknowledges, and says so; on a memory file system it says that too", async () => {
    const log = await newLog(temporaryFolder());
    expect(await log.guarantee()).toMatchObject({ level: "power-loss" });
    if (!canMount) return;
    const { level, why } = await (await newLog(join(memoryFileSystem("16m"), "log"))).guarantee();
    expect(level).toBe("process-crash");
    expect(why).toContain("memory file system");
  });

  test("loses nothing acknowledged by kill -9 in the middle of appends, ten times", { timeout: 60_000 }, async () => {
    const folder = temporaryFolder();
    let acknowledged = 0;
    for (const round of range(1, 10)) {
      const child = spawnAppender(folder, [], ["pipe", "pipe", "inherit"]);
      let output = "";
      child.stdout?.on("data", (chunk: Buffer) => (output += chunk.toString()));
      const ended = new Promise((resolve) => child.once("exit", resolve));
      await waitFor(() => (output.match(/ack/g)?.length ?? 0) > 50 * round, {
        what: `acknowledgements in round ${round}`,
      });
      child.kill("SIGKILL");
      await ended;
      const acks = [...output.matchAll(/ack (\d+)\n/g)].map(([, n]) => Number(n));
      acknowledged = Math.max(acknowledged, ...acks);
      const log = await newLog(folder);
      const last = await log.tail();
      expect(last).toBeGreaterThanOrEqual(acknowledged);
      const records = await collect(log, 1, last);
      for (const { sequence, bytes } of records) {
        const text = bytes.toString();
        expect(text.length).toBeGreaterThanOrEqual(10);
        expect(text).toBe(text.slice(0, 10).repeat(text.length / 10));
        expect(sequence).toBe(Number(text.slice(0, 10)));
      }
      await log.close();
      acknowledged = last;
    }
  });

  test.skipIf(!hasStrace)("acknowledges and shows a record only after its fdatasync and its meta page", async () => {
    const folder = temporaryFolder();
    const trace = join(temporaryFolder(), "trace");
    const strace = ["strace", "-f", "-y", "-s", "40", "-e", "trace=fdatasync,pwrite64,write,openat", "-o", trace];
    const { status } = appender(folder, ["20"], strace);
    expect(status).toBe(0);
    const calls = finishedCalls(readFileSync(trace, "utf8"));
    expect(calls.some((call) => call.includes("data.mdb") && call.includes("O_DSYNC"))).toBe(true);
    // The records are synced, then the meta page goes out by a descriptor that syncs by itself, then we hear of it.
    const steps = calls.flatMap((call) => {
      if (/fdatasync\(\d+<.*data\.mdb>\) += 0/.test(call)) return ["sync"];
      if (/pwrite64\(\d+<.*data\.mdb>, .* = 128$/.test(call)) return ["meta"];
      const told = /write\(1<.*, "(ack|read) (\d+)\\n"/.exec(call);
      return told ? [`${told[1]} ${told[2]}`] : [];
    });
    for (const n of range(1, 20)) {
      const before = n === 1 ? steps.lastIndexOf("sync", steps.indexOf("ack 1")) : steps.indexOf(`ack ${n - 1}`);
      for (const told of [`ack ${n}`, `read ${n}`]) {
        const between = steps.slice(before, steps.indexOf(told));
        expect(between.indexOf("sync"), `${told} after ${between.join(", ")}`).toBeGreaterThanOrEqual(0);
        expect(between.indexOf("meta", between.indexOf("sync"))).toBeGreaterThan(0);
      }
    }
  });

  test.skipIf(!hasStrace)("ends the process when fdatasync fails, and never acknowledges after it", async () => {
    const folder = temporaryFolder();
    const trace = join(temporaryFolder(), "trace");
    const inject = ["-e", "trace=fdatasync", "-e", "inject=fdatasync:error=EIO:when=6+"];
    const { status, stdout, stderr } = appender(
      folder,
      ["1000", "whatever happens"],
      ["strace", "-f", ...inject, "-o", trace],
    );
    expect(status).toBe(1);
    expect(stderr).toContain("the process stops");
    const acks = [...stdout.matchAll(/ack (\d+)\n/g)].map(([, n]) => Number(n));
    expect(acks.length).toBeLessThan(1000);
    const log = await newLog(folder);
    expect(await log.tail()).toBeGreaterThanOrEqual(Math.max(0, ...acks));
  });

  test.skipIf(!canMount)("is full on a full disk, and goes on as soon as there is room", async () => {
    const disk = memoryFileSystem("24m");
    writeFileSync(join(disk, "ballast"), Buffer.alloc(2 * MiB));
    const log = await newLog(join(disk, "log"));
    const record = Buffer.alloc(500_000, "d");
    let stored = 0;
    const fill = async (): Promise<void> => {
      // Ends when the disk is full.
      for (;;) {
        const appended = await log.append(record);
        if (appended.kind === "full") return;
        expect(appended).toEqual({ kind: "stored", sequence: ++stored });
      }
    };
    await fill();
    expect(stored).toBeGreaterThan(20);
    expect(await log.tail()).toBe(stored);
    expect(log.isReachable()).toBe(true);
    await log.truncate(20); // works on a full disk
    await fill();
    expect(stored).toBeGreaterThan(50);
    execFileSync("mount", ["-o", "remount,size=64m", disk]);
    expect(await log.append(record)).toEqual({ kind: "stored", sequence: ++stored });
    expect((await collect(log, 20, stored - 19)).every(({ bytes }) => bytes.equals(record))).toBe(true);
  });

  test("finds a flipped bit in a record", async () => {
    const folder = temporaryFolder();
    const log = await newLog(folder);
    await appendMany(log, 1, 3);
    await log.append(Buffer.alloc(50_000, "needle "));
    await appendMany(log, 5, 6);
    await log.close();
    const file = join(folder, "data.mdb");
    const bytes = readFileSync(file);
    bytes[bytes.indexOf("needle needle") + 20_000]! ^= 1;
    writeFileSync(file, bytes);
    const again = await newLog(folder);
    expect((await collect(again, 1, 3)).length).toBe(3);
    await expect(collect(again, 4, 1)).rejects.toMatchObject({ code: "GW_LOG_CORRUPT" });
  });

  test("refuses a file that lost its end, and does not die of it", async () => {
    const folder = temporaryFolder();
    const log = await newLog(folder);
    for (const _ of range(1, 30)) await log.append(Buffer.alloc(50_000, "e"));
    await log.close();
    const file = join(folder, "data.mdb");
    truncateSync(file, Math.floor(statSync(file).size / 2));
    await expect(newLog(folder)).rejects.toMatchObject({ code: "GW_LOG_CORRUPT" });
  });

  test("refuses a file that is none", async () => {
    const folder = temporaryFolder();
    writeFileSync(join(folder, "data.mdb"), Buffer.alloc(20_000, "garbage"));
    await expect(newLog(folder)).rejects.toMatchObject({ code: "GW_LOG_CORRUPT" });
  });

  test("commits appends that come together in one transaction", async () => {
    const folder = temporaryFolder();
    const log = await newLog(folder);
    for (const turn of range(0, 3)) await appendMany(log, turn * 64 + 1, turn * 64 + 64);
    await log.close();
    const root = openLmdb(folder, { maxDbs: 4, durable: true });
    expect((root.getStats() as { lastTxnId: number }).lastTxnId).toBeLessThan(20);
    await root.close();
  });
});

async function newLog(folder: string): Promise<Log> {
  const log = await openLmdbLog({ folder, maxBytes: 256 * MiB, create: creation });
  if (log === null) throw new Error("there is no log");
  onTestFinished(() => log.close());
  return log;
}

const appenderFile = fileURLToPath(new URL("lmdb.appender.ts", import.meta.url));

function spawnAppender(folder: string, args: string[], stdio: ("pipe" | "inherit")[]): ReturnType<typeof spawn> {
  const child = spawn(process.execPath, ["--import", "tsx", appenderFile, folder, ...args], { stdio });
  child.once("exit", endWithUs(child.pid!));
  return child;
}

function appender(folder: string, args: string[], [command, ...before]: string[]): SpawnSyncReturns<string> {
  const all = [...before, process.execPath, "--import", "tsx", appenderFile, folder, ...args];
  return spawnSync(command!, all, { encoding: "utf8", timeout: 25_000 });
}

/** One line a system call, at the place where it returned. */
function finishedCalls(trace: string): string[] {
  const begun = new Map<string, string>();
  return trace.split("\n").flatMap((line) => {
    const [, pid = "", call = ""] = /^(\d+) +(.*)$/.exec(line) ?? [];
    if (call.endsWith("<unfinished ...>")) {
      begun.set(pid, call.replace(/ *<unfinished \.\.\.>$/, ""));
      return [];
    }
    const resumed = /^<\.\.\. \w+ resumed>(.*)$/.exec(call);
    return [resumed === null ? call : `${begun.get(pid) ?? ""}${resumed[1] ?? ""}`];
  });
}

function memoryFileSystem(size: string): string {
  const folder = temporaryFolder("tmpfs");
  mkdirSync(folder, { recursive: true });
  execFileSync("mount", ["-t", "tmpfs", "-o", `size=${size}`, "tmpfs", folder]);
  onTestFinished(() => void execFileSync("umount", ["-l", folder]));
  return folder;
}
