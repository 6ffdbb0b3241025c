// The state of a folder, replaced as a whole: a fresh folder beside the live one, then two renames. The former state stays as `<folder>.before`.
//
// What a crash leaves: before the renames the live folder as it was, and a `<folder>.restoring-…`; between them no live folder, and `<folder>.before`;
// after them the new state. `settleReplacement` clears that up: a start calls it, and each new replacement does.
//
// Durable means: every file and folder fsynced, then the parent after the renames. As root, everything gets the owner that the live folder has.

import { spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { close, constants, fchmod, fchown, fsync, ftruncate, open, write } from "node:fs";
import type { Stats } from "node:fs";
import { chmod, lchown, lstat, mkdir, readdir, readlink, realpath, rename, rm, symlink } from "node:fs/promises";
import { basename, dirname, join, resolve } from "node:path";
import { promisify } from "node:util";
import { GatewayError } from "../../gateway/errors.ts";
import { Flight } from "../flight.ts";
import { step } from "../../gateway/steps.ts";
import { faultOfPath, shownPath } from "../tree.ts";
import type { Replacement, TreeEntry } from "./place.ts";

const openFile = promisify(open);
const closeFile = promisify(close);
const syncFile = promisify(fsync);
const writeBytes = promisify(write);
const truncateFile = promisify(ftruncate);
const setMode = promisify(fchmod);
const setOwner = promisify(fchown);

const createFlags = constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW;
const syncsAtOnce = 8;
/** Fewer are synced as fast one by one. */
const flushFilesMin = 64;
const flushMsMax = 10 * 60_000;
const zeros = Buffer.alloc(256 * 1024);

interface Owner {
  readonly uid: number;
  readonly gid: number;
}

/** Of an entry, in a root: bytes as they are. */
export const pathIn = (root: Buffer, path: string): Buffer =>
  path === "" ? root : Buffer.concat([root, Buffer.from(`/${path}`, "latin1")]);

/** Where a folder really is, also when it is not there: what lies beside it must lie on its own disk. */
export async function realFolder(folder: string): Promise<string> {
  let at = resolve(folder);
  // Ends at what is no link, or gives up as the kernel does.
  for (let followed = 0; followed < 40; followed += 1) {
    const target = await readlink(at).catch(() => null);
    if (target === null) return at;
    at = resolve(await realpath(dirname(at)), target);
  }
  return at;
}

/** After a crash: brings the former state back where there is no live one, and removes what was not finished. */
export async function settleReplacement(folder: string): Promise<void> {
  const live = await realFolder(folder);
  const names = (await lstatOrNull(dirname(live))) === null ? [] : await readdir(dirname(live));
  const isLive = names.includes(basename(live));
  if (!isLive && names.includes(basename(beforeOf(live)))) {
    await move(beforeOf(live), live);
    await syncPath(dirname(live));
  }
  const unfinished = names.filter((name) => isUnfinished(name, basename(live)));
  for (const name of unfinished) await removeTree(join(dirname(live), name));
}

export async function beginReplacement(folder: string, signal: AbortSignal): Promise<Replacement> {
  try {
    await settleReplacement(folder);
    const live = await realFolder(folder);
    const former = await lstatOrNull(live);
    if (former?.isDirectory() === false) throw failed(folder, "it is no folder");
    await mkdir(dirname(live), { recursive: true });
    const fresh = unfinishedOf(live);
    await mkdir(fresh, { mode: 0o700 });
    return new FolderReplacement(live, fresh, former, signal);
  } catch (error) {
    throw translated(folder, error);
  }
}

/** The former state of the last replacement in the live one's place; false: there is none. */
export async function putBackFormer(folder: string, signal: AbortSignal): Promise<boolean> {
  try {
    await settleReplacement(folder);
    signal.throwIfAborted();
    const live = await realFolder(folder);
    const before = beforeOf(live);
    if ((await lstatOrNull(before)) === null) return false;
    const restored = unfinishedOf(live);
    const isLive = (await lstatOrNull(live)) !== null;
    if (isLive) await move(live, restored);
    try {
      await move(before, live);
    } catch (error) {
      if (isLive) await move(restored, live);
      throw error;
    }
    await syncPath(dirname(live));
    // What is left of it is removed by the next replacement.
    await removeTree(restored).catch(() => {});
    return true;
  } catch (error) {
    throw translated(folder, error);
  }
}

class FolderReplacement implements Replacement {
  readonly #live: string;
  readonly #fresh: string;
  readonly #root: Buffer;
  readonly #former: Stats | null;
  readonly #owner: Owner | null;
  readonly #signal: AbortSignal;
  readonly #folders = new Map<string, number>([["", 0o700]]);
  /** Not synced yet. */
  readonly #files: string[] = [];

  constructor(live: string, fresh: string, former: Stats | null, signal: AbortSignal) {
    this.#live = live;
    this.#fresh = fresh;
    this.#root = Buffer.from(fresh);
    this.#former = former;
    this.#owner = foreignOwner(former);
    this.#signal = signal;
  }

  async put(entry: TreeEntry, content: AsyncIterable<Buffer> | null): Promise<void> {
    const { path } = entry;
    try {
      this.#signal.throwIfAborted();
      const fault = faultOfPath(path);
      if (fault !== null) throw failed(this.#live, `${shownPath(path)}: ${fault}`);
      // Only what was made here is walked through: never a link.
      if (!this.#folders.has(path.slice(0, Math.max(0, path.lastIndexOf("/")))))
        throw failed(this.#live, `${shownPath(path)}: what it lies in is no folder`);
      const at = pathIn(this.#root, path);
      if (entry.kind === "folder") {
        await mkdir(at, { mode: 0o700 });
        this.#folders.set(path, entry.mode);
      } else if (entry.kind === "link") {
        await symlink(Buffer.from(entry.target, "latin1"), at);
        if (this.#owner !== null) await lchown(at, this.#owner.uid, this.#owner.gid);
      } else if (await this.#write(at, entry.mode, content)) this.#files.push(path);
    } catch (error) {
      throw translated(this.#live, error, path);
    }
  }

  async commit(): Promise<void> {
    try {
      await this.#makeDurable();
      this.#signal.throwIfAborted();
      await this.#swap();
    } catch (error) {
      throw translated(this.#live, error);
    }
  }

  async abort(): Promise<void> {
    await removeTree(this.#fresh);
  }

  /** True: it must be synced later. */
  async #write(at: Buffer, mode: number, content: AsyncIterable<Buffer> | null): Promise<boolean> {
    const fd = await openFile(at, createFlags, 0o600);
    try {
      let sizeBytes = 0;
      let isHole = false;
      for await (const piece of content ?? []) {
        this.#signal.throwIfAborted();
        // Nothing but zeros is not written: a file that was sparse, or could have been, is sparse again.
        isHole = isZero(piece);
        if (!isHole) await writeAll(fd, piece, sizeBytes);
        sizeBytes += piece.length;
      }
      if (isHole) await truncateFile(fd, sizeBytes);
      if (this.#owner !== null) await setOwner(fd, this.#owner.uid, this.#owner.gid);
      await setMode(fd, mode);
      // Only now is it certain that it can be synced: later it may not be opened any more.
      const isReadable = (mode & 0o400) !== 0;
      if (!isReadable) await sync(fd);
      return isReadable;
    } finally {
      await closeFile(fd);
    }
  }

  async #makeDurable(): Promise<void> {
    this.#folders.set("", this.#former === null ? 0o700 : this.#former.mode & 0o777);
    // What is in a folder comes before it. One that its owner may not list and enter is closed last.
    const folders = [...this.#folders].reverse();
    const open = folders.filter(([, mode]) => (mode & 0o500) === 0o500);
    const shut = folders.filter(([, mode]) => (mode & 0o500) !== 0o500);
    const syncs = new Flight(syncsAtOnce, this.#signal);
    await syncs.during(async () => {
      for (const [path, mode] of open) await syncs.start(1, () => this.#finish(path, mode, false));
    });
    // All at once is several times faster than file by file (10,000 files of 100 KB: 0.4 s against 2 s and more), but does not tell what failed.
    if (this.#files.length >= flushFilesMin) await flushAll(this.#fresh, this.#signal);
    await syncs.during(async () => {
      for (const path of this.#files) await syncs.start(1, () => syncPath(pathIn(this.#root, path)));
      for (const [path] of open) await syncs.start(1, () => syncPath(pathIn(this.#root, path)));
    });
    for (const [path, mode] of shut) await this.#finish(path, mode, true);
  }

  /** A folder's own owner and mode. */
  async #finish(path: string, mode: number, isSynced: boolean): Promise<void> {
    const fd = await openFile(
      pathIn(this.#root, path),
      constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW,
    );
    try {
      if (this.#owner !== null) await setOwner(fd, this.#owner.uid, this.#owner.gid);
      await setMode(fd, mode);
      if (isSynced) await sync(fd);
    } finally {
      await closeFile(fd);
    }
  }

  async #swap(): Promise<void> {
    const before = beforeOf(this.#live);
    const old = unfinishedOf(this.#live);
    const isOld = (await lstatOrNull(before)) !== null;
    if (isOld) await move(before, old);
    try {
      if (this.#former !== null) await move(this.#live, before);
      await move(this.#fresh, this.#live);
    } catch (error) {
      if ((await lstatOrNull(this.#live)) === null && this.#former !== null) await move(before, this.#live);
      if (isOld) await move(old, before);
      throw error;
    }
    await syncPath(dirname(this.#live)).catch((cause: unknown) => {
      throw new GatewayError(
        "GW_RESTORE_FAILED",
        `the new state is in ${this.#live}, but whether it would be there after a power cut is not known: its folder cannot be synced`,
        { cause },
      );
    });
    // The new state stands; what is left of the one before the last is removed by the next replacement.
    await removeTree(old).catch(() => {});
  }
}

function move(from: string, to: string): Promise<void> {
  step("folder.rename");
  return rename(from, to);
}

const beforeOf = (live: string): string => `${live}.before`;
const unfinishedOf = (live: string): string => `${live}.restoring-${randomBytes(4).toString("hex")}`;
const isUnfinished = (name: string, live: string): boolean =>
  name.startsWith(`${live}.restoring-`) && /^[0-9a-f]{8}$/.test(name.slice(`${live}.restoring-`.length));

const isZero = (bytes: Buffer): boolean =>
  bytes[0] === 0 && bytes.length <= zeros.length && bytes.equals(zeros.subarray(0, bytes.length));

async function writeAll(fd: number, bytes: Buffer, position: number): Promise<void> {
  // Ends when all is written: each write takes at least a byte, or rejects.
  for (let done = 0; done < bytes.length;) {
    const { bytesWritten } = await writeBytes(fd, bytes, done, bytes.length - done, position + done);
    done += bytesWritten;
  }
}

async function syncPath(path: Buffer | string): Promise<void> {
  const fd = await openFile(path, constants.O_RDONLY | constants.O_NOFOLLOW);
  try {
    await sync(fd);
  } finally {
    await closeFile(fd);
  }
}

function sync(fd: number): Promise<void> {
  step("folder.fsync");
  return syncFile(fd);
}

/** Tells the file system to write out all it holds; the caller syncs everything itself, which then finds nothing to do. */
function flushAll(folder: string, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const child = spawn("sync", ["-f", "--", folder], { stdio: "ignore", signal, timeout: flushMsMax });
    child.once("error", () => resolve());
    child.once("close", () => resolve());
  });
}

/** Folders may forbid what is done in them: they are opened first where that is in the way. */
async function removeTree(path: string): Promise<void> {
  try {
    await rm(path, { recursive: true, force: true });
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code !== "EACCES" && code !== "EPERM") throw error;
    await unlock(Buffer.from(path));
    await rm(path, { recursive: true, force: true });
  }
}

async function unlock(folder: Buffer): Promise<void> {
  await chmod(folder, 0o700);
  for (const entry of await readdir(folder, { encoding: "buffer", withFileTypes: true }))
    if (entry.isDirectory()) await unlock(Buffer.concat([folder, Buffer.from("/"), entry.name]));
}

/** Null: what is made here has the right owner anyway, or nobody may change that. */
function foreignOwner(former: Stats | null): Owner | null {
  const isRoot = process.geteuid?.() === 0;
  return isRoot && former !== null && (former.uid !== 0 || former.gid !== process.getegid?.()) ? former : null;
}

async function lstatOrNull(path: string): Promise<Stats | null> {
  try {
    return await lstat(path);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return null;
    throw error;
  }
}

/** File system errors as GW_RESTORE_FAILED; what the content failed with passes. */
function translated(folder: string, error: unknown, path?: string): unknown {
  const { code, syscall } = error as NodeJS.ErrnoException;
  if (error instanceof GatewayError || syscall === undefined) return error;
  const what = path === undefined ? "" : `${shownPath(path)}: `;
  if (code === "ENOSPC" || code === "EDQUOT")
    return failed(folder, `${what}its disk is full (${code}); make room for a second copy of the state`, error);
  if (code === "EBUSY" || code === "EXDEV")
    return failed(folder, `it is a mount point and cannot be renamed (${code}); use a folder inside of it`, error);
  return failed(folder, `${what}${code} (${syscall})`, error);
}

const failed = (folder: string, what: string, cause?: unknown): GatewayError =>
  new GatewayError(
    "GW_RESTORE_FAILED",
    `the state folder ${folder} could not be replaced: ${what}. What was in it is as it was`,
    { cause },
  );
