// Answers of keyed requests and running hints in Redis, shared by all gateways of a service.
//
// Operations of one turn of the event loop travel as one script call (group commit without a delay); all rules between gateways are in
// redis-scripts.ts. Losing Redis's content is noticed by the sentinel, never by chance: every operation checks it.

import { randomBytes } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { RedisLink } from "../drivers/redis.ts";
import type { TlsContext } from "../drivers/dial.ts";
import type { EntryKey } from "../entry.ts";
import { GatewayError } from "../errors.ts";
import { decodeAnswer, encodeAnswer, isHash16 } from "../answer.ts";
import type { Candidate, Decided, Decision, KeyClaim, Keys } from "./keys.ts";
import { beginScript, finishScript, operationsScript } from "./redis-scripts.ts";

export interface RedisKeysOptions {
  /** `redis://[user:password@]host[:port][/db]`, or `rediss://`. */
  readonly url: string;
  /** Of rediss://, asked for each connection; absent: as the system does. */
  readonly tls?: TlsContext;
  readonly service: string;
  /** A hint lives this long after its last renewal. */
  readonly leaseMs: number;
  readonly retentionMs: number;
  /** Encoded answers above this are not kept. */
  readonly answerBytesMax: number;
  /** Position of the log's tail, looked up after the call: becomes the floor after a loss. */
  readonly tail: () => Promise<number>;
  /** No call takes longer; 1 s by default. */
  readonly timeoutMs?: number;
}

const breakerMs = 250;
/** One gateway looks up the tail; when it dies meanwhile, another may begin after this. */
const pendingMs = 2000;
const batchOperationsMax = 64;
const batchBytesMax = 1024 * 1024;
/** Hints that are renewed, and claims of unknown fate that are remembered. Beyond: the oldest ends with its lease. */
const heldMax = 65_536;
const orphansMax = 4096;

type Argument = string | Buffer;
type Reply = readonly unknown[];

interface Operation {
  readonly args: readonly Argument[];
  readonly bytes: number;
  readonly resolve: (reply: Reply) => void;
  readonly reject: (error: unknown) => void;
}

interface Held {
  readonly key: EntryKey;
  readonly nonce: string;
  readonly holder: string;
  readonly sinceMs: number;
}

interface Server {
  readonly generation: number;
  readonly runId: string;
  readonly hasAof: boolean;
}

/**
 * Rejects with GW_KEYS_CONFIGURATION when the server can be reached and must not be used. A server that is away is no reason not to
 * start: `warnings` says so, keyed requests get 503 until it is back.
 */
export async function openRedisKeys(options: RedisKeysOptions): Promise<RedisKeys> {
  const keys = new RedisKeys(options);
  try {
    await keys.open();
  } catch (error) {
    await keys.close();
    throw error;
  }
  return keys;
}

export class RedisKeys implements Keys {
  readonly kind = "redis";
  readonly #options: RedisKeysOptions;
  readonly #link: RedisLink;
  readonly #timeoutMs: number;
  readonly #sentinel: string;
  readonly #nonceBase = randomBytes(8).toString("hex");
  #nonces = 0;
  #queue: Operation[] = [];
  readonly #held = new Map<string, Held>();
  /** Claims without a reply: key id → nonce. The hint may be there; the next claim of the same key takes it over. */
  readonly #orphans = new Map<string, string>();
  #server: Server | null = null;
  #asking: Promise<Server> | null = null;
  #misfit: { readonly error: GatewayError; readonly untilMs: number } | null = null;
  #arming: Promise<void> | null = null;
  #renewal: NodeJS.Timeout | null = null;
  #isRenewing = false;
  #isClosed = false;
  #warnings: readonly string[] = [];

  constructor(options: RedisKeysOptions) {
    this.#options = options;
    this.#timeoutMs = options.timeoutMs ?? 1000;
    this.#sentinel = `gw:{${options.service}}:sentinel`;
    this.#link = new RedisLink({
      url: options.url,
      ...(options.tls === undefined ? {} : { tls: options.tls }),
      timeoutMs: this.#timeoutMs,
      breakerMs,
      random: Math.random,
    });
  }

  /** What a person should know, as found at open. */
  get warnings(): readonly string[] {
    return this.#warnings;
  }

  async open(): Promise<void> {
    await this.#link.connect();
    if (this.#link.isConnected()) {
      try {
        const server = await this.#known();
        if (!server.hasAof) {
          this.#warnings = [
            `Redis at ${this.#link.address} keeps no append-only file: its restart loses the answers of keyed requests that were executed ` +
              "(never exactly-once). Mend: `appendonly yes` in redis.conf, or `redis-cli CONFIG SET appendonly yes`.",
          ];
        }
      } catch (error) {
        if (error instanceof GatewayError && error.cause instanceof GatewayError) throw error.cause;
        this.#warnings = [this.#awayWarning()];
      }
    } else {
      this.#warnings = [this.#awayWarning()];
    }
    this.#renewal = setInterval(() => void this.#renew(), Math.max(1, Math.floor(this.#options.leaseMs / 3)));
    this.#renewal.unref();
  }

  async claim(key: EntryKey, holder: string): Promise<KeyClaim> {
    // Taken away while it is used: of two claims at once only one may find "its own" hint.
    const orphan = this.#orphans.get(key.id);
    this.#orphans.delete(key.id);
    const nonce = orphan ?? `${this.#nonceBase}${(this.#nonces += 1).toString(36)}`;
    let reply: Reply;
    try {
      reply = await this.#operate("claim", key.id, key.fingerprint, nonce, holder, String(this.#options.leaseMs));
    } catch (error) {
      this.#orphan(key.id, nonce);
      throw error;
    }
    switch (text(reply[0])) {
      case "fresh":
        this.#held.set(key.id, { key, nonce, holder, sinceMs: performance.now() });
        dropOldest(this.#held, heldMax);
        return { kind: "fresh" };
      case "running":
        return { kind: "running" };
      case "other":
        return { kind: "other" };
      case "done":
        return { kind: "done", decision: parseDecision(reply) };
      default:
        throw this.#nonsense();
    }
  }

  async release(key: EntryKey, holder: string): Promise<void> {
    const held = this.#held.get(key.id);
    const isOurs = held !== undefined && held.holder === holder;
    if (isOurs) this.#held.delete(key.id);
    await this.#operate("release", key.id, isOurs ? held.nonce : "", holder);
  }

  async offer(key: EntryKey, position: number, candidate: Candidate): Promise<void> {
    const { replica, digest, answer } = candidate;
    await this.#operate("offer", key.id, String(position), replica, digest, this.#encoded(answer), this.#retention);
  }

  async candidates(key: EntryKey, position: number): Promise<readonly Candidate[]> {
    const reply = await this.#operate("candidates", key.id, String(position));
    const answers = new Map<string, Candidate["answer"]>();
    const digests: [replica: string, digest: string][] = [];
    for (let i = 0; i + 1 < reply.length; i += 2) {
      const field = text(reply[i]);
      const value = reply[i + 1];
      if (field.startsWith("b:") && Buffer.isBuffer(value)) answers.set(field.slice(2), decodeAnswer(value));
      if (field.startsWith("r:") && isHash16(text(value))) digests.push([field.slice(2), text(value)]);
    }
    return digests.map(([replica, digest]) => ({ replica, digest, answer: answers.get(digest) ?? null }));
  }

  async decide(key: EntryKey, decision: Decision): Promise<Decided> {
    const { position, digest, answer } = decision;
    this.#held.delete(key.id);
    const bytes = this.#encoded(answer);
    const reply = await this.#operate(
      "decide",
      key.id,
      key.fingerprint,
      String(position),
      digest,
      bytes,
      this.#retention,
    );
    switch (text(reply[0])) {
      case "yours":
        return { position, digest, answer: bytes === "" ? null : answer, isLost: false };
      case "winner":
        return { position, digest: text(reply[1]), answer: parseAnswer(reply[2]), isLost: false };
      case "lost":
        return { position, digest, answer: null, isLost: true };
      default:
        throw this.#nonsense();
    }
  }

  async decided(key: EntryKey): Promise<Decision | null> {
    const reply = await this.#operate("decided", key.id);
    return text(reply[0]) === "done" ? parseDecision(reply) : null;
  }

  isReachable(): boolean {
    return this.#link.isConnected() && this.#misfit === null && !this.#isClosed;
  }

  async close(): Promise<void> {
    this.#isClosed = true;
    if (this.#renewal !== null) clearInterval(this.#renewal);
    await this.#link.close();
  }

  get #retention(): string {
    return String(this.#options.retentionMs);
  }

  #encoded(answer: Candidate["answer"]): Buffer | "" {
    if (answer === null || answer.body.length > this.#options.answerBytesMax) return "";
    const bytes = encodeAnswer(answer);
    return bytes.length > this.#options.answerBytesMax ? "" : bytes;
  }

  /** Queues one operation for the script call that leaves at the end of this turn of the loop. */
  #operate(...args: readonly Argument[]): Promise<Reply> {
    return new Promise((resolve, reject) => {
      if (this.#isClosed) {
        reject(this.#link.unavailable("it was closed"));
        return;
      }
      let bytes = 0;
      for (const arg of args) bytes += arg.length;
      if (this.#queue.push({ args, bytes, resolve, reject }) === 1) setImmediate(() => this.#flush());
    });
  }

  #flush(): void {
    const queue = this.#queue;
    this.#queue = [];
    let batch: Operation[] = [];
    let bytes = 0;
    // Ends with the queue; a batch is bounded so that no single call holds Redis for long.
    for (const operation of queue) {
      if (batch.length > 0 && (batch.length >= batchOperationsMax || bytes + operation.bytes > batchBytesMax)) {
        void this.#send(batch);
        batch = [];
        bytes = 0;
      }
      batch.push(operation);
      bytes += operation.bytes;
    }
    void this.#send(batch);
  }

  async #send(batch: readonly Operation[]): Promise<void> {
    try {
      let replies = await this.#attempt(batch);
      if (replies === null) {
        await this.#armed();
        replies = await this.#attempt(batch);
      }
      if (replies === null) throw this.#link.unavailable("its content was lost while it was being used");
      for (const [i, operation] of batch.entries()) {
        const reply = replies[i];
        if (!Array.isArray(reply)) operation.reject(this.#nonsense());
        else if (reply.length === 2 && text(reply[0]) === "failed") operation.reject(this.#failed(text(reply[1])));
        else operation.resolve(reply);
      }
    } catch (error) {
      for (const operation of batch) operation.reject(error);
    }
  }

  /** Null: the sentinel is missing, of another run, or not finished; nothing was done. */
  async #attempt(batch: readonly Operation[]): Promise<readonly unknown[] | null> {
    const { runId } = this.#serverNow() ?? (await this.#known());
    const args: Argument[] = [runId];
    for (const operation of batch) args.push(...operation.args);
    const reply = await this.#link.run(operationsScript, [this.#sentinel], args);
    if (Array.isArray(reply)) return reply;
    if (text(reply) === "stale") return null;
    throw this.#nonsense();
  }

  #serverNow(): Server | null {
    return this.#server?.generation === this.#link.generation ? this.#server : null;
  }

  /** What INFO says of the server of this connection, asked once a connection. */
  async #known(): Promise<Server> {
    if (this.#misfit !== null && performance.now() < this.#misfit.untilMs) throw this.#misfit.error;
    this.#asking ??= this.#ask().finally(() => {
      this.#asking = null;
    });
    return await this.#asking;
  }

  async #ask(): Promise<Server> {
    const generation = this.#link.generation;
    const info = await this.#link.info();
    const fault = configurationFault(info, this.#link.address);
    if (fault !== null) {
      const error = this.#link.unavailable("it is not configured as the gateway needs it", fault);
      this.#misfit = { error, untilMs: performance.now() + breakerMs };
      throw error;
    }
    this.#misfit = null;
    // Servers that hide their run id: a restart is then noticed only by what it lost of the sentinel itself.
    const server = { generation, runId: info.get("run_id") ?? "hidden", hasAof: info.get("aof_enabled") === "1" };
    if (generation === this.#link.generation) this.#server = server;
    return server;
  }

  /** Resolves when a sentinel of this run of the server is set, by us or by another gateway. */
  async #armed(): Promise<void> {
    this.#arming ??= this.#arm().finally(() => {
      this.#arming = null;
    });
    await this.#arming;
  }

  async #arm(): Promise<void> {
    const deadlineMs = performance.now() + this.#timeoutMs;
    // Ends when the sentinel is set, or at the deadline.
    while (performance.now() < deadlineMs) {
      const { runId } = await this.#known();
      const id = randomBytes(8).toString("hex");
      const begun = text(await this.#link.run(beginScript, [this.#sentinel], [runId, id, String(pendingMs)]));
      if (begun === "set") return;
      if (begun === "elsewhere") {
        this.#link.reconnect();
        throw this.#link.unavailable("the connection leads to another server than before");
      }
      if (begun === "begun") {
        const floor = await this.#tailBefore(deadlineMs, id);
        if (text(await this.#link.run(finishScript, [this.#sentinel], [id, String(floor)])) === "set") return;
      }
      await sleep(20);
    }
    throw this.#link.unavailable("it lost its content, and no gateway could set the new floor yet");
  }

  async #tailBefore(deadlineMs: number, id: string): Promise<number> {
    const timer = new AbortController();
    try {
      const late = sleep(deadlineMs - performance.now(), null, { signal: timer.signal }).catch(() => null);
      const floor = await Promise.race([this.#options.tail(), late]);
      if (floor === null) throw new Error("the log's tail was not known in time");
      return floor;
    } catch (cause) {
      await this.#link.run(finishScript, [this.#sentinel], [id, ""]).catch(() => undefined);
      throw this.#link.unavailable(
        "it lost its content, and the log's tail, above which it may be used again, is not known",
        cause,
      );
    } finally {
      timer.abort();
    }
  }

  /** Renews every hint that this process holds, and frees those whose claim had no reply. */
  async #renew(): Promise<void> {
    if (this.#isRenewing || this.#isClosed || !this.#link.isConnected()) return;
    this.#isRenewing = true;
    try {
      const work: Promise<unknown>[] = [];
      const lease = String(this.#options.leaseMs);
      const oldestMs = performance.now() - this.#options.retentionMs;
      for (const [id, held] of this.#held) {
        if (held.sinceMs < oldestMs) {
          this.#held.delete(id);
          continue;
        }
        const renewed = this.#operate("renew", id, held.key.fingerprint, held.nonce, held.holder, lease);
        work.push(
          renewed.then((reply) => {
            if (text(reply[0]) === "over" && this.#held.get(id) === held) this.#held.delete(id);
          }),
        );
      }
      const orphans = [...this.#orphans];
      this.#orphans.clear();
      for (const [id, nonce] of orphans) {
        work.push(this.#operate("release", id, nonce, "").catch(() => this.#orphan(id, nonce)));
      }
      // A renewal that failed is tried again a third of a lease later.
      await Promise.allSettled(work);
    } finally {
      this.#isRenewing = false;
    }
  }

  #orphan(id: string, nonce: string): void {
    if (!this.#orphans.has(id)) this.#orphans.set(id, nonce);
    dropOldest(this.#orphans, orphansMax);
  }

  #failed(why: string): GatewayError {
    if (why.startsWith("READONLY")) this.#link.reconnect();
    return this.#link.unavailable(why.slice(0, 200));
  }

  #nonsense(): GatewayError {
    return this.#link.unavailable("its reply is not one of this gateway's scripts");
  }

  #awayWarning(): string {
    return `Redis at ${this.#link.address} cannot be reached yet (${this.#link.lastFault}): keyed requests get 503 until it can.`;
  }
}

function configurationFault(info: ReadonlyMap<string, string>, address: string): GatewayError | null {
  const faults: string[] = [];
  const policy = info.get("maxmemory_policy");
  if (policy !== undefined && policy !== "noeviction") {
    faults.push(
      `its maxmemory-policy is ${policy}, so it forgets answers in silence. Mend: \`maxmemory-policy noeviction\` in redis.conf, ` +
        "or `redis-cli CONFIG SET maxmemory-policy noeviction`",
    );
  }
  if (info.get("role") === "slave") faults.push("it is a read-only replica. Mend: name the primary in keys.redis.url");
  const version = info.get("redis_version");
  const [major = 0, minor = 0] = (version ?? "").split(".").map(Number);
  if (version !== undefined && (major < 6 || (major === 6 && minor < 2))) {
    faults.push(`it is version ${version}; 6.2 or newer is needed`);
  }
  if (faults.length === 0) return null;
  return new GatewayError("GW_KEYS_CONFIGURATION", `Redis at ${address} must not be used: ${faults.join("; ")}.`);
}

const text = (value: unknown): string =>
  Buffer.isBuffer(value) ? value.toString() : typeof value === "string" ? value : "";

const parseAnswer = (value: unknown): Decision["answer"] =>
  Buffer.isBuffer(value) && value.length > 0 ? decodeAnswer(value) : null;

/** Of a reply "done", position, digest, bytes. */
const parseDecision = (reply: Reply): Decision => ({
  position: Number(text(reply[1])),
  digest: text(reply[2]),
  answer: parseAnswer(reply[3]),
});

function dropOldest(map: Map<string, unknown>, max: number): void {
  if (map.size <= max) return;
  const oldest = map.keys().next();
  if (oldest.done !== true) map.delete(oldest.value);
}
