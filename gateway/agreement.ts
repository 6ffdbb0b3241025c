// Collects every replica's answer to every entry: chooses what the client gets, notices who disagrees, keeps the digests.

import { digestAnswer, describeDifferences } from "../rules/compare.ts";
import type { Rule } from "../rules/rule.ts";
import { ByPosition } from "./byposition.ts";
import type { DigestRow, Digests } from "./digests/digests.ts";
import type { Answer, Entry } from "./entry.ts";
import { GatewayError } from "./errors.ts";
import type { Events } from "./events.ts";
import type { DisagreementRow } from "./status.ts";

/** Who answered: a life of a replica, at a version of its backend. */
export interface Answerer {
  readonly replica: string;
  readonly incarnation: string;
  readonly backendVersion: string;
}

export interface Chosen {
  readonly answer: Answer;
  readonly replica: string;
  /** Of the whole answer, hex. */
  readonly digest: string;
}

interface Given {
  readonly by: Answerer;
  readonly isFirstSend: boolean;
  readonly status: number;
  readonly decisive: string;
  readonly full: string;
  /** Null once its bytes were let go. */
  answer: Answer | null;
}

interface Pending {
  readonly position: number;
  readonly entry: Entry;
  readonly rule: Rule;
  readonly rules: string;
  /** Those of the live set named in the record that have not left since. */
  live: readonly string[];
  /** Of the live set named in the record; of anybody once all of those have left. */
  readonly answers: Given[];
  /** Of replicas that were not live when it was appended: compared with what wins. */
  readonly late: Given[];
  /** Executed, but the answer cannot be used. */
  readonly unusable: string[];
  /** One of them because it was larger than `limits.answer`. */
  isTooLarge: boolean;
  waiter: ((chosen: Chosen | GatewayError) => void) | null;
  isAnswered: boolean;
}

export interface AgreementParts {
  readonly epoch: string;
  /** How many replicas there are. */
  readonly replicas: () => number;
  readonly digests: Digests;
  readonly events: Events;
  readonly wallMs: () => number;
  /** A replica gave another answer than the majority. */
  readonly onMinority: (replica: string, position: number, rule: string) => void;
  readonly onTie: (position: number) => void;
}

/** Bodies kept for answers that are still compared, bytes; above it only their digests are. */
const answerBytesMax = 64 * 1024 * 1024;
const winnersMax = 65_536;
const disagreementsMax = 1000;
const missingMax = 1024;
/** Short: rows that wait for long outlive the young generation of the heap, and cost more there than a commit does (measured). */
const digestFlushMs = 50;
const digestRowsMax = 4096;
const shownBytes = 4096;

export class Agreement {
  readonly #parts: AgreementParts;
  readonly #pending = new ByPosition<Pending>();
  #answerBytes = 0;
  /** Digests that won, for replicas that come later. */
  readonly #winners = new Map<
    number,
    { readonly decisive: string; readonly full: string; readonly rules: string; readonly version: string }
  >();
  readonly #disagreements: DisagreementRow[] = [];
  #rows: DigestRow[] = [];
  #timer: NodeJS.Timeout | null = null;
  #flushing: Promise<void> = Promise.resolve();

  constructor(parts: AgreementParts) {
    this.#parts = parts;
  }

  get disagreements(): readonly DisagreementRow[] {
    return this.#disagreements;
  }
  get open(): number {
    return this.#pending.size;
  }

  /** An entry was folded; `live` are the replicas the record names. */
  expect(position: number, entry: Entry, rule: Rule, rules: string, live: readonly string[]): void {
    this.#pending.set(position, {
      position,
      entry,
      rule,
      rules,
      live,
      answers: [],
      late: [],
      unusable: [],
      isTooLarge: false,
      waiter: null,
      isAnswered: false,
    });
  }

  /** Calls once: with the answer for the client, or with why there is none. */
  wait(position: number, waiter: (chosen: Chosen | GatewayError) => void): void {
    const pending = this.#pending.get(position);
    if (pending === undefined) {
      waiter(
        new GatewayError("GW_ANSWER_LOST", `the answer of entry ${position} is no longer kept`, {
          outcome: "executed",
          position,
        }),
      );
      return;
    }
    pending.waiter = waiter;
    this.#choose(pending);
  }

  /** The entry is being executed and its answer is not chosen yet. */
  isWaiting(position: number): boolean {
    const pending = this.#pending.get(position);
    return pending !== undefined && !pending.isAnswered && pending.answers.length === 0;
  }

  forget(position: number): void {
    const pending = this.#pending.get(position);
    if (pending !== undefined) pending.waiter = null;
  }

  /** Of a replica that this process feeds: its digest is kept. */
  answered(position: number, by: Answerer, rule: Rule, rules: string, answer: Answer, isFirstSend: boolean): string {
    const pending = this.#pending.get(position);
    const given =
      pending === undefined ? digested(rule, by, answer, isFirstSend) : this.#given(pending, by, answer, isFirstSend);
    this.#keepRow(position, given, rules);
    if (pending === undefined) this.#compareLate(position, given, rules, rule);
    else this.#take(pending, given);
    return given.full;
  }

  /** Of a replica that another gateway feeds, to an entry that this one appended. Told again it is told once. */
  heard(position: number, by: Answerer, answer: Answer, isFirstSend: boolean): void {
    const pending = this.#pending.get(position);
    if (pending === undefined || this.#hasAnswered(pending, by.replica)) return;
    this.#take(pending, this.#given(pending, by, answer, isFirstSend));
  }

  /** Entries that a replica was live for and has not answered, of those up to a position; oldest first. */
  missing(replica: string, upTo: number): readonly number[] {
    const positions: number[] = [];
    for (const pending of this.#pending.values()) {
      if (pending.position > upTo || positions.length >= missingMax) break;
      if (pending.live.includes(replica) && !this.#hasAnswered(pending, replica)) positions.push(pending.position);
    }
    return positions;
  }

  #hasAnswered({ answers, late, unusable }: Pending, replica: string): boolean {
    const isBy = (it: Given): boolean => it.by.replica === replica;
    return unusable.includes(replica) || answers.some(isBy) || late.some(isBy);
  }

  #take(pending: Pending, given: Given): void {
    this.#answerBytes += given.answer?.body.length ?? 0;
    if (pending.live.length > 0 && !pending.live.includes(given.by.replica)) {
      pending.late.push(given);
      return;
    }
    pending.answers.push(given);
    this.#choose(pending);
    this.#completeIfAll(pending);
    if (this.#answerBytes > answerBytesMax) this.#letGo();
  }

  /** The replica executed the entry (or is as if it had) and has no answer that could be used. */
  unusable(position: number, replica: string, isTooLarge = false): void {
    const pending = this.#pending.get(position);
    if (pending === undefined || this.#hasAnswered(pending, replica)) return;
    pending.isTooLarge ||= isTooLarge;
    pending.unusable.push(replica);
    this.#choose(pending);
    this.#completeIfAll(pending);
  }

  /** The replica left the live set: nobody waits for it any more. */
  left(replica: string): void {
    for (const pending of this.#pending.values()) {
      if (!pending.live.includes(replica)) continue;
      pending.live = pending.live.filter((name) => name !== replica);
      if (pending.live.length === 0) pending.answers.push(...pending.late.splice(0));
      this.#choose(pending);
      this.#completeIfAll(pending);
    }
  }

  parked(position: number, reason: string): void {
    const pending = this.#pending.get(position);
    if (pending === undefined) return;
    this.#pending.delete(position);
    for (const it of [...pending.answers, ...pending.late]) this.#answerBytes -= it.answer?.body.length ?? 0;
    pending.waiter?.(new GatewayError("GW_PARKED", reason, { outcome: "not-executed", position }));
  }

  async close(): Promise<void> {
    if (this.#timer !== null) clearTimeout(this.#timer);
    for (const pending of this.#pending.values())
      pending.waiter?.(
        new GatewayError("GW_STOPPING", "the gateway stopped before a replica answered; the entry is in the log", {
          outcome: "unknown",
          position: pending.position,
        }),
      );
    this.#pending.clear();
    this.#flush();
    await this.#flushing;
  }

  /** Equal to the first answer is the usual case: then nothing is hashed again. */
  #given(pending: Pending, by: Answerer, answer: Answer, isFirstSend: boolean): Given {
    const first = pending.answers[0];
    if (
      first !== undefined &&
      first.answer !== null &&
      pending.rule.compare.headers.length === 0 &&
      first.status === answer.status &&
      first.answer.body.equals(answer.body)
    )
      return { by, isFirstSend, status: answer.status, decisive: first.decisive, full: first.full, answer };
    return digested(pending.rule, by, answer, isFirstSend);
  }

  #choose(pending: Pending): void {
    if (pending.isAnswered || pending.waiter === null) return;
    const chosen = choose(pending);
    if (chosen === null) return;
    pending.isAnswered = true;
    const { waiter } = pending;
    pending.waiter = null;
    waiter(chosen);
  }

  #completeIfAll(pending: Pending): void {
    const { answers, unusable } = pending;
    if (answers.length + unusable.length < pending.live.length) return;
    const isDone = (name: string): boolean => unusable.includes(name) || answers.some((it) => it.by.replica === name);
    // With nobody live the entry waits for whoever comes back first, as long as somebody waits for its answer.
    if (pending.live.length === 0 && answers.length === 0 && (pending.waiter !== null || unusable.length === 0)) return;
    if (!pending.live.every(isDone)) return;
    this.#pending.delete(pending.position);
    for (const it of [...answers, ...pending.late]) this.#answerBytes -= it.answer?.body.length ?? 0;
    if (pending.waiter !== null && !pending.isAnswered) this.#choose(pending);
    this.#judge(pending);
    for (const it of pending.late) this.#compareLate(pending.position, it, pending.rules, pending.rule);
  }

  #judge(pending: Pending): void {
    const [first] = pending.answers;
    if (first === undefined) return;
    if (pending.answers.every((it) => it.isFirstSend && it.full === first.full)) {
      this.#remember(pending, first);
      return;
    }
    // Versions of a backend are compared within one version only.
    const versions = grouped(
      pending.answers.filter((it) => it.isFirstSend),
      (it) => it.by.backendVersion,
    ).sort((a, b) => b.length - a.length);
    for (const firsts of versions) this.#judgeVersion(pending, firsts, firsts === versions[0]);
  }

  #judgeVersion(pending: Pending, firsts: readonly Given[], isLargest: boolean): void {
    const [lead] = firsts;
    if (lead === undefined) return;
    const groups = grouped(firsts, (it) => it.decisive);
    const largest = Math.max(...groups.map((group) => group.length));
    const isTie = groups.length > 1 && groups.filter((group) => group.length === largest).length > 1;
    const winner = groups.find((group) => group.length === largest)?.[0] ?? lead;
    if (!isTie && isLargest) this.#remember(pending, winner);
    if (groups.length === 1) {
      if (pending.rule.compare.body === "off" && firsts.some((it) => it.full !== lead.full))
        this.#report(pending, firsts, lead, false);
      return;
    }
    this.#report(pending, firsts, winner, true);
    if (isTie) {
      this.#parts.onTie(pending.position);
      return;
    }
    for (const it of firsts)
      if (it.decisive !== winner.decisive) this.#parts.onMinority(it.by.replica, pending.position, pending.rule.name);
  }

  #remember(pending: Pending, winner: Given): void {
    // Each replica answers an entry once: when all have, nobody comes later.
    if (pending.answers.length >= this.#parts.replicas()) return;
    this.#winners.set(pending.position, {
      decisive: winner.decisive,
      full: winner.full,
      rules: pending.rules,
      version: winner.by.backendVersion,
    });
    if (this.#winners.size > winnersMax) this.#winners.delete(this.#winners.keys().next().value as number);
  }

  /** A replica that was not in the live set: compared with what won, under the same rules and version only. */
  #compareLate(position: number, given: Given, rules: string, rule: Rule): void {
    const winner = this.#winners.get(position);
    if (
      winner === undefined ||
      !given.isFirstSend ||
      winner.rules !== rules ||
      winner.version !== given.by.backendVersion
    )
      return;
    if (winner.decisive === given.decisive) return;
    this.#parts.events.tell({
      type: "disagreement",
      position,
      rule: rule.name,
      minority: [given.by.replica],
      decisive: true,
    });
    this.#parts.onMinority(given.by.replica, position, rule.name);
  }

  #report(pending: Pending, given: readonly Given[], winner: Given, decisive: boolean): void {
    const others = given.filter((it) => (decisive ? it.decisive !== winner.decisive : it.full !== winner.full));
    const minority = others.map((it) => it.by.replica);
    const [other] = others;
    this.#disagreements.push({
      position: pending.position,
      timeMs: this.#parts.wallMs(),
      rule: pending.rule.name,
      method: pending.entry.method,
      target: pending.entry.target,
      decisive,
      minority,
      answers: given.map((it) => ({
        replica: it.by.replica,
        status: it.status,
        digest: it.full,
        headers: it.answer?.headers ?? [],
        body: it.answer?.body.subarray(0, shownBytes).toString("utf8") ?? "",
      })),
      differences:
        winner.answer !== null && other !== undefined && other.answer !== null
          ? describeDifferences(pending.rule, winner.answer, other.answer)
          : [],
    });
    if (this.#disagreements.length > disagreementsMax) this.#disagreements.shift();
    this.#parts.events.tell({
      type: "disagreement",
      position: pending.position,
      rule: pending.rule.name,
      minority,
      decisive,
    });
  }

  /** A replica far behind must not hold the others' bodies in memory: oldest answered first. */
  #letGo(): void {
    for (const pending of this.#pending.values()) {
      if (this.#answerBytes <= answerBytesMax / 2) return;
      if (pending.waiter !== null) continue;
      for (const it of [...pending.answers, ...pending.late]) {
        this.#answerBytes -= it.answer?.body.length ?? 0;
        it.answer = null;
      }
    }
  }

  #keepRow(position: number, given: Given, rules: string): void {
    this.#rows.push({
      epoch: this.#parts.epoch,
      position,
      replica: given.by.replica,
      incarnation: given.by.incarnation,
      backendVersion: given.by.backendVersion,
      rules,
      digest: given.decisive,
      isFirstSend: given.isFirstSend,
    });
    if (this.#rows.length >= digestRowsMax) this.#flush();
    else this.#timer ??= setTimeout(() => this.#flush(), digestFlushMs);
  }

  #flush(): void {
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.#timer = null;
    const rows = this.#rows;
    if (rows.length === 0) return;
    this.#rows = [];
    this.#flushing = this.#flushing
      .then(() => this.#parts.digests.append(rows))
      // An entry without a row is "unverified", never "equal": nothing depends on it now.
      .catch((error: unknown) =>
        this.#parts.events.tell({ type: "warning", about: "answer digests", detail: String(error) }),
      );
  }
}

function digested(rule: Rule, by: Answerer, answer: Answer, isFirstSend: boolean): Given {
  const { decisive, full } = digestAnswer(rule, answer);
  return {
    by,
    isFirstSend,
    status: answer.status,
    decisive: decisive.toString("hex"),
    full: full.toString("hex"),
    answer,
  };
}

/** A good answer is one below 500 that is not 429. */
const isGood = (status: number): boolean => status < 500 && status !== 429;

const chosenOf = (given: Given): Chosen | null =>
  given.answer === null ? null : { answer: given.answer, replica: given.by.replica, digest: given.full };

/** Null: wait for more. */
function choose(pending: Pending): Chosen | GatewayError | null {
  const { answers, live, unusable, rule, position } = pending;
  // Who left has no vote any more; once the last one has left, whoever answers is better than nobody.
  const hasVote = (it: Given): boolean => it.isFirstSend && (live.length === 0 || live.includes(it.by.replica));
  if (rule.respond === "first") {
    const good = answers.find((it) => isGood(it.status) && hasVote(it));
    if (good !== undefined) return chosenOf(good);
  }
  const firsts = answers.filter(hasVote);
  const hasAnswered = (name: string): boolean =>
    unusable.includes(name) || answers.some((it) => it.by.replica === name);
  const isAll =
    live.length + answers.length + unusable.length > 0 &&
    live.every(hasAnswered) &&
    (live.length > 0 || answers.length > 0);
  if (rule.respond !== "all" || isAll) {
    const voters = Math.max(live.length, 1);
    const majority = grouped(firsts, (it) => it.decisive).find((group) => group.length * 2 > voters);
    if (majority?.[0] !== undefined) return chosenOf(majority[0]);
  }
  if (!isAll) return null;
  if (rule.respond === "first" || answers.every((it) => !it.isFirstSend)) {
    const last = firsts[0] ?? answers[0];
    if (last !== undefined) return chosenOf(last);
    if (pending.isTooLarge)
      return new GatewayError(
        "GW_ANSWER_TOO_LARGE",
        `entry ${position} was executed, its answer is larger than limits.answer`,
        {
          outcome: "executed",
          position,
        },
      );
    return new GatewayError(
      "GW_BACKEND_FAILED",
      `entry ${position} was executed, but no replica gave an answer that can be passed on`,
      { outcome: "executed", position },
    );
  }
  return new GatewayError("GW_NO_AGREEMENT", `the replicas' answers to entry ${position} have no majority`, {
    outcome: "executed",
    position,
  });
}

function grouped<T>(list: readonly T[], key: (item: T) => string): T[][] {
  const groups = new Map<string, T[]>();
  for (const item of list) {
    const group = groups.get(key(item));
    if (group === undefined) groups.set(key(item), [item]);
    else group.push(item);
  }
  return [...groups.values()];
}
