// The poison guard: an entry that may not be repeated goes first to one live replica alone, and to the others when that one has answered or
// has been silent for longer than usual. One request can so never kill all copies at once. A replica that died with such entries in
// flight makes them suspects: the others take each alone, one after the other, and `kills` deaths park it.

import { ByPosition } from "./byposition.ts";
import type { Clock } from "./clock.ts";

interface Exposed {
  readonly position: number;
  /** Who has it now and has not answered. */
  tester: string | null;
  sinceMs: number;
  rule: string;
  isSuspect: boolean;
  /** When it became one. */
  suspectedMs: number;
  kills: number;
}

const graceMs = 50;
const sweepMs = 10;
/** A suspect is left to another gateway's replica for so long; its word may be lost. */
const patienceMs = 5000;
/** Open entries that are remembered; a replica further behind takes what others have long answered, or tests it again. */
const openMax = 4096;

export class Exposure {
  readonly #clock: Clock;
  readonly #kills: number;
  /** Not answered by anybody yet: few. */
  readonly #entries = new ByPosition<Exposed>();
  /** Somebody answered, or the tester was silent for long: everybody may take it. */
  readonly #open = new Newest();
  /** Those of them that somebody survived: they end nobody. */
  readonly #survived = new Newest();
  /** Usual answer time of each rule, ms: a moving average. */
  readonly #usualMs = new Map<string, number>();
  /** Replicas that were silent: nobody's first until they answer again. */
  readonly #silent = new Set<string>();
  readonly #listeners: (() => void)[] = [];
  readonly #park: (position: number, kills: number) => void;
  #waiting = false;
  readonly #timer: NodeJS.Timeout;
  #live: () => readonly string[] = () => [];
  #isElsewhere: (replica: string) => boolean = () => false;
  #isFinished: (position: number) => boolean = () => false;

  constructor(clock: Clock, kills: number, park: (position: number, kills: number) => void) {
    this.#clock = clock;
    this.#kills = kills;
    this.#park = park;
    this.#timer = setInterval(() => this.#sweep(), sweepMs);
    this.#timer.unref();
  }

  /** Who is live: a silent replica may go first only when it is alone. */
  liveIs(live: () => readonly string[]): void {
    this.#live = live;
  }
  /** Whether a live replica is fed by another gateway: what it survives is heard of, not seen. */
  elsewhereIs(isElsewhere: (replica: string) => boolean): void {
    this.#isElsewhere = isElsewhere;
  }
  /** Whether a replica has finished an entry: who survived it may be forgotten since this process began, or was never heard of. */
  finishedIs(isFinished: (position: number) => boolean): void {
    this.#isFinished = isFinished;
  }
  /** Heard when entries that were refused may be asked for again. */
  onOpened(listener: () => void): void {
    this.#listeners.push(listener);
  }

  /**
   * `alone`: only with nothing else in flight on that replica. `wait`: another has it first. Between gateways the entry's primary goes first, and of those
   * that are left the first live one takes a suspect: all of them know who that is.
   */
  ask(replica: string, position: number, rule: string, primary: string | null): "go" | "alone" | "wait" {
    // What a replica has finished ends nobody. A copy that catches up asks for many such: that another gateway's has survived them was told long ago.
    if (this.#open.has(position) || this.#isFinished(position)) return "go";
    const it = this.#entries.get(position);
    if (it === undefined) {
      const other = this.#silent.has(replica)
        ? this.#live().find((name) => name !== replica && !this.#silent.has(name))
        : undefined;
      if (other !== undefined) {
        this.#waiting = true;
        // Whether another gateway's replica has long answered it may never be heard of: it is not waited for without an end.
        if (this.#isElsewhere(other)) this.#expose(position, rule, other);
        return "wait";
      }
      const isFirstElsewhere =
        primary !== null && primary !== replica && !this.#silent.has(primary) && this.#isElsewhere(primary);
      this.#expose(position, rule, isFirstElsewhere ? primary : replica);
      this.#waiting ||= isFirstElsewhere;
      return isFirstElsewhere ? "wait" : "go";
    }
    if (it.tester === null || it.tester === replica) {
      if (!it.isSuspect) return this.#take(it, replica);
      const [first] = this.#live();
      const isLeftToOther = first !== undefined && first !== replica && this.#isElsewhere(first);
      if (!isLeftToOther || this.#clock.now() - it.suspectedMs > patienceMs) return "alone";
    }
    this.#waiting = true;
    return "wait";
  }

  /** The replica sends a suspect, alone. */
  takeAlone(replica: string, position: number): void {
    const it = this.#entries.get(position);
    if (it !== undefined) this.#take(it, replica);
  }

  answered(replica: string, position: number, rule: string, tookMs: number): void {
    this.#silent.delete(replica);
    const usual = this.#usualMs.get(rule);
    this.#usualMs.set(rule, usual === undefined ? tookMs : usual * 0.9 + tookMs * 0.1);
    // Whoever survives a suspect has cleared it.
    this.#survived.add(position);
    if (this.#entries.delete(position)) this.#letAll(position);
  }

  /** The live set is another: a suspect that a replica had alone and took away with it goes to the next. */
  leftAll(live: readonly string[]): void {
    for (const it of this.#entries.values())
      if (it.isSuspect && it.tester !== null && !live.includes(it.tester)) it.tester = null;
    this.#opened();
  }

  /** The replica's life ended while these were in flight. */
  died(replica: string, positions: readonly number[]): void {
    for (const position of positions) {
      if (this.#survived.has(position) || this.#isFinished(position)) continue;
      const it = this.#entries.get(position) ?? {
        position,
        tester: null,
        sinceMs: this.#clock.now(),
        rule: "",
        isSuspect: false,
        suspectedMs: 0,
        kills: 0,
      };
      this.#entries.set(position, it);
      this.#open.delete(position);
      it.kills++;
      it.isSuspect = true;
      it.suspectedMs = this.#clock.now();
      if (it.tester === replica) it.tester = null;
      if (it.kills >= this.#kills) this.#park(position, it.kills);
    }
    this.#opened();
  }

  close(): void {
    clearInterval(this.#timer);
  }

  #expose(position: number, rule: string, tester: string): void {
    this.#entries.set(position, {
      position,
      tester,
      sinceMs: this.#clock.now(),
      rule,
      isSuspect: false,
      suspectedMs: 0,
      kills: 0,
    });
  }

  #take(it: Exposed, replica: string): "go" {
    it.tester = replica;
    it.sinceMs = this.#clock.now();
    return "go";
  }

  #letAll(position: number): void {
    this.#open.add(position);
    this.#opened();
  }

  #opened(): void {
    if (!this.#waiting) return;
    this.#waiting = false;
    for (const listener of this.#listeners) listener();
  }

  #sweep(): void {
    const now = this.#clock.now();
    for (const it of this.#entries.values()) {
      const isLate = now - Math.max(it.suspectedMs, it.sinceMs) > patienceMs;
      // What another gateway's replica survived may never be heard of: its word was lost.
      if (it.isSuspect && it.tester !== null && isLate && this.#isElsewhere(it.tester)) it.tester = null;
      if (it.isSuspect && it.tester === null && now - it.suspectedMs > patienceMs) this.#opened();
      if (it.isSuspect || it.tester === null) continue;
      if (now - it.sinceMs < graceMs + 4 * (this.#usualMs.get(it.rule) ?? 0)) continue;
      this.#silent.add(it.tester);
      this.#entries.delete(it.position);
      this.#letAll(it.position);
    }
  }
}

/** The positions that were added last. A Set alone looks for its oldest among all that it has forgotten since it grew. */
class Newest {
  readonly #positions = new Set<number>();
  /** In the order they were added; the oldest is overwritten. */
  readonly #order: number[] = [];
  #next = 0;

  has(position: number): boolean {
    return this.#positions.has(position);
  }

  add(position: number): void {
    if (this.#positions.has(position)) return;
    const oldest = this.#order[this.#next];
    if (oldest !== undefined) this.#positions.delete(oldest);
    this.#positions.add(position);
    this.#order[this.#next] = position;
    this.#next = (this.#next + 1) % openMax;
  }

  /** One that is added again goes when it would have gone the first time. */
  delete(position: number): void {
    this.#positions.delete(position);
  }
}
