// What lies in a store's packs: reads the index at the end of each, several at once. A pack that is none is named and left alone.

import { GatewayError } from "../gateway/errors.ts";
import type { SnapshotStore } from "./stores/store.ts";
import { objectBytesMax } from "./stores/store.ts";
import { Flight } from "./flight.ts";
import { indexBytes, packPrefix, parseIndex } from "./pack.ts";
import type { PackIndex } from "./pack.ts";

export interface Catalog {
  /** By name of the object. */
  readonly packs: ReadonlyMap<string, PackIndex>;
  readonly damaged: readonly string[];
}

/** Enough for the index of a pack of usual chunks. */
const tailBytes = 32 * 1024;
const readsAtOnce = 16;
const isPackName = (name: string): boolean => /^packs\/[0-9a-f]{64}$/.test(name);

/** Packs never change under their name: those that were read before are not read again. */
export async function readCatalog(
  store: SnapshotStore,
  before: ReadonlyMap<string, PackIndex>,
  signal: AbortSignal,
): Promise<Catalog> {
  const packs = new Map<string, PackIndex>();
  const damaged: string[] = [];
  const reads = new Flight(readsAtOnce, signal);
  for await (const { name, sizeBytes } of store.list(packPrefix)) {
    if (!isPackName(name)) continue;
    const known = before.get(name);
    if (known !== undefined) packs.set(name, known);
    else
      await reads.start(1, async () => {
        const tail = await readTail(store, name, sizeBytes);
        if (tail === null) return;
        const index = parseIndex(name, sizeBytes, tail);
        if (index === null) damaged.push(name);
        else packs.set(name, index);
      });
  }
  await reads.landed();
  return { packs, damaged };
}

/** Null: it has been removed since it was listed. Empty: it is damaged. */
async function readTail(store: SnapshotStore, name: string, sizeBytes: number): Promise<Buffer | null> {
  if (sizeBytes > objectBytesMax) return Buffer.alloc(0);
  try {
    const tail = await store.get(name, { start: Math.max(0, sizeBytes - tailBytes), end: sizeBytes });
    const needed = tail === null ? null : indexBytes(tail);
    if (tail === null || needed === null || needed <= tail.length || needed > sizeBytes) return tail;
    return await store.get(name, { start: sizeBytes - needed, end: sizeBytes });
  } catch (error) {
    if (error instanceof GatewayError && error.code === "GW_SNAPSHOT_CORRUPT") return Buffer.alloc(0);
    throw error;
  }
}
