// The front: every path belongs to the service. It refuses what is ambiguous, bounds what is too much, and hands the rest to the flow as an
// exchange. Requests go straight from node:http to here (see libraries.md 1b); of Fastify only the lifecycle and the upgrades are used.

import ipaddr from "ipaddr.js";
import { canonicalTarget } from "../../rules/target.ts";
import { GatewayError } from "../errors.ts";
import { bodyTooLarge, ClientBody } from "./body.ts";
import { closeSoftly, Connection, connectionOf } from "./connection.ts";
import { FrontExchange, noAccount } from "./exchange.ts";
import { forwardedHeaders, readFields } from "./fields.ts";
import { connectionNames, headFault, lenientParserFlag, parserFault } from "./framing.ts";
import { createApp, createServerOf, drainServer, renewTls, stopAccepting } from "./lifecycle.ts";
import { problemBytes } from "./problem.ts";
import { WebSockets } from "./websocket.ts";
import type { IncomingMessage, Server, ServerResponse } from "node:http";
import type { AddressInfo, Socket } from "node:net";
import type { FastifyInstance } from "fastify";
import type { TargetOptions } from "../../rules/target.ts";
import type { Clock } from "../clock.ts";
import type { RawHeaders } from "../entry.ts";
import type { Events } from "../events.ts";
import type { Service } from "../exchange.ts";
import type { Desk } from "./exchange.ts";
import type { ClientFields, Forwarding } from "./fields.ts";
import type { FrontTimeouts, FrontTls } from "./lifecycle.ts";

export interface FrontLimits {
  readonly bodyBytes: number;
  /** Requests at a time; beyond it 503. */
  readonly inFlight: number;
  /** One header section. */
  readonly headerBytes: number;
  readonly headersCount: number;
  /** Connections of one address that is no trusted proxy; 0: any number. */
  readonly connectionsPerAddress: number;
}

export const frontLimits = { headerBytes: 64 * 1024, headersCount: 256, connectionsPerAddress: 2048 } as const;
export const frontTimeouts = { headersMs: 10_000, requestMs: 600_000, keepAliveMs: 75_000 } as const;

export interface FrontOptions {
  readonly listen: { readonly host: string; readonly port: number };
  readonly service: Service;
  readonly limits: Pick<FrontLimits, "bodyBytes" | "inFlight"> & Partial<FrontLimits>;
  readonly timeouts: Pick<FrontTimeouts, "idleMs" | "shutdownMs"> & Partial<FrontTimeouts>;
  readonly encodedSlash: TargetOptions["encodedSlash"];
  /** Addresses and networks whose X-Forwarded-* is believed. */
  readonly trustedProxies: readonly string[];
  readonly tls?: FrontTls;
  /** To a copy, for WebSockets; default: TCP. */
  readonly dial?: (url: URL) => Socket;
  readonly events: Events;
  readonly clock: Clock;
}

export interface FrontAddress {
  readonly host: string;
  readonly port: number;
  readonly url: string;
}

export interface Front {
  /** Once started. */
  readonly address: FrontAddress;
  start(): Promise<void>;
  /** Of a front with `tls`: for connections from here on. */
  renew(tls: FrontTls): void;
  /** Accepts nothing new, lets answers end, at most `timeouts.shutdownMs`. */
  drain(): Promise<void>;
  /** Cuts whatever is left. May be called twice. */
  close(): Promise<void>;
}

export function createFront(options: FrontOptions): Front {
  const flag = lenientParserFlag(process.execArgv, process.env["NODE_OPTIONS"] ?? "");
  if (flag !== null) {
    throw new GatewayError(
      "GW_CONFIG_INVALID",
      `Node runs with ${flag}: the front does not start, as requests could be read two ways`,
    );
  }
  return new HttpFront(options);
}

type Network = readonly [ipaddr.IPv4 | ipaddr.IPv6, number];

class HttpFront implements Front, Desk {
  readonly #options: FrontOptions;
  readonly #limits: FrontLimits;
  readonly #targetOptions: TargetOptions;
  readonly #trusted: readonly Network[];
  readonly #server: Server;
  readonly #app: FastifyInstance;
  readonly #webSockets = new WebSockets();
  readonly #connections = new Set<Connection>();
  /** Accepted, the TLS handshake perhaps still to come. */
  readonly #sockets = new Set<Socket>();
  readonly #perAddress = new Map<string, number>();
  readonly #overloaded: GatewayError;
  readonly #timeouts: FrontTimeouts;
  #address: FrontAddress | null = null;
  #inFlight = 0;
  #drained: Promise<void> | null = null;
  #closed: Promise<void> | null = null;
  isDraining = false;

  constructor(options: FrontOptions) {
    this.#options = options;
    this.#limits = { ...frontLimits, ...options.limits };
    this.#timeouts = { ...frontTimeouts, ...options.timeouts };
    this.#targetOptions = { encodedSlash: options.encodedSlash };
    this.#trusted = options.trustedProxies.map(parseNetwork);
    this.#overloaded = new GatewayError(
      "GW_OVERLOADED",
      `${this.#limits.inFlight} requests are under way (limits.inFlight)`,
    );
    this.#server = createServerOf(this.#limits.headerBytes, this.#timeouts, options.tls);
    this.#app = createApp(this.#server, (error, socket) => this.#onClientError(error, socket));
  }

  get address(): FrontAddress {
    if (this.#address === null) throw new Error("the front has not started");
    return this.#address;
  }

  async start(): Promise<void> {
    const { dial, listen, tls } = this.#options;
    const server = this.#server;
    this.#webSockets.register(this.#app, {
      messageBytes: this.#limits.bodyBytes,
      handshakeMs: this.#timeouts.headersMs,
      ...(dial === undefined ? null : { dial: (url: URL) => this.#toCopy(dial(url), url) }),
    });
    await this.#app.ready();
    this.#webSockets.takeOver(server);
    const accept = (request: IncomingMessage, response: ServerResponse): void => this.#accept(request, response);
    server.on("request", accept);
    server.on("checkContinue", accept);
    server.on("checkExpectation", accept);
    // CONNECT too: for both Node has given the socket away.
    const upgrade = (request: IncomingMessage, socket: Socket, first: Buffer): void => {
      this.#upgrade(request, socket, first).catch((error: unknown) => {
        this.#options.events.tell({ type: "warning", about: "upgrade", detail: String(error) });
        socket.destroy();
      });
    };
    server.on("upgrade", upgrade);
    server.on("connect", upgrade);
    server.on("connection", (socket: Socket) => {
      this.#sockets.add(socket);
      socket.once("close", () => this.#sockets.delete(socket));
    });
    server.on("tlsClientError", (error: Error, socket: Socket) => {
      const peer = plainAddress(socket.remoteAddress ?? "");
      this.#options.events.tell({ type: "handshake-failed", cause: error.message, peer });
    });
    server.on(tls === undefined ? "connection" : "secureConnection", (socket: Socket) => this.#onConnection(socket));
    server.on("timeout", (socket: Socket) => onSilence(socket));
    await this.#app.listen({ host: listen.host, port: listen.port });
    const { address, family, port } = server.address() as AddressInfo;
    const host = family === "IPv6" ? `[${address}]` : address;
    this.#address = { host: address, port, url: `${tls === undefined ? "http" : "https"}://${host}:${port}` };
  }

  renew(tls: FrontTls): void {
    renewTls(this.#server, tls);
  }

  drain(): Promise<void> {
    this.isDraining = true;
    this.#drained ??= this.#drain();
    return this.#drained;
  }

  close(): Promise<void> {
    this.isDraining = true;
    this.#closed ??= this.#close();
    return this.#closed;
  }

  async #drain(): Promise<void> {
    if (!this.#server.listening) return;
    this.#webSockets.goAway();
    await drainServer(this.#server, this.#connections, this.#timeouts.shutdownMs);
  }

  async #close(): Promise<void> {
    // Before anything waits: nobody may come in between.
    if (this.#server.listening) stopAccepting(this.#server, ignore);
    for (const socket of this.#sockets) socket.destroy();
    await this.#app.close();
  }

  now(): number {
    return this.#options.clock.now();
  }

  // --- connections

  #onConnection(socket: Socket): void {
    const peer = plainAddress(socket.remoteAddress ?? "");
    const connection = new Connection(socket, {
      peer,
      isTrusted: this.#isTrusted(peer),
      proto: this.#options.tls === undefined ? "http" : "https",
    });
    this.#connections.add(connection);
    const count = (this.#perAddress.get(peer) ?? 0) + 1;
    this.#perAddress.set(peer, count);
    socket.once("close", () => this.#onConnectionClosed(connection));
    const max = this.#limits.connectionsPerAddress;
    if (max > 0 && count > max && !connection.isTrusted) {
      this.#refuseConnection(
        connection,
        new GatewayError("GW_OVERLOADED", `more than ${max} connections from one address`),
      );
    }
  }

  #onConnectionClosed(connection: Connection): void {
    this.#connections.delete(connection);
    const count = this.#perAddress.get(connection.peer)! - 1;
    if (count === 0) this.#perAddress.delete(connection.peer);
    else this.#perAddress.set(connection.peer, count);
    connection.gone();
  }

  /** Answers without a request that could be read, and closes. */
  #refuseConnection(connection: Connection, error: GatewayError, request: IncomingMessage | null = null): void {
    const { socket } = connection;
    connection.isClosing = true;
    if (!socket.writable) {
      socket.destroy();
      return;
    }
    socket.write(problemBytes(error, this.#options.clock.wallMs()), "utf8");
    closeSoftly(socket);
    this.#options.events.tell({
      type: "request",
      rule: noAccount.rule,
      mode: noAccount.mode,
      method: request?.method ?? "",
      path: pathOf(request?.url ?? ""),
      status: error.status,
      code: error.code,
      outcome: "not-executed",
      position: null,
      replica: null,
      durationMs: 0,
      peer: connection.peer,
    });
  }

  /** What the parser could not read, a request that came too slowly, or a connection that broke. */
  #onClientError(error: NodeJS.ErrnoException, socket: Socket): void {
    const connection = connectionOf(socket);
    const isBroken = error.code === "ECONNRESET" || error.code === "EPIPE";
    // Half-closed by us behind the last answer: what the parser makes of the rest is no reason to destroy that answer on its way.
    if (connection === undefined || isBroken || (!socket.writable && !connection.isClosing)) {
      socket.destroy();
      return;
    }
    const fault = parserFault(error);
    const last = connection.exchanges.at(-1);
    if (last !== undefined && !last.request.complete) {
      // Within a body: its own exchange hears of it and answers; nothing behind it is looked at.
      last.failBody(fault);
      return;
    }
    if (connection.isClosing || connection.fault !== null) return;
    if (last !== undefined) connection.fault = fault;
    // Opened and never used: there is nobody to answer.
    else if (socket.bytesRead === 0) socket.destroy();
    else this.#refuseConnection(connection, fault);
  }

  #isTrusted(address: string): boolean {
    if (this.#trusted.length === 0 || !ipaddr.isValid(address)) return false;
    const parsed = ipaddr.process(address);
    return this.#trusted.some(([network, bits]) => network.kind() === parsed.kind() && parsed.match(network, bits));
  }

  // --- requests

  #accept(request: IncomingMessage, response: ServerResponse): void {
    const connection = connectionOf(request.socket);
    // Behind a last answer: dropped with the connection.
    if (connection === undefined || connection.isClosing) return;
    const exchange = new FrontExchange(this, connection, request, response);
    connection.exchanges.push(exchange);
    const fields = readFields(request.rawHeaders);
    const named = connectionNames(fields.connection);
    const fault = headFault(request.method!, request.url!, request.httpVersion, fields, named, this.#limits);
    if (fault !== null) {
      exchange.refuse(fault, true);
      return;
    }
    const sizeBytes =
      fields.transferEncodings > 0 ? null : fields.contentLengths > 0 ? Number(fields.contentLength) : 0;
    if (sizeBytes !== null && sizeBytes > this.#limits.bodyBytes) {
      exchange.refuse(bodyTooLarge(this.#limits.bodyBytes), true);
      return;
    }
    const hasBody = sizeBytes !== 0;
    const isAsking = fields.expects > 0;
    // Node closes behind an answer to `Expect` that no 100 came before: what stands behind it would be executed and never answered.
    if (isAsking && (!hasBody || request.httpVersion === "1.0")) connection.closeBehind(exchange);
    if (hasBody) {
      const awaitsContinue = isAsking && request.httpVersion === "1.1";
      if (awaitsContinue) exchange.mayOverlap = false;
      const body = new ClientBody(
        request,
        sizeBytes,
        this.#limits.bodyBytes,
        awaitsContinue ? () => response.writeContinue() : null,
      );
      exchange.body = exchange.clientBody = body;
    }
    const target = canonicalTarget(request.url!, this.#targetOptions);
    if (!target.ok) {
      exchange.refuse(new GatewayError("GW_BAD_TARGET", target.reason), false);
      return;
    }
    if (this.#inFlight >= this.#limits.inFlight) {
      exchange.refuse(this.#overloaded, false);
      return;
    }
    this.#inFlight += 1;
    exchange.isAdmitted = true;
    exchange.target = target;
    exchange.head = { method: exchange.method, target, host: fields.host, headers: request.rawHeaders };
    exchange.headers = this.#forwarded(fields, named, connection, request.httpVersion);
    exchange.sessionPosition = fields.sessionPosition;
    if (connection.isTrusted) exchange.peer = this.#clientBehind(fields.forwardedFor, connection.peer);
    if (connection.exchanges.length === 1) exchange.begin();
    else connection.advance();
  }

  #forwarded(
    fields: ClientFields,
    named: ReadonlySet<string> | null,
    connection: Connection,
    version: string,
  ): RawHeaders {
    const by: Forwarding = {
      peer: connection.peer,
      isTrusted: connection.isTrusted,
      proto: connection.proto,
      version,
      authority: fields.hosts === 0 ? authorityOf(connection.socket) : "",
    };
    return forwardedHeaders(fields, named, by);
  }

  /** The nearest address that no trusted proxy vouches for any more. */
  #clientBehind(forwardedFor: string, peer: string): string {
    let client = peer;
    const hops = forwardedFor.split(",");
    for (let i = hops.length - 1; i >= 0; i--) {
      const hop = plainAddress(hops[i]!.trim());
      if (!ipaddr.isValid(hop)) break;
      client = hop;
      if (!this.#isTrusted(hop)) break;
    }
    return client;
  }

  serve(exchange: FrontExchange): void {
    void this.#serve(exchange);
  }

  async #serve(exchange: FrontExchange): Promise<void> {
    let account = noAccount;
    try {
      account = await this.#options.service.handle(exchange);
      if (!exchange.reply.isTaken && !exchange.isGone()) exchange.reply.giveUp(defect(undefined));
    } catch (cause) {
      exchange.reply.giveUp(defect(cause));
    }
    exchange.served(account);
  }

  answered(exchange: FrontExchange): void {
    const { connection } = exchange;
    connection.remove(exchange);
    if (connection.isOver) return;
    // Also while it is closing: whoever came before a request that was refused for good is still to be served.
    if (connection.exchanges.length > 0) connection.advance();
    else if (connection.isClosing) return;
    else if (connection.fault !== null) this.#refuseConnection(connection, connection.fault);
  }

  over(exchange: FrontExchange): void {
    if (exchange.isAdmitted) this.#inFlight -= 1;
    const { account, reply } = exchange;
    this.#options.events.tell({
      type: "request",
      rule: account.rule,
      mode: account.mode,
      method: exchange.method,
      path: exchange.isAdmitted ? exchange.target.path : pathOf(exchange.request.url ?? ""),
      status: reply.status,
      code: reply.code,
      outcome: reply.outcome,
      position: account.position,
      replica: account.replica,
      durationMs: this.now() - exchange.startedMs,
      peer: exchange.peer,
    });
  }

  // --- upgrades

  /** http-proxy closes the client's socket with an error's words: they name what is behind us, and `ws` throws when they are longer than 123 bytes. */
  #toCopy(socket: Socket, { origin }: URL): Socket {
    return socket.once("error", (error) => {
      this.#options.events.tell({ type: "warning", about: "upgrade", detail: `${origin}: ${error.message}` });
      error.message = "no connection to a copy";
    });
  }

  async #upgrade(request: IncomingMessage, socket: Socket, first: Buffer): Promise<void> {
    socket.on("error", ignore);
    const connection = connectionOf(socket);
    // Answers are still to be written to it by Node, in order: there is no place for this one.
    if (connection === undefined || connection.isClosing || connection.exchanges.length > 0) {
      socket.destroy();
      return;
    }
    const startedMs = this.now();
    connection.isUpgraded = true;
    const fields = readFields(request.rawHeaders);
    const named = connectionNames(fields.connection);
    const target = canonicalTarget(request.url!, this.#targetOptions);
    const fault =
      headFault(request.method!, request.url!, request.httpVersion, fields, named, this.#limits) ??
      (target.ok ? null : new GatewayError("GW_BAD_TARGET", target.reason)) ??
      (this.isDraining
        ? new GatewayError("GW_STOPPING", "no upgrade is begun any more")
        : webSocketFault(request, fields));
    if (fault !== null || !target.ok) {
      this.#refuseConnection(connection, fault!, request);
      return;
    }
    const peer = connection.isTrusted ? this.#clientBehind(fields.forwardedFor, connection.peer) : connection.peer;
    const head = { method: "GET", target, host: fields.host, headers: request.rawHeaders };
    const where = await this.#options.service.upgrade(head, peer).catch(defect);
    if (socket.destroyed) return;
    if (where instanceof GatewayError) {
      this.#refuseConnection(connection, where, request);
      return;
    }
    const headers = this.#forwarded(fields, named, connection, request.httpVersion);
    this.#webSockets.serve(request, socket, first, { url: where.url, target: target.target, headers });
    this.#options.events.tell({
      type: "request",
      rule: noAccount.rule,
      mode: "only-once",
      method: "GET",
      path: target.path,
      status: 101,
      code: null,
      outcome: null,
      position: null,
      replica: where.replica,
      durationMs: this.now() - startedMs,
      peer,
    });
  }
}

/** What RFC 6455 4.2.1 asks of the opening handshake; anything else that wants to switch protocols (h2c) is refused. */
function webSocketFault(request: IncomingMessage, fields: ClientFields): GatewayError | null {
  if (fields.upgrade.trim().toLowerCase() !== "websocket")
    return noUpgrade("only upgrades to websocket can be forwarded");
  if (request.method !== "GET" || request.httpVersion !== "1.1")
    return noUpgrade("a WebSocket is opened by GET and HTTP/1.1");
  if (fields.transferEncodings > 0 || !/^0*$/.test(fields.contentLength))
    return noUpgrade("a WebSocket's opening request has no body");
  if (!/^[+/0-9A-Za-z]{22}==$/.test(fields.websocketKey)) return noUpgrade("Sec-WebSocket-Key is missing or malformed");
  if (fields.websocketVersion !== "13") return noUpgrade("only version 13 of the WebSocket protocol is spoken");
  if (!/^[!#$%&'*+\-.^_`|~0-9A-Za-z, \t]*$/.test(fields.websocketProtocols))
    return noUpgrade("Sec-WebSocket-Protocol is malformed");
  return null;
}

const noUpgrade = (message: string): GatewayError => new GatewayError("GW_UPGRADE_REFUSED", message);

/** Nothing moved on a connection for `timeouts.idleMs`, or for `keepAliveMs` between requests. */
function onSilence(socket: Socket): void {
  const connection = connectionOf(socket);
  if (connection === undefined || connection.isUpgraded) return;
  // A client that does not read its answer. Otherwise the backend is the silent one, and has a deadline of its own.
  if (connection.exchanges.length === 0 || socket.writableLength > 0) {
    socket.destroy();
    return;
  }
  for (const exchange of connection.exchanges) {
    if (exchange.clientBody?.isWaiting === true) {
      exchange.failBody(new GatewayError("GW_REQUEST_TIMEOUT", "the body stopped coming"));
    }
  }
}

const ignore = (): void => {};

const defect = (cause: unknown): GatewayError =>
  new GatewayError("GW_INTERNAL", "the request ended without an answer", cause === undefined ? {} : { cause });

/** Without query, and only what looks like a path: the rest may hold anything. */
function pathOf(url: string): string {
  return url.startsWith("/") ? url.slice(0, 256).split(/[?#]/, 1)[0]! : "";
}

/** IPv4 in IPv6's clothes, as dual-stack sockets give it. */
function plainAddress(address: string): string {
  return address.startsWith("::ffff:") && address.includes(".") ? address.slice(7) : address;
}

function authorityOf(socket: Socket): string {
  const address = plainAddress(socket.localAddress ?? "localhost");
  return `${address.includes(":") ? `[${address}]` : address}:${socket.localPort ?? 80}`;
}

function parseNetwork(text: string): Network {
  if (text.includes("/")) return ipaddr.parseCIDR(text);
  const address = ipaddr.process(text);
  return [address, address.kind() === "ipv4" ? 32 : 128];
}
