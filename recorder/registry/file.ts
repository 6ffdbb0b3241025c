// The registry as a file: one line of JSON a publication, each carrying the SHA-256 over the line before and its own content. Without a chain it
// keeps mistakes and silent changes out; whoever can write the file can also shorten it or write it anew.

import { createHash } from "node:crypto";
import { closeSync, fsyncSync, ftruncateSync, openSync, readFileSync, statSync, writeSync } from "node:fs";
import { join } from "node:path";
import { GatewayError } from "../../gateway/errors.ts";
import { step } from "../../gateway/steps.ts";
import { versionMax } from "./registry.ts";
import type { Publication, Published, Registry, RegistryStatus } from "./registry.ts";

export interface FileRegistryOptions {
  readonly folder: string;
  readonly service: string;
  /** Of the gateway: stands as the publisher. */
  readonly name: string;
}

/** Nothing is read or written until it is used; only `publish` writes, and one process at a time may. */
export function openFileRegistry(options: FileRegistryOptions): Registry {
  return new FileRegistry(options);
}

const zeros = "0".repeat(64);
const fields = ["service", "version", "position", "manifestHash", "previousHash", "hash", "uri", "publisher"] as const;

interface Row extends Publication {
  readonly publisher: string;
  /** SHA-256 over the line before's and this one's other fields. */
  readonly line: string;
}

interface Content {
  readonly rows: readonly Row[];
  /** Of whole lines: what is behind was being written as the process ended. */
  readonly sizeBytes: number;
  /** Of the file that was read; another one means that it has to be read again. */
  readonly stamp: string;
}

class FileRegistry implements Registry {
  readonly kind = "file";
  readonly chainId = null;
  readonly contract = null;
  readonly #options: FileRegistryOptions;
  readonly #path: string;
  #content: Content = { rows: [], sizeBytes: 0, stamp: "" };
  #errors = 0;
  #isClosed = false;

  constructor(options: FileRegistryOptions) {
    this.#options = options;
    this.#path = join(options.folder, "registry.log");
  }

  publish(publication: Publication, signal: AbortSignal): Promise<Published> {
    return this.#counted(() => {
      if (signal.aborted) throw this.#error("GW_REGISTRY_UNAVAILABLE", "interrupted before anything was written");
      const { rows, sizeBytes } = this.#read();
      const standing = rowOf(rows, publication.version);
      if (standing === undefined) return published(this.#append(publication, rows.at(-1), sizeBytes));
      const wrong = fields.slice(0, -2).find((field) => standing[field] !== publication[field as keyof Publication]);
      if (wrong === undefined) return published(standing);
      throw this.#error(
        "GW_REGISTRY_REFUSED",
        `version ${publication.version} stands with the ${wrong} ${standing[wrong]}, not with ${publication[wrong as keyof Publication]}`,
      );
    });
  }

  find(version: number): Promise<Published | null> {
    return this.#counted(() => publishedOrNull(rowOf(this.#read().rows, version)));
  }

  /** One publication is enough: there is nothing that could wait for others. */
  othersFor(_publication: Publication): Promise<readonly string[]> {
    return this.#counted(() => {
      this.#read();
      return [];
    });
  }

  latest(): Promise<Published | null> {
    return this.#counted(() => publishedOrNull(this.#read().rows.at(-1)));
  }

  history(fromVersion: number, limit: number): Promise<readonly Published[]> {
    return this.#counted(() => {
      const { rows } = this.#read();
      const from = Math.max(0, fromVersion - firstOf(rows));
      return rows.slice(from, from + limit).map(published);
    });
  }

  async status(): Promise<RegistryStatus> {
    let trouble: string | null = null;
    try {
      this.#read();
    } catch (error) {
      trouble = error instanceof Error ? error.message : String(error);
    }
    const isReachable = trouble === null;
    const errors = this.#errors;
    return { kind: "file", where: this.#path, chainId: null, isReachable, trouble, balanceWei: null, errors };
  }

  async close(): Promise<void> {
    this.#isClosed = true;
  }

  /** Durable when it returns. */
  #append(publication: Publication, former: Row | undefined, sizeBytes: number): Row {
    const fault = faultOf(publication, this.#options.service, former);
    if (fault !== null) throw this.#error("GW_REGISTRY_REFUSED", fault);
    const content = { ...publication, publisher: this.#options.name };
    const row: Row = { ...content, line: hashOf(former?.line ?? zeros, content) };
    try {
      const bytes = Buffer.from(`${JSON.stringify(inOrder(row))}\n`);
      this.#write(bytes, sizeBytes);
    } catch (cause) {
      throw this.#error(
        "GW_REGISTRY_UNAVAILABLE",
        `version ${publication.version} cannot be written (${(cause as NodeJS.ErrnoException).code ?? "unknown error"}): nothing is published until it can`,
        cause,
      );
    }
    return row;
  }

  #write(bytes: Buffer, at: number): void {
    const isNew = at === 0;
    const file = openSync(this.#path, "a+", 0o600);
    try {
      // What a crash left behind the last whole line goes first.
      ftruncateSync(file, at);
      step("registry.append");
      try {
        let written = 0;
        // Ends when all is written: a disk that fills up writes a part, and then fails.
        while (written < bytes.length) written += writeSync(file, bytes, written);
        step("registry.fsync");
        fsyncSync(file);
      } catch (error) {
        ftruncateSync(file, at);
        throw error;
      }
    } finally {
      closeSync(file);
    }
    if (!isNew) return;
    const folder = openSync(this.#options.folder, "r");
    try {
      step("registry.fsync");
      fsyncSync(folder);
    } finally {
      closeSync(folder);
    }
  }

  /** As it is now: another process may have written, and nobody may have changed it. */
  #read(): Content {
    if (this.#isClosed) throw this.#error("GW_REGISTRY_UNAVAILABLE", "the registry is closed");
    try {
      const stamp = stampOf(this.#path);
      if (stamp !== this.#content.stamp) this.#content = { ...this.#parse(readFileSync(this.#path)), stamp };
    } catch (cause) {
      if (cause instanceof GatewayError) throw cause;
      if ((cause as NodeJS.ErrnoException).code !== "ENOENT")
        throw this.#error(
          "GW_REGISTRY_UNAVAILABLE",
          `cannot be read (${(cause as NodeJS.ErrnoException).code ?? "unknown error"})`,
          cause,
        );
      this.#content = { rows: [], sizeBytes: 0, stamp: "" };
    }
    return this.#content;
  }

  #parse(bytes: Buffer): Omit<Content, "stamp"> {
    const sizeBytes = bytes.lastIndexOf(0x0a) + 1;
    const rows: Row[] = [];
    const lines = bytes.toString("utf8", 0, sizeBytes).split("\n").slice(0, -1);
    for (const [i, line] of lines.entries()) {
      const row = parseRow(line);
      const former = rows.at(-1);
      const fault =
        row === null
          ? "it is no line of a registry"
          : row.line !== hashOf(former?.line ?? zeros, row)
            ? "its hash is not that of its content and the line before"
            : faultOf(row, this.#options.service, former);
      if (row === null || fault !== null)
        throw this.#error(
          "GW_SNAPSHOT_CORRUPT",
          `line ${i + 1} was changed after it was written: ${fault}; the lines before it are whole`,
        );
      rows.push(row);
    }
    return { rows, sizeBytes };
  }

  async #counted<T>(work: () => T): Promise<T> {
    try {
      return work();
    } catch (error) {
      this.#errors += 1;
      throw error;
    }
  }

  #error(
    code: "GW_REGISTRY_REFUSED" | "GW_REGISTRY_UNAVAILABLE" | "GW_SNAPSHOT_CORRUPT",
    why: string,
    cause?: unknown,
  ): GatewayError {
    return new GatewayError(code, `the registry ${this.#path}: ${why}`, { cause });
  }
}

/** Of the line, which begins anywhere; 0 while it is empty. */
const firstOf = (rows: readonly Row[]): number => rows[0]?.version ?? 0;
const rowOf = (rows: readonly Row[], version: number): Row | undefined => rows[version - firstOf(rows)];

/** The law of the line; null: it may stand there. */
function faultOf(
  { service, version, position, manifestHash, previousHash, hash, uri }: Publication,
  expected: string,
  former: Row | undefined,
): string | null {
  if (service !== expected) return `the publication is of ${service}, the registry of ${expected}`;
  if (!Number.isSafeInteger(version) || version < 0 || version > versionMax) return `${version} is no version`;
  if (former !== undefined && version !== former.version + 1)
    return `version ${version} cannot be published: the next one is ${former.version + 1}`;
  if (!Number.isSafeInteger(position) || position < 0) return `${position} is no position`;
  if (former !== undefined && position < former.position)
    return `position ${position} lies below ${former.position}, that of the version before`;
  if (![manifestHash, previousHash, hash].every((one) => /^[0-9a-f]{64}$/.test(one)))
    return "a hash is not 64 hex digits";
  if (manifestHash === zeros) return "the manifest's hash is zero";
  const previous = former?.manifestHash ?? zeros;
  if (previousHash !== previous)
    return former === undefined
      ? `version ${version} builds on ${previousHash}: the first of a line builds on none, and names zeros`
      : `version ${version} builds on ${previousHash}, the manifest of the version before is ${previous}`;
  return Buffer.byteLength(uri) > 256 ? "the uri has more than 256 bytes" : null;
}

/** Over a list, so that the order of the keys of a line does not matter and none can be added. */
function hashOf(former: string, row: Omit<Row, "line">): string {
  return createHash("sha256")
    .update(JSON.stringify([former, ...fields.map((field) => row[field])]))
    .digest("hex");
}

const inOrder = (row: Row): object =>
  Object.fromEntries([...fields, "line" as const].map((field) => [field, row[field]]));

function parseRow(line: string): Row | null {
  try {
    const value: unknown = JSON.parse(line);
    const isRow = typeof value === "object" && value !== null && JSON.stringify(inOrder(value as Row)) === line;
    return isRow ? (value as Row) : null;
  } catch {
    return null;
  }
}

const publishedOrNull = (row: Row | undefined): Published | null => (row === undefined ? null : published(row));

function published({ line: _line, publisher, ...publication }: Row): Published {
  return { ...publication, publishers: [publisher], quorum: 1, isFinal: true, transaction: null, block: null };
}

function stampOf(path: string): string {
  const { dev, ino, size, mtimeNs, ctimeNs } = statSync(path, { bigint: true });
  return [dev, ino, size, mtimeNs, ctimeNs].join(":");
}
