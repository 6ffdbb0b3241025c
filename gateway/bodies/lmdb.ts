// Bodies beside the embedded log, in an environment of their own, so that a large one never holds up a commit of the log.

import { createHash } from "node:crypto";

import type { Database, RootDatabase } from "lmdb";

import { systemClock } from "../clock.ts";
import type { Clock } from "../clock.ts";
import { openLmdb, written } from "../drivers/lmdb.ts";
import type { BodyRef } from "../entry.ts";
import { GatewayError } from "../errors.ts";
import { bodyTooLarge, bodyUnreadable, chunkBytes, chunked } from "./bodies.ts";
import type { Bodies } from "./bodies.ts";
import { step } from "../steps.ts";

export interface LmdbBodiesOptions {
  readonly folder: string;
  /** Of all bodies, also those being put. */
  readonly maxBytes: number;
  readonly clock?: Clock;
}

/** Removes what a crash left of unfinished puts. */
export async function openLmdbBodies(options: LmdbBodiesOptions): Promise<Bodies> {
  const root = openLmdb(options.folder, { maxDbs: 4, durable: true });
  const rows = root.openDB<Row, string>({ name: "bodies", encoding: "json" });
  const chunks = root.openDB<Buffer, ChunkKey>({ name: "chunks", encoding: "binary" });
  const bodies = new LmdbBodies(options, root, rows, chunks);
  await bodies.removeUnfinished();
  return bodies;
}

/** Keyed by the hash. */
interface Row {
  readonly upload: number;
  readonly chunks: number;
  readonly sizeBytes: number;
  /** Of the last put of these bytes. */
  readonly putMs: number;
}
type ChunkKey = [upload: number, index: number];

/** Commits under way for one put: enough that the disk never waits for the network, and a bounded piece of memory. */
const inFlightMax = 8;

class LmdbBodies implements Bodies {
  readonly #folder: string;
  readonly #maxBytes: number;
  readonly #clock: Clock;
  readonly #root: RootDatabase<Buffer, number | string>;
  readonly #rows: Database<Row, string>;
  readonly #chunks: Database<Buffer, ChunkKey>;
  #bytes = 0;
  #uploads = 0;
  #isClosed = false;
  /** Decisions about one row are taken one after the other: a put must not find a body that a sweep is about to remove. */
  #deciding: Promise<void> = Promise.resolve();
  readonly #writing = new Set<Promise<unknown>>();

  constructor(
    options: LmdbBodiesOptions,
    root: RootDatabase<Buffer, number | string>,
    rows: Database<Row, string>,
    chunks: Database<Buffer, ChunkKey>,
  ) {
    this.#folder = options.folder;
    this.#maxBytes = options.maxBytes;
    this.#clock = options.clock ?? systemClock;
    this.#root = root;
    this.#rows = rows;
    this.#chunks = chunks;
  }

  async removeUnfinished(): Promise<void> {
    const finished = new Set<number>();
    for (const { value } of this.#rows.getRange()) {
      finished.add(value.upload);
      this.#bytes += value.sizeBytes;
    }
    const left = new Map<number, number>();
    for (const [upload, index] of this.#chunks.getKeys()) {
      this.#uploads = Math.max(this.#uploads, upload);
      if (!finished.has(upload)) left.set(upload, index + 1);
    }
    for (const [upload, count] of left) await this.#removeChunks(upload, count);
  }

  async put(body: AsyncIterable<Buffer>, limitBytes: number): Promise<BodyRef> {
    if (this.#isClosed) throw this.#closedError();
    const upload = ++this.#uploads;
    const hash = createHash("sha256");
    const inFlight = new Set<Promise<unknown>>();
    let sizeBytes = 0;
    let counted = 0;
    let count = 0;
    try {
      for await (const chunk of chunked(body, chunkBytes)) {
        sizeBytes += chunk.length;
        if (sizeBytes > limitBytes) throw bodyTooLarge(limitBytes);
        if (this.#bytes + chunk.length > this.#maxBytes) throw this.#full();
        this.#bytes += chunk.length;
        counted += chunk.length;
        hash.update(chunk);
        const key: ChunkKey = [upload, count++];
        const write = this.#write(() => void this.#chunks.put(key, chunk));
        inFlight.add(write);
        // The rejection is met by the race or by the wait below, whichever comes first.
        write.then(
          () => inFlight.delete(write),
          () => {},
        );
        if (inFlight.size >= inFlightMax) await Promise.race(inFlight);
      }
      await Promise.all(inFlight);
      const ref = { sha256: hash.digest("hex"), sizeBytes };
      await this.#decide(() => this.#keep(ref, upload, count));
      return ref;
    } catch (error) {
      await Promise.allSettled(inFlight);
      this.#bytes -= counted;
      await this.#removeChunks(upload, count).catch(() => {}); // else the next start does it
      throw error;
    }
  }

  /** The new chunks become the body, or give way to those that are there. */
  async #keep({ sha256, sizeBytes }: BodyRef, upload: number, chunks: number): Promise<void> {
    const existing = this.#rows.get(sha256);
    const row: Row = { ...(existing ?? { upload, chunks, sizeBytes }), putMs: this.#clock.wallMs() };
    await this.#write(() => void this.#rows.put(sha256, row));
    if (existing === undefined) return;
    this.#bytes -= sizeBytes;
    await this.#removeChunks(upload, chunks).catch(() => {}); // the body is kept; the next start removes these
  }

  async *read(ref: BodyRef): AsyncGenerator<Buffer> {
    if (this.#isClosed) throw this.#closedError();
    const row = this.#rows.get(ref.sha256);
    if (row === undefined || row.sizeBytes !== ref.sizeBytes) throw bodyUnreadable(ref, "it is not there");
    const hash = createHash("sha256");
    for (let index = 0; index < row.chunks; index++) {
      if (this.#isClosed) throw this.#closedError();
      const chunk = this.#chunks.getBinary([row.upload, index]);
      if (chunk === undefined) throw bodyUnreadable(ref, `chunk ${index} is missing`);
      hash.update(chunk);
      if (index === row.chunks - 1 && hash.digest("hex") !== ref.sha256)
        throw bodyUnreadable(ref, "its bytes have changed");
      yield chunk;
      await nextTurn();
    }
  }

  async sweep(kept: ReadonlySet<string>, olderThanMs: number): Promise<number> {
    let removed = 0;
    const all = Array.from(this.#rows.getKeys()); // a cursor must not stay open over the waits below
    for (const sha256 of all) {
      if (kept.has(sha256) || this.#isClosed) continue;
      await this.#decide(async () => {
        const row = this.#rows.get(sha256);
        if (row === undefined || row.putMs >= olderThanMs) return;
        await this.#write(() => void this.#rows.remove(sha256));
        await this.#removeChunks(row.upload, row.chunks);
        this.#bytes -= row.sizeBytes;
        removed++;
      });
    }
    return removed;
  }

  /** A crash before it leaves chunks without a row: see `removeUnfinished`. */
  #removeChunks(upload: number, count: number): Promise<void> {
    return this.#write(() => {
      for (let index = 0; index < count; index++) void this.#chunks.remove([upload, index]);
    });
  }

  /** One durable transaction. */
  async #write(changes: () => void): Promise<void> {
    if (this.#isClosed) throw this.#closedError();
    step("bodies.write");
    const write = written(this.#root.batch(changes), this.#folder);
    this.#writing.add(write);
    try {
      await write;
      this.#root.resetReadTxn(); // what reads next in this turn sees it
    } catch (error) {
      throw error instanceof GatewayError && error.code === "GW_DISK_FULL" ? this.#full(error) : error;
    } finally {
      this.#writing.delete(write);
    }
  }

  #decide(decision: () => Promise<void>): Promise<void> {
    const done = this.#deciding.then(decision);
    this.#deciding = done.catch(() => {});
    return done;
  }

  #full(cause?: unknown): GatewayError {
    return new GatewayError("GW_LOG_FULL", `There is no room in ${this.#folder} for the request's body.`, { cause });
  }

  #closedError(): GatewayError {
    return new GatewayError("GW_STOPPING", `The bodies in ${this.#folder} are closed.`);
  }

  async close(): Promise<void> {
    if (this.#isClosed) return;
    this.#isClosed = true;
    await Promise.allSettled(this.#writing);
    await this.#root.close();
  }
}

const nextTurn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));
