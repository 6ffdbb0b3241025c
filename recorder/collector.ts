// Removes what no manifest needs any more. Packs without a kept chunk go at once; those of which less than half is kept, and small ones when
// there are many, are written anew: the new pack is durable before an old one goes. So whatever is killed, every kept chunk is in some pack, and
// the next collection goes on from there.

import type { Clock } from "../gateway/clock.ts";
import { readCatalog } from "./catalog.ts";
import { Flight } from "./flight.ts";
import { enterAsCollector } from "./gate.ts";
import type { Mark } from "./gate.ts";
import { PackBuilder, isWhole, noKey, packBytes } from "./pack.ts";
import type { PackIndex, Row } from "./pack.ts";
import { storedName } from "./seal.ts";
import type { SnapshotKey } from "./seal.ts";
import type { SnapshotStore } from "./stores/store.ts";

export interface Collected {
  readonly removedPacks: number;
  readonly removedBytes: number;
  /** Of new packs, with what was still needed of old ones. */
  readonly writtenPacks: number;
  readonly writtenBytes: number;
  /** Not what their names say, or without an index: left alone. */
  readonly damaged: readonly string[];
  /** Encrypted under another key, and perhaps needed: left alone. */
  readonly foreign: number;
}

export interface CollectOptions {
  readonly key: SnapshotKey | null;
  readonly signal: AbortSignal;
  readonly clock?: Clock;
}

const smallBytes = packBytes / 4;
const smallPacksMax = 16;
const removesAtOnce = 8;

/**
 * `kept` gives the id of every chunk that a manifest in this store needs, of whichever service, and fails when it cannot read one of them. It is not
 * asked before nobody can write any more. Null: somebody else writes or collects; nothing was touched, try again later.
 */
export async function collect(
  store: SnapshotStore,
  kept: AsyncIterable<string>,
  options: CollectOptions,
): Promise<Collected | null> {
  const mark = await enterAsCollector(store, options);
  if (mark === null) return null;
  try {
    const ids = new Set<string>();
    for await (const id of kept) ids.add(id);
    return await new Collection(store, options, mark).run(ids);
  } finally {
    await mark.leave();
  }
}

/** One pack and what of it is kept. */
interface Judged {
  readonly index: PackIndex;
  readonly kept: readonly Row[];
  readonly keptBytes: number;
}

class Collection {
  readonly #store: SnapshotStore;
  readonly #key: SnapshotKey | null;
  readonly #signal: AbortSignal;
  readonly #mark: Mark;
  readonly #damaged: string[] = [];
  /** Put by this collection: never removed by it. */
  readonly #written = new Set<string>();
  #removedPacks = 0;
  #removedBytes = 0;
  #writtenBytes = 0;

  constructor(store: SnapshotStore, { key, signal }: CollectOptions, mark: Mark) {
    this.#store = store;
    this.#key = key;
    this.#signal = signal;
    this.#mark = mark;
  }

  async run(ids: ReadonlySet<string>): Promise<Collected> {
    const { packs, damaged } = await readCatalog(this.#store, new Map(), this.#signal);
    this.#damaged.push(...damaged);
    const ownId = this.#key?.id ?? noKey;
    const readable = [...packs.values()].filter(({ keyId }) => keyId === ownId || keyId === noKey);
    const foreign = [...packs.values()].filter((index) => !readable.includes(index));
    const judged = await this.#judge(readable, ids);
    // Whatever is kept is read with this key or none: if it is all here, nothing of it is under another key.
    const isAllHere = foreign.length > 0 && this.#isAllHere(readable, ids);
    const needless = judged.filter(({ kept }) => kept.length === 0).map(({ index }) => index);
    // First, because the store may be full.
    await this.#remove(isAllHere ? [...needless, ...foreign] : needless);
    for (const keyId of new Set([ownId, noKey])) await this.#rewrite(keyId, judged);
    return {
      removedPacks: this.#removedPacks,
      removedBytes: this.#removedBytes,
      writtenPacks: this.#written.size,
      writtenBytes: this.#writtenBytes,
      damaged: this.#damaged,
      foreign: isAllHere ? 0 : foreign.length,
    };
  }

  #isAllHere(readable: readonly PackIndex[], ids: ReadonlySet<string>): boolean {
    const names = new Set(readable.flatMap(({ rows }) => rows.map(({ name }) => name)));
    return [...ids].every((id) => names.has(id) || names.has(storedName(id, this.#key)));
  }

  /**
   * What of each pack is kept. Of a chunk in several packs (two writers at once, a collection that was killed) one is enough, but only if that
   * pack's bytes were seen to be what its name says: an index alone proves nothing.
   */
  async #judge(packs: readonly PackIndex[], ids: ReadonlySet<string>): Promise<readonly Judged[]> {
    const names = new Set<string>();
    for (const id of ids) names.add(id).add(storedName(id, this.#key));
    const judged = packs
      .map((index) => judge(index, (row) => names.has(row.name)))
      .toSorted((a, b) => b.keptBytes - a.keptBytes || (a.index.pack < b.index.pack ? -1 : 1));
    const homes = new Map<string, PackIndex>();
    const result: Judged[] = [];
    for (const { index, kept } of judged) {
      const spare = new Set<Row>();
      for (const row of kept) {
        const home = homes.get(row.name);
        if (home === undefined) homes.set(row.name, index);
        else if (await this.#isSound(home)) spare.add(row);
        else homes.set(row.name, index);
      }
      result.push(judge(index, (row) => names.has(row.name) && !spare.has(row)));
    }
    return result;
  }

  readonly #sound = new Map<string, boolean>();

  async #isSound({ pack }: PackIndex): Promise<boolean> {
    const known = this.#sound.get(pack);
    if (known !== undefined) return known;
    const bytes = await this.#store.get(pack);
    const isSound = bytes !== null && isWhole(pack, bytes);
    this.#sound.set(pack, isSound);
    return isSound;
  }

  async #rewrite(keyId: string, judged: readonly Judged[]): Promise<void> {
    const ours = judged.filter(({ index, kept }) => index.keyId === keyId && kept.length > 0);
    const sparse = ours.filter(({ index, keptBytes }) => keptBytes * 2 < index.chunkBytes);
    const small = ours.filter((pack) => pack.index.chunkBytes < smallBytes && !sparse.includes(pack));
    const builder = new PackBuilder(keyId);
    /** All that is kept of them is in packs that are durable, or in the builder. */
    let moved: PackIndex[] = [];
    const send = async (): Promise<void> => {
      if (!builder.isEmpty) await this.#put(builder);
      await this.#remove(moved);
      moved = [];
    };
    for (const { index, kept } of small.length > smallPacksMax ? [...sparse, ...small] : sparse) {
      this.#signal.throwIfAborted();
      const bytes = await this.#store.get(index.pack);
      if (bytes === null || !isWhole(index.pack, bytes)) {
        this.#damaged.push(index.pack);
        continue;
      }
      for (const { name, offset, length } of kept) {
        const sealed = bytes.subarray(offset, offset + length);
        if (builder.add(name, sealed)) continue;
        await send();
        builder.add(name, sealed);
      }
      moved.push(index);
    }
    await send();
  }

  async #put(builder: PackBuilder): Promise<void> {
    const { bytes, index } = builder.finish();
    this.#mark.check();
    await this.#store.put(index.pack, bytes);
    this.#written.add(index.pack);
    this.#writtenBytes += bytes.length;
  }

  async #remove(packs: readonly PackIndex[]): Promise<void> {
    const removes = new Flight(removesAtOnce, this.#signal);
    for (const { pack, chunkBytes } of packs) {
      if (this.#written.has(pack)) continue;
      await removes.start(1, async () => {
        this.#mark.check();
        await this.#store.remove(pack);
        this.#removedPacks += 1;
        this.#removedBytes += chunkBytes;
      });
    }
    await removes.landed();
  }
}

function judge(index: PackIndex, isKept: (row: Row) => boolean): Judged {
  const kept = index.rows.filter(isKept);
  return { index, kept, keptBytes: kept.reduce((sum, { length }) => sum + length, 0) };
}
