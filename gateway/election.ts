// One of the gateways does what must be done once: it captures, publishes, truncates, audits. Who that is stands in a document that is changed by
// compare-and-set and renewed while its holder lives; whoever sees it unchanged for a whole lease may take it. Being two for a moment would cost
// work and no more: versions have one name each in the store, the registry takes each once.

import type { Board } from "./board/board.ts";
import type { Clock } from "./clock.ts";

export interface ElectionParts {
  readonly board: Board;
  readonly name: string;
  readonly boot: string;
  readonly leaseMs: number;
  readonly clock: Clock;
  /** Whether this gateway could do the work now: one that cannot leaves it to others. */
  readonly isAble: () => boolean;
}

interface Holder {
  readonly boot: string | null;
  readonly name: string;
  /** Grows with each renewal, so that the document changes. */
  readonly term: number;
}

const documentName = "recorder";
/** A holder that was not able for so long gives it up. */
const unableMs = 5000;

export class Election {
  readonly #parts: ElectionParts;
  readonly #stop = new AbortController();
  #done: Promise<void> = Promise.resolve();
  #leadsUntilMs = Number.NEGATIVE_INFINITY;
  #holder: string | null = null;

  constructor(parts: ElectionParts) {
    this.#parts = parts;
  }

  /** By the monotonic clock, and from the sending of the last renewal: whoever sleeps through it does not lead when it wakes. */
  get leads(): boolean {
    return this.#parts.clock.now() < this.#leadsUntilMs;
  }
  /** The name of the gateway that holds it, as last seen; null: nobody was seen to. */
  get holder(): string | null {
    return this.#holder;
  }

  start(): void {
    this.#done = this.#run();
  }

  /** Gives it up, so that the next one need not wait. */
  async close(): Promise<void> {
    this.#stop.abort();
    await this.#done;
  }

  /** Ends with `close`. */
  async #run(): Promise<void> {
    const { board, boot, clock, isAble, leaseMs, name } = this.#parts;
    const { signal } = this.#stop;
    let seen = { revision: -1, atMs: clock.now() };
    let ableMs = clock.now();
    let term = 0;
    for (; !signal.aborted; await clock.sleep(leaseMs / 5, signal)) {
      const now = clock.now();
      if (isAble()) ableMs = now;
      const stored = await board.load(documentName).catch(() => undefined);
      if (stored === undefined) continue;
      const holder = holderOf(stored?.value);
      this.#holder = holder.boot === null ? null : holder.name;
      term = Math.max(term, holder.term);
      const revision = stored?.revision ?? 0;
      if (revision !== seen.revision) seen = { revision, atMs: now };
      const isMine = holder.boot === boot;
      const isFree = holder.boot === null || now - seen.atMs > leaseMs;
      if (isMine && now - ableMs > unableMs) {
        this.#leadsUntilMs = Number.NEGATIVE_INFINITY;
        await board.save(documentName, { boot: null, name, term: ++term } satisfies Holder, revision);
        continue;
      }
      if (!isMine && !(isFree && isAble())) {
        this.#leadsUntilMs = Number.NEGATIVE_INFINITY;
        continue;
      }
      const sentMs = clock.now();
      const saved = await board.save(documentName, { boot, name, term: ++term } satisfies Holder, revision);
      if (saved.kind === "saved") this.#leadsUntilMs = sentMs + leaseMs * 0.8;
      // Not known: it goes on for as long as its last renewal lasts.
      else if (saved.kind === "conflict") this.#leadsUntilMs = Number.NEGATIVE_INFINITY;
    }
    await this.#resign(term + 1);
  }

  async #resign(term: number): Promise<void> {
    const { board, name } = this.#parts;
    if (!this.leads) return;
    this.#leadsUntilMs = Number.NEGATIVE_INFINITY;
    const stored = await board.load(documentName).catch(() => null);
    if (stored !== null) await board.save(documentName, { boot: null, name, term } satisfies Holder, stored.revision);
  }
}

function holderOf(value: unknown): Holder {
  const it = (typeof value === "object" && value !== null ? value : {}) as Partial<Holder>;
  return {
    boot: typeof it.boot === "string" ? it.boot : null,
    name: typeof it.name === "string" ? it.name : "",
    term: typeof it.term === "number" ? it.term : 0,
  };
}
