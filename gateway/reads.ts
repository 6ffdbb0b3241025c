// Requests that one copy answers: which replica, and not before it has seen what the request may rely on.
//
// Linearizable: the read index is a position at or past everything acknowledged before the read arrived. Where the log's tail is exact it is the
// tail, looked up after the arrival, one look-up for all that wait; elsewhere the place of a record whose first publish began after the arrival.

import type { Appender } from "./appender.ts";
import type { Clock } from "./clock.ts";
import { endOf } from "./entry.ts";
import { GatewayError } from "./errors.ts";
import type { Log } from "./log/log.ts";
import type { LogReader } from "./reader.ts";
import type { Replica } from "./replica.ts";
import type { Replicas } from "./replicas.ts";

export type Need =
  | { readonly kind: "any" }
  /** Everything up to a position this client has seen. */
  | { readonly kind: "position"; readonly position: number }
  | { readonly kind: "linearizable" };

const runMax = 32;
/** So many requests more than the least busy replica may one have. */
const aheadMax = 8;

export interface ReadsParts {
  readonly log: Log;
  readonly reader: LogReader;
  readonly appender: Appender;
  readonly replicas: Replicas;
  readonly clock: Clock;
  readonly queueWaitMs: number;
}

export class Reads {
  readonly #pending = new Set<{ readonly untilMs: number; readonly reject: (error: Error) => void }>();
  #isWatching = false;
  readonly #parts: ReadsParts;
  /** The look-up that has not been sent yet; whoever arrives now joins it. */
  #next: Promise<number> | null = null;
  #lookingUp: Promise<number> | null = null;
  #last: Replica | null = null;
  /** How many in a row `#last` was given. */
  #run = 0;

  constructor(parts: ReadsParts) {
    this.#parts = parts;
  }

  /** A live replica that satisfies the need. Rejects with GW_NO_REPLICA, GW_READ_TOO_NEW or GW_LOG_UNAVAILABLE: the request was not sent. */
  async choose(
    need: Need,
    orderKeys: readonly string[],
    affinity: string | null,
    except: ReadonlySet<string>,
  ): Promise<Replica> {
    if (need.kind === "any") return this.#pick(affinity, except);
    const index = need.kind === "position" ? need.position : await this.#index();
    const ready = this.#preferred(affinity, except).filter((it) => it.isSure() && it.hasApplied(index, orderKeys));
    if (ready.length > 0) return this.#among(ready, affinity);
    return this.#firstThere(index, orderKeys, affinity, except);
  }

  #candidates(affinity: string | null, except: ReadonlySet<string>): readonly Replica[] {
    const live = this.#parts.replicas.liveReplicas().filter((it) => !except.has(it.name));
    if (affinity === null || live.length === 0) return live;
    // The same client meets the same copy, as long as the live set stays.
    const chosen = live[hash(affinity) % live.length];
    return chosen === undefined ? live : [chosen];
  }

  /** One that this process feeds is sure at once; what another gateway feeds has to be asked for. */
  #preferred(affinity: string | null, except: ReadonlySet<string>): readonly Replica[] {
    const candidates = this.#candidates(affinity, except);
    const own = candidates.filter((it) => it.isOwn);
    return own.length > 0 ? own : candidates;
  }

  #pick(affinity: string | null, except: ReadonlySet<string>): Replica {
    const candidates = this.#preferred(affinity, except);
    if (candidates.length === 0) throw none(this.#parts.replicas);
    return this.#among(candidates, affinity);
  }

  /**
   * The one that was chosen last, for a run of requests, unless it has clearly more to do than the least busy one: requests that come together and
   * meet in one process cost less than the same spread over all (a quarter more reads a second, measured), and none is left waiting behind slow ones.
   */
  #among(candidates: readonly Replica[], affinity: string | null): Replica {
    const [first] = candidates as readonly [Replica];
    if (affinity !== null || candidates.length === 1) return first;
    let least = first;
    for (const it of candidates) if (it.reading < least.reading) least = it;
    const last = candidates.find((it) => it === this.#last);
    if (last !== undefined && this.#run < runMax && last.reading <= least.reading + aheadMax) {
      this.#run++;
      return last;
    }
    const next = candidates[(candidates.indexOf(last ?? first) + 1) % candidates.length] ?? least;
    this.#last = next.reading <= least.reading + aheadMax ? next : least;
    this.#run = 1;
    return this.#last;
  }

  async #firstThere(
    index: number,
    orderKeys: readonly string[],
    affinity: string | null,
    except: ReadonlySet<string>,
  ): Promise<Replica> {
    const { clock, replicas, queueWaitMs } = this.#parts;
    const until = clock.now() + queueWaitMs;
    // Ends when a replica is there, or when the time is over.
    for (;;) {
      const candidates = this.#candidates(affinity, except);
      if (
        candidates.length === 0 &&
        replicas.all.every((it) => it.state !== "live" && it.state !== "replaying" && it.state !== "lagging")
      )
        throw none(replicas);
      const left = until - clock.now();
      if (left <= 0)
        throw candidates.length === 0
          ? none(replicas)
          : new GatewayError(
              "GW_READ_TOO_NEW",
              `no live replica has applied position ${index} within ${queueWaitMs} ms`,
              { position: index, retryAfterS: 1 },
            );
      const arrivals = candidates.map(async (it) =>
        (await it.whenApplied(index, orderKeys)) && (await it.whenSure()) ? it : null,
      );
      const first = await Promise.race([
        firstNonNull(arrivals),
        clock.sleep(candidates.length === 0 ? Math.min(left, 50) : left).then(() => null),
      ]);
      if (first !== null) return first;
      await clock.sleep(1);
    }
  }

  async #index(): Promise<number> {
    const { log, appender, reader } = this.#parts;
    if (reader.failure !== null)
      throw new GatewayError(reader.failure.code, reader.failure.message, { status: 503, retryAfterS: 30 });
    if (log.kind === "embedded") return endOf(await log.tail());
    return endOf(await this.#inTime(this.#lookUp(() => (log.isTailExact ? log.tail() : appender.barrier()))));
  }

  /** A log that is away holds no read for longer than it may wait. */
  #inTime(lookUp: Promise<number>): Promise<number> {
    const { clock, queueWaitMs } = this.#parts;
    return new Promise((resolve, reject) => {
      const pending = { untilMs: clock.now() + queueWaitMs, reject };
      this.#pending.add(pending);
      void this.#watch();
      lookUp.then(resolve, reject).finally(() => this.#pending.delete(pending));
    });
  }

  /** One coarse timer for all that wait. Ends when nobody does. */
  async #watch(): Promise<void> {
    if (this.#isWatching) return;
    this.#isWatching = true;
    const { clock, queueWaitMs } = this.#parts;
    while (this.#pending.size > 0) {
      await clock.sleep(queueWaitMs / 20);
      for (const pending of this.#pending) {
        if (clock.now() < pending.untilMs) continue;
        this.#pending.delete(pending);
        const why = `the log did not say within ${queueWaitMs} ms how far a read must see`;
        pending.reject(new GatewayError("GW_LOG_UNAVAILABLE", why, { retryAfterS: 1 }));
      }
    }
    this.#isWatching = false;
  }

  /** One look-up for all reads that wait for it; one that is under way began too early for who comes now. */
  #lookUp(begin: () => Promise<number>): Promise<number> {
    if (this.#next !== null) return this.#next;
    const before = this.#lookingUp;
    const next = (before ?? Promise.resolve(0))
      .catch(() => 0)
      .then(() => {
        this.#next = null;
        const lookUp = begin();
        this.#lookingUp = lookUp;
        const done = (): void => {
          if (this.#lookingUp === lookUp) this.#lookingUp = null;
        };
        lookUp.then(done, done);
        return lookUp;
      });
    this.#next = next;
    return next;
  }
}

function firstNonNull<T>(promises: readonly Promise<T | null>[]): Promise<T | null> {
  return new Promise((resolve) => {
    let left = promises.length;
    if (left === 0) return; // the caller's own timer ends the wait
    for (const promise of promises)
      void promise.then((value) => {
        left--;
        if (value !== null || left === 0) resolve(value);
      });
  });
}

const none = (replicas: Replicas): GatewayError =>
  new GatewayError(
    "GW_NO_REPLICA",
    `no replica is live: ${replicas.all.map((it) => `${it.name} is ${it.state}`).join(", ")}`,
    {
      outcome: "not-executed",
      retryAfterS: 1,
    },
  );

function hash(text: string): number {
  let value = 0;
  for (let at = 0; at < text.length; at++) value = (Math.imul(value, 31) + text.charCodeAt(at)) >>> 0;
  return value;
}
