// A request body that is read once, handed to undici chunk by chunk. It tells its exchange of progress, knows whether a byte can have
// been written, and can be stopped while it waits for its source.

export interface Progress {
  /** A chunk was asked for or came. */
  onProgress(): void;
  /** The last chunk was handed over. */
  onBodyEnd(): void;
}

export class Source implements AsyncIterable<Buffer>, AsyncIterator<Buffer> {
  readonly #body: AsyncIterable<Buffer>;
  readonly #progress: Progress;
  #iterator: AsyncIterator<Buffer> | null = null;
  #rejectPending: ((error: Error) => void) | null = null;
  #stopped: Error | null = null;
  /** undici writes the head with the first chunk, or at the end of an empty body: until then nothing was sent. */
  isUntouched = true;

  constructor(body: AsyncIterable<Buffer>, progress: Progress) {
    this.#body = body;
    this.#progress = progress;
  }

  [Symbol.asyncIterator](): AsyncIterator<Buffer> {
    return this;
  }

  next(): Promise<IteratorResult<Buffer>> {
    return new Promise((resolve, reject) => {
      if (this.#stopped !== null) {
        reject(this.#stopped);
        return;
      }
      this.#rejectPending = reject;
      this.#progress.onProgress();
      this.#iterator ??= this.#body[Symbol.asyncIterator]();
      this.#iterator.next().then((result) => {
        this.#rejectPending = null;
        this.isUntouched = false;
        if (result.done === true) this.#progress.onBodyEnd();
        else this.#progress.onProgress();
        resolve(result);
      }, reject);
    });
  }

  /** Never ends the body: an end would make a cut request look whole. */
  stop(reason: Error): void {
    if (this.#stopped !== null) return;
    this.#stopped = reason;
    this.#rejectPending?.(reason);
    // A Node stream is destroyed by return(), and a client's request with its connection: its owner decides on that.
    if ("pipe" in this.#body) return;
    this.#iterator?.return?.().then(ignore, ignore);
  }

  return(): Promise<IteratorResult<Buffer>> {
    this.stop(new Error("the body is no longer read"));
    return Promise.resolve({ done: true, value: undefined });
  }
}

const ignore = (): void => {};
