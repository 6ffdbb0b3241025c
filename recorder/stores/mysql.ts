// Snapshots in MySQL or MariaDB: an object is a row that names a generation, and the generation's rows hold its bytes.
//
// A put writes a new generation and switches to it in one transaction: whatever dies before its commit, the former object stays. As durable
// as the server is (innodb_flush_log_at_trx_commit = 1, its default). READ COMMITTED: no gap locks, so that puts do not wait for each other.
// Two rows of bytes fill a page of InnoDB. Larger ones would be twice as fast to read and need 15 % less room; but they lie outside of their
// page, and to take one back needs a free page: with a full disk MariaDB (10.11.18) found none in its rollback, and aborted.

import { createHash, randomBytes } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";

import { createPool } from "mysql2/promise";
import type { Pool, PoolConnection, RowDataPacket } from "mysql2/promise";

import { GatewayError } from "../../gateway/errors.ts";
import { corrupt, openGuarded, unavailable, unlessAborted } from "./guarded.ts";
import type { Backing, Range } from "./guarded.ts";
import type { SnapshotStore, StoreOptions, StoredObject } from "./store.ts";

export type MysqlOptions = Extract<StoreOptions, { kind: "mysql" }>;

export interface MysqlLimits {
  readonly callMs: number;
  /** What a lost connection or a deadlock ended is tried again for so long. */
  readonly retryMs: number;
}

/** The database has to exist; its tables are made. Rejects with GW_STORE_UNAVAILABLE. */
export function openMysqlStore(
  options: MysqlOptions,
  limits: MysqlLimits = { callMs: 60_000, retryMs: 5_000 },
): Promise<SnapshotStore> {
  return openGuarded(new MysqlBacking(options, limits));
}

const connectionsMax = 4;
const waitingMax = 1_000;
const batchBytesMax = 512 * 1024;
const pageObjects = 1_000;
const closeMs = 2_000;

// Names have at most 515 bytes; `former` is the generation that the last put replaced.
const tables = [
  `CREATE TABLE IF NOT EXISTS gateway_objects (
    name VARBINARY(520) NOT NULL PRIMARY KEY,
    size INT UNSIGNED NOT NULL,
    sha256 BINARY(32) NOT NULL,
    stored_at BIGINT UNSIGNED NOT NULL,
    row_bytes INT UNSIGNED NOT NULL,
    generation BINARY(16) NOT NULL,
    former BINARY(16) NULL
  ) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4`,
  `CREATE TABLE IF NOT EXISTS gateway_object_rows (
    generation BINARY(16) NOT NULL,
    n INT UNSIGNED NOT NULL,
    bytes MEDIUMBLOB NOT NULL,
    PRIMARY KEY (generation, n)
  ) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 ROW_FORMAT=DYNAMIC`,
];

const nowMs = "CAST(ROUND(UNIX_TIMESTAMP(NOW(3)) * 1000) AS UNSIGNED)";
const switchTo =
  `INSERT INTO gateway_objects (name, size, sha256, row_bytes, generation, stored_at) VALUES (?, ?, ?, ?, ?, ${nowMs}) ` +
  // From the left to the right: `former` takes the generation before it changes.
  `ON DUPLICATE KEY UPDATE former = generation, size = ?, sha256 = ?, row_bytes = ?, generation = ?, stored_at = ${nowMs}`;

class MysqlBacking implements Backing {
  readonly kind = "mysql";
  readonly where: string;
  readonly callMs: number;
  readonly #options: MysqlOptions;
  readonly #retryMs: number;
  readonly #pool: Pool;
  readonly #connections = new Set<PoolConnection>();
  #rowBytes = 0;
  #batchRows = 0;

  constructor(options: MysqlOptions, limits: MysqlLimits) {
    const { host, port, user, password, database } = options;
    this.#options = options;
    this.where = `mysql://${user}@${host}:${port}/${database}`;
    this.callMs = limits.callMs;
    this.#retryMs = limits.retryMs;
    this.#pool = createPool({
      host,
      port,
      user,
      password,
      database,
      connectionLimit: connectionsMax,
      queueLimit: waitingMax,
      connectTimeout: 10_000,
      charset: "utf8mb4",
    });
    this.#pool.on("connection", (connection) => {
      this.#connections.add(connection);
      connection.on("end", () => this.#connections.delete(connection));
    });
  }

  open(signal: AbortSignal): Promise<void> {
    return this.#with(signal, async (connection) => {
      const [found] = await connection.query<RowDataPacket[]>(
        "SELECT @@innodb_page_size AS page, @@max_allowed_packet AS packet",
      );
      const { page, packet } = found[0] as { page: number; packet: number };
      // A record has at most half a page, of which 200 bytes are plenty for all but its bytes; and no more than 8 KiB on larger pages.
      this.#rowBytes = Math.floor(Math.min(page, 16_384) / 2) - 200;
      this.#batchRows = Math.max(1, Math.floor(Math.min(batchBytesMax, packet / 2) / this.#rowBytes));
      // Not `CREATE … IF NOT EXISTS` at once: that needs a right that the user may have lost since.
      const [made] = await connection.query<RowDataPacket[]>("SHOW TABLES LIKE 'gateway\\_object%'");
      if (made.length < tables.length) for (const table of tables) await connection.query(table);
    });
  }

  put(name: string, bytes: Buffer, signal: AbortSignal): Promise<void> {
    const sha256 = createHash("sha256").update(bytes).digest();
    return this.#with(signal, async (connection) => {
      // In the order of time, so that rows are added at the table's end and fill its pages.
      const generation = Buffer.concat([
        Buffer.from(Date.now().toString(16).padStart(12, "0"), "hex"),
        randomBytes(10),
      ]);
      await connection.query("SET TRANSACTION ISOLATION LEVEL READ COMMITTED");
      await connection.beginTransaction();
      const batchBytes = this.#batchRows * this.#rowBytes;
      for (let at = 0; at < bytes.length; at += batchBytes) {
        const rows = this.#rowsOf(generation, bytes.subarray(at, at + batchBytes), at / this.#rowBytes);
        const places = rows.map(() => "(?, ?, ?)").join(", ");
        await connection.execute(
          `INSERT INTO gateway_object_rows (generation, n, bytes) VALUES ${places}`,
          rows.flat(),
        );
      }
      const row = [bytes.length, sha256, this.#rowBytes, generation];
      await connection.execute(switchTo, [Buffer.from(name), ...row, ...row]);
      await connection.execute(
        "DELETE FROM gateway_object_rows WHERE generation = (SELECT former FROM gateway_objects WHERE name = ?)",
        [Buffer.from(name)],
      );
      await connection.commit();
    });
  }

  get(name: string, range: Range | null, signal: AbortSignal): Promise<Buffer | null> {
    return this.#with(signal, async (connection) => {
      // One statement sees one state of both tables.
      const isWanted = range === null ? "" : " AND r.n BETWEEN ? DIV o.row_bytes AND ? DIV o.row_bytes";
      const [rows] = await connection.execute<ObjectRow[]>(
        "SELECT o.size, o.sha256, o.row_bytes, r.n, r.bytes FROM gateway_objects o " +
          `LEFT JOIN gateway_object_rows r ON r.generation = o.generation${isWanted} WHERE o.name = ?`,
        [...(range === null ? [] : [range.start, Math.max(range.start, range.end - 1)]), Buffer.from(name)],
      );
      return rows[0] === undefined ? null : assembled(rows, range, `The object ${name} in ${this.where}`);
    });
  }

  async *list(prefix: string, signal: AbortSignal): AsyncGenerator<StoredObject> {
    // Names are ASCII: this comes after all that begin with the prefix.
    const end = Buffer.concat([Buffer.from(prefix), Buffer.from([0xff])]);
    let after: Buffer = Buffer.alloc(0);
    // Ends with the first page that is not full.
    for (let isFull = true; isFull;) {
      const values = [Buffer.from(prefix), end, after];
      const [rows] = await this.#with(signal, (connection) =>
        connection.execute<RowDataPacket[]>(
          "SELECT name, size, stored_at FROM gateway_objects WHERE name >= ? AND name < ? AND name > ? " +
            `ORDER BY name LIMIT ${pageObjects}`,
          values,
        ),
      );
      for (const row of rows) {
        after = row["name"] as Buffer;
        yield { name: after.toString(), sizeBytes: Number(row["size"]), storedAtMs: Number(row["stored_at"]) };
      }
      isFull = rows.length === pageObjects;
    }
  }

  remove(name: string, signal: AbortSignal): Promise<void> {
    return this.#with(signal, async (connection) => {
      await connection.query("SET TRANSACTION ISOLATION LEVEL READ COMMITTED");
      await connection.beginTransaction();
      const [rows] = await connection.execute<RowDataPacket[]>(
        "SELECT generation FROM gateway_objects WHERE name = ? FOR UPDATE",
        [Buffer.from(name)],
      );
      for (const row of rows) {
        await connection.execute("DELETE FROM gateway_objects WHERE name = ?", [Buffer.from(name)]);
        await connection.execute("DELETE FROM gateway_object_rows WHERE generation = ?", [row["generation"] as Buffer]);
      }
      await connection.commit();
    });
  }

  async close(): Promise<void> {
    let timer: NodeJS.Timeout | undefined;
    const tooLong = new Promise((resolve) => (timer = setTimeout(resolve, closeMs)));
    await Promise.race([this.#pool.end(), tooLong]);
    clearTimeout(timer);
    // A server that says nothing any more does not end them either.
    for (const connection of this.#connections) connection.destroy();
  }

  failure(error: unknown, what: string): GatewayError {
    const { errno, code, message } = error as { errno?: number; code?: string; message: string };
    const { user, host, database } = this.#options;
    // ER_DISK_FULL, ER_RECORD_FILE_FULL, and "Got error 28 from storage engine".
    if (errno === 1021 || errno === 1114 || (errno === 1030 && /\b28\b/.test(message))) {
      return new GatewayError(
        "GW_STORE_FULL",
        `${what}: ${message}. Nothing was changed. Make room for the database, or keep fewer snapshots.`,
        { cause: error },
      );
    }
    if (
      code !== undefined &&
      /ACCESS_DENIED|TABLEACCESS_DENIED|DBACCESS_DENIED|SPECIFIC_ACCESS|NOT_SUPPORTED_AUTH/.test(code)
    ) {
      return unavailable(
        `${what}: the server refused it (${code}). Check the user ${user} and snapshots.storePassword, and that the user may ` +
          `CREATE, SELECT, INSERT, UPDATE and DELETE in ${database}`,
        error,
      );
    }
    if (code === "ER_BAD_DB_ERROR") {
      return unavailable(
        `${what}: there is no database ${database} at ${host}. Make it, or mend snapshots.store`,
        error,
      );
    }
    return unavailable(`${what}: ${code ?? message}`, error);
  }

  #rowsOf(generation: Buffer, bytes: Buffer, first: number): (Buffer | number)[][] {
    const rows = Math.ceil(bytes.length / this.#rowBytes);
    return Array.from({ length: rows }, (_, n) => [
      generation,
      first + n,
      bytes.subarray(n * this.#rowBytes, (n + 1) * this.#rowBytes),
    ]);
  }

  /** On a connection of its own, which is given up after any error: the server then rolls back. All that is done here may be done twice. */
  async #with<T>(signal: AbortSignal, work: (connection: PoolConnection) => Promise<T>): Promise<T> {
    const until = performance.now() + this.#retryMs;
    // Ends with a result, with an error that stays, when the time is over, or when `signal` aborts.
    for (let waitMs = 20; ; waitMs = Math.min(waitMs * 2, 500)) {
      try {
        return await this.#once(signal, work);
      } catch (error) {
        const pauseMs = waitMs * (0.5 + Math.random() / 2);
        if (!mayPass(error) || performance.now() + pauseMs > until) throw error;
        await sleep(pauseMs, undefined, { signal });
      }
    }
  }

  async #once<T>(signal: AbortSignal, work: (connection: PoolConnection) => Promise<T>): Promise<T> {
    const connecting = this.#pool.getConnection().then((connection) => {
      if (signal.aborted) connection.release();
      return connection;
    });
    const connection = await unlessAborted(signal, connecting);
    try {
      const result = await unlessAborted(signal, work(connection));
      connection.release();
      return result;
    } catch (error) {
      connection.destroy();
      throw error;
    }
  }
}

interface ObjectRow extends RowDataPacket {
  readonly size: number;
  readonly sha256: Buffer;
  readonly row_bytes: number;
  /** Null: no row of bytes is there. */
  readonly n: number | null;
  readonly bytes: Buffer | null;
}

function assembled(rows: readonly ObjectRow[], range: Range | null, what: string): Buffer {
  const { size, sha256, row_bytes: rowBytes } = rows[0]!;
  const parts = rows
    .flatMap(({ n, bytes }) => (n === null || bytes === null ? [] : [{ n, bytes }]))
    .toSorted((a, b) => a.n - b.n);
  const first = range === null ? 0 : Math.floor(range.start / rowBytes);
  const bytes = Buffer.concat(parts.map((part) => part.bytes));
  if (range !== null) return bytes.subarray(range.start - first * rowBytes, range.end - first * rowBytes);
  if (bytes.length !== size || !createHash("sha256").update(bytes).digest().equals(sha256)) {
    throw corrupt(`${what} is not what was stored: its hash is another one`);
  }
  return bytes;
}

/** The connection was lost or refused, the server was stopped, or two transactions waited for each other. */
function mayPass(error: unknown): boolean {
  const { code, fatal, message } = error as { code?: string; fatal?: boolean; message: string };
  if (code?.startsWith("ER_") === true) {
    return /LOCK_DEADLOCK|LOCK_WAIT_TIMEOUT|SERVER_SHUTDOWN|CON_COUNT|CONNECTION_KILLED|QUERY_INTERRUPTED/.test(code);
  }
  return fatal === true || /^(PROTOCOL_|E[A-Z]+$)/.test(code ?? "") || /closed state/.test(message);
}
