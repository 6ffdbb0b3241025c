// All replicas as one: who is live, who is primary, what is done when one disagrees, comes back or kills.

import type { Agreement } from "./agreement.ts";
import type { Appender } from "./appender.ts";
import type { Applier } from "./applier.ts";
import { GatewayError } from "./errors.ts";
import type { Events, ReplicaState } from "./events.ts";
import type { LogReader } from "./reader.ts";
import type { Folded } from "./state/state.ts";

/** Below so many entries a backlog is not worth an estimate. */
const backlogCounts = 64;

export interface AgreementSettings {
  readonly onMinority: "quarantine" | "rebuild" | "alarm";
  readonly onTie: "alarm" | "halt";
  /** Quarantine never goes below this many live replicas. */
  readonly liveMin: number;
}

export class Replicas {
  readonly #settings: AgreementSettings;
  readonly #events: Events;
  #appliers: readonly Applier[] = [];
  #agreement: Agreement | null = null;
  #appender: Appender | null = null;
  #reader: LogReader | null = null;
  #live: readonly string[] = [];
  #liveAppliers: readonly Applier[] = [];
  readonly #listeners: (() => void)[] = [];
  /** Marks that are waited for by their reason: what to do with their position before any applier goes past it. */
  readonly #marks = new Map<string, (position: number, sequence: number) => void>();
  readonly #parking = new Set<number>();
  /** Quarantined because of what they answered or may have done, and to be rebuilt for it. */
  readonly #toRebuild = new Set<string>();
  readonly #diverged = new Map<string, string>();
  #marksMade = 0;
  #onHalt: ((reason: string) => void) | null = null;

  constructor(settings: AgreementSettings, events: Events) {
    this.#settings = settings;
    this.#events = events;
  }

  /** The pieces know each other: called once, before anything runs. */
  join(agreement: Agreement, appender: Appender, reader: LogReader, onHalt: (reason: string) => void): void {
    this.#agreement = agreement;
    this.#appender = appender;
    this.#reader = reader;
    this.#onHalt = onHalt;
  }

  get all(): readonly Applier[] {
    return this.#appliers;
  }
  add(applier: Applier): void {
    this.#appliers = [...this.#appliers, applier];
  }
  remove(name: string): void {
    this.#appliers = this.#appliers.filter((it) => it.name !== name);
    this.#live = this.#live.filter((it) => it !== name);
    this.#agreement?.left(name);
    for (const listener of this.#listeners) listener();
  }
  /** The lowest sequence that an applier has still to take from the reader. */
  get taken(): number {
    let lowest = Number.POSITIVE_INFINITY;
    for (const it of this.#appliers) lowest = Math.min(lowest, it.nextSequence);
    return lowest;
  }
  /** Names, in the configured order. */
  get live(): readonly string[] {
    return this.#live;
  }
  /** The first live one in the configured order: stable until it leaves. */
  get primary(): string | null {
    return this.#live[0] ?? null;
  }
  liveAppliers(): readonly Applier[] {
    return this.#liveAppliers;
  }
  applier(name: string): Applier {
    const found = this.#appliers.find((it) => it.name === name);
    if (found === undefined)
      throw new GatewayError(
        "GW_NOT_FOUND",
        `there is no replica ${name}; there are ${this.#appliers.map((it) => it.name).join(", ")}`,
      );
    return found;
  }

  /** The live set has changed. */
  onChange(listener: () => void): void {
    this.#listeners.push(listener);
  }

  changed(applier: Applier, from: ReplicaState): void {
    this.#liveAppliers = this.#appliers.filter((it) => it.state === "live");
    this.#live = this.#liveAppliers.map((it) => it.name);
    if (from === "live") this.#agreement?.left(applier.name);
    this.#quarantineDiverged();
    for (const listener of this.#listeners) listener();
  }

  /** About how long `lag` entries take to be applied, ms, by the rate of the last seconds. */
  backlogMs(lag: number): number {
    return lag < backlogCounts || this.#ratePerMs === 0 ? 0 : lag / this.#ratePerMs;
  }

  #ratePerMs = 0;
  #rateFrom = { atMs: 0, applied: 0 };

  /** Called about once a second: the rate of the replica furthest ahead. */
  measure(nowMs: number): void {
    const lags = this.#liveAppliers.map((it) => it.lag);
    const applied = (this.#reader?.state.entries ?? 0) - (lags.length === 0 ? 0 : Math.min(...lags));
    const rate = (applied - this.#rateFrom.applied) / Math.max(nowMs - this.#rateFrom.atMs, 1);
    // Only a busy second tells how fast they can be.
    if (lags.length > 0 && Math.min(...lags) > 0 && rate > 0)
      this.#ratePerMs = this.#ratePerMs === 0 ? rate : this.#ratePerMs * 0.7 + rate * 0.3;
    this.#rateFrom = { atMs: nowMs, applied };
  }

  /** Every record, after the fold and before appliers pull it. */
  folded(folded: Folded): void {
    for (const { position, item } of folded.items) {
      if (folded.isDropped) continue;
      // Another gateway may give the same reason to a mark of its own.
      if (item.kind === "mark" && folded.header.producer === this.#appender?.boot) {
        this.#marks.get(item.reason)?.(position, folded.sequence);
        this.#marks.delete(item.reason);
      } else if (item.kind === "skip") {
        for (const applier of this.#appliers)
          if (!applier.skip(item.position)) {
            this.#toRebuild.add(applier.name);
            applier.order("quarantined", `it may have executed entry ${item.position}, which is parked`);
          }
        this.#agreement?.parked(item.position, item.reason);
        this.#events.tell({ type: "parked", position: item.position, reason: item.reason });
      }
    }
    for (const applier of this.#appliers) applier.wake();
  }

  // ---- disagreement ----------------------------------------------------------------------------------------------------------------

  disagrees(name: string, position: number, rule: string): void {
    const applier = this.applier(name);
    if (this.#settings.onMinority === "alarm" || applier.state === "quarantined") return;
    const isLive = applier.state === "live";
    if (isLive && this.#live.length - 1 < this.#settings.liveMin) {
      this.#events.tell({
        type: "warning",
        about: `replica ${name}`,
        detail: `disagreed on entry ${position} (rule ${rule}) and stays in rotation: quarantine would leave fewer than ${this.#settings.liveMin} live replicas`,
      });
      return;
    }
    if (this.#settings.onMinority === "rebuild") this.#toRebuild.add(name);
    applier.order("quarantined", `its answer to entry ${position} (rule ${rule}) differs from the majority's`);
  }

  /** An audit found another state on it. Only `onMinority: rebuild` acts on that; else it is told, and a person decides. */
  diverged(name: string, reason: string): void {
    if (this.#settings.onMinority !== "rebuild") return;
    this.#diverged.set(name, reason);
    this.#quarantineDiverged();
  }

  /** As soon as enough others are live: those that were read for the audit are still on their way back. */
  #quarantineDiverged(): void {
    for (const [name, reason] of this.#diverged) {
      if (!this.#live.includes(name) || this.#live.length - 1 < this.#settings.liveMin) continue;
      this.#diverged.delete(name);
      this.#toRebuild.add(name);
      this.applier(name).order("quarantined", reason);
      return;
    }
  }

  wantsRebuild(name: string): boolean {
    return this.#toRebuild.has(name);
  }
  rebuilt(name: string): void {
    this.#diverged.delete(name);
    this.#toRebuild.delete(name);
  }

  tied(position: number): void {
    this.#events.tell({
      type: "warning",
      about: "agreement",
      detail: `the answers to entry ${position} have no majority`,
    });
    if (this.#settings.onTie === "halt")
      this.#onHalt?.(`the answers to entry ${position} have no majority (agreement.onTie: halt)`);
  }

  // ---- poison ----------------------------------------------------------------------------------------------------------------------

  /** Takes an entry out of the order for good: a control item every replica obeys. */
  async skip(position: number, reason: string): Promise<void> {
    if (this.#parking.has(position) || (this.#reader?.state.skipped(position) ?? null) !== null) return;
    this.#parking.add(position);
    try {
      const maybeSent = this.#appliers.filter((it) => !it.bar(position)).map((it) => it.name);
      await this.#appender?.place({ kind: "skip", position, reason, maybeSent });
    } catch (error) {
      for (const applier of this.#appliers) applier.unbar(position);
      throw error;
    } finally {
      this.#parking.delete(position);
    }
  }

  // ---- marks -----------------------------------------------------------------------------------------------------------------------

  /**
   * Fixes a position at which all the named replicas stop: everything up to it finished, nothing above started. They stay there until `goOn` or the end of a
   * visit. Null: one of them left before it was there. `onMark` hears the mark's record while it is folded, before anything after it is.
   */
  async stopAtMark(
    appliers: readonly Applier[],
    purpose: string,
    onMark: (sequence: number) => void = () => undefined,
  ): Promise<number | null> {
    if (this.#appender === null) return null;
    const reason = `${purpose} ${++this.#marksMade}`;
    let stops: Promise<boolean[]> = Promise.resolve([]);
    this.#marks.set(reason, (position, sequence) => {
      stops = Promise.all(appliers.map((it) => it.pauseAt(position)));
      onMark(sequence);
    });
    try {
      const placed = await this.#appender.place({ kind: "mark", reason });
      return (await stops).every(Boolean) ? placed.position : null;
    } finally {
      this.#marks.delete(reason);
    }
  }

  /**
   * A replica that came back and a live sibling stop at a mark and answer their witnesses. Without a live sibling all that came back are compared with
   * each other. Null: there is nothing to compare.
   */
  async verify(name: string): Promise<{ equal: boolean; detail: string } | null> {
    const returned = this.applier(name);
    if (returned.settings.witness.length === 0 || returned.settings.onReturn !== "verify") return null;
    const sibling =
      this.liveAppliers().find((it) => it.name !== name) ??
      this.#appliers.find((it) => it.name !== name && it.state === "replaying");
    if (sibling === undefined) return null;
    const both = [returned, sibling];
    try {
      const position = await this.stopAtMark(both, `verify ${name} by ${sibling.name}`);
      if (position === null) return { equal: false, detail: "one of the two left before they could be compared" };
      const [mine, theirs] = await Promise.all([returned.witness(), sibling.witness()]);
      if (mine === null || theirs === null) return { equal: false, detail: "a witness was not answered" };
      return {
        equal: mine === theirs,
        detail:
          mine === theirs
            ? `equal at ${position}`
            : `the witnesses of ${name} and ${sibling.name} differ at ${position}`,
      };
    } finally {
      for (const it of both) it.goOn();
    }
  }
}
