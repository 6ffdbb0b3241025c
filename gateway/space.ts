// How full the log is, and when it will be: entries are refused at 90 % of its size, the rest is for control items.

import type { Events } from "./events.ts";
import type { Log, LogInfo } from "./log/log.ts";

const entriesShare = 0.9;
/** Once full it stays so until there is room to speak of: clients are not sent back and forth. */
const roomShare = 0.85;

export class Space {
  readonly #log: Log;
  readonly #events: Events;
  #info: LogInfo;
  #sinceBytes = 0;
  #ratePerMs = 0;
  #last: { atMs: number; bytes: number };
  #isFull = false;

  constructor(log: Log, events: Events, info: LogInfo, nowMs: number) {
    this.#log = log;
    this.#events = events;
    this.#info = info;
    this.#last = { atMs: nowMs, bytes: info.bytes };
    events.listen((fact) => {
      if (fact.type === "appended") this.#sinceBytes += fact.bytes;
      else if (fact.type === "log" && fact.state === "full") this.#isFull = true;
    });
  }

  get info(): LogInfo {
    return this.#info;
  }
  get isFull(): boolean {
    return this.#isFull || this.#info.bytes + this.#sinceBytes >= this.#info.maxBytes * entriesShare;
  }
  /** Null: it does not grow. */
  get secondsUntilFull(): number | null {
    if (this.#ratePerMs <= 0) return null;
    return Math.max(0, this.#info.maxBytes * entriesShare - this.#info.bytes) / this.#ratePerMs / 1000;
  }

  /** Called about once a second. A log that is away keeps its last figures. */
  async measure(nowMs: number): Promise<void> {
    const counted = this.#sinceBytes;
    const info = await this.#log.info().catch(() => null);
    if (info === null) return;
    this.#info = info;
    this.#sinceBytes = Math.max(0, this.#sinceBytes - counted);
    const rate = (info.bytes - this.#last.bytes) / Math.max(1, nowMs - this.#last.atMs);
    this.#ratePerMs = this.#ratePerMs === 0 ? rate : this.#ratePerMs * 0.9 + rate * 0.1;
    this.#last = { atMs: nowMs, bytes: info.bytes };
    const detail = `${info.bytes} of ${info.maxBytes} bytes`;
    if (!this.#isFull && this.isFull) this.#events.tell({ type: "log", state: "full", detail });
    else if (this.#isFull && info.bytes < info.maxBytes * roomShare) {
      this.#isFull = false;
      this.#events.tell({ type: "log", state: "room", detail });
    }
  }
}
