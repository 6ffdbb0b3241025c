// Work that failed is tried again, later and later. Times are of the monotonic clock: a wall clock that is set back would put it off by hours.

const retryMs = [5_000, 10_000, 30_000, 60_000, 300_000];

export class Patience {
  #failures = 0;
  #until = Number.NEGATIVE_INFINITY;
  isOver(now: number): boolean {
    return now >= this.#until;
  }
  failed(now: number): void {
    this.#until = now + (retryMs[Math.min(this.#failures++, retryMs.length - 1)] as number);
  }
  succeeded(): void {
    this.#failures = 0;
    this.#until = Number.NEGATIVE_INFINITY;
  }
}
