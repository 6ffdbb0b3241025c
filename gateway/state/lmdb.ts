// Reader state in LMDB: head, key rows by id, their positions, exceptions; one transaction a commit.
// Not fsynced: what a power cut undoes is folded again from the log.

import type { Database, RootDatabase } from "lmdb";
import { positionOf, sequenceOf } from "../entry.ts";
import { lmdbError, openLmdb, written } from "../drivers/lmdb.ts";
import { GatewayError } from "../errors.ts";
import { decodeKeyValue, encodeKeyValue } from "./keyrows.ts";
import type { Exception, KeyRow, SkipRow, StateAt, StateBatch, StateCut, StateHead, StateStore } from "./store.ts";
import { step } from "../steps.ts";

/** 2: the bodies of all folded records are noted. */
const layout = 2;
/** Rows removed by one transaction, or read, beside everything else that goes on. */
const rowsAtOnce = 4096;
/** Key rows of a cut between two turns of the event loop: some milliseconds, with what their reader does to them. */
const cutRowsAtOnce = 512;
/** Key rows of one transaction of a reset: ids are random, so each transaction writes about every page once more. */
const resetRowsAtOnce = 65_536;

interface Tables {
  readonly heads: Database<StateHead, string>;
  readonly keys: Database<Buffer, Buffer>;
  readonly positions: Database<Buffer, number>;
  readonly exceptions: Database<Exception[], number>;
  readonly skips: Database<SkipRow, number>;
  readonly bodies: Database<Buffer, number>;
  readonly layouts: Database<number, string>;
}

export function openLmdbState(folder: string): StateStore {
  const root = openLmdb(folder, { maxDbs: 8, durable: false });
  const tables: Tables = {
    heads: root.openDB({ name: "head", encoding: "json" }),
    keys: root.openDB({ name: "keys", encoding: "binary", keyEncoding: "binary" }),
    positions: root.openDB({ name: "positions", encoding: "binary" }),
    exceptions: root.openDB({ name: "exceptions", encoding: "json" }),
    skips: root.openDB({ name: "skips", encoding: "json" }),
    bodies: root.openDB({ name: "bodies", encoding: "binary" }),
    layouts: root.openDB({ name: "layout", encoding: "json" }),
  };
  const { heads, keys, positions, exceptions, skips, bodies, layouts } = tables;
  /** Closes each cut that is open. */
  const cuts = new Set<() => void>();
  let isClosed = false;
  // Without a head: what a reset left that was cut off. With another layout: what another version folded. Either is begun anew.
  if (layouts.get("layout") !== layout || heads.get("head") === undefined) while (clearSome(root, tables));

  const readKey = (id: Buffer): KeyRow | null => {
    const row = keys.get(id);
    return row === undefined ? null : decodeKeyValue(id.toString("hex"), row);
  };
  const write = (changes: () => void): Promise<unknown> => {
    step("state.write");
    return written(root.batch(changes), folder);
  };
  const clear = async (): Promise<void> => {
    try {
      while (clearSome(root, tables)) await nextTurn();
    } catch (error) {
      throw await lmdbError(error, folder);
    }
  };
  const putKey = (id: string, row: KeyRow): void => {
    const key = Buffer.from(id, "hex");
    void keys.put(key, encodeKeyValue(row));
    void positions.put(row.position, key);
  };
  const putAll = async ({ head, skips: skipped, keys: rows }: StateAt): Promise<void> => {
    let count = 0;
    for await (const some of inBatches(rows)) {
      await write(() => some.forEach((row) => putKey(row.id, row)));
      count += some.length;
    }
    if (count !== head.keyCount)
      throw new GatewayError(
        "GW_LOG_CORRUPT",
        `the state at record ${head.sequence} tells of ${head.keyCount} keys and comes with ${count}; nothing was begun with it`,
      );
    await write(() => {
      for (const { position, reason, maybeSent } of skipped)
        void skips.put(position, { kind: "skip", position, reason, maybeSent });
      void heads.put("head", head);
      void layouts.put("layout", layout);
    });
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
    async bodies(fromSequence) {
      const found = new Set<string>();
      // Ends when a step is not full.
      for (let start = positionOf(fromSequence, 0), read = rowsAtOnce; read === rowsAtOnce;) {
        const rows = [...bodies.getRange({ start, limit: rowsAtOnce })];
        for (const { key, value } of rows) {
          found.add(value.toString("hex"));
          start = key + 1;
        }
        read = rows.length;
        await nextTurn();
      }
      return found;
    },
    async commit(batch: StateBatch) {
      await write(() => {
        for (const position of batch.gonePositions) void positions.remove(position);
        for (const [id, row] of batch.keys) {
          if (row === null) void keys.remove(Buffer.from(id, "hex"));
          else putKey(id, row);
        }
        for (const [sequence, list] of bySequence(batch.exceptions))
          void exceptions.put(sequence, [...(exceptions.get(sequence) ?? []), ...list]);
        for (const it of batch.exceptions) if (it.kind === "skip") void skips.put(it.position, it);
        for (const { position, sha256 } of batch.bodies) void bodies.put(position, Buffer.from(sha256, "hex"));
        void heads.put("head", batch.head);
        void layouts.put("layout", layout);
      });
    },
    cut: () => openCut(root, tables, cuts),
    async reset(state: StateAt) {
      try {
        await clear();
        await putAll(state);
      } catch (error) {
        await clear().catch(() => {}); // else the next opening does it
        throw error;
      }
    },
    async truncate(firstSequence) {
      for (const [table, end] of [
        [exceptions, firstSequence],
        [bodies, positionOf(firstSequence, 0)],
      ] as const) {
        // In steps, so that no commit waits long. Ends when a step is not full.
        for (let removed = rowsAtOnce; removed === rowsAtOnce;) {
          const old = [...table.getKeys({ start: 0, end, limit: rowsAtOnce })];
          if (old.length > 0) await write(() => old.forEach((key) => void table.remove(key)));
          removed = old.length;
        }
      }
    },
    async close() {
      if (isClosed) return;
      isClosed = true;
      // An environment that closes under a transaction ends the process.
      for (const close of cuts) close();
      await root.close();
    },
  };
}

function openCut(root: RootDatabase<Buffer, number | string>, tables: Tables, cuts: Set<() => void>): StateCut {
  const { heads, keys, positions, skips } = tables;
  root.resetReadTxn(); // the snapshot of this turn may be older than the last commit
  const transaction = root.useReadTransaction();
  let isClosed = false;
  const close = (): void => {
    if (isClosed) return;
    isClosed = true;
    transaction.done();
    cuts.delete(close);
  };
  cuts.add(close);
  const head = heads.get("head", { transaction });
  if (head === undefined) {
    close();
    throw new GatewayError("GW_INTERNAL", "there is no reader state yet to be cut");
  }
  return {
    head,
    skips: [...skips.getRange({ transaction })].map(({ value }) => value),
    async *keys() {
      // Ends when a step finds nothing more.
      for (let start = 0; ;) {
        if (isClosed)
          throw new GatewayError("GW_STOPPING", `the cut of the state at record ${head.sequence} is closed`);
        const ids = [...positions.getRange({ start, limit: cutRowsAtOnce, transaction })];
        if (ids.length === 0) return;
        const rows = ids.map(({ key, value }) => {
          start = key + 1;
          const row = keys.get(value, { transaction });
          return row === undefined ? null : decodeKeyValue(value.toString("hex"), row);
        });
        for (const row of rows) if (row !== null) yield row;
        await nextTurn();
      }
    },
    close,
  };
}

/** One step towards an empty store, of which the first takes the head; false when it is empty. Synchronous: also at the opening, before anybody reads. */
function clearSome(root: RootDatabase<Buffer, number | string>, tables: Tables): boolean {
  const all = Object.values(tables) as Database<unknown, Buffer | number | string>[];
  const found = all.map((table) => [...table.getKeys({ limit: rowsAtOnce })]);
  if (found.every((them) => them.length === 0)) return false;
  root.transactionSync(() => {
    all.forEach((table, index) => found[index]?.forEach((key) => table.removeSync(key)));
  });
  return true;
}

async function* inBatches(rows: AsyncIterable<KeyRow>): AsyncGenerator<KeyRow[]> {
  let batch: KeyRow[] = [];
  for await (const row of rows) {
    batch.push(row);
    if (batch.length < resetRowsAtOnce) continue;
    yield batch;
    batch = [];
  }
  if (batch.length > 0) yield batch;
}

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

const nextTurn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));
