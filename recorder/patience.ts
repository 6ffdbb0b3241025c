// Work that failed is tried again, later and later.

const retryMs = [5_000, 10_000, 30_000, 60_000, 300_000];

export class Patience {
  #failures = 0;
  #untilMs = 0;
  isOver(nowMs: number): boolean {
    return nowMs >= this.#untilMs;
  }
  failed(nowMs: number): void {
    this.#untilMs = nowMs + (retryMs[Math.min(this.#failures++, retryMs.length - 1)] as number);
  }
  succeeded(): void {
    this.#failures = 0;
    this.#untilMs = 0;
  }
}
