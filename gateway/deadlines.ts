// One coarse clock for many deadlines: a tick every 50 ms looks at what is in flight (never more than a few thousand),
// so that a request costs two Set operations and no timer. A deadline is met at most one tick late.

export interface Timed {
  /** On the clock of `performance.now()`; Infinity: never. May be moved at any time. */
  deadlineMs: number;
  /** Called once the deadline is over; must move it or `delete` itself. */
  expire(nowMs: number): void;
}

const tickMs = 50;
/** A gap between ticks that only a blocked event loop or a stopped process explains. */
const stallMs = 250;

export class Deadlines {
  readonly #timed = new Set<Timed>();
  #timer: NodeJS.Timeout | null = null;
  #lastTickMs = 0;
  #hasForgiven = false;

  add(timed: Timed): void {
    this.#timed.add(timed);
    if (this.#timer !== null) return;
    this.#lastTickMs = performance.now();
    this.#timer = setInterval(() => this.#tick(), tickMs).unref();
  }

  delete(timed: Timed): void {
    this.#timed.delete(timed);
  }

  #tick(): void {
    if (this.#timed.size === 0) {
      clearInterval(this.#timer ?? undefined);
      this.#timer = null;
      return;
    }
    const nowMs = performance.now();
    const gapMs = nowMs - this.#lastTickMs;
    this.#lastTickMs = nowMs;
    // After a stall timers run before sockets are read: answers that wait in our own buffers would be taken for missing.
    this.#hasForgiven = gapMs > stallMs && !this.#hasForgiven;
    if (this.#hasForgiven) return;
    for (const timed of this.#timed) if (timed.deadlineMs <= nowMs) timed.expire(nowMs);
  }
}
