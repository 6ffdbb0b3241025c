// A folder of this machine as a place. What it is: names, permission bits, contents and links; not owners, times, sparseness, hard links
// (they become files of their own) or extended attributes.
//
// Names are bytes all the way. Whatever is opened is opened without following a link (O_NOFOLLOW), and without waiting (a file that became a pipe).

import { close, constants, fstat, lstat, open, read, readdir, readlink } from "node:fs";
import type { BigIntStats } from "node:fs";
import { promisify } from "node:util";
import { GatewayError } from "../../gateway/errors.ts";
import { stampOf } from "../stamps.ts";
import { faultOfLinks, faultOfPath, shownPath } from "../tree.ts";
import { createExclude } from "./exclude.ts";
import type { Place, Readable, Replacement } from "./place.ts";
import { beginReplacement, pathIn, putBackFormer, realFolder } from "./replacement.ts";

export { settleReplacement } from "./replacement.ts";

// Descriptors, not FileHandles: ten thousand small files take a third of the time.
const openFile = promisify(open);
const closeFile = promisify(close);
const readBytes = promisify(read);
const statOf = promisify(fstat);
const statLink = promisify(lstat);
const listNames = promisify(readdir);
const readTarget = promisify(readlink);

/** So many are asked for at once; names of the rest wait. */
const statsAtOnce = 128;
const pieceBytes = 1024 * 1024;
const openFlags = constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK;

/** What is left to do of a walk: one entry, or the names of a folder from some on. */
type Step =
  | { readonly path: string; readonly stat: BigIntStats }
  | { readonly folder: string; readonly names: readonly string[] };

export class FolderPlace implements Place {
  readonly isSequential = false;
  readonly where: string;
  readonly #isExcluded: (path: string) => boolean;
  #skipped: string[] = [];

  /** `exclude`: see exclude.ts. */
  constructor(folder: string, exclude: readonly string[]) {
    this.where = folder;
    this.#isExcluded = createExclude(exclude);
  }

  get skipped(): readonly string[] {
    return this.#skipped;
  }

  /** Depth first, siblings by name: neighbours in the tree become neighbours in the packs. */
  async *read(signal: AbortSignal): AsyncGenerator<Readable, void, undefined> {
    const root = Buffer.from(await realFolder(this.where));
    const links = new Map<string, string>();
    this.#skipped = [];
    const names = await this.#names(root, "");
    if (names === null) throw failed(this.where, "it is not there, or is no folder");
    const steps: Step[] = [{ folder: "", names }];
    // Ends when the tree has been walked: each step is taken off, and adds only what is below it.
    for (let step = steps.pop(); step !== undefined; step = steps.pop()) {
      signal.throwIfAborted();
      if ("names" in step) {
        const rest = step.names.slice(statsAtOnce);
        if (rest.length > 0) steps.push({ folder: step.folder, names: rest });
        steps.push(...(await this.#look(root, step.folder, step.names.slice(0, statsAtOnce))).reverse());
        continue;
      }
      const { path, stat } = step;
      const mode = Number(stat.mode & 0o777n);
      if (stat.isDirectory()) {
        const below = await this.#names(root, path);
        if (below === null) continue;
        yield { entry: { kind: "folder", path, mode }, content: null };
        steps.push({ folder: path, names: below });
      } else if (stat.isFile()) {
        const entry = { kind: "file", path, mode, sizeBytes: Number(stat.size), stamp: stampOf(stat) } as const;
        yield { entry, content: () => this.#content(root, path, signal) };
      } else if (stat.isSymbolicLink()) {
        const target = await this.#target(root, path);
        if (target === null) continue;
        links.set(path, target);
        yield { entry: { kind: "link", path, target }, content: null };
      } else this.#skipped.push(path);
    }
    const wrong = faultOfLinks(links);
    if (wrong !== null)
      throw unrestorable(
        this.where,
        wrong.path,
        `the link to ${shownPath(links.get(wrong.path) ?? "")}: ${wrong.fault}`,
      );
  }

  replace(signal: AbortSignal): Promise<Replacement> {
    return beginReplacement(this.where, signal);
  }

  putBack(signal: AbortSignal): Promise<boolean> {
    return putBackFormer(this.where, signal);
  }

  /** Of what is in a folder and not excluded, sorted; null: it has vanished. */
  async #names(root: Buffer, folder: string): Promise<readonly string[] | null> {
    const names = await present(listNames(pathIn(root, folder), { encoding: "buffer" }), this.where, folder);
    const prefix = folder === "" ? "" : `${folder}/`;
    return (
      names
        ?.map((name) => name.toString("latin1"))
        .filter((name) => !this.#isExcluded(prefix + name))
        .sort() ?? null
    );
  }

  async #look(root: Buffer, folder: string, names: readonly string[]): Promise<Step[]> {
    const prefix = folder === "" ? "" : `${folder}/`;
    const steps = await Promise.all(
      names.map(async (name) => {
        const path = prefix + name;
        const fault = faultOfPath(path);
        if (fault !== null) throw unrestorable(this.where, path, fault);
        const stat = await present(statLink(pathIn(root, path), { bigint: true }), this.where, path);
        return stat === null ? [] : [{ path, stat }];
      }),
    );
    return steps.flat();
  }

  async #target(root: Buffer, path: string): Promise<string | null> {
    const target = await present(readTarget(pathIn(root, path), { encoding: "buffer" }), this.where, path);
    const text = target?.toString("latin1") ?? null;
    const wrong = text === null ? null : faultOfLinks(new Map([[path, text]]));
    if (wrong !== null) throw unrestorable(this.where, path, `the link to ${shownPath(text ?? "")}: ${wrong.fault}`);
    return text;
  }

  /** Rejects with ENOENT when the file has vanished. */
  async *#content(root: Buffer, path: string, signal: AbortSignal): AsyncGenerator<Buffer, void, undefined> {
    const { fd, expected } = await openToRead(pathIn(root, path), this.where, path);
    try {
      let at = 0;
      // Ends at the end of the file, wherever it is by then.
      for (;;) {
        signal.throwIfAborted();
        // One byte more than there should be: a file that kept its size is read at one go.
        const piece = Buffer.allocUnsafeSlow(Math.min(pieceBytes, Math.max(expected - at, 0) + 1));
        const { bytesRead } = await readBytes(fd, piece, 0, piece.length, at);
        at += bytesRead;
        if (bytesRead > 0) yield piece.subarray(0, bytesRead);
        if (bytesRead === 0 || (bytesRead < piece.length && at === expected)) return;
      }
    } catch (error) {
      throw readFailure(error, this.where, path);
    } finally {
      await closeFile(fd);
    }
  }
}

/** A descriptor of a file and its size; ENOENT where it is none any more. */
async function openToRead(path: Buffer, where: string, shown: string): Promise<{ fd: number; expected: number }> {
  const fd = await openFile(path, openFlags).catch((error: unknown) => {
    const { code } = error as NodeJS.ErrnoException;
    throw code === "ELOOP" || code === "ENOTDIR" || code === "ENXIO" ? gone() : readFailure(error, where, shown);
  });
  const stat = await statOf(fd);
  if (stat.isFile()) return { fd, expected: stat.size };
  await closeFile(fd);
  throw gone();
}

const gone = (): Error => Object.assign(new Error("the file has become something else"), { code: "ENOENT" });

/** Null: it has vanished, or is something else by now. */
async function present<T>(promise: Promise<T>, where: string, path: string): Promise<T | null> {
  try {
    return await promise;
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === "ENOENT" || code === "ENOTDIR" || code === "EINVAL") return null;
    throw readFailure(error, where, path);
  }
}

/** What is not about this file passes. */
function readFailure(error: unknown, where: string, path: string): unknown {
  const { code, syscall } = error as NodeJS.ErrnoException;
  if (error instanceof GatewayError || code === "ENOENT" || syscall === undefined) return error;
  return new GatewayError(
    "GW_SNAPSHOT_FAILED",
    `${shownPath(path)} in ${where} cannot be read (${code}, ${syscall}); nothing was recorded`,
    {
      cause: error,
    },
  );
}

const failed = (where: string, what: string): GatewayError =>
  new GatewayError("GW_SNAPSHOT_FAILED", `the state folder ${where} cannot be captured: ${what}`);

const unrestorable = (where: string, path: string, fault: string): GatewayError =>
  new GatewayError(
    "GW_SNAPSHOT_FAILED",
    `${shownPath(path)} in ${where} could not be brought back: ${fault}; mend it, or leave it out with snapshots.capture.exclude`,
  );
