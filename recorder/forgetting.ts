// `log.truncate: applied`, for services whose state cannot be captured: once the log is crowded it forgets what every copy has applied.

import type { Clock } from "../gateway/clock.ts";
import { GatewayError } from "../gateway/errors.ts";
import type { LogReader } from "../gateway/reader.ts";
import type { Replicas } from "../gateway/replicas.ts";
import type { Space } from "../gateway/space.ts";
import { cutAtMark } from "./markedcut.ts";
import { truncateTo } from "./truncation.ts";
import type { TruncationParts } from "./truncation.ts";

export interface ForgettingParts extends TruncationParts {
  readonly replicas: Replicas;
  readonly reader: LogReader;
  readonly space: Space;
  readonly clock: Clock;
  /** Of several gateways this one truncates now. */
  readonly leads: () => boolean;
}

const everyMs = 2000;
/** While there is room nothing is forgotten: people look at it. */
const crowded = 0.7;
const applyMs = 30_000;

export class Forgetting {
  readonly #parts: ForgettingParts;
  readonly #stop = new AbortController();
  #done: Promise<void> = Promise.resolve();

  constructor(parts: ForgettingParts) {
    this.#parts = parts;
  }

  start(): void {
    this.#done = this.#run();
  }
  async close(): Promise<void> {
    this.#stop.abort();
    await this.#done;
  }

  /** Ends with `close`. */
  async #run(): Promise<void> {
    const { clock, events, space } = this.#parts;
    const { signal } = this.#stop;
    for (; !signal.aborted; await clock.sleep(everyMs, signal).catch(() => undefined)) {
      if (space.info.bytes <= space.info.maxBytes * crowded) continue;
      await this.#forget().catch((error: unknown) => {
        if (!signal.aborted)
          events.tell({
            type: "warning",
            about: "log.truncate: applied",
            detail: error instanceof Error ? error.message : String(error),
          });
      });
    }
  }

  /** A copy that is away keeps what it still needs: the log never goes past it. */
  async #forget(): Promise<void> {
    const { clock, leads, log, reader, replicas } = this.#parts;
    if (!leads()) return;
    if (reader.failure !== null || !log.isReachable() || replicas.live.length < replicas.all.length) return;
    const marked = await cutAtMark([], "truncation", this.#parts);
    if (marked === null) throw new GatewayError("GW_LOG_UNAVAILABLE", "the mark was not read back");
    const { cut, position } = marked;
    try {
      const until = clock.now() + applyMs;
      while (replicas.all.some((it) => it.applied < position)) {
        if (clock.now() > until || this.#stop.signal.aborted) return;
        await clock.sleep(20, this.#stop.signal);
      }
      const { head, skips } = cut;
      await truncateTo({ head, skips, keys: cut.keys() }, "every replica has applied it", this.#parts);
    } finally {
      cut.close();
    }
  }
}
