// WebSocket upgrades of `websocket: true` rules, by @fastify/http-proxy: each to the copy that the flow names, with the fields that every
// request gets and the target byte for byte. http-proxy itself would send cookies only, and read the target anew.

import httpProxy from "@fastify/http-proxy";
import type { ClientRequest, IncomingMessage, Server } from "node:http";
import type { Socket } from "node:net";
import type { FastifyInstance } from "fastify";
import type { RawHeaders } from "../entry.ts";

export interface Upgrade {
  /** `http://host:port` of the copy, or `https://…`. */
  readonly url: string;
  /** Canonical, as it is sent. */
  readonly target: string;
  readonly headers: RawHeaders;
}

export interface WebSocketLimits {
  /** One message, in either direction. */
  readonly messageBytes: number;
  readonly handshakeMs: number;
  /** To a copy; default: TCP. */
  readonly dial?: (url: URL) => Socket;
}

/** What is used of `ws`, which has no types of its own. */
interface WebSocket {
  readonly readyState: number;
  readonly bufferedAmount: number;
  readonly isPaused: boolean;
  pause(): void;
  resume(): void;
  close(code: number, reason: string): void;
  once(event: "open" | "close", listener: () => void): void;
}

const connecting = 0;
const open = 1;

/** What may wait for a slow reader before its writer is paused. */
const aheadBytes = 1024 * 1024;
const pollMs = 20;

type UpgradeRequest = IncomingMessage & { gatewayUpgrade?: Upgrade };

export class WebSockets {
  readonly #sources = new Set<WebSocket>();
  #serve: ((request: IncomingMessage, socket: Socket, head: Buffer) => void) | null = null;
  /** http-proxy makes a client from a request in one go: between its two calls to us this is whose it is. */
  #current: Upgrade | null = null;

  /** Before `ready` of the app. `server` must have no other listener for upgrades yet. */
  register(app: FastifyInstance, { dial, ...limits }: WebSocketLimits): void {
    const shared = { perMessageDeflate: false, maxPayload: limits.messageBytes };
    app.register(httpProxy, {
      upstream: "",
      websocket: true,
      httpMethods: ["GET"],
      replyOptions: { getUpstream: (request) => upgradeOf(request.raw as UpgradeRequest).url },
      wsServerOptions: shared,
      wsClientOptions: {
        ...shared,
        handshakeTimeout: limits.handshakeMs,
        ...(dial === undefined ? null : { createConnection: () => dial(new URL(this.#current!.url)) }),
        rewriteRequestHeaders: (_: unknown, request: { raw: UpgradeRequest }) => {
          this.#current = upgradeOf(request.raw);
          return merged(this.#current.headers);
        },
        finishRequest: (request: ClientRequest) => {
          request.path = this.#current!.target;
          this.#current = null;
          request.end();
        },
      },
      wsHooks: {
        onConnect: (_context: unknown, source: WebSocket) => this.#sources.add(source),
        onDisconnect: (_context: unknown, source: WebSocket) => this.#sources.delete(source),
        onIncomingMessage: (_context: unknown, source: WebSocket, target: WebSocket) => holdBack(source, target),
        onOutgoingMessage: (_context: unknown, source: WebSocket, target: WebSocket) => holdBack(target, source),
      },
    });
  }

  /** After `ready`: http-proxy's listener is called for what the front lets through, not for every upgrade. */
  takeOver(server: Server): void {
    const listener = server.listeners("upgrade")[0] as (request: IncomingMessage, socket: Socket, head: Buffer) => void;
    this.#serve = (request, socket, head) => {
      // http-proxy looks at the number of listeners, and finds the front's alone.
      listener.call(server, request, socket, head);
    };
    server.removeAllListeners("upgrade");
  }

  serve(request: IncomingMessage, socket: Socket, head: Buffer, upgrade: Upgrade): void {
    (request as UpgradeRequest).gatewayUpgrade = upgrade;
    // For http-proxy's router, which would refuse or rewrite some targets that are canonical here.
    request.url = "/";
    this.#serve!(request, socket, head);
  }

  /** Both ends are told (1001, RFC 6455 7.4.1). */
  goAway(): void {
    for (const source of this.#sources) source.close(1001, "the gateway is stopping");
  }
}

function upgradeOf(request: UpgradeRequest): Upgrade {
  if (request.gatewayUpgrade === undefined) throw new Error("an upgrade went past the front");
  return request.gatewayUpgrade;
}

/** As Node's client takes them: an object, in order, with duplicates as lists. */
function merged(raw: RawHeaders): Record<string, string | string[]> {
  const headers: Record<string, string | string[]> = Object.create(null) as Record<string, string | string[]>;
  const names = new Map<string, string>();
  for (let i = 0; i + 1 < raw.length; i += 2) {
    const lower = raw[i]!.toLowerCase();
    const name = names.get(lower) ?? raw[i]!;
    names.set(lower, name);
    const before = headers[name];
    if (before === undefined) headers[name] = raw[i + 1]!;
    else headers[name] = typeof before === "string" ? [before, raw[i + 1]!] : [...before, raw[i + 1]!];
  }
  return headers;
}

/** http-proxy writes whatever comes to the other side. */
function holdBack(from: WebSocket, to: WebSocket): void {
  if (from.isPaused) return;
  if (to.readyState === connecting) {
    from.pause();
    to.once("open", () => from.resume());
    to.once("close", () => from.resume());
  } else if (to.bufferedAmount > aheadBytes) {
    from.pause();
    // `ws` tells nobody that it has drained. Ends when it has, or when the other side is closed.
    const timer = setInterval(() => {
      if (to.readyState === open && to.bufferedAmount > aheadBytes / 4) return;
      clearInterval(timer);
      from.resume();
    }, pollMs);
  }
}
