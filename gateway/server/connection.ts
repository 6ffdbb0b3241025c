// One client connection: who is at its other end, which exchanges are under way on it, and how it is closed without losing an answer.
// Pipelined requests are answered in order (Node does that) and, unless all of them are safe, executed one after the other
// (RFC 9112, 9.3.2): a client that sends POST, POST expects them in that order.

import type { IncomingMessage } from "node:http";
import type { Socket } from "node:net";
import type { GatewayError } from "../errors.ts";

const key = Symbol("gateway.connection");

type ConnectionSocket = Socket & { [key]?: Connection };

export const connectionOf = (socket: Socket): Connection | undefined => (socket as ConnectionSocket)[key];

/** An exchange, as its connection sees it. */
export interface Occupant {
  readonly request: IncomingMessage;
  readonly clientBody: { readonly isWaiting: boolean } | null;
  /** May be executed beside others of its connection. */
  readonly mayOverlap: boolean;
  readonly isBegun: boolean;
  begin(): void;
  failBody(error: GatewayError): void;
  gone(): void;
}

export interface ConnectionFacts {
  /** Address of the other end. */
  readonly peer: string;
  /** The other end is one of `trustedProxies`. */
  readonly isTrusted: boolean;
  readonly proto: "http" | "https";
}

export class Connection {
  readonly socket: Socket;
  readonly peer: string;
  readonly isTrusted: boolean;
  readonly proto: "http" | "https";
  /** In order of arrival, until their answers are out. */
  readonly exchanges: Occupant[] = [];
  /** Its last answer is being written, or it is gone: what arrives now is not looked at. */
  isClosing = false;
  /** Its last answer is out. */
  isOver = false;
  isUpgraded = false;
  /** Behind the exchanges under way the client sent what is no request; it hears so when they are answered. */
  fault: GatewayError | null = null;
  /** Whose answer is the last. */
  #last: Occupant | null = null;

  constructor(socket: Socket, facts: ConnectionFacts) {
    this.socket = socket;
    this.peer = facts.peer;
    this.isTrusted = facts.isTrusted;
    this.proto = facts.proto;
    (socket as ConnectionSocket)[key] = this;
  }

  /** The connection ends with this one's answer; those before it are answered still, in order. */
  closeBehind(exchange: Occupant): void {
    this.isClosing = true;
    const { exchanges } = this;
    if (this.#last === null || exchanges.indexOf(exchange) < exchanges.indexOf(this.#last)) this.#last = exchange;
  }

  /** Starts whatever may run now. */
  advance(): void {
    const { exchanges } = this;
    for (let i = 0; i < exchanges.length; i++) {
      const exchange = exchanges[i]!;
      if (!exchange.isBegun) {
        if (i > 0 && !exchange.mayOverlap) return;
        exchange.begin();
      }
      if (!exchange.mayOverlap || exchange === this.#last) return;
    }
  }

  /** The answer is out. */
  remove(exchange: Occupant): void {
    const at = this.exchanges.indexOf(exchange);
    if (at !== -1) this.exchanges.splice(at, 1);
    // Behind the last answer nothing begins any more, whatever was there before it was known to be the last.
    if (exchange === this.#last) this.isOver = true;
  }

  /** The socket is closed: whoever still works for it may stop. */
  gone(): void {
    this.isClosing = true;
    for (const exchange of this.exchanges.splice(0)) exchange.gone();
  }
}

/** What a client still sends is read and dropped for so long, so that it gets to read our answer. */
const lingerMs = 3_000;

/**
 * Closes after what was written is out, in a way that does not destroy it: closing a socket with unread bytes sends a reset, and a
 * client's kernel then throws away the answer it has not read yet (RFC 9112, 9.6).
 */
export function closeSoftly(socket: Socket): void {
  if (socket.destroyed) return;
  // The parser must not see the rest: it may be half a body, or anything.
  socket.removeAllListeners("data");
  socket.removeAllListeners("end");
  socket.on("data", drop);
  socket.on("error", drop);
  socket.end();
  socket.resume();
  const timer = setTimeout(() => socket.destroy(), lingerMs);
  socket.once("close", () => clearTimeout(timer));
}

/** Node calls `destroySoon` after an answer with `Connection: close`. */
export function closeSoftlyAfterAnswer(socket: Socket): void {
  socket.destroySoon = closeThisSoftly;
}

function closeThisSoftly(this: Socket): void {
  closeSoftly(this);
}

const drop = (): void => {};
