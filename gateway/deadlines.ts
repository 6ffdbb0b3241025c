// One coarse clock for many deadlines: a tick every 50 ms looks at what is in flight (never more than a few thousand),
// so that a request costs two writes to a list and no timer. A deadline is met at most one tick late.

export interface Timed {
  /** On the clock of `performance.now()`; Infinity: never. May be moved at any time. */
  deadlineMs: number;
  /** Where its `Deadlines` keeps it, for nobody else to change; −1: nowhere. */
  place: number;
  /** Called once the deadline is over; must move it or `delete` itself. */
  expire(nowMs: number): void;
}

const tickMs = 50;
/** A gap between ticks that only a blocked event loop or a stopped process explains. */
const stallMs = 250;

export class Deadlines {
  /** In no order. A list and not a Set, whose dead tables would keep whole requests in memory: see byposition.ts. */
  readonly #timed: Timed[] = [];
  #timer: NodeJS.Timeout | null = null;
  #lastTickMs = 0;
  #hasForgiven = false;

  add(timed: Timed): void {
    if (timed.place !== -1) return;
    timed.place = this.#timed.push(timed) - 1;
    if (this.#timer !== null) return;
    this.#lastTickMs = performance.now();
    this.#timer = setInterval(() => this.#tick(), tickMs).unref();
  }

  delete(timed: Timed): void {
    const { place } = timed;
    if (place === -1) return;
    timed.place = -1;
    const last = this.#timed.pop() as Timed;
    if (last === timed) return;
    this.#timed[place] = last;
    last.place = place;
  }

  #tick(): void {
    if (this.#timed.length === 0) {
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
    // From the end: what takes the place of one that goes was looked at before.
    for (let at = this.#timed.length - 1; at >= 0; at--) {
      const timed = this.#timed[at];
      if (timed !== undefined && timed.deadlineMs <= nowMs) timed.expire(nowMs);
    }
  }
}
