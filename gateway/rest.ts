// Copies that cannot be rebuilt rest in turn: while entries are in flight whose outcome nothing would tell after a crash, the cursor of one live copy is
// clean at any moment. That copy goes on at once after whatever ends the gateway, so no single crash stops the service.
//
// The one that rests sends nothing. When it has waited with entries for a turn, the next comes to rest first, and only then it goes on. Where nothing waits
// no turn ends and nothing is written: the cursor writes are bounded by turns, never by requests.

import { isRepeatable } from "../rules/rule.ts";
import type { Rule, RuleSet } from "../rules/rule.ts";
import type { Clock } from "./clock.ts";

/** One copy, as its applier shows it. */
export interface Resting {
  readonly name: string;
  readonly isLive: boolean;
  /** Its cursor is clean. */
  readonly isClean: boolean;
  /** It stands still for a capture, with a clean cursor. */
  readonly isCaptured: boolean;
  /** Entries taken and not finished whose outcome nothing would tell. */
  readonly hazards: number;
  /** How long what is in flight on it may take: its usual answer time, and some. */
  readonly patienceMs: number;
  /** Sends nothing more, finishes what is in flight, writes a clean cursor. False: told to go on meanwhile, or no longer live. */
  rest(): Promise<boolean>;
  goOnAfterRest(): void;
  wake(): void;
}

export interface RestParts {
  readonly clock: Clock;
  readonly members: () => readonly Resting[];
  /** All live copies are this gateway's, and none of them could be rebuilt. Asked again when the live set changes. */
  readonly isNeeded: () => boolean;
}

/** How long a copy that rests lets entries wait: an answer that all copies have to give comes so much later. */
const turnMs = 50;
/** Where coming to rest itself takes long (slow answers, a slow disk) a turn is longer than that, so that the cost stays about that of one copy. */
const turnMsMax = 200;
const turnPerSwitch = 4;
/**
 * A copy that does not come to rest in time (it hangs) is not asked again for so long; where there is no other, all go on meanwhile: that is a fault
 * already, and one more would have to come.
 */
const passedOverMs = 2000;

export class Rest {
  readonly #parts: RestParts;
  #isNeeded = false;
  #resting: Resting | null = null;
  #isTurning = false;
  #isWaiting = false;
  #isSuspended = false;
  /** Until when who did not come to rest is passed over. */
  readonly #passedOver = new Map<string, number>();
  /** When each was last to rest, counted in turns. */
  readonly #turns = new Map<string, number>();
  #turn = 0;
  /** How long coming to rest took of late. */
  #switchMs = 0;

  constructor(parts: RestParts) {
    this.#parts = parts;
  }

  /** Who rests now. */
  get resting(): string | null {
    return this.#resting?.name ?? null;
  }

  /** Whether `asker` may send an entry whose outcome nothing would tell: another copy is at rest, or none can be. All are woken when that changes. */
  may(asker: string): boolean {
    if (!this.#isNeeded || this.#isSuspended) return true;
    if (this.#resting !== null) return this.#resting.name !== asker;
    const members = this.#parts.members();
    if (members.some((it) => it.isCaptured && it.name !== asker)) return true;
    // The only live one cannot rest: it has to answer.
    if (members.filter((it) => it.isLive).length < 2) return true;
    void this.#nextRests(null, asker);
    return false;
  }

  /** The copy that rests has entries which wait for it. */
  hasBacklog(name: string): void {
    const resting = this.#resting;
    if (resting?.name !== name || this.#isTurning) return;
    // What is in flight and waits can be told after any crash.
    if (this.#parts.members().every((it) => it.hazards === 0)) this.#release();
    else if (!this.#isWaiting) {
      this.#isWaiting = true;
      void this.#parts.clock.sleep(this.#turnMs).then(() => {
        this.#isWaiting = false;
        if (this.#resting === resting) void this.#nextRests(resting, name);
        // Another rests by now, and has to say so anew.
        else this.#wakeAll();
      });
    }
  }

  get #turnMs(): number {
    return Math.min(turnMsMax, Math.max(turnMs, turnPerSwitch * this.#switchMs));
  }

  /** The live set has changed. */
  changed(): void {
    this.#isNeeded = this.#parts.isNeeded();
    const resting = this.#resting;
    if (resting === null) return;
    const hasOthers = this.#parts.members().some((it) => it.isLive && it.name !== resting.name);
    if (!this.#isNeeded || !resting.isLive || !hasOthers) this.#release();
  }

  #release(): void {
    const resting = this.#resting;
    this.#resting = null;
    resting?.goOnAfterRest();
    this.#wakeAll();
  }

  /** `from` goes on when another is at rest, or when none can be. */
  async #nextRests(from: Resting | null, but: string): Promise<void> {
    if (this.#isTurning) return;
    this.#isTurning = true;
    try {
      for (const next of this.#candidates(but)) {
        this.#turns.set(next.name, ++this.#turn);
        if (await this.#comesToRest(next)) {
          this.#resting = next;
          return;
        }
        this.#passedOver.set(next.name, this.#parts.clock.now() + passedOverMs);
        next.goOnAfterRest();
      }
      this.#resting = null;
      this.#suspend();
    } finally {
      this.#isTurning = false;
      from?.goOnAfterRest();
      // It may have left between its last word and now.
      this.changed();
      this.#wakeAll();
    }
  }

  /** Those that are clean already, then whoever rested longest ago. At first the last one: the first is the primary. */
  #candidates(but: string): readonly Resting[] {
    const turnOf = (it: Resting): number => this.#turns.get(it.name) ?? 0;
    const now = this.#parts.clock.now();
    return this.#parts
      .members()
      .filter((it) => it.isLive && it.name !== but && now >= (this.#passedOver.get(it.name) ?? 0))
      .reverse()
      .sort((a, b) => Number(b.isClean) - Number(a.isClean) || turnOf(a) - turnOf(b));
  }

  async #comesToRest(next: Resting): Promise<boolean> {
    const { clock } = this.#parts;
    const from = clock.now();
    const tooLong = clock.sleep(next.patienceMs).then(() => false);
    const isAtRest = await Promise.race([next.rest(), tooLong]);
    this.#switchMs = this.#switchMs * 0.8 + (clock.now() - from) * 0.2;
    return isAtRest;
  }

  #suspend(): void {
    this.#isSuspended = true;
    void this.#parts.clock.sleep(passedOverMs).then(() => (this.#isSuspended = false));
  }

  #wakeAll(): void {
    for (const it of this.#parts.members()) it.wake();
  }
}

/** After a crash nothing would tell whether such a request took effect: it can neither be repeated, asked for nor put back. */
export const isHazard = (rule: Rule, method: string): boolean =>
  rule.probe === null && rule.before === null && rule.unknown === "hold" && !isRepeatable(rule, method);

/** What is printed at start where copies have to rest; null: nothing that would make them. */
export function costOfRest(count: number, { rules }: RuleSet): string | null {
  const hazardous = rules.filter(
    (rule) => rule.mode === "replicate" && (rule.match.methods ?? ["POST"]).some((method) => isHazard(rule, method)),
  );
  if (count < 2 || hazardous.length === 0) return null;
  const names = hazardous.map((rule) => rule.name);
  const shown = names.length > 3 ? `${names.slice(0, 3).join(", ")} and ${names.length - 3} more` : names.join(", ");
  return (
    `no copy can be rebuilt, and requests of some rules (${shown}) can be neither repeated, asked for nor put back: while such are in flight the copies ` +
    `that one gateway feeds rest in turn, if it feeds all that are live, so that a crash never holds all of them. That takes about 1/${count} of the throughput of requests in one order. ` +
    "Snapshots (snapshots:) end it; so do probe, before and undo, or retry: safe on those rules"
  );
}
