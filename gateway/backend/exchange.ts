// One request and its answer on a connection of undici, told in callbacks: collect.ts makes an Execution of it, pass.ts feeds a sink.
// What undici gives, read in its 7.30 source and pinned by test/gateway/backend/http.test.ts:
// - `onConnect` comes in the same call as the first write. Before it not a byte was written; throwing in it keeps it so.
// - after it, exactly one of `onComplete` and `onError` comes, whatever happens to the connection.
// These are undici 7's own callbacks. Those that it offers instead (`onRequestStart` …) are made of them at the cost of three objects
// and of a decoded copy of every head and trailer, which nobody here looks at.

import { readHead, readTrailers } from "./head.ts";
import { Source } from "./source.ts";
import type { Dispatcher } from "undici";
import { ForbiddenError } from "./backend.ts";
import type { BackendRequest } from "./backend.ts";
import type { Timed } from "../deadlines.ts";
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

/** Not sent, and never will be: thrown in `onConnect`, which is the only way to keep undici from writing. */
const withdrawn = new Error("the request was withdrawn before it was sent");

export abstract class Exchange implements Dispatcher.DispatchHandler, Timed, Progress {
  readonly request: BackendRequest;
  readonly source: Source | null;
  deadlineMs: number;
  place = -1;
  /** Set when it is given to undici. */
  line: Line | null = null;
  /** We closed the connection: what the line would do next is of no use. */
  isCut = false;
  protected readonly lines: Lines;
  protected readonly firstByteMs: number;
  protected readonly idleMs: number;
  protected startedMs = 0;
  protected isPaused = false;
  #abort: ((cause: Error) => void) | null = null;
  #resumeReading: (() => void) | null = null;
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

  onConnect(abort: (cause?: Error) => void): void {
    if (this.isSettled) throw withdrawn;
    if (this.request.mayStart?.() === false) throw new ForbiddenError("the request may not be sent any more");
    this.#abort = abort;
    this.startedMs = performance.now();
    this.deadlineMs = this.startedMs + (this.source === null ? this.firstByteMs : this.idleMs);
  }

  onProgress(): void {
    if (this.head === null && this.#abort !== null) this.deadlineMs = performance.now() + this.idleMs;
  }

  onBodyEnd(): void {
    if (this.head === null) this.deadlineMs = performance.now() + this.firstByteMs;
  }

  /** False: nothing more is read until `resumeReading`. */
  onHeaders(status: number, rawHeaders: readonly Buffer[], resume: () => void): boolean {
    this.#resumeReading = resume;
    if (status < 200) {
      if (++this.#informational > informationalMax) this.cut(new Error("the backend sends 1xx heads without end"));
    } else this.#begin(status, rawHeaders);
    return !this.isPaused;
  }

  onData(chunk: Buffer): boolean {
    this.deadlineMs = performance.now() + this.idleMs;
    this.onChunk(chunk);
    return !this.isPaused;
  }

  #begin(status: number, rawHeaders: readonly Buffer[]): void {
    this.status = status;
    this.head = readHead(rawHeaders);
    this.deadlineMs = performance.now() + this.idleMs;
    const hasBody = this.request.method !== "HEAD" && status !== 204 && status !== 304;
    if (hasBody && this.head.framing === "unreadable") {
      this.cut(new Error("the answer's transfer coding is not chunked"));
      return;
    }
    this.onHead(this.head, hasBody);
  }

  onComplete(rawTrailers: readonly (Buffer | string)[] | null): void {
    if (!this.isOver) {
      // undici ends a close-delimited body on a reset as on an orderly end. The one is a cut, the other all the framing there is.
      if (this.line?.isResetting === true) this.onBroken(new Error("the connection was reset in the answer's body"));
      else this.onWhole(readTrailers(rawTrailers));
    }
    this.#end();
  }

  onError(error: Error): void {
    this.fail(error);
    // A source that failed made undici cut the connection, as `cut` does.
    if (this.source !== null) this.isCut = true;
    this.#end();
  }

  /** Closes the connection; what the caller is told follows from how far the exchange had come. */
  cut(cause: Error): void {
    this.fail(cause);
    if (this.#abort !== null) {
      this.isCut = true;
      this.#abort(cause);
    } else {
      this.source?.stop(cause);
      this.lines.onWithdrawn(this);
    }
  }

  protected resumeReading(): void {
    this.isPaused = false;
    this.#resumeReading?.();
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
