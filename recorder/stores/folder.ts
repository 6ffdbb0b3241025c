// Snapshots in a folder: one file an object, which appears whole and durable or not at all.
//
// An object is written to `.put-…` beside its place, synced, renamed, and the folder is synced. What a killed put leaves is removed by the
// next opening once its writer is known to be dead, or after an hour: two processes, even on two machines, may share the folder.
// Links inside are never followed. An object cannot be named like a folder that others lie in.

import { createHash, randomBytes } from "node:crypto";
import { constants, readFileSync, readlinkSync } from "node:fs";
import { lstat, mkdir, open, opendir, rename, unlink } from "node:fs/promises";
import { basename, dirname, join, resolve } from "node:path";

import { GatewayError } from "../../gateway/errors.ts";
import { step } from "../../gateway/steps.ts";
import { corrupt, openGuarded, unavailable } from "./guarded.ts";
import type { Backing, Range } from "./guarded.ts";
import { isObjectName, objectBytesMax } from "./store.ts";
import type { SnapshotStore, StoreOptions, StoredObject } from "./store.ts";

/** Made, with the folders above it, when it is missing; rejects with GW_STORE_UNAVAILABLE or GW_STORE_FULL. */
export function openFolderStore(options: Extract<StoreOptions, { kind: "folder" }>): Promise<SnapshotStore> {
  return openGuarded(new FolderBacking(resolve(options.folder)));
}

const leftoverMs = 3_600_000;
/** So many folders are remembered as durable; then it is found out anew. */
const durableMax = 4_096;

class FolderBacking implements Backing {
  readonly kind = "folder";
  readonly callMs = 60_000;
  readonly where: string;
  /** Folders whose own entry was synced by this process. */
  readonly #durable = new Set<string>();

  constructor(root: string) {
    this.where = root;
  }

  async open(signal: AbortSignal): Promise<void> {
    const made = await mkdir(this.where, { recursive: true, mode: 0o700 });
    // The entry of each that was made, from the store out to the outermost, which mkdir names.
    if (made !== undefined) {
      for (let folder = this.where; folder.length >= made.length; folder = dirname(folder)) {
        await syncFolder(dirname(folder));
      }
    }
    for await (const { path } of filesIn(this.where, "", () => true)) {
      signal.throwIfAborted();
      if (await isLeftover(path)) await unlink(path).catch(unlessMissing);
    }
  }

  async put(name: string, bytes: Buffer, signal: AbortSignal): Promise<void> {
    const folder = await this.#folderFor(name);
    const temporary = join(folder, `.put-${writer}-${randomBytes(8).toString("hex")}`);
    try {
      await writeDurably(temporary, bytes);
      signal.throwIfAborted();
      step("store.rename");
      await rename(temporary, join(this.where, name));
    } catch (error) {
      await unlink(temporary).catch(() => {}); // the first error tells why; the next opening removes it too
      throw error;
    }
    await syncFolder(folder);
  }

  async get(name: string, range: Range | null): Promise<Buffer | null> {
    if (!(await this.#hasFolder(name))) return null;
    // Not blocking: what was planted there may be a pipe.
    const flags = constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK;
    const handle = await open(join(this.where, name), flags).catch(unlessMissing);
    if (handle === null) return null;
    try {
      const stat = await handle.stat();
      if (!stat.isFile()) throw notOurs(join(this.where, name), "a file");
      if (stat.size > objectBytesMax)
        throw corrupt(`${join(this.where, name)} has ${stat.size} bytes: more than any object`);
      const { start, end } = range ?? { start: 0, end: stat.size };
      const bytes = Buffer.allocUnsafe(Math.max(0, Math.min(end, stat.size) - start));
      let at = 0;
      // Ends when full, or at the end of a file that somebody cut meanwhile.
      while (at < bytes.length) {
        const { bytesRead } = await handle.read(bytes, at, bytes.length - at, start + at);
        if (bytesRead === 0) throw corrupt(`${join(this.where, name)} became shorter while it was read`);
        at += bytesRead;
      }
      return bytes;
    } finally {
      await handle.close();
    }
  }

  async *list(prefix: string): AsyncGenerator<StoredObject> {
    const mayHold = (folder: string): boolean => folder.startsWith(prefix) || prefix.startsWith(folder);
    for await (const { name, path } of filesIn(this.where, "", mayHold)) {
      if (!isObjectName(name) || !name.startsWith(prefix)) continue;
      const stat = await lstat(path).catch(unlessMissing);
      if (stat?.isFile() === true) yield { name, sizeBytes: stat.size, storedAtMs: Math.floor(stat.mtimeMs) };
    }
  }

  async remove(name: string): Promise<void> {
    if (!(await this.#hasFolder(name))) return;
    const path = join(this.where, name);
    const stat = await lstat(path).catch(unlessMissing);
    if (stat === null) return;
    if (stat.isDirectory()) throw notOurs(path, "a file");
    await unlink(path).catch(unlessMissing);
    await syncFolder(dirname(path));
  }

  async close(): Promise<void> {}

  failure(error: unknown, what: string): GatewayError {
    const { code, message, path } = error as NodeJS.ErrnoException;
    if (code === "ENOSPC" || code === "EDQUOT" || code === "EFBIG") {
      return new GatewayError(
        "GW_STORE_FULL",
        `${what}: the disk or its quota is full (${code}). Nothing was changed. Make room, or keep fewer snapshots.`,
        { cause: error },
      );
    }
    // A link, where no link is followed; a folder, where a file was to be put.
    if (code === "ELOOP" || code === "EISDIR") return notOurs(path ?? what, "a file");
    return unavailable(`${what}: ${code ?? message}; check the disk, and that its folders belong to this user`, error);
  }

  /** Whether the folder that the object lies in is there. Rejects when a link or a file stands in the way. */
  async #hasFolder(name: string): Promise<boolean> {
    for (const folder of this.#foldersOf(name)) if (!(await isFolder(folder))) return false;
    return true;
  }

  /** The folder that the object lies in, made durable with those above it. */
  async #folderFor(name: string): Promise<string> {
    for (const folder of this.#foldersOf(name)) {
      const isThere = await isFolder(folder);
      if (isThere && this.#durable.has(folder)) continue;
      if (!isThere) await mkdir(folder, { mode: 0o700 }).catch(unlessThere);
      if (!(await isFolder(folder))) throw notOurs(folder, "a folder");
      // Another process may have made it and not synced it yet: once a process, also when it was there.
      await syncFolder(dirname(folder));
      if (this.#durable.size >= durableMax) this.#durable.clear();
      this.#durable.add(folder);
    }
    return dirname(join(this.where, name));
  }

  /** From the outside in, without the store's own. */
  #foldersOf(name: string): string[] {
    const parts = name.split("/");
    return parts.slice(1).map((_, index) => join(this.where, ...parts.slice(0, index + 1)));
  }
}

/** False: nothing is there. Rejects when it is something else. */
async function isFolder(path: string): Promise<boolean> {
  const stat = await lstat(path).catch(unlessMissing);
  if (stat !== null && !stat.isDirectory()) throw notOurs(path, "a folder");
  return stat !== null;
}

const notOurs = (path: string, wanted: string): GatewayError =>
  corrupt(
    `${path} is not ${wanted}, as this store would have put it there: it was left alone. Find out who did, and move it away`,
  );

async function writeDurably(path: string, bytes: Buffer): Promise<void> {
  const handle = await open(
    path,
    constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW,
    0o600,
  );
  try {
    await handle.writeFile(bytes);
    step("store.fsync");
    await handle.sync();
  } finally {
    await handle.close();
  }
}

async function syncFolder(path: string): Promise<void> {
  const handle = await open(path, constants.O_RDONLY | constants.O_DIRECTORY);
  try {
    step("store.fsync");
    await handle.sync();
  } finally {
    await handle.close();
  }
}

/** Plain files below a folder, those of its subfolders that are wanted included; a folder that goes meanwhile is empty. */
async function* filesIn(
  root: string,
  inside: string,
  isWanted: (folder: string) => boolean,
): AsyncGenerator<{ readonly name: string; readonly path: string }> {
  const folder = await opendir(join(root, inside)).catch(unlessMissing);
  for await (const entry of folder ?? []) {
    const name = inside + entry.name;
    if (entry.isFile()) yield { name, path: join(root, name) };
    else if (entry.isDirectory() && isObjectName(name) && isWanted(`${name}/`))
      yield* filesIn(root, `${name}/`, isWanted);
  }
}

// Who writes: so that only what a dead writer left is removed.

/** Of a process: its machine and pid namespace, its pid, and when it began, as a pid is given again. */
const writer = `${hostTag()}-${process.pid}-${startOf(process.pid) ?? 0}`;

/** Random where /proc is missing: then only age tells. */
function hostTag(): string {
  try {
    const identity = readFileSync("/proc/sys/kernel/random/boot_id", "latin1") + readlinkSync("/proc/self/ns/pid");
    return createHash("sha256").update(identity).digest("hex").slice(0, 8);
  } catch {
    return randomBytes(4).toString("hex");
  }
}

/** In ticks since the machine's boot (field 22 of /proc/PID/stat); null: no such process, or one that has ended. */
function startOf(pid: number): string | null {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, "latin1");
    // The second field is the program's name in parentheses, and may hold spaces and parentheses itself.
    const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
    return fields[0] === "Z" ? null : (fields[19] ?? null);
  } catch {
    return null;
  }
}

async function isLeftover(path: string): Promise<boolean> {
  const [, host, pid, start] = /^\.put-([0-9a-f]{8})-(\d+)-(\d+)-[0-9a-f]{16}$/.exec(basename(path)) ?? [];
  if (host === undefined) return false;
  if (host === writer.slice(0, 8) && startOf(Number(pid)) !== start) return true;
  const stat = await lstat(path).catch(unlessMissing);
  return stat !== null && Date.now() - stat.mtimeMs > leftoverMs;
}

function unlessMissing(error: unknown): null {
  if ((error as NodeJS.ErrnoException).code === "ENOENT") return null;
  throw error;
}

function unlessThere(error: unknown): void {
  if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw error;
}
