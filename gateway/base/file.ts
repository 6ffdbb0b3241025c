// The base in a file beside the embedded log: written beside it, fsynced, renamed. What a crash leaves is the former file or the new one.

import { mkdirSync, rmSync } from "node:fs";
import { open, rename, rm } from "node:fs/promises";
import type { FileHandle } from "node:fs/promises";
import { join } from "node:path";
import { GatewayError } from "../errors.ts";
import { step } from "../steps.ts";
import type { Base, Bases } from "./base.ts";
import { encodeBase, keysOfBase, refuseOlder, verifyBase } from "./stored.ts";
import type { VerifiedBase } from "./stored.ts";

export interface FileBasesOptions {
  /** Used by it alone; the caller holds the data folder's lock. */
  readonly folder: string;
}

export async function openFileBases({ folder }: FileBasesOptions): Promise<Bases> {
  mkdirSync(folder, { recursive: true, mode: 0o700 });
  rmSync(join(folder, "base.new"), { force: true }); // of a save that a crash cut off
  return new FileBases(folder);
}

const pieceBytes = 256 * 1024;

class FileBases implements Bases {
  readonly #folder: string;
  readonly #path: string;
  readonly #place: string;
  /** Open for bases whose rows were not read to the end. */
  readonly #files = new Set<FileHandle>();
  #isSaving = false;
  #isClosed = false;

  constructor(folder: string) {
    this.#folder = folder;
    this.#path = join(folder, "base");
    this.#place = `the base in ${this.#path}`;
  }

  async save(base: Base): Promise<void> {
    this.#checkOpen();
    if (this.#isSaving) throw new GatewayError("GW_CONFLICT", `another base is being written to ${this.#folder}`);
    this.#isSaving = true;
    try {
      refuseOlder(base, await this.#storedSequence());
      await this.#write(base);
      await this.#named();
    } catch (error) {
      await rm(`${this.#path}.new`, { force: true }).catch(() => {}); // else the next opening does it
      throw this.#translated(error, `the base at record ${base.head.sequence} was not kept`);
    } finally {
      this.#isSaving = false;
    }
  }

  async #write(base: Base): Promise<void> {
    const file = await open(`${this.#path}.new`, "w", 0o600);
    try {
      for await (const piece of encodeBase(base)) await file.writeFile(piece); // goes on where the last one ended
      step("base.fsync");
      await file.sync();
    } finally {
      await file.close();
    }
  }

  /** The rename counts when the folder is on the disk as well. */
  async #named(): Promise<void> {
    step("base.rename");
    await rename(`${this.#path}.new`, this.#path);
    const folder = await open(this.#folder, "r");
    try {
      step("base.fsync");
      await folder.sync();
    } finally {
      await folder.close();
    }
  }

  async #storedSequence(): Promise<number | null> {
    try {
      const found = await this.#verified();
      if (found === null) return null;
      await this.#close(found.file);
      return found.verified.head.sequence;
    } catch (error) {
      if (error instanceof GatewayError && error.code === "GW_LOG_CORRUPT") return null;
      throw error;
    }
  }

  async load(): Promise<Base | null> {
    this.#checkOpen();
    const found = await this.#verified();
    if (found === null) return null;
    const { file, verified } = found;
    // The file that was verified, also when another one has its name by then.
    const keys = this.#closing(file, keysOfBase(pieces(file), verified, this.#place));
    return { head: verified.head, skips: verified.skips, keys };
  }

  async #verified(): Promise<{ readonly file: FileHandle; readonly verified: VerifiedBase } | null> {
    const file = await this.#opened();
    if (file === null) return null;
    this.#files.add(file);
    try {
      return { file, verified: await verifyBase(pieces(file), this.#place) };
    } catch (error) {
      await this.#close(file);
      throw this.#translated(error, "it cannot be read");
    }
  }

  async #opened(): Promise<FileHandle | null> {
    try {
      return await open(this.#path, "r");
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === "ENOENT") return null;
      throw this.#translated(error, "it cannot be opened");
    }
  }

  async *#closing<T>(file: FileHandle, rows: AsyncIterable<T>): AsyncGenerator<T> {
    try {
      yield* rows;
    } catch (error) {
      throw this.#translated(error, "it cannot be read");
    } finally {
      await this.#close(file);
    }
  }

  /** What the source of the rows says passes as it is. */
  #translated(error: unknown, what: string): unknown {
    const { code, syscall } = error as NodeJS.ErrnoException;
    if (error instanceof GatewayError || syscall === undefined) return error;
    if (code === "ENOSPC" || code === "EDQUOT")
      return new GatewayError("GW_DISK_FULL", `The disk of ${this.#folder} is full: ${what}; the former one stays.`, {
        cause: error,
      });
    return new GatewayError("GW_INTERNAL", `${this.#place}: ${what} (${code}).`, { cause: error });
  }

  async #close(file: FileHandle): Promise<void> {
    if (this.#files.delete(file)) await file.close();
  }

  #checkOpen(): void {
    if (this.#isClosed) throw new GatewayError("GW_STOPPING", `The base in ${this.#folder} is closed.`);
  }

  async close(): Promise<void> {
    this.#isClosed = true;
    for (const file of this.#files) await this.#close(file);
  }
}

/** A new buffer each: what was yielded may be held. */
async function* pieces(file: FileHandle): AsyncGenerator<Buffer> {
  // Ends at the end of the file.
  for (let at = 0; ;) {
    const { bytesRead, buffer } = await file.read(Buffer.allocUnsafe(pieceBytes), 0, pieceBytes, at);
    if (bytesRead === 0) return;
    at += bytesRead;
    yield buffer.subarray(0, bytesRead);
  }
}
