// The embedded log: LMDB in this process. What `append` calls stored survives a power cut.
//
// Appends that arrive while a commit is under way go into the next one together: one fdatasync a group, nothing is delayed when
// idle. The newest records also stay in memory, so a reader at the tail is handed what was just made durable and reads no file.

import { statfs } from "node:fs/promises";
import { crc32 } from "node:zlib";

import type { Database, RootDatabase } from "lmdb";

import { lmdbError, lmdbExists, lostTail, openLmdb, written } from "../drivers/lmdb.ts";
import { GatewayError } from "../errors.ts";
import type { Appended, GuaranteeReport, Log, LogCreation, LogInfo, StoredRecord } from "./log.ts";
import { step } from "../steps.ts";

export interface LmdbLogOptions {
  /** Used by the log alone; the caller holds the data folder's lock. */
  readonly folder: string;
  /** `log.max`. Records count as `storedBytes` says: what they take on disk, within a few percent. */
  readonly maxBytes: number;
  /** How to begin the log if there is none. An existing log is opened as it is: compare its `epoch`. */
  readonly create: LogCreation | null;
}

/** Null when there is no log in the folder and `create` is null. Throws GW_LOG_CORRUPT for what cannot be a prefix of a log. */
export async function openLmdbLog(options: LmdbLogOptions): Promise<Log | null> {
  const { folder, create } = options;
  if (create === null && !lmdbExists(folder)) return null;
  const isSuspect = lostTail(folder) > 0;
  const root = openLmdb(folder, { maxDbs: 4, durable: true });
  try {
    const meta = root.openDB<Meta, string>({ name: "meta", encoding: "json" });
    const records = root.openDB<Buffer, number>({ name: "records", encoding: "binary" });
    let state = meta.get("log");
    if (state === undefined) {
      if (countOf(records) > 0) throw corrupt(folder, "its head is gone");
      if (create === null) {
        await root.close(); // a crash between the first two steps of a creation: there never was a log
        return null;
      }
      const { epoch, firstSequence } = create;
      state = { format: 1, epoch, first: firstSequence, last: firstSequence - 1, bytes: 0, bytesEver: 0 };
      const created = state;
      step("log.create");
      await written(
        root.batch(() => void meta.put("log", created)),
        folder,
      );
    }
    verify(folder, state, records, isSuspect);
    return new LmdbLog(options, root, meta, records, state);
  } catch (error) {
    await root.close();
    throw error instanceof GatewayError ? error : corrupt(folder, "it cannot be read", error);
  }
}

/** Written with every group: it and the records it speaks of are one transaction. */
interface Meta {
  readonly format: 1;
  readonly epoch: string;
  readonly first: number;
  readonly last: number;
  readonly bytes: number;
  /** Of all records that ever were in it: each record keeps what stood here before it, so a truncation reads one record. */
  readonly bytesEver: number;
}

/**
 * What a record takes of LMDB: small ones share a page (key, node and head: about 48 bytes), larger ones have pages of their
 * own. Without it a log of 2 KiB records would fill the disk at half of `log.max`.
 */
export function storedBytes(recordBytes: number): number {
  const bytes = recordBytes + headBytes;
  return bytes < 2000 ? bytes + 36 : Math.ceil((bytes + 24) / 4096) * 4096 + 48;
}

const recordBytesMax = 1024 * 1024;
/** CRC-32 of the record (seeded with its sequence), then `bytesEver` before it as a double. */
const headBytes = 12;
/** A group is one transaction; bounded so that a commit stays short and a retry after a full disk small. */
const groupBytesMax = 8 * 1024 * 1024;
const groupRecordsMax = 1024;
/** The newest records, kept for readers at the tail; who falls out of it reads the file. */
const recentBytesMax = 16 * 1024 * 1024;
const recentRecordsMax = 16_384;
/** Between two turns of the event loop a reader in the past takes at most this much from the file. */
const readBytesMax = 1024 * 1024;
const readRecordsMax = 256;
const truncateRecordsMax = 1000;

const corrupt = (folder: string, why: string, cause?: unknown): GatewayError =>
  new GatewayError(
    "GW_LOG_CORRUPT",
    `The log in ${folder} is damaged: ${why}. Nothing was changed. Restore the folder; see GW_LOG_CORRUPT in deploy/runbook.md.`,
    { cause },
  );

function checksum(sequence: number, record: Buffer): number {
  return crc32(record, sequence % 0x1_0000_0000);
}

function encode(sequence: number, bytesEver: number, record: Buffer): Buffer {
  const bytes = Buffer.allocUnsafe(headBytes + record.length);
  bytes.writeUInt32LE(checksum(sequence, record), 0);
  bytes.writeDoubleLE(bytesEver, 4);
  record.copy(bytes, headBytes);
  return bytes;
}

interface Stored extends StoredRecord {
  /** Before it. */
  readonly bytesEver: number;
}

function decode(folder: string, sequence: number, stored: Buffer | undefined): Stored {
  if (stored === undefined) throw corrupt(folder, `record ${sequence} is missing`);
  if (stored.length < headBytes) throw corrupt(folder, `record ${sequence} has no head`);
  const bytes = stored.subarray(headBytes);
  if (stored.readUInt32LE(0) !== checksum(sequence, bytes))
    throw corrupt(folder, `record ${sequence} is not what was written`);
  return { sequence, bytes, bytesEver: stored.readDoubleLE(4) };
}

/** Density and both ends; every record when the file is shorter than it says. */
function verify(folder: string, state: Meta, records: Database<Buffer, number>, isSuspect: boolean): void {
  const count = state.last - state.first + 1;
  const entryCount = countOf(records);
  if (entryCount !== count) throw corrupt(folder, `it says that it holds ${count} records and holds ${entryCount}`);
  if (count === 0) return;
  for (const sequence of [state.first, state.last]) decode(folder, sequence, records.getBinary(sequence));
  if (!isSuspect) return;
  for (let sequence = state.first; sequence <= state.last; sequence++) {
    decode(folder, sequence, records.getBinary(sequence));
  }
}

const countOf = (records: Database<Buffer, number>): number =>
  (records.getStats() as { entryCount: number }).entryCount;

interface Waiting {
  readonly record: Buffer;
  readonly resolve: (appended: Appended) => void;
}

class LmdbLog implements Log {
  readonly kind = "embedded";
  readonly epoch: string;
  readonly recordBytesMax = recordBytesMax;
  readonly isTailExact = true;
  readonly #folder: string;
  readonly #maxBytes: number;
  readonly #root: RootDatabase<Buffer, number | string>;
  readonly #meta: Database<Meta, string>;
  readonly #records: Database<Buffer, number>;
  /** Of what is durable. */
  #state: Meta;
  readonly #recent: Recent;
  #waiting: Waiting[] = [];
  /** Resolves when nothing is being written. Appends and truncations take turns. */
  #writing: Promise<void> = Promise.resolve();
  #isScheduled = false;
  readonly #tailListeners = new Set<() => void>();
  readonly #reachableListeners = new Set<(isReachable: boolean) => void>();
  /** Set once, by close or by an error that must not be outlived. */
  #end: GatewayError | null = null;

  constructor(
    options: LmdbLogOptions,
    root: RootDatabase<Buffer, number | string>,
    meta: Database<Meta, string>,
    records: Database<Buffer, number>,
    state: Meta,
  ) {
    this.#folder = options.folder;
    this.#maxBytes = options.maxBytes;
    this.#root = root;
    this.#meta = meta;
    this.#records = records;
    this.#state = state;
    this.epoch = state.epoch;
    this.#recent = new Recent(state.last + 1);
  }

  append(record: Buffer): Promise<Appended> {
    if (this.#end !== null) return Promise.resolve({ kind: "refused", error: this.#end });
    if (record.length > recordBytesMax) {
      const error = new GatewayError(
        "GW_INTERNAL",
        `A record of ${record.length} bytes was given to a log that takes ${recordBytesMax}.`,
      );
      return Promise.resolve({ kind: "refused", error });
    }
    return new Promise((resolve) => {
      this.#waiting.push({ record, resolve });
      this.#schedule();
    });
  }

  #schedule(): void {
    if (this.#isScheduled || this.#waiting.length === 0) return;
    this.#isScheduled = true;
    // Group by group, so that a truncation gets its turn under load.
    void this.#exclusive(async () => {
      this.#isScheduled = false;
      await this.#commit(this.#nextGroup());
      this.#schedule();
    });
  }

  #nextGroup(): Waiting[] {
    let bytes = 0;
    let count = 0;
    for (const { record } of this.#waiting) {
      if (count > 0 && (count === groupRecordsMax || bytes + record.length > groupBytesMax)) break;
      bytes += record.length;
      count++;
    }
    return this.#waiting.splice(0, count);
  }

  /** One transaction, one fdatasync. Never rejects: each append is told what became of it. */
  async #commit(group: readonly Waiting[]): Promise<void> {
    if (this.#end !== null) return settle(group, { kind: "refused", error: this.#end });
    const before = this.#state;
    let { last, bytes, bytesEver } = before;
    const values: Buffer[] = [];
    const taken: Waiting[] = [];
    for (const waiting of group) {
      const size = storedBytes(waiting.record.length);
      if (bytes + size > this.#maxBytes) {
        waiting.resolve({ kind: "full" });
      } else {
        taken.push(waiting);
        last++;
        values.push(encode(last, bytesEver, waiting.record));
        bytes += size;
        bytesEver += size;
      }
    }
    if (taken.length === 0) return;
    const after: Meta = { ...before, last, bytes, bytesEver };
    step("log.append");
    try {
      await this.#root.batch(() => {
        values.forEach((value, index) => void this.#records.put(before.last + 1 + index, value));
        void this.#meta.put("log", after);
      });
    } catch (error) {
      return this.#failed(taken, await lmdbError(error, this.#folder));
    }
    this.#state = after;
    taken.forEach(({ record, resolve }, index) => {
      const sequence = before.last + 1 + index;
      this.#recent.push({ sequence, bytes: record });
      resolve({ kind: "stored", sequence });
    });
    this.#wake();
  }

  #failed(group: readonly Waiting[], error: GatewayError): void {
    // The transaction was aborted before its meta page: certainly nothing of it is stored.
    if (error.code === "GW_DISK_FULL") return settle(group, { kind: "full" });
    // The process is about to end; whether the group is on disk is known only after the next start.
    settle(group, { kind: "unknown", cause: error });
    this.#endWith(error);
  }

  async *read(from: number, signal: AbortSignal): AsyncGenerator<StoredRecord> {
    // One listener a reader, not one a wait: adding one to an AbortSignal costs more than reading a record (measured).
    let wake: (() => void) | null = null;
    const onNews = (): void => wake?.();
    this.#tailListeners.add(onNews);
    signal.addEventListener("abort", onNews);
    try {
      // Ends when `signal` aborts; throws when the log ends or `next` is not in it.
      for (let next = from; !signal.aborted;) {
        if (this.#end !== null) throw this.#end;
        const { first, last } = this.#state;
        if (next < first || next > last + 1) throw this.#notHere(next);
        if (next === last + 1) {
          await new Promise<void>((resolve) => (wake = resolve));
          wake = null;
          continue;
        }
        const recent = this.#recent.get(next);
        if (recent !== undefined) {
          yield recent;
          next++;
          continue;
        }
        for (const [sequence, stored] of this.#fromFile(next, last)) {
          if (signal.aborted) return;
          yield decode(this.#folder, sequence, stored);
          next = sequence + 1;
        }
        await nextTurn(); // a reader in the past leaves the loop to the others
      }
    } finally {
      this.#tailListeners.delete(onNews);
      signal.removeEventListener("abort", onNews);
    }
  }

  /** At least one record, as it is in the file. */
  #fromFile(from: number, last: number): [number, Buffer | undefined][] {
    const batch: [number, Buffer | undefined][] = [];
    let bytes = 0;
    for (let sequence = from; sequence <= last; sequence++) {
      if (batch.length === readRecordsMax || bytes > readBytesMax) break;
      const stored = this.#stored(sequence);
      batch.push([sequence, stored]);
      bytes += stored?.length ?? 0;
    }
    return batch;
  }

  #stored(sequence: number): Buffer | undefined {
    const stored = this.#records.getBinary(sequence);
    if (stored !== undefined) return stored;
    this.#root.resetReadTxn(); // the snapshot of this turn may be older than the record
    return this.#records.getBinary(sequence);
  }

  #notHere(sequence: number): GatewayError {
    const { first, last } = this.#state;
    return new GatewayError(
      "GW_LOG_REGRESSED",
      `Record ${sequence} was asked for; the log in ${this.#folder} holds ${first} to ${last}. ` +
        (sequence < first ? "What is older was truncated." : "It has lost its end, or is another log."),
    );
  }

  #wake(): void {
    for (const listener of this.#tailListeners) listener();
  }

  async tail(): Promise<number> {
    if (this.#end !== null) throw this.#end;
    return this.#state.last;
  }

  async info(): Promise<LogInfo> {
    if (this.#end !== null) throw this.#end;
    const { first, last, bytes } = this.#state;
    return { first, last, bytes, maxBytes: this.#maxBytes };
  }

  async guarantee(): Promise<GuaranteeReport> {
    const { type } = await statfs(this.#folder);
    if (type === tmpfsMagic || type === ramfsMagic) {
      return { level: "process-crash", why: `${this.#folder} is on a memory file system, which a power cut empties.` };
    }
    return {
      level: "power-loss",
      why: `Each record is in ${this.#folder} and synced (fdatasync) before it is acknowledged; the disk must honour that.`,
    };
  }

  async truncate(first: number): Promise<void> {
    // In steps, so that no append waits long and a crash leaves a log that begins a little earlier. Ends at `first`.
    for (let isDone = false; !isDone;) {
      isDone = await this.#exclusive(async () => {
        if (this.#end !== null) throw this.#end;
        if (first > this.#state.last + 1) throw this.#notHere(first);
        if (this.#state.first < first) await this.#drop(Math.min(first, this.#state.first + truncateRecordsMax));
        return this.#state.first >= first;
      });
    }
    // LMDB gives freed pages out again two commits later; on a full disk the next append would not find them.
    await this.#exclusive(async () => {
      this.#root.resetReadTxn();
      if (this.#end === null) await this.#putState();
    });
  }

  #putState(): Promise<unknown> {
    const state = this.#state;
    return written(
      this.#root.batch(() => void this.#meta.put("log", state)),
      this.#folder,
    );
  }

  async #drop(first: number): Promise<void> {
    const before = this.#state;
    const isEmpty = first > before.last;
    const dropped = isEmpty ? before.bytesEver : decode(this.#folder, first, this.#stored(first)).bytesEver;
    const after: Meta = { ...before, first, bytes: before.bytesEver - dropped };
    const work = this.#root.batch(() => {
      for (let sequence = before.first; sequence < first; sequence++) void this.#records.remove(sequence);
      void this.#meta.put("log", after);
    });
    await written(work, this.#folder);
    this.#state = after;
    this.#recent.dropBelow(first);
  }

  isReachable(): boolean {
    return this.#end === null;
  }

  onReachable(listener: (isReachable: boolean) => void): void {
    this.#reachableListeners.add(listener);
  }

  async close(): Promise<void> {
    const wasOpen = this.#end === null;
    this.#endWith(new GatewayError("GW_LOG_UNAVAILABLE", `The log in ${this.#folder} is closed.`));
    await this.#writing;
    if (wasOpen) await this.#root.close();
  }

  #endWith(error: GatewayError): void {
    if (this.#end !== null) return;
    this.#end = error;
    for (const listener of this.#reachableListeners) listener(false);
    this.#wake();
  }

  #exclusive<T>(work: () => Promise<T>): Promise<T> {
    const result = this.#writing.then(work);
    this.#writing = result.then(
      () => {},
      () => {},
    );
    return result;
  }
}

/** The newest durable records, without a gap, up to the tail. */
class Recent {
  #records: StoredRecord[] = [];
  /** Index of the oldest in `#records`: shifting a long array for each record would cost more than the record. */
  #at = 0;
  #bytes = 0;
  #next: number;

  constructor(next: number) {
    this.#next = next;
  }

  push(record: StoredRecord): void {
    this.#records.push(record);
    this.#bytes += record.bytes.length;
    this.#next = record.sequence + 1;
    while (this.#bytes > recentBytesMax || this.#records.length - this.#at > recentRecordsMax) this.#dropOldest();
  }

  get(sequence: number): StoredRecord | undefined {
    const index = this.#records.length - (this.#next - sequence);
    return index < this.#at ? undefined : this.#records[index];
  }

  dropBelow(first: number): void {
    while (this.#at < this.#records.length && (this.#records[this.#at]?.sequence ?? first) < first) this.#dropOldest();
  }

  #dropOldest(): void {
    this.#bytes -= this.#records[this.#at]?.bytes.length ?? 0;
    this.#at++;
    if (this.#at * 2 < this.#records.length) return;
    this.#records = this.#records.slice(this.#at);
    this.#at = 0;
  }
}

function settle(group: readonly Waiting[], appended: Appended): void {
  for (const { resolve } of group) resolve(appended);
}

const nextTurn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

const tmpfsMagic = 0x01021994;
const ramfsMagic = 0x858458f6;
