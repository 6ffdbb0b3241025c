// What is remembered of the files of a place, so that one that was not written since the last capture need not be read again: a file of its own beside
// the gateway's data. It may be lost or damaged at any time (then everything is read); it may never be wrong.
//
// A stamp says when a file was last written, but clocks of file systems tick coarsely: a file that is written twice within one tick has
// one stamp and two contents. So a file whose change is younger than two seconds before the capture that read it is not remembered.
//
// Not for states that are written through mapped memory while they are captured: such writes move the time late. The caller gives no cache there.

import { hash } from "node:crypto";
import { readFile, rename, rm, stat, writeFile } from "node:fs/promises";
import { step } from "../gateway/steps.ts";
import type { ChunkList } from "./tree.ts";

/** Of a file, from `lstat` with bigints: equal stamps, not written in between. */
export function stampOf(file: {
  readonly dev: bigint;
  readonly ino: bigint;
  readonly size: bigint;
  readonly mtimeNs: bigint;
  readonly ctimeNs: bigint;
}): string {
  return `${file.dev} ${file.ino} ${file.size} ${file.mtimeNs} ${file.ctimeNs}`;
}

/** The later one of the times at which contents and inode were changed, ms since 1970. Null: this is no such stamp. */
function changedAtMs(stamp: string): number | null {
  const [, , , mtimeNs, ctimeNs] = stamp.split(" ").map(Number);
  if (mtimeNs === undefined || ctimeNs === undefined) return null;
  const latest = Math.max(mtimeNs, ctimeNs) / 1e6;
  return Number.isFinite(latest) ? latest : null;
}

interface Remembered {
  readonly stamp: string;
  readonly chunks: ChunkList;
}

const format = Buffer.from("br2k-stamps/1\n", "latin1");
const hashBytes = 32;
const settledMs = 2_000;
/** More is not worth its memory; such a tree is read each time. */
const fileBytesMax = 1024 * 1024 * 1024;

export class StampCache {
  readonly #file: string;
  #before: ReadonlyMap<string, Remembered>;
  #now = new Map<string, Remembered>();

  constructor(file: string, before: ReadonlyMap<string, Remembered>) {
    this.#file = file;
    this.#before = before;
  }

  /** A capture: what an unfinished one kept is forgotten. */
  begin(): void {
    this.#now = new Map();
  }

  /** What was read of this file when it had this stamp; null: read it. */
  find(path: string, stamp: string | null): ChunkList | null {
    const known = this.#before.get(path);
    return known !== undefined && known.stamp === stamp ? known.chunks : null;
  }

  /** What was read now, or found and not read again. */
  keep(path: string, stamp: string | null, chunks: ChunkList): void {
    if (stamp !== null) this.#now.set(path, { stamp, chunks });
  }

  /** At the end of a capture that began at `beganMs` (wall clock): what was kept since `begin` is what is known now. */
  async save(beganMs: number): Promise<void> {
    const settled = new Map(
      [...this.#now].filter(([, { stamp }]) => (changedAtMs(stamp) ?? Infinity) < beganMs - settledMs),
    );
    this.#before = settled;
    this.#now = new Map();
    const bytes = encode(settled);
    const fresh = `${this.#file}.new`;
    if (bytes.length > fileBytesMax) {
      await rm(this.#file, { force: true });
      return;
    }
    // Without fsync: what a power cut leaves of it has another hash, and counts as nothing.
    await writeFile(fresh, bytes, { mode: 0o600 });
    step("stamps.rename");
    await rename(fresh, this.#file);
  }
}

/** Missing or damaged: empty. */
export async function openStampCache(file: string): Promise<StampCache> {
  return new StampCache(file, (await read(file)) ?? new Map<string, Remembered>());
}

async function read(file: string): Promise<Map<string, Remembered> | null> {
  try {
    if ((await stat(file)).size > fileBytesMax) return null;
    return decode(await readFile(file));
  } catch {
    return null;
  }
}

/** An entry: lengths of path (2 bytes), stamp (1) and chunks (4), then the three. At the end the SHA-256 of all of it. */
function encode(entries: ReadonlyMap<string, Remembered>): Buffer {
  const parts: Buffer[] = [format];
  for (const [path, { stamp, chunks }] of entries) {
    const head = Buffer.allocUnsafe(7 + path.length + stamp.length);
    head.writeUInt16BE(path.length, 0);
    head.writeUInt8(stamp.length, 2);
    head.writeUInt32BE(chunks.length, 3);
    head.write(path, 7, "latin1");
    head.write(stamp, 7 + path.length, "latin1");
    parts.push(head, chunks);
  }
  const bytes = Buffer.concat(parts);
  return Buffer.concat([bytes, hash("sha256", bytes, "buffer")]);
}

function decode(bytes: Buffer): Map<string, Remembered> | null {
  const end = bytes.length - hashBytes;
  if (end < format.length || !bytes.subarray(0, format.length).equals(format)) return null;
  if (!bytes.subarray(end).equals(hash("sha256", bytes.subarray(0, end), "buffer"))) return null;
  const entries = new Map<string, Remembered>();
  // Ends at the end: with the hash it was found whole, as it was written.
  for (let at = format.length; at < end;) {
    const pathEnd = at + 7 + bytes.readUInt16BE(at);
    const stampEnd = pathEnd + bytes.readUInt8(at + 2);
    const chunksEnd = stampEnd + bytes.readUInt32BE(at + 3);
    const path = bytes.toString("latin1", at + 7, pathEnd);
    entries.set(path, {
      stamp: bytes.toString("latin1", pathEnd, stampEnd),
      chunks: bytes.subarray(stampEnd, chunksEnd),
    });
    at = chunksEnd;
  }
  return entries;
}
