// Takes and gives up replicas, so that each is fed by one gateway and all gateways feed about as many. What it wants follows from what is heard
// (assignment.ts); what it gets is decided by the replica's cursor, after the lease of whoever had it.

import type { Feedable } from "./assignment.ts";
import { assign } from "./assignment.ts";
import type { Clock } from "./clock.ts";
import type { Fleet } from "./fleet.ts";
import type { Role } from "./peers/peers.ts";
import type { Replicas } from "./replicas.ts";

/** The replicas that this process can feed. */
export interface Feeding {
  readonly entries: readonly (Feedable & { readonly url: string | null; readonly version: string })[];
  take(name: string): void;
  /** Resolves when it is free: what was sent is finished, its cursor says so. */
  release(name: string): Promise<void>;
}

export interface OwnersParts {
  readonly fleet: Fleet;
  readonly feeding: Feeding;
  readonly replicas: Replicas;
  readonly name: string;
  readonly boot: string;
  readonly roles: readonly Role[];
  readonly clock: Clock;
  /** Replicas whose cursors name a former life of this gateway: nobody has to wait for that one's lease, and its notes are here. */
  readonly formerlyOurs: () => Promise<readonly string[]>;
}

const everyMs = 100;
/** One that has just come may go again: replicas move to it when it has stayed for so long. */
const stayedMs = 1500;

export class Owners {
  readonly #parts: OwnersParts;
  readonly #stop = new AbortController();
  readonly #metMs = new Map<string, number>();
  #done: Promise<void> = Promise.resolve();
  #releasing: Promise<void> | null = null;

  constructor(parts: OwnersParts) {
    this.#parts = parts;
  }

  start(): void {
    this.#showRemotes();
    this.#done = this.#run();
  }

  async close(): Promise<void> {
    this.#stop.abort();
    await this.#done;
    await this.#releasing;
  }

  /** Ends with `close`. */
  async #run(): Promise<void> {
    const { clock, feeding, formerlyOurs, roles } = this.#parts;
    const { signal } = this.#stop;
    if (roles.includes("applier")) for (const it of await formerlyOurs().catch(() => [])) feeding.take(it);
    for (; !signal.aborted; await clock.sleep(everyMs, signal)) this.#look();
  }

  #look(): void {
    const { boot, clock, feeding, fleet, name, replicas, roles } = this.#parts;
    this.#showRemotes();
    const now = clock.now();
    const members = fleet.members.filter((it) => it.roles.includes("applier"));
    for (const it of members) if (!this.#metMs.has(it.boot)) this.#metMs.set(it.boot, now);
    const isMine = new Set(replicas.own.filter((it) => it.state !== "gone").map((it) => it.name));
    const current = new Map<string, string>();
    const isFed = (replica: string): boolean =>
      members.some(({ replicas: theirs }) => theirs.some((news) => news.name === replica && news.revision > 0));
    for (const it of feeding.entries) {
      // Also one that waits for the lease of whoever had it before.
      const heard =
        fleet.remote(it.name, it.url, it.version).ownerBoot ??
        members.find(({ replicas: theirs }) => theirs.some((news) => news.name === it.name))?.boot;
      const waiting = replicas.own.find(({ name: own }) => own === it.name);
      // Somebody was quicker while we waited for the lease before it.
      if (heard !== undefined && waiting?.isWaiting === true && isFed(it.name)) {
        isMine.delete(it.name);
        void feeding.release(it.name);
      }
      if (isMine.has(it.name)) current.set(it.name, boot);
      else if (heard !== undefined) current.set(it.name, heard);
    }
    const gateways = roles.includes("applier") ? [...members, { boot, name }] : members;
    const target = assign(feeding.entries, gateways, current);
    for (const it of feeding.entries) {
      const wanted = target.get(it.name);
      if (wanted === boot && !current.has(it.name)) feeding.take(it.name);
      else if (isMine.has(it.name) && wanted !== undefined && wanted !== boot) this.#giveUp(it.name, wanted, now);
    }
  }

  /** One at a time: the others go on meanwhile. */
  #giveUp(name: string, to: string, now: number): void {
    const { feeding, replicas } = this.#parts;
    const applier = replicas.own.find((it) => it.name === name);
    const hasStayed = now - (this.#metMs.get(to) ?? now) >= stayedMs;
    // What waits for a person or is being rebuilt stays with whoever knows of it; and nobody else may be left without a live one.
    const isMovable = applier?.state === "live" && !applier.isVisited && replicas.live.length > 1;
    if (this.#releasing !== null || !hasStayed || !isMovable) return;
    this.#releasing = feeding.release(name).finally(() => {
      this.#releasing = null;
      this.#parts.fleet.hello();
    });
  }

  /** What is not ours is seen as others tell of it. */
  #showRemotes(): void {
    const { feeding, fleet, replicas } = this.#parts;
    for (const it of feeding.entries) {
      const shown = replicas.all.find(({ name }) => name === it.name);
      if (shown === undefined || (shown.isOwn && shown.state === "gone"))
        replicas.put(fleet.remote(it.name, it.url, it.version));
    }
  }
}
