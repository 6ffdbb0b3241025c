// Snapshots in a folder: the contract, and what only a folder can suffer.
import { execFileSync, spawn, spawnSync } from "node:child_process";
import {
  existsSync,
  lstatSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  rmSync,
  symlinkSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { join, relative } from "node:path";
import { fileURLToPath } from "node:url";

import { describe, expect, onTestFinished, test } from "vitest";

import { openFolderStore } from "../../../recorder/stores/folder.ts";
import { objectBytesMax } from "../../../recorder/stores/store.ts";
import type { SnapshotStore } from "../../../recorder/stores/store.ts";
import { endWithUs, temporaryFolder } from "../../helpers/folder.ts";
import { waitFor } from "../../helpers/wait.ts";
import { listed, storeContract } from "./store.contract.ts";

const isRoot = process.getuid?.() === 0;
const hasStrace = spawnSync("strace", ["-o", "/dev/null", "true"]).status === 0;

storeContract(
  "folder",
  () => Promise.resolve({ kind: "folder", folder: join(temporaryFolder(), "made", "by the store") }),
  { manyObjects: 300 },
);

describe("a store in a folder", () => {
  test("makes folders and files that are its user's alone", async () => {
    const { folder, store } = await newStore();
    await store.put("a/b/c", Buffer.from("x"));
    const modes = ["", "a", "a/b", "a/b/c"].map((path) => lstatSync(join(folder, path)).mode & 0o777);
    expect(modes).toEqual([0o700, 0o700, 0o700, 0o600]);
  });

  test(
    "is opened again without what a killed put left, and with what a living one is writing",
    { timeout: 60_000 },
    async () => {
      const folder = temporaryFolder();
      const leftovers = (): string[] => readdirSync(folder).filter((name) => name.startsWith(".put-"));
      // One that is held in the middle of a put.
      const living = putting(folder);
      await waitFor(() => living.output().includes("done"), { what: "a first put" });
      await waitFor(
        () => {
          living.kill("SIGSTOP");
          if (leftovers().length > 0) return true;
          living.kill("SIGCONT");
          return false;
        },
        { what: "a put under way" },
      );
      const writing = leftovers();
      // One that was killed in the middle, found there by patience.
      await waitFor(
        async () => {
          const child = putting(folder);
          await waitFor(() => leftovers().length > 1, { what: "a put to begin" });
          child.kill("SIGKILL");
          await ended(child);
          return leftovers().length > 1;
        },
        { timeoutMs: 30_000, what: "a put that was killed in the middle" },
      );
      // The same from another machine: only their age tells.
      const ofOther = ".put-01234567-1-1-0123456789abcdef";
      const ofOtherLongAgo = ".put-01234567-1-1-fedcba9876543210";
      for (const name of [ofOther, ofOtherLongAgo]) writeFileSync(join(folder, name), "part");
      const longAgo = Date.now() / 1000 - 2 * 3_600;
      utimesSync(join(folder, ofOtherLongAgo), longAgo, longAgo);
      await opened(folder);
      expect(leftovers().toSorted()).toEqual([ofOther, ...writing].toSorted());
      const before = living.output().length;
      living.kill("SIGCONT");
      await waitFor(() => living.output().slice(before).includes("done"), { what: "the living put to be done" });
    },
  );

  test.skipIf(!isRoot)(
    "says that the disk is full, leaves nothing behind, and takes objects again when there is room",
    async () => {
      const folder = temporaryFolder();
      execFileSync("mount", ["-t", "tmpfs", "-o", "size=8m", "tmpfs", folder]);
      onTestFinished(() => void execFileSync("umount", ["--lazy", folder]));
      const store = await opened(join(folder, "store"));
      await store.put("a/kept", Buffer.alloc(3_000_000, "k"));
      await expect(store.put("a/large", Buffer.alloc(objectBytesMax))).rejects.toMatchObject({ code: "GW_STORE_FULL" });
      await expect(store.put("a/kept", Buffer.alloc(6_000_000))).rejects.toMatchObject({ code: "GW_STORE_FULL" });
      expect(readdirSync(join(folder, "store", "a"))).toEqual(["kept"]);
      expect((await store.get("a/kept"))?.equals(Buffer.alloc(3_000_000, "k"))).toBe(true);
      await store.put("a/other", Buffer.alloc(4_000_000));
      expect((await listed(store, "a/")).length).toBe(2);
    },
  );

  test("follows no link that was planted inside", async () => {
    const { folder, store } = await newStore();
    const outside = temporaryFolder("outside");
    writeFileSync(join(outside, "secret"), "not yours");
    await store.put("a/own", Buffer.from("own"));
    symlinkSync(outside, join(folder, "linked"));
    symlinkSync(join(outside, "secret"), join(folder, "a", "file"));
    const refused = { code: "GW_SNAPSHOT_CORRUPT" };
    await expect(store.get("linked/secret")).rejects.toMatchObject(refused);
    await expect(store.put("linked/new", Buffer.from("x"))).rejects.toMatchObject(refused);
    await expect(store.put("linked/secret", Buffer.from("x"))).rejects.toMatchObject(refused);
    await expect(store.remove("linked/secret")).rejects.toMatchObject(refused);
    await expect(store.get("a/file")).rejects.toMatchObject(refused);
    expect((await listed(store, "")).map(({ name }) => name)).toEqual(["a/own"]);
    // A put takes the place of a link, whatever it leads to.
    await store.put("a/file", Buffer.from("new"));
    expect((await store.get("a/file"))?.toString()).toBe("new");
    expect(readdirSync(outside)).toEqual(["secret"]);
    expect(readFileSync(join(outside, "secret"), "utf8")).toBe("not yours");
  });

  test("refuses pipes, folders and files that are in the way, and says which", async () => {
    const { folder, store } = await newStore();
    execFileSync("mkfifo", [join(folder, "pipe")]);
    mkdirSync(join(folder, "folder"));
    await store.put("file", Buffer.from("x"));
    for (const refused of [
      () => store.get("pipe"),
      () => store.get("folder"),
      () => store.put("folder", Buffer.from("x")),
      () => store.remove("folder"),
      () => store.get("file/inside"),
      () => store.put("file/inside", Buffer.from("x")),
    ])
      await expect(refused()).rejects.toMatchObject({
        code: "GW_SNAPSHOT_CORRUPT",
        message: expect.stringContaining(folder) as string,
      });
    expect(readdirSync(folder).toSorted()).toEqual(["file", "folder", "pipe"]);
  });

  test("refuses a file that is larger than any object", async () => {
    const { folder, store } = await newStore();
    await store.put("a", Buffer.from("x"));
    truncateSync(join(folder, "a"), objectBytesMax + 1);
    await expect(store.get("a")).rejects.toMatchObject({ code: "GW_SNAPSHOT_CORRUPT" });
  });

  test("makes its folders anew when somebody removed them meanwhile", async () => {
    const { folder, store } = await newStore();
    await store.put("a/b/c", Buffer.from("1"));
    rmSync(join(folder, "a"), { recursive: true });
    expect(await store.get("a/b/c")).toBeNull();
    expect(await listed(store, "")).toEqual([]);
    await store.put("a/b/c", Buffer.from("2"));
    expect((await store.get("a/b/c"))?.toString()).toBe("2");
  });

  test("does not open where a file is", async () => {
    const file = join(temporaryFolder(), "file");
    writeFileSync(file, "x");
    const error = { code: "GW_STORE_UNAVAILABLE", message: expect.stringContaining(file) as string };
    await expect(openFolderStore({ kind: "folder", folder: file })).rejects.toMatchObject(error);
  });

  test.skipIf(!hasStrace)(
    "syncs a file before it is renamed, and its folder and each that was made before it is done",
    () => {
      const folder = join(temporaryFolder(), "store");
      const trace = join(temporaryFolder(), "trace");
      const { output, status } = traced(folder, trace);
      expect(output).toContain("done 2");
      expect(status).toBe(0);
      const steps = finishedCalls(readFileSync(trace, "utf8")).flatMap((call) => {
        const synced = /fsync\(\d+<(.*)>\) += 0/.exec(call)?.[1];
        if (synced?.includes("/.put-") === true) return ["file"];
        if (synced !== undefined) return [`folder ${relative(folder, synced)}`];
        if (/rename\(".*\/\.put-.*= 0/.test(call)) return ["rename"];
        const told = /write\(1<.*, "(done \d)/.exec(call);
        return told === null ? [] : [told[1]];
      });
      const once = ["file", "rename", "folder a/b"];
      expect(steps).toEqual(["folder ..", "folder ", "folder a", ...once, "done 1", ...once, "done 2"]);
    },
  );
});

async function opened(folder: string): Promise<SnapshotStore> {
  const store = await openFolderStore({ kind: "folder", folder });
  onTestFinished(() => store.close());
  return store;
}

async function newStore(): Promise<{ folder: string; store: SnapshotStore }> {
  const folder = join(temporaryFolder(), "store");
  return { folder, store: await opened(folder) };
}

const tsx = import.meta.resolve("tsx");

/** A process that puts for ever. */
function putting(folder: string) {
  const program = fileURLToPath(new URL("put-for-ever.ts", import.meta.url));
  const child = spawn(process.execPath, ["--import", tsx, program], { stdio: ["pipe", "pipe", "inherit"] });
  child.once("exit", endWithUs(child.pid!));
  onTestFinished(() => void child.kill("SIGKILL"));
  child.stdin.end(JSON.stringify({ options: { kind: "folder", folder }, former: 0 }));
  let output = "";
  child.stdout.on("data", (chunk: Buffer) => (output += chunk.toString()));
  return Object.assign(child, { output: () => output });
}

async function ended(child: ReturnType<typeof putting>): Promise<void> {
  await waitFor(() => child.exitCode !== null || child.signalCode !== null, { what: "the process to end" });
}

/** Two puts of one object under strace. */
function traced(folder: string, trace: string): { output: string; status: number | null } {
  const module = fileURLToPath(new URL("../../../recorder/stores/folder.ts", import.meta.url));
  const file = join(temporaryFolder(), "program.mts");
  const program = [
    `import { writeSync } from "node:fs";`,
    `import { openFolderStore } from ${JSON.stringify(module)};`,
    `const store = await openFolderStore({ kind: "folder", folder: ${JSON.stringify(folder)} });`,
    `for (const n of [1, 2]) { await store.put("a/b/c", Buffer.from("x")); writeSync(1, \`done \${n}\\n\`); }`,
    `await store.close();`,
  ];
  writeFileSync(file, program.join("\n"));
  const strace = ["-f", "-y", "-e", "trace=fsync,rename,write", "-o", trace, process.execPath, "--import", tsx, file];
  const { stdout, status } = spawnSync("strace", strace, { encoding: "utf8" });
  if (!existsSync(trace)) throw new Error("strace wrote nothing");
  return { output: stdout, status };
}

/** One line a call, in the order in which they ended: strace splits what another thread interrupts. */
function finishedCalls(trace: string): string[] {
  const begun = new Map<string, string>();
  return trace.split("\n").flatMap((line) => {
    const [, pid = "", call = ""] = /^(\d+) +(.*)$/.exec(line) ?? [];
    const [, start] = /^(.*) <unfinished \.\.\.>$/.exec(call) ?? [];
    if (start !== undefined) {
      begun.set(pid, start);
      return [];
    }
    const [, rest] = /^<\.\.\. \w+ resumed>(.*)$/.exec(call) ?? [];
    return [rest === undefined ? call : (begun.get(pid) ?? "") + rest];
  });
}
