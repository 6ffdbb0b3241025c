// Reader state in LMDB: head, key rows by id, their positions, exceptions; one transaction a commit.
// Not fsynced: what a power cut undoes is folded again from the log.

import type { Database } from "lmdb";
import { sequenceOf } from "../entry.ts";
import { openLmdb, written } from "../drivers/lmdb.ts";
import type { Exception, KeyRow, StateBatch, StateHead, StateStore } from "./store.ts";

export function openLmdbState(folder: string): StateStore {
  const root = openLmdb(folder, { maxDbs: 8, durable: false });
  const heads = root.openDB<StateHead, string>({ name: "head", encoding: "json" });
  const keys: Database<Buffer, Buffer> = root.openDB({ name: "keys", encoding: "binary", keyEncoding: "binary" });
  const positions: Database<Buffer, number> = root.openDB({ name: "positions", encoding: "binary" });
  const exceptions = root.openDB<Exception[], number>({ name: "exceptions", encoding: "json" });
  const skips = root.openDB<Extract<Exception, { kind: "skip" }>, number>({ name: "skips", encoding: "json" });
  let isClosed = false;

  const readKey = (id: Buffer): KeyRow | null => {
    const row = keys.get(id);
    return row === undefined ? null : decodeRow(id.toString("hex"), row);
  };

  return {
    head: () => heads.get("head") ?? null,
    key: (id) => readKey(Buffer.from(id, "hex")),
    oldestKeys(abovePosition, limit) {
      const rows: KeyRow[] = [];
      for (const { key, value } of positions.getRange({ start: abovePosition + 1, limit })) {
        const row = readKey(value);
        if (row !== null && row.position === key) rows.push(row);
      }
      return rows;
    },
    exceptions(fromSequence, toSequence) {
      const found: Exception[] = [];
      for (const { value } of exceptions.getRange({ start: fromSequence, end: toSequence + 1 })) found.push(...value);
      return found;
    },
    skips: (limit) => [...skips.getRange({ limit })].map(({ value }) => value),
    async commit(batch: StateBatch) {
      const work = root.batch(() => {
        for (const position of batch.gonePositions) void positions.remove(position);
        for (const [id, row] of batch.keys) {
          const key = Buffer.from(id, "hex");
          if (row === null) void keys.remove(key);
          else {
            void keys.put(key, encodeRow(row));
            void positions.put(row.position, key);
          }
        }
        for (const [sequence, list] of bySequence(batch.exceptions))
          void exceptions.put(sequence, [...(exceptions.get(sequence) ?? []), ...list]);
        for (const it of batch.exceptions) if (it.kind === "skip") void skips.put(it.position, it);
        void heads.put("head", batch.head);
      });
      await written(work, folder);
    },
    async close() {
      if (isClosed) return;
      isClosed = true;
      await root.close();
    },
  };
}

const kinds = ["entry", "claimed", "done", "unknown"] as const;

function encodeRow(row: KeyRow): Buffer {
  const bytes = Buffer.allocUnsafe(33);
  bytes.write(row.fingerprint, 0, 16, "hex");
  bytes.writeDoubleBE(row.position, 16);
  bytes.writeDoubleBE(row.timeMs, 24);
  bytes[32] = kinds.indexOf(row.kind);
  return bytes;
}

const decodeRow = (id: string, bytes: Buffer): KeyRow => ({
  id,
  fingerprint: bytes.toString("hex", 0, 16),
  position: bytes.readDoubleBE(16),
  timeMs: bytes.readDoubleBE(24),
  kind: kinds[bytes[32] as number] ?? "entry",
});

function bySequence(list: readonly Exception[]): Map<number, Exception[]> {
  const grouped = new Map<number, Exception[]>();
  for (const it of list) {
    const sequence = it.kind === "dropped" ? it.sequence : sequenceOf(it.position);
    const group = grouped.get(sequence);
    if (group === undefined) grouped.set(sequence, [it]);
    else group.push(it);
  }
  return grouped;
}
