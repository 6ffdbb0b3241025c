// Feeds one replica: every entry of the log, in order, exactly once. Knows at every moment what was sent, what is finished and what is unknown.
//
// A life of the applier: arrive (start or find the backend, settle what a former life left unknown) → catch up → (verify) → live, until trouble:
// a lost connection, a death, silence. Trouble stops all sends; what was in flight ends or becomes unknown; then it arrives again.

import type { Rule } from "../rules/rule.ts";
import { isRepeatable } from "../rules/rule.ts";
import { isApplied, probeRequest } from "../rules/probe.ts";
import type { Undo } from "../rules/undo.ts";
import { beforeRequest, undoRequest } from "../rules/undo.ts";
import type { Agreement, Answerer } from "./agreement.ts";
import { ForbiddenError } from "./backend/backend.ts";
import type { Backend, BackendRequest, Execution } from "./backend/backend.ts";
import type { Bodies } from "./bodies/bodies.ts";
import { ByPosition } from "./byposition.ts";
import type { Clock } from "./clock.ts";
import type { Cursor, Cursors, StoredCursor } from "./cursors/cursors.ts";
import { CursorLostError } from "./cursors/cursors.ts";
import type { Digests } from "./digests/digests.ts";
import type { Answer, Entry } from "./entry.ts";
import { endOf, isBodyRef, sequenceOf } from "./entry.ts";
import { GatewayError } from "./errors.ts";
import type { Events, ReplicaState } from "./events.ts";
import type { Exposure } from "./exposure.ts";
import type { FirstEntry } from "./firstentry.ts";
import type { ChainNotes, Intents } from "./intents/intents.ts";
import type { Keys } from "./keys/keys.ts";
import type { Incarnation, Launch } from "./launch/launch.ts";
import type { Log } from "./log/log.ts";
import type { Policies } from "./policies.ts";
import { contextOf } from "./policies.ts";
import type { LogReader } from "./reader.ts";
import type { RecordHeader } from "./record.ts";
import { Outgoing } from "./outgoing.ts";
import type { Rest, Resting } from "./rest.ts";
import { isHazard } from "./rest.ts";
import { Scheduler } from "./scheduler.ts";
import type { Plan, Unsettled } from "./settlement.ts";
import { settle } from "./settlement.ts";
import type { ReplayCheck } from "./replaycheck.ts";
import type { Folded } from "./state/state.ts";
import type { OwnMarks } from "./state/marks.ts";
import type { AnswerNews, ReplicaNews } from "./peers/peers.ts";
import type { Replica } from "./replica.ts";
import type { Turn, TurnTaker } from "./turn.ts";
import { carryOutUndos, decodeUndo, encodeUndo, putBack, savedBytesMax } from "./undo.ts";

export interface ReplicaSettings {
  readonly name: string;
  readonly backendVersion: string;
  /** Of a replica that runs without us; null: we start it. */
  readonly url: string | null;
  /** The backend's state outlives its process: it has a state folder of ours, or it runs without us. */
  readonly keepsState: boolean;
  /** `GET /path` targets whose answers tell two states apart. */
  readonly witness: readonly string[];
  readonly onReturn: "verify" | "trust" | "rebuild";
  readonly firstByteMs: number;
  readonly answerBytesMax: number;
  /** What `before` answers is kept up to this size. */
  readonly beforeBytesMax: number;
  /** Requests in flight at once on this replica. */
  readonly concurrency: number;
  readonly leaseMs: number;
  /** A live replica further behind than this is lagging, entries. */
  readonly lagMax: number;
  readonly health: { readonly everyMs: number; readonly fall: number; readonly rise: number };
}

export interface ApplierParts {
  readonly settings: ReplicaSettings;
  readonly launch: Launch;
  readonly connect: (url: string) => Backend;
  readonly pidOf: (incarnation: string) => number | null;
  readonly checkReady: (url: string, timeoutMs: number) => Promise<boolean>;
  readonly log: Log;
  readonly reader: LogReader;
  readonly policies: Policies;
  readonly cursors: Cursors;
  readonly marks: OwnMarks;
  readonly intents: Intents;
  readonly turn: Turn;
  readonly exposure: Exposure;
  readonly firstEntry: FirstEntry;
  readonly rest: Rest;
  readonly agreement: Agreement;
  readonly keys: Keys;
  readonly bodies: Bodies;
  readonly digests: Digests;
  readonly events: Events;
  readonly clock: Clock;
  readonly randomHex: (bytes: number) => string;
  readonly owner: { readonly name: string; readonly boot: string };
  /** Boot ids of former processes that held this data folder's lock: proven dead. */
  readonly formerBoots: ReadonlySet<string>;
  /** Compares a replica that came back with a live sibling at a mark; null: there is nothing to compare with; later: not now. */
  readonly verify: (replica: string) => Promise<{ readonly equal: boolean; readonly detail: string } | null | "later">;
  /** Where the log began when nothing of it was applied. */
  readonly firstSequence: number;
  /** How long a graceful end waits for answers. */
  readonly shutdownMs: number;
  readonly onState: (applier: Applier, from: ReplicaState) => void;
  /** W has moved. */
  readonly onMoved: () => void;
  /** An answer to an entry that another gateway appended: its front waits for it. */
  readonly deliver: (producer: string, answer: AnswerNews) => void;
  /** It answered an entry that may not be repeated, or ended with some in flight: other gateways' replicas wait to know. */
  readonly survived: (replica: string, position: number, rule: string, tookMs: number) => void;
  readonly died: (replica: string, positions: readonly number[]) => void;
  /** When a revision of its cursor was first heard of, by our monotonic clock; null: it was not. */
  readonly heardRevision: (replica: string, revision: number) => number | null;
}

/** Something done with a copy's state between two lives of it: a capture at a position, or a rebuild. */
export interface Visit {
  /** Shown as its state meanwhile. */
  readonly state: "lagging" | "restoring";
  readonly reason: string;
  /** The backend is ended for certain before `run`, and started again after it. */
  readonly isStopped: boolean;
  /**
   * keep: the copy was paused at a position before (`pauseAt`) and goes on from there, whatever becomes of `run`. replace: what is in flight is given up, the
   * state it has is void from here on, and `run` says of which position the new one is; when it rejects the copy stays `restoring`.
   */
  readonly kind: "keep" | "replace";
  run(visited: Visited, signal: AbortSignal): Promise<Standpoint | null>;
}

/** What a copy's new state is the state of. */
export interface Standpoint {
  /** The end of the mark's record. */
  readonly applied: number;
  readonly entries: number;
  readonly hash: string;
  /** Compares what it answers from there on with what was answered at first. */
  readonly check: ReplayCheck | null;
  /** Where a former state was put back: what stood with it. */
  readonly former?: Former;
}

/** Of a state that is replaced: where it stood, and what is open in it. */
export type Former = Pick<Cursor, "applied" | "entries" | "hash" | "finished" | "unknown" | "standing"> & {
  /** Why it is that state again; shown with whatever still holds it. */
  readonly whyAgain: string;
};

export interface Visited {
  /** Of a visit that replaces: null where it is not known what the state is the state of. */
  readonly former: Former | null;
  /** Begins a life of the backend for what needs one that runs (an import). It goes on after the visit: what it was given may be in its memory alone. */
  start(signal: AbortSignal): Promise<void>;
  /** A request of the gateway's own. Null: not answered. */
  ask(method: string, target: string): Promise<Answer | null>;
}

interface PendingVisit {
  readonly visit: Visit;
  readonly resolve: () => void;
  readonly reject: (error: unknown) => void;
}

interface Running {
  readonly position: number;
  readonly entry: Entry;
  readonly outgoing: Outgoing;
  readonly rule: Rule;
  readonly header: RecordHeader;
  state: "queued" | "ready" | "sent" | "released" | "unknown";
  /** An intent for it existed before: this send is a second one, and never the primary's. */
  wasIntended: boolean;
  /** A probe said that it was not applied. */
  isKnownUnsent: boolean;
  sentAtMs: number;
  isReplay: boolean;
  /** The life in which it became known what puts it back, or that nothing does. Another one's may be void. */
  askedIn: AbortController | null;
  /** The nonce of the chain that its undo is noted in. */
  savedUnder: string;
  /** Nothing would tell what became of it. */
  isHazard: boolean;
}

type FormerNotes = ChainNotes & { readonly isExact: boolean };

interface Given {
  readonly running: Running;
  readonly outcome: Extract<OutcomeOf, { kind: "done" | "broken" }>;
}

interface Completion {
  readonly running: Running;
  readonly execution: Execution;
}

type Trouble =
  | { readonly kind: "closed"; readonly cause: string }
  | { readonly kind: "refused"; readonly cause: string }
  | { readonly kind: "exited"; readonly cause: string }
  | { readonly kind: "silent"; readonly cause: string }
  | {
      readonly kind: "ordered";
      readonly state: "draining" | "quarantined" | "held";
      readonly reason: string;
      readonly rebuild?: boolean;
    }
  | { readonly kind: "fenced"; readonly cause: string }
  | { readonly kind: "visited"; readonly wasStopped: boolean; readonly cause: string };

interface Waiter {
  readonly position: number;
  readonly orderKeys: readonly string[];
  readonly resolve: (isApplied: boolean) => void;
}

/** Entries pulled and not finished, at most; what is in flight is bounded by `concurrency`. */
const windowMax = 4096;
/** And so many bytes: a replica that stalls for an hour costs no more. */
const windowBytesMax = 32 * 1024 * 1024;
/** The dispatch bound U runs so many records ahead of what was pulled. */
const boundAhead = 1024;
const cursorEveryMs = 250;
const cleanAfterMs = 2000;
/** "Caught up": no further behind than this when it goes live, entries. */
const caughtUp = 256;
/** Reads that a copy is still answering when its state is to be captured. */
const readsEndMs = 5000;
const stopGraceMs = 10_000;
/** Before a copy that came back is compared again, where that could not be done. */
const verifyAgainMs = 250;
/** How long all probes of a copy together wait for one that says nothing, and how many answers that tell nothing are enough. */
const probePatienceMs = 60_000;
const probeAnswersMax = 5;
const restartBackoffMs = [100, 250, 500, 1000, 2000, 5000];

export class Applier implements TurnTaker, Replica, Resting {
  readonly name: string;
  readonly isOwn = true;
  readonly #parts: ApplierParts;
  #state: ReplicaState = "starting";
  #reason = "";
  #backend: Backend | null = null;
  #incarnation: Incarnation | null = null;
  /** Begun by a visitor, for whom it took a state: the next arrival goes on with it. */
  #begun: Incarnation | null = null;
  #cursor!: Cursor;
  #revision = 0;
  #scheduler = new Scheduler(0);
  readonly #running = new ByPosition<Running>();
  #ready: Running[] = [];
  #inFlight = 0;
  #nextSequence = 1;
  /** H and entry counts after the pulled records at or above the watermark. */
  #pulled: {
    readonly sequence: number;
    readonly hash: string;
    readonly entriesBefore: number;
    readonly entries: number;
  }[] = [];
  #hash = "";
  #entriesPulled = 0;
  #isReading = false;
  /** The cursor has told where to go on: before that nothing is pulled. */
  #isPlaced = false;
  readonly #behind: Folded[] = [];
  #completions: Completion[] = [];
  #toFinish: Running[] = [];
  #toSend: Running[] = [];
  #given: Given[] = [];
  /** Sends are allowed. */
  #isOpen = false;
  /** Positions of marks at which somebody needs it to stand still. */
  readonly #stops = new Set<number>();
  #alone: Running | null = null;
  #leaseUntil = Number.POSITIVE_INFINITY;
  #trouble: Trouble | null = null;
  #onTrouble: (() => void) | null = null;
  #waiters: Waiter[] = [];
  #saving: Promise<void> | null = null;
  #lastBusyMs = 0;
  #isBusy = false;
  #isBecomingBusy = false;
  #orders: { wake: (() => void) | null; resumed: boolean } = { wake: null, resumed: false };
  readonly #slowestMs = new Map<string, number>();
  readonly #finishedBefore = new Set<number>();
  /** Those of them that were pulled: they prove what was sent before them. */
  #doneBefore: { readonly position: number; readonly orderKeys: readonly string[] }[] = [];
  /** Finished above the saved watermark: what a rewrite of the notes must keep. */
  #doneSinceSave: number[] = [];
  readonly #plans = new Map<number, Plan>();
  /** What puts an unfinished entry back, as it stands in the notes. */
  readonly #saved = new Map<number, Buffer>();
  #savedBytes = 0;
  /** Entries whose `before` is being read. */
  #asking = 0;
  #hazards = 0;
  /** Nothing is sent: another copy would have to be rebuilt after a crash, and this one would not. */
  #isResting = false;
  #onRest: (() => void) | null = null;
  /** A moving average of answer times. */
  #usualMs = 0;
  readonly #barred = new Set<number>();
  #answers: Answerer;
  #probing = false;
  /** It could not be reached when this gateway came. */
  #wasAway = false;
  #isLeaving = false;
  #isUnhealthy = false;
  #windowBytes = 0;
  #visit: PendingVisit | null = null;
  /** Ends what the present life waits for, when somebody visits. */
  #life = new AbortController();
  /** Ends the reading of the log behind the buffer. */
  #readStop = new AbortController();
  #check: ReplayCheck | null = null;
  /** What a former life left, until it is settled: an arrival may fail before that, and the next one must know. */
  #left: FormerNotes | null = null;
  /** Its state is a former one that was put back. */
  #whyAgain = "";
  /** From the arrival to "live": what is pulled then is replayed. */
  #isCatchingUp = true;
  /** A former life of this copy finished everything up to here: its primary's part was done. */
  #finishedByFormer = 0;
  /** Another gateway owns it now: nothing of it is ours to write or to send. */
  #isLost = false;
  /** Other gateways may read from this life of it until then. */
  #grantedUntilMs = 0;
  #movedTo = 0;

  constructor(parts: ApplierParts) {
    this.#parts = parts;
    this.name = parts.settings.name;
    this.#answers = { replica: this.name, incarnation: "", backendVersion: parts.settings.backendVersion };
    parts.launch.onExit((reason) => this.#raise({ kind: "exited", cause: reason }));
  }

  get state(): ReplicaState {
    return this.#state;
  }
  get reason(): string {
    return this.#reason;
  }
  get url(): string | null {
    return (this.#begun ?? this.#incarnation)?.url ?? this.#parts.settings.url;
  }
  get incarnation(): string {
    return this.#incarnation?.id ?? "";
  }
  /** Of a managed backend, from its incarnation (machine boot, pid, start time). */
  get pid(): number | null {
    return this.isManaged ? (this.#parts.pidOf(this.incarnation) ?? null) : null;
  }
  get isManaged(): boolean {
    return this.#parts.launch.isManaged;
  }
  get backend(): Backend | null {
    return this.#backend;
  }
  /** Only-once requests it is answering now; counted by who sends them. */
  reading = 0;
  get inFlight(): number {
    return this.#inFlight;
  }
  /** The next record it takes. */
  get nextSequence(): number {
    return this.#nextSequence;
  }
  /** W. */
  get applied(): number {
    return this.#scheduler.watermark;
  }
  /** Entries of the log that are not finished here. */
  get lag(): number {
    return Math.max(0, this.#parts.reader.state.entries - this.#entriesPulled + this.#running.size);
  }
  /** Log time of the oldest entry that is not finished; null: none. */
  get oldestMs(): number | null {
    for (const it of this.#running.values()) return it.entry.timeMs;
    return null;
  }
  get unknown(): readonly number[] {
    return this.#cursor?.unknown ?? [];
  }
  get cursor(): Cursor {
    return this.#cursor;
  }
  get settings(): ReplicaSettings {
    return this.#parts.settings;
  }
  get backendVersion(): string {
    return this.settings.backendVersion;
  }
  get ownerName(): string | null {
    return this.#cursor?.owner?.name ?? null;
  }
  /** It does not own its replica yet: it waits for the lease of whoever did. */
  get isWaiting(): boolean {
    return this.#revision === 0;
  }
  /** It has ended because another gateway took it. */
  get isLost(): boolean {
    return this.#isLost;
  }

  /** Whoever was away for longer than the lease may have been replaced. An embedded log has one gateway for as long as that holds the data folder. */
  isSure(): boolean {
    const { clock, log } = this.#parts;
    return this.#state === "live" && (log.kind === "embedded" || clock.now() <= this.#leaseUntil);
  }
  whenSure(): Promise<boolean> {
    return Promise.resolve(this.isSure());
  }

  /** Another gateway may read from this life for `ms`; null: it may not, for that is over or is not ours for so long. */
  grant(incarnation: string, ms: number): number | null {
    const now = this.#parts.clock.now();
    if (!this.isSure() || incarnation !== this.incarnation || now + ms > this.#leaseUntil) return null;
    this.#grantedUntilMs = Math.max(this.#grantedUntilMs, now + ms);
    return ms;
  }

  /** What other gateways are told of it. */
  news(): ReplicaNews {
    return {
      name: this.name,
      state: this.#state,
      reason: this.#reason,
      url: this.url,
      incarnation: this.incarnation,
      version: this.settings.backendVersion,
      isManaged: this.isManaged,
      applied: this.applied,
      entries: Math.max(0, this.#entriesPulled - this.#running.size),
      revision: this.#revision,
    };
  }

  // ---- what others ask -------------------------------------------------------------------------------------------------------------

  /** Everything a reader of `position` could see is executed here: all of it, or what shares an order key with the read. */
  hasApplied(position: number, orderKeys: readonly string[]): boolean {
    if (this.#scheduler.watermark >= position) return true;
    if (this.#nextSequence <= sequenceOf(position)) return false;
    return !this.#scheduler.conflicts(position, orderKeys);
  }

  /** Resolves true once `hasApplied`, false when the replica left. */
  whenApplied(position: number, orderKeys: readonly string[]): Promise<boolean> {
    if (this.hasApplied(position, orderKeys)) return Promise.resolve(true);
    if (this.#trouble !== null || this.#isLeaving) return Promise.resolve(false);
    return new Promise((resolve) => this.#waiters.push({ position, orderKeys, resolve }));
  }

  /** The log has grown. */
  wake(): void {
    this.#parts.turn.ask(this);
  }

  /**
   * Finishes everything at or below `position` and starts nothing above until `goOn` is called for it; resolves when that is so. False: it left meanwhile.
   * Several may ask for it at once: it stands still at the lowest of their positions first.
   */
  pauseAt(position: number): Promise<boolean> {
    this.#stops.add(position);
    return this.whenApplied(position, []);
  }
  /** Absent: whoever asked. */
  goOn(position?: number): void {
    if (position === undefined) this.#stops.clear();
    else this.#stops.delete(position);
    this.wake();
  }
  /** Nothing above this is started. */
  get #stopAt(): number {
    let lowest = Number.POSITIVE_INFINITY;
    for (const position of this.#stops) lowest = Math.min(lowest, position);
    return lowest;
  }

  // ---- rest (see rest.ts) ----------------------------------------------------------------------------------------------------------

  get isLive(): boolean {
    return this.#state === "live";
  }
  get isClean(): boolean {
    return !this.#isBusy && !this.#isBecomingBusy && this.#cursor?.state === "clean";
  }
  get isCaptured(): boolean {
    return this.#visit?.visit.kind === "keep" && this.isClean;
  }
  get hazards(): number {
    return this.#isOpen ? this.#hazards : 0;
  }
  get patienceMs(): number {
    return 250 + 4 * this.#usualMs;
  }

  async rest(): Promise<boolean> {
    this.#isResting = true;
    const isStill = (): boolean => this.#isResting && this.isLive;
    // Ends when nothing is in flight, or when it is no longer wanted.
    while (!this.#isQuiet) {
      if (!isStill()) return false;
      await new Promise<void>((resolve) => (this.#onRest = resolve));
    }
    while (this.#saving !== null) await this.#saving;
    if (!isStill()) return false;
    if (this.#isBusy) {
      this.#isBusy = false;
      const watermark = this.#watermark();
      try {
        await this.#save({ state: "clean", ...watermark, bound: watermark.applied, finished: this.#finishedAbove() });
      } catch (error) {
        this.#raise({ kind: "fenced", cause: messageOf(error) });
        return false;
      }
    }
    return isStill() && this.isClean;
  }

  goOnAfterRest(): void {
    if (!this.#isResting) return;
    this.#isResting = false;
    this.#onRest?.();
    this.wake();
  }

  /** Nothing is in flight, and nothing that was is unsettled. */
  get #isQuiet(): boolean {
    if (this.#inFlight > 0 || this.#toSend.length > 0 || this.#given.length > 0 || this.#isBecomingBusy) return false;
    for (const it of this.#running.values())
      if ((it.state !== "queued" && it.state !== "ready") || it.wasIntended) return false;
    return true;
  }

  /** Side by side means out of order: what is finished above the watermark must not run again. */
  #finishedAbove(): readonly number[] {
    return sorted(new Set([...this.#finishedBefore, ...this.#scheduler.finishedAbove()]));
  }

  /** Resolves when the visit is over; the copy then comes back by itself. Rejects with GW_CONFLICT when it cannot begin, or with what `run` rejected with. */
  visit(visit: Visit): Promise<void> {
    if (this.#visit !== null || this.#isLeaving || this.#isGone)
      return Promise.reject(
        new GatewayError("GW_CONFLICT", `${this.name} is ${this.#visit?.visit.reason ?? this.#state} already`),
      );
    return new Promise((resolve, reject) => {
      this.#visit = { visit, resolve, reject };
      this.#isOpen = false;
      this.#life.abort();
    });
  }
  get isVisited(): boolean {
    return this.#visit !== null;
  }

  order(state: "draining" | "quarantined", reason: string, rebuild = false): void {
    this.#raise({ kind: "ordered", state, reason, rebuild });
  }

  /** It was taken out of service to be made anew, by us or by a former life of this gateway. */
  get wantsRebuild(): boolean {
    return this.#cursor?.standing?.rebuild === true;
  }

  /** An operator lets a drained, quarantined or held replica go on. */
  resume(): void {
    this.#orders.resumed = true;
    this.#orders.wake?.();
  }

  /** A person knows what became of an entry that is held. */
  async resolve(position: number, isDone: boolean): Promise<void> {
    if (!this.#cursor.unknown.includes(position))
      throw new GatewayError("GW_CONFLICT", `entry ${position} is not unknown on ${this.name}`);
    this.#plans.set(position, isDone ? { do: "done", by: "operator" } : { do: "send-again" });
    this.#parts.events.tell({
      type: "settled",
      replica: this.name,
      position,
      by: "operator",
      result: isDone ? "applied" : "not-applied",
    });
    if (isDone) {
      this.#parts.intents.done(this.name, position);
      this.#parts.intents.flush();
    }
    await this.#save({
      unknown: this.#cursor.unknown.filter((it) => it !== position),
      finished: isDone ? [...this.#cursor.finished, position] : this.#cursor.finished,
    });
    if (this.#cursor.unknown.length === 0) {
      await this.#save({ standing: null });
      this.resume();
    }
  }

  entryOf(position: number): Unsettled | null {
    const it = this.#running.get(position);
    return it === undefined ? null : it;
  }

  /** This replica will not send the entry until `unbar` or `skip`. False: it may have sent it already. */
  bar(position: number): boolean {
    const it = this.#running.get(position);
    const isUnsent =
      it === undefined
        ? this.#scheduler.watermark < position
        : (it.state === "queued" || it.state === "ready") && (!it.wasIntended || it.isKnownUnsent);
    if (isUnsent) this.#barred.add(position);
    return isUnsent;
  }
  /** The same, known to whoever owns it after us. */
  async barForAll(position: number): Promise<boolean> {
    if (!this.bar(position)) return false;
    await this.#save({ barred: position });
    return this.#barred.has(position);
  }
  unbar(position: number): void {
    this.#barred.delete(position);
    this.wake();
  }
  /** The log says that the entry is executed nowhere. False: this replica may have executed it. */
  skip(position: number): boolean {
    const isUnsent = this.bar(position);
    this.#barred.delete(position);
    const it = this.#running.get(position);
    // What is being settled is judged when that is known.
    if (it?.state === "unknown") return true;
    if (isUnsent && it !== undefined) this.#dropUnsent(it);
    return isUnsent;
  }

  #dropUnsent(it: Running): void {
    this.#ready = this.#ready.filter((other) => other !== it);
    this.#scheduler.release(it.position, this.#runnable);
    this.#finish(it);
  }

  // ---- life ------------------------------------------------------------------------------------------------------------------------

  /** Ends when the signal aborts. Never rejects: what goes wrong is the replica's state and reason. */
  async run(signal: AbortSignal): Promise<void> {
    const saver = setInterval(() => this.#saveWatermark(), cursorEveryMs);
    const health = setInterval(() => void this.#checkHealth(), this.#parts.settings.health.everyMs);
    let failures = 0;
    let ended: Trouble | null = null;
    try {
      while (!signal.aborted) {
        this.#trouble = null;
        this.#life = new AbortController();
        const life = AbortSignal.any([signal, this.#life.signal]);
        try {
          if (this.#visit !== null) ended = await this.#receive(this.#visit, signal);
          await this.#arrive(life, ended);
          failures = 0;
          ended = await this.#untilTrouble(life);
          if (ended?.kind === "fenced") this.#isLost = true;
          if (this.#isLost) break;
          if (ended !== null) await this.#windUp(ended, life);
        } catch (error) {
          if (signal.aborted) break;
          if (error instanceof TakenError || this.#isFenced) {
            this.#isLost = true;
            break;
          }
          if (this.#visit !== null) continue;
          const code = error instanceof GatewayError ? error.code : null;
          if (code === "GW_LOG_REGRESSED") this.#parts.reader.fail(error as GatewayError);
          if (code === "GW_CURSOR_LOST" || code === "GW_LOG_REGRESSED") {
            // What the replica has applied is not known: never feed it from the beginning onto an old state.
            this.#become("held", messageOf(error));
            await this.#untilAborted(life);
            continue;
          }
          this.#become("lagging", messageOf(error));
          ended = { kind: "refused", cause: messageOf(error) };
          await this.#parts.clock.sleep(
            restartBackoffMs[Math.min(failures++, restartBackoffMs.length - 1)] as number,
            life,
          );
        }
      }
    } finally {
      clearInterval(saver);
      clearInterval(health);
      await this.#leave();
    }
  }

  /** Between two lives: what is in flight ends, the backend is ended if it has to be, and the visitor has the copy's state to itself. */
  async #receive(pending: PendingVisit, signal: AbortSignal): Promise<Trouble> {
    const { visit } = pending;
    this.#become(visit.state, visit.reason);
    for (const waiter of this.#waiters.splice(0)) waiter.resolve(false);
    try {
      await (visit.kind === "keep" ? this.#receiveKeeping(visit, signal) : this.#receiveReplacing(visit, signal));
      pending.resolve();
    } catch (error) {
      pending.reject(error);
    } finally {
      this.#visit = null;
      this.#stops.clear();
    }
    return { kind: "visited", wasStopped: visit.isStopped, cause: visit.reason };
  }

  async #receiveKeeping(visit: Visit, signal: AbortSignal): Promise<void> {
    const { clock, launch } = this.#parts;
    const until = clock.now() + readsEndMs;
    while ((this.reading > 0 || this.#inFlight > 0) && clock.now() < until && !signal.aborted) await clock.sleep(5);
    if (this.#inFlight > 0 || this.#isBecomingBusy || this.#cursor === undefined || this.#cursor.unknown.length > 0)
      throw new GatewayError("GW_CONFLICT", `${this.name} is not at rest`);
    this.#isBusy = false;
    const watermark = this.#watermark();
    await this.#save({ state: "clean", ...watermark, bound: watermark.applied, finished: [] });
    if (visit.isStopped) await launch.stop(stopGraceMs);
    await visit.run(this.#visited(null), signal);
  }

  async #receiveReplacing(visit: Visit, signal: AbortSignal): Promise<void> {
    const { clock, events, launch, log, owner, settings } = this.#parts;
    this.#begun = null;
    await this.#untilUngranted();
    if (visit.isStopped) await launch.stop(stopGraceMs);
    const until = clock.now() + (visit.isStopped ? 1000 : settings.firstByteMs);
    while (this.#inFlight > 0 && clock.now() < until && !signal.aborted) await clock.sleep(5);
    if (this.#inFlight > 0) await this.#backend?.abandon();
    while (this.#inFlight > 0 || this.#isBecomingBusy) await clock.sleep(5);
    const former = this.#former();
    for (const it of this.#running.values())
      if (it.wasIntended || it.state === "unknown") this.#tellUnfinished(it, "unknown");
    this.#finishedByFormer = Math.max(this.#finishedByFormer, this.#scheduler.watermark);
    // Nothing of the log is pulled for a state that is void.
    this.#isPlaced = false;
    this.#clear();
    await this.#openForReplacing(signal);
    // What was answered up to here was answered from the state that goes now: it tells nothing of the one that comes.
    const restored = endOf(this.#parts.reader.sequence);
    await this.#save({ owner, epoch: log.epoch, restored, standing: { state: "restoring", reason: visit.reason } });
    const at = await visit.run(this.#visited(former), signal);
    if (at === null) throw new GatewayError("GW_INTERNAL", `the rebuild of ${this.name} did not say where it stands`);
    while (this.#saving !== null) await this.#saving;
    const { check, former: again, ...standpoint } = at;
    const { finished = [], unknown = [], standing = null, whyAgain = "" } = again ?? {};
    this.#check = check;
    this.#whyAgain = whyAgain;
    // What was raised or ordered meanwhile was of the former state.
    this.#trouble = null;
    // In memory first: a watermark that is saved meanwhile is that of the new state.
    this.#cursor = { ...this.#cursor, ...standpoint, bound: at.applied, nonce: "", finished, unknown };
    this.#rewind(at.applied);
    this.#isPlaced = false;
    // The life that took it: without it, what a backend keeps in memory is lost.
    const begun = this.#begun as Incarnation | null;
    const isSuspect = again !== undefined && this.#cursor.isSuspect;
    await this.#save({
      state: "clean",
      standing,
      incarnation: begun?.id ?? "",
      isSuspect,
      barred: null,
      slowestMs: {},
    });
    events.tell({ type: "recovery", replica: this.name, state: "restored", detail: `at ${at.applied}` });
    // From here on as after a start of the gateway: the cursor tells where to go on.
    this.#incarnation = null;
  }

  /** Nobody is told any more that it may be read from; those who were told before are waited for. */
  async #untilUngranted(): Promise<void> {
    const { clock } = this.#parts;
    while (clock.now() < this.#grantedUntilMs) await clock.sleep(this.#grantedUntilMs - clock.now());
  }

  /** What would have to be known to go on with the state as it is. */
  #former(): Former | null {
    const cursor = this.#cursor as Cursor | undefined;
    if (cursor === undefined || cursor.standing?.state === "restoring") return null;
    const { standing } = cursor;
    if (!this.#isPlaced) {
      const { done: finished, unknown, isExact } = this.#formerNotes();
      const { applied, entries, hash } = cursor;
      return isExact ? { applied, entries, hash, finished, unknown, standing, whyAgain: "" } : null;
    }
    const { applied, entries, hash } = this.#watermark();
    const finished = [...this.#finishedBefore, ...this.#doneSinceSave].filter((it) => it > applied);
    const unknown: number[] = [];
    for (const it of this.#running.values())
      if (it.state === "released") finished.push(it.position);
      else if (it.state === "sent" || it.state === "unknown" || (it.wasIntended && !it.isKnownUnsent))
        unknown.push(it.position);
    return { applied, entries, hash, finished: sorted(new Set(finished)), unknown, standing, whyAgain: "" };
  }

  /** The cursor of a copy whose state is void: one that is lost, or of a former epoch, is written over. */
  async #openForReplacing(signal: AbortSignal): Promise<void> {
    const { log, owner, settings } = this.#parts;
    if (this.#cursor !== undefined && this.#revision > 0) return;
    try {
      await this.#openCursor(signal);
    } catch (error) {
      if (!(error instanceof GatewayError) || (error.code !== "GW_CURSOR_LOST" && error.code !== "GW_LOG_REGRESSED"))
        throw error;
      const stored = error instanceof CursorLostError ? error : await this.#parts.cursors.load(this.name);
      this.#cursor = newCursor(this.name, owner, log.epoch, settings.backendVersion);
      this.#revision = stored?.revision ?? 0;
    }
  }

  #visited(former: Former | null): Visited {
    const { launch } = this.#parts;
    return {
      former,
      start: async (signal) => {
        this.#begun = await launch.start(signal);
        await this.#backend?.close();
        this.#backend = this.#parts.connect(this.#begun.url);
      },
      ask: (method, target) => this.#ask(method, target, null),
    };
  }

  /** Forgets everything that belongs to a state which is gone. */
  #clear(): void {
    this.#readStop.abort();
    this.#readStop = new AbortController();
    this.#running.clear();
    this.#windowBytes = 0;
    for (const list of [this.#behind, this.#completions, this.#toFinish, this.#given]) list.length = 0;
    this.#ready = [];
    this.#toSend = [];
    this.#doneBefore = [];
    this.#doneSinceSave = [];
    this.#finishedBefore.clear();
    this.#plans.clear();
    this.#saved.clear();
    this.#savedBytes = 0;
    this.#hazards = 0;
    this.#barred.clear();
    this.#slowestMs.clear();
    this.#alone = null;
    this.#isBusy = false;
  }

  #tellUnfinished(it: Running, what: "not-done" | "unknown"): void {
    if (it.header.primary !== this.name || it.position <= this.#finishedByFormer) return;
    const { method, target } = it.entry;
    const rule = it.rule.name;
    this.#parts.events.tell({
      type: "once-unfinished",
      replica: this.name,
      position: it.position,
      rule,
      method,
      target,
      what,
    });
  }

  /** From nothing to live. Throws when the backend cannot be had now: the caller waits and tries again. */
  async #arrive(signal: AbortSignal, after: Trouble | null): Promise<void> {
    const { launch, events, settings } = this.#parts;
    this.#isCatchingUp = true;
    const isFirst = this.#incarnation === null;
    if (isFirst) await this.#openCursor(signal);
    const { standing } = this.#cursor;
    // Its state is half of one and half of another: only whoever replaces it ends this.
    if (standing?.state === "restoring") {
      this.#become("restoring", standing.reason);
      await this.#untilAborted(signal);
      throw new GatewayError("GW_STOPPING", "the rebuild begins again");
    }
    if (standing !== null && standing.state !== "held") {
      this.#become(standing.state, standing.reason);
      await this.#untilResumed(signal);
      await this.#save({ standing: null });
    }

    // A URL replica that refuses us at our first try was restarted, or will be: what comes back is another life.
    if (isFirst && settings.url !== null && this.#cursor.incarnation !== "") await this.#noteAbsence(settings.url);
    const isSameLife =
      !isFirst &&
      ((after?.kind === "visited" && !after.wasStopped) || (after?.kind === "closed" && (await this.#isStillThere())));
    if (!isSameLife && after?.kind !== "ordered") {
      if (this.#state !== "lagging")
        this.#become(
          "starting",
          settings.url === null ? "the backend is being started" : `${settings.url} does not answer yet`,
        );
      const begun = this.#begun;
      // Started without its state, it would go on from where it is not.
      const mayLack = begun === null && standing === null && settings.keepsState && this.#cursor.entries > 0;
      const missing = mayLack ? await launch.missingState() : null;
      if (missing !== null) await this.#hold(`its state is lost: ${missing}`, signal);
      this.#incarnation = begun ?? (await launch.start(signal));
      this.#begun = null;
      if (begun === null) {
        await this.#backend?.close();
        this.#backend = this.#parts.connect(this.#incarnation.url);
      }
    }
    const incarnation = this.#incarnation as Incarnation;
    const isStaticFirst = !launch.isManaged && isFirst && !this.#wasAway && this.#cursor.incarnation !== "";
    // A URL replica that was there at our first try is taken for the one we left: our own absence is not seen (a stated limit).
    const id = isStaticFirst ? this.#cursor.incarnation : incarnation.id;
    const isOther = this.#cursor.incarnation !== "" && this.#cursor.incarnation !== id;
    if (isStaticFirst) this.#incarnation = { ...incarnation, id };
    events.tell({ type: "incarnation", replica: this.name, id, url: incarnation.url });

    if (isFirst) {
      const former = this.#formerNotes();
      this.#rewind(this.#cursor.applied);
      for (const position of former.done) this.#finishedBefore.add(position);
      for (const [position, undo] of former.saved ?? []) this.#saveUndo(position, undo);
      this.#left = former;
    }
    const notes = this.#left ?? this.#ownNotes();
    // From here on the cursor names us, and our own notes go on where the former ones ended. A range that nobody noted stays one until it
    // is settled: without a nonce no notes count.
    const sent = sorted(new Set([...notes.unknown, ...this.#notes().unknown]));
    const nonce = notes.isExact ? this.#beginChain(notes.done, sent) : "";
    const applied = isFirst ? this.#cursor.applied : this.#scheduler.watermark;
    const isClean = notes.unknown.length === 0 && notes.done.length === 0 && this.#running.size === 0;
    const cameBack =
      isOther &&
      !isSameLife &&
      applied > 0 &&
      // An end that we brought about, and a state that outlived it.
      after?.kind !== "visited" &&
      !(launch.isManaged && settings.keepsState);
    // Written with the first that is known of its new life: a gateway that dies before the proof leaves the next one to ask for it.
    const isSuspect = settings.onReturn !== "trust" && (this.#cursor.isSuspect || cameBack);
    // Without a state folder a managed backend begins empty.
    const lost = isOther && !settings.keepsState && this.#cursor.applied > 0;
    await this.#save({
      owner: this.#parts.owner,
      incarnation: id,
      isSuspect,
      nonce,
      state: isClean ? "clean" : "busy",
      bound: isClean ? applied : notes.isExact ? Math.max(this.#cursor.bound, ...notes.unknown) : this.#cursor.bound,
      finished: notes.done.filter((it) => it > applied),
      unknown: notes.isExact ? notes.unknown : [],
      // Of what is done, the new chain notes only what stands above the watermark of now.
      ...(isFirst ? null : this.#watermark()),
    });
    this.#isBusy = !isClean;

    if (notes.unknown.length > 0) await this.#settle(notes.unknown, notes.isExact, signal);
    let isTrusted = settings.onReturn === "trust";
    if (notes.unknown.length === 0 && this.#cursor.standing?.state === "held") {
      this.#become("held", this.#cursor.standing.reason);
      await this.#untilResumed(signal);
      await this.#save({ standing: null });
      isTrusted = true;
    }
    this.#left = null;
    if (lost && !isTrusted && settings.witness.length === 0) {
      await this.#hold(
        `the backend came back as ${id} and keeps no state that we can see: it may have forgotten`,
        signal,
      );
      isTrusted = true;
    }

    this.#isOpen = this.#trouble === null;
    const needsProof = isSuspect && !isTrusted;
    if (this.#state !== "replaying")
      this.#become(
        needsProof || this.lag > caughtUp ? "replaying" : this.#state,
        `catching up with ${this.lag} entries`,
      );
    this.wake();
    await this.#caughtUp(signal);
    if (this.#trouble !== null || signal.aborted) return;
    if (needsProof && settings.onReturn === "rebuild")
      await this.#hold("the backend came back, and onReturn says that it is rebuilt then", signal);
    else if (needsProof) {
      // A sibling that left already never reaches the mark: a gateway that stops does not wait for it.
      const stopped = this.#untilAborted(signal).then(() => null);
      const verify = (): ReturnType<ApplierParts["verify"]> => Promise.race([this.#parts.verify(this.name), stopped]);
      let verdict = await verify();
      // Ends with a verdict, in trouble, or when it is told to stop.
      while (verdict === "later" && this.#trouble === null && !signal.aborted) {
        await this.#parts.clock.sleep(verifyAgainMs, signal);
        if (this.#trouble === null) verdict = await verify();
      }
      if (this.#trouble !== null || signal.aborted || verdict === "later") return;
      if (verdict === null)
        await this.#hold("the backend came back and there is nothing to compare its state with", signal);
      else if (!verdict.equal)
        await this.#hold(`the backend came back with another state than its siblings: ${verdict.detail}`, signal);
      this.#isOpen = this.#trouble === null;
    }
    if (this.#trouble !== null || signal.aborted) return;
    if (this.#check !== null) {
      const check = this.#check;
      // Everything that was there before it is live is compared, not only what keeps it from being "caught up".
      const tail = endOf(this.#parts.reader.sequence);
      while (this.applied < tail && this.#trouble === null && !signal.aborted) await this.#parts.clock.sleep(5, signal);
      await check.settle();
      this.#check = null;
      if (this.#trouble !== null) return;
    }
    if (this.#cursor.isSuspect) await this.#save({ isSuspect: false });
    if (this.#trouble !== null || signal.aborted) return;
    this.#isCatchingUp = false;
    this.#whyAgain = "";
    this.#become("live", "");
    this.wake();
  }

  async #noteAbsence(url: string): Promise<void> {
    const backend = this.#parts.connect(url);
    if ((await backend.probe(1000)) !== "reachable") this.#wasAway = true;
    await backend.close();
  }

  async #isStillThere(): Promise<boolean> {
    if (this.#parts.launch.isManaged) return false;
    return (await this.#backend?.probe(1000)) === "reachable";
  }

  async #openCursor(signal: AbortSignal): Promise<void> {
    const { reader, log, marks, owner, formerBoots, settings, clock } = this.#parts;
    let stored = await this.#loadCursor(signal);
    if (stored === null) {
      if (reader.state.entries > 0 && marks.current?.revisions[this.name] !== undefined)
        throw new GatewayError(
          "GW_CURSOR_LOST",
          `the cursor of ${this.name} is gone; what the replica has applied is not known`,
        );
      this.#cursor = newCursor(this.name, owner, log.epoch, settings.backendVersion);
      this.#revision = 0;
      if (reader.state.entries > 0) {
        // It was never fed from this log, which has entries: its state is not known to be that of any position.
        this.#cursor = {
          ...this.#cursor,
          standing: {
            state: "held",
            reason: "the replica is new to a log that has entries already: it must be rebuilt",
          },
        };
      }
      return;
    }
    if (stored.cursor.epoch !== log.epoch)
      throw new GatewayError(
        "GW_LOG_REGRESSED",
        `the cursor of ${this.name} belongs to the log of epoch ${stored.cursor.epoch}, this one is ${log.epoch}`,
      );
    await this.#untilRead(stored.cursor.applied, signal);
    const former = stored.cursor.owner;
    if (former !== null && former.boot !== owner.boot && !formerBoots.has(former.boot)) {
      this.#become("starting", `owned by the gateway ${former.name}; waiting for its lease`);
      stored = await this.#outwait(stored, signal, settings.leaseMs, clock);
      await this.#untilRead(stored.cursor.applied, signal);
    }
    this.#cursor = stored.cursor;
    this.#revision = stored.revision;
    if (stored.cursor.barred !== null) this.#barred.add(stored.cursor.barred);
    const { first } = await log.info();
    if (stored.cursor.standing === null && sequenceOf(stored.cursor.applied) + 1 < first)
      this.#cursor = { ...this.#cursor, standing: { state: "held", reason: truncatedAway } };
    for (const [rule, ms] of Object.entries(stored.cursor.slowestMs)) this.#slowestMs.set(rule, ms);
  }

  /** A load that began before a save of a former life of ours ended, or that a deposed server answered, is older than what was seen: only if it stays so the store lost its end. */
  async #loadCursor(signal: AbortSignal): Promise<StoredCursor | null> {
    const { clock, cursors, log, marks } = this.#parts;
    const until = clock.now() + (log.isTailExact ? 1000 : tailPatienceMs);
    // Ends with a cursor that is as new as it must be, or when the time is over.
    for (;;) {
      const stored = await cursors.load(this.name);
      try {
        marks.checkRevision(this.name, stored?.revision ?? 0);
        return stored;
      } catch (error) {
        if (clock.now() >= until || signal.aborted) throw error;
        await clock.sleep(100, signal);
      }
    }
  }

  /** What another gateway fed may be ahead of our own reader, as after a pause of ours: of the log it never is. */
  async #untilRead(applied: number, signal: AbortSignal): Promise<void> {
    const { clock, log, reader } = this.#parts;
    const record = sequenceOf(applied);
    const until = clock.now() + (log.isTailExact ? 0 : tailPatienceMs);
    for (;;) {
      // Ends when the record was read, when the log is seen not to have it, or with the signal.
      if (reader.sequence >= record) return;
      if (signal.aborted) throw new GatewayError("GW_STOPPING", "the gateway is stopping");
      if (reader.failure !== null) throw reader.failure;
      const end = Math.max(reader.sequence, await log.tail());
      if (end < record && clock.now() >= until)
        throw new GatewayError("GW_LOG_REGRESSED", `${this.name} has applied record ${record}, the log ends at ${end}`);
      await clock.sleep(10, signal);
    }
  }

  /** A stranger's replica is taken when its cursor has not moved for a whole lease. Ends then, or when the signal aborts. */
  async #outwait(
    stored: { cursor: Cursor; revision: number },
    signal: AbortSignal,
    leaseMs: number,
    clock: Clock,
  ): Promise<{ cursor: Cursor; revision: number }> {
    let since = this.#parts.heardRevision(this.name, stored.revision) ?? clock.now();
    for (;;) {
      if (stored.cursor.owner === null || clock.now() - since > leaseMs) return stored;
      await clock.sleep(Math.max(10, Math.min(500, leaseMs / 4, leaseMs - (clock.now() - since))), signal);
      if (signal.aborted) throw new GatewayError("GW_STOPPING", "the gateway is stopping");
      const now = await this.#parts.cursors.load(this.name);
      if (now === null) throw new GatewayError("GW_CURSOR_LOST", `the cursor of ${this.name} is gone`);
      if (now.revision !== stored.revision) since = clock.now();
      stored = now;
    }
  }

  /** What the owner before us left: exact by its own notes, else everything up to the dispatch bound. */
  #formerNotes(): FormerNotes {
    const cursor = this.#cursor;
    if (cursor.owner === null || cursor.state === "clean")
      return { unknown: cursor.unknown, done: cursor.finished, isExact: true };
    const notes = this.#parts.intents.notes(cursor.owner.boot, this.name, cursor.nonce);
    const above = (it: number): boolean => it > cursor.applied;
    if (notes !== null) {
      const done = new Set([...cursor.finished, ...notes.done].filter(above));
      const unknown = new Set([...cursor.unknown, ...notes.unknown].filter((it) => above(it) && !done.has(it)));
      const saved = new Map([...(notes.saved ?? [])].filter(([position]) => unknown.has(position)));
      return { unknown: sorted(unknown), done: sorted(done), saved, isExact: true };
    }
    const tail = endOf(this.#parts.reader.sequence);
    // Positions are not dense: the range is filled in when its records are pulled.
    return {
      unknown: [Math.min(cursor.bound, tail)].filter(above),
      done: cursor.finished.filter(above),
      isExact: false,
    };
  }

  /** What a new chain of notes has to go on with: the former one counts no more, and the cursor's watermark may be older than ours. */
  #ownNotes(): FormerNotes {
    return { unknown: this.#unknownNow(), done: this.#finishedAbove(), isExact: true };
  }
  #doneNow(): readonly number[] {
    return sorted(new Set([...this.#finishedBefore, ...this.#doneSinceSave]));
  }

  #unknownNow(): readonly number[] {
    return sorted(new Set([...this.#running.values()].filter((it) => it.state === "unknown").map((it) => it.position)));
  }

  /** Finds out about every unknown entry, or holds the replica until a person does. */
  async #settle(unknown: readonly number[], isExact: boolean, signal: AbortSignal): Promise<void> {
    const { events, launch, clock } = this.#parts;
    const last = Math.max(unknown.at(-1) as number, ...this.#finishedBefore);
    await this.#pullThrough(last, signal);
    // What was not pulled looks as if nothing of it had been sent.
    if (signal.aborted) throw new GatewayError("GW_STOPPING", "the gateway is stopping");
    const range: Running[] = [];
    for (const it of this.#running.values()) {
      if (it.position > last || this.#finishedBefore.has(it.position)) continue;
      if (isExact && !unknown.includes(it.position)) continue;
      it.state = "unknown";
      it.wasIntended = true;
      range.push(it);
    }
    if (range.length === 0) {
      if (!isExact) await this.#save({ nonce: this.#beginChain(this.#doneNow(), []) });
      return;
    }
    this.#become("lagging", `${range.length} entries of unknown outcome are being settled`);
    for (const it of range)
      events.tell({
        type: "unknown-outcome",
        replica: this.name,
        position: it.position,
        cause: "in flight when its connection or its owner was lost",
      });
    this.#ready = this.#ready.filter((it) => it.state === "ready");
    // The old request may still run in a backend that we cannot stop: wait for as long as the slowest answer seen makes likely.
    if (!launch.isManaged) await clock.sleep(this.#quietMs(range), signal);
    const untilMs = clock.now() + probePatienceMs;
    const found = await settle(range, {
      answered: await this.#answeredBefore(range),
      probe: (it) => this.#probe(it, untilMs, signal),
      isExact,
      saved: new Set(this.#saved.keys()),
      done: this.#doneBefore,
    });
    if (signal.aborted) throw new GatewayError("GW_STOPPING", "the gateway is stopping");
    const isUntold = range.some((it) => it.rule.probe !== null && found.get(it.position)?.do === "hold");
    // It ended while it was asked: its next life will tell, and no person has to.
    if (isUntold && (this.#trouble !== null || (await this.#backend?.probe(1000)) !== "reachable"))
      throw new Error("the backend went away while it was asked what became of entries in flight");
    const plans = await carryOutUndos(range, found, (it) => this.#putBack(it, signal));
    this.#doneBefore = [];
    for (const [position, plan] of plans) this.#plans.set(position, plan);
    const held = range.filter((it) => plans.get(it.position)?.do === "hold");
    for (const it of range) {
      const plan = plans.get(it.position);
      if (plan === undefined || plan.do === "hold") continue;
      const result = plan.do === "done" ? "applied" : "not-applied";
      const by = plan.do === "done" ? plan.by : plan.do === "send" ? "probe" : plan.do === "undo" ? "undo" : "resend";
      events.tell({ type: "settled", replica: this.name, position: it.position, by, result });
    }
    if (held.length > 0) {
      await this.#save({ unknown: held.map((it) => it.position) });
      const first = held[0] as Running;
      await this.#hold(
        `it is not known whether ${held.length === 1 ? `entry ${first.position}` : `${held.length} entries from ${first.position} on`} took effect, and nothing can tell: see \`gateway replica unknown ${this.name}\``,
        signal,
      );
    }
    if (isExact) await this.#save({ unknown: [] });
    else
      await this.#save({
        unknown: [],
        // What is repeated is noted as it is sent: a note for all of it would say that each was sent after its predecessor's answer.
        nonce: this.#beginChain(this.#doneNow().concat(this.#foundDone(range)), []),
      });
    for (const it of range) this.#follow(it);
    this.#parts.intents.flush();
  }

  /** Anything up to the dispatch bound may have been sent, and no notes tell what: so it is until it is settled. */
  get #hasOpenRange(): boolean {
    return this.#cursor.state === "busy" && this.#cursor.nonce === "";
  }

  /** Those that are not sent again: from the moment the cursor names a chain, it must say so. */
  #foundDone(range: readonly Unsettled[]): readonly number[] {
    return range.map((it) => it.position).filter((position) => this.#plans.get(position)?.do === "done");
  }

  /**
   * What of our notes still counts. An entry whose answer is known and whose candidate is not kept yet is still "sent". One that waits to be sent again is
   * not: a note of it would say that what it waits for is done.
   */
  readonly #notes = (): ChainNotes => ({
    unknown: [...this.#running.values()]
      .filter((it) => it.state === "sent" || it.state === "unknown" || it.state === "released")
      .map((it) => it.position)
      .concat(this.#toSend.map((it) => it.position)),
    done: [...this.#finishedBefore, ...this.#doneSinceSave],
    saved: this.#saved,
  });

  /** Notes of our own under a new nonce, which the cursor has to name afterwards. */
  #beginChain(done: readonly number[], unknown: readonly number[]): string {
    const { intents } = this.#parts;
    const nonce = this.#parts.randomHex(16);
    intents.begin(this.name, nonce, this.#notes);
    for (const position of done) intents.done(this.name, position);
    for (const position of unknown) {
      const undo = this.#saved.get(position);
      if (undo !== undefined) intents.save(this.name, position, undo);
      intents.sent(this.name, position);
    }
    intents.flush();
    return nonce;
  }

  /** Carries out what was found or decided about an unknown entry. */
  #follow(it: Running): void {
    const plan = this.#plans.get(it.position);
    this.#plans.delete(it.position);
    it.isKnownUnsent = plan?.do === "send" || plan?.do === "undo";
    if (this.#parts.reader.state.skipped(it.position) !== null) {
      if (!it.isKnownUnsent)
        this.order("quarantined", `it may have executed entry ${it.position}, which is parked`, true);
      this.#parts.intents.done(this.name, it.position);
      this.#dropUnsent(it);
      return;
    }
    if (plan?.do === "done") {
      this.#parts.intents.done(this.name, it.position);
      it.state = "released";
      this.#scheduler.release(it.position, this.#runnable);
      this.#finish(it);
      this.#parts.agreement.unusable(it.position, this.name);
      this.#deliver(it, null, false, false);
      return;
    }
    // What conflicts with it and comes before is sent before.
    if (this.#scheduler.isRunnable(it.position)) {
      it.state = "ready";
      this.#ready.push(it);
    } else it.state = "queued";
  }

  #quietMs(range: readonly Running[]): number {
    let ms = 1000;
    for (const it of range) {
      const timeout = it.rule.timeoutMs ?? this.#parts.settings.firstByteMs;
      const slowest = this.#slowestMs.get(it.rule.name) ?? 0;
      ms = Math.max(ms, Math.min(4 * slowest, 2 * timeout));
    }
    return ms;
  }

  async #answeredBefore(range: readonly Running[]): Promise<ReadonlySet<number>> {
    const found = new Set<number>();
    const from = range[0]?.position ?? 0;
    const to = range.at(-1)?.position ?? 0;
    for await (const row of this.#parts.digests.read(from, to))
      if (row.replica === this.name && row.epoch === this.#parts.log.epoch && row.position > this.#cursor.restored)
        found.add(row.position);
    return found;
  }

  /** Null: it has no probe, or what answers it cannot tell. One that says nothing may be stopped for a while: it is waited for until `untilMs`. */
  async #probe(it: Unsettled, untilMs: number, signal: AbortSignal): Promise<boolean | null> {
    const { clock } = this.#parts;
    const context = contextOf(it.rule, it.entry);
    const question = probeRequest(it.rule, context);
    if (question === null || it.rule.probe === null) return null;
    let answers = 0;
    // Ends with an answer that tells, with as many that do not, when its time is over, or when this life of the copy ends.
    for (let attempt = 0; answers < probeAnswersMax && !signal.aborted && this.#trouble === null; attempt++) {
      const answer = await this.#ask(question.method, question.target, it.entry);
      if (answer !== null && answer.status < 500) return isApplied(it.rule.probe, context, answer);
      if (answer !== null) answers++;
      if (answer === null && clock.now() >= untilMs) return null;
      await clock.sleep(restartBackoffMs[Math.min(attempt, restartBackoffMs.length - 1)] as number, signal);
    }
    return null;
  }

  // ---- before and undo -----------------------------------------------------------------------------------------------------------

  #needsBefore(it: Running): boolean {
    return it.rule.before !== null && it.askedIn !== this.#life && !isRepeatable(it.rule, it.entry.method);
  }

  /** Reads `before`, and makes the entry ready again. What conflicts with it runs before that or after it, so it holds until the entry is sent. */
  #askBefore(it: Running): void {
    const life = this.#life;
    this.#asking++;
    void this.#undoOf(it).then((undo) => {
      this.#asking--;
      const isHere = this.#running.get(it.position) === it && it.state === "ready";
      if (isHere) {
        if (life === this.#life && this.#trouble === null) {
          it.askedIn = life;
          it.savedUnder = "";
          this.#saveUndo(it.position, undo);
          this.#setHazard(it, !this.#saved.has(it.position) && isHazard({ ...it.rule, before: null }, it.entry.method));
        }
        this.#ready.push(it);
      }
      this.wake();
    });
  }

  /** Null: nothing can be put back. The entry is sent all the same, and an unknown outcome of it stays unknown. */
  async #undoOf(it: Running): Promise<Buffer | null> {
    const context = contextOf(it.rule, it.entry);
    const question = beforeRequest(it.rule, context);
    if (question === null) return null;
    const { beforeBytesMax, firstByteMs } = this.#parts.settings;
    const limits = { firstByteMs: it.rule.timeoutMs ?? firstByteMs, answerBytesMax: beforeBytesMax };
    const execution = await this.#question({ ...question, ...noBody }, it.entry, limits);
    // An answer that ended with its connection may be cut.
    if (execution?.kind !== "done" || execution.isCloseDelimited === true) return null;
    const undo = undoRequest(it.rule, context, execution.answer);
    return undo === null ? null : encodeUndo(undo);
  }

  #setHazard(it: Running, is: boolean): void {
    this.#hazards += Number(is) - Number(it.isHazard);
    it.isHazard = is;
  }

  #saveUndo(position: number, undo: Buffer | null): void {
    this.#forgetUndo(position);
    if (undo === null || this.#savedBytes + undo.length > savedBytesMax) return;
    this.#saved.set(position, undo);
    this.#savedBytes += undo.length;
  }
  #forgetUndo(position: number): void {
    this.#savedBytes -= this.#saved.get(position)?.length ?? 0;
    this.#saved.delete(position);
  }

  /** False: it cannot be put back. Rejects when this life of the backend is over. */
  async #putBack(it: Running, signal: AbortSignal): Promise<boolean> {
    const saved = this.#saved.get(it.position);
    if (saved === undefined) return false;
    const { clock, launch } = this.#parts;
    const isDone = await putBack(
      decodeUndo(saved),
      (undo) => this.#sendUndo(undo, it, signal),
      async (why, attempt) => {
        if (why !== "refused" && launch.isManaged) {
          await launch.stop(2000);
          throw new Error(`the backend went away while entry ${it.position} was being put back`);
        }
        const backoffMs = restartBackoffMs[Math.min(attempt, restartBackoffMs.length - 1)] as number;
        await clock.sleep(why === "unknown" ? this.#quietMs([it]) : backoffMs, signal);
        if (signal.aborted) throw new GatewayError("GW_STOPPING", "the gateway is stopping");
      },
    );
    if (isDone) it.askedIn = this.#life;
    return isDone;
  }

  async #sendUndo(undo: Undo, it: Running, signal: AbortSignal): Promise<Execution> {
    const { clock, settings } = this.#parts;
    const firstByteMs = it.rule.timeoutMs ?? settings.firstByteMs;
    const { method, target, headers, body } = undo;
    const framed = [...headers, "Content-Length", String(body.length)];
    const execution = await this.#question(
      { method, target, headers: method === "PUT" ? framed : [], body: body.length === 0 ? null : body },
      it.entry,
      { firstByteMs, answerBytesMax: settings.answerBytesMax },
    );
    if (execution === undefined) return { kind: "not-started", cause: "there is no backend" };
    if (execution.kind !== "unknown" || execution.late === null) return execution;
    await Promise.race([execution.late, clock.sleep(firstByteMs, signal)]);
    await this.#backend?.abandon();
    return execution.late;
  }

  // ---- questions -----------------------------------------------------------------------------------------------------------------

  async #ask(method: string, target: string, like: Entry | null): Promise<Answer | null> {
    const { firstByteMs, answerBytesMax } = this.#parts.settings;
    const execution = await this.#question({ method, target, ...noBody }, like, { firstByteMs, answerBytesMax });
    return execution?.kind === "done" ? execution.answer : null;
  }

  /** A request of our own: never an entry, marked as such by having no position. */
  #question(
    { method, target, headers, body }: Omit<BackendRequest, "trailers">,
    like: Entry | null,
    limits: { readonly firstByteMs: number; readonly answerBytesMax: number },
  ): Promise<Execution | undefined> {
    const host = like === null ? null : valueOf(like.headers, "host");
    const authorization = like === null ? null : valueOf(like.headers, "authorization");
    const own = ["Host", host ?? new URL(this.url ?? "http://replica").host];
    if (authorization !== null) own.push("Authorization", authorization);
    const request = { method, target, headers: [...own, ...headers], body, trailers: [] };
    return this.#backend?.execute(request, limits) ?? Promise.resolve(undefined);
  }

  /** The answers of its witnesses, as one text; null: it did not answer. */
  async witness(): Promise<string | null> {
    if (this.#parts.settings.witness.length === 0) return null;
    const answers: string[] = [];
    for (const question of this.#parts.settings.witness) {
      const [method = "GET", target = "/"] = question.split(" ");
      const answer = await this.#ask(method, target, null);
      if (answer === null) return null;
      answers.push(`${question} → ${answer.status} ${answer.body.toString("base64")}`);
    }
    return answers.join("\n");
  }

  async #hold(why: string, signal: AbortSignal): Promise<void> {
    const reason = this.#whyAgain === "" ? why : `${why}; ${this.#whyAgain}`;
    this.#isOpen = false;
    // Whoever waits for it to get to a mark would wait for the person, too.
    for (const waiter of this.#waiters.splice(0)) waiter.resolve(false);
    await this.#save({ standing: { state: "held", reason } });
    this.#become("held", reason);
    await this.#untilResumed(signal);
    await this.#save({ standing: null });
  }

  /** Ends with `resume` or the signal. */
  async #untilResumed(signal: AbortSignal): Promise<void> {
    const orders = { wake: null as (() => void) | null, resumed: false };
    this.#orders = orders;
    await new Promise<void>((resolve) => {
      orders.wake = resolve;
      if (orders.resumed || signal.aborted) resolve();
      signal.addEventListener("abort", () => resolve(), { once: true });
    });
    if (signal.aborted) throw new GatewayError("GW_STOPPING", "the gateway is stopping");
  }

  async #untilAborted(signal: AbortSignal): Promise<void> {
    if (!signal.aborted)
      await new Promise<void>((resolve) => signal.addEventListener("abort", () => resolve(), { once: true }));
  }

  /** Ends when the replica is as far as the log, in trouble, or told to stop. */
  async #caughtUp(signal: AbortSignal): Promise<void> {
    while (!signal.aborted && this.#trouble === null && this.lag > caughtUp) await this.#parts.clock.sleep(10, signal);
  }

  async #untilTrouble(signal: AbortSignal): Promise<Trouble | null> {
    // What was aborted while it arrived is not told of again.
    if (this.#trouble === null && !signal.aborted)
      await new Promise<void>((resolve) => {
        this.#onTrouble = resolve;
        signal.addEventListener("abort", () => resolve(), { once: true });
      });
    this.#onTrouble = null;
    return this.#trouble;
  }

  get #isFenced(): boolean {
    return this.#trouble?.kind === "fenced";
  }

  #raise(trouble: Trouble): void {
    if (this.#trouble !== null) return;
    this.#trouble = trouble;
    this.#isOpen = false;
    // Nothing is finished before the next life, which does not begin before an arrival that waits at a mark has ended.
    for (const waiter of this.#waiters.splice(0)) waiter.resolve(false);
    this.#onTrouble?.();
    // Also one that waits for a person waits no longer: another gateway's replica is none of ours to hold.
    if (trouble.kind === "fenced") this.#life.abort();
  }

  /** After trouble: nothing is sent; what is in flight ends or is declared unknown; a managed backend is ended for certain. */
  async #windUp(trouble: Trouble, signal: AbortSignal): Promise<void> {
    const { launch, clock, settings } = this.#parts;
    this.#isOpen = false;
    const suspects = [...this.#running.values()].filter((it) => it.state === "sent" || it.state === "unknown");
    const isCertain = trouble.kind === "exited" || trouble.kind === "silent" || trouble.kind === "refused";
    const isDeath = isCertain || (trouble.kind === "closed" && launch.isManaged);
    // Before it leaves the live set: whoever is first in what is left must not take what ended it for something that nobody has had yet.
    if (isDeath) this.#tellDeath(suspects);
    this.#become(
      trouble.kind === "ordered" ? trouble.state : "lagging",
      trouble.kind === "ordered" ? trouble.reason : trouble.cause,
    );
    for (const waiter of this.#waiters.splice(0)) waiter.resolve(false);
    if (!isDeath && trouble.kind === "closed" && (await this.#backend?.probe(1000)) !== "reachable")
      this.#tellDeath(suspects);
    // A process that cannot answer is not waited for; the rest of a drained replica's answers is.
    const patience = trouble.kind === "ordered" || trouble.kind === "closed" ? 2 * settings.firstByteMs : 500;
    const until = clock.now() + patience;
    while (this.#inFlight > 0 && clock.now() < until && !signal.aborted) await clock.sleep(5, signal);
    if (launch.isManaged && trouble.kind !== "ordered") await launch.stop(2000);
    if (this.#inFlight > 0) {
      await this.#backend?.abandon();
      while (this.#inFlight > 0 && !signal.aborted) await clock.sleep(5, signal);
    }
    if (trouble.kind === "ordered") {
      const { state, reason, rebuild = false } = trouble;
      await this.#save({ standing: { state, reason, ...(rebuild ? { rebuild } : null) } });
      this.#saveWatermark();
    }
  }

  #tellDeath(inFlight: readonly Running[]): void {
    const { died, exposure } = this.#parts;
    const suspects = inFlight.filter((it) => !isRepeatable(it.rule, it.entry.method)).map((it) => it.position);
    exposure.died(this.name, suspects);
    died(this.name, suspects);
  }

  /** Graceful end: what is in flight is waited for, the cursor becomes clean and free, the backend is stopped if it is ours. */
  async #leave(): Promise<void> {
    const { launch, clock, shutdownMs } = this.#parts;
    this.#isOpen = false;
    this.#isLeaving = true;
    for (const waiter of this.#waiters.splice(0)) waiter.resolve(false);
    const until = clock.now() + (this.#isLost ? 0 : shutdownMs);
    const isEnding = (): boolean =>
      this.#inFlight > 0 || [...this.#running.values()].some((it) => it.state === "released");
    while (isEnding() && clock.now() < until) await clock.sleep(5);
    if (this.#inFlight > 0) {
      await this.#backend?.abandon();
      while (this.#inFlight > 0 && clock.now() < until + 1000) await clock.sleep(5);
    }
    await this.#saving;
    if (!this.#isLost) await this.#untilUngranted();
    // Before it is placed, and while nobody knows what of a range was sent, the cursor says all that is known.
    const isKnown = this.#isPlaced && !this.#hasOpenRange;
    if (this.#cursor !== undefined && this.#revision > 0 && !this.#isLost && isKnown) {
      const unknown = sorted(new Set([...this.#cursor.unknown, ...this.#unknownNow()]));
      const finished = this.#finishedAbove();
      const isClean =
        unknown.length === 0 &&
        [...this.#running.values()].every((it) => it.state === "queued" || it.state === "ready");
      await this.#save({
        owner: isClean ? null : this.#parts.owner,
        state: isClean ? "clean" : "busy",
        bound: isClean ? this.applied : this.#cursor.bound,
        unknown,
        finished,
        ...this.#watermark(),
      }).catch(() => undefined);
    }
    if (launch.isManaged) await launch.stop(5000).catch(() => undefined);
    await this.#backend?.close();
    await launch.close();
    this.#become("gone", this.#isLost ? "another gateway feeds it now" : "this gateway does not feed it any more");
  }

  // ---- health ----------------------------------------------------------------------------------------------------------------------

  #healthFailures = 0;
  #healthSuccesses = 0;

  async #checkHealth(): Promise<void> {
    const backend = this.#backend;
    if (this.#probing || backend === null || !this.#isOpen || this.#trouble !== null) return;
    this.#probing = true;
    try {
      const isReady = await this.#parts.checkReady(backend.url, 1000);
      // Of a life that ended meanwhile: what was seen of it makes the next one neither live nor unhealthy.
      if (this.#backend !== backend || !this.#isOpen || this.#trouble !== null) return;
      const { fall, rise } = this.#parts.settings.health;
      this.#healthFailures = isReady ? 0 : this.#healthFailures + 1;
      this.#healthSuccesses = isReady ? this.#healthSuccesses + 1 : 0;
      if (this.#healthSuccesses >= rise) this.#isUnhealthy = false;
      if (this.#healthFailures >= fall) {
        this.#isUnhealthy = true;
        if ((await backend.probe(1000)) !== "reachable")
          this.#raise({ kind: "refused", cause: "the backend refuses connections" });
      }
      const silent = this.#silent();
      if (silent !== null && this.#parts.launch.isManaged) this.#raise({ kind: "silent", cause: silent });
      if (this.#trouble !== null) return;
      const unhealthy = this.#isUnhealthy ? "its health request fails" : null;
      const why = silent ?? unhealthy ?? (this.lag > this.#parts.settings.lagMax ? `${this.lag} entries behind` : null);
      if (this.state === "live" && why !== null) this.#become("lagging", why);
      // One that is still arriving may have to be settled and proven first, however healthy it is.
      else if (this.state === "lagging" && !this.#isCatchingUp && why === null && this.lag <= caughtUp)
        this.#become("live", "");
    } finally {
      this.#probing = false;
    }
  }

  /** Silence for twice the rule's timeout: a managed backend is restarted, and it counts as a death. */
  #silent(): string | null {
    const now = this.#parts.clock.now();
    for (const it of this.#running.values()) {
      if (it.state !== "sent") continue;
      const limit = 2 * (it.rule.timeoutMs ?? this.#parts.settings.firstByteMs);
      if (now - it.sentAtMs >= limit) return `entry ${it.position} was not answered within ${limit} ms`;
    }
    return null;
  }

  // ---- pulling ---------------------------------------------------------------------------------------------------------------------

  /** Pulling begins behind `applied`; whatever was pulled before is pulled again. */
  #rewind(applied: number): void {
    this.#clear();
    this.#scheduler = new Scheduler(applied);
    const sequence = sequenceOf(applied);
    const isWhole = applied === endOf(sequence);
    this.#nextSequence = applied === 0 ? this.#parts.firstSequence : isWhole ? sequence + 1 : sequence;
    // Of a log that was truncated, or begun anew, H before its first record is not what a copy begins with that was never fed.
    const isBirth = applied === 0 && this.#nextSequence === 1;
    this.#hash = isBirth || (isWhole && applied > 0) ? this.#cursor.hash : "";
    this.#entriesPulled = this.#cursor.entries;
    this.#pulled = [];
    this.#isPlaced = true;
  }

  readonly #runnable = (position: number): void => {
    const it = this.#running.get(position);
    if (it === undefined || it.state !== "queued") return;
    it.state = "ready";
    this.#ready.push(it);
  };

  #pull(): void {
    if (!this.#isPlaced) return;
    while (this.#running.size < windowMax && this.#windowBytes < windowBytesMax) {
      const folded = this.#behind.length > 0 ? this.#behind[0] : this.#parts.reader.get(this.#nextSequence);
      if (folded === "ahead") return;
      if (folded === "gone" || folded === undefined) {
        void this.#readBehind();
        return;
      }
      if (endOf(folded.sequence - 1) >= this.#stopAt) return;
      if (this.#behind.length > 0) this.#behind.shift();
      this.#take(folded);
    }
  }

  /** The buffer has gone past us: read the log until the buffer has what comes next. One reading at a time. */
  async #readBehind(): Promise<void> {
    if (this.#isReading) return;
    this.#isReading = true;
    const stop = new AbortController();
    const readStop = this.#readStop.signal;
    const { log, reader, turn, clock } = this.#parts;
    try {
      let sequence = this.#nextSequence;
      const { first } = await log.info();
      if (readStop.aborted) return;
      if (sequence < first) {
        this.#raise({ kind: "ordered", state: "held", reason: truncatedAway });
        return;
      }
      let hash = this.#hash;
      let entries = this.#entriesPulled;
      for await (const record of log.read(sequence, stop.signal)) {
        const folded = reader.state.replay(record, hash, entries);
        // Of the record the watermark stands in, H is known only behind it.
        hash =
          record.sequence === sequenceOf(this.#cursor.applied) && hash === ""
            ? this.#cursor.hash
            : hash === ""
              ? ""
              : folded.hash;
        entries = folded.entries;
        if (readStop.aborted) break;
        this.#behind.push({ ...folded, hash });
        sequence = record.sequence + 1;
        turn.ask(this);
        while (this.#behind.length >= 64 && !this.#isGone && !readStop.aborted) await clock.sleep(2);
        if (this.#isGone || readStop.aborted || typeof reader.get(sequence) === "object" || sequence > reader.sequence)
          break;
      }
    } catch (error) {
      const isFatal =
        error instanceof GatewayError && (error.code === "GW_LOG_REGRESSED" || error.code === "GW_LOG_CORRUPT");
      const first = isFatal ? ((await log.info().catch(() => null))?.first ?? 0) : 0;
      // A truncation that overtook us while we read.
      if (isFatal && this.#nextSequence < first) this.#raise({ kind: "ordered", state: "held", reason: truncatedAway });
      else if (isFatal) reader.fail(error);
      else await clock.sleep(250);
    } finally {
      stop.abort();
      this.#isReading = false;
      turn.ask(this);
    }
  }

  get #isGone(): boolean {
    return this.#state === "gone";
  }

  #take(folded: Folded): void {
    if (folded.sequence !== this.#nextSequence)
      this.#parts.reader.fail(
        new GatewayError(
          "GW_INTERNAL",
          `${this.name} was given record ${folded.sequence} instead of ${this.#nextSequence}`,
        ),
      );
    if (this.#hash !== "" && folded.previousHash !== "" && folded.previousHash !== this.#hash)
      this.#parts.reader.fail(
        new GatewayError(
          "GW_LOG_CORRUPT",
          `the running hash of ${this.name} before record ${folded.sequence} is not that of the log`,
        ),
      );
    const watermark = this.#scheduler.watermark;
    for (const { position, item, fate, outgoing } of folded.items) {
      if (position <= watermark || item.kind !== "entry" || fate.kind !== "applied") continue;
      const reason = this.#parts.reader.state.skipped(position);
      if (reason !== null) continue;
      const rule = this.#parts.policies.rule(folded.header.rules, item.rule);
      const it: Running = {
        position,
        entry: item,
        outgoing: outgoing ?? new Outgoing(item, position),
        rule,
        header: folded.header,
        state: "queued",
        wasIntended: false,
        isKnownUnsent: false,
        sentAtMs: 0,
        isReplay: this.#isCatchingUp,
        askedIn: null,
        savedUnder: "",
        isHazard: false,
      };
      this.#running.set(position, it);
      this.#setHazard(it, isHazard(rule, item.method));
      this.#windowBytes += sizeOf(item);
      if (this.#scheduler.add(position, item.orderKeys)) it.state = "ready";
      if (this.#finishedBefore.delete(position)) {
        this.#doneBefore.push({ position, orderKeys: item.orderKeys });
        it.state = "released";
        this.#scheduler.release(position, this.#runnable);
        this.#finish(it);
      } else if (it.state === "ready") this.#ready.push(it);
    }
    this.#scheduler.close(endOf(folded.sequence));
    this.#nextSequence = folded.sequence + 1;
    this.#hash = folded.hash;
    this.#pulled.push({
      sequence: folded.sequence,
      hash: folded.hash,
      entriesBefore: this.#entriesPulled,
      entries: folded.entries,
    });
    this.#entriesPulled = folded.entries;
    if (this.#pulled.length > 2 * windowMax) this.#forgetPulled();
  }

  async #pullThrough(position: number, signal: AbortSignal): Promise<void> {
    while (this.#nextSequence <= sequenceOf(position) && !signal.aborted && !this.#isGone) {
      const folded = this.#behind.length > 0 ? this.#behind.shift() : this.#parts.reader.get(this.#nextSequence);
      if (typeof folded === "object") this.#take(folded);
      else {
        void this.#readBehind();
        await this.#parts.clock.sleep(5, signal);
      }
    }
  }

  #finish(it: Running): void {
    // An answer that is kept only now may belong to a state that is gone.
    if (this.#running.get(it.position) !== it) return;
    this.#windowBytes -= sizeOf(it.entry);
    this.#doneSinceSave.push(it.position);
    this.#scheduler.finish(it.position);
    this.#forgetUndo(it.position);
    this.#setHazard(it, false);
    this.#running.delete(it.position);
  }

  // ---- one turn --------------------------------------------------------------------------------------------------------------------

  note(): void {
    const { intents, firstEntry, clock } = this.#parts;
    for (const { running: it, execution } of this.#completions.splice(0)) {
      this.#inFlight--;
      if (this.#alone === it) this.#alone = null;
      if (!firstEntry.isOpen) firstEntry.ended(this.name, it.position);
      const outcome = outcomeOf(it.rule, execution);
      if (outcome.kind === "done" || outcome.kind === "broken") {
        if (outcome.kind === "done") this.#noteTime(it, outcome.tookMs);
        it.state = "released";
        this.#scheduler.release(it.position, this.#runnable);
        const { key } = it.entry;
        if (key === null || outcome.kind === "broken") {
          intents.done(this.name, it.position);
          this.#finish(it);
        }
        this.#given.push({ running: it, outcome });
        continue;
      }
      if (outcome.kind === "not-started") {
        it.state = "ready";
        this.#ready.push(it);
        // Its intent stands and says "sent": a crash now makes it unknown though it is not. Harmless, and rare.
        if (outcome.isRefused)
          this.#raise({ kind: "refused", cause: `the backend takes no connection: ${messageOf(outcome.cause)}` });
        else this.#pauseBriefly();
        continue;
      }
      it.state = "unknown";
      this.#raise({
        kind: "closed",
        cause: `the connection was lost with entry ${it.position} in flight: ${messageOf(outcome.cause)}`,
      });
    }
    for (const it of this.#toFinish.splice(0)) {
      intents.done(this.name, it.position);
      this.#finish(it);
    }
    if (this.#running.size > 0) this.#lastBusyMs = clock.now();
    if (this.#isResting) this.#onRest?.();
    this.#pull();
    if (this.#movedTo !== this.#scheduler.watermark) {
      this.#movedTo = this.#scheduler.watermark;
      this.#parts.onMoved();
    }
    if (this.#waiters.length > 0) {
      this.#waiters = this.#waiters.filter((waiter) => {
        if (!this.hasApplied(waiter.position, waiter.orderKeys)) return true;
        waiter.resolve(true);
        return false;
      });
    }
  }

  decide(): void {
    const { settings, exposure, firstEntry, intents, clock, rest } = this.#parts;
    if (!this.#isOpen || this.#ready.length === 0 || this.#alone !== null || this.#parts.reader.failure !== null)
      return;
    if (this.#isResting) {
      rest.hasBacklog(this.name);
      return;
    }
    if (clock.now() > this.#leaseUntil) {
      // Nothing is sent before the cursor could be written again; whoever took the replica meanwhile makes that fail.
      this.#saveWatermark();
      return;
    }
    if (!this.#isBusy) {
      // Whoever has to rest is clean already, as long as it has not begun.
      if (this.#ready.every((it) => !it.isHazard) || rest.may(this.name)) this.#goBusy();
      return;
    }
    const later: Running[] = [];
    const ready = this.#ready;
    this.#ready = later;
    for (let at = 0; at < ready.length; at++) {
      const it = ready[at] as Running;
      const busy = this.#inFlight + this.#toSend.length + this.#asking;
      if (busy >= settings.concurrency || it.position > this.#cursor.bound) {
        for (; at < ready.length; at++) later.push(ready[at] as Running);
        if (it.position > this.#cursor.bound) this.#saveWatermark();
        break;
      }
      if (this.#barred.has(it.position) || (!firstEntry.isOpen && !firstEntry.may(this.name, it.position))) {
        later.push(it);
        continue;
      }
      if (this.#needsBefore(it)) {
        this.#askBefore(it);
        continue;
      }
      if (it.isHazard && !rest.may(this.name)) {
        later.push(it);
        continue;
      }
      if (!isRepeatable(it.rule, it.entry.method)) {
        const may = exposure.ask(this.name, it.position, it.rule.name, it.header.primary);
        if (may === "wait") {
          later.push(it);
          continue;
        }
        if (may === "alone") {
          if (this.#inFlight + this.#toSend.length > 0) {
            later.push(it);
            continue;
          }
          exposure.takeAlone(this.name, it.position);
          this.#alone = it;
        }
      }
      const undo = this.#saved.get(it.position);
      if (undo !== undefined && it.savedUnder !== this.#cursor.nonce) {
        // Once: where notes cannot be written this is tried again and again.
        it.savedUnder = this.#cursor.nonce;
        intents.save(this.name, it.position, undo);
      }
      intents.sent(this.name, it.position);
      this.#toSend.push(it);
      if (this.#alone !== null) {
        for (at++; at < ready.length; at++) later.push(ready[at] as Running);
        break;
      }
    }
  }

  act(): void {
    const given = this.#given;
    if (given.length > 0) {
      this.#given = [];
      for (const { running, outcome } of given) this.#give(running, outcome);
    }
    const sends = this.#toSend;
    if (sends.length > 0) {
      this.#toSend = [];
      // Whoever slept since it decided may have been replaced: nothing leaves on the word of an old lease.
      if (this.#parts.clock.now() > this.#leaseUntil) this.#ready.unshift(...sends);
      else for (const it of sends) this.#send(it);
    }
  }

  undo(error: unknown): void {
    this.#ready.unshift(...this.#toSend.splice(0));
    this.#alone = null;
    if (this.#state === "live") this.#become("lagging", messageOf(error));
    setTimeout(() => this.wake(), 250).unref();
  }

  #pauseBriefly(): void {
    this.#isOpen = false;
    setTimeout(() => {
      if (this.#trouble === null) this.#isOpen = true;
      this.wake();
    }, 100).unref();
  }

  #send(it: Running): void {
    const { clock, settings, turn } = this.#parts;
    const isPrimary = it.header.primary === this.name && !it.wasIntended && !it.isReplay;
    if (!isPrimary) this.#tellUnfinished(it, it.wasIntended ? "unknown" : "not-done");
    it.state = "sent";
    it.isKnownUnsent = false;
    it.sentAtMs = clock.now();
    this.#inFlight++;
    const isFirstSend = !it.wasIntended;
    void this.#backend
      ?.execute(this.#request(it, isPrimary), {
        firstByteMs: it.rule.timeoutMs ?? settings.firstByteMs,
        answerBytesMax: settings.answerBytesMax,
      })
      .then((execution) => this.#ended(it, execution, isFirstSend, turn));
  }

  #ended(it: Running, execution: Execution, isFirstSend: boolean, turn: Turn): void {
    if (execution.kind === "unknown" && execution.late !== null) {
      // Late is not lost: the socket stays open, the others answer, and the entry stays in flight here.
      void execution.late.then((late) => this.#ended(it, late, isFirstSend, turn));
      return;
    }
    it.wasIntended = !isFirstSend;
    this.#completions.push({ running: it, execution });
    turn.ask(this);
  }

  #request(it: Running, isPrimary: boolean): BackendRequest {
    const { entry } = it;
    const set = it.isReplay ? this.#parts.policies.replaySet(it.rule, entry) : null;
    const headers = it.outgoing.headers(isPrimary, set);
    const body = isBodyRef(entry.body)
      ? this.#parts.bodies.read(entry.body)
      : entry.body.length === 0
        ? null
        : entry.body;
    if (isBodyRef(entry.body))
      return {
        method: entry.method,
        target: entry.target,
        headers: [...headers, "Content-Length", String(entry.body.sizeBytes)],
        body,
        trailers: entry.trailers,
        mayStart: this.#mayStart,
      };
    const { method, target, trailers } = entry;
    return { method, target, headers, body, trailers, mayStart: this.#mayStart };
  }

  /** A process that was stopped between its decision and the write finds the replica in other hands when it goes on. */
  readonly #mayStart = (): boolean => this.#parts.clock.now() <= this.#leaseUntil;

  #noteTime(it: Running, tookMs: number): void {
    const { exposure, survived } = this.#parts;
    if (tookMs > (this.#slowestMs.get(it.rule.name) ?? 0)) this.#slowestMs.set(it.rule.name, tookMs);
    this.#usualMs = this.#usualMs * 0.9 + tookMs * 0.1;
    exposure.answered(this.name, it.position, it.rule.name, tookMs);
    if (!isRepeatable(it.rule, it.entry.method)) survived(this.name, it.position, it.rule.name, tookMs);
  }

  /** Hands an answer on, after its done mark (or, for a keyed entry, before it and after its candidate is kept). */
  #give(it: Running, outcome: Extract<OutcomeOf, { kind: "done" | "broken" }>): void {
    const { agreement, events, keys, turn } = this.#parts;
    if (outcome.kind === "broken") {
      agreement.unusable(it.position, this.name, outcome.isTooLarge);
      this.#deliver(it, null, false, outcome.isTooLarge);
      return;
    }
    // What a rebuilt copy answers to former entries vouches for nothing: it is compared with what was answered then.
    // A copy that has not been proven yet vouches for nothing.
    const isFirstSend = !it.wasIntended && this.#check === null && !this.#cursor.isSuspect;
    const { position, rule, header } = it;
    const digest = agreement.answered(position, this.#answerer(), rule, header.rules, outcome.answer, isFirstSend);
    this.#deliver(it, outcome.answer, isFirstSend, false);
    events.tell({ type: "applied", replica: this.name, position: it.position, durationMs: outcome.tookMs });
    this.#check?.answered(it.position, it.entry, it.rule, it.header.rules, outcome.answer);
    const { key } = it.entry;
    if (key === null) return;
    const finish = (): void => {
      this.#toFinish.push(it);
      turn.ask(this);
    };
    // While the store is away done marks do not wait: the answer may be lost, the execution is not.
    // An answer that ended with its connection may be cut: its bytes are not kept for a retry.
    const answer = outcome.isCloseDelimited === true ? null : outcome.answer;
    keys.offer(key, it.position, { replica: this.name, digest, answer }).then(finish, finish);
  }

  #deliver(it: Running, answer: Answer | null, isFirstSend: boolean, isTooLarge: boolean): void {
    const { deliver, owner } = this.#parts;
    const { producer } = it.header;
    if (producer === owner.boot) return;
    const { incarnation, backendVersion, replica } = this.#answerer();
    deliver(producer, {
      position: it.position,
      replica,
      incarnation,
      backendVersion,
      isFirstSend,
      answer,
      isTooLarge,
    });
  }

  /** One object a life: every answer names it. */
  #answerer(): Answerer {
    if (this.#answers.incarnation !== this.incarnation)
      this.#answers = { ...this.#answers, incarnation: this.incarnation };
    return this.#answers;
  }

  // ---- cursor ----------------------------------------------------------------------------------------------------------------------

  /** Clean → busy, written before the first send. */
  #goBusy(): void {
    if (this.#isBecomingBusy) return;
    this.#isBecomingBusy = true;
    const nonce = this.#parts.randomHex(16);
    this.#parts.intents.begin(this.name, nonce, this.#notes);
    try {
      this.#parts.intents.flush();
    } catch (error) {
      this.#isBecomingBusy = false;
      this.undo(error);
      return;
    }
    this.#save({ state: "busy", nonce, bound: this.#nextBound(), ...this.#watermark() })
      .then(
        () => {
          this.#isBusy = true;
          this.#lastBusyMs = this.#parts.clock.now();
        },
        (error: unknown) => this.#raise({ kind: "fenced", cause: messageOf(error) }),
      )
      .finally(() => {
        this.#isBecomingBusy = false;
        this.wake();
      });
  }

  #nextBound(): number {
    return endOf(Math.max(this.#nextSequence, this.#parts.reader.sequence) + boundAhead);
  }

  #watermark(): Pick<Cursor, "applied" | "hash" | "entries" | "slowestMs"> {
    const applied = this.#scheduler.watermark;
    this.#forgetPulled();
    const at = this.#pulled[0];
    const isHere = at !== undefined && at.sequence === sequenceOf(applied);
    const hash = isHere ? at.hash : this.#cursor.hash;
    // Within a record the count is that before it: the record is read again from its beginning.
    const entries = !isHere ? this.#cursor.entries : applied === endOf(at.sequence) ? at.entries : at.entriesBefore;
    return { applied, hash, entries, slowestMs: Object.fromEntries(this.#slowestMs) };
  }

  #forgetPulled(): void {
    const sequence = sequenceOf(this.#scheduler.watermark);
    let count = 0;
    while (count < this.#pulled.length && (this.#pulled[count]?.sequence ?? 0) < sequence) count++;
    if (count > 0) this.#pulled.splice(0, count);
  }

  /** A few times a second: W and U move on; after two idle seconds the cursor becomes clean; the lease is renewed. */
  #saveWatermark(): void {
    if (this.#saving !== null || this.#revision === 0 || this.#cursor === undefined || this.#state === "gone") return;
    const { clock, settings } = this.#parts;
    const now = clock.now();
    const mayBeClean =
      this.#isBusy &&
      this.#running.size === 0 &&
      this.#cursor.unknown.length === 0 &&
      !this.#hasOpenRange &&
      now - this.#lastBusyMs > cleanAfterMs &&
      this.#toSend.length === 0;
    const hasMoved = this.#scheduler.watermark !== this.#cursor.applied;
    const needsBound =
      this.#isBusy &&
      (this.#cursor.bound < endOf(this.#nextSequence) ||
        this.#nextBound() - this.#cursor.bound > endOf(boundAhead / 2));
    const needsRenewal = now > this.#leaseUntil - (settings.leaseMs * 2) / 3;
    if (mayBeClean) {
      this.#isBusy = false;
      const watermark = this.#watermark();
      // What former notes call done may not be pulled yet.
      const finished = this.#finishedAbove();
      this.#background(this.#save({ state: "clean", ...watermark, bound: watermark.applied, finished }));
    } else if (this.#isBusy && (hasMoved || needsBound || needsRenewal))
      this.#background(this.#save({ ...this.#watermark(), bound: this.#nextBound() }));
    else if (needsRenewal)
      this.#background(this.#save(this.#isBusy ? {} : { ...this.#watermark(), bound: this.#scheduler.watermark }));
  }

  #background(work: Promise<void>): void {
    work.then(
      () => this.wake(),
      (error: unknown) => this.#raise({ kind: "fenced", cause: messageOf(error) }),
    );
  }

  /** One save at a time. Rejects when the cursor belongs to somebody else now, or could not be written within the lease. */
  async #save(patch: Partial<Cursor>): Promise<void> {
    while (this.#saving !== null) await this.#saving;
    const work = this.#saveNow(patch);
    this.#saving = work.catch(() => undefined).finally(() => (this.#saving = null));
    await work;
  }

  async #saveNow(patch: Partial<Cursor>): Promise<void> {
    const { cursors, clock, settings, marks } = this.#parts;
    const next: Cursor = { ...this.#cursor, ...patch };
    // Ends with a certain outcome, or at the end of the gateway. Sends are bounded by the lease, not by this.
    for (;;) {
      const sentAt = clock.now();
      const saved = await cursors.save(next, this.#revision);
      if (saved.kind === "saved") {
        this.#accept(next, saved.revision, sentAt + settings.leaseMs * 0.8);
        marks.noteRevision(this.name, saved.revision);
        return;
      }
      if (this.#isLeaving)
        throw new GatewayError("GW_LOG_UNAVAILABLE", `the cursor of ${this.name} could not be written`);
      const stored = await cursors.load(this.name).catch(() => null);
      if (stored !== null && stored.revision > this.#revision && sameCursor(stored.cursor, next)) {
        this.#accept(next, stored.revision, sentAt + settings.leaseMs * 0.8);
        return;
      }
      if (saved.kind === "conflict" && stored !== null) {
        if (stored.cursor.owner?.boot !== this.#parts.owner.boot)
          throw new TakenError(`${this.name} now belongs to the gateway ${stored.cursor.owner?.name ?? "nobody"}`);
        this.#revision = stored.revision;
      }
      await clock.sleep(100);
    }
  }

  #accept(cursor: Cursor, revision: number, leaseUntil: number): void {
    this.#cursor = cursor;
    this.#revision = revision;
    this.#doneSinceSave = this.#doneSinceSave.filter((position) => position > cursor.applied);
    this.#leaseUntil = leaseUntil;
  }

  #become(state: ReplicaState, reason: string): void {
    const from = this.#state;
    this.#reason = reason;
    if (from === state) return;
    this.#state = state;
    this.#onRest?.();
    this.#parts.events.tell({ type: "replica", replica: this.name, from, to: state, reason });
    this.#parts.onState(this, from);
  }
}

/** Another gateway has taken the replica: only a save that failed for certain says so. */
class TakenError extends GatewayError {
  constructor(message: string) {
    super("GW_CONFLICT", message);
  }
}

type OutcomeOf =
  | Extract<Execution, { kind: "done" }>
  | Extract<Execution, { kind: "broken" }>
  | { readonly kind: "not-started"; readonly isRefused: boolean; readonly cause: unknown }
  | { readonly kind: "unknown"; readonly cause: unknown };

/** An execution under the rule's own reading of statuses. */
function outcomeOf(rule: Rule, execution: Execution): OutcomeOf {
  if (execution.kind === "done") {
    const { status } = execution.answer;
    if (rule.outcome.notStarted.includes(status))
      return { kind: "not-started", isRefused: false, cause: `status ${status}` };
    if (rule.outcome.unknown.includes(status)) return { kind: "unknown", cause: `status ${status}` };
    return execution;
  }
  if (execution.kind === "broken" && !execution.isTooLarge) return { kind: "unknown", cause: execution.cause };
  if (execution.kind === "not-started")
    return {
      kind: "not-started",
      isRefused: !(execution.cause instanceof ForbiddenError),
      cause: execution.cause,
    };
  return execution;
}

const noBody = { headers: [], body: null } as const;

/** About what an entry costs in memory. */
const sizeOf = (entry: Entry): number => 512 + (Buffer.isBuffer(entry.body) ? entry.body.length : 0);

const sorted = (positions: ReadonlySet<number>): readonly number[] => [...positions].sort((a, b) => a - b);

/** A cluster's servers may tell of an old end for so long. */
const tailPatienceMs = 10_000;
const truncatedAway = "the log has forgotten what it needs next: it must be rebuilt";

const messageOf = (error: unknown): string => (error instanceof Error ? error.message : String(error));

function valueOf(headers: readonly string[], name: string): string | null {
  for (let at = 0; at < headers.length; at += 2)
    if (headers[at]?.toLowerCase() === name) return headers[at + 1] ?? null;
  return null;
}

const sameCursor = (a: Cursor, b: Cursor): boolean => JSON.stringify(a) === JSON.stringify(b);

/** Of a copy that nothing is known of. */
export const newCursor = (replica: string, owner: Cursor["owner"], epoch: string, backendVersion: string): Cursor => ({
  version: 1,
  replica,
  owner,
  incarnation: "",
  epoch,
  applied: 0,
  entries: 0,
  hash: "0".repeat(64),
  state: "clean",
  bound: 0,
  nonce: "",
  standing: null,
  isSuspect: false,
  restored: 0,
  unknown: [],
  finished: [],
  barred: null,
  slowestMs: {},
  backendVersion,
});
