// One connection's worth of undici: a Client that has at most one request, connects when it is given one, and connects anew after a close.
// We keep the Clients ourselves and not in undici's Pool: the Pool takes a Client that has just answered for busy and opens another
// connection, looks through all of them for each request, and its queue cannot be left.

import { connect as connectTcp, isIP } from "node:net";
import { connect as connectTls } from "node:tls";
import { Client } from "undici";
import type { Socket } from "node:net";
import type { Dispatcher, buildConnector } from "undici";
import type { BackendRequest } from "./backend.ts";
import type { Source } from "./source.ts";

export interface LineOptions {
  readonly url: URL;
  readonly connectMs: number;
  readonly keepAliveMs: number;
  readonly tls?: { readonly ca?: string; readonly cert?: string; readonly key?: string };
}

/** Of an answer's head. undici keeps at most this much while it reads. */
export const headBytesMax = 256 * 1024;
/** Taken off a backend's own `Keep-Alive: timeout=`. */
const keepAliveMarginMs = 1_000;

export class Line {
  /** True while an `error` event says that the other side reset the connection. */
  isResetting = false;
  readonly #options: LineOptions;
  readonly #isTls: boolean;
  readonly #client: Client;

  constructor(options: LineOptions) {
    this.#options = options;
    this.#isTls = options.url.protocol === "https:";
    this.#client = new Client(options.url.origin, {
      pipelining: 1,
      keepAliveTimeout: options.keepAliveMs,
      keepAliveTimeoutThreshold: keepAliveMarginMs,
      maxHeaderSize: headBytesMax,
      // Deadlines are ours: undici's destroy the connection, and cannot tell a late answer from none.
      headersTimeout: 0,
      bodyTimeout: 0,
      connect: this.#connect,
    });
  }

  /** What undici refuses comes back through the handler, before `onRequestStart`. */
  send(
    { method, target, headers }: BackendRequest,
    body: Buffer | Source | null,
    handler: Dispatcher.DispatchHandler,
  ): void {
    const options: Dispatcher.DispatchOptions & { readonly servername: string } = {
      method,
      path: target,
      headers: headers as string[],
      body: body as Buffer | null,
      // Only compared by undici, which would take each request's Host apart for it, and over TLS reconnect for each other one; see #connect.
      servername: "backend",
    };
    this.#client.dispatch(options, handler);
  }

  destroy(reason: Error): Promise<void> {
    return this.#client.destroy(reason);
  }

  /** Our own, because undici's timer for it is a second coarse, and because a reset must be told from an end. */
  readonly #connect: buildConnector.connector = (_options, callback) => {
    const { url, connectMs, tls } = this.#options;
    const host = url.hostname.replace(/^\[|\]$/g, "");
    const address = { host, port: Number(url.port) || (this.#isTls ? 443 : 80) };
    const socket: Socket = this.#isTls
      ? connectTls({
          ...address,
          ...tls,
          // By the backend's own name, whatever the request's Host says.
          ...(isIP(host) === 0 ? { servername: host } : null),
          ALPNProtocols: ["http/1.1"],
        })
      : connectTcp(address);
    socket.setNoDelay(true).setKeepAlive(true, 60_000);
    let isConnecting = true;
    const timer = setTimeout(() => {
      socket.destroy(new TimeoutError(`no connection to ${url.origin} within ${connectMs} ms`));
    }, connectMs);
    socket.on("error", (error: NodeJS.ErrnoException) => {
      if (isConnecting) {
        isConnecting = false;
        clearTimeout(timer);
        callback(error, null);
      } else this.isResetting = error.code === "ECONNRESET";
    });
    socket.once(this.#isTls ? "secureConnect" : "connect", () => {
      isConnecting = false;
      clearTimeout(timer);
      callback(null, socket);
      // Heard after undici's own listener, which ends the exchange.
      socket.on("error", () => {
        this.isResetting = false;
      });
    });
  };
}

export class TimeoutError extends Error {
  override readonly name = "TimeoutError";
}
