// The one reader of a process: follows the log, folds each record, and feeds all appliers from a bounded buffer.

import type { Events } from "./events.ts";
import { GatewayError } from "./errors.ts";
import type { Log } from "./log/log.ts";
import type { Folded, OwnRecord, ReaderState } from "./state/state.ts";
import type { OwnMarks } from "./state/marks.ts";
import type { StateCut } from "./state/store.ts";

/** How long a fold may stay uncommitted, and how large it may grow. */
const commitEveryMs = 250;
const commitItemsMax = 20_000;

export interface ReaderParts {
  readonly log: Log;
  readonly state: ReaderState;
  readonly marks: OwnMarks;
  readonly events: Events;
  /** The record that this process has in flight. */
  readonly own: () => OwnRecord | null;
  /** Decoded records kept for appliers, bytes. */
  readonly bufferBytesMax: number;
  /** Everything below this sequence has been taken by all appliers. What nobody needs is let go at once: memory that lives long costs most. */
  readonly taken: () => number;
}

export class LogReader {
  readonly #parts: ReaderParts;
  readonly #buffer: Folded[] = [];
  #bufferBytes = 0;
  readonly #listeners: ((folded: Folded) => void)[] = [];
  readonly #arrivals: {
    readonly sequence: number;
    readonly resolve: () => void;
    readonly reject: (error: Error) => void;
  }[] = [];
  #failure: GatewayError | null = null;
  #committing: Promise<void> | null = null;
  #timer: NodeJS.Timeout | null = null;
  #done: Promise<void> = Promise.resolve();

  constructor(parts: ReaderParts) {
    this.#parts = parts;
  }

  get state(): ReaderState {
    return this.#parts.state;
  }
  /** The last record that was read, folded and handed on. */
  get sequence(): number {
    return this.#parts.state.sequence;
  }
  /** Why reading stopped for good; nothing is applied or acknowledged from then on. */
  get failure(): GatewayError | null {
    return this.#failure;
  }

  /** Called for each record, in order, before any applier can see it. */
  onFolded(listener: (folded: Folded) => void): void {
    this.#listeners.push(listener);
  }

  start(signal: AbortSignal): void {
    this.#done = this.#run(signal);
  }

  /** Resolves when the record was folded. Rejects when reading stops before. */
  reached(sequence: number): Promise<void> {
    if (this.sequence >= sequence) return Promise.resolve();
    if (this.#failure !== null) return Promise.reject(this.#failure);
    return new Promise((resolve, reject) => this.#arrivals.push({ sequence, resolve, reject }));
  }

  /**
   * Reader state exactly after a record, while reading goes on: asked for before the record is folded, or by a listener that hears of it.
   * The caller closes it, soon. Rejects with GW_CONFLICT when it is too late or another cut is on its way, and when reading or saving fails. */
  cutAt(sequence: number): Promise<StateCut> {
    if (this.#failure !== null) return Promise.reject(this.#failure);
    if (sequence < this.sequence)
      return Promise.reject(
        new GatewayError(
          "GW_CONFLICT",
          `the reader state at record ${sequence} is gone: record ${this.sequence} is folded`,
        ),
      );
    if (sequence === this.sequence) return this.#cut();
    return new Promise((resolve, reject) => {
      // Within the loop that folds: nothing is folded between the record and the cut.
      this.#arrivals.push({ sequence, resolve: () => void this.#cut().then(resolve, reject), reject });
    });
  }

  #cut(): Promise<StateCut> {
    const cut = this.#parts.state.cut();
    this.#commit();
    return cut;
  }

  /** `ahead`: not there yet. `gone`: fell out of the buffer, read the log. */
  get(sequence: number): Folded | "ahead" | "gone" {
    if (sequence > this.sequence) return "ahead";
    const first = this.#buffer[0];
    if (first === undefined || sequence < first.sequence) return "gone";
    return this.#buffer[sequence - first.sequence] ?? "gone";
  }

  /** Ends this reader for good: the log cannot be trusted any more. */
  fail(error: GatewayError): void {
    if (this.#failure !== null) return;
    this.#failure = error;
    this.#parts.events.tell({ type: "log", state: "regressed", detail: error.message });
    for (const arrival of this.#arrivals.splice(0)) arrival.reject(error);
    this.#parts.state.abandonCut(error);
  }

  async close(): Promise<void> {
    await this.#done;
    if (this.#timer !== null) clearTimeout(this.#timer);
    // Ends with the commit that no cut waits behind.
    while (this.#committing !== null) await this.#committing;
    if (this.#failure === null) await this.#parts.state.commit();
  }

  /** Ends when the signal aborts or the log cannot be trusted. */
  async #run(signal: AbortSignal): Promise<void> {
    const { log, state, marks } = this.#parts;
    try {
      for await (const record of log.read(state.sequence + 1, signal)) {
        if (this.#failure !== null) return;
        const folded = state.fold(record, this.#parts.own());
        this.#compareWithMarks(folded);
        marks.note(log.epoch, folded.sequence, folded.recordHash, folded.hash);
        this.#keep(folded);
        for (const listener of this.#listeners) listener(folded);
        for (let at = this.#arrivals.length - 1; at >= 0; at--)
          if ((this.#arrivals[at]?.sequence ?? 0) <= folded.sequence) this.#arrivals.splice(at, 1)[0]?.resolve();
        this.#commitSoon();
        if (state.uncommitted > 4 * commitItemsMax) await this.#committing;
      }
    } catch (error) {
      if (signal.aborted) return;
      this.fail(
        error instanceof GatewayError
          ? error
          : new GatewayError("GW_INTERNAL", `reading the log failed: ${String(error)}`, { cause: error }),
      );
    } finally {
      const stopped = this.#failure ?? new GatewayError("GW_STOPPING", "the gateway is stopping");
      for (const arrival of this.#arrivals.splice(0)) arrival.reject(stopped);
    }
  }

  #compareWithMarks(folded: Folded): void {
    const seen = this.#parts.marks.current;
    if (seen === null || seen.sequence !== folded.sequence || seen.recordHash === "") return;
    if (seen.epoch === this.#parts.log.epoch && seen.recordHash !== folded.recordHash)
      throw new GatewayError(
        "GW_LOG_REGRESSED",
        `record ${folded.sequence} is not the one this gateway saw before: the log was rolled back and written again`,
      );
  }

  #keep(folded: Folded): void {
    this.#buffer.push(folded);
    this.#bufferBytes += folded.bytes;
    const taken = this.#parts.taken();
    while (
      this.#buffer.length > 1 &&
      (this.#bufferBytes > this.#parts.bufferBytesMax || (this.#buffer[0]?.sequence ?? 0) < taken)
    )
      this.#bufferBytes -= this.#buffer.shift()?.bytes ?? 0;
  }

  #commitSoon(): void {
    if (this.#committing !== null) return;
    if (this.#parts.state.uncommitted > commitItemsMax) {
      this.#commit();
      return;
    }
    this.#timer ??= setTimeout(() => this.#commit(), commitEveryMs);
  }

  #commit(): void {
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.#timer = null;
    if (this.#committing !== null || this.#failure !== null) return;
    this.#committing = this.#parts.state
      .commit()
      .catch((error: unknown) => {
        // Nothing is lost: the fold goes on in memory and the next start folds again from the last commit.
        this.#parts.events.tell({ type: "warning", about: "reader state", detail: `not saved: ${String(error)}` });
      })
      .finally(() => {
        this.#committing = null;
        if (this.#parts.state.hasCut) this.#commit();
      });
  }
}
