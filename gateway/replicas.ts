// All replicas as one: who is live, who is primary, what is done when one disagrees, comes back or kills.

import type { Agreement } from "./agreement.ts";
import type { Appender } from "./appender.ts";
import { Applier } from "./applier.ts";
import { GatewayError } from "./errors.ts";
import type { Events, ReplicaState } from "./events.ts";
import type { LogReader } from "./reader.ts";
import type { Replica } from "./replica.ts";
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
  #all: readonly Replica[] = [];
  /** Those that this process feeds. */
  #appliers: readonly Applier[] = [];
  #agreement: Agreement | null = null;
  #appender: Appender | null = null;
  #reader: LogReader | null = null;
  #live: readonly string[] = [];
  #liveReplicas: readonly Replica[] = [];
  #liveAppliers: readonly Applier[] = [];
  /** By name: where each stands in the roster, so that all gateways name the same one first. */
  #order: readonly string[] = [];
  readonly #listeners: (() => void)[] = [];
  /** Marks that are waited for by their reason: what to do with their position before any applier goes past it. */
  readonly #marks = new Map<string, (position: number, sequence: number) => void>();
  readonly #parking = new Set<number>();
  /** Skips that the log has told of. */
  readonly #skipped = new Set<number>();
  /** Quarantined because of what they answered or may have done, and to be rebuilt for it. */
  readonly #toRebuild = new Set<string>();
  readonly #diverged = new Map<string, string>();
  #marksMade = 0;
  #onHalt: ((reason: string) => void) | null = null;
  #onDisagreesElsewhere: ((replica: Replica, position: number, rule: string) => void) | null = null;
  #barElsewhere: ((position: number) => Promise<readonly string[]>) | null = null;
  #proofElsewhere: ProofElsewhere | null = null;
  #rootOf: ((applier: Applier, position: number) => Promise<string>) | null = null;

  constructor(settings: AgreementSettings, events: Events) {
    this.#settings = settings;
    this.#events = events;
  }

  /** The pieces know each other: called once, before anything runs. */
  join(agreement: Agreement, appender: Appender, reader: LogReader, onHalt: (reason: string) => void): void {
    this.#agreement = agreement;
    this.#appender = appender;
    this.#reader = reader;
    for (const position of reader.state.skips.keys()) this.#skipped.add(position);
    this.#onHalt = onHalt;
  }

  /** Every copy of the service, whoever feeds it. */
  get all(): readonly Replica[] {
    return this.#all;
  }
  /** Those that this process feeds. */
  get own(): readonly Applier[] {
    return this.#appliers;
  }

  /** A replica in the place of what was known under its name. */
  put(replica: Replica): void {
    const before = this.#all.find((it) => it.name === replica.name);
    if (before === replica) return;
    const others = this.#all.filter((it) => it.name !== replica.name);
    this.#setAll([...others, replica]);
    if (before?.state === "live") this.#agreement?.left(before.name);
    this.#setLive();
  }
  remove(name: string): void {
    this.#setAll(this.#all.filter((it) => it.name !== name));
    this.#agreement?.left(name);
    this.#setLive();
  }

  /** The order of the roster: replicas that it does not name come last. */
  arrange(names: readonly string[]): void {
    this.#order = names;
    this.#setAll(this.#all);
    this.#setLive();
  }

  #setAll(all: readonly Replica[]): void {
    const placeOf = ({ name }: Replica): number => {
      const at = this.#order.indexOf(name);
      return at < 0 ? this.#order.length : at;
    };
    this.#all = all.toSorted((a, b) => placeOf(a) - placeOf(b));
    this.#appliers = this.#all.filter((it) => it instanceof Applier);
  }

  #setLive(): void {
    this.#liveReplicas = this.#all.filter((it) => it.state === "live");
    this.#liveAppliers = this.#appliers.filter((it) => it.state === "live");
    this.#live = this.#liveReplicas.map((it) => it.name);
    this.#quarantineDiverged();
    for (const listener of this.#listeners) listener();
  }

  /** The lowest sequence that an applier has still to take from the reader. */
  get taken(): number {
    let lowest = Number.POSITIVE_INFINITY;
    for (const it of this.#appliers) lowest = Math.min(lowest, it.nextSequence);
    return lowest;
  }
  /** Names, in the configured order. */
  /** With several gateways: how what is fed by another one is reached. Called once, before anything runs. */
  joinFleet(parts: {
    readonly onDisagrees: (replica: Replica, position: number, rule: string) => void;
    /** Rejects when one of them cannot be asked: then nothing may be skipped. */
    readonly bar: (position: number) => Promise<readonly string[]>;
    readonly proof: ProofElsewhere;
  }): void {
    this.#onDisagreesElsewhere = parts.onDisagrees;
    this.#barElsewhere = parts.bar;
    this.#proofElsewhere = parts.proof;
  }

  get live(): readonly string[] {
    return this.#live;
  }
  /** The first live one in the configured order: stable until it leaves. */
  get primary(): string | null {
    return this.#live[0] ?? null;
  }
  liveReplicas(): readonly Replica[] {
    return this.#liveReplicas;
  }
  /** Live ones that this process feeds. */
  liveAppliers(): readonly Applier[] {
    return this.#liveAppliers;
  }
  /** Rejects with GW_NOT_FOUND, and with GW_CONFLICT for one that another gateway feeds. */
  applier(name: string): Applier {
    const found = this.replica(name);
    if (found instanceof Applier) return found;
    throw new GatewayError(
      "GW_CONFLICT",
      `${name} is fed by ${found.ownerName === null ? "no gateway now" : `the gateway ${found.ownerName}: ask that one`}`,
    );
  }
  replica(name: string): Replica {
    const found = this.#all.find((it) => it.name === name);
    if (found !== undefined) return found;
    const names = this.#all.map((it) => it.name).join(", ");
    throw new GatewayError("GW_NOT_FOUND", `there is no replica ${name}; there are ${names}`);
  }

  /** The live set has changed. */
  onChange(listener: () => void): void {
    this.#listeners.push(listener);
  }

  changed(replica: Replica, from: ReplicaState): void {
    if (from === "live") this.#agreement?.left(replica.name);
    this.#setLive();
  }

  /** About how long `lag` entries take to be applied, ms, by the rate of the last seconds. */
  backlogMs(lag: number): number {
    return lag < backlogCounts || this.#ratePerMs === 0 ? 0 : lag / this.#ratePerMs;
  }

  #ratePerMs = 0;
  #rateFrom = { atMs: 0, applied: 0 };

  /** Called about once a second: the rate of the replica furthest ahead. */
  measure(nowMs: number): void {
    const lags = this.#liveReplicas.map((it) => it.lag);
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
      if (item.kind === "mark") {
        const key = markKey(folded.header.producer, item.reason);
        this.#marks.get(key)?.(position, folded.sequence);
        this.#marks.delete(key);
      } else if (item.kind === "skip" && !this.#skipped.has(item.position)) {
        // Each gateway that counted the deaths may have appended one: to whom the first was told the second tells nothing.
        this.#skipped.add(item.position);
        for (const applier of this.#appliers)
          if (!applier.skip(item.position)) {
            this.#toRebuild.add(applier.name);
            applier.order("quarantined", `it may have executed entry ${item.position}, which is parked`, true);
          }
        this.#agreement?.parked(item.position, item.reason);
        this.#events.tell({ type: "parked", position: item.position, reason: item.reason });
      }
    }
    for (const applier of this.#appliers) applier.wake();
  }

  // ---- disagreement ----------------------------------------------------------------------------------------------------------------

  disagrees(name: string, position: number, rule: string): void {
    const found = this.replica(name);
    if (!(found instanceof Applier)) {
      this.#onDisagreesElsewhere?.(found, position, rule);
      return;
    }
    const applier = found;
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
    const isToRebuild = this.#settings.onMinority === "rebuild";
    if (isToRebuild) this.#toRebuild.add(name);
    const reason = `its answer to entry ${position} (rule ${rule}) differs from the majority's`;
    applier.order("quarantined", reason, isToRebuild);
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
      if (!this.#appliers.some((it) => it.name === name)) continue;
      if (!this.#live.includes(name) || this.#live.length - 1 < this.#settings.liveMin) continue;
      this.#diverged.delete(name);
      this.#toRebuild.add(name);
      this.applier(name).order("quarantined", reason, true);
      return;
    }
  }

  wantsRebuild(name: string): boolean {
    return this.#toRebuild.has(name) || this.#appliers.some((it) => it.name === name && it.wantsRebuild);
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
      if (this.#barElsewhere !== null) {
        await this.bar(position);
        maybeSent.push(...(await this.#barElsewhere(position)));
      }
      await this.#appender?.place({ kind: "skip", position, reason, maybeSent });
    } catch (error) {
      for (const applier of this.#appliers) applier.unbar(position);
      throw error;
    } finally {
      this.#parking.delete(position);
    }
  }

  /** For a skip that another gateway makes, or for all: durably. Names those that may have been sent the entry. */
  async bar(position: number): Promise<readonly string[]> {
    const isBarred = await Promise.all(this.#appliers.map((it) => it.barForAll(position)));
    return this.#appliers.filter((_, at) => isBarred[at] !== true).map((it) => it.name);
  }
  unbar(position: number): void {
    for (const applier of this.#appliers) applier.unbar(position);
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
    const reason = this.#markReason(purpose);
    const key = markKey(this.#appender.boot, reason);
    let stops: Promise<boolean[]> = Promise.resolve([]);
    this.#marks.set(key, (position, sequence) => {
      stops = Promise.all(appliers.map((it) => it.pauseAt(position)));
      onMark(sequence);
    });
    try {
      const placed = await this.#appender.place({ kind: "mark", reason });
      return (await stops).every(Boolean) ? placed.position : null;
    } finally {
      this.#marks.delete(key);
    }
  }

  #markReason(purpose: string): string {
    return `${purpose} ${++this.#marksMade}`;
  }

  /** How the root of a copy's state at a position is found out, where states can be read. */
  readRootsBy(rootOf: (applier: Applier, position: number) => Promise<string>): void {
    this.#rootOf = rootOf;
  }

  /**
   * Stops replicas at a mark, whoever feeds them, and asks each for its witnesses' answers or for the root of its state; they go on by themselves. Null for
   * one that left or did not answer. Rejects with what a root could not be read for, and with GW_CONFLICT when another gateway does not listen.
   */
  async proofsAtMark(
    list: readonly Replica[],
    purpose: string,
    what: Proof,
  ): Promise<{ readonly position: number; readonly proofs: readonly (string | null)[] }> {
    const appender = this.#appender;
    if (appender === null) throw new GatewayError("GW_CONFLICT", "the gateway is starting");
    const reason = this.#markReason(purpose);
    const elsewhere = new Map(
      list.filter((it) => !it.isOwn).map((it) => [it.name, this.#proofElsewhere?.(it, reason, what) ?? null]),
    );
    for (const [name, asked] of elsewhere)
      if (asked === null || !(await asked.isHeard))
        throw new GatewayError("GW_CONFLICT", `the gateway that feeds ${name} did not answer`);
    const own = list.filter((it) => it instanceof Applier);
    const proofs = this.#listenForMark(appender.boot, reason, own, what);
    try {
      const { position } = await appender.place({ kind: "mark", reason });
      return {
        position,
        proofs: await Promise.all(
          list.map((it) => elsewhere.get(it.name)?.proof() ?? proofs.get(it.name) ?? Promise.resolve(null)),
        ),
      };
    } finally {
      this.#marks.delete(markKey(appender.boot, reason));
    }
  }

  /** The same for a replica of ours at a mark that another gateway makes: it listens at once, the proof comes after the mark. */
  proofAt(name: string, producer: string, reason: string, what: Proof, timeoutMs: number): Promise<string | null> {
    const proof = this.#listenForMark(producer, reason, [this.applier(name)], what).get(name) ?? Promise.resolve(null);
    const timer = setTimeout(() => this.#marks.delete(markKey(producer, reason)), timeoutMs);
    return proof.finally(() => clearTimeout(timer));
  }

  #listenForMark(
    producer: string,
    reason: string,
    appliers: readonly Applier[],
    what: Proof,
  ): ReadonlyMap<string, Promise<string | null>> {
    const reached: ((position: number) => void)[] = [];
    const proofs = new Map(
      appliers.map((applier) => {
        const marked = new Promise<number>((resolve) => reached.push(resolve));
        return [applier.name, marked.then((position) => this.#prove(applier, position, what))] as const;
      }),
    );
    for (const proof of proofs.values()) proof.catch(() => undefined);
    // Within the fold: each of them hears of the position before it could go past it.
    this.#marks.set(markKey(producer, reason), (position) => {
      for (const applier of appliers) void applier.pauseAt(position);
      for (const tell of reached) tell(position);
    });
    return proofs;
  }

  async #prove(applier: Applier, position: number, what: Proof): Promise<string | null> {
    try {
      if (!(await applier.pauseAt(position))) return null;
      if (what === "witness") return await applier.witness();
      if (this.#rootOf === null) throw new GatewayError("GW_CONFLICT", `the state of ${applier.name} cannot be read`);
      return await this.#rootOf(applier, position);
    } finally {
      applier.goOn(position);
    }
  }

  /**
   * A replica that came back and a live sibling stop at a mark and answer their witnesses. Without a live sibling all that came back are compared with
   * each other. Null: there is nothing to compare. Later: a sibling may still come back, or did not answer now.
   */
  async verify(name: string): Promise<{ equal: boolean; detail: string } | null | "later"> {
    const returned = this.applier(name);
    if (returned.settings.witness.length === 0 || returned.settings.onReturn !== "verify") return null;
    const others = this.#all.filter((it) => it.name !== name);
    const sibling =
      this.liveAppliers().find((it) => it.name !== name) ??
      this.liveReplicas().find((it) => it.name !== name) ??
      others.find((it) => it.state === "replaying");
    // One that is on its way back has been away as this one has: whoever comes first waits for the next.
    if (sibling === undefined) return others.some((it) => mayReturn(it.state)) ? "later" : null;
    const { position, proofs } = await this.proofsAtMark(
      [returned, sibling],
      `verify ${name} by ${sibling.name}`,
      "witness",
    );
    const [mine, theirs] = proofs;
    if (mine === null || mine === undefined || theirs === null) return "later";
    if (mine === theirs) return { equal: true, detail: `equal at ${position}` };
    return { equal: false, detail: `the witnesses of ${name} and ${sibling.name} differ at ${position}` };
  }
}

/** What tells two states apart: what a copy answers to its witnesses, or the root of its state. */
export type Proof = "witness" | "root";

/** `isHeard`: its gateway waits for the mark. */
export type ProofElsewhere = (
  replica: Replica,
  reason: string,
  what: Proof,
) => { readonly isHeard: Promise<boolean>; proof(): Promise<string | null> };

/** One that is gone from here is being taken by another gateway. */
const mayReturn = (state: ReplicaState): boolean => state === "starting" || state === "lagging" || state === "gone";

const markKey = (producer: string, reason: string): string => `${producer} ${reason}`;
