// Bounded work side by side: at most `max` under way; after the first failure nothing more begins, and what is under way is told to end.

/** What tasks cost is the user's: bytes that they hold, or 1 each. A task that costs more than all may run alone. */
export class Flight {
  /** For tasks: aborts with the caller's, and when one of them failed. */
  readonly signal: AbortSignal;
  readonly #max: number;
  readonly #over = new AbortController();
  #used = 0;
  #failure: { readonly error: unknown } | null = null;
  readonly #waiting: (() => void)[] = [];

  constructor(max: number, signal: AbortSignal) {
    this.#max = max;
    this.signal = AbortSignal.any([signal, this.#over.signal]);
  }

  /** Resolves when the task has begun; rejects with the first failure of any, or when the signal has aborted. */
  async start(cost: number, task: () => Promise<void>): Promise<void> {
    // Ends when there is room or something failed; tasks heed the signal, so that room comes.
    while (this.#failure === null && this.#used > 0 && this.#used + cost > this.#max) await this.#change();
    this.throwIfFailed();
    this.#used += cost;
    void this.#run(cost, task);
  }

  /** Resolves when all that began has ended; rejects with the first failure, when all others have ended too. */
  async landed(): Promise<void> {
    await this.#end();
    this.throwIfFailed();
  }

  /** The work that starts tasks: as `landed`, and its own failure counts as theirs does. */
  async during<T>(work: () => Promise<T>): Promise<T> {
    try {
      const result = await work();
      await this.landed();
      return result;
    } catch (error) {
      this.#fail(error);
      await this.#end();
      throw error;
    }
  }

  throwIfFailed(): void {
    if (this.#failure !== null) throw this.#failure.error;
    this.signal.throwIfAborted();
  }

  async #run(cost: number, task: () => Promise<void>): Promise<void> {
    try {
      await task();
    } catch (error) {
      this.#fail(error);
    }
    this.#used -= cost;
    for (const wake of this.#waiting.splice(0)) wake();
  }

  async #end(): Promise<void> {
    // Ends when the last task has.
    while (this.#used > 0) await this.#change();
  }

  #change(): Promise<void> {
    return new Promise((resolve) => this.#waiting.push(resolve));
  }

  #fail(error: unknown): void {
    this.#failure ??= { error };
    this.#over.abort(error);
  }
}
