// Group commit: requests that come together become one record, one append, one fsync. One record is in flight per producer.
// What became of a record is told by our own reader, never by an acknowledgement: a publish that timed out may be stored.

import type { Clock } from "./clock.ts";
import { itemsMax } from "./entry.ts";
import type { Item } from "./entry.ts";
import type { ErrorCode } from "./errors.ts";
import { GatewayError } from "./errors.ts";
import type { Events } from "./events.ts";
import type { Log } from "./log/log.ts";
import type { RecordHeader } from "./record.ts";
import { encodeItem, encodeRecord, firstHash, sha256 } from "./record.ts";
import type { Folded, FoldedItem, OwnRecord } from "./state/state.ts";

const repeatAfterMs = [20, 50, 100, 250, 500, 1000];

export interface AppenderParts {
  readonly log: Log;
  readonly boot: string;
  readonly gateway: string;
  readonly clock: Clock;
  readonly events: Events;
  /** Digest of the policy that new entries are treated by. */
  readonly rules: () => string;
  readonly live: () => { readonly names: readonly string[]; readonly primary: string | null };
  /** The reader's last sequence. */
  readonly tail: () => number;
  /** The log contradicts what was seen. */
  readonly onRegressed: (error: GatewayError) => void;
}

/** Where an item came to stand, told when the reader has folded it. Called once. */
export type Placed = (placed: FoldedItem | GatewayError, folded: Folded | null) => void;

interface Waiting {
  readonly item: Item;
  readonly bytes: Buffer;
  placed: Placed;
  readonly isLast: boolean;
  isFlying: boolean;
}

interface Flight extends OwnRecord {
  readonly waiting: readonly Waiting[];
  /** A publish was made whose outcome is not known. */
  isMaybeStored: boolean;
}

export interface Ticket {
  /** True: it was not sent and never will be, and `placed` is not called. False: it may be stored; `placed` is still called when that is known. */
  withdraw(): boolean;
}

export class Appender {
  readonly #parts: AppenderParts;
  readonly #queue: Waiting[] = [];
  #flight: Flight | null = null;
  #isScheduled = false;
  #n = 0;
  #previous: Buffer = firstHash;
  #isClosed = false;
  #wake: (() => void) | null = null;
  #queuedBytes = 0;
  readonly #idle: (() => void)[] = [];

  constructor(parts: AppenderParts) {
    this.#parts = parts;
  }

  /** Bytes that wait for their record. */
  get queuedBytes(): number {
    return this.#queuedBytes;
  }
  /** What is in flight: our own reader need not read it again. */
  /** The producer of its records. */
  get boot(): string {
    return this.#parts.boot;
  }
  get flight(): OwnRecord | null {
    return this.#flight;
  }
  /** True while a publish has not been answered and is being repeated. */
  get isStuck(): boolean {
    return this.#flight?.isMaybeStored ?? false;
  }

  append(item: Item, placed: Placed): Ticket {
    if (this.#isClosed) {
      placed(new GatewayError("GW_STOPPING", "the gateway is stopping", { outcome: "not-executed" }), null);
      return { withdraw: () => true };
    }
    const bytes = encodeItem(item);
    const waiting: Waiting = { item, bytes, placed, isLast: item.kind === "mark", isFlying: false };
    this.#queue.push(waiting);
    this.#queuedBytes += bytes.length;
    this.#schedule();
    return {
      withdraw: () => {
        const at = waiting.isFlying ? -1 : this.#queue.indexOf(waiting);
        if (at < 0) return false;
        this.#queue.splice(at, 1);
        this.#queuedBytes -= bytes.length;
        if (this.#queue.length === 0 && this.#flight === null) for (const idle of this.#idle.splice(0)) idle();
        return true;
      },
    };
  }

  /** For control items that somebody waits for. */
  place(item: Item): Promise<FoldedItem> {
    return new Promise((resolve, reject) => {
      this.append(item, (placed) => (placed instanceof GatewayError ? reject(placed) : resolve(placed)));
    });
  }

  /**
   * Position-less barrier for reads: resolves with the sequence of a record whose first publish began after the call: the next one, or a tick.
   */
  async barrier(): Promise<number> {
    return new Promise((resolve, reject) => {
      // A record in flight began before; the tick joins the next one together with whatever waits.
      this.append({ kind: "tick" }, (placed, folded) =>
        placed instanceof GatewayError || folded === null ? reject(placed) : resolve(folded.sequence),
      );
    });
  }

  /** Our reader's word on every record of the log. */
  folded(folded: Folded): void {
    const flight = this.#flight;
    if (
      flight === null ||
      folded.header.producer !== this.#parts.boot ||
      folded.recordHash !== flight.hash.toString("hex")
    )
      return;
    if (folded.isDropped) {
      // Stale: it waited while the log grew by 65,536 records. All its copies are, and none counts.
      this.#land(flight, "GW_LOG_UNAVAILABLE", "the request came too late into the log to count there", "not-executed");
      this.#wake?.();
      return;
    }
    this.#flight = null;
    this.#n++;
    this.#previous = flight.hash;
    for (let index = 0; index < flight.waiting.length; index++)
      flight.waiting[index]?.placed(folded.items[index] as FoldedItem, folded);
    this.#wake?.();
    if (this.#queue.length > 0) this.#schedule();
    else for (const idle of this.#idle.splice(0)) idle();
  }

  /** Takes nothing more; resolves when everything that was taken is placed, or at the deadline. */
  async close(deadlineMs: number): Promise<void> {
    this.#isClosed = true;
    if (this.#queue.length > 0 || this.#flight !== null) {
      await Promise.race([
        new Promise<void>((resolve) => this.#idle.push(resolve)),
        this.#parts.clock.sleep(deadlineMs),
      ]);
    }
    this.#fail(this.#queue.splice(0), "GW_STOPPING", "the gateway is stopping");
    const flight = this.#flight;
    this.#flight = null;
    if (flight !== null)
      for (const it of flight.waiting)
        it.placed(
          new GatewayError("GW_STOPPING", "the gateway stopped before it knew whether the request is in the log", {
            outcome: "unknown",
          }),
          null,
        );
    this.#wake?.();
  }

  // Everything that arrives in one turn of the event loop shares a record; an idle gateway adds no delay.
  #schedule(): void {
    if (this.#isScheduled || this.#flight !== null) return;
    this.#isScheduled = true;
    setImmediate(() => {
      this.#isScheduled = false;
      if (this.#flight === null && this.#queue.length > 0) void this.#fly();
    });
  }

  #take(): Waiting[] {
    const limit = this.#parts.log.recordBytesMax - headerBytesMax;
    let bytes = 0;
    let count = 0;
    while (count < this.#queue.length && count < itemsMax) {
      const next = this.#queue[count] as Waiting;
      if (count > 0 && bytes + next.bytes.length > limit) break;
      bytes += next.bytes.length;
      count++;
      next.isFlying = true;
      if (next.isLast) break;
    }
    this.#queuedBytes -= bytes;
    return this.#queue.splice(0, count);
  }

  /** Ends when our reader saw the record, when the log surely did not take it, or at close. */
  async #fly(): Promise<void> {
    const { log, clock, events } = this.#parts;
    const waiting = this.#take();
    const base = this.#parts.tail();
    const header = this.#header(base);
    const record = encodeRecord(
      header,
      waiting.map((it) => it.bytes),
    );
    const flight: Flight = {
      header,
      items: waiting.map((it) => it.item),
      waiting,
      bytes: record,
      hash: sha256(record),
      isMaybeStored: false,
    };
    this.#flight = flight;
    const began = clock.now();
    for (let attempt = 0; this.#flight === flight; attempt++) {
      if (attempt > 0) {
        const wait = repeatAfterMs[Math.min(attempt - 1, repeatAfterMs.length - 1)] as number;
        await Promise.race([clock.sleep(wait), new Promise<void>((resolve) => (this.#wake = resolve))]);
        this.#wake = null;
        if (this.#flight !== flight) return;
      }
      const appended = await log.append(record);
      if (this.#flight !== flight) break;
      if (appended.kind === "stored") {
        if (appended.sequence <= base) {
          this.#parts.onRegressed(
            new GatewayError(
              "GW_LOG_REGRESSED",
              `a record was stored at ${appended.sequence}, at or below the tail ${base} that was known before: the log lost its end`,
            ),
          );
          this.#land(flight, "GW_LOG_REGRESSED", "the log lost its end or was replaced", "unknown");
          return;
        }
        // Stored: only our reader's word is missing, and it comes without our help.
        flight.isMaybeStored = true;
        await new Promise<void>((resolve) => (this.#wake = resolve));
        this.#wake = null;
        break;
      }
      if (appended.kind === "unknown") {
        flight.isMaybeStored = true;
        events.tell({ type: "append-repeated", attempt, cause: String(appended.cause) });
        continue;
      }
      // Certain, unless an earlier attempt of the same bytes may have been stored: then only the reader can tell.
      if (flight.isMaybeStored) continue;
      if (appended.kind === "full") {
        events.tell({ type: "log", state: "full", detail: "the log took no more records" });
        this.#land(flight, "GW_LOG_FULL", "the log is full; the request was not executed", "not-executed");
      } else this.#land(flight, appended.error.code, appended.error.message, "not-executed");
      return;
    }
    events.tell({ type: "appended", items: waiting.length, bytes: record.length, durationMs: clock.now() - began });
  }

  #land(flight: Flight, code: ErrorCode, message: string, outcome: "not-executed" | "unknown"): void {
    this.#flight = null;
    for (const it of flight.waiting) it.placed(new GatewayError(code, message, { outcome, retryAfterS: 1 }), null);
    if (this.#queue.length > 0) this.#schedule();
    else for (const idle of this.#idle.splice(0)) idle();
  }

  #fail(items: readonly Waiting[], code: ErrorCode, message: string): void {
    for (const it of items) it.placed(new GatewayError(code, message, { outcome: "not-executed" }), null);
  }

  #header(base: number): RecordHeader {
    const { names, primary } = this.#parts.live();
    return {
      producer: this.#parts.boot,
      n: this.#n,
      previous: this.#previous,
      base,
      rules: this.#parts.rules(),
      timeMs: this.#parts.clock.wallMs(),
      gateway: this.#parts.gateway,
      live: names,
      primary,
    };
  }
}

/** More than any header: 255 replicas of 255 bytes. */
const headerBytesMax = 128 * 1024;
