// One or two JSON-RPC endpoints of one chain: every call ends in time, the chain stays the one it was, and no message shows what an address may hold.

import { setTimeout as sleep } from "node:timers/promises";
import { Agent, request } from "undici";
import { GatewayError } from "../../gateway/errors.ts";
import type { Secret } from "../../gateway/config/secret.ts";

export interface RpcOptions {
  /** The second is asked when the first fails. */
  readonly urls: readonly Secret[];
  readonly timeoutMs: number;
}

const answerBytesMax = 8 * 1024 * 1024;
/** An endpoint that failed is asked last for so long, so that its time limit is not waited for in each call. */
const restMs = 30_000;
/** Nodes behind one address do not have a new block at the same moment. */
const laggingTries = 4;
const laggingPauseMs = 250;

/** No answer, or none that could be read. */
export class RpcFailure extends Error {}

/** The endpoint answered that it cannot. */
export class RpcError extends Error {
  readonly code: number;
  /** What a contract reverted with, 0x…; null: nothing. */
  readonly data: string | null;

  constructor(message: string, code: number, data: string | null) {
    super(message);
    this.code = code;
    this.data = data;
  }

  get isRevert(): boolean {
    return this.data !== null || this.code === 3 || /revert/i.test(this.message);
  }
}

export class Endpoint {
  /** Scheme, host and port: paths, queries and credentials may be keys. */
  readonly name: string;
  readonly #url: string;
  readonly #headers: Readonly<Record<string, string>>;
  readonly #secrets: readonly string[];
  readonly #timeoutMs: number;
  readonly #agent: Agent;
  #id = 0;
  errors = 0;
  failedAtMs = -restMs;

  constructor(url: Secret, timeoutMs: number) {
    const parsed = new URL(url.reveal());
    this.name = parsed.origin;
    this.#secrets = secretsOf(parsed);
    const { username, password } = parsed;
    const login = Buffer.from(`${decodeURIComponent(username)}:${decodeURIComponent(password)}`).toString("base64");
    this.#headers = {
      "content-type": "application/json",
      accept: "application/json",
      ...(username === "" && password === "" ? {} : { authorization: `Basic ${login}` }),
    };
    parsed.username = "";
    parsed.password = "";
    this.#url = parsed.href;
    this.#timeoutMs = timeoutMs;
    this.#agent = new Agent({ connect: { timeout: timeoutMs }, connections: 8 });
  }

  /** Rejects with RpcFailure or RpcError. */
  async call(method: string, params: readonly unknown[]): Promise<unknown> {
    try {
      // A kept connection may end as it is used. Asking twice does no harm: every call is a question, or the same signed bytes.
      return await this.#call(method, params).catch((error: NodeJS.ErrnoException) => {
        if (error.code !== "UND_ERR_SOCKET" && error.code !== "ECONNRESET") throw error;
        return this.#call(method, params);
      });
    } catch (error) {
      if (error instanceof RpcError && error.isRevert) throw error;
      this.errors += 1;
      if (error instanceof RpcError) throw error;
      this.failedAtMs = performance.now();
      if (error instanceof RpcFailure) throw error;
      throw new RpcFailure(`${this.name} ${this.clean(reasonOf(error, this.#timeoutMs))}`);
    }
  }

  async #call(method: string, params: readonly unknown[]): Promise<unknown> {
    const id = (this.#id += 1);
    const response = await request(this.#url, {
      method: "POST",
      headers: this.#headers,
      body: JSON.stringify({ jsonrpc: "2.0", id, method, params }),
      dispatcher: this.#agent,
      signal: AbortSignal.timeout(this.#timeoutMs),
    });
    const chunks: Buffer[] = [];
    let sizeBytes = 0;
    for await (const chunk of response.body as AsyncIterable<Buffer>) {
      sizeBytes += chunk.length;
      if (sizeBytes > answerBytesMax) throw new RpcFailure(`${this.name} answers ${method} with more than 8 MiB`);
      chunks.push(chunk);
    }
    const answer = parseAnswer(Buffer.concat(chunks).toString("utf8"));
    if (answer?.error !== undefined && answer.error !== null) throw this.#errorOf(answer.error);
    if (response.statusCode !== 200) throw new RpcFailure(`${this.name} answers ${response.statusCode} to ${method}`);
    if (answer === null || answer.id !== id || answer.result === undefined)
      throw new RpcFailure(`${this.name} answers ${method} with something that is no JSON-RPC`);
    return answer.result;
  }

  #errorOf(error: Readonly<Record<string, unknown>>): RpcError {
    const message = typeof error["message"] === "string" ? error["message"] : "an error without a message";
    const code = typeof error["code"] === "number" ? error["code"] : 0;
    return new RpcError(this.clean(message), code, revertData(error["data"]));
  }

  /** What an endpoint says may repeat its own address. */
  clean(text: string): string {
    let clean = text;
    for (const secret of this.#secrets) clean = clean.replaceAll(secret, "•••");
    // oxlint-disable-next-line no-control-regex
    return clean.replaceAll(/[\u0000-\u001f\u007f-\u009f]+/g, " ").slice(0, 300);
  }

  close(): Promise<void> {
    return this.#agent.destroy();
  }
}

export class Rpc {
  readonly endpoints: readonly Endpoint[];
  readonly #verified = new Set<Endpoint>();
  #chainId: bigint | null = null;

  constructor({ urls, timeoutMs }: RpcOptions) {
    this.endpoints = urls.map((url) => new Endpoint(url, timeoutMs));
  }

  get errors(): number {
    return this.endpoints.reduce((sum, { errors }) => sum + errors, 0);
  }

  /** Of the chain that is meant, from now on: an endpoint that shows another one is not asked. */
  pin(chainId: bigint): void {
    this.#chainId = chainId;
  }

  /** Before each piece of work: an address may lead to another chain than a minute ago. */
  distrust(): void {
    this.#verified.clear();
  }

  /** What the first endpoint answers, or the second when that one fails. Rejects with RpcError or RpcFailure. */
  async call(method: string, params: readonly unknown[] = []): Promise<unknown> {
    return this.withOne((endpoint) => this.callAt(endpoint, method, params));
  }

  /** Work that has to see one endpoint throughout. */
  async withOne<T>(work: (endpoint: Endpoint) => Promise<T>): Promise<T> {
    const failures: unknown[] = [];
    for (const endpoint of this.#inOrder()) {
      try {
        return await work(endpoint);
      } catch (error) {
        if (error instanceof RpcError && error.isRevert) throw error;
        if (!(error instanceof RpcError || error instanceof RpcFailure)) throw error;
        failures.push(error);
      }
    }
    throw failures.find((failure) => failure instanceof RpcError) ?? joined(failures);
  }

  /** The same of every endpoint, in the order of the configuration. */
  async ofAll<T>(work: (endpoint: Endpoint) => Promise<T>): Promise<readonly PromiseSettledResult<T>[]> {
    return Promise.allSettled(this.endpoints.map(work));
  }

  async callAt(endpoint: Endpoint, method: string, params: readonly unknown[]): Promise<unknown> {
    if (!this.#verified.has(endpoint)) {
      const found = toBigInt(await endpoint.call("eth_chainId", []));
      this.#chainId ??= found;
      if (found !== this.#chainId) {
        endpoint.errors += 1;
        throw new RpcFailure(`${endpoint.name} shows chain ${found}, the registry is on chain ${this.#chainId}`);
      }
      this.#verified.add(endpoint);
    }
    // Ends after laggingTries.
    for (let attempt = 1; ; attempt += 1) {
      try {
        return await endpoint.call(method, params);
      } catch (error) {
        const isLagging = error instanceof RpcError && /header not found|(unknown|missing) block/i.test(error.message);
        if (!isLagging || attempt === laggingTries) throw error;
        await sleep(laggingPauseMs);
      }
    }
  }

  /** Decides whether the chain can be reached; also what pins it, where nothing did. */
  async chainId(): Promise<bigint> {
    await this.call("eth_blockNumber");
    return this.#chainId as bigint;
  }

  async close(): Promise<void> {
    await Promise.all(this.endpoints.map((endpoint) => endpoint.close()));
  }

  #inOrder(): readonly Endpoint[] {
    const isResting = ({ failedAtMs }: Endpoint): boolean => performance.now() - failedAtMs < restMs;
    return this.endpoints.toSorted((a, b) => Number(isResting(a)) - Number(isResting(b)));
  }
}

export const toBigInt = (value: unknown): bigint => {
  if (typeof value !== "string" || !/^0x[0-9a-f]{1,64}$/i.test(value))
    throw new RpcFailure(`an endpoint answers with ${JSON.stringify(value)?.slice(0, 40)} where a number has to be`);
  return BigInt(value);
};

/** Of block numbers, indexes, nonces. */
export const toNumber = (value: unknown): number => Number(toBigInt(value));

export const toHex = (value: number | bigint): string => `0x${value.toString(16)}`;

/** Of several endpoints, as one. */
export const joined = (failures: readonly unknown[]): RpcFailure =>
  new RpcFailure(failures.map((one) => (one instanceof Error ? one.message : String(one))).join("; "));

/** The next try may go better. */
export const isPassing = (error: unknown): boolean =>
  error instanceof RpcFailure || (error instanceof RpcError && !error.isRevert);

/** What a caller above is told. Errors that have a code already stay what they are. */
export function translated(error: unknown): unknown {
  if (error instanceof RpcFailure)
    return new GatewayError("GW_REGISTRY_UNAVAILABLE", `the registry's chain cannot be asked: ${error.message}`);
  if (error instanceof RpcError)
    return new GatewayError("GW_REGISTRY_UNAVAILABLE", `the registry's chain answers with an error: ${error.message}`);
  return error;
}

interface Answer {
  readonly id?: unknown;
  readonly result?: unknown;
  readonly error?: Readonly<Record<string, unknown>> | null;
}

function parseAnswer(text: string): Answer | null {
  try {
    const value: unknown = JSON.parse(text);
    return typeof value === "object" && value !== null ? value : null;
  } catch {
    return null;
  }
}

/** Nodes wrap it differently. */
function revertData(data: unknown): string | null {
  if (typeof data === "string") return /0x[0-9a-f]{8,}/i.exec(data)?.[0] ?? null;
  if (typeof data !== "object" || data === null) return null;
  const { data: inner, result } = data as { readonly data?: unknown; readonly result?: unknown };
  return revertData(inner) ?? revertData(result);
}

function reasonOf(error: unknown, timeoutMs: number): string {
  const { name, code, message } = error as NodeJS.ErrnoException;
  if (name === "TimeoutError" || code === "UND_ERR_CONNECT_TIMEOUT") return `did not answer within ${timeoutMs} ms`;
  switch (code) {
    case "ECONNREFUSED":
      return "refuses the connection";
    case "ENOTFOUND":
    case "EAI_AGAIN":
      return "is a name that is not known";
    case "ECONNRESET":
    case "UND_ERR_SOCKET":
      return "closed the connection";
    default:
      return `cannot be asked (${code ?? message})`;
  }
}

function secretsOf({ href, pathname, searchParams, username, password }: URL): readonly string[] {
  const parts = [
    href,
    username,
    password,
    decodeURIComponent(password),
    ...pathname.split("/"),
    ...searchParams.values(),
  ];
  // Short parts such as "v3" are words of any message; longest first, because one may be a part of another.
  return [...new Set(parts)].filter((part) => part.length >= 6).toSorted((a, b) => b.length - a.length);
}
