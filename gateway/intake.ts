// Where a client's request becomes what it is: refused, written to the log and applied everywhere, or handed to one copy.

import { createHash } from "node:crypto";
import type { IdempotencyKey } from "../rules/key.ts";
import { idempotencyKey } from "../rules/key.ts";
import type { NeedsBody, RequestHead, Verdict } from "../rules/match.ts";
import { readBody } from "../rules/json.ts";
import { isSafe, Matcher } from "../rules/match.ts";
import { orderKeys } from "../rules/order.ts";
import { render } from "../rules/template.ts";
import type { Template, TemplateContext } from "../rules/template.ts";
import type { Agreement, Chosen } from "./agreement.ts";
import type { Appender, Ticket } from "./appender.ts";
import type { Bodies } from "./bodies/bodies.ts";
import type { Clock } from "./clock.ts";
import type { Timed } from "./deadlines.ts";
import { Deadlines } from "./deadlines.ts";
import type { Answer, BodyRef, Entry, EntryKey, RawHeaders } from "./entry.ts";
import type { Outcome } from "./errors.ts";
import { GatewayError } from "./errors.ts";
import type { Events } from "./events.ts";
import type { Account, Exchange, Service } from "./exchange.ts";
import type { Decided, Decision, Keys } from "./keys/keys.ts";
import type { Case, Once } from "./once.ts";
import type { Policies } from "./policies.ts";
import type { LogReader } from "./reader.ts";
import type { Reads } from "./reads.ts";
import type { Replicas } from "./replicas.ts";
import type { FoldedItem } from "./state/state.ts";
import type { KeyRow } from "./state/store.ts";

export interface IntakeLimits {
  readonly bodyBytes: number;
  readonly inlineBytes: number;
  readonly queueWaitMs: number;
  readonly firstByteMs: number;
  /** A live replica further behind than this does not count for admission, entries. */
  readonly lagMax: number;
}

export interface IntakeParts {
  readonly service: string;
  readonly epoch: string;
  readonly boot: string;
  readonly policies: Policies;
  readonly reader: LogReader;
  readonly appender: Appender;
  readonly agreement: Agreement;
  readonly replicas: Replicas;
  readonly reads: Reads;
  readonly once: Once;
  readonly keys: Keys;
  readonly bodies: Bodies;
  readonly events: Events;
  readonly clock: Clock;
  readonly randomHex: (bytes: number) => string;
  readonly limits: IntakeLimits;
  readonly onRunning: "conflict" | "wait";
  readonly caller: Template;
  /** Why nothing new is taken now: paused, stopping, the log full or away. */
  readonly refusal: () => GatewayError | null;
  /** Why a backend could not be sent this at all; null: it can. */
  readonly whyUnsendable: (entry: Entry) => string | null;
}

interface Applied {
  readonly position: number;
  readonly chosen: Chosen;
}

export class Intake implements Service {
  readonly #deadlines = new Deadlines();
  readonly #parts: IntakeParts;
  readonly #matcher: Matcher;

  constructor(parts: IntakeParts) {
    this.#parts = parts;
    this.#matcher = new Matcher(parts.policies.own.rules);
  }

  async handle(exchange: Exchange): Promise<Account> {
    let rule = "none";
    let mode: Account["mode"] = "none";
    try {
      const found = this.#matcher.match(exchange.head);
      const decided = found.kind === "verdict" ? caseOf(exchange, found, null) : await this.#decide(exchange, found);
      ({ name: rule, mode } = decided.verdict.rule);
      return await this.#serve(decided);
    } catch (error) {
      const position = error instanceof GatewayError ? (error.position ?? null) : null;
      this.#problem(exchange, error, position === null ? [] : this.#positionField(position));
      return { rule, mode, position, replica: null };
    }
  }

  async upgrade(
    head: RequestHead,
    peer: string,
  ): Promise<{ readonly url: string; readonly replica: string } | GatewayError> {
    const found = this.#matcher.match(head);
    const verdict = found.kind === "verdict" ? found : found.decide(null);
    const { rule } = verdict;
    if (rule.mode !== "only-once" || !rule.websocket)
      return new GatewayError(
        "GW_UPGRADE_REFUSED",
        `the rule ${rule.name} does not allow upgrades (websocket: true on an only-once rule does)`,
      );
    try {
      const need = rule.consistency === "any" ? ({ kind: "any" } as const) : ({ kind: "linearizable" } as const);
      const applier = await this.#parts.reads.choose(
        need,
        [],
        this.#parts.once.affinity(rule, head.headers, peer),
        new Set(),
      );
      return { url: applier.url ?? "", replica: applier.name };
    } catch (error) {
      return asGatewayError(error);
    }
  }

  async #decide(exchange: Exchange, found: NeedsBody): Promise<Case> {
    const body = await exchange.body.collect(this.#parts.limits.inlineBytes);
    return caseOf(exchange, found.decide(body), body);
  }

  #serve(decided: Case): Promise<Account> {
    const { exchange, verdict } = decided;
    const { rule } = verdict;
    if (rule.mode === "refuse")
      throw new GatewayError(
        "GW_REFUSED",
        `the rule ${rule.name} refuses ${exchange.head.method} ${exchange.target.path}`,
        { status: rule.status, outcome: "not-executed" },
      );
    if (rule.mode === "only-once" && isSafe(rule, exchange.head.method)) return this.#parts.once.read(decided);
    const refusal = this.#parts.refusal();
    if (refusal !== null) throw refusal;
    return rule.mode === "only-once" ? this.#onlyOnce(decided) : this.#replicate(decided);
  }

  // ---- replicate -------------------------------------------------------------------------------------------------------------------

  async #replicate(decided: Case): Promise<Account> {
    const { exchange, verdict } = decided;
    const { limits, clock, randomHex } = this.#parts;
    this.#admit();
    const sent = idempotencyKey(verdict, decided.context);
    this.#checkKey(sent);
    const body =
      decided.body ??
      (await exchange.body.collect(limits.inlineBytes)) ??
      (await this.#parts.bodies.put(exchange.body.stream(), limits.bodyBytes));
    if (exchange.isGone())
      throw new GatewayError("GW_BAD_REQUEST", "the client went away before its request was taken", {
        outcome: "not-executed",
      });
    const context = contextOf(exchange, verdict, () => (Buffer.isBuffer(body) ? body : null));
    const key = sent.kind === "key" ? this.#entryKey(exchange, context, sent.value, body) : null;
    const entry: Entry = {
      kind: "entry",
      method: exchange.head.method,
      target: exchange.target.target,
      headers: exchange.headers,
      trailers: exchange.body.trailers(),
      body,
      key,
      rule: verdict.rule.index,
      orderKeys: orderKeys(verdict, context),
      timeMs: clock.wallMs(),
      seed: randomHex(16),
      retryOf: null,
    };
    // What no replica could ever be sent must not stand in the log.
    const unsendable = this.#parts.whyUnsendable(entry);
    if (unsendable !== null) throw new GatewayError("GW_METHOD_NOT_SUPPORTED", unsendable, { outcome: "not-executed" });
    if (key === null) {
      const { position, chosen } = await this.#apply(entry, decided);
      exchange.reply.answer(chosen.answer, this.#fields(verdict, chosen.answer.status, position));
      return account(verdict, position, chosen.replica);
    }
    return this.#keyed(decided, key, async () => {
      const { position, chosen } = await this.#apply(entry, decided);
      return { position, digest: chosen.digest, answer: chosen.answer, replica: chosen.replica };
    });
  }

  /** Refuses before the append what could not be answered in time. */
  #admit(): void {
    const { replicas, limits } = this.#parts;
    const live = replicas.liveReplicas();
    if (live.length === 0)
      throw new GatewayError(
        "GW_NO_REPLICA",
        `no replica is live: ${replicas.all.map((it) => `${it.name} is ${it.state}`).join(", ")}`,
        { outcome: "not-executed", retryAfterS: 1 },
      );
    let lag = Infinity;
    for (const it of live) lag = Math.min(lag, it.lag);
    if (lag > limits.lagMax)
      throw new GatewayError(
        "GW_OVERLOADED",
        `the replica furthest ahead is ${lag} entries behind the log (agreement.maxLag is ${limits.lagMax})`,
        { outcome: "not-executed", retryAfterS: 1 },
      );
    const waitMs = replicas.backlogMs(lag);
    if (waitMs > limits.queueWaitMs)
      throw new GatewayError(
        "GW_OVERLOADED",
        `a request taken now would wait about ${Math.round(waitMs)} ms (limits.queueWait is ${limits.queueWaitMs} ms)`,
        { outcome: "not-executed", retryAfterS: Math.ceil(waitMs / 1000) },
      );
  }

  /** Appends, and resolves with the answer that the rule's `respond` chooses. Throws with what is known of the outcome. */
  #apply(entry: Entry, decided: Case): Promise<Applied> {
    const { exchange, verdict } = decided;
    const answerMs = verdict.rule.timeoutMs ?? this.#parts.limits.firstByteMs;
    return new Promise((resolve, reject) => {
      const waiting = new Waiting(this.#parts, this.#deadlines, entry, answerMs, resolve, reject);
      waiting.begin();
      exchange.onGone(() => waiting.clientGone());
    });
  }

  // ---- keys ------------------------------------------------------------------------------------------------------------------------

  #checkKey(key: IdempotencyKey): void {
    const { events } = this.#parts;
    if (key.kind === "missing") {
      events.tell({ type: "key", result: "missing" });
      throw new GatewayError("GW_KEY_MISSING", "this request needs an Idempotency-Key field", {
        outcome: "not-executed",
      });
    }
    if (key.kind === "malformed") {
      events.tell({ type: "key", result: "malformed" });
      throw new GatewayError("GW_KEY_MALFORMED", `the Idempotency-Key cannot be used: ${key.reason}`, {
        outcome: "not-executed",
      });
    }
  }

  #entryKey(exchange: Exchange, context: TemplateContext, value: string, body: Buffer | BodyRef): EntryKey {
    const { service, caller } = this.#parts;
    const { method } = exchange.head;
    const id = hash16([service, method, exchange.target.path, value]);
    const content = Buffer.isBuffer(body) ? createHash("sha256").update(body).digest("hex") : body.sha256;
    return { id, fingerprint: hash16([method, exchange.target.target, content, render(caller, context) ?? ""]) };
  }

  /**
   * Runs `first` if nobody has used the key, else gives the first one's answer. The log is the truth: the store's word is only a hint, and a key that
   * raced into the log behind another is noticed there.
   */
  async #keyed(
    decided: Case,
    key: EntryKey,
    first: () => Promise<Decision & { readonly replica: string }>,
  ): Promise<Account> {
    const { keys, reader, events, policies } = this.#parts;
    const { exchange, verdict } = decided;
    const known = reader.state.key(key.id);
    if (known !== null) return this.#again(decided, key, known);
    const claim = await this.#claim(key);
    if (claim.kind === "other") throw this.#reused();
    if (claim.kind === "done") return this.#replay(decided, claim.decision);
    const raced = reader.state.key(key.id);
    if (claim.kind === "running" || raced !== null) return this.#again(decided, key, raced);
    if (reader.state.isKeyWindowFull(policies.policy)) {
      await this.#free(key);
      throw new GatewayError(
        "GW_KEYS_WINDOW_FULL",
        `the key window holds ${policies.policy.window} keys younger than keys.retention`,
        { outcome: "not-executed", retryAfterS: 5 },
      );
    }
    events.tell({ type: "key", result: "fresh" });
    let done: Decision & { readonly replica: string };
    try {
      done = await first();
    } catch (error) {
      if (error instanceof Duplicate) return this.#again(decided, key, reader.state.key(key.id));
      if (error instanceof GatewayError && error.outcome === "not-executed") await this.#free(key);
      throw error;
    }
    // Only a recorded answer is sent: what a retry would get is what this client gets.
    const winner = await this.#recorded(
      keys.decide(key, { position: done.position, digest: done.digest, answer: done.answer }),
      done.position,
    );
    const answer = winner.answer ?? (winner.digest === done.digest ? done.answer : null);
    if (answer === null) throw this.#lost(winner.position);
    exchange.reply.answer(answer, this.#fields(verdict, answer.status, winner.position));
    return account(verdict, winner.position, done.replica);
  }

  /** The hint that the key is running ends; if the store is away, its lease ends it. */
  async #free(key: EntryKey): Promise<void> {
    await this.#parts.keys.release(key, this.#parts.boot).catch(() => undefined);
  }

  async #claim(key: EntryKey): ReturnType<Keys["claim"]> {
    const { keys, boot, events } = this.#parts;
    try {
      return await keys.claim(key, boot);
    } catch (error) {
      events.tell({ type: "key", result: "unavailable" });
      throw new GatewayError(
        "GW_KEYS_UNAVAILABLE",
        "the key store cannot be reached; a request with an Idempotency-Key is not taken without it",
        { outcome: "not-executed", retryAfterS: 1, cause: error },
      );
    }
  }

  async #recorded(decision: Promise<Decided>, position: number): Promise<Decision> {
    try {
      const decided = await decision;
      if (decided.isLost) throw this.#lost(position);
      return decided;
    } catch (error) {
      if (error instanceof GatewayError && error.code === "GW_ANSWER_LOST") throw error;
      throw new GatewayError(
        "GW_KEYS_UNAVAILABLE",
        `entry ${position} was executed; its answer could not be recorded and is not sent`,
        { outcome: "executed", position, retryAfterS: 1, cause: error },
      );
    }
  }

  /** A later use of a key. */
  async #again(decided: Case, key: EntryKey, row: KeyRow | null): Promise<Account> {
    const { reader, onRunning, clock, limits, events } = this.#parts;
    if (row !== null && row.fingerprint !== key.fingerprint) throw this.#reused();
    const until = clock.now() + (onRunning === "wait" ? limits.queueWaitMs + limits.firstByteMs : 0);
    // Ends with an answer, or when the time is over.
    for (;;) {
      const current = reader.state.key(key.id);
      if (current !== null) {
        if (current.fingerprint !== key.fingerprint) throw this.#reused();
        const found = await this.#find(decided.verdict, key, current);
        if (found !== "running") return this.#replay(decided, found);
      } else {
        const claim = await this.#claim(key);
        if (claim.kind === "other") throw this.#reused();
        if (claim.kind === "done") return this.#replay(decided, claim.decision);
        if (claim.kind === "fresh") {
          // Whoever ran it gave up before the log: it is ours now, and a request that is sent again comes through.
          await this.#free(key);
          throw this.#running(null);
        }
      }
      if (clock.now() >= until) {
        events.tell({ type: "key", result: "running" });
        throw this.#running(current?.position ?? null);
      }
      await clock.sleep(20);
    }
  }

  /** The decision about a key whose first occurrence is in the log; made here when nobody made it. */
  async #find(verdict: Verdict, key: EntryKey, row: KeyRow): Promise<Decision | "running"> {
    const { keys, agreement, replicas, once } = this.#parts;
    const { position } = row;
    const decided = await this.#stored(keys.decided(key));
    if (decided !== null && decided.position === position) return decided;
    if (
      row.kind === "unknown" ||
      (row.kind === "claimed" && !(once.isRunning(position) || (await this.#isHinted(key))))
    )
      throw new GatewayError(
        "GW_ONCE_UNKNOWN",
        `it is not known whether the request of position ${position} was executed; it is not repeated`,
        { outcome: "unknown", position },
      );
    if (row.kind === "claimed") return "running";
    if (row.kind === "entry" && agreement.isWaiting(position)) return "running";
    const candidates = await this.#stored(keys.candidates(key, position));
    const [candidate] = preferred(candidates);
    if (candidate !== undefined) {
      const isEnough =
        verdict.rule.respond === "first" || replicas.liveReplicas().every((it) => it.hasApplied(position, []));
      if (!isEnough) return "running";
      return this.#recorded(
        keys.decide(key, { position, digest: candidate.digest, answer: candidate.answer }),
        position,
      );
    }
    const isExecuted = row.kind === "done" || replicas.all.some((it) => it.applied >= position);
    if (!isExecuted) return "running";
    throw this.#lost(position);
  }

  /** A claim that another gateway is executing is known by its hint, which ends with that gateway. */
  async #isHinted(key: EntryKey): Promise<boolean> {
    if (this.#parts.keys.kind === "embedded") return false;
    const claim = await this.#claim(key);
    if (claim.kind === "fresh") await this.#free(key);
    return claim.kind === "running";
  }

  async #stored<T>(work: Promise<T>): Promise<T> {
    try {
      return await work;
    } catch (error) {
      throw new GatewayError(
        "GW_KEYS_UNAVAILABLE",
        "the request is in the log; the key store, which holds its answer, cannot be reached",
        { outcome: "unknown", retryAfterS: 1, cause: error },
      );
    }
  }

  #replay({ exchange, verdict }: Case, decision: Decision): Account {
    if (decision.answer === null) throw this.#lost(decision.position);
    this.#parts.events.tell({ type: "key", result: "replayed" });
    exchange.reply.answer(decision.answer, [
      ...this.#fields(verdict, decision.answer.status, decision.position),
      "Idempotency-Replayed",
      "true",
    ]);
    return account(verdict, decision.position, null);
  }

  #reused(): GatewayError {
    this.#parts.events.tell({ type: "key", result: "reused" });
    return new GatewayError(
      "GW_KEY_REUSED",
      "this Idempotency-Key was used with another payload or by another caller",
      { outcome: "not-executed" },
    );
  }
  #running(position: number | null): GatewayError {
    return new GatewayError("GW_KEY_RUNNING", "a request with this Idempotency-Key is still running", {
      outcome: position === null ? "not-executed" : "unknown",
      retryAfterS: 1,
      ...(position === null ? {} : { position }),
    });
  }
  #lost(position: number): GatewayError {
    return new GatewayError(
      "GW_ANSWER_LOST",
      `the request was executed at position ${position}; its answer is no longer known`,
      { outcome: "executed", position },
    );
  }

  // ---- only-once, unsafe -----------------------------------------------------------------------------------------------------------

  async #onlyOnce(decided: Case): Promise<Account> {
    const sent = idempotencyKey(decided.verdict, decided.context);
    this.#checkKey(sent);
    if (sent.kind !== "key")
      return this.#parts.once.execute(decided, (status) => this.#outcomeFields(decided.verdict, status));
    const { exchange, verdict } = decided;
    const { limits } = this.#parts;
    const body = decided.body ?? (await exchange.body.collect(limits.inlineBytes));
    if (body === null)
      throw new GatewayError(
        "GW_BODY_TOO_LARGE",
        `a keyed only-once request may have at most ${limits.inlineBytes} bytes (limits.inline)`,
        { outcome: "not-executed" },
      );
    const context = contextOf(exchange, verdict, () => body);
    const key = this.#entryKey(exchange, context, sent.value, body);
    return this.#keyed(decided, key, async () => {
      const placed = await this.#place({ kind: "claim", key, timeMs: this.#parts.clock.wallMs(), retryOf: null });
      if (placed.fate.kind === "duplicate") throw new Duplicate(placed.fate.of);
      return this.#parts.once.executeClaimed(decided, body, placed.position);
    });
  }

  async #place(item: Parameters<Appender["place"]>[0]): Promise<FoldedItem> {
    const { appender, clock, limits } = this.#parts;
    return new Promise((resolve, reject) => {
      const ticket = appender.append(item, (placed) =>
        placed instanceof GatewayError ? reject(placed) : resolve(placed),
      );
      void clock.sleep(limits.queueWaitMs).then(() => {
        const outcome: Outcome = ticket.withdraw() ? "not-executed" : "unknown";
        // A claim that may be in the log and was never sent: nothing was executed, and the key stays used.
        reject(
          new GatewayError("GW_LOG_UNAVAILABLE", `the log did not confirm within ${limits.queueWaitMs} ms`, {
            outcome,
            retryAfterS: 1,
          }),
        );
      });
    });
  }

  // ---- answers ---------------------------------------------------------------------------------------------------------------------

  #positionField(position: number): RawHeaders {
    return ["Replication-Position", `${position}@${this.#parts.epoch}`];
  }

  #fields(verdict: Verdict, status: number, position: number): RawHeaders {
    return [...this.#outcomeFields(verdict, status), "Replication-Position", `${position}@${this.#parts.epoch}`];
  }

  #outcomeFields({ rule }: Verdict, status: number): RawHeaders {
    const outcome: Outcome = rule.outcome.notStarted.includes(status)
      ? "not-executed"
      : rule.outcome.unknown.includes(status)
        ? "unknown"
        : "executed";
    return ["Replication-Outcome", outcome];
  }

  #problem(exchange: Exchange, error: unknown, extra: RawHeaders): void {
    if (exchange.isGone()) return;
    exchange.reply.problem(asGatewayError(error), extra);
  }
}

/** A replicated request from its append to its answer: first the log, then a replica, each within its time. */
class Waiting implements Timed {
  deadlineMs: number;
  place = -1;
  readonly #parts: IntakeParts;
  readonly #deadlines: Deadlines;
  readonly #entry: Entry;
  readonly #answerMs: number;
  readonly #resolve: (applied: Applied) => void;
  readonly #reject: (error: Error) => void;
  #ticket: Ticket | null = null;
  #position: number | null = null;
  /** The client has its answer, or was told what is known. */
  #isOver = false;

  constructor(
    parts: IntakeParts,
    deadlines: Deadlines,
    entry: Entry,
    answerMs: number,
    resolve: (applied: Applied) => void,
    reject: (error: Error) => void,
  ) {
    this.#parts = parts;
    this.#deadlines = deadlines;
    this.#entry = entry;
    this.#answerMs = answerMs;
    this.#resolve = resolve;
    this.#reject = reject;
    this.deadlineMs = parts.clock.now() + parts.limits.queueWaitMs;
  }

  begin(): void {
    this.#deadlines.add(this);
    this.#ticket = this.#parts.appender.append(this.#entry, (placed) => this.#placed(placed));
  }

  #placed(placed: FoldedItem | GatewayError): void {
    const { agreement, clock, limits, keys, boot } = this.#parts;
    const { key } = this.#entry;
    if (this.#isOver) {
      // The client was told "unknown"; now it is known. A key that is certainly not in the log is free again.
      if (key !== null && placed instanceof GatewayError && placed.outcome === "not-executed")
        void keys.release(key, boot).catch(() => undefined);
      return;
    }
    if (placed instanceof GatewayError) this.#fail(placed);
    else if (placed.fate.kind === "duplicate") this.#fail(new Duplicate(placed.fate.of));
    else {
      this.#position = placed.position;
      this.deadlineMs = clock.now() + this.#answerMs + limits.queueWaitMs;
      agreement.wait(placed.position, (chosen) => {
        if (chosen instanceof GatewayError) {
          this.#fail(chosen);
          return;
        }
        this.#end();
        this.#resolve({ position: placed.position, chosen });
      });
    }
  }

  expire(): void {
    const { limits, agreement } = this.#parts;
    const position = this.#position;
    if (position !== null) {
      agreement.forget(position);
      this.#fail(
        new GatewayError(
          "GW_BACKEND_TIMEOUT",
          `no replica answered entry ${position} within ${this.#answerMs} ms; it is in the log and is applied as soon as one can`,
          { outcome: "unknown", position },
        ),
      );
      return;
    }
    this.#fail(
      this.#ticket?.withdraw() === true
        ? new GatewayError(
            "GW_LOG_UNAVAILABLE",
            `the log took nothing for ${limits.queueWaitMs} ms; the request was not sent to it`,
            { outcome: "not-executed", retryAfterS: 1 },
          )
        : new GatewayError(
            "GW_LOG_UNAVAILABLE",
            `the log did not confirm within ${limits.queueWaitMs} ms; the entry may be in it and may still be applied`,
            { outcome: "unknown", retryAfterS: 1 },
          ),
    );
  }

  /** Before the append it is cancelled; after it nothing is. */
  clientGone(): void {
    if (this.#isOver || this.#position !== null || this.#ticket?.withdraw() !== true) return;
    this.#fail(
      new GatewayError("GW_BAD_REQUEST", "the client went away before its request was taken", {
        outcome: "not-executed",
      }),
    );
  }

  #fail(error: Error): void {
    this.#end();
    this.#reject(error);
  }

  #end(): void {
    this.#isOver = true;
    this.#deadlines.delete(this);
  }
}

/** The key came second in the log; not an error of anybody's. */
class Duplicate extends Error {
  readonly of: number;
  constructor(of: number) {
    super(`a later occurrence of the key of ${of}`);
    this.of = of;
  }
}

/** The candidate most replicas gave, bytes first. */
const preferred = (
  candidates: readonly { readonly digest: string; readonly answer: Answer | null }[],
): { readonly digest: string; readonly answer: Answer | null }[] =>
  [...candidates].sort(
    (a, b) => votes(candidates, b) - votes(candidates, a) || Number(b.answer !== null) - Number(a.answer !== null),
  );

const votes = (candidates: readonly { readonly digest: string }[], of: { readonly digest: string }): number =>
  candidates.filter((it) => it.digest === of.digest).length;

const account = ({ rule }: Verdict, position: number | null, replica: string | null): Account => ({
  rule: rule.name,
  mode: rule.mode,
  position,
  replica,
});

export function asGatewayError(error: unknown): GatewayError {
  if (error instanceof GatewayError) return error;
  return new GatewayError("GW_INTERNAL", "the gateway failed to serve the request; its log has the reason", {
    outcome: "unknown",
    cause: error,
  });
}

const caseOf = (exchange: Exchange, verdict: Verdict, body: Buffer | null): Case => ({
  exchange,
  verdict,
  context: contextOf(exchange, verdict, () => body),
  body,
});

function contextOf(exchange: Exchange, verdict: Verdict, body: () => Buffer | null): TemplateContext {
  const { head } = exchange;
  let query: URLSearchParams | null = null;
  let read: { readonly value: unknown } | null = null;
  return {
    params: verdict.params,
    query: () => (query ??= new URLSearchParams(head.target.query ?? "")),
    headers: head.headers,
    body: () => (read ??= { value: readBody(body(), head.headers) }).value,
  };
}

/** Parts are length-prefixed, so that no two lists read the same. */
function hash16(parts: readonly string[]): string {
  const hash = createHash("sha256");
  for (const part of parts) hash.update(`${Buffer.byteLength(part)}:`).update(part);
  return hash.digest("hex").slice(0, 32);
}
