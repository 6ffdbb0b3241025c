// Time and randomness as arguments, so that a test can hold them still.

export interface Clock {
  /** Monotonic, ms. */
  now(): number;
  /** Wall clock, whole ms since 1970: only ever shown or written down, never compared for order. */
  wallMs(): number;
  /** Resolves after `ms`, or at once when the signal aborts. Does not keep the process alive. */
  sleep(ms: number, signal?: AbortSignal): Promise<void>;
}

export const systemClock: Clock = {
  now: () => performance.now(),
  wallMs: () => Date.now(),
  sleep: (ms, signal) =>
    new Promise((resolve) => {
      if (signal?.aborted === true) {
        resolve();
        return;
      }
      const done = (): void => {
        clearTimeout(timer);
        signal?.removeEventListener("abort", done);
        resolve();
      };
      const timer = setTimeout(done, ms);
      timer.unref();
      signal?.addEventListener("abort", done, { once: true });
    }),
};
