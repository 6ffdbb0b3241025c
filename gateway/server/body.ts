// A client's body on its way in: collected whole up to a limit, or read as a stream, with the socket paused while nobody reads.
// Nothing is read from the client before somebody asks, and 100 Continue is sent then, not earlier.

import { GatewayError } from "../errors.ts";
import type { IncomingMessage } from "node:http";
import type { RawHeaders } from "../entry.ts";
import type { RequestBody } from "../exchange.ts";

/** Read ahead of a stream's reader; more stays in the socket. */
const aheadBytes = 128 * 1024;

const nothing: RawHeaders = Object.freeze([]);
const empty = Buffer.alloc(0);
const wholeOfNothing = Promise.resolve(empty);

/** Of requests without a body: costs nothing. */
export const noBody: RequestBody = {
  sizeBytes: 0,
  collect: () => wholeOfNothing,
  // oxlint-disable-next-line require-yield
  async *stream() {},
  trailers: () => nothing,
};

/** A request of Node's, with room for the body that reads it: one listener for all, no closure each. */
export type BodySource = IncomingMessage & { gatewayBody?: ClientBody };

export class ClientBody implements RequestBody, AsyncIterable<Buffer>, AsyncIterator<Buffer> {
  readonly sizeBytes: number | null;
  readonly #source: BodySource;
  readonly #bytesMax: number;
  /** Sends 100 Continue, once, for clients that wait for it. */
  #onFirstRead: (() => void) | null;
  /** Received and not yet given to the stream's reader. */
  #chunks: Buffer[] = [];
  #heldBytes = 0;
  #receivedBytes = 0;
  #isStarted = false;
  #isPaused = false;
  /** The last byte is here. */
  #isWhole = false;
  /** Nobody wants the rest. */
  #isAbandoned = false;
  #isStreamed = false;
  #error: GatewayError | null = null;
  /** Of `collect`: above this the body stays a stream. */
  #collectMax = 0;
  #resolveCollect: ((body: Buffer | null) => void) | null = null;
  #resolveNext: ((result: IteratorResult<Buffer>) => void) | null = null;
  #reject: ((error: GatewayError) => void) | null = null;

  constructor(source: IncomingMessage, sizeBytes: number | null, bytesMax: number, onFirstRead: (() => void) | null) {
    this.sizeBytes = sizeBytes;
    this.#source = source;
    this.#bytesMax = bytesMax;
    this.#onFirstRead = onFirstRead;
  }

  collect(limitBytes: number): Promise<Buffer | null> {
    if (this.#error !== null) return Promise.reject(this.#error);
    if (this.sizeBytes !== null && this.sizeBytes > limitBytes) return Promise.resolve(null);
    if (this.#heldBytes > limitBytes) return Promise.resolve(null);
    if (this.#isWhole) return Promise.resolve(this.#join());
    return new Promise((resolve, reject) => {
      this.#collectMax = limitBytes;
      this.#resolveCollect = resolve;
      this.#reject = reject;
      this.#read();
    });
  }

  stream(): AsyncIterable<Buffer> {
    if (this.#isStreamed) throw new Error("a body is streamed once");
    this.#isStreamed = true;
    return this;
  }

  /** Request trailers are refused: a backend cannot be sent any. */
  trailers(): RawHeaders {
    return nothing;
  }

  [Symbol.asyncIterator](): AsyncIterator<Buffer> {
    return this;
  }

  next(): Promise<IteratorResult<Buffer>> {
    const chunk = this.#chunks.shift();
    if (chunk !== undefined) {
      this.#heldBytes -= chunk.length;
      if (this.#isPaused && this.#heldBytes === 0) this.#read();
      return Promise.resolve({ done: false, value: chunk });
    }
    if (this.#error !== null) return Promise.reject(this.#error);
    if (this.#isWhole || this.#isAbandoned) return Promise.resolve(ended);
    return new Promise((resolve, reject) => {
      this.#resolveNext = resolve;
      this.#reject = reject;
      this.#read();
    });
  }

  return(): Promise<IteratorResult<Buffer>> {
    this.abandon();
    return Promise.resolve(ended);
  }

  /** True while the client is expected to send: a silence is its fault. */
  get isWaiting(): boolean {
    return this.#isStarted && !this.#isPaused && !this.#isWhole && !this.#isAbandoned && this.#error === null;
  }

  /** All of it was received, or all that anybody will want of it. */
  get isWhole(): boolean {
    return this.#isWhole;
  }

  /** What comes may be anything: the connection cannot be used again. */
  get hasFailed(): boolean {
    return this.#error !== null;
  }

  /** How much the client may still send; Infinity when it does not say. */
  get missingBytes(): number {
    if (this.#isWhole) return 0;
    return this.sizeBytes === null ? Infinity : this.sizeBytes - this.#receivedBytes;
  }

  /** The client waits for 100 Continue, and was not told. */
  get isAwaitingContinue(): boolean {
    return this.#onFirstRead !== null;
  }

  /** The rest will not come, or is not acceptable: whoever reads hears of it. The first reason stays. */
  fail(error: GatewayError): void {
    if (this.#isWhole || this.#error !== null) return;
    this.#error = error;
    const reject = this.#reject;
    this.#settle();
    reject?.(error);
  }

  /** Nobody reads on: what comes is dropped. */
  abandon(): void {
    if (this.#isAbandoned) return;
    this.#isAbandoned = true;
    this.#chunks = [];
    this.#heldBytes = 0;
    const resolveNext = this.#resolveNext;
    this.#settle();
    resolveNext?.(ended);
  }

  take(chunk: Buffer): void {
    this.#receivedBytes += chunk.length;
    if (this.#isAbandoned || this.#error !== null) return;
    if (this.#receivedBytes > this.#bytesMax) {
      this.fail(bodyTooLarge(this.#bytesMax));
      return;
    }
    if (this.#resolveNext !== null) {
      const resolve = this.#resolveNext;
      this.#settle();
      resolve({ done: false, value: chunk });
      return;
    }
    this.#chunks.push(chunk);
    this.#heldBytes += chunk.length;
    if (this.#resolveCollect === null) {
      if (this.#heldBytes >= aheadBytes) this.#pause();
    } else if (this.#heldBytes > this.#collectMax) {
      const resolve = this.#resolveCollect;
      this.#settle();
      this.#pause();
      resolve(null);
    }
  }

  finish(): void {
    if (this.#isWhole || this.#error !== null) return;
    if (this.#source.rawTrailers.length > 0) {
      this.fail(new GatewayError("GW_BAD_HEADER", "request trailers cannot be forwarded"));
      return;
    }
    this.#isWhole = true;
    const resolveCollect = this.#resolveCollect;
    const resolveNext = this.#resolveNext;
    this.#settle();
    if (resolveCollect !== null) resolveCollect(this.#join());
    resolveNext?.(ended);
  }

  #read(): void {
    if (!this.#isStarted) {
      this.#isStarted = true;
      const onFirstRead = this.#onFirstRead;
      this.#onFirstRead = null;
      onFirstRead?.();
      const source = this.#source;
      source.gatewayBody = this;
      source.on("data", onData);
      source.on("end", onEnd);
    } else if (this.#isPaused) {
      this.#isPaused = false;
      this.#source.resume();
    }
  }

  #pause(): void {
    this.#isPaused = true;
    this.#source.pause();
  }

  #settle(): void {
    this.#resolveCollect = null;
    this.#resolveNext = null;
    this.#reject = null;
  }

  /** One buffer, kept as what `stream` yields. */
  #join(): Buffer {
    if (this.#chunks.length === 0) return empty;
    const whole = this.#chunks.length === 1 ? this.#chunks[0]! : Buffer.concat(this.#chunks, this.#heldBytes);
    this.#chunks = [whole];
    return whole;
  }
}

export function bodyTooLarge(bytesMax: number): GatewayError {
  return new GatewayError("GW_BODY_TOO_LARGE", `the body is larger than ${bytesMax} bytes (limits.body)`);
}

const ended: IteratorResult<Buffer> = { done: true, value: undefined };

function onData(this: BodySource, chunk: Buffer): void {
  this.gatewayBody!.take(chunk);
}

function onEnd(this: BodySource): void {
  this.gatewayBody!.finish();
}
