// One connection to Redis behind a breaker: bounded time for every call, nothing queued while away, and no secret in any error.
//
// - Nothing is sent twice here: what was in flight when the connection broke rejects (it may have run).
// - A script call resolves with Redis's reply or rejects with GW_KEYS_UNAVAILABLE; after a call without a reply all calls reject at once
//   for `breakerMs`, then one goes through as a probe while the others go on rejecting.
// - `generation` grows with every connection: what was learned of the server (its run id) holds for one generation only.

import { createHash } from "node:crypto";
import { isIP } from "node:net";
import { Redis } from "ioredis";
import { GatewayError } from "../errors.ts";
import { tlsVersionMin } from "./certificates.ts";
import type { ConnectionOptions } from "node:tls";
import type { TlsContext } from "./dial.ts";

export interface RedisLinkOptions {
  /** `redis://[user:password@]host[:port][/db]`, or `rediss://` for TLS. */
  readonly url: string;
  /** Of rediss://, asked for each connection; absent: as the system does. */
  readonly tls?: TlsContext;
  /** No call takes longer. */
  readonly timeoutMs: number;
  readonly breakerMs: number;
  readonly random: () => number;
}

export interface RedisScript {
  readonly lua: string;
  readonly sha1: string;
}

export const redisScript = (lua: string): RedisScript => ({ lua, sha1: createHash("sha1").update(lua).digest("hex") });

/** Backoff between connection attempts: doubles up to this, half of it is chance. */
const backoffMsMax = 1000;

export class RedisLink {
  /** `host:port`, for messages. */
  readonly address: string;
  readonly #redis: Redis;
  readonly #breakerMs: number;
  readonly #timeoutMs: number;
  readonly #secrets: readonly string[];
  #generation = 0;
  #openUntilMs = 0;
  #isProbing = false;
  #isTripped = false;
  #lastFault = "it was never connected";

  constructor(options: RedisLinkOptions) {
    const { connection, isTls, address, secrets } = parseRedisUrl(options.url);
    this.address = address;
    this.#secrets = secrets;
    this.#breakerMs = options.breakerMs;
    this.#timeoutMs = options.timeoutMs;
    this.#redis = new Redis({
      ...connection,
      ...(isTls ? { tls: tlsOf(connection.host, options.tls) } : {}),
      lazyConnect: true,
      enableOfflineQueue: false,
      // 0: whatever had no reply when the connection broke rejects at once and is never sent again.
      maxRetriesPerRequest: 0,
      autoResendUnfulfilledCommands: false,
      commandTimeout: options.timeoutMs,
      connectTimeout: Math.max(options.timeoutMs, 1000),
      // A peer that vanished without a reset: the connection is given up and made anew.
      socketTimeout: options.timeoutMs * 5,
      keepAlive: 5000,
      // After a fail-over the old primary is a replica: the address may lead to the new one.
      reconnectOnError: (error) => error.message.startsWith("READONLY"),
      retryStrategy: (attempt) => {
        const ceiling = Math.min(backoffMsMax, 50 * 2 ** Math.min(attempt - 1, 10));
        return Math.ceil(ceiling * (0.5 + options.random() / 2));
      },
    });
    this.#redis.on("error", (error: unknown) => {
      this.#lastFault = this.#redact(error);
    });
    this.#redis.on("ready", () => {
      this.#generation += 1;
      this.#openUntilMs = 0;
    });
    this.#redis.on("close", () => {
      if (this.#lastFault === "") this.#lastFault = "the connection was closed";
    });
  }

  /** Resolves when the first attempt to connect ended, whichever way: later ones go on by themselves. */
  async connect(): Promise<void> {
    await this.#redis.connect().catch((error: unknown) => {
      // ioredis says only "Connection is closed." here; the error event told why.
      if (this.#lastFault === "") this.#lastFault = this.#redact(error);
    });
  }

  get generation(): number {
    return this.#generation;
  }

  isConnected(): boolean {
    return this.#redis.status === "ready" && !this.#isTripped;
  }

  /** Why the last call or connection failed; never holds a secret. */
  get lastFault(): string {
    return this.#lastFault;
  }

  /** Runs a script; bulk strings come back as Buffers. */
  async run(script: RedisScript, keys: readonly string[], args: readonly (string | Buffer)[]): Promise<unknown> {
    return await this.#guarded(async () => {
      const rest = [keys.length, ...keys, ...args];
      try {
        return await this.#redis.callBuffer("EVALSHA", [script.sha1, ...rest]);
      } catch (error) {
        // NOSCRIPT is certain: nothing ran. The server was restarted, or its scripts were flushed.
        if (!(error instanceof Error) || !error.message.startsWith("NOSCRIPT")) throw error;
        return await this.#redis.callBuffer("EVAL", [script.lua, ...rest]);
      }
    });
  }

  /** The fields of INFO. */
  async info(): Promise<ReadonlyMap<string, string>> {
    const text = await this.#guarded(async () => await this.#redis.info());
    const fields = new Map<string, string>();
    for (const line of text.split("\r\n")) {
      const colon = line.indexOf(":");
      if (colon > 0) fields.set(line.slice(0, colon), line.slice(colon + 1));
    }
    return fields;
  }

  /** Gives the connection up and makes a new one: the server said that it is not the one to talk to. */
  reconnect(): void {
    if (this.#redis.status === "ready") this.#redis.disconnect(true);
  }

  async close(): Promise<void> {
    const isOpen = ["connecting", "connect", "ready"].includes(this.#redis.status);
    const ended = new Promise<void>((resolve) => void this.#redis.once("end", () => resolve()));
    this.#redis.disconnect();
    // Between two attempts to connect there is nothing to wait for, and ioredis says nothing.
    if (isOpen) await ended;
  }

  unavailable(message: string, cause?: unknown): GatewayError {
    return new GatewayError("GW_KEYS_UNAVAILABLE", `The key store at ${this.address} cannot be used: ${message}.`, {
      retryAfterS: 1,
      ...(cause === undefined ? {} : { cause }),
    });
  }

  async #guarded<T>(call: () => Promise<T>): Promise<T> {
    if (this.#redis.status !== "ready") throw this.unavailable(`not connected (${this.#lastFault})`);
    if (this.#isTripped && (this.#isProbing || performance.now() < this.#openUntilMs)) {
      throw this.unavailable(`it failed a moment ago (${this.#lastFault})`);
    }
    const isProbe = this.#isTripped;
    if (isProbe) this.#isProbing = true;
    try {
      const reply = await call();
      this.#isTripped = false;
      this.#lastFault = "";
      return reply;
    } catch (error) {
      const isReply = error instanceof Error && error.name === "ReplyError";
      const said = this.#redact(error);
      this.#lastFault = said;
      // A reply, even a refusal, shows that the server is there.
      this.#isTripped = !isReply;
      if (!isReply) this.#openUntilMs = performance.now() + this.#breakerMs;
      const text = said === "Command timed out" ? `no answer within ${String(this.#timeoutMs)} ms` : said;
      // ioredis's errors carry the command with its arguments: the password of AUTH, the bytes of answers. Only the words go on.
      throw this.unavailable(text, new Error(said));
    } finally {
      if (isProbe) this.#isProbing = false;
    }
  }

  #redact(error: unknown): string {
    let text = error instanceof Error ? error.message : String(error);
    if (text === "" && error instanceof AggregateError) text = error.errors.map((one) => String(one)).join("; ");
    for (const secret of this.#secrets) text = text.replaceAll(secret, "***");
    return text;
  }
}

/** ioredis copies from it whenever it connects: a renewed certificate is asked for then. */
function tlsOf(host: string, context: TlsContext | undefined): ConnectionOptions {
  const common: ConnectionOptions = {
    minVersion: tlsVersionMin,
    // Said, because Node's default can be taken back by the environment.
    rejectUnauthorized: true,
    ...(isIP(host) === 0 ? { servername: host } : {}),
  };
  if (context === undefined) return common;
  return Object.defineProperty(common, "secureContext", { enumerable: true, get: context });
}

interface ParsedUrl {
  readonly connection: { host: string; port: number; db: number; username?: string; password?: string };
  readonly isTls: boolean;
  readonly address: string;
  readonly secrets: readonly string[];
}

function parseRedisUrl(url: string): ParsedUrl {
  let parsed: URL;
  try {
    parsed = new URL(url);
  } catch {
    // The parser's own error repeats its input, password included.
    throw new GatewayError(
      "GW_KEYS_CONFIGURATION",
      "keys.redis.url is not a URL: redis://[user:password@]host[:port][/db] is expected.",
    );
  }
  const isTls = parsed.protocol === "rediss:";
  if ((!isTls && parsed.protocol !== "redis:") || parsed.hostname === "") {
    throw new GatewayError(
      "GW_KEYS_CONFIGURATION",
      `keys.redis.url begins with ${parsed.protocol}//; redis://host or rediss://host is expected.`,
    );
  }
  const host = parsed.hostname.replace(/^\[(.*)\]$/, "$1");
  const port = parsed.port === "" ? 6379 : Number(parsed.port);
  const db = parsed.pathname.length > 1 ? Number(parsed.pathname.slice(1)) : 0;
  if (!Number.isInteger(db) || db < 0) {
    throw new GatewayError("GW_KEYS_CONFIGURATION", "The path of keys.redis.url is not a database number.");
  }
  const username = decoded(parsed.username);
  const password = decoded(parsed.password);
  return {
    connection: {
      host,
      port,
      db,
      ...(username === "" ? {} : { username }),
      ...(password === "" ? {} : { password }),
    },
    isTls,
    address: `${parsed.hostname}:${String(port)}`,
    secrets: [...new Set([password, parsed.password])].filter((secret) => secret !== ""),
  };
}

function decoded(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}
