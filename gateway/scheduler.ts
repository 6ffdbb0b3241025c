// The order of one replica: which entries may run now, and up to where everything is finished.
// Two entries conflict when they share an order key or one of them has none (a barrier). Conflicting entries run in log order, one after
// the other; the rest side by side: every execution is equivalent to log order.

interface Node {
  readonly position: number;
  /** How many unreleased entries it must wait for. */
  waiting: number;
  isReleased: boolean;
  /** Taken out before its turn: released as soon as it is. */
  isVoid: boolean;
  isFinished: boolean;
  dependents: Node[] | null;
  readonly orderKeys: readonly string[];
  /** Not an entry: the end of a record. */
  readonly isEnd: boolean;
}

export class Scheduler {
  /** In log order; the head is the oldest that is not finished. Searched rather than indexed by a Map: see byposition.ts. */
  readonly #order: Node[] = [];
  #head = 0;
  #size = 0;
  readonly #lastByKey = new Map<string, Node>();
  #lastBarrier: Node | null = null;
  #watermark: number;

  constructor(watermark: number) {
    this.#watermark = watermark;
  }

  /** Every entry up to here is finished. */
  get watermark(): number {
    return this.#watermark;
  }
  /** Entries added and not finished. */
  get size(): number {
    return this.#size;
  }
  has(position: number): boolean {
    return this.#find(position) !== null;
  }

  /** Positions only grow. True: it may run at once. */
  add(position: number, orderKeys: readonly string[]): boolean {
    const node: Node = {
      position,
      waiting: 0,
      isReleased: false,
      isVoid: false,
      isFinished: false,
      dependents: null,
      orderKeys,
      isEnd: false,
    };
    const barrier = this.#lastBarrier;
    if (orderKeys.length === 0) {
      this.#dependOnAll(node);
      this.#lastByKey.clear();
      this.#lastBarrier = node;
    } else {
      if (barrier !== null) depend(node, barrier);
      for (const key of orderKeys) {
        const earlier = this.#lastByKey.get(key);
        if (earlier !== undefined) depend(node, earlier);
        this.#lastByKey.set(key, node);
      }
    }
    this.#order.push(node);
    this.#size++;
    return node.waiting === 0;
  }

  /** Everything up to `position` has been added or does not concern the replica. */
  close(position: number): void {
    const node: Node = {
      position,
      waiting: 0,
      isReleased: true,
      isVoid: false,
      isFinished: true,
      dependents: null,
      orderKeys: [],
      isEnd: true,
    };
    this.#order.push(node);
    this.#advance();
  }

  /** The entry took effect: what waited for it may run. Calls `runnable` for each that now can. */
  release(position: number, runnable: (position: number) => void): void {
    const node = this.#find(position);
    if (node !== null && !node.isReleased) this.#release(node, runnable);
  }

  /** Nothing before it that conflicts with it is still to take effect. */
  isRunnable(position: number): boolean {
    return this.#find(position)?.waiting === 0;
  }

  #release(node: Node, runnable: (position: number) => void): void {
    // An entry that is skipped or found done before its turn still stands between those before and behind it.
    if (node.waiting > 0) {
      node.isVoid = true;
      return;
    }
    node.isReleased = true;
    for (const key of node.orderKeys) if (this.#lastByKey.get(key) === node) this.#lastByKey.delete(key);
    if (node.dependents === null) return;
    const { dependents } = node;
    node.dependents = null;
    for (const dependent of dependents)
      if (--dependent.waiting === 0) {
        if (dependent.isVoid) this.#release(dependent, runnable);
        else runnable(dependent.position);
      }
  }

  /** Nothing more is to be done for it: the watermark may pass. It must have been released. */
  finish(position: number): void {
    const node = this.#find(position);
    if (node === null) return;
    node.isFinished = true;
    this.#size--;
    this.#advance();
  }

  /** Whether an unfinished entry up to `position` conflicts with something that has these order keys (a read's wait). */
  conflicts(position: number, orderKeys: readonly string[]): boolean {
    if (orderKeys.length === 0) return this.#watermark < position && this.#oldestUnfinished() <= position;
    for (let at = this.#head; at < this.#order.length; at++) {
      const node = this.#order[at] as Node;
      if (node.position > position) return false;
      if (!node.isFinished && (node.orderKeys.length === 0 || node.orderKeys.some((key) => orderKeys.includes(key))))
        return true;
    }
    return false;
  }

  /** Finished entries above the watermark, oldest first. */
  finishedAbove(): readonly number[] {
    const found: number[] = [];
    for (let at = this.#head; at < this.#order.length; at++) {
      const node = this.#order[at] as Node;
      if (node.isFinished && !node.isEnd) found.push(node.position);
    }
    return found;
  }

  /** A barrier waits for what is unreleased since the last one, or for that one: together that is everything before it. */
  #dependOnAll(node: Node): void {
    for (let at = this.#order.length - 1; at >= this.#head; at--) {
      const earlier = this.#order[at] as Node;
      depend(node, earlier);
      if (earlier === this.#lastBarrier) return;
    }
  }

  /** The entry, if it is not finished. */
  #find(position: number): Node | null {
    let low = this.#head;
    let high = this.#order.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if ((this.#order[middle] as Node).position < position) low = middle + 1;
      else high = middle;
    }
    // The last entry of a full record and that record's end have one position; the entry comes first.
    const node = this.#order[low];
    return node === undefined || node.position !== position || node.isFinished ? null : node;
  }

  #oldestUnfinished(): number {
    return this.#order[this.#head]?.position ?? Number.POSITIVE_INFINITY;
  }

  #advance(): void {
    while (this.#head < this.#order.length) {
      const node = this.#order[this.#head] as Node;
      if (!node.isFinished) break;
      this.#watermark = node.position;
      this.#head++;
    }
    if (this.#head > 64 && this.#head * 2 > this.#order.length) {
      this.#order.splice(0, this.#head);
      this.#head = 0;
    }
  }
}

function depend(node: Node, earlier: Node): void {
  if (earlier.isReleased) return;
  (earlier.dependents ??= []).push(node);
  node.waiting++;
}

/** Whether two entries may not change places. */
export const doConflict = (a: readonly string[], b: readonly string[]): boolean =>
  a.length === 0 || b.length === 0 || a.some((key) => b.includes(key));
