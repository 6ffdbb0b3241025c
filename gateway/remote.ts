// A copy that another gateway feeds, as far as that one's news tell. What is missing in them makes it worse than it is, never better.

import type { Backend } from "./backend/backend.ts";
import type { Clock } from "./clock.ts";
import type { ReplicaState } from "./events.ts";
import type { ReplicaNews } from "./peers/peers.ts";
import type { Replica } from "./replica.ts";

export interface RemoteReplicaParts {
  readonly name: string;
  /** As the roster has it, until its owner tells where it is. */
  readonly url: string | null;
  readonly backendVersion: string;
  readonly clock: Clock;
  readonly connect: (url: string) => Backend;
  /** Entries of the log that were folded here. */
  readonly entries: () => number;
  /** Its owner is asked for a grant; resolves when it has answered or did not. */
  readonly askGrant: (replica: RemoteReplica) => Promise<void>;
  readonly onState: (replica: RemoteReplica, from: ReplicaState) => void;
}

interface Waiter {
  readonly position: number;
  readonly resolve: (isApplied: boolean) => void;
}

export class RemoteReplica implements Replica {
  readonly name: string;
  readonly isOwn = false;
  readonly #parts: RemoteReplicaParts;
  #news: ReplicaNews | null = null;
  #ownerName: string | null = null;
  #ownerBoot: string | null = null;
  #state: ReplicaState = "lagging";
  #reason = unheard;
  #backend: Backend | null = null;
  #waiters: Waiter[] = [];
  #grantedUntilMs = 0;
  #asking: Promise<void> | null = null;
  reading = 0;

  constructor(parts: RemoteReplicaParts) {
    this.#parts = parts;
    this.name = parts.name;
  }

  get ownerName(): string | null {
    return this.#ownerName;
  }
  /** The gateway whose news are believed; null: none that lives. */
  get ownerBoot(): string | null {
    return this.#ownerBoot;
  }
  get news(): ReplicaNews | null {
    return this.#news;
  }
  get state(): ReplicaState {
    return this.#state;
  }
  get reason(): string {
    return this.#reason;
  }
  get url(): string | null {
    return this.#news?.url ?? this.#parts.url;
  }
  get incarnation(): string {
    return this.#news?.incarnation ?? "";
  }
  get backendVersion(): string {
    return this.#news?.version ?? this.#parts.backendVersion;
  }
  get applied(): number {
    return this.#news?.applied ?? 0;
  }
  get lag(): number {
    return Math.max(0, this.#parts.entries() - (this.#news?.entries ?? 0));
  }
  get backend(): Backend | null {
    const { url } = this;
    if (url === null) return null;
    if (this.#backend?.url !== url) {
      void this.#backend?.close();
      this.#backend = this.#parts.connect(url);
    }
    return this.#backend;
  }

  /** W alone counts: what shares an order key with a read is known to its owner only. */
  hasApplied(position: number): boolean {
    return this.applied >= position;
  }

  whenApplied(position: number): Promise<boolean> {
    if (this.hasApplied(position)) return Promise.resolve(true);
    return new Promise((resolve) => this.#waiters.push({ position, resolve }));
  }

  isSure(): boolean {
    return this.isSureFor(0);
  }
  /** The grant lasts for so much longer. */
  isSureFor(ms: number): boolean {
    return this.#state === "live" && this.#parts.clock.now() + ms < this.#grantedUntilMs;
  }

  async whenSure(): Promise<boolean> {
    if (this.isSure()) return true;
    if (this.#state !== "live") return false;
    await (this.#asking ??= this.#parts.askGrant(this).finally(() => (this.#asking = null)));
    return this.isSure();
  }

  /** Its owner lets us read from this life of it until then, by our own clock. */
  granted(incarnation: string, untilMs: number): void {
    if (incarnation === this.incarnation) this.#grantedUntilMs = Math.max(this.#grantedUntilMs, untilMs);
  }

  /** What its owner says. Of two who say that they own it the one with the later cursor is right. */
  heard(news: ReplicaNews, ownerName: string, ownerBoot: string): void {
    const isOther = this.#ownerBoot !== null && this.#ownerBoot !== ownerBoot;
    if (isOther && news.revision < (this.#news?.revision ?? 0)) return;
    if (isOther || news.incarnation !== this.incarnation) this.#grantedUntilMs = 0;
    this.#ownerName = ownerName;
    this.#ownerBoot = ownerBoot;
    this.#news = news;
    this.#become(news.state, news.reason);
    this.#resolveWaiters();
  }

  /** W alone has moved. */
  moved(ownerBoot: string, applied: number, entries: number): void {
    if (this.#news === null || this.#ownerBoot !== ownerBoot || applied < this.#news.applied) return;
    this.#news = { ...this.#news, applied, entries };
    this.#resolveWaiters();
  }

  /** Its owner has gone, is silent, or does not feed it any more. */
  lost(ownerBoot: string, reason = unheard): void {
    if (this.#ownerBoot !== ownerBoot) return;
    this.#ownerName = null;
    this.#ownerBoot = null;
    this.#grantedUntilMs = 0;
    this.#become("lagging", reason);
  }

  close(): void {
    for (const waiter of this.#waiters.splice(0)) waiter.resolve(false);
    void this.#backend?.close();
    this.#backend = null;
  }

  #resolveWaiters(): void {
    if (this.#waiters.length === 0) return;
    this.#waiters = this.#waiters.filter((waiter) => {
      if (!this.hasApplied(waiter.position)) return true;
      waiter.resolve(true);
      return false;
    });
  }

  #become(state: ReplicaState, reason: string): void {
    const from = this.#state;
    this.#reason = reason;
    if (from === state) return;
    this.#state = state;
    if (from === "live") for (const waiter of this.#waiters.splice(0)) waiter.resolve(false);
    this.#parts.onState(this, from);
  }
}

const unheard = "no gateway says that it feeds it";
