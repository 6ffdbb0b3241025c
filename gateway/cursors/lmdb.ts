// Cursors beside the embedded log: one process, every save durable (fdatasync) before it counts.

import { crc32 } from "node:zlib";
import type { Database, RootDatabase } from "lmdb";
import { lostTail, openLmdb, written } from "../drivers/lmdb.ts";
import { GatewayError } from "../errors.ts";
import { step } from "../steps.ts";
import { CursorLostError } from "./cursors.ts";
import type { Cursor, Cursors, Saved, StoredCursor } from "./cursors.ts";
import { encodeCursor, parseCursor } from "./stored.ts";

/** Used by the cursors alone; the caller holds the data folder's lock. */
export async function openLmdbCursors({ folder }: { readonly folder: string }): Promise<Cursors> {
  const isSuspect = lostTail(folder) > 0;
  const root = openLmdb(folder, { maxDbs: 1, durable: true });
  try {
    const table = root.openDB<Buffer, string>({ name: "cursors", encoding: "binary" });
    // A file that was cut is read once, here: what is gone must be known before anything relies on it.
    if (isSuspect) for (const { key, value } of table.getRange()) void [key, crc32(value)];
    return new LmdbCursors(folder, root, table);
  } catch (error) {
    await root.close();
    throw error instanceof GatewayError
      ? error
      : new CursorLostError(`The cursors in ${folder} cannot be read.`, 0, error);
  }
}

// Value: revision u64 BE, then the encoded cursor.
const headBytes = 8;

class LmdbCursors implements Cursors {
  readonly #folder: string;
  readonly #root: RootDatabase<Buffer, number | string>;
  readonly #table: Database<Buffer, string>;
  /** The last call of each replica: calls take turns, so that of two saves with one revision exactly one succeeds. */
  readonly #turns = new Map<string, Promise<unknown>>();
  #closing: Promise<void> | null = null;

  constructor(folder: string, root: RootDatabase<Buffer, number | string>, table: Database<Buffer, string>) {
    this.#folder = folder;
    this.#root = root;
    this.#table = table;
  }

  async load(replica: string): Promise<StoredCursor | null> {
    return await this.#inTurn(replica, async () => {
      const value = this.#table.get(keyOf(replica));
      if (value === undefined) return null;
      const revision = revisionOf(value);
      return { cursor: parseCursor(value.subarray(headBytes), replica, revision), revision };
    });
  }

  async save(cursor: Cursor, revision: number): Promise<Saved> {
    const { replica } = cursor;
    const body = encodeCursor(cursor);
    return await this.#inTurn(replica, async () => {
      if (revisionOf(this.#table.get(keyOf(replica))) !== revision) return { kind: "conflict" };
      const value = Buffer.concat([revisionBytes(revision + 1), body]);
      step("cursor.save");
      try {
        await written(
          this.#root.batch(() => void this.#table.put(keyOf(replica), value)),
          this.#folder,
        );
      } catch (cause) {
        return { kind: "unknown", cause };
      }
      return { kind: "saved", revision: revision + 1 };
    });
  }

  async list(): Promise<readonly string[]> {
    this.#refuseWhenClosed();
    return [...this.#table.getKeys()].map(nameOf);
  }

  async close(): Promise<void> {
    this.#closing ??= this.#close();
    await this.#closing;
  }

  async #inTurn<T>(replica: string, call: () => Promise<T>): Promise<T> {
    const before = this.#turns.get(replica);
    const mine = (async () => {
      await before?.catch(() => undefined);
      this.#refuseWhenClosed();
      return await call();
    })();
    this.#turns.set(replica, mine);
    try {
      return await mine;
    } finally {
      if (this.#turns.get(replica) === mine) this.#turns.delete(replica);
    }
  }

  async #close(): Promise<void> {
    await Promise.allSettled(this.#turns.values());
    await this.#root.close();
  }

  #refuseWhenClosed(): void {
    if (this.#closing !== null) throw new GatewayError("GW_LOG_UNAVAILABLE", "The cursors were closed.");
  }
}

/** LMDB's keys end at 1,978 bytes and may not be empty. */
const keyOf = (replica: string): string => `r:${replica}`;
const nameOf = (key: string): string => key.slice(2);

/** 0: never saved. */
const revisionOf = (value: Buffer | undefined): number =>
  value === undefined || value.length < headBytes ? 0 : Number(value.readBigUInt64BE());

function revisionBytes(revision: number): Buffer {
  const bytes = Buffer.alloc(headBytes);
  bytes.writeBigUInt64BE(BigInt(revision));
  return bytes;
}
