// Reads from packs as a restore asks for them: mostly forwards. Neighbours are fetched together, and the next piece before it is asked for.

import type { PackIndex, Row } from "./pack.ts";
import type { SnapshotStore } from "./stores/store.ts";

/** Some chunks of one pack, whole ones. */
interface Window {
  readonly pack: string;
  readonly start: number;
  readonly end: number;
  /** Null: the pack is not there. */
  readonly bytes: Promise<Buffer | null>;
}

const windowBytesMin = 512 * 1024;
const windowBytesMax = 4 * 1024 * 1024;
const cacheBytesMax = 24 * 1024 * 1024;
/** A read so near to the end of a window goes on from there: duplicates leave gaps. */
const nearBytes = 256 * 1024;

export class Ranges {
  readonly #store: SnapshotStore;
  /** Oldest use first; few, so a search costs nothing. */
  readonly #windows: Window[] = [];

  constructor(store: SnapshotStore) {
    this.#store = store;
  }

  /** `row` is one of the pack's. Null: the pack is not there. */
  async read(row: Row, index: PackIndex): Promise<Buffer | null> {
    const end = row.offset + row.length;
    const at = this.#windows.findIndex((it) => it.pack === row.pack && it.start <= row.offset && end <= it.end);
    const window = at === -1 ? this.#open(row, index) : this.#windows.splice(at, 1)[0]!;
    if (at !== -1) this.#windows.push(window);
    const bytes = await window.bytes;
    return bytes === null ? null : bytes.subarray(row.offset - window.start, end - window.start);
  }

  #open(row: Row, index: PackIndex): Window {
    const before = this.#windows.findLast(
      ({ pack, end }) => pack === row.pack && Math.abs(row.offset - end) <= nearBytes,
    );
    const length = before === undefined ? windowBytesMin : Math.min(windowBytesMax, 2 * (before.end - before.start));
    const window = this.#fetch(row.pack, row.offset, endWithin(index, row.offset, length));
    if (before !== undefined && window.end < index.chunkBytes)
      this.#fetch(row.pack, window.end, endWithin(index, window.end, length));
    return window;
  }

  #fetch(pack: string, start: number, end: number): Window {
    const window: Window = { pack, start, end, bytes: this.#store.get(pack, { start, end }) };
    this.#windows.push(window);
    const forget = (): void => {
      const at = this.#windows.indexOf(window);
      if (at !== -1) this.#windows.splice(at, 1);
    };
    window.bytes.then((bytes) => bytes === null && forget(), forget);
    let held = this.#windows.reduce((sum, it) => sum + it.end - it.start, 0);
    // Ends with the newest: one window alone is smaller than the cache.
    while (held > cacheBytesMax) {
      const oldest = this.#windows.shift()!;
      held -= oldest.end - oldest.start;
    }
    return window;
  }
}

/** Where the last chunk ends that lies within so many bytes behind `start`, which is where one begins; at least that one's end. */
function endWithin({ rows }: PackIndex, start: number, length: number): number {
  let low = 0;
  let high = rows.length;
  // Halves the gap; ends when it is empty. Then `low` is the first chunk that ends too late.
  while (low < high) {
    const middle = (low + high) >> 1;
    const { offset, length: bytes } = rows[middle]!;
    if (offset + bytes <= start + length) low = middle + 1;
    else high = middle;
  }
  const last = rows[low - 1];
  if (last !== undefined && last.offset >= start) return last.offset + last.length;
  return rows[low]!.offset + rows[low]!.length;
}
