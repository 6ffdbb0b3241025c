// The board of one gateway: a file a document, written beside it, fsynced, renamed. What a crash leaves is the former file or the new one.

import { rmSync } from "node:fs";
import { mkdir, open, readFile, rename } from "node:fs/promises";
import { join } from "node:path";
import { GatewayError } from "../errors.ts";
import { step } from "../steps.ts";
import type { Board, Posted, Saved } from "./board.ts";
import { boardLost, checkName, encodeDocument, parseDocument } from "./stored.ts";

export interface FileBoardOptions {
  /** Used by it alone; the caller holds the data folder's lock. */
  readonly folder: string;
}

export async function openFileBoard({ folder }: FileBoardOptions): Promise<Board> {
  await mkdir(folder, { recursive: true, mode: 0o700 });
  return new FileBoard(folder);
}

class FileBoard implements Board {
  readonly #folder: string;
  /** Calls take turns, so that of two saves with one revision exactly one succeeds. */
  #turn: Promise<unknown> = Promise.resolve();
  /** A name may be there that is not on the disk yet: of a process that was killed, of a save that failed late. */
  #isUncertain = true;
  #isClosed = false;

  constructor(folder: string) {
    this.#folder = folder;
  }

  async load(name: string): Promise<Posted | null> {
    checkName(name);
    return await this.#inTurn(async () => {
      try {
        return await this.#read(name);
      } catch (error) {
        if (error instanceof GatewayError) throw error;
        throw new GatewayError("GW_LOG_UNAVAILABLE", `${this.#path(name)} cannot be read.`, { cause: error });
      }
    });
  }

  async save(name: string, value: unknown, revision: number): Promise<Saved> {
    checkName(name);
    return await this.#inTurn(async () => {
      try {
        if (((await this.#read(name))?.revision ?? 0) !== revision) return { kind: "conflict" };
        await this.#write(name, encodeDocument(name, { revision: revision + 1, value }));
        return { kind: "saved", revision: revision + 1 };
      } catch (cause) {
        return { kind: "unknown", cause };
      }
    });
  }

  async close(): Promise<void> {
    this.#isClosed = true;
    await this.#turn;
  }

  async #read(name: string): Promise<Posted | null> {
    if (this.#isUncertain) await this.#syncFolder();
    let bytes: Buffer;
    try {
      bytes = await readFile(this.#path(name));
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === "ENOENT") return null;
      throw error;
    }
    const { revision, value } = parseDocument(bytes, name) as { readonly revision?: unknown; readonly value?: unknown };
    if (typeof revision !== "number") throw boardLost(name, "it has no revision");
    return { value, revision };
  }

  async #write(name: string, bytes: Buffer): Promise<void> {
    const path = this.#path(name);
    try {
      const file = await open(`${path}.new`, "w", 0o600);
      try {
        await file.writeFile(bytes);
        step("board.fsync");
        await file.sync();
      } finally {
        await file.close();
      }
      step("board.rename");
      this.#isUncertain = true;
      await rename(`${path}.new`, path);
    } catch (error) {
      rmSync(`${path}.new`, { force: true });
      throw error;
    }
    await this.#syncFolder();
  }

  /** A rename counts when the folder is on the disk as well. */
  async #syncFolder(): Promise<void> {
    const folder = await open(this.#folder, "r");
    try {
      step("board.fsync");
      await folder.sync();
      this.#isUncertain = false;
    } finally {
      await folder.close();
    }
  }

  async #inTurn<T>(call: () => Promise<T>): Promise<T> {
    if (this.#isClosed) throw new GatewayError("GW_LOG_UNAVAILABLE", "The board was closed.");
    const mine = this.#turn.then(call);
    this.#turn = mine.catch(() => undefined);
    return await mine;
  }

  #path(name: string): string {
    return join(this.#folder, name);
  }
}
