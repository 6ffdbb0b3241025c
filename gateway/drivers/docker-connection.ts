// How a container engine is spoken to: one connection a call, bounded in time, in a version that it knows, its errors translated once.
//
// - A connection that is kept may be closed by the engine at the moment of use, and a POST is then ambiguous: none is.
// - Engine away: GW_ENGINE_UNAVAILABLE, and what was asked may have been done. What it refuses: GW_ENGINE_REFUSED, with its own words.

import { Readable } from "node:stream";
import { Pool } from "undici";
import { GatewayError } from "../errors.ts";
import { record, text } from "./docker-container.ts";
import type { Dispatcher } from "undici";

/** Docker 20.10 knows nothing newer; what newer engines have dropped is found out by asking. */
const pinnedVersion = "1.41";
/** Of lists and descriptions. */
const answerBytesMax = 16 * 1024 * 1024;

export interface Call {
  readonly method: "GET" | "POST" | "PUT" | "DELETE";
  /** Below the version. */
  readonly path: string;
  readonly json?: unknown;
  readonly body?: AsyncIterable<Buffer>;
  readonly signal?: AbortSignal | undefined;
  /** Between the request and the head of the answer, and between its pieces; 0: for ever. */
  readonly timeoutMs?: number;
}

export class DockerConnection {
  readonly address: string;
  readonly #pool: Pool;
  readonly #timeoutMs: number;
  #version: string | null = null;

  constructor(address: string, timeoutMs: number) {
    this.address = address;
    this.#timeoutMs = timeoutMs;
    const { origin, socketPath } = parseAddress(address);
    this.#pool = new Pool(origin, {
      pipelining: 0,
      connect: { timeout: Math.min(timeoutMs, 5_000), ...(socketPath === null ? {} : { socketPath }) },
    });
  }

  async close(): Promise<void> {
    await this.#pool.destroy();
  }

  /** The answer's JSON; null: 404; an empty object: nothing was said. */
  async json(call: Call): Promise<unknown> {
    const body = await this.call(call);
    if (body === null) return null;
    const said = await this.#read(body, call.signal);
    if (said === "") return {};
    try {
      return JSON.parse(said) as unknown;
    } catch (error) {
      throw this.away(`what answers ${call.method} ${call.path} is no container engine`, error);
    }
  }

  /** The answer's body, to be read to its end or given up; null: 404. */
  async call(call: Call): Promise<Dispatcher.ResponseData["body"] | null> {
    const version = (this.#version ??= await this.#findVersion(call.signal));
    const { statusCode, body } = await this.#send(`/v${version}`, call);
    if (statusCode < 300 || statusCode === 304) return body;
    const said = await this.#read(body, call.signal);
    if (statusCode === 404) return null;
    throw this.refused(`${call.method} ${call.path.split("?", 1)[0]}: ${messageIn(said)}`);
  }

  /** The pinned one, unless the engine no longer has it. */
  async #findVersion(signal: AbortSignal | undefined): Promise<string> {
    const { body } = await this.#send("", { method: "GET", path: "/version", signal });
    const said = await this.#read(body, signal);
    let oldest = "";
    try {
      oldest = text(record(JSON.parse(said))["MinAPIVersion"]);
    } catch (error) {
      throw this.away("what answers there is no container engine", error);
    }
    return minorOf(oldest) > minorOf(pinnedVersion) ? oldest : pinnedVersion;
  }

  async #send(prefix: string, call: Call): Promise<Dispatcher.ResponseData> {
    const { json, method, path, signal, timeoutMs = this.#timeoutMs } = call;
    signal?.throwIfAborted();
    const isTar = call.body !== undefined;
    const body = isTar
      ? Readable.from(call.body, { objectMode: false })
      : json === undefined
        ? null
        : JSON.stringify(json);
    try {
      return await this.#pool.request({
        method,
        path: prefix + path,
        headersTimeout: timeoutMs,
        bodyTimeout: timeoutMs,
        body,
        headers: { "content-type": isTar ? "application/x-tar" : "application/json" },
        signal: signal ?? null,
      });
    } catch (error) {
      throw this.#translate(error, signal);
    }
  }

  async #read(body: AsyncIterable<Buffer>, signal: AbortSignal | undefined): Promise<string> {
    const pieces: Buffer[] = [];
    let bytes = 0;
    for await (const piece of this.translated(body, signal)) {
      bytes += piece.length;
      if (bytes > answerBytesMax) throw this.away(`it answered more than ${answerBytesMax} bytes`);
      pieces.push(piece);
    }
    return Buffer.concat(pieces).toString("utf8");
  }

  async *translated(body: AsyncIterable<Buffer>, signal: AbortSignal | undefined): AsyncGenerator<Buffer> {
    try {
      yield* body;
    } catch (error) {
      throw this.#translate(error, signal);
    }
  }

  #translate(error: unknown, signal: AbortSignal | undefined): unknown {
    if (signal?.aborted === true) return signal.reason;
    // Perhaps it is replaced by another that knows other versions.
    this.#version = null;
    const { code = "", message } = error as NodeJS.ErrnoException;
    const mend = code === "EACCES" ? ": this user may not use the socket" : "";
    return error instanceof GatewayError ? error : this.away(message + mend, error);
  }

  away(what: string, cause?: unknown): GatewayError {
    const message = `the container engine at ${this.address} cannot be used: ${what}`;
    return new GatewayError("GW_ENGINE_UNAVAILABLE", message, {
      retryAfterS: 1,
      ...(cause === undefined ? {} : { cause }),
    });
  }

  refused(what: string): GatewayError {
    return new GatewayError("GW_ENGINE_REFUSED", `the container engine at ${this.address} refuses: ${what}`);
  }
}

/** `unix:///path` or `tcp://host:port`, on this machine: what containers publish is on its 127.0.0.1 alone. */
function parseAddress(address: string): { readonly origin: string; readonly socketPath: string | null } {
  const [, path] = /^unix:\/\/(\/.+)$/.exec(address) ?? [];
  if (path !== undefined) return { origin: "http://engine", socketPath: path };
  const [, host, port] = /^(?:tcp|http):\/\/(localhost|127(?:\.\d+){3}|\[::1\]):(\d+)\/?$/.exec(address) ?? [];
  if (host !== undefined) return { origin: `http://${host}:${port}`, socketPath: null };
  throw new GatewayError(
    "GW_CONFIG_INVALID",
    `the container engine ${address} is neither unix:///PATH nor tcp://HOST:PORT of this machine: containers are reached on 127.0.0.1, so run the gateway where the engine is`,
  );
}

/** `{"message"}`, as both engines answer. Podman tells its whole request in the middle. */
function messageIn(said: string): string {
  let message = said;
  try {
    message = text(record(JSON.parse(said))["message"]) || said;
  } catch {
    // No JSON: somebody in between said it.
  }
  return message.length > messageCharsMax
    ? `${message.slice(0, 100)} … ${message.slice(-(messageCharsMax - 100))}`
    : message;
}
const messageCharsMax = 500;

const minorOf = (version: string): number => Number(version.split(".")[1] ?? 0);
