// An exchange whose answer passes through to a sink as it comes, no faster than the sink takes it.

import { Exchange } from "./exchange.ts";
import { TimeoutError } from "./line.ts";
import type { BackendRequest, StreamHandle, StreamSink } from "./backend.ts";
import type { Lines } from "./exchange.ts";
import type { Head } from "./head.ts";

export class Pass extends Exchange implements StreamHandle {
  readonly #sink: StreamSink;
  #hasDrained = false;

  constructor(
    lines: Lines,
    request: BackendRequest,
    sink: StreamSink,
    limits: { readonly firstByteMs: number; readonly idleMs: number },
  ) {
    super(lines, request, limits.firstByteMs, limits.idleMs);
    this.#sink = sink;
  }

  protected get isOver(): boolean {
    return this.isSettled;
  }

  abort(reason: Error): void {
    if (!this.isSettled) this.cut(reason);
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
    this.isPaused = true;
    // While the client does not read, the backend is not late.
    this.deadlineMs = Infinity;
  }

  #resume(): void {
    this.#hasDrained = true;
    if (!this.isPaused || this.isSettled) return;
    this.deadlineMs = performance.now() + this.idleMs;
    this.resumeReading();
  }

  protected onWhole(trailers: readonly string[]): void {
    this.isSettled = true;
    this.#sink.end(trailers);
  }

  protected onBroken(cause: Error): void {
    this.fail(cause);
  }

  protected fail(cause: Error): void {
    if (this.isSettled) return;
    this.isSettled = true;
    this.#sink.fail(cause, this.isStarted);
  }
}
