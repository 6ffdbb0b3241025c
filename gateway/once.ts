// Requests for one copy: reads, streamed with the consistency their rule asks for, and unsafe ones, executed by exactly one replica at the tail.

import type { Rule } from "../rules/rule.ts";
import type { Verdict } from "../rules/match.ts";
import { orderKeys } from "../rules/order.ts";
import type { TemplateContext } from "../rules/template.ts";
import { headerValues } from "../rules/template.ts";
import type { Appender } from "./appender.ts";
import type { BackendRequest, StreamSink } from "./backend/backend.ts";
import type { RawHeaders } from "./entry.ts";
import { GatewayError } from "./errors.ts";
import type { Events } from "./events.ts";
import type { Account, Exchange } from "./exchange.ts";
import type { Decision } from "./keys/keys.ts";
import type { Need, Reads } from "./reads.ts";
import type { Replica } from "./replica.ts";
import { digestAnswer } from "../rules/compare.ts";

/** A request with its verdict: what all ways of serving it have in common. */
export interface Case {
  readonly exchange: Exchange;
  readonly verdict: Verdict;
  readonly context: TemplateContext;
  /** Null: not read yet, or larger than the inline limit. */
  readonly body: Buffer | null;
}

export interface OnceParts {
  readonly epoch: string;
  readonly reads: Reads;
  readonly appender: Appender;
  readonly events: Events;
  readonly firstByteMs: number;
  readonly idleMs: number;
  readonly inlineBytes: number;
  readonly answerBytesMax: number;
}

type Streamed =
  | { readonly kind: "answered"; readonly replica: Replica }
  /** Nothing reached the client. */
  | { readonly kind: "failed"; readonly isStarted: boolean; readonly error: unknown; readonly replica: Replica }
  | { readonly kind: "gone"; readonly replica: Replica };

export class Once {
  readonly #parts: OnceParts;
  /** Positions of claims that this process is executing. */
  readonly #claims = new Set<number>();

  constructor(parts: OnceParts) {
    this.#parts = parts;
  }

  isRunning(claim: number): boolean {
    return this.#claims.has(claim);
  }

  /** What keeps a client with one copy: null when the rule does not ask for it. */
  affinity(rule: Rule, headers: RawHeaders, peer: string): string | null {
    if (rule.affinity === null) return null;
    if (rule.affinity.kind === "client") return peer;
    const { name } = rule.affinity;
    if (rule.affinity.kind === "header") return headerValues(headers, name)[0] ?? null;
    for (const line of headerValues(headers, "cookie"))
      for (const pair of line.split(";")) {
        const at = pair.indexOf("=");
        if (at > 0 && pair.slice(0, at).trim() === name) return pair.slice(at + 1).trim();
      }
    return null;
  }

  /** A safe request: no outcome to speak of, and another replica may be asked when one fails before its first byte. */
  async read(decided: Case): Promise<Account> {
    const { exchange, verdict } = decided;
    const { rule } = verdict;
    const need = this.#need(decided);
    const keys = rule.order === null ? [] : orderKeys(verdict, decided.context);
    const affinity = this.affinity(rule, exchange.head.headers, exchange.peer);
    const body = await this.#body(decided);
    const failed = new Set<string>();
    let used: Replica | null = null;
    const extra = (): RawHeaders =>
      rule.consistency === "session" && used !== null
        ? ["Replication-Position", `${used.applied}@${this.#parts.epoch}`]
        : [];
    // Ends with an answer, or when a replica failed in a way that another would not mend.
    for (;;) {
      const replica = await this.#parts.reads.choose(need, keys, affinity, failed);
      used = replica;
      const streamed = await this.#stream(decided, replica, body, extra, need.kind !== "any");
      if (streamed.kind !== "failed") return account(rule, replica);
      failed.add(replica.name);
      if (failed.size >= 3 || (streamed.isStarted && isStream(body))) throw failure(streamed.error, replica.name, null);
    }
  }

  /** Unsafe and without a key: sent to one replica; to another only if it certainly was not sent. */
  async execute(decided: Case, fields: (status: number) => RawHeaders): Promise<Account> {
    const { exchange, verdict } = decided;
    const { rule } = verdict;
    const affinity = this.affinity(rule, exchange.head.headers, exchange.peer);
    const body = await this.#body(decided);
    const failed = new Set<string>();
    // Ends with an answer, or when it was sent and its outcome is unknown.
    for (;;) {
      const replica = await this.#parts.reads.choose({ kind: "linearizable" }, [], affinity, failed);
      const streamed = await this.#stream(decided, replica, body, fields, false);
      if (streamed.kind !== "failed") return account(rule, replica);
      failed.add(replica.name);
      const mayRepeat = !isStream(body) && (!streamed.isStarted || rule.retry === "safe");
      if (mayRepeat && failed.size < 3) continue;
      if (streamed.isStarted) this.#parts.events.tell({ type: "once-unknown", position: null, rule: rule.name });
      throw failure(streamed.error, replica.name, streamed.isStarted ? "unknown" : "not-executed");
    }
  }

  /** Unsafe and keyed: its claim stands in the log at `position`. Whatever becomes of it is settled there, and nobody waits for that. */
  async executeClaimed(
    decided: Case,
    body: Buffer,
    position: number,
  ): Promise<Decision & { readonly replica: string }> {
    const { exchange, verdict } = decided;
    const { rule } = verdict;
    const { reads, appender, events, answerBytesMax, firstByteMs } = this.#parts;
    const failed = new Set<string>();
    this.#claims.add(position);
    let outcome: "done" | "not-started" | "unknown" = "not-started";
    let digest: string | null = null;
    try {
      // Ends with an answer, or when it was sent and its outcome is unknown.
      for (;;) {
        const replica = await reads.choose(
          { kind: "linearizable" },
          [],
          this.affinity(rule, exchange.head.headers, exchange.peer),
          failed,
        );
        const execution = await replica.backend?.execute(this.#request(decided, body), {
          firstByteMs: rule.timeoutMs ?? firstByteMs,
          answerBytesMax,
        });
        if (execution?.kind === "done") {
          outcome = "done";
          digest = digestAnswer(rule, execution.answer).full.toString("hex");
          return { position, digest, answer: execution.answer, replica: replica.name };
        }
        failed.add(replica.name);
        const isStarted = execution !== undefined && execution.kind !== "not-started";
        if ((!isStarted || rule.retry === "safe") && failed.size < 3) continue;
        outcome = !isStarted ? "not-started" : execution.kind === "broken" && execution.isTooLarge ? "done" : "unknown";
        if (isStarted) events.tell({ type: "once-unknown", position, rule: rule.name });
        throw failure(
          execution?.cause,
          replica.name,
          outcome === "not-started" ? "not-executed" : outcome === "done" ? "executed" : "unknown",
          position,
        );
      }
    } finally {
      this.#claims.delete(position);
      appender.append({ kind: "settled", position, outcome, digest }, () => undefined);
    }
  }

  #need({ exchange, verdict }: Case): Need {
    const { consistency } = verdict.rule;
    if (consistency !== "session") return { kind: consistency };
    if (exchange.sessionPosition === null) return { kind: "any" };
    const [, position, epoch] = /^(\d{1,16})@([0-9a-f]{16})$/.exec(exchange.sessionPosition.trim()) ?? [];
    if (position === undefined)
      throw new GatewayError(
        "GW_BAD_HEADER",
        "Replication-Position is not <decimal>@<epoch>, as an answer of this gateway gave it",
      );
    // What a former log's position means here nobody knows: the strongest read covers it.
    if (epoch !== this.#parts.epoch) return { kind: "linearizable" };
    return { kind: "position", position: Number(position) };
  }

  async #body({ exchange, body }: Case): Promise<BackendRequest["body"]> {
    if (body !== null) return body.length === 0 ? null : body;
    if (exchange.body.sizeBytes === 0) return null;
    return (await exchange.body.collect(this.#parts.inlineBytes)) ?? exchange.body.stream();
  }

  #request({ exchange }: Case, body: BackendRequest["body"]): BackendRequest {
    const { sizeBytes } = exchange.body;
    const headers =
      isStream(body) && sizeBytes !== null
        ? [...exchange.headers, "Content-Length", String(sizeBytes)]
        : exchange.headers;
    return {
      method: exchange.head.method,
      target: exchange.target.target,
      headers,
      body: body !== null && !isStream(body) && body.length === 0 ? null : body,
      trailers: exchange.body.trailers(),
    };
  }

  #stream(
    decided: Case,
    replica: Replica,
    body: BackendRequest["body"],
    extra: (status: number) => RawHeaders,
    mustBeSure: boolean,
  ): Promise<Streamed> {
    const { exchange, verdict } = decided;
    const { backend, incarnation } = replica;
    return new Promise((settle) => {
      let isSettled = false;
      const resolve = (streamed: Streamed): void => {
        if (isSettled) return;
        isSettled = true;
        replica.reading--;
        settle(streamed);
      };
      replica.reading++;
      if (exchange.isGone()) {
        resolve({ kind: "gone", replica });
        return;
      }
      if (backend === null || replica.state !== "live") {
        resolve({ kind: "failed", isStarted: false, error: new Error("the replica left"), replica });
        return;
      }
      let client: StreamSink | null = null;
      let resume: (() => void) | null = null;
      const sink: StreamSink = {
        head(status, headers) {
          // The replica may have been fenced or replaced while it answered: then its answer is nobody's.
          if (replica.state !== "live" || replica.incarnation !== incarnation) return false;
          if (mustBeSure && !replica.isSure()) return false;
          client = exchange.reply.stream(extra);
          if (resume !== null) client.onDrain(resume);
          return client.head(status, headers);
        },
        data: (chunk) => client?.data(chunk) ?? true,
        end(trailers) {
          client?.end(trailers);
          resolve({ kind: "answered", replica });
        },
        fail(error, isStarted) {
          if (client !== null) {
            client.fail(error, isStarted);
            resolve({ kind: "answered", replica });
          } else resolve(exchange.isGone() ? { kind: "gone", replica } : { kind: "failed", isStarted, error, replica });
        },
        onDrain(give) {
          resume = give;
          client?.onDrain(give);
        },
      };
      const { firstByteMs, idleMs } = this.#parts;
      const handle = backend.stream(this.#request(decided, body), sink, {
        firstByteMs: verdict.rule.timeoutMs ?? firstByteMs,
        idleMs,
      });
      exchange.onGone(() => handle.abort(new Error("the client went away")));
    });
  }
}

const isStream = (body: BackendRequest["body"]): body is AsyncIterable<Buffer> =>
  body !== null && !Buffer.isBuffer(body);

const account = (rule: Rule, replica: Replica): Account => ({
  rule: rule.name,
  mode: rule.mode,
  position: null,
  replica: replica.name,
});

function failure(
  error: unknown,
  replica: string,
  outcome: "executed" | "not-executed" | "unknown" | null,
  position?: number,
): GatewayError {
  const isTimeout = error instanceof GatewayError && error.code === "GW_BACKEND_TIMEOUT";
  const code = outcome === "unknown" ? "GW_ONCE_UNKNOWN" : isTimeout ? "GW_BACKEND_TIMEOUT" : "GW_BACKEND_FAILED";
  const known =
    outcome === "unknown"
      ? "it is not known whether it executed the request"
      : outcome === "executed"
        ? "it executed the request, its answer cannot be used"
        : "the request can be sent again";
  return new GatewayError(
    code,
    `the replica ${replica} gave no answer (${error instanceof Error ? error.message : String(error)}); ${known}`,
    {
      ...(outcome === null ? {} : { outcome }),
      ...(position === undefined ? {} : { position }),
      cause: error,
    },
  );
}
