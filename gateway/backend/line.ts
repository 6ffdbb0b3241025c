// One connection's worth of undici: a Client that has at most one request, connects when it is given one, and connects anew after a close.
// We keep the Clients ourselves and not in undici's Pool: the Pool takes a Client that has just answered for busy and opens another
// connection, looks through all of them for each request, and its queue cannot be left.

import { Client } from "undici";
import { dial, whenUsable } from "../drivers/dial.ts";
import type { Dispatcher, buildConnector } from "undici";
import type { TlsContext } from "../drivers/dial.ts";
import type { BackendRequest } from "./backend.ts";
import type { Source } from "./source.ts";

export interface LineOptions {
  readonly url: URL;
  readonly connectMs: number;
  readonly keepAliveMs: number;
  readonly tls?: TlsContext;
}

/** Of an answer's head. undici keeps at most this much while it reads. */
export const headBytesMax = 256 * 1024;
/** Taken off a backend's own `Keep-Alive: timeout=`. */
const keepAliveMarginMs = 1_000;

export class Line {
  /** True while an `error` event says that the other side reset the connection. */
  isResetting = false;
  readonly #options: LineOptions;
  readonly #client: Client;

  constructor(options: LineOptions) {
    this.#options = options;
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
    const socket = dial(url, tls);
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
    // Without a word, as some servers refuse a certificate.
    socket.once("close", () => {
      if (!isConnecting) return;
      isConnecting = false;
      clearTimeout(timer);
      callback(new Error(`${url.origin} closed the connection before it could be used`), null);
    });
    whenUsable(socket, () => {
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
