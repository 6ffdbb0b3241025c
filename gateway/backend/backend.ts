// PORT: one copy of the service as a thing that answers requests. Adapter: http.ts (undici).
//
// Law
// - Nothing is ever sent twice here: no retry, no redirect, on no error.
// - `not-started` is certain: not one byte of the request was handed to a connection (refused, unreachable, no free connection in time).
//   Everything else that is not a whole answer is `unknown`.
// - After `first byte` timed out the connection stays open and `late` settles when the backend answers, closes, or `abandon` is called.
// - An answer is whole: framing checked, content-length honoured, not close-delimited garbage. Bad framing closes the connection.

import type { Answer, BodyRef, RawHeaders } from "../entry.ts";

export interface BackendRequest {
  readonly method: string;
  readonly target: string;
  readonly headers: RawHeaders;
  /** Buffer, or a stream that is read once. Null: no body (and no content-length is invented). */
  readonly body: Buffer | AsyncIterable<Buffer> | null;
  readonly trailers: RawHeaders;
  /** Asked when the first byte is about to go out, however long the request waited. False: nothing goes out, `not-started` with ForbiddenError. */
  readonly mayStart?: () => boolean;
}

/** The caller's own word, given after it asked for the execution. */
export class ForbiddenError extends Error {
  override readonly name = "ForbiddenError";
}

export type Execution =
  /**
   * `isCloseDelimited`: the body ended with the connection, in order; no framing says that it is whole (a backend that dies closes too). It may
   * be sent on; it is not kept as a key's final answer unless another copy gave the same.
   */
  | { readonly kind: "done"; readonly answer: Answer; readonly tookMs: number; readonly isCloseDelimited?: true }
  | { readonly kind: "not-started"; readonly cause: unknown }
  /**
   * Something came that cannot be used. Too large: a sound head, so the request was executed. Else garbage or a cut answer, which proves nothing.
   * Status 0: the head itself cannot be read.
   */
  | { readonly kind: "broken"; readonly status: number; readonly isTooLarge: boolean; readonly cause: unknown }
  | {
      readonly kind: "unknown";
      readonly reason: "closed" | "timeout";
      readonly cause: unknown;
      readonly late: Promise<Execution> | null;
    };

export interface StreamSink {
  /** The final answer's head; 1xx are dropped. Returning false refuses it: the connection is closed. */
  head(status: number, headers: RawHeaders): boolean;
  /** False: stop reading until `onDrain` was called. */
  data(chunk: Buffer): boolean;
  end(trailers: RawHeaders): void;
  /** Called once instead of `end`. `isStarted`: the request may have reached the backend. */
  fail(error: unknown, isStarted: boolean): void;
  /** The backend gives its resume function here before the head. */
  onDrain(resume: () => void): void;
}

/** A stream under way. Not an AbortSignal: one of those a request costs more than the request (measured). */
export interface StreamHandle {
  /** Closes the connection; the sink fails with `reason`. Nothing happens when the stream is over. */
  abort(reason: Error): void;
}

export interface Backend {
  /** `http://host:port` */
  readonly url: string;
  /** Sends and collects the whole answer, at most `answerBytesMax`. Resolves, never rejects. */
  execute(
    request: BackendRequest,
    limits: { readonly firstByteMs: number; readonly answerBytesMax: number },
  ): Promise<Execution>;
  /** Sends and passes the answer through with backpressure. */
  stream(
    request: BackendRequest,
    sink: StreamSink,
    limits: { readonly firstByteMs: number; readonly idleMs: number },
  ): StreamHandle;
  /** Tries to connect anew. `reachable`: a TCP connection was accepted. Never sends a request. */
  probe(timeoutMs: number): Promise<"reachable" | "refused" | "timeout">;
  /** Closes idle connections and gives up those with a late answer. */
  abandon(): Promise<void>;
  close(): Promise<void>;
}

export type { Answer, BodyRef, RawHeaders };
