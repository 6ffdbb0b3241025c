// What is under way, by position: a Map for things that come in about the order of their positions and go again soon.
//
// Not a Map of JavaScript's. V8 gives a Map that things come to and go from a new table every few dozen changes. Once a table has
// lived long enough to be old, all that follow are old too, and each dead one keeps what was in it alive until the next full
// collection: with 32 requests in flight that was half of all that the gateway allocated (measured: 47 % outlived each scavenge,
// with this 5 %). The same holds for a Set.

/** Fewer places than this are not worth moving anything. */
const placesMin = 64;

export class ByPosition<T extends object> {
  /** Ascending. What is gone leaves its place behind, until half of the places are such. */
  readonly #positions: number[] = [];
  readonly #values: (T | null)[] = [];
  #size = 0;

  get size(): number {
    return this.#size;
  }

  get(position: number): T | undefined {
    const at = this.#find(position);
    return this.#positions[at] === position ? (this.#values[at] ?? undefined) : undefined;
  }

  set(position: number, value: T): void {
    const at = this.#find(position);
    if (this.#positions[at] === position) {
      if (this.#values[at] === null) this.#size++;
      this.#values[at] = value;
      return;
    }
    this.#size++;
    if (at === this.#positions.length) {
      this.#positions.push(position);
      this.#values.push(value);
    } else {
      this.#positions.splice(at, 0, position);
      this.#values.splice(at, 0, value);
    }
  }

  /** False: it was not there. */
  delete(position: number): boolean {
    const at = this.#find(position);
    if (this.#positions[at] !== position || this.#values[at] === null) return false;
    this.#values[at] = null;
    this.#size--;
    if (this.#positions.length >= placesMin && this.#size * 2 < this.#positions.length) this.#close();
    return true;
  }

  clear(): void {
    this.#positions.length = 0;
    this.#values.length = 0;
    this.#size = 0;
  }

  /** By position. What is deleted meanwhile is not told, and what is added may not be. */
  *values(): Generator<T> {
    for (const position of this.#positions.slice()) {
      const value = this.get(position);
      if (value !== undefined) yield value;
    }
  }

  /** The first place at or above the position. */
  #find(position: number): number {
    const positions = this.#positions;
    let low = 0;
    let high = positions.length;
    // The newest come last and are looked for most: new ones always.
    if (high === 0 || (positions[high - 1] as number) < position) return high;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if ((positions[middle] as number) < position) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  /** Those that are left move together. */
  #close(): void {
    let to = 0;
    for (let at = 0; at < this.#positions.length; at++) {
      const value = this.#values[at] ?? null;
      if (value === null) continue;
      this.#positions[to] = this.#positions[at] as number;
      this.#values[to] = value;
      to++;
    }
    this.#positions.length = to;
    this.#values.length = to;
  }
}
