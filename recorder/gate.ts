// Who may do what in a store that several processes use: those that write snapshots side by side, or one collector alone.
//
// A writer does not store what it finds there, a collector removes what no manifest needs: together they would lose chunks. So each puts a mark
// (`pending/write-…`, `pending/collect-…`) and looks only then: of two that meet, at least one sees the other. A collector that sees anybody
// gives up; a writer waits until collectors are gone. Marks are put again every minute; one that was not for 15 minutes is dead, by the
// store's own clock: the time at which the onlooker's own mark was stored. Whoever could not renew its mark for 5 minutes takes itself
// for dead (`check`), long before the others do. A mark says which process put it, so that a killed one delays nobody on its own machine.

import { randomBytes } from "node:crypto";
import { systemClock } from "../gateway/clock.ts";
import type { Clock } from "../gateway/clock.ts";
import { GatewayError } from "../gateway/errors.ts";
import { isHolderGone, thisHolder } from "./holder.ts";
import type { SnapshotStore, StoredObject } from "./stores/store.ts";

export interface Mark {
  /** Throws GW_STORE_UNAVAILABLE when others may take this mark for dead: nothing may be concluded any more from what was seen under it. */
  check(): void;
  /** May be called twice. */
  leave(): Promise<void>;
}

export interface GateOptions {
  readonly signal: AbortSignal;
  readonly clock?: Clock;
}

const minuteMs = 60_000;
const renewMs = minuteMs;
/** After a renewal that failed. */
const againMs = 10_000;
const lookMs = 1_000;
const doubtMs = 5 * minuteMs;
const deadMs = 15 * minuteMs;
/** A collection takes minutes; one that takes longer than this is in trouble. */
const waitMsMax = 60 * minuteMs;

const prefix = "pending/";
type Kind = "write" | "collect";
const kindOf = ({ name }: StoredObject): Kind => (name.startsWith(`${prefix}collect-`) ? "collect" : "write");

/** Resolves when no collector is in the store; none begins until the mark is left. */
export async function enterAsWriter(store: SnapshotStore, options: GateOptions): Promise<Mark> {
  const mark = new StoreMark(store, "write", options.clock ?? systemClock);
  try {
    await mark.put();
    const giveUpAtMs = mark.clock.now() + waitMsMax;
    // Ends when no collector is left, or when one stayed too long.
    for (;;) {
      const collectors = (await mark.others()).filter((other) => kindOf(other) === "collect");
      if (collectors.length === 0) break;
      if (mark.clock.now() > giveUpAtMs)
        throw new GatewayError(
          "GW_STORE_UNAVAILABLE",
          `a collection in ${store.where} has been under way for an hour (${collectors[0]?.name}); nothing was written`,
        );
      await mark.clock.sleep(lookMs, options.signal);
      options.signal.throwIfAborted();
    }
    options.signal.throwIfAborted();
    mark.check();
    return mark;
  } catch (error) {
    await mark.leave();
    throw error;
  }
}

/** Null: somebody writes or collects; try again later. Removes the marks of the dead. */
export async function enterAsCollector(store: SnapshotStore, options: GateOptions): Promise<Mark | null> {
  const mark = new StoreMark(store, "collect", options.clock ?? systemClock);
  try {
    await mark.put();
    if ((await mark.others()).length > 0) {
      await mark.leave();
      return null;
    }
    for (const name of mark.dead) await store.remove(name);
    options.signal.throwIfAborted();
    mark.check();
    return mark;
  } catch (error) {
    await mark.leave();
    throw error;
  }
}

class StoreMark implements Mark {
  readonly clock: Clock;
  /** As the last look found them. */
  dead: readonly string[] = [];
  readonly #store: SnapshotStore;
  readonly #name: string;
  readonly #over = new AbortController();
  /** When the last put that succeeded began, on both clocks: one stands still while the machine sleeps, the other may be set back. */
  #putAt = { nowMs: 0, wallMs: 0 };
  #renewals: Promise<void> | null = null;
  #leaving: Promise<void> | null = null;

  constructor(store: SnapshotStore, kind: Kind, clock: Clock) {
    this.clock = clock;
    this.#store = store;
    this.#name = `${prefix}${kind}-${randomBytes(8).toString("hex")}`;
  }

  /** The first put; from then on the mark is renewed. */
  async put(): Promise<void> {
    await this.#put();
    this.#renewals = this.#renew();
  }

  /** The living ones but this. */
  async others(): Promise<readonly StoredObject[]> {
    const marks: StoredObject[] = [];
    for await (const object of this.#store.list(prefix)) marks.push(object);
    const own = marks.find(({ name }) => name === this.#name);
    if (own === undefined)
      throw new GatewayError(
        "GW_STORE_UNAVAILABLE",
        `${this.#name} was just stored in ${this.#store.where} and is not there`,
      );
    const living: StoredObject[] = [];
    const dead: string[] = [];
    for (const mark of marks) {
      if (mark === own) continue;
      const isDead = own.storedAtMs - mark.storedAtMs > deadMs || (await this.#isOrphan(mark.name));
      if (isDead) dead.push(mark.name);
      else living.push(mark);
    }
    this.dead = dead;
    return living;
  }

  /** Put by a process of this machine that has ended: nobody needs to wait for 15 minutes. */
  async #isOrphan(name: string): Promise<boolean> {
    const bytes = await this.#store.get(name);
    return bytes !== null && isHolderGone(bytes.toString("utf8"));
  }

  check(): void {
    const silentMs = Math.max(this.clock.now() - this.#putAt.nowMs, this.clock.wallMs() - this.#putAt.wallMs);
    if (silentMs <= doubtMs) return;
    throw new GatewayError(
      "GW_STORE_UNAVAILABLE",
      `${this.#name} in ${this.#store.where} could not be renewed for ${Math.round(silentMs / 1000)} s: chunks that were found there may have been removed by another gateway; nothing is recorded, and it is tried again from the beginning`,
    );
  }

  leave(): Promise<void> {
    this.#leaving ??= this.#leave();
    return this.#leaving;
  }

  async #leave(): Promise<void> {
    this.#over.abort();
    // A put that is under way would bring the mark back.
    await this.#renewals;
    // What cannot be removed now is dead in 15 minutes.
    await this.#store.remove(this.#name).catch(() => {});
  }

  async #put(): Promise<void> {
    const at = { nowMs: this.clock.now(), wallMs: this.clock.wallMs() };
    await this.#store.put(this.#name, Buffer.from(thisHolder()));
    this.#putAt = at;
  }

  async #renew(): Promise<void> {
    let pauseMs = renewMs;
    // Ends when the mark is left.
    for (;;) {
      await this.clock.sleep(pauseMs, this.#over.signal);
      if (this.#over.signal.aborted) return;
      // Whether it failed for too long is for `check` to say.
      pauseMs = await this.#put().then(
        () => renewMs,
        () => againMs,
      );
    }
  }
}
