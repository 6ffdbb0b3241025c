// LMDB, opened the one way that keeps the promises of this gateway, and its errors translated once.
//
// What LMDB and lmdb-js 3.5.6 really do (measured, strace and a full tmpfs):
// - With `durable` a write resolves after fdatasync, and no reader sees it earlier (`overlappingSync: false`).
// - lmdb-js's event turn batching leaves a promise nobody can handle: a full disk then ends the process by an unhandled
//   rejection. It is off. Writes that belong together must be made inside ONE `database.batch(() => { … })`, which is atomic.
// - A full disk is reported as EIO (a short write). Only the free space tells it from a dying disk.
// - After a failed fdatasync lmdb-js goes on as if nothing had been, while the kernel may have dropped the pages. We stop.
// - A file shorter than its last page ends the process by SIGBUS as soon as a lost page is read; see `lostTail`.

import { closeSync, existsSync, ftruncateSync, mkdirSync, openSync, readSync, statSync } from "node:fs";
import { statfs } from "node:fs/promises";
import { join } from "node:path";

import { open } from "lmdb";
import type { RootDatabase } from "lmdb";

import { GatewayError } from "../errors.ts";

export interface LmdbOptions {
  readonly maxDbs: number;
  /** True: writes resolve after fdatasync and are invisible before. False: they resolve when committed; a power cut may undo the last. */
  readonly durable: boolean;
}

/** One environment a folder a process; the caller holds the folder's lock. Values are binary unless a database says otherwise. */
export function openLmdb(folder: string, options: LmdbOptions): RootDatabase<Buffer, number | string> {
  mkdirSync(folder, { recursive: true, mode: 0o700 });
  padLostTail(folder);
  try {
    return open<Buffer, number | string>({
      path: folder,
      noSubdir: false, // lmdb-js takes a folder with a dot in its name for a file
      encoding: "binary",
      maxDbs: options.maxDbs,
      overlappingSync: !options.durable,
      separateFlushed: !options.durable,
      eventTurnBatching: false,
    });
  } catch (error) {
    throw new GatewayError("GW_LOG_CORRUPT", `${folder} is not a readable LMDB environment: ${text(error)}.`, {
      cause: error,
    });
  }
}

/** True when an LMDB environment exists in `folder`; makes nothing. */
export function lmdbExists(folder: string): boolean {
  return existsSync(dataFile(folder));
}

/**
 * Bytes missing at the end of the file. Not always damage: pages allocated and freed by one transaction are never written. Ask
 * before `openLmdb`, which fills the hole with zeros; when it is not 0 read everything once before relying on it.
 * Throws GW_LOG_CORRUPT for a file without LMDB's two heads: lmdb-js itself would end the process by SIGSEGV.
 */
export function lostTail(folder: string): number {
  if (!lmdbExists(folder)) return 0;
  const size = statSync(dataFile(folder)).size;
  if (size === 0) return 0; // a crash at its making
  const heads = readHeads(dataFile(folder));
  if (
    !heads.every((head) => head.readUInt32LE(meta.magic) === magic && head.readUInt32LE(meta.pageSize) === pageBytes)
  ) {
    throw new GatewayError("GW_LOG_CORRUPT", `${dataFile(folder)} is no LMDB file, or its head is damaged.`);
  }
  const [newest] = heads.sort((a, b) =>
    Number(b.readBigUInt64LE(meta.transaction) - a.readBigUInt64LE(meta.transaction)),
  );
  const lastPage = Number(newest?.readBigUInt64LE(meta.lastPage) ?? 1n);
  return Math.max(0, (lastPage + 1) * pageBytes - size);
}

/** Zeros where the file ends early. */
function readHeads(path: string): Buffer[] {
  const file = openSync(path, "r");
  try {
    const bytes = Buffer.alloc(2 * pageBytes);
    readSync(file, bytes, 0, bytes.length, 0);
    return [bytes.subarray(0, pageBytes), bytes.subarray(pageBytes)];
  } finally {
    closeSync(file);
  }
}

function padLostTail(folder: string): void {
  const lost = lostTail(folder);
  if (lost === 0) return;
  const file = openSync(dataFile(folder), "r+");
  try {
    ftruncateSync(file, statSync(dataFile(folder)).size + lost);
  } finally {
    closeSync(file);
  }
}

// Layout of lmdb-js's meta page: 24 bytes of page header, then MDB_meta. 4 KiB pages on every platform we support.
const pageBytes = 4096;
const meta = { magic: 24, pageSize: 48, lastPage: 144, transaction: 152 };
const magic = 0xbeefc0de;
const dataFile = (folder: string): string => join(folder, "data.mdb");

/**
 * Awaits a write and translates its failure. GW_DISK_FULL: certainly not stored, the same write may succeed when there is room.
 * Everything else from the disk is fatal, see `stopProcess`.
 */
export async function written<T>(work: Promise<T>, folder: string): Promise<T> {
  try {
    return await work;
  } catch (error) {
    throw await lmdbError(error, folder);
  }
}

/** The GatewayError for an error of a write in `folder`; a fatal one stops the process as well. */
export async function lmdbError(error: unknown, folder: string): Promise<GatewayError> {
  if (error instanceof GatewayError) return error;
  const cause = await causeOf(error);
  const code = (cause as { code?: unknown } | null)?.code;
  if (code === MDB_MAP_FULL || code === ENOSPC || code === EDQUOT || (code === EIO && (await isDiskFull(folder)))) {
    return new GatewayError("GW_DISK_FULL", `The disk of ${folder} is full; nothing of this write was stored.`, {
      cause,
    });
  }
  const translated = new GatewayError(
    "GW_INTERNAL",
    `Writing to ${folder} failed (${text(cause)}). What the disk holds is unknown until it is read again: the process stops.`,
    { cause },
  );
  if (typeof code === "number") stopProcess(translated);
  return translated;
}

/**
 * An fsync error must never be outlived (the kernel forgets it, and the pages). Whatever the caller does with the rejection, the
 * error is thrown where nobody can catch it: the process ends with its message, and the next start reads what is on disk.
 */
function stopProcess(error: GatewayError): void {
  setImmediate(() => {
    throw error;
  });
}

/** lmdb-js rejects with "see commitError", a promise that rejects with the real error; unhandled it would end the process. */
async function causeOf(error: unknown): Promise<unknown> {
  const inner = (error as { commitError?: unknown } | null)?.commitError;
  if (!(inner instanceof Promise)) return error;
  return inner.then(
    () => error,
    (cause: unknown) => cause,
  );
}

async function isDiskFull(folder: string): Promise<boolean> {
  const { bavail, bsize } = await statfs(folder);
  return bavail * bsize < diskReserveBytes;
}

/** Above the largest write of one commit: a short write leaves less than this free. */
const diskReserveBytes = 16 * 1024 * 1024;
const ENOSPC = 28;
const EDQUOT = 122;
const EIO = 5;
const MDB_MAP_FULL = -30792;

const text = (error: unknown): string => (error instanceof Error ? error.message : String(error));
