// The first entry of a log goes to one replica alone. If another's witness changes by it, the two share one state, and everything would be
// applied there several times.

import { GatewayError } from "./errors.ts";

export interface Witness {
  readonly name: string;
  /** Null: it did not answer, or has no witness. */
  witness(): Promise<string | null>;
}

export class FirstEntry {
  #isOpen: boolean;
  /** The witnesses are taken down: the first entry may go to its tester. */
  #hasBegun = false;
  #isComparing = false;
  #position: number | null = null;
  #tester: string | null = null;
  #before: ReadonlyMap<string, string> = new Map();
  #all: readonly Witness[] = [];
  readonly #onOpen: () => void;
  readonly #onShared: (names: readonly string[], error: GatewayError) => void;

  /** `isOpen`: there is nothing to test, because the log has entries already. */
  constructor(isOpen: boolean, onOpen: () => void, onShared: (names: readonly string[], error: GatewayError) => void) {
    this.#isOpen = isOpen;
    this.#onOpen = onOpen;
    this.#onShared = onShared;
  }

  get isOpen(): boolean {
    return this.#isOpen;
  }

  /** The fold has found entries in the log: the first one was long ago. */
  isPast(): void {
    if (!this.#isOpen) this.#open();
  }

  /**
   * Takes down the witnesses before the first entry. Resolves with the error when they differ, with a sentence when nothing could be compared,
   * with null when all are equal.
   */
  async begin(all: readonly Witness[]): Promise<GatewayError | string | null> {
    this.#all = all;
    const found = await Promise.all(all.map(async (it) => [it.name, await it.witness()] as const));
    const known = found.filter((it): it is readonly [string, string] => it[1] !== null);
    const [first] = known;
    if (first === undefined || known.length < 2) {
      this.#open();
      return all.length < 2 ? null : `not checked by witness: ${known.length} of ${all.length} replicas answered one`;
    }
    const other = known.find((it) => it[1] !== first[1]);
    if (other !== undefined)
      return new GatewayError(
        "GW_REPLICAS_DIFFER_AT_START",
        `the witnesses of ${first[0]} and ${other[0]} differ before the first entry: begin all copies from the same state`,
      );
    this.#before = new Map(known);
    this.#hasBegun = true;
    this.#onOpen();
    return known.length === all.length
      ? null
      : `not checked by witness: ${all.length - known.length} of ${all.length} replicas did not answer one`;
  }

  /** Whether `replica` may send the entry now. */
  may(replica: string, position: number): boolean {
    if (this.#isOpen) return true;
    if (!this.#hasBegun) return false;
    this.#position ??= position;
    this.#tester ??= replica;
    return this.#position === position && this.#tester === replica;
  }

  /** The tester has its answer, or failed: either way the others' witnesses tell. */
  ended(replica: string, position: number): void {
    if (this.#isOpen || this.#isComparing || this.#position !== position || this.#tester !== replica) return;
    this.#isComparing = true;
    // What cannot be compared is not held up for it.
    this.#compare(replica).catch(() => this.#open());
  }

  async #compare(tester: string): Promise<void> {
    const shared: string[] = [];
    for (const it of this.#all) {
      const before = this.#before.get(it.name);
      if (it.name === tester || before === undefined) continue;
      const now = await it.witness();
      if (now !== null && now !== before) shared.push(it.name);
    }
    if (shared.length > 0)
      this.#onShared(
        shared,
        new GatewayError(
          "GW_REPLICAS_SHARE_STATE",
          `the first entry was sent to ${tester} alone and changed ${shared.join(", ")} as well: they share one state`,
        ),
      );
    this.#open();
  }

  #open(): void {
    this.#isOpen = true;
    this.#onOpen();
  }
}
