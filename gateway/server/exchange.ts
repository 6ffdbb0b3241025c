// The front's side of one exchange: what it knows of the request, and the two ends it waits for: the flow's, and the answer's.

import { GatewayError } from "../errors.ts";
import { noBody } from "./body.ts";
import { closeSoftlyAfterAnswer } from "./connection.ts";
import { isSafeMethod } from "./problem.ts";
import { ClientReply } from "./reply.ts";
import type { IncomingMessage, ServerResponse } from "node:http";
import type { RequestHead } from "../../rules/match.ts";
import type { CanonicalTarget } from "../../rules/target.ts";
import type { RawHeaders } from "../entry.ts";
import type { Account, Exchange, RequestBody } from "../exchange.ts";
import type { ClientBody } from "./body.ts";
import type { Connection } from "./connection.ts";

/** What an exchange needs of the front. */
export interface Desk {
  readonly isDraining: boolean;
  now(): number;
  /** Hands it to the flow. */
  serve(exchange: FrontExchange): void;
  /** The answer is out, or will not get out. */
  answered(exchange: FrontExchange): void;
  /** The flow is done with it too. */
  over(exchange: FrontExchange): void;
}

export const noAccount: Account = Object.freeze({ rule: "-", mode: "none", position: null, replica: null });

/** So much of an unread body is worth reading to keep a connection. */
const dumpBytesMax = 64 * 1024;

export class FrontExchange implements Exchange {
  readonly connection: Connection;
  readonly request: IncomingMessage;
  readonly reply: ClientReply;
  readonly method: string;
  /** Safe, and not waiting for 100 Continue: Node puts the head of an answer that waits its turn before a 100 that was written for it. */
  mayOverlap: boolean;
  readonly startedMs: number;
  target!: CanonicalTarget;
  head!: RequestHead;
  headers!: RawHeaders;
  sessionPosition: string | null = null;
  peer: string;
  body: RequestBody = noBody;
  clientBody: ClientBody | null = null;
  account: Account = noAccount;
  /** Counted against limits.inFlight. */
  isAdmitted = false;
  /** The flow has it, or it was refused. */
  isBegun = false;
  /** Whatever the answer, the connection ends with it. */
  #mustClose = false;
  readonly #desk: Desk;
  #isGone = false;
  #isAnswered = false;
  #isServed = false;
  #listeners: (() => void)[] | null = null;

  constructor(desk: Desk, connection: Connection, request: IncomingMessage, response: ServerResponse) {
    this.#desk = desk;
    this.connection = connection;
    this.request = request;
    this.method = request.method ?? "";
    this.mayOverlap = isSafeMethod(this.method);
    this.peer = connection.peer;
    this.startedMs = desk.now();
    this.reply = new ClientReply(this, response);
  }

  isGone(): boolean {
    return this.#isGone;
  }

  onGone(listener: () => void): void {
    if (this.#isAnswered) return;
    if (this.#isGone) listener();
    else (this.#listeners ??= []).push(listener);
  }

  begin(): void {
    this.isBegun = true;
    this.#desk.serve(this);
  }

  /** The front's own answer: the flow never hears of the request. `isFinal`: nothing behind it on the connection can be trusted. */
  refuse(error: GatewayError, isFinal: boolean): void {
    this.isBegun = true;
    this.#isServed = true;
    this.#mustClose = isFinal;
    this.reply.problem(error, none);
  }

  /** The rest of the body will not come. */
  failBody(error: GatewayError): void {
    this.clientBody?.fail(error);
  }

  /** Asked when the answer's head is written. */
  closesConnection(): boolean {
    const { connection, clientBody } = this;
    let isSoft = this.#mustClose;
    if (clientBody !== null && !clientBody.isWhole) {
      isSoft ||= clientBody.hasFailed || clientBody.isAwaitingContinue || clientBody.missingBytes > dumpBytesMax;
    }
    if (isSoft) closeSoftlyAfterAnswer(connection.socket);
    else if (!this.#desk.isDraining) return false;
    connection.closeBehind(this);
    return true;
  }

  /** The answer is with the operating system. */
  answered(): void {
    if (this.#isAnswered || this.#isGone) return;
    this.#isAnswered = true;
    this.#listeners = null;
    if (this.clientBody !== null && !this.clientBody.isWhole) this.#dropBody();
    this.#desk.answered(this);
    if (this.#isServed) this.#desk.over(this);
  }

  /** The flow has returned. */
  served(account: Account): void {
    this.account = account;
    this.#isServed = true;
    if (this.#isAnswered || this.#isGone) this.#desk.over(this);
  }

  gone(): void {
    if (this.#isAnswered || this.#isGone) return;
    this.#isGone = true;
    this.clientBody?.fail(new GatewayError("GW_BAD_REQUEST", "the client closed the connection within its request"));
    const listeners = this.#listeners;
    this.#listeners = null;
    if (listeners !== null) for (const listener of listeners) listener();
    // Never handed to the flow: nothing more will come of it.
    if (!this.isBegun) this.#isServed = this.isBegun = true;
    if (this.#isServed) this.#desk.over(this);
  }

  /** Lets the next request on the connection through. */
  #dropBody(): void {
    this.clientBody?.abandon();
    this.request.resume();
  }
}

const none: RawHeaders = Object.freeze([]);
