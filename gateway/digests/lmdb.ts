// Digests beside the embedded log, in an environment of their own: batches keyed by bucket, so an append is a few puts.
// Nobody waits for an fsync: what a power cut undoes is "unverified" afterwards, which is allowed.

import type { Database, RangeOptions, RootDatabase } from "lmdb";

import { openLmdb, written } from "../drivers/lmdb.ts";
import { GatewayError } from "../errors.ts";
import { batchesOf, bucketOf, rowsOf } from "./batch.ts";
import type { Batch } from "./batch.ts";
import type { DigestRow, Digests } from "./digests.ts";
import { step } from "../steps.ts";

export interface LmdbDigestsOptions {
  readonly folder: string;
  /**
   * Above it the lowest buckets go first, batch by batch: up to one append (4,096 rows) more may be there. A row takes about 40
   * bytes on disk in large batches, about 100 in batches of one entry.
   */
  readonly rowsMax?: number;
}

export async function openLmdbDigests({ folder, rowsMax = 5_000_000 }: LmdbDigestsOptions): Promise<Digests> {
  const root = openLmdb(folder, { maxDbs: 2, durable: false });
  const meta = root.openDB<Held, string>({ name: "meta", encoding: "json" });
  const batches = root.openDB<Buffer, Key>({ name: "batches", encoding: "binary" });
  return new LmdbDigests(folder, rowsMax, root, meta, batches);
}

/** In the order of their appends within a bucket. The rows are counted here so that nobody reads a batch to drop it. */
type Key = [bucket: number, counter: number, rows: number];

/** Written with every change: it and the batches it speaks of are one transaction. */
interface Held {
  readonly format: 1;
  readonly rows: number;
  /** Batches that ever were: the next one's counter. */
  readonly counter: number;
}

/** Rows of one transaction, and of one batch. */
const rowsAtOnce = 4096;
/** Batches dropped by one transaction; more than one transaction can add, so that the bound holds. */
const droppedAtOnce = 2 * rowsAtOnce;

class LmdbDigests implements Digests {
  readonly #folder: string;
  readonly #rowsMax: number;
  readonly #root: RootDatabase<Buffer, number | string>;
  readonly #meta: Database<Held, string>;
  readonly #batches: Database<Buffer, Key>;
  #held: Held;
  /** Resolves when nothing is being written. Changes take turns: each counts on from the one before. */
  #writing: Promise<void> = Promise.resolve();
  #isClosed = false;

  constructor(
    folder: string,
    rowsMax: number,
    root: RootDatabase<Buffer, number | string>,
    meta: Database<Held, string>,
    batches: Database<Buffer, Key>,
  ) {
    this.#folder = folder;
    this.#rowsMax = rowsMax;
    this.#root = root;
    this.#meta = meta;
    this.#batches = batches;
    this.#held = meta.get("held") ?? { format: 1, rows: 0, counter: 0 };
  }

  async append(rows: readonly DigestRow[]): Promise<void> {
    this.#checkOpen();
    await this.#exclusive(async () => {
      for (let at = 0; at < rows.length; at += rowsAtOnce) {
        const batches = batchesOf(rows.slice(at, at + rowsAtOnce), rowsAtOnce);
        await this.#change(batches, this.#surplus(rowsIn(batches)));
      }
    });
  }

  /** The lowest batches, as many as can go without going below `rowsMax` when `more` rows are added. */
  #surplus(more: number): Key[] {
    let surplus = this.#held.rows + more - this.#rowsMax;
    const keys: Key[] = [];
    if (surplus <= 0) return keys;
    for (const key of this.#batches.getKeys({ limit: droppedAtOnce })) {
      const [, , rows] = key;
      if (rows > surplus) break;
      surplus -= rows;
      keys.push(key);
    }
    return keys;
  }

  async *read(from: number, to: number): AsyncGenerator<DigestRow> {
    const end = bucketOf(to) + 1;
    // Ends after the last bucket of the range. A bucket a turn: no transaction stays open while somebody compares.
    for (let next = bucketOf(from); ; next++) {
      this.#checkOpen();
      const [lowest] = this.#batches.getKeys(range(next, end, 1));
      if (lowest === undefined) return;
      [next] = lowest;
      const batches = Array.from(this.#batches.getRange(range(next, next + 1)), ({ value }) => value);
      yield* rowsOf(this.#folder, batches, from, to);
      await nextTurn();
    }
  }

  /** Whole buckets: up to 64 records below the position keep their rows until the next time. */
  async truncate(firstPosition: number): Promise<void> {
    const end = bucketOf(firstPosition);
    // In steps, so that no append waits long. Ends when a step is not full.
    for (let dropped = droppedAtOnce; dropped === droppedAtOnce;) {
      this.#checkOpen();
      dropped = await this.#exclusive(async () => {
        const keys = Array.from(this.#batches.getKeys(range(0, end, droppedAtOnce)));
        if (keys.length > 0) await this.#change([], keys);
        return keys.length;
      });
    }
  }

  /** One transaction. */
  async #change(added: readonly Batch[], dropped: readonly Key[]): Promise<void> {
    const { rows, counter } = this.#held;
    const held: Held = {
      format: 1,
      rows: rows + rowsIn(added) - dropped.reduce((sum, [, , rows]) => sum + rows, 0),
      counter: counter + added.length,
    };
    step("digests.write");
    const work = this.#root.batch(() => {
      added.forEach(({ bucket, rows, bytes }, index) => void this.#batches.put([bucket, counter + index, rows], bytes));
      for (const key of dropped) void this.#batches.remove(key);
      void this.#meta.put("held", held);
    });
    await written(work, this.#folder);
    this.#held = held;
    this.#root.resetReadTxn(); // what reads next in this turn sees it
  }

  #exclusive<T>(work: () => Promise<T>): Promise<T> {
    const result = this.#writing.then(work);
    this.#writing = result.then(
      () => {},
      () => {},
    );
    return result;
  }

  #checkOpen(): void {
    if (this.#isClosed) throw new GatewayError("GW_STOPPING", `The digests in ${this.#folder} are closed.`);
  }

  async close(): Promise<void> {
    if (this.#isClosed) return;
    this.#isClosed = true;
    await this.#writing; // what was asked for before
    await this.#root.close();
  }
}

const rowsIn = (batches: readonly Batch[]): number => batches.reduce((sum, { rows }) => sum + rows, 0);

/** Of whole buckets, `end` not included: [bucket] sorts before every key of that bucket. */
const range = (start: number, end: number, limit = Infinity): RangeOptions => ({ start: [start], end: [end], limit });

const nextTurn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));
