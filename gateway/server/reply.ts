// The three ways an exchange is answered, over Node's response: a whole answer, a problem, or a stream with backpressure.
// A backend's fields go out as they came; Node adds `Connection` and, where no length is known, chunks. No `Date` is made up for a backend.

import { STATUS_CODES } from "node:http";
import { GatewayError } from "../errors.ts";
import { answerFields, fieldOf } from "./fields.ts";
import { problemOf } from "./problem.ts";
import type { ServerResponse } from "node:http";
import type { Socket } from "node:net";
import type { StreamSink } from "../backend/backend.ts";
import type { Answer, RawHeaders } from "../entry.ts";
import type { Outcome } from "../errors.ts";
import type { Reply } from "../exchange.ts";
import type { AnswerFraming } from "./fields.ts";

/** What a reply needs of its exchange. */
export interface ReplyOwner {
  readonly method: string;
  isGone(): boolean;
  closesConnection(): boolean;
  answered(): void;
}

type OwnedResponse = ServerResponse & { gatewayReply?: ClientReply };

/** Clients that left before they were answered, in the access log (nginx has made it known). */
const clientGone = 499;

export class ClientReply implements Reply {
  /** As told to the client; 499 when it left before. */
  status = clientGone;
  code: string | null = null;
  outcome: Outcome | null = null;
  readonly #owner: ReplyOwner;
  readonly #response: OwnedResponse;
  /** One of the three was called. */
  #isTaken = false;
  #stream: AnswerStream | null = null;

  constructor(owner: ReplyOwner, response: ServerResponse) {
    this.#owner = owner;
    this.#response = response;
    this.#response.gatewayReply = this;
    response.on("finish", onFinish);
  }

  get isTaken(): boolean {
    return this.#isTaken;
  }

  answer(answer: Answer, extra: RawHeaders): void {
    this.#take();
    if (this.#owner.isGone()) return;
    const { status, body, trailers } = answer;
    const hasBody = this.hasBody(status);
    const framing: AnswerFraming = !hasBody
      ? { kind: "none", status }
      : trailers.length > 0 && this.canChunk
        ? { kind: "chunked" }
        : { kind: "sized", sizeBytes: body.length };
    if (!this.writeHead(status, answerFields(answer.headers, framing, extra).headers, extra)) return;
    const response = this.#response;
    if (framing.kind === "chunked") response.addTrailers(pairsOf(trailers));
    if (hasBody && body.length > 0) response.end(body);
    else response.end();
  }

  problem(error: GatewayError, extra: RawHeaders): void {
    this.#take();
    this.writeProblem(error, extra);
  }

  stream(extra: (status: number) => RawHeaders): StreamSink {
    this.#take();
    this.#stream = new AnswerStream(this, this.#owner, this.#response, extra);
    return this.#stream;
  }

  /** The flow broke its promise: it rejected, or returned without an answer. */
  giveUp(error: GatewayError): void {
    if (!this.#isTaken) this.problem(error, []);
    else this.#stream?.fail(error, true);
  }

  get canChunk(): boolean {
    return this.#response.req.httpVersionMinor === 1;
  }

  hasBody(status: number): boolean {
    return this.#owner.method !== "HEAD" && status !== 204 && status !== 304;
  }

  /** False: the head cannot be written, a problem went out in its place. */
  writeHead(status: number, headers: string[], extra: RawHeaders): boolean {
    const response = this.#response;
    response.sendDate = false;
    if (this.#owner.closesConnection()) response.shouldKeepAlive = false;
    // HTTP/1.0 clients can ask Node for chunks with `TE: chunked`; whether they can read them nobody knows.
    if (!this.canChunk) response.useChunkedEncodingByDefault = false;
    this.outcome = fieldOf(extra, "replication-outcome") as Outcome | null;
    try {
      response.writeHead(status, STATUS_CODES[status] ?? "", headers);
    } catch (cause) {
      // A field that may not be written (a control character), or a status beyond 999.
      this.writeProblem(
        new GatewayError("GW_BACKEND_FAILED", "the backend's answer has a head that cannot be passed on", { cause }),
        extra,
      );
      return false;
    }
    this.status = status;
    return true;
  }

  writeProblem(error: GatewayError, extra: RawHeaders): void {
    const problem = problemOf(error, this.#owner.method, extra);
    this.status = problem.status;
    this.code = error.code;
    this.outcome = problem.outcome;
    const response = this.#response;
    if (this.#owner.isGone() || response.destroyed) return;
    response.sendDate = true;
    if (this.#owner.closesConnection()) response.shouldKeepAlive = false;
    response.writeHead(problem.status, STATUS_CODES[problem.status] ?? "", problem.headers);
    response.end(problem.body);
  }

  finished(): void {
    this.#owner.answered();
  }

  drained(): void {
    this.#stream?.drained();
  }

  #take(): void {
    if (this.#isTaken) throw new Error("the exchange was answered twice");
    this.#isTaken = true;
  }
}

function onFinish(this: OwnedResponse): void {
  this.gatewayReply!.finished();
}

function onDrain(this: OwnedResponse): void {
  this.gatewayReply!.drained();
}

function pairsOf(raw: RawHeaders): [string, string][] {
  const pairs: [string, string][] = [];
  for (let i = 0; i + 1 < raw.length; i += 2) pairs.push([raw[i]!, raw[i + 1]!]);
  return pairs;
}

/** Bytes as they come. When the backend fails behind its head the connection is cut: a cut answer must not look whole. */
class AnswerStream implements StreamSink {
  readonly #reply: ClientReply;
  readonly #owner: ReplyOwner;
  readonly #response: ServerResponse;
  readonly #extra: (status: number) => RawHeaders;
  #resume: (() => void) | null = null;
  #hasHead = false;
  #hasBody = true;
  #hasWritten = false;
  #isOver = false;
  #hearsDrain = false;
  /** By Content-Length; −1: unknown. */
  #expectedBytes = -1;
  #sentBytes = 0;

  constructor(reply: ClientReply, owner: ReplyOwner, response: ServerResponse, extra: (status: number) => RawHeaders) {
    this.#reply = reply;
    this.#owner = owner;
    this.#response = response;
    this.#extra = extra;
  }

  head(status: number, headers: RawHeaders): boolean {
    if (this.#isOver || this.#owner.isGone() || this.#hasHead) return false;
    const reply = this.#reply;
    this.#hasBody = reply.hasBody(status);
    const framing: AnswerFraming = !this.#hasBody
      ? { kind: "none", status }
      : reply.canChunk && fieldOf(headers, "trailer") !== null
        ? { kind: "chunked" }
        : { kind: "open" };
    const extra = this.#extra(status);
    const fields = answerFields(headers, framing, extra);
    this.#hasHead = true;
    if (!reply.writeHead(status, fields.headers, extra)) {
      this.#isOver = true;
      return false;
    }
    if (this.#hasBody) this.#expectedBytes = fields.contentLength;
    // A small answer's body comes in this very tick and shares its packet; an event stream's head must not wait for an event.
    process.nextTick(flushHead, this);
    return true;
  }

  data(chunk: Buffer): boolean {
    if (this.#isOver || this.#owner.isGone()) return false;
    if (!this.#hasBody || chunk.length === 0) return true;
    this.#sentBytes += chunk.length;
    if (this.#expectedBytes !== -1 && this.#sentBytes > this.#expectedBytes) {
      this.#cut();
      return false;
    }
    this.#hasWritten = true;
    if (this.#response.write(chunk)) return true;
    if (!this.#hearsDrain) {
      this.#hearsDrain = true;
      this.#response.on("drain", onDrain);
    }
    return false;
  }

  end(trailers: RawHeaders): void {
    if (this.#isOver) return;
    if (!this.#hasHead) {
      this.fail(new Error("the answer ended before its head"), true);
      return;
    }
    if (this.#owner.isGone()) return;
    if (this.#expectedBytes !== -1 && this.#sentBytes !== this.#expectedBytes) {
      this.#cut();
      return;
    }
    this.#isOver = true;
    if (trailers.length > 0 && this.#response.chunkedEncoding) this.#response.addTrailers(pairsOf(trailers));
    this.#response.end();
  }

  fail(error: unknown, isStarted: boolean): void {
    if (this.#isOver) return;
    if (this.#hasHead) {
      this.#cut();
      return;
    }
    this.#isOver = true;
    this.#reply.writeProblem(
      error instanceof GatewayError
        ? error
        : new GatewayError(
            isStarted ? "GW_BACKEND_FAILED" : "GW_NO_REPLICA",
            isStarted ? "the backend did not give a whole answer" : "the backend cannot be reached",
            { cause: error },
          ),
      [],
    );
  }

  onDrain(resume: () => void): void {
    this.#resume = resume;
  }

  drained(): void {
    if (!this.#isOver) this.#resume?.();
  }

  flushHead(): void {
    if (!this.#hasWritten && !this.#isOver && !this.#owner.isGone()) this.#response.flushHeaders();
  }

  /** Never a clean end. A body that ends with its connection is only seen to be cut by a reset. */
  #cut(): void {
    this.#isOver = true;
    this.#reply.code = "GW_BACKEND_FAILED";
    const socket: Socket | null = this.#response.socket;
    // Behind others on a pipelined connection: Node destroys it when its turn comes.
    if (socket === null) this.#response.destroy();
    else if (!this.#response.chunkedEncoding && this.#expectedBytes === -1 && !("encrypted" in socket)) {
      socket.resetAndDestroy();
    } else socket.destroy();
  }
}

function flushHead(stream: AnswerStream): void {
  stream.flushHead();
}
