// Answers of keyed requests beside the embedded log: one process, LMDB for what must survive it, memory for running hints.
//
// - A write resolves when it is committed; LMDB never calls fsync here. That survives a kill of the process. After a power cut the file
//   may be no tree at all: another machine boot without a clean close counts as a loss of everything, the floor becomes the log's tail.
//   (lmdb-js's overlapping sync would save the tree, but every commit waits for the fsync of the one before: a decision took 0.6 ms
//   instead of 0.05 ms alone, and those fsyncs compete with the log's.)
// - A claim lives in memory: a restart frees it. So the process's life is the lease, and nothing is renewed.
// - What is written in one turn of the event loop goes into one LMDB batch.

import { randomBytes } from "node:crypto";
import {
  closeSync,
  fdatasyncSync,
  fsyncSync,
  mkdirSync,
  openSync,
  readFileSync,
  renameSync,
  rmSync,
  writeSync,
} from "node:fs";
import { join } from "node:path";

import { open } from "lmdb";
import type { Database, RootDatabase } from "lmdb";

import { systemClock } from "../clock.ts";
import type { Clock } from "../clock.ts";
import { lmdbExists, written } from "../drivers/lmdb.ts";
import type { Answer, EntryKey, Hash16 } from "../entry.ts";
import { GatewayError } from "../errors.ts";
import { decodeAnswer, encodeAnswer, isHash16 } from "../answer.ts";
import type { Candidate, Decided, Decision, KeyClaim, Keys } from "./keys.ts";
import { step } from "../steps.ts";

export interface LmdbKeysOptions {
  /** Used by the key store alone; the caller holds the data folder's lock. */
  readonly folder: string;
  readonly retentionMs: number;
  /** Encoded answers above this are not kept. */
  readonly answerBytesMax: number;
  /** Identity of the machine's boot (Linux: /proc/sys/kernel/random/boot_id), not of this process. */
  readonly machineBoot: string;
  /** Position of the log's tail: becomes the floor when the store may have lost something. Asked only then. */
  readonly tail: () => Promise<number>;
  readonly clock?: Clock;
}

/** Claims beyond this: the oldest ends. */
const claimsMax = 65_536;
const sweepEveryMs = 1000;
/** Rows of one slice of a sweep, and the time a slice may take of the event loop. */
const sliceRows = 64;
const sliceMs = 1;

/** Rejects with the error of `tail` when the floor must be set and the tail is not known. */
export async function openLmdbKeys(options: LmdbKeysOptions): Promise<LmdbKeys> {
  const { folder, machineBoot } = options;
  mkdirSync(folder, { recursive: true, mode: 0o700 });
  const before = readSentinel(folder);
  const kept = before !== null && (before.isClosed || before.machineBoot === machineBoot) ? before : null;
  const warnings: string[] = [];
  if (kept === null && lmdbExists(folder)) {
    for (const file of ["data.mdb", "lock.mdb"]) rmSync(join(folder, file), { force: true });
    warnings.push(
      `The machine went down without a clean stop, so the stored answers of keyed requests in ${folder} cannot be trusted and were ` +
        "dropped: retries of requests executed until now are told that their answer is lost. They are never executed again.",
    );
  }
  const root = openUnsynced(folder);
  try {
    const id = kept?.id ?? randomBytes(8).toString("hex");
    const floor = kept?.floor ?? (await options.tail());
    // Durable before the first use: after a power cut it must not look like a clean close.
    const sentinel: Sentinel = { version: 1, machineBoot, id, floor, isClosed: false };
    writeSentinel(folder, sentinel);
    return new LmdbKeys(options, root, sentinel, warnings);
  } catch (error) {
    await root.close();
    throw error;
  }
}

type Root = RootDatabase<Buffer, number | string>;

/** As drivers/lmdb.ts opens it, but for fsync. */
function openUnsynced(folder: string): Root {
  try {
    return open<Buffer, number | string>({
      path: folder,
      noSubdir: false,
      encoding: "binary",
      maxDbs: 4,
      noSync: true,
      overlappingSync: false,
      eventTurnBatching: false,
    });
  } catch (cause) {
    const why = cause instanceof Error ? cause.message : String(cause);
    const message = `The key store in ${folder} cannot be opened (${why}). It holds only answers: it may be removed.`;
    throw new GatewayError("GW_KEYS_CONFIGURATION", message, { cause });
  }
}

interface Sentinel {
  readonly version: 1;
  readonly machineBoot: string;
  readonly id: string;
  readonly floor: number;
  /** Closed, and everything is on disk: then another boot is no loss. */
  readonly isClosed: boolean;
}

interface Claim {
  readonly fingerprint: Hash16;
  readonly holder: string;
  readonly sinceMs: number;
}

/** Where the newest decision of a key is. */
interface Head {
  readonly position: number;
  readonly fingerprint: Hash16;
  readonly digest: Hash16;
}

/** What is kept of one (key, position). */
interface Row {
  winner: Hash16 | null;
  /** First digest of each replica. */
  readonly candidates: Map<string, Hash16>;
  /** Digests whose bytes are kept. */
  readonly kept: Set<Hash16>;
  expiresMs: number;
}

/** A key with changes that are not committed yet: what its next change builds on. */
interface Hot {
  readonly id: Hash16;
  head: Head | null;
  readonly rows: Map<number, Row>;
  readonly dirty: Set<number>;
  isHeadDirty: boolean;
  /** Of the newest change. */
  commit: Promise<void> | null;
  /** Changes under way. */
  users: number;
}

type Table = Database<Buffer, Buffer>;

export class LmdbKeys implements Keys {
  readonly kind = "embedded";
  /** What a person should know, as found at open. */
  readonly warnings: readonly string[];
  readonly #options: LmdbKeysOptions;
  readonly #clock: Clock;
  readonly #root: Root;
  readonly #sentinel: Sentinel;
  /** id → Head. */
  readonly #heads: Table;
  /** id, position → Row. */
  readonly #rows: Table;
  /** id, position, digest → encoded answer. */
  readonly #answers: Table;
  /** time, id, position → nothing: one for each row, at or before its end. */
  readonly #expiries: Table;
  readonly #claims = new Map<Hash16, Claim>();
  readonly #hot = new Map<Hash16, Hot>();
  readonly #dirty = new Set<Hot>();
  #puts: (() => void)[] = [];
  #commit: Promise<void> | null = null;
  /** Keys whose rows are being removed. */
  #leaving: ReadonlySet<Hash16> = new Set();
  #slice: Promise<unknown> = Promise.resolve();
  readonly #timer: NodeJS.Timeout;
  #sweeping: Promise<void> | null = null;
  #closing: Promise<void> | null = null;
  /** Wall clock minus monotonic clock at open: a wall clock that is set meanwhile makes nobody old. */
  readonly #wallOffsetMs: number;

  constructor(options: LmdbKeysOptions, root: Root, sentinel: Sentinel, warnings: readonly string[]) {
    this.#options = options;
    this.#clock = options.clock ?? systemClock;
    this.#root = root;
    this.#sentinel = sentinel;
    this.warnings = warnings;
    const table = (name: string): Table =>
      root.openDB<Buffer, Buffer>({ name, encoding: "binary", keyEncoding: "binary" });
    this.#heads = table("heads");
    this.#rows = table("rows");
    this.#answers = table("answers");
    this.#expiries = table("expiries");
    this.#wallOffsetMs = this.#clock.wallMs() - this.#clock.now();
    this.#timer = setInterval(() => void this.sweep().catch(() => undefined), sweepEveryMs);
    this.#timer.unref();
  }

  async claim(key: EntryKey, holder: string): Promise<KeyClaim> {
    this.#refuseWhenClosed();
    const head = parseHead(this.#heads.get(idBytes(key.id)));
    if (head !== null) {
      if (head.fingerprint !== key.fingerprint) return { kind: "other" };
      return { kind: "done", decision: this.#decisionAt(key.id, head.position, head.digest) };
    }
    const nowMs = this.#clock.now();
    const claim = this.#claims.get(key.id);
    if (claim !== undefined && nowMs - claim.sinceMs < this.#options.retentionMs) {
      return { kind: claim.fingerprint === key.fingerprint ? "running" : "other" };
    }
    this.#claims.delete(key.id);
    this.#claims.set(key.id, { fingerprint: key.fingerprint, holder, sinceMs: nowMs });
    if (this.#claims.size > claimsMax) this.#claims.delete(this.#claims.keys().next().value ?? "");
    return { kind: "fresh" };
  }

  async release(key: EntryKey, holder: string): Promise<void> {
    this.#refuseWhenClosed();
    if (this.#claims.get(key.id)?.holder === holder) this.#claims.delete(key.id);
  }

  async offer(key: EntryKey, position: number, candidate: Candidate): Promise<void> {
    const { replica, digest, answer } = candidate;
    if (position <= this.#sentinel.floor) return;
    await this.#change(key.id, position, (row) => {
      const first = row.candidates.get(replica);
      if (first !== undefined && first !== digest) return false;
      row.candidates.set(replica, digest);
      const isKept = (row.winner ?? digest) === digest && this.#keep(key.id, position, row, digest, answer);
      return isKept || first === undefined;
    });
  }

  async candidates(key: EntryKey, position: number): Promise<readonly Candidate[]> {
    this.#refuseWhenClosed();
    const row = parseRow(this.#rows.get(rowKey(key.id, position)));
    if (row === null) return [];
    const answers = new Map([...row.kept].map((digest) => [digest, this.#answerAt(key.id, position, digest)]));
    return [...row.candidates].map(([replica, digest]) => ({ replica, digest, answer: answers.get(digest) ?? null }));
  }

  async decide(key: EntryKey, decision: Decision): Promise<Decided> {
    const { position, digest, answer } = decision;
    const isAboveFloor = position > this.#sentinel.floor;
    const won = await this.#change(key.id, position, (row, hot) => {
      const isNew = row.winner === null;
      if (isNew && !isAboveFloor) return false;
      row.winner ??= digest;
      const isKept = isAboveFloor && row.winner === digest && this.#keep(key.id, position, row, digest, answer);
      if (hot.head === null || hot.head.position < position) {
        hot.head = { position, fingerprint: key.fingerprint, digest: row.winner };
        hot.isHeadDirty = true;
        return true;
      }
      return isNew || isKept;
    });
    this.#claims.delete(key.id);
    if (won.winner === null) return { position, digest, answer: null, isLost: true };
    return { ...this.#decisionAt(key.id, position, won.winner), isLost: false };
  }

  async decided(key: EntryKey): Promise<Decision | null> {
    this.#refuseWhenClosed();
    const head = parseHead(this.#heads.get(idBytes(key.id)));
    return head === null ? null : this.#decisionAt(key.id, head.position, head.digest);
  }

  isReachable(): boolean {
    return this.#closing === null;
  }

  async close(): Promise<void> {
    this.#closing ??= this.#close();
    await this.#closing;
  }

  /** Forgets what is older than the retention, oldest first, in slices; called by a timer. Resolves when nothing is due. */
  async sweep(): Promise<void> {
    if (this.#closing !== null) return;
    this.#sweeping ??= this.#sweep().finally(() => {
      this.#sweeping = null;
    });
    await this.#sweeping;
  }

  /** Applies `apply` to the newest state of a row and resolves when that state, changed or not, is committed. */
  async #change(id: Hash16, position: number, apply: (row: Row, hot: Hot) => boolean): Promise<Row> {
    // Ends when the sweep is through with this key.
    while (this.#leaving.has(id)) await this.#slice;
    this.#refuseWhenClosed();
    const hot = this.#hotOf(id);
    const known = hot.rows.get(position) ?? parseRow(this.#rows.get(rowKey(id, position)));
    const row: Row = known ?? { winner: null, candidates: new Map(), kept: new Set(), expiresMs: 0 };
    hot.rows.set(position, row);
    hot.users += 1;
    try {
      if (apply(row, hot)) {
        row.expiresMs = Math.ceil(this.#nowMs() + this.#options.retentionMs);
        if (known === null) {
          const expiry = expiryKey(row.expiresMs, id, position);
          this.#puts.push(() => void this.#expiries.put(expiry, nothing));
        }
        hot.dirty.add(position);
        this.#dirty.add(hot);
        this.#commit ??= this.#nextCommit();
        hot.commit = this.#commit;
      }
      // Unchanged, too: what it was judged by may not be committed yet.
      if (hot.commit !== null) await hot.commit;
      return row;
    } finally {
      hot.users -= 1;
      if (hot.users === 0) this.#hot.delete(id);
    }
  }

  #hotOf(id: Hash16): Hot {
    let hot = this.#hot.get(id);
    if (hot === undefined) {
      const head = parseHead(this.#heads.get(idBytes(id)));
      hot = { id, head, rows: new Map(), dirty: new Set(), isHeadDirty: false, commit: null, users: 0 };
      this.#hot.set(id, hot);
    }
    return hot;
  }

  /** Adds the bytes of a digest to the next commit; false when they are there or are not kept. */
  #keep(id: Hash16, position: number, row: Row, digest: Hash16, answer: Answer | null): boolean {
    if (answer === null || row.kept.has(digest) || answer.body.length > this.#options.answerBytesMax) return false;
    const bytes = encodeAnswer(answer);
    if (bytes.length > this.#options.answerBytesMax) return false;
    row.kept.add(digest);
    this.#puts.push(() => void this.#answers.put(answerKey(id, position, digest), bytes));
    return true;
  }

  /** Commits all changes of this turn of the event loop. */
  async #nextCommit(): Promise<void> {
    await new Promise<void>((resolve) => setImmediate(resolve));
    const puts = this.#puts;
    const dirty = [...this.#dirty];
    this.#puts = [];
    this.#dirty.clear();
    this.#commit = null;
    await this.#batch(() => {
      for (const put of puts) put();
      for (const hot of dirty) {
        if (hot.isHeadDirty && hot.head !== null) void this.#heads.put(idBytes(hot.id), headBytes(hot.head));
        hot.isHeadDirty = false;
        for (const position of hot.dirty) {
          const row = hot.rows.get(position);
          if (row !== undefined) void this.#rows.put(rowKey(hot.id, position), rowBytes(row));
        }
        hot.dirty.clear();
      }
    });
  }

  async #batch(write: () => void): Promise<void> {
    step("keys.write");
    try {
      await written(this.#root.batch(write), this.#options.folder);
    } catch (error) {
      const text = error instanceof Error ? error.message : String(error);
      throw unavailable(`The key store cannot be written. ${text}`, error);
    }
  }

  #decisionAt(id: Hash16, position: number, digest: Hash16): Decision {
    return { position, digest, answer: this.#answerAt(id, position, digest) };
  }

  #answerAt(id: Hash16, position: number, digest: Hash16): Answer | null {
    const bytes = this.#answers.get(answerKey(id, position, digest));
    return bytes === undefined ? null : decodeAnswer(bytes);
  }

  async #sweep(): Promise<void> {
    const oldestMs = this.#clock.now() - this.#options.retentionMs;
    // Ends at the first claim that is young enough: they are in the order of their time.
    for (const [id, claim] of this.#claims) {
      if (claim.sinceMs > oldestMs) break;
      this.#claims.delete(id);
    }
    // Ends when nothing is due, or when all that is due is being changed.
    while (this.#closing === null) {
      const slice = this.#dueSlice();
      if (slice.removals.length === 0) return;
      this.#leaving = slice.ids;
      this.#slice = this.#batch(() => {
        for (const remove of slice.removals) remove();
      });
      try {
        await this.#slice;
      } finally {
        this.#leaving = new Set();
      }
    }
  }

  #dueSlice(): { readonly ids: ReadonlySet<Hash16>; readonly removals: readonly (() => void)[] } {
    const startMs = performance.now();
    const nowMs = this.#nowMs();
    const ids = new Set<Hash16>();
    const removals: (() => void)[] = [];
    for (const found of this.#expiries.getKeys({ end: timeBytes(nowMs), limit: sliceRows })) {
      const key = Buffer.from(found);
      const id = key.toString("hex", 6, 22);
      if (this.#hot.has(id)) continue;
      ids.add(id);
      removals.push(...this.#removals(key, id, nowMs));
      if (performance.now() - startMs > sliceMs) break;
    }
    return { ids, removals };
  }

  /** What takes a row away whose time in the index has come, or moves it on in the index when it was written again since. */
  #removals(expiry: Buffer, id: Hash16, nowMs: number): (() => void)[] {
    const removals = [() => void this.#expiries.remove(expiry)];
    const where = expiry.subarray(6);
    const position = readPosition(where, 16);
    const row = parseRow(this.#rows.get(where));
    if (row !== null && row.expiresMs > nowMs) {
      const later = expiryKey(row.expiresMs, id, position);
      return [...removals, () => void this.#expiries.put(later, nothing)];
    }
    removals.push(() => void this.#rows.remove(where));
    const last = Buffer.concat([where, Buffer.alloc(17, 0xff)]);
    for (const found of this.#answers.getKeys({ start: where, end: last })) {
      const answer = Buffer.from(found);
      removals.push(() => void this.#answers.remove(answer));
    }
    if (parseHead(this.#heads.get(idBytes(id)))?.position === position) {
      removals.push(() => void this.#heads.remove(idBytes(id)));
    }
    return removals;
  }

  async #close(): Promise<void> {
    clearInterval(this.#timer);
    await this.#sweeping?.catch(() => undefined);
    // Whoever waits for these commits hears of their failure.
    await this.#commit?.catch(() => undefined);
    await Promise.allSettled([...this.#hot.values()].map(async (hot) => await hot.commit));
    await this.#root.close();
    // The one fsync: of everything, so that another boot finds a whole store.
    const file = openSync(join(this.#options.folder, "data.mdb"), "r+");
    step("keys.fsync");
    fdatasyncSync(file);
    closeSync(file);
    writeSentinel(this.#options.folder, { ...this.#sentinel, isClosed: true });
  }

  #nowMs(): number {
    return this.#wallOffsetMs + this.#clock.now();
  }

  #refuseWhenClosed(): void {
    if (this.#closing !== null) throw unavailable("The key store was closed.");
  }
}

const unavailable = (message: string, cause?: unknown): GatewayError =>
  new GatewayError("GW_KEYS_UNAVAILABLE", message, { retryAfterS: 1, ...(cause === undefined ? {} : { cause }) });

const nothing = Buffer.alloc(0);
const idBytes = (id: Hash16): Buffer => Buffer.from(id, "hex");

function rowKey(id: Hash16, position: number): Buffer {
  const key = Buffer.allocUnsafe(24);
  key.write(id, "hex");
  writePosition(key, position, 16);
  return key;
}

const answerKey = (id: Hash16, position: number, digest: Hash16): Buffer =>
  Buffer.concat([rowKey(id, position), idBytes(digest)]);

const expiryKey = (expiresMs: number, id: Hash16, position: number): Buffer =>
  Buffer.concat([timeBytes(expiresMs), rowKey(id, position)]);

function timeBytes(ms: number): Buffer {
  const bytes = Buffer.allocUnsafe(6);
  bytes.writeUIntBE(Math.ceil(ms), 0, 6);
  return bytes;
}

/** Big-endian, so that keys are in position order. */
function writePosition(bytes: Buffer, position: number, at: number): void {
  bytes.writeUInt32BE(Math.floor(position / 2 ** 32), at);
  bytes.writeUInt32BE(position % 2 ** 32, at + 4);
}

const readPosition = (bytes: Buffer, at: number): number =>
  bytes.readUInt32BE(at) * 2 ** 32 + bytes.readUInt32BE(at + 4);

function headBytes({ position, fingerprint, digest }: Head): Buffer {
  const bytes = Buffer.allocUnsafe(40);
  writePosition(bytes, position, 0);
  bytes.write(fingerprint, 8, "hex");
  bytes.write(digest, 24, "hex");
  return bytes;
}

function parseHead(bytes: Buffer | undefined): Head | null {
  if (bytes === undefined || bytes.length !== 40) return null;
  const position = readPosition(bytes, 0);
  return { position, fingerprint: bytes.toString("hex", 8, 24), digest: bytes.toString("hex", 24, 40) };
}

const rowBytes = ({ winner, candidates, kept, expiresMs }: Row): Buffer =>
  Buffer.from(JSON.stringify({ winner, candidates: [...candidates], kept: [...kept], expiresMs }));

function parseRow(bytes: Buffer | undefined): Row | null {
  const row = parseJson(bytes);
  const { winner, candidates, kept, expiresMs } = row;
  if (typeof expiresMs !== "number" || !Array.isArray(candidates) || !Array.isArray(kept)) return null;
  if (winner !== null && !isDigest(winner)) return null;
  if (!kept.every(isDigest) || !candidates.every(isCandidate)) return null;
  return { winner, candidates: new Map(candidates), kept: new Set(kept), expiresMs };
}

const isDigest = (value: unknown): value is Hash16 => typeof value === "string" && isHash16(value);
const isCandidate = (value: unknown): value is [string, Hash16] =>
  Array.isArray(value) && value.length === 2 && typeof value[0] === "string" && isDigest(value[1]);

/** The fields of a JSON object; of anything else, none. */
function parseJson(bytes: Buffer | undefined): Readonly<Record<string, unknown>> {
  try {
    const value: unknown = bytes === undefined ? null : JSON.parse(bytes.toString());
    return typeof value === "object" && value !== null ? { ...value } : {};
  } catch {
    return {};
  }
}

const sentinelFile = (folder: string): string => join(folder, "sentinel.json");

/** Null when there is none, or none that can be read: then something may have been lost. */
function readSentinel(folder: string): Sentinel | null {
  let bytes: Buffer;
  try {
    bytes = readFileSync(sentinelFile(folder));
  } catch {
    return null;
  }
  const { version, machineBoot, id, floor, isClosed } = parseJson(bytes);
  if (version !== 1 || typeof machineBoot !== "string" || typeof id !== "string") return null;
  if (typeof floor !== "number" || typeof isClosed !== "boolean") return null;
  return { version, machineBoot, id, floor, isClosed };
}

function writeSentinel(folder: string, sentinel: Sentinel): void {
  const file = sentinelFile(folder);
  const fresh = openSync(`${file}.new`, "w", 0o600);
  writeSync(fresh, JSON.stringify(sentinel));
  step("keys.fsync");
  fsyncSync(fresh);
  closeSync(fresh);
  step("keys.rename");
  renameSync(`${file}.new`, file);
  const directory = openSync(folder, "r");
  step("keys.fsync");
  fsyncSync(directory);
  closeSync(directory);
}
