// Adapter of the backend port: undici's clients, one request at a time on a connection, nothing sent twice, nothing hidden.

import { connect } from "node:net";
import { Collect } from "./collect.ts";
import { Deadlines } from "../deadlines.ts";
import { Line } from "./line.ts";
import { Pass } from "./pass.ts";
import type { TlsContext } from "../drivers/dial.ts";
import type { Backend, BackendRequest, Execution, StreamHandle, StreamSink } from "./backend.ts";
import type { Exchange, Lines } from "./exchange.ts";
import type { LineOptions } from "./line.ts";

export interface HttpBackendOptions {
  /** `http://host:port` or `https://host:port`, nothing after it. */
  readonly url: string;
  /** One attempt to connect, TLS included. */
  readonly connectMs: number;
  /** Longest silence within a body, in either direction. */
  readonly idleMs: number;
  /** Most connections, and so most requests at a time; more wait for `firstByteMs`, then are `not-started`. */
  readonly connections: number;
  /** How long an idle connection is kept: shorter than backends keep theirs, or a request meets a connection that is being closed. */
  readonly keepAliveMs?: number;
  readonly tls?: TlsContext;
}

/** Node closes idle connections after 5 s unless told otherwise, most others later. A `Keep-Alive: timeout=` of the backend wins. */
export const defaultKeepAliveMs = 4_000;

export function createHttpBackend(options: HttpBackendOptions): Backend {
  return new HttpBackend(options);
}

class HttpBackend implements Backend, Lines {
  readonly url: string;
  readonly idleMs: number;
  readonly #connections: number;
  readonly #lineOptions: LineOptions;
  readonly #deadlines = new Deadlines();
  /** All that are not given up; those at the end of `#free` are the warmest. */
  readonly #lines = new Set<Line>();
  readonly #free: Line[] = [];
  /** In order, while every line is taken. */
  readonly #waiting = new Set<Exchange>();
  readonly #late = new Set<Exchange>();
  /** Given up with a request on them that may still be answered. */
  readonly #old = new Set<Line>();
  readonly #closing = new Set<Promise<void>>();
  #isClosed = false;

  constructor(options: HttpBackendOptions) {
    const { connectMs, keepAliveMs = defaultKeepAliveMs, tls } = options;
    const url = new URL(options.url);
    this.url = url.origin;
    this.idleMs = options.idleMs;
    this.#connections = options.connections;
    this.#lineOptions = { url, connectMs, keepAliveMs, ...(tls === undefined ? null : { tls }) };
  }

  execute(
    request: BackendRequest,
    limits: { readonly firstByteMs: number; readonly answerBytesMax: number },
  ): Promise<Execution> {
    return new Promise((resolve) => this.#begin(new Collect(this, request, limits, resolve)));
  }

  stream(
    request: BackendRequest,
    sink: StreamSink,
    limits: { readonly firstByteMs: number; readonly idleMs: number },
  ): StreamHandle {
    const pass = new Pass(this, request, sink, limits);
    this.#begin(pass);
    return pass;
  }

  async probe(timeoutMs: number): Promise<"reachable" | "refused" | "timeout"> {
    const { url } = this.#lineOptions;
    return new Promise((resolve) => {
      const port = Number(url.port) || (url.protocol === "https:" ? 443 : 80);
      const socket = connect(port, url.hostname.replace(/^\[|\]$/g, ""));
      const timer = setTimeout(() => settle("timeout"), timeoutMs);
      const settle = (result: "reachable" | "refused" | "timeout"): void => {
        clearTimeout(timer);
        socket.destroy();
        resolve(result);
      };
      socket.once("connect", () => settle("reachable"));
      socket.on("error", (error) => settle("code" in error && error.code === "ETIMEDOUT" ? "timeout" : "refused"));
    });
  }

  async abandon(): Promise<void> {
    const reason = new Error("the late answer was given up");
    for (const exchange of this.#late) exchange.cut(reason);
    const idle = this.#free.splice(0);
    for (const line of idle) {
      this.#lines.delete(line);
      this.#destroy(line);
    }
    // What is still being answered may finish on its old line, which then takes no more.
    for (const line of this.#lines) this.#old.add(line);
    this.#lines.clear();
    await Promise.all(this.#closing);
  }

  async close(): Promise<void> {
    this.#isClosed = true;
    const reason = new Error("the backend's connections were closed");
    for (const exchange of this.#waiting) exchange.cut(reason);
    for (const line of [...this.#lines, ...this.#old]) this.#destroy(line);
    await Promise.all(this.#closing);
  }

  onEnd(exchange: Exchange): void {
    this.#deadlines.delete(exchange);
    if (this.#late.size > 0) this.#late.delete(exchange);
    const line = exchange.line;
    if (line === null) return;
    // undici would connect again at once after a cut, for nobody.
    if (this.#old.delete(line) || (exchange.isCut && this.#lines.delete(line))) this.#destroy(line);
    else this.#free.push(line);
    for (const next of this.#waiting) {
      const free = this.#takeLine();
      if (free === null) break;
      this.#waiting.delete(next);
      this.#send(next, free);
    }
  }

  onLate(exchange: Exchange): void {
    this.#late.add(exchange);
  }

  onWithdrawn(exchange: Exchange): void {
    this.#deadlines.delete(exchange);
    this.#waiting.delete(exchange);
  }

  #begin(exchange: Exchange): void {
    this.#deadlines.add(exchange);
    if (this.#isClosed) {
      exchange.cut(new Error("the backend's connections were closed"));
      return;
    }
    const { method, target } = exchange.request;
    if (method === "CONNECT" || !target.startsWith("/")) {
      // undici would send these; see sendable.ts.
      exchange.cut(new Error(`${method} ${target} cannot be forwarded`));
      return;
    }
    const line = this.#takeLine();
    if (line === null) this.#waiting.add(exchange);
    else this.#send(exchange, line);
  }

  #send(exchange: Exchange, line: Line): void {
    exchange.line = line;
    line.send(exchange.request, exchange.source ?? (exchange.request.body as Buffer | null), exchange);
  }

  #destroy(line: Line): void {
    const closing = line.destroy(new Error("the backend's connections were closed")).finally(() => {
      this.#closing.delete(closing);
    });
    this.#closing.add(closing);
  }

  #takeLine(): Line | null {
    const line = this.#free.pop();
    if (line !== undefined) return line;
    if (this.#lines.size >= this.#connections) return null;
    const made = new Line(this.#lineOptions);
    this.#lines.add(made);
    return made;
  }
}
