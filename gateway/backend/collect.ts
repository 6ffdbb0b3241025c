// An exchange whose whole answer is collected, and whose outcome is told as exactly as it is known: an Execution.

import { Exchange } from "./exchange.ts";
import { withoutField } from "./head.ts";
import { TimeoutError } from "./line.ts";
import type { Answer, BackendRequest, Execution } from "./backend.ts";
import type { Lines } from "./exchange.ts";
import type { Head } from "./head.ts";

export class Collect extends Exchange {
  readonly #answerBytesMax: number;
  #resolve: ((execution: Execution) => void) | null;
  #chunk: Buffer | null = null;
  #chunks: Buffer[] | null = null;
  #sizeBytes = 0;
  #isTooLarge = false;
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
    this.#settle({ kind: "broken", status: this.status, isTooLarge: this.#isTooLarge, cause });
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
    this.#isTooLarge = true;
    return new Error(`the answer is larger than ${this.#answerBytesMax} bytes`);
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
