// A folder as a place: the contract, and what only a file system brings along. Crashes are real processes, killed at every durable step.
import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import {
  chmodSync,
  chownSync,
  existsSync,
  linkSync,
  lstatSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  readlinkSync,
  renameSync,
  rmSync,
  symlinkSync,
  statSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { createServer } from "node:net";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, onTestFinished, test } from "vitest";
import { FolderPlace, settleReplacement } from "../../../recorder/capture/folder.ts";
import type { Readable } from "../../../recorder/capture/place.ts";
import { noise } from "../../fixtures/chunks/inputs.ts";
import { createFolder, removeFolder, temporaryFolder } from "../../helpers/folder.ts";
import { contentsOf, everything, fill, placeContract, putItem, shown } from "./place.contract.ts";
import type { Item, PlaceBed } from "./place.contract.ts";

const { signal } = new AbortController();
const beside = (folder: string): string[] =>
  readdirSync(dirname(folder)).filter((name) => name.includes(".restoring-"));

placeContract("folder", async (): Promise<PlaceBed> => {
  const root = createFolder("place");
  const folder = join(root, "state");
  return {
    place: new FolderPlace(folder, []),
    isOneFile: false,
    leftovers: async () => beside(folder),
    close: async () => removeFolder(root),
  };
});

/** A folder with a file in it. */
function newFolder(): string {
  const folder = join(temporaryFolder("place"), "state");
  mkdirSync(folder);
  writeFileSync(join(folder, "file"), "former", { mode: 0o644 });
  return folder;
}

const paths = async (place: FolderPlace): Promise<string[]> =>
  (await contentsOf(place)).map(({ path }) => path).toSorted();
const canMount = isMountable();
const next: readonly Item[] = [{ path: "file", mode: 0o644, content: Buffer.from("next") }];
const former: readonly Item[] = [{ path: "file", mode: 0o644, content: Buffer.from("former") }];

describe("a capture of a folder", () => {
  test("leaves out sockets, pipes and devices, and names them", async () => {
    const folder = newFolder();
    mkdirSync(join(folder, "sub"));
    const server = createServer().listen(join(folder, "sub/socket"));
    await once(server, "listening");
    onTestFinished(() => void server.close());
    execFileSync("mkfifo", [join(folder, "pipe")]);
    const place = new FolderPlace(folder, []);
    expect(await paths(place)).toEqual(["file", "sub"]);
    expect([...place.skipped].toSorted()).toEqual(["pipe", "sub/socket"]);
    rmSync(join(folder, "pipe"));
    await paths(place);
    expect(place.skipped).toEqual(["sub/socket"]);
  });

  test("leaves out what is excluded, with all that is in it, and does not even look at it", async () => {
    const folder = newFolder();
    for (const name of ["cache", "cache/deep", "logs"]) mkdirSync(join(folder, name));
    for (const name of ["cache/x", "cache/deep/y", "a.log", "logs/b.log"]) writeFileSync(join(folder, name), "");
    symlinkSync("/etc", join(folder, "cache/out"));
    expect(await paths(new FolderPlace(folder, ["cache/**", "*.log"]))).toEqual([
      "cache",
      "file",
      "logs",
      "logs/b.log",
    ]);
    expect(await paths(new FolderPlace(folder, ["cache", "**/*.log"]))).toEqual(["file", "logs"]);
  });

  test.each<[string, (folder: string) => void, RegExp]>([
    [
      "an absolute link",
      (folder) => symlinkSync(join(folder, "file"), join(folder, "l")),
      /^l in .*its target is absolute.*exclude/,
    ],
    [
      "a link out of the folder",
      (folder) => symlinkSync("../x", join(folder, "l")),
      /^l in .*leads out of the tree.*exclude/,
    ],
    [
      "links that lead out together",
      (folder) => {
        mkdirSync(join(folder, "d"));
        symlinkSync("..", join(folder, "d/up"));
        symlinkSync("d/up/../x", join(folder, "z"));
      },
      /^z in .*leads out of the tree.*exclude/,
    ],
    ["a folder that is not there", (folder) => rmSync(folder, { recursive: true }), /is not there/],
    [
      "a file in place of the folder",
      (folder) => {
        rmSync(folder, { recursive: true });
        writeFileSync(folder, "");
      },
      /is no folder/,
    ],
  ])("refuses %s, naming it and the mend", async (_, make, says) => {
    const folder = newFolder();
    make(folder);
    await expect(contentsOf(new FolderPlace(folder, []))).rejects.toMatchObject({
      code: "GW_SNAPSHOT_FAILED",
      message: expect.stringMatching(says) as string,
    });
  });

  test("of a folder that is a link follows it", async () => {
    const folder = newFolder();
    symlinkSync("state", `${folder}-link`);
    expect(shown(await contentsOf(new FolderPlace(`${folder}-link`, [])))).toEqual(shown(former));
  });

  test("never follows a link inside: what became one meanwhile has vanished", async () => {
    const folder = newFolder();
    writeFileSync(join(dirname(folder), "secret"), "secret");
    const [readable] = await readables(folder);
    rmSync(join(folder, "file"));
    symlinkSync("../secret", join(folder, "file"));
    await expect(bytesOf(readable!)).rejects.toMatchObject({ code: "ENOENT" });
  });

  test("a file that vanished, or became a folder or a pipe, rejects with ENOENT; one that was replaced is read as it is", async () => {
    for (const become of [
      () => {},
      (path: string) => mkdirSync(path),
      (path: string) => execFileSync("mkfifo", [path]),
    ]) {
      const folder = newFolder();
      const [readable] = await readables(folder);
      rmSync(join(folder, "file"));
      become(join(folder, "file"));
      await expect(bytesOf(readable!)).rejects.toMatchObject({ code: "ENOENT" });
    }
    const folder = newFolder();
    const [readable] = await readables(folder);
    rmSync(join(folder, "file"));
    writeFileSync(join(folder, "file"), "another one");
    expect((await bytesOf(readable!)).toString()).toBe("another one");
  });

  test("a folder that vanishes while it is walked is left out", async () => {
    const folder = newFolder();
    mkdirSync(join(folder, "sub"));
    writeFileSync(join(folder, "sub/x"), "");
    const seen: string[] = [];
    for await (const { entry } of new FolderPlace(folder, []).read(signal)) {
      seen.push(entry.path);
      rmSync(join(folder, "sub"), { recursive: true, force: true });
    }
    expect(seen).toEqual(["file"]);
  });

  test("a file that grew or shrank after it was listed is read to its end", async () => {
    for (const [before, after] of [
      [10, 3_000_000],
      [3_000_000, 10],
      [0, 5],
      [1_048_576, 1_048_577],
      [2_097_152, 2_097_152],
    ] as const) {
      const folder = newFolder();
      writeFileSync(join(folder, "file"), noise("before", before));
      const [readable] = await readables(folder);
      writeFileSync(join(folder, "file"), noise("after", after));
      expect((await bytesOf(readable!)).equals(noise("after", after))).toBe(true);
    }
  });

  test("hard links are files of their own afterwards", async () => {
    const folder = newFolder();
    linkSync(join(folder, "file"), join(folder, "twin"));
    const items = await contentsOf(new FolderPlace(folder, []));
    expect(shown(items)).toEqual(shown([...former, { ...former[0]!, path: "twin" }]));
    const restored = join(dirname(folder), "restored");
    await fill(new FolderPlace(restored, []), items);
    expect(statSync(join(restored, "twin")).nlink).toBe(1);
  });

  test("setuid, setgid and sticky bits are not state", async () => {
    const folder = newFolder();
    chmodSync(join(folder, "file"), 0o6755);
    mkdirSync(join(folder, "tmp"));
    chmodSync(join(folder, "tmp"), 0o1777);
    const modes = (await contentsOf(new FolderPlace(folder, []))).map(({ mode }) => mode);
    expect(modes).toEqual([0o755, 0o777]);
  });

  test("stamps are equal as long as a file is not written, and differ afterwards", async () => {
    const folder = newFolder();
    const stamp = async (): Promise<string | null> => {
      const [readable] = await readables(folder);
      return (readable!.entry as { stamp: string | null }).stamp;
    };
    const first = await stamp();
    await bytesOf((await readables(folder))[0]!);
    expect(await stamp()).toBe(first);
    const { atimeMs, mtimeMs } = statSync(join(folder, "file"));
    writeFileSync(join(folder, "file"), "FORMER");
    const second = await stamp();
    expect(second).not.toBe(first);
    // Who sets the time back is found out by the time of the inode.
    execFileSync("touch", ["-d", `@${mtimeMs / 1000}`, join(folder, "file")]);
    expect(statSync(join(folder, "file")).mtimeMs).toBeCloseTo(mtimeMs, -2);
    expect(atimeMs).toBeGreaterThan(0);
    expect(await stamp()).not.toBe(first);
    expect(await stamp()).not.toBe(second);
  });

  test("leaves no descriptor open, however it ends", async () => {
    const folder = newFolder();
    for (let i = 0; i < 50; i += 1) writeFileSync(join(folder, `f${i}`), noise(`${i}`, 300_000));
    const open = (): number => readdirSync("/proc/self/fd").filter((fd) => isInside(fd, folder)).length;
    for (const readable of await readables(folder)) {
      for await (const _ of readable.content?.() ?? []) break;
      expect(open()).toBe(0);
    }
    const stop = new AbortController();
    const readable = (await readables(folder, stop.signal))[3]!;
    stop.abort();
    await expect(bytesOf(readable)).rejects.toThrow();
    expect(open()).toBe(0);
  });

  test("many files in one folder are all found", async () => {
    const folder = newFolder();
    for (let i = 0; i < 1_000; i += 1) writeFileSync(join(folder, `f${i}`), "");
    expect(await paths(new FolderPlace(folder, []))).toHaveLength(1_001);
  });
});

describe("a restored folder", () => {
  test("is beside the former one, which is kept once", async () => {
    const folder = newFolder();
    await fill(new FolderPlace(folder, []), next);
    expect(readFileSync(join(folder, "file"), "utf8")).toBe("next");
    expect(readFileSync(join(`${folder}.before`, "file"), "utf8")).toBe("former");
    await fill(new FolderPlace(folder, []), [{ path: "file", mode: 0o644, content: Buffer.from("third") }]);
    expect(readFileSync(join(`${folder}.before`, "file"), "utf8")).toBe("next");
    expect(readdirSync(dirname(folder)).toSorted()).toEqual(["state", "state.before"]);
  });

  test("can be made where there was none, with the folders above it", async () => {
    const folder = join(temporaryFolder("place"), "a/b/state");
    await fill(new FolderPlace(folder, []), next);
    expect(shown(await contentsOf(new FolderPlace(folder, [])))).toEqual(shown(next));
    expect(statSync(folder).mode & 0o777).toBe(0o700);
    expect(readdirSync(dirname(folder))).toEqual(["state"]);
  });

  test("has the mode of the one it replaces, and is nobody else's while it is filled", async () => {
    const folder = newFolder();
    chmodSync(folder, 0o751);
    const replacement = await new FolderPlace(folder, []).replace(signal);
    const [fresh] = beside(folder);
    expect(statSync(join(dirname(folder), fresh!)).mode & 0o777).toBe(0o700);
    await putItem(replacement, next[0]!);
    await replacement.commit();
    expect(statSync(folder).mode & 0o777).toBe(0o751);
  });

  test("through a link replaces what the link leads to", async () => {
    const folder = newFolder();
    symlinkSync("state", `${folder}-link`);
    await fill(new FolderPlace(`${folder}-link`, []), next);
    expect(lstatSync(`${folder}-link`).isSymbolicLink()).toBe(true);
    expect(readFileSync(join(folder, "file"), "utf8")).toBe("next");
  });

  test.skipIf(process.getuid?.() !== 0)(
    "belongs to whom the former one belonged to, where root restores it",
    async () => {
      const folder = newFolder();
      chownSync(folder, 12_345, 23_456);
      await fill(new FolderPlace(folder, []), everything);
      for (const path of ["", "a file", "folder", "folder/link", "empty", "folder/folder/large"]) {
        const { uid, gid } = lstatSync(join(folder, path));
        expect([path, uid, gid]).toEqual([path, 12_345, 23_456]);
      }
    },
  );

  test("keeps holes: what is all zeros takes no room", async () => {
    const folder = newFolder();
    const zeros = Buffer.alloc(8 * 1024 * 1024);
    const content = Buffer.concat([Buffer.from("begin"), zeros, Buffer.from("middle"), zeros]);
    await fill(new FolderPlace(folder, []), [{ path: "sparse", mode: 0o644, content }]);
    expect(readFileSync(join(folder, "sparse")).equals(content)).toBe(true);
    expect(statSync(join(folder, "sparse")).blocks * 512).toBeLessThan(1024 * 1024);
    truncateSync(join(folder, "sparse"), 20 * 1024 * 1024);
    const [item] = await contentsOf(new FolderPlace(folder, []));
    expect(item!.content!.equals(Buffer.concat([content, Buffer.alloc(20 * 1024 * 1024 - content.length)]))).toBe(true);
  });

  test.skipIf(process.getuid?.() !== 0)(
    "by somebody who is not root is whole, whatever modes its files and folders have",
    () => {
      const root = createFolder("place");
      onTestFinished(() => {
        chmodSync(root, 0o700);
        removeFolder(root);
      });
      chmodSync(root, 0o777);
      chmodSync(dirname(root), 0o755);
      // Restored three times: the former states with their locked folders must be removed as well; and given up once.
      const output = execFileSync(
        process.execPath,
        ["--import", import.meta.resolve("tsx"), child, "locked", join(root, "state")],
        {
          uid: 65_534,
          gid: 65_534,
          encoding: "utf8",
          cwd: "/",
          env: { PATH: process.env["PATH"], TMPDIR: "/tmp" },
        },
      );
      expect(output.trim()).toBe("done");
      expect(readdirSync(root).toSorted()).toEqual(["state", "state.before"]);
      expect(statSync(join(root, "state/shut")).mode & 0o777).toBe(0);
      expect(readFileSync(join(root, "state/shut/in"), "utf8")).toBe("in");
      expect(statSync(join(root, "state/unreadable")).mode & 0o777).toBe(0o200);
      expect(statSync(join(root, "state/no entry")).mode & 0o777).toBe(0o600);
    },
  );

  test("whose place is a file is refused, and nothing is touched", async () => {
    const folder = newFolder();
    await expect(new FolderPlace(join(folder, "file"), []).replace(signal)).rejects.toMatchObject({
      code: "GW_RESTORE_FAILED",
      message: expect.stringContaining("it is no folder") as string,
    });
    expect(readdirSync(folder)).toEqual(["file"]);
  });

  test.skipIf(!canMount)(
    "that does not fit on its disk is given up, cleaned up, and the former one is as it was",
    async () => {
      const disk = smallDisk();
      const folder = join(disk, "state");
      mkdirSync(folder);
      writeFileSync(join(folder, "file"), "former", { mode: 0o644 });
      const replacement = await new FolderPlace(folder, []).replace(signal);
      const failure = await Promise.all(
        Array.from({ length: 20 }, (_, i) =>
          putItem(replacement, { path: `f${i}`, mode: 0o644, content: noise(`${i}`, 1_000_000) }),
        ),
      ).catch((error: unknown) => error);
      expect(failure).toMatchObject({
        code: "GW_RESTORE_FAILED",
        message: expect.stringMatching(/f\d+: its disk is full/) as string,
      });
      await replacement.abort();
      expect(readdirSync(disk)).toEqual(["state"]);
      expect(shown(await contentsOf(new FolderPlace(folder, [])))).toEqual(shown(former));
      await fill(new FolderPlace(folder, []), next);
      expect(shown(await contentsOf(new FolderPlace(folder, [])))).toEqual(shown(next));
    },
  );

  test.skipIf(!canMount)("cannot be a mount point, and says so", async () => {
    const disk = smallDisk();
    mkdirSync(`${disk}.before`);
    writeFileSync(`${disk}.before/kept`, "");
    await expect(fill(new FolderPlace(disk, []), next)).rejects.toMatchObject({
      code: "GW_RESTORE_FAILED",
      message: expect.stringContaining("mount point") as string,
    });
    expect(existsSync(disk)).toBe(true);
    expect(readdirSync(`${disk}.before`)).toEqual(["kept"]);
    expect(beside(disk)).toHaveLength(1);
    await settleReplacement(disk);
    expect(beside(disk)).toHaveLength(0);
  });
});

describe("a restore that was killed", () => {
  test("at any durable step leaves the former state or the new one, whole, once it was settled", async () => {
    const steps = await stepsOf();
    expect(steps.filter((step) => step === "folder.rename")).toHaveLength(3);
    expect(steps.length).toBeGreaterThanOrEqual(8);
    const nth = new Map<string, number>();
    const ends: string[] = [];
    for (const step of steps) {
      nth.set(step, (nth.get(step) ?? 0) + 1);
      const folder = newFolder();
      await fill(new FolderPlace(folder, []), former);
      const died = await inChild("restore", folder, `${step}#${nth.get(step)}`);
      expect(died).toBe("SIGKILL");
      await settleReplacement(folder);
      ends.push(readFileSync(join(folder, "file"), "utf8"));
      const items = shown(await contentsOf(new FolderPlace(folder, [])));
      expect(items).toEqual(shown(ends.at(-1) === "former" ? former : childTree));
      expect(beside(folder)).toEqual([]);
      await settleReplacement(folder);
      expect(shown(await contentsOf(new FolderPlace(folder, [])))).toEqual(items);
      await fill(new FolderPlace(folder, []), next);
      expect(shown(await contentsOf(new FolderPlace(folder, [])))).toEqual(shown(next));
    }
    // All but the sync of the parent come before the new state stands.
    expect(ends.filter((end) => end === "next")).toHaveLength(1);
  }, 90_000);

  test("while a former state is put back leaves that one or the other, whole, and it can be put back again", async () => {
    const ends: string[] = [];
    for (const step of ["folder.rename#1", "folder.rename#2", "folder.fsync#1"]) {
      const folder = newFolder();
      await fill(new FolderPlace(folder, []), next);
      expect(await inChild("put-back", folder, step)).toBe("SIGKILL");
      await settleReplacement(folder);
      ends.push(readFileSync(join(folder, "file"), "utf8"));
      expect(beside(folder)).toEqual([]);
      expect(await new FolderPlace(folder, []).putBack(signal)).toBe(ends.at(-1) === "next");
      expect(shown(await contentsOf(new FolderPlace(folder, [])))).toEqual(shown(former));
    }
    expect(ends).toEqual(["next", "former", "former"]);
  }, 60_000);

  test("between the two renames is settled by the next replacement as well", async () => {
    const folder = newFolder();
    renameSync(folder, `${folder}.before`);
    mkdirSync(`${folder}.restoring-0123abcd`);
    await fill(new FolderPlace(folder, []), next);
    expect(readFileSync(join(`${folder}.before`, "file"), "utf8")).toBe("former");
    expect(readdirSync(dirname(folder)).toSorted()).toEqual(["state", "state.before"]);
  });

  test("settling touches nothing else: other names, other folders, a state that is there", async () => {
    const folder = newFolder();
    for (const name of [
      `${folder}.before`,
      `${folder}.restoring-`,
      `${folder}.restoring-0123abcdx`,
      `${folder}2.restoring-0123abcd`,
    ])
      mkdirSync(name);
    await settleReplacement(folder);
    expect(readdirSync(dirname(folder))).toHaveLength(5);
    await settleReplacement(join(folder, "not/there"));
    expect(shown(await contentsOf(new FolderPlace(folder, [])))).toEqual(shown(former));
  });
});

async function readables(folder: string, stop = signal): Promise<Readable[]> {
  const all: Readable[] = [];
  for await (const readable of new FolderPlace(folder, []).read(stop)) all.push(readable);
  return all;
}

async function bytesOf({ content }: Readable): Promise<Buffer> {
  const pieces: Buffer[] = [];
  for await (const piece of content?.() ?? []) pieces.push(piece);
  return Buffer.concat(pieces);
}

function isInside(fd: string, folder: string): boolean {
  try {
    return readlinkSync(`/proc/self/fd/${fd}`).startsWith(folder);
  } catch {
    return false;
  }
}

const child = fileURLToPath(new URL("./restore-child.ts", import.meta.url));
const childTree: readonly Item[] = [
  { path: "file", mode: 0o644, content: Buffer.from("next") },
  { path: "folder", mode: 0o755 },
  { path: "folder/link", target: "../file" },
  { path: "folder/unreadable", mode: 0o200, content: Buffer.from("x") },
];

/** How a restore in a process of its own ended: a signal, or null. */
async function inChild(
  what: "restore" | "put-back",
  folder: string,
  crashAt: string | null,
  stepsFile = "/dev/null",
): Promise<string | null> {
  const process_ = spawn(process.execPath, ["--import", "tsx", child, what, folder], {
    stdio: ["ignore", "ignore", "inherit"],
    env: { ...process.env, GATEWAY_STEPS_FILE: stepsFile, ...(crashAt === null ? {} : { GATEWAY_CRASH_AT: crashAt }) },
  });
  const [, died] = (await once(process_, "exit")) as [number | null, string | null];
  return died;
}

async function stepsOf(): Promise<string[]> {
  const folder = newFolder();
  await fill(new FolderPlace(folder, []), former);
  const file = join(dirname(folder), "steps");
  expect(await inChild("restore", folder, null, file)).toBeNull();
  expect(shown(await contentsOf(new FolderPlace(folder, [])))).toEqual(shown(childTree));
  return readFileSync(file, "utf8").trim().split("\n");
}

function isMountable(): boolean {
  const folder = createFolder("disk");
  try {
    execFileSync("mount", ["-t", "tmpfs", "tmpfs", folder], { stdio: "ignore" });
    execFileSync("umount", [folder]);
    return true;
  } catch {
    return false;
  } finally {
    removeFolder(folder);
  }
}

/** A tmpfs of 8 MiB, unmounted when the test ends. */
function smallDisk(): string {
  const folder = createFolder("disk");
  execFileSync("mount", ["-t", "tmpfs", "-o", "size=8m", "tmpfs", folder]);
  onTestFinished(() => {
    execFileSync("umount", ["-l", folder]);
    removeFolder(folder);
  });
  return folder;
}
