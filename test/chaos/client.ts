// Real clients: each does what the plan says, one thing after the other, over keep-alive connections of its own, and writes down what it saw and when.
// They retry what a correct client may: anything with its key, without one only what was answered `not-executed`; elsewhere, if there is one.

import { setTimeout as passed } from "node:timers/promises";
import { codeOf, fateOf, refused, Wire } from "../helpers/clients.ts";
import type { Attempt, Call, Sent } from "../helpers/clients.ts";
import { kindOf } from "./operation.ts";
import type { Result } from "./operation.ts";
import { canary } from "./service.ts";
import type { Planned } from "./workload.ts";

/** One operation as its client lived it. */
export interface Lived {
  readonly planned: Planned;
  readonly sent: Sent;
  readonly expected: string | null;
  /** Of session reads: the highest position that the client had seen. */
  readonly seen: number;
  readonly invokedAt: number;
  /** When the client knew what had become of it; Infinity: never. */
  respondedAt: number;
  result: Result | null;
}

export interface ClientOptions {
  readonly plan: readonly Planned[];
  readonly fronts: readonly string[];
  /** performance.now() of the beginning. */
  readonly startedAt: number;
  readonly isOver: () => boolean;
  readonly onLived: (lived: Lived) => void;
}

const attemptMs = 6_000;
const giveUpMs = 45_000;
const repeatAfter = 5;

export class Client {
  readonly #options: ClientOptions;
  readonly #wire = new Wire(attemptMs);
  /** What this client saw of each register last: what its next `cas` expects. */
  readonly #last = new Map<string, string | null>();
  #seen = { position: 0, text: "" };
  #front: number;

  constructor(options: ClientOptions) {
    this.#options = options;
    this.#front = options.plan[0]?.client ?? 0;
  }

  /** Ends with the plan, or when it is over; what was begun is brought to its end. */
  async run(): Promise<void> {
    const { plan, startedAt, isOver } = this.#options;
    const again: Lived[] = [];
    try {
      for (const planned of plan) {
        const earlyMs = startedAt + planned.dueMs - performance.now();
        if (earlyMs > 0) await passed(earlyMs);
        if (isOver()) break;
        const lived = await this.#live(planned);
        if (planned.isRepeated && fateOf(lived.sent) === "executed") again.push(lived);
        if (again.length > repeatAfter) await this.#attempt((again.shift() as Lived).sent);
      }
    } finally {
      await this.#wire.close();
    }
  }

  async #live(planned: Planned): Promise<Lived> {
    const expected = planned.verb === "cas" ? (this.#last.get(planned.key) ?? null) : null;
    const lived: Lived = {
      planned,
      expected,
      seen: this.#seen.position,
      sent: {
        id: planned.id,
        client: planned.client,
        call: this.#callOf(planned, expected),
        key: planned.isKeyed ? `key-${planned.id}` : null,
        attempts: [],
      },
      invokedAt: performance.now(),
      respondedAt: Infinity,
      result: null,
    };
    this.#options.onLived(lived);
    const answer = await this.#settle(lived.sent);
    if (answer !== null) {
      lived.respondedAt = answer.endedAtMs as number;
      lived.result = resultOf(planned, answer);
      this.#remember(lived, answer);
    }
    return lived;
  }

  /** The answer that told what became of it; null: none did. Ends with it, with an unknown outcome that has no key, or when it is given up. */
  async #settle(sent: Sent): Promise<Attempt | null> {
    const isRead = sent.call.method === "GET";
    const until = performance.now() + giveUpMs;
    for (let tries = 1; performance.now() < until; tries += 1) {
      const attempt = await this.#attempt(sent);
      if (attempt.outcome === "executed") return attempt;
      if (isRead && attempt.status !== null && attempt.code === null) return attempt;
      const isNotDone = attempt.outcome === "not-executed" || attempt.error === refused;
      if (isNotDone && attempt.status !== null && attempt.status < 500 && attempt.code !== "GW_KEY_RUNNING")
        return null;
      // Every fifth client takes "not executed" for an answer: such requests must be found nowhere.
      if (isNotDone && attempt.error !== refused && sent.client % 5 === 0) return null;
      if (!isNotDone && sent.key === null && !isRead) return null;
      if (this.#options.isOver() && isRead) return null;
      this.#front += 1;
      await passed(Math.min(20 * tries, 200));
    }
    return null;
  }

  async #attempt(sent: Sent): Promise<Attempt> {
    const { fronts } = this.#options;
    const attempt: Attempt = {
      front: fronts[this.#front % fronts.length] as string,
      sentAtMs: performance.now(),
      endedAtMs: null,
      status: null,
      outcome: null,
      position: null,
      epoch: null,
      isReplayed: false,
      code: null,
      contentType: null,
      body: null,
      error: null,
    };
    sent.attempts.push(attempt);
    try {
      await this.#wire.send(sent, attempt);
    } catch (error) {
      attempt.error = codeOf(error);
    }
    attempt.endedAtMs = performance.now();
    return attempt;
  }

  #callOf({ id, key, verb, level, value, isKeyed }: Planned, expected: string | null): Call {
    const isTotal = key.startsWith("t");
    const action = verb === "cas" || verb === "append" || verb === "incr" ? `/${verb}` : "";
    const body = verb === "cas" ? { expected, value } : verb === "incr" ? { by: Number(value) } : { value };
    const hasBody = verb !== "get" && verb !== "delete";
    return {
      method: verb === "get" ? "GET" : verb === "put" ? "PUT" : verb === "delete" ? "DELETE" : "POST",
      path: `/${isTotal ? "total" : "kv"}/${key}${action}`,
      orderKeys: isTotal ? [] : [`kv:${key}`],
      isKeyed,
      isRepeatable: verb === "put" || verb === "delete",
      body: hasBody ? body : null,
      query: level === "linearizable" ? "" : `&level=${level}`,
      headers: {
        authorization: `Bearer ${canary}-${id.split("-", 1)[0]}`,
        ...(hasBody ? { "content-type": "application/json" } : {}),
        ...(level === "session" && this.#seen.text !== "" ? { "replication-position": this.#seen.text } : {}),
      },
    };
  }

  #remember({ planned, expected, result }: Lived, { position, epoch }: Attempt): void {
    const { key, value } = planned;
    if (position !== null && position > this.#seen.position) this.#seen = { position, text: `${position}@${epoch}` };
    if (kindOf(key) !== "register" || result === null) return;
    if (result.verb === "get") this.#last.set(key, result.value as string | null);
    else if (result.verb === "put") this.#last.set(key, value);
    else if (result.verb === "delete") this.#last.set(key, null);
    else if (result.verb === "cas")
      this.#last.set(key, result.isSwapped ? value : result.actual === expected ? null : result.actual);
  }
}

/** Null: the answer was not the service's own, or tells nothing. */
export function resultOf({ verb, key }: Planned, { status, code, body }: Attempt): Result | null {
  if (code !== null || body === null || (status !== 200 && status !== 404 && status !== 409)) return null;
  const answer = JSON.parse(body.toString()) as {
    readonly value?: never;
    readonly length?: number;
    readonly total?: number;
  };
  switch (verb) {
    case "get":
      return { verb, value: answer.value ?? absent[kindOf(key)] };
    case "put":
    case "delete":
      return { verb };
    case "cas":
      return { verb, isSwapped: status === 200, actual: status === 200 ? null : (answer.value ?? null) };
    case "append":
      return { verb, length: Number(answer.length) };
    case "incr":
      return { verb, total: Number(answer.total) };
    default:
      return verb satisfies never;
  }
}

const absent = { register: null, list: [], counter: 0 } as const;
