// N real clients, each with keep-alive connections of its own, that send requests to a front and write down everything they saw.
// What they retry is what a correct client may: anything with its key, without a key only what was answered `not-executed`.

import { randomBytes } from "node:crypto";
import { setTimeout as passed } from "node:timers/promises";
import { Client } from "undici";
import type { Outcome } from "../../gateway/errors.ts";
import { waitFor } from "./wait.ts";

/** One request of a workload. The clients add `?id=` (who asked), and the key where it is keyed. */
export interface Call {
  readonly method: "PUT" | "POST" | "DELETE" | "GET";
  /** Without a query. */
  readonly path: string;
  /** What the rule makes its order keys of; empty: it conflicts with everything. */
  readonly orderKeys: readonly string[];
  readonly isKeyed: boolean;
  /** True where the rules say that the request may be sent again when its outcome is unknown. */
  readonly isRepeatable: boolean;
  readonly body: Readonly<Record<string, unknown>> | null;
  /** More header fields. */
  readonly headers?: Readonly<Record<string, string>>;
  /** Behind `?id=`, such as `&level=any`. */
  readonly query?: string;
}

/** What one client asks as its n-th request. */
export type Workload = (client: number, n: number) => Call;

/** One request over the wire, and its answer if there was one. */
export interface Attempt {
  readonly front: string;
  readonly sentAtMs: number;
  endedAtMs: number | null;
  /** Null: no answer came. */
  status: number | null;
  outcome: Outcome | null;
  position: number | null;
  epoch: string | null;
  isReplayed: boolean;
  /** Of a problem that the gateway made. */
  code: string | null;
  contentType: string | null;
  body: Buffer | null;
  error: string | null;
}

/** One request as the client means it: all its attempts have one id and one key. */
export interface Sent {
  /** Unique in the whole run; backends journal it as a part of the target. */
  readonly id: string;
  readonly client: number;
  readonly call: Call;
  readonly key: string | null;
  readonly attempts: Attempt[];
}

export interface ClientsOptions {
  /** Where each client sends; asked again for every attempt, so that it may change. */
  readonly front: string | ((client: number) => string);
  readonly count: number;
  readonly workload: Workload;
  /** How long one attempt may take before the client gives up on it and closes the connection. */
  readonly timeoutMs?: number;
  /** Every n-th acknowledged keyed request is sent once more later, to see the same answer. 0: never. */
  readonly repeatEvery?: number;
  /** Pause after an answer that asks for patience (503, 409) or a refused connection. */
  readonly pauseMs?: number;
  /** Pause after an acknowledged request and after a read: leaves copies that come back something to catch up with. */
  readonly thinkMs?: number;
}

/** executed: an answer said so. not-executed: every attempt was answered so. unknown: everything else. */
export type Fate = "executed" | "not-executed" | "unknown";

export function fateOf(sent: Sent): Fate {
  if (sent.attempts.some((attempt) => attempt.outcome === "executed")) return "executed";
  const isNowhere = sent.attempts.every((attempt) => attempt.outcome === "not-executed" || attempt.error === refused);
  return sent.attempts.length > 0 && isNowhere ? "not-executed" : "unknown";
}

/** The connection was refused: not one byte was written. */
export const refused = "ECONNREFUSED";

export class Clients {
  readonly history: Sent[] = [];
  readonly #options: Required<ClientsOptions>;
  readonly #run = randomBytes(3).toString("hex");
  readonly #waiting = new Set<Attempt>();
  #acknowledged = 0;
  #answered = 0;
  #isStopping = false;
  #loops: Promise<void>[] = [];

  constructor(options: ClientsOptions) {
    this.#options = { timeoutMs: 20_000, repeatEvery: 10, pauseMs: 20, thinkMs: 0, ...options };
  }

  /** Requests with an answer that says `executed`, repetitions not counted. */
  get acknowledged(): number {
    return this.#acknowledged;
  }

  /** Answers of any kind so far. */
  get answered(): number {
    return this.#answered;
  }

  /** Unsafe requests that wait for an answer now. */
  get inFlight(): number {
    return this.#waiting.size;
  }

  start(): void {
    for (let client = 0; client < this.#options.count; client += 1) this.#loops.push(this.#loop(client));
  }

  /** Resolves when so many more were acknowledged and at least so many are in flight at this very moment. */
  async busy(options: {
    readonly acknowledged: number;
    readonly inFlight: number;
    readonly withinMs?: number;
  }): Promise<void> {
    const wanted = this.#acknowledged + options.acknowledged;
    await waitFor(() => this.#acknowledged >= wanted && this.inFlight >= options.inFlight, {
      timeoutMs: options.withinMs ?? 30_000,
      what: () =>
        `${wanted} acknowledged and ${options.inFlight} in flight (${this.#acknowledged}, ${this.inFlight}); last answers: ${this.lately()}`,
    });
  }

  /** What came back last, by kind: for messages. */
  lately(n = 200): string {
    const kinds = new Map<string, number>();
    for (const sent of this.history.slice(-n)) {
      for (const { status, code, outcome, error } of sent.attempts) {
        const kind = error ?? `${status} ${code ?? ""} ${outcome ?? "no outcome"}`;
        kinds.set(kind, (kinds.get(kind) ?? 0) + 1);
      }
    }
    return [...kinds].map(([kind, count]) => `${count} × ${kind}`).join(", ");
  }

  /** Nobody begins another request; resolves when every request that was begun has ended (retries included). */
  async stop(): Promise<void> {
    this.#isStopping = true;
    await Promise.all(this.#loops);
  }

  async #loop(client: number): Promise<void> {
    const wire = new Wire(this.#options.timeoutMs);
    const later: Sent[] = [];
    let acknowledged = 0;
    try {
      // Ends when `stop` is called; a request that was begun is brought to its end before.
      for (let n = 0; !this.#isStopping; n += 1) {
        const call = this.#options.workload(client, n);
        const id = `${this.#run}-${client}-${n}`;
        const sent: Sent = { id, client, call, key: call.isKeyed ? `key-${id}` : null, attempts: [] };
        this.history.push(sent);
        await this.#settle(wire, sent);
        const isExecuted = fateOf(sent) === "executed";
        if (this.#options.thinkMs > 0 && (isExecuted || call.method === "GET")) await passed(this.#options.thinkMs);
        if (!isExecuted) continue;
        this.#acknowledged += 1;
        acknowledged += 1;
        const every = this.#options.repeatEvery;
        if (sent.key !== null && every > 0 && acknowledged % every === 0) later.push(sent);
        const due = later.length > 3 ? later.shift() : undefined;
        if (due) await this.#attempt(wire, due);
      }
      for (const due of later) await this.#attempt(wire, due);
    } finally {
      await wire.close();
    }
  }

  /** Sends until the answer is final, or until nothing more may be sent without a key. */
  async #settle(wire: Wire, sent: Sent): Promise<void> {
    const giveUpAt = performance.now() + 60_000;
    // Ends with a final answer, with an unknown outcome that has no key, or after a minute.
    for (let tries = 1; performance.now() < giveUpAt; tries += 1) {
      const attempt = await this.#attempt(wire, sent);
      if (attempt.outcome === "executed") return;
      const isNotDone = attempt.outcome === "not-executed" || attempt.error === refused;
      if (isNotDone && attempt.status !== null && attempt.status < 500 && attempt.code !== "GW_KEY_RUNNING") return;
      // Every fifth client takes "not executed" for an answer: such requests must be found nowhere.
      if (isNotDone && attempt.error !== refused && sent.client % 5 === 0) return;
      if (!isNotDone && sent.key === null) return;
      await passed(Math.min(this.#options.pauseMs * tries, 200));
      if (this.#isStopping && isNotDone && sent.key === null) return;
    }
  }

  async #attempt(wire: Wire, sent: Sent): Promise<Attempt> {
    const { front } = this.#options;
    const attempt: Attempt = {
      front: typeof front === "string" ? front : front(sent.client),
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
    if (sent.call.method !== "GET") this.#waiting.add(attempt);
    try {
      await wire.send(sent, attempt);
      this.#answered += 1;
    } catch (error) {
      attempt.error = codeOf(error);
    } finally {
      attempt.endedAtMs = performance.now();
      this.#waiting.delete(attempt);
    }
    return attempt;
  }
}

/** The connections of one client: one a front, opened again after every error. */
export class Wire {
  readonly #timeoutMs: number;
  readonly #clients = new Map<string, Client>();

  constructor(timeoutMs: number) {
    this.#timeoutMs = timeoutMs;
  }

  async send(sent: Sent, attempt: Attempt): Promise<void> {
    const { call } = sent;
    const headers: Record<string, string> = { ...call.headers };
    if (sent.key !== null) headers["idempotency-key"] = sent.key;
    if (call.body !== null) headers["content-type"] = "application/json";
    try {
      const answer = await this.#client(attempt.front).request({
        method: call.method,
        path: `${call.path}?id=${sent.id}${call.query ?? ""}`,
        headers,
        body: call.body === null ? null : JSON.stringify(call.body),
      });
      const body = Buffer.from(await answer.body.arrayBuffer());
      attempt.status = answer.statusCode;
      fill(attempt, answer.headers, body);
    } catch (error) {
      const client = this.#clients.get(attempt.front);
      this.#clients.delete(attempt.front);
      await client?.destroy();
      throw error;
    }
  }

  async close(): Promise<void> {
    for (const client of this.#clients.values()) await client.destroy();
  }

  #client(front: string): Client {
    const known = this.#clients.get(front);
    if (known) return known;
    const client = new Client(front, {
      headersTimeout: this.#timeoutMs,
      bodyTimeout: this.#timeoutMs,
      connect: { timeout: 2_000 },
    });
    this.#clients.set(front, client);
    return client;
  }
}

function fill(attempt: Attempt, headers: Readonly<Record<string, string | string[] | undefined>>, body: Buffer): void {
  const one = (name: string): string | null => {
    const value = headers[name];
    return Array.isArray(value) ? value.join(", ") : (value ?? null);
  };
  attempt.body = body;
  attempt.contentType = one("content-type");
  attempt.outcome = one("replication-outcome") as Outcome | null;
  attempt.isReplayed = one("idempotency-replayed") === "true";
  const position = one("replication-position")?.split("@");
  if (position) {
    attempt.position = Number(position[0]);
    attempt.epoch = position[1] ?? null;
  }
  if (attempt.contentType?.startsWith("application/problem+json") === true) {
    attempt.code = (JSON.parse(body.toString()) as { code?: string }).code ?? null;
  }
}

/** Of a failure without an answer. */
export function codeOf(error: unknown): string {
  const { code, message } = error as { code?: string; message?: string };
  return code ?? message ?? String(error);
}
