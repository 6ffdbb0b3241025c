// A place whose state is one stream, as a tree of one file named `state`: what command.ts and http.ts have in common.
//
// What such a place can promise of the port's law, and what it cannot: `put` feeds the live state at once. Nothing is kept aside and nothing
// can be taken back. A `put` that rejects, is aborted or dies with its process leaves the live state unknown: neither the former one nor the
// new one, so whoever called it must put a whole state again before the copy is used. Once `put` has resolved, `commit` only says so.

import { GatewayError } from "../../gateway/errors.ts";
import type { Place, Readable, Replacement, TreeEntry } from "./place.ts";

export interface StateStream {
  /** For people. */
  readonly where: string;
  /** Throws GW_SNAPSHOT_FAILED, at its end too: what was yielded before is then no state. */
  dump(signal: AbortSignal): AsyncIterable<Buffer>;
  /** Resolves when the service has taken all of it; rejects with GW_RESTORE_FAILED, or with what `content` threw. */
  restore(content: AsyncIterable<Buffer>, signal: AbortSignal): Promise<void>;
}

const fileName = "state";

export function createSinglePlace(stream: StateStream): Place {
  return {
    isSequential: true,
    where: stream.where,
    skipped: [],
    async *read(signal: AbortSignal): AsyncGenerator<Readable> {
      signal.throwIfAborted();
      // A constant mode, and no size before it was read: of equal copies everything here must be equal.
      yield {
        entry: { kind: "file", path: fileName, mode: 0o600, sizeBytes: 0, stamp: null },
        content: () => stream.dump(signal),
      };
    },
    replace: (signal) => {
      signal.throwIfAborted();
      return Promise.resolve(new SingleReplacement(stream, signal));
    },
    putBack: () => Promise.resolve(false),
  };
}

class SingleReplacement implements Replacement {
  readonly #stream: StateStream;
  readonly #given = new AbortController();
  readonly #signal: AbortSignal;
  #putting: Promise<void> | null = null;
  #isWhole = false;

  constructor(stream: StateStream, signal: AbortSignal) {
    this.#stream = stream;
    this.#signal = AbortSignal.any([signal, this.#given.signal]);
  }

  async put(entry: TreeEntry, content: AsyncIterable<Buffer> | null): Promise<void> {
    if (entry.kind !== "file" || entry.path !== fileName || content === null) {
      throw new GatewayError(
        "GW_RESTORE_FAILED",
        `the snapshot holds the ${entry.kind} ${JSON.stringify(entry.path)}, but ${this.#stream.where} takes one file named "${fileName}": ` +
          `it was captured in another way. Nothing was restored. Mend: restore with the snapshots.capture that it was taken with`,
      );
    }
    if (this.#putting !== null)
      throw new GatewayError("GW_RESTORE_FAILED", `${this.#stream.where} was given two states`);
    this.#signal.throwIfAborted();
    this.#putting = this.#stream.restore(content, this.#signal);
    await this.#putting;
    this.#isWhole = true;
  }

  commit(): Promise<void> {
    if (this.#isWhole) return Promise.resolve();
    const known =
      this.#putting === null
        ? "nothing was restored"
        : "its state is unknown now and must be restored again before it is used";
    return Promise.reject(
      new GatewayError("GW_RESTORE_FAILED", `${this.#stream.where} was not given a whole "${fileName}": ${known}`),
    );
  }

  async abort(): Promise<void> {
    this.#given.abort(new GatewayError("GW_RESTORE_FAILED", `the restore by ${this.#stream.where} was given up`));
    await this.#putting?.catch(() => {});
  }
}
