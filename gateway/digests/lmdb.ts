// Digests beside the embedded log, in an environment of their own: keyed by position, so a range is one walk.

import type { Database, RangeOptions, RootDatabase } from "lmdb";

import { openLmdb, written } from "../drivers/lmdb.ts";
import { GatewayError } from "../errors.ts";
import type { DigestRow, Digests } from "./digests.ts";

export interface LmdbDigestsOptions {
  readonly folder: string;
  /** Above it the lowest positions go first; about 200 bytes each on disk. */
  readonly rowsMax?: number;
}

export async function openLmdbDigests({ folder, rowsMax = 5_000_000 }: LmdbDigestsOptions): Promise<Digests> {
  const root = openLmdb(folder, { maxDbs: 2, durable: true });
  return new LmdbDigests(folder, rowsMax, root, root.openDB<string, Key>({ name: "digests", encoding: "string" }));
}

/** The whole row but for the version, which is the value: a row appended twice is one row. */
type Key = [
  position: number,
  replica: string,
  epoch: string,
  incarnation: string,
  rules: string,
  digest: string,
  isFirstSend: number,
];

/** Rows of one transaction, and of one turn of the event loop. */
const rowsAtOnce = 1000;

class LmdbDigests implements Digests {
  readonly #folder: string;
  readonly #rowsMax: number;
  readonly #root: RootDatabase<Buffer, number | string>;
  readonly #rows: Database<string, Key>;
  readonly #writing = new Set<Promise<unknown>>();
  #isClosed = false;

  constructor(
    folder: string,
    rowsMax: number,
    root: RootDatabase<Buffer, number | string>,
    rows: Database<string, Key>,
  ) {
    this.#folder = folder;
    this.#rowsMax = rowsMax;
    this.#root = root;
    this.#rows = rows;
  }

  async append(rows: readonly DigestRow[]): Promise<void> {
    for (let at = 0; at < rows.length; at += rowsAtOnce) {
      const part = rows.slice(at, at + rowsAtOnce);
      await this.#write(() => {
        for (const row of part) void this.#rows.put(keyOf(row), row.backendVersion);
      });
    }
    await this.#makeRoom();
  }

  async #makeRoom(): Promise<void> {
    const { entryCount } = this.#rows.getStats() as { entryCount: number };
    if (entryCount > this.#rowsMax) await this.#remove({ limit: entryCount - this.#rowsMax });
  }

  async *read(from: number, to: number): AsyncGenerator<DigestRow> {
    let start: Key | [number] = [from];
    let isAfterStart = false;
    // Ends at the first step that is not full. A step a turn: no transaction stays open while somebody compares.
    for (;;) {
      this.#checkOpen();
      const step: DigestRow[] = [];
      // [to + 1] sorts before every key of that position.
      const range: RangeOptions = {
        start,
        end: [to + 1],
        limit: rowsAtOnce,
        exclusiveStart: isAfterStart,
      };
      for (const { key, value } of this.#rows.getRange(range)) {
        start = key;
        step.push(rowOf(key, value));
      }
      yield* step;
      if (step.length < rowsAtOnce) return;
      isAfterStart = true;
    }
  }

  async truncate(firstPosition: number): Promise<void> {
    await this.#remove({ end: [firstPosition] });
  }

  /** Ends when the range is empty or its limit is used up. */
  async #remove({ end, limit = Infinity }: { end?: [position: number]; limit?: number }): Promise<void> {
    for (let left = limit; left > 0;) {
      this.#checkOpen();
      const range = { limit: Math.min(rowsAtOnce, left), ...(end === undefined ? {} : { end }) };
      const keys = Array.from(this.#rows.getKeys(range));
      if (keys.length === 0) return;
      left -= keys.length;
      await this.#write(() => {
        for (const key of keys) void this.#rows.remove(key);
      });
    }
  }

  /** One durable transaction. */
  async #write(changes: () => void): Promise<void> {
    this.#checkOpen();
    const write = written(this.#root.batch(changes), this.#folder);
    this.#writing.add(write);
    try {
      await write;
      this.#root.resetReadTxn(); // what reads next in this turn sees it
    } finally {
      this.#writing.delete(write);
    }
  }

  #checkOpen(): void {
    if (this.#isClosed) throw new GatewayError("GW_STOPPING", `The digests in ${this.#folder} are closed.`);
  }

  async close(): Promise<void> {
    if (this.#isClosed) return;
    this.#isClosed = true;
    await Promise.allSettled(this.#writing);
    await this.#root.close();
  }
}

function keyOf({ position, replica, epoch, incarnation, rules, digest, isFirstSend }: DigestRow): Key {
  return [position, replica, epoch, incarnation, rules, digest, isFirstSend ? 1 : 0];
}

function rowOf([position, replica, epoch, incarnation, rules, digest, isFirstSend]: Key, version: string): DigestRow {
  return {
    epoch,
    position,
    replica,
    incarnation,
    backendVersion: version,
    rules,
    digest,
    isFirstSend: isFirstSend === 1,
  };
}
