// One request and its answer on a connection of undici, told in callbacks: `Collect` makes an Execution of it, `Pass` feeds a sink.
// What undici gives, read in its 7.30 source and pinned by test/gateway/backend/http.test.ts:
// - `onRequestStart` comes in the same call as the first write. Before it not a byte was written; throwing in it keeps it so.
// - after it, exactly one of `onResponseEnd` and `onResponseError` comes, whatever happens to the connection.

import { readHead, readTrailers, withoutField } from "./head.ts";
import { TimeoutError } from "./line.ts";
import { Source } from "./source.ts";
import type { Dispatcher } from "undici";
import type { Answer, BackendRequest, Execution, StreamSink } from "./backend.ts";
import type { Timed } from "./deadlines.ts";
import type { Head } from "./head.ts";
import type { Line } from "./line.ts";
import type { Progress } from "./source.ts";

/** What an exchange needs of its backend. */
export interface Lines {
  readonly idleMs: number;
  /** The exchange will hear nothing more from undici: its line is free. */
  onEnd(exchange: Exchange): void;
  onLate(exchange: Exchange): void;
  /** It was settled before it was sent, and will not be sent. */
  onWithdrawn(exchange: Exchange): void;
}

/** Final heads are preceded by one or two of these; a stream of them would never end. */
const informationalMax = 16;

/** Not sent, and never will be: thrown in `onRequestStart`, which is the only way to keep undici from writing. */
const withdrawn = new Error("the request was withdrawn before it was sent");

export abstract class Exchange implements Dispatcher.DispatchHandler, Timed, Progress {
  readonly request: BackendRequest;
  readonly source: Source | null;
  deadlineMs: number;
  /** Set when it is given to undici. */
  line: Line | null = null;
  /** We closed the connection: what the line would do next is of no use. */
  isCut = false;
  protected readonly lines: Lines;
  protected readonly firstByteMs: number;
  protected readonly idleMs: number;
  protected startedMs = 0;
  protected controller: Dispatcher.DispatchController | null = null;
  protected head: Head | null = null;
  protected status = 0;
  /** The caller knows the outcome, or knows that it is late. */
  protected isSettled = false;
  #informational = 0;
  #hasEnded = false;

  constructor(lines: Lines, request: BackendRequest, firstByteMs: number, idleMs: number) {
    this.lines = lines;
    this.request = request;
    this.firstByteMs = firstByteMs;
    this.idleMs = idleMs;
    this.source = request.body === null || Buffer.isBuffer(request.body) ? null : new Source(request.body, this);
    // Until it is sent this bounds the wait for a connection.
    this.deadlineMs = performance.now() + firstByteMs;
  }

  /** False is certain: not a byte was handed to a connection. */
  get isStarted(): boolean {
    return this.startedMs !== 0 && (this.source === null || !this.source.isUntouched);
  }

  onRequestStart(controller: Dispatcher.DispatchController): void {
    if (this.isSettled) throw withdrawn;
    this.controller = controller;
    this.startedMs = performance.now();
    this.deadlineMs = this.startedMs + (this.source === null ? this.firstByteMs : this.idleMs);
  }

  onProgress(): void {
    if (this.head === null && this.controller !== null) this.deadlineMs = performance.now() + this.idleMs;
  }

  onBodyEnd(): void {
    if (this.head === null) this.deadlineMs = performance.now() + this.firstByteMs;
  }

  onResponseStart(controller: Dispatcher.DispatchController, status: number): void {
    if (status < 200) {
      if (++this.#informational > informationalMax) this.cut(new Error("the backend sends 1xx heads without end"));
      return;
    }
    this.status = status;
    this.head = readHead(controller.rawHeaders as Buffer[]);
    this.deadlineMs = performance.now() + this.idleMs;
    const hasBody = this.request.method !== "HEAD" && status !== 204 && status !== 304;
    if (hasBody && this.head.framing === "unreadable") {
      this.cut(new Error("the answer's transfer coding is not chunked"));
      return;
    }
    this.onHead(this.head, hasBody);
  }

  onResponseData(_controller: Dispatcher.DispatchController, chunk: Buffer): void {
    this.deadlineMs = performance.now() + this.idleMs;
    this.onChunk(chunk);
  }

  onResponseEnd(controller: Dispatcher.DispatchController): void {
    if (!this.isOver) {
      // undici ends a close-delimited body on a reset as on an orderly end. The one is a cut, the other all the framing there is.
      if (this.line?.isResetting === true) this.onBroken(new Error("the connection was reset in the answer's body"));
      else this.onWhole(readTrailers(controller.rawTrailers as Buffer[] | null));
    }
    this.#end();
  }

  onResponseError(_controller: Dispatcher.DispatchController, error: Error): void {
    this.fail(error);
    this.#end();
  }

  /** Closes the connection; what the caller is told follows from how far the exchange had come. */
  cut(cause: Error): void {
    this.fail(cause);
    if (this.controller !== null) {
      this.isCut = true;
      this.controller.abort(cause);
    } else {
      this.source?.stop(cause);
      this.lines.onWithdrawn(this);
    }
  }

  /** The caller has got all it will get. */
  protected abstract get isOver(): boolean;
  abstract expire(nowMs: number): void;
  protected abstract onHead(head: Head, hasBody: boolean): void;
  protected abstract onChunk(chunk: Buffer): void;
  protected abstract onWhole(trailers: readonly string[]): void;
  protected abstract onBroken(cause: Error): void;
  protected abstract fail(cause: Error): void;

  #end(): void {
    if (this.#hasEnded) return;
    this.#hasEnded = true;
    this.source?.stop(withdrawn);
    this.lines.onEnd(this);
  }
}

export class Collect extends Exchange {
  readonly #answerBytesMax: number;
  #resolve: ((execution: Execution) => void) | null;
  #chunk: Buffer | null = null;
  #chunks: Buffer[] | null = null;
  #sizeBytes = 0;
  /** A body that is a stream was handed over to its end. */
  #isSent = false;

  constructor(
    lines: Lines,
    request: BackendRequest,
    limits: { readonly firstByteMs: number; readonly answerBytesMax: number },
    resolve: (execution: Execution) => void,
  ) {
    super(lines, request, limits.firstByteMs, lines.idleMs);
    this.#answerBytesMax = limits.answerBytesMax;
    this.#resolve = resolve;
  }

  protected get isOver(): boolean {
    return this.#resolve === null;
  }

  expire(): void {
    if (this.startedMs === 0) this.cut(new TimeoutError("no connection became free in time"));
    else if (this.head !== null) this.cut(new TimeoutError("the answer's body stopped coming"));
    else if (this.source !== null && !this.#isSent) this.cut(new TimeoutError("the request's body stopped moving"));
    else this.#becomeLate();
  }

  override onBodyEnd(): void {
    this.#isSent = true;
    super.onBodyEnd();
  }

  #becomeLate(): void {
    const resolve = this.#resolve;
    if (resolve === null) return;
    // For the head; a body that begins late and stops is still cut.
    this.deadlineMs = Infinity;
    this.isSettled = true;
    const late = new Promise<Execution>((resolveLate) => (this.#resolve = resolveLate));
    this.lines.onLate(this);
    resolve({
      kind: "unknown",
      reason: "timeout",
      cause: new TimeoutError("the backend did not answer in time"),
      late,
    });
  }

  protected onHead(head: Head, hasBody: boolean): void {
    if (!hasBody) {
      // undici takes a 304 or 204 that names a Content-Length for a cut body: nothing more can come, so it is whole now.
      if (this.request.method !== "HEAD") this.onWhole([]);
    } else if (head.contentLength > this.#answerBytesMax) this.cut(this.#tooLarge());
  }

  protected onChunk(chunk: Buffer): void {
    this.#sizeBytes += chunk.length;
    if (this.#sizeBytes > this.#answerBytesMax) this.cut(this.#tooLarge());
    else if (this.#chunk === null) this.#chunk = chunk;
    else (this.#chunks ??= [this.#chunk]).push(chunk);
  }

  protected onWhole(trailers: readonly string[]): void {
    const head = this.head;
    if (head === null) return;
    const answer: Answer = {
      status: this.status,
      headers: head.hasTrailerField && trailers.length === 0 ? withoutField(head.headers, "trailer") : head.headers,
      body: this.#chunks === null ? (this.#chunk ?? empty) : Buffer.concat(this.#chunks, this.#sizeBytes),
      trailers,
    };
    const tookMs = performance.now() - this.startedMs;
    const isClose =
      head.framing === "close" && this.request.method !== "HEAD" && this.status !== 204 && this.status !== 304;
    this.#settle(isClose ? { kind: "done", answer, tookMs, isCloseDelimited: true } : { kind: "done", answer, tookMs });
  }

  protected onBroken(cause: Error): void {
    this.#settle({ kind: "broken", status: this.status, cause });
  }

  protected fail(cause: Error): void {
    if (this.#resolve === null) return;
    if (!this.isStarted) this.#settle({ kind: "not-started", cause });
    else if (this.head !== null || isUnreadableHead(cause)) this.onBroken(cause);
    else this.#settle({ kind: "unknown", reason: "closed", cause, late: null });
  }

  #settle(execution: Execution): void {
    const resolve = this.#resolve;
    this.#resolve = null;
    this.isSettled = true;
    this.#chunk = this.#chunks = null;
    resolve?.(execution);
  }

  #tooLarge(): Error {
    return new Error(`the answer is larger than ${this.#answerBytesMax} bytes`);
  }
}

export class Pass extends Exchange {
  readonly #sink: StreamSink;
  readonly #signal: AbortSignal;
  #isPaused = false;
  #hasDrained = false;

  constructor(
    lines: Lines,
    request: BackendRequest,
    sink: StreamSink,
    limits: { readonly firstByteMs: number; readonly idleMs: number },
    signal: AbortSignal,
  ) {
    super(lines, request, limits.firstByteMs, limits.idleMs);
    this.#sink = sink;
    this.#signal = signal;
    signal.addEventListener("abort", this);
  }

  protected get isOver(): boolean {
    return this.isSettled;
  }

  /** The signal aborted. */
  handleEvent(): void {
    const reason: unknown = this.#signal.reason;
    this.cut(reason instanceof Error ? reason : new Error("the request was aborted", { cause: reason }));
  }

  expire(): void {
    this.cut(
      new TimeoutError(
        this.startedMs === 0 ? "no connection became free in time" : "the backend did not answer in time",
      ),
    );
  }

  protected onHead(head: Head, hasBody: boolean): void {
    if (this.isSettled) return;
    this.#sink.onDrain(() => this.#resume());
    if (!this.#sink.head(this.status, head.headers)) this.cut(new Error("the answer's head was refused"));
    else if (!hasBody && this.request.method !== "HEAD") this.onWhole([]);
  }

  protected onChunk(chunk: Buffer): void {
    if (this.isSettled) return;
    this.#hasDrained = false;
    if (this.#sink.data(chunk) || this.#hasDrained) return;
    this.#isPaused = true;
    // While the client does not read, the backend is not late.
    this.deadlineMs = Infinity;
    this.controller?.pause();
  }

  #resume(): void {
    this.#hasDrained = true;
    if (!this.#isPaused || this.isSettled) return;
    this.#isPaused = false;
    this.deadlineMs = performance.now() + this.idleMs;
    this.controller?.resume();
  }

  protected onWhole(trailers: readonly string[]): void {
    this.#settle();
    this.#sink.end(trailers);
  }

  protected onBroken(cause: Error): void {
    this.fail(cause);
  }

  protected fail(cause: Error): void {
    if (this.isSettled) return;
    this.#settle();
    this.#sink.fail(cause, this.isStarted);
  }

  #settle(): void {
    this.isSettled = true;
    this.#signal.removeEventListener("abort", this);
  }
}

const empty = Buffer.alloc(0);

/**
 * A status line came, then header fields that cannot be read (too large, two framings, a bad character): the backend has answered. Anything
 * else before a whole head may be the rest of an earlier answer on the connection, and proves nothing. llhttp's reasons reach us as text only;
 * one that is not recognised is taken for the latter.
 */
function isUnreadableHead(cause: Error): boolean {
  if (!("code" in cause)) return false;
  if (cause.code === "UND_ERR_HEADERS_OVERFLOW" || cause.code === "UND_ERR_RES_CONTENT_LENGTH_MISMATCH") return true;
  return cause.name === "HTTPParserError" && /\(.*(header|content-length|transfer-encoding).*\)/i.test(cause.message);
}
