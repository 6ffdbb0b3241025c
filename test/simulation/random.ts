// Random numbers that follow from a seed alone (xoshiro128**), with the choices that a simulated world makes of them.

export class Random {
  #a: number;
  #b: number;
  #c: number;
  #d: number;

  constructor(seed: number) {
    // SplitMix32: seeds that differ by one begin far from each other.
    let state = seed >>> 0;
    const next = (): number => {
      state = (state + 0x9e3779b9) >>> 0;
      let mixed = Math.imul(state ^ (state >>> 16), 0x21f0aaad);
      mixed = Math.imul(mixed ^ (mixed >>> 15), 0x735a2d97);
      return (mixed ^ (mixed >>> 15)) >>> 0;
    };
    [this.#a, this.#b, this.#c, this.#d] = [next(), next(), next(), next()];
  }

  #word(): number {
    const scrambled = Math.imul(this.#b, 5);
    const result = Math.imul((scrambled << 7) | (scrambled >>> 25), 9) >>> 0;
    const shifted = this.#b << 9;
    this.#c ^= this.#a;
    this.#d ^= this.#b;
    this.#b ^= this.#c;
    this.#a ^= this.#d;
    this.#c ^= shifted;
    this.#d = (this.#d << 11) | (this.#d >>> 21);
    return result;
  }

  /** From 0 up to 1, without it. */
  fraction(): number {
    return this.#word() / 0x1_0000_0000;
  }
  /** A whole number below `end`. */
  below(end: number): number {
    return Math.floor(this.fraction() * end);
  }
  between(low: number, high: number): number {
    return low + this.fraction() * (high - low);
  }
  chance(probability: number): boolean {
    return probability > 0 && this.fraction() < probability;
  }
  pick<T>(list: readonly T[]): T {
    if (list.length === 0) throw new RangeError("there is nothing to pick from");
    return list[this.below(list.length)] as T;
  }
  hex(bytes: number): string {
    let text = "";
    for (let at = 0; at < bytes; at += 4) text += this.#word().toString(16).padStart(8, "0");
    return text.slice(0, 2 * bytes);
  }
  /** Another sequence, that follows from this one. */
  fork(): Random {
    return new Random(this.#word());
  }
}
