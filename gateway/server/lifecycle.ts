// How the front's server opens and closes. Fastify has the lifecycle (plugins ready, listening, closing); requests do not pass through it.
// Draining: stop accepting, let answers end with `Connection: close`, sweep what is idle again and again (once is not enough: 70 s
// against 0.35 s, measured), and cut what is left at the deadline.

import { createServer as createHttpServer, Server as HttpServer } from "node:http";
import { createServer as createHttpsServer, Server as HttpsServer } from "node:https";
import Fastify from "fastify";
import type { Server, ServerOptions } from "node:http";
import type { Socket } from "node:net";
import type { SecureContextOptions } from "node:tls";
import type { FastifyInstance } from "fastify";
import type { Connection } from "./connection.ts";

export interface FrontTimeouts {
  /** Until a request's head is here. */
  readonly headersMs: number;
  /** Until the whole request is here. */
  readonly requestMs: number;
  /** Longest silence of a client that is expected to send, or to read. */
  readonly idleMs: number;
  /** Of a connection between requests: longer than a balancer keeps its own. */
  readonly keepAliveMs: number;
  /** Of `drain`. */
  readonly shutdownMs: number;
}

export interface FrontTls {
  readonly cert: string;
  readonly key: string;
  /** Who may vouch for clients; then each has to show a certificate. */
  readonly clientCa?: string;
}

const sweepMs = 50;
/** How often Node looks for requests that are late. */
const checkMs = 500;

export function createServerOf(headerBytes: number, timeouts: FrontTimeouts, tls: FrontTls | undefined): Server {
  const options: ServerOptions = {
    insecureHTTPParser: false,
    joinDuplicateHeaders: false,
    // The front's own answer says why.
    requireHostHeader: false,
    maxHeaderSize: headerBytes,
    headersTimeout: timeouts.headersMs,
    requestTimeout: timeouts.requestMs,
    keepAliveTimeout: timeouts.keepAliveMs,
    connectionsCheckingInterval: Math.min(checkMs, timeouts.headersMs),
    noDelay: true,
  };
  const server =
    tls === undefined
      ? createHttpServer(options)
      : createHttpsServer({
          ...options,
          ...contextOf(tls),
          ALPNProtocols: ["http/1.1"],
          handshakeTimeout: timeouts.headersMs,
          ...(tls.clientCa === undefined ? null : { requestCert: true, rejectUnauthorized: true }),
        });
  // Node would drop fields beyond its own number in silence; the front counts and refuses.
  server.maxHeadersCount = 0;
  server.timeout = timeouts.idleMs;
  return server;
}

const contextOf = ({ cert, clientCa, key }: FrontTls): SecureContextOptions => ({
  cert,
  key,
  ...(clientCa === undefined ? null : { ca: clientCa }),
  // Said, because Node's default can be taken back by a flag.
  minVersion: "TLSv1.2",
});

/** For connections from here on; those that are open go on with what they began with. */
export function renewTls(server: Server, tls: FrontTls): void {
  if (server instanceof HttpsServer) server.setSecureContext(contextOf(tls));
}

export function createApp(server: Server, onClientError: (error: Error, socket: Socket) => void): FastifyInstance {
  return Fastify({
    serverFactory: () => server,
    clientErrorHandler: onClientError,
    logger: false,
  });
}

/** Not by the server's own `close`: http-proxy has put one in its place that waits for WebSockets before it stops accepting. */
export function stopAccepting(server: Server, onClosed: () => void): void {
  HttpServer.prototype.close.call(server, onClosed);
}

/** Resolves when every connection is closed; at the deadline they are cut. */
export async function drainServer(
  server: Server,
  connections: ReadonlySet<Connection>,
  deadlineMs: number,
): Promise<void> {
  await new Promise<void>((resolve) => {
    const sweep = setInterval(() => {
      sweepIdle(server, connections);
    }, sweepMs);
    const deadline = setTimeout(() => {
      for (const connection of connections) connection.socket.destroy();
    }, deadlineMs);
    stopAccepting(server, () => {
      clearInterval(sweep);
      clearTimeout(deadline);
      resolve();
    });
    sweepIdle(server, connections);
  });
}

function sweepIdle(server: Server, connections: ReadonlySet<Connection>): void {
  server.closeIdleConnections();
  // To Node a connection that has never sent anything is busy.
  for (const { socket } of connections) if (socket.bytesRead === 0) socket.destroy();
}
