// Adapter of the archivist's port: trees are read and written by the workshop's children; what is small (key rows, collections) by this process.

import { join } from "node:path";
import type { PlaceOptions } from "./capture/place.ts";
import { archiveStream, readStream, readTree } from "./archive.ts";
import type { Archivist, Captured, OnBytes, Tree, Writing } from "./archivist.ts";
import { collect } from "./collector.ts";
import type { Access, JobProgress, Recorded } from "./jobs.ts";
import { decodeChunks } from "./listing.ts";
import type { ChunkRef } from "./manifest.ts";
import type { Packs } from "./packs.ts";
import { openPacks, openPacksToWrite } from "./packs.ts";
import type { SnapshotKey } from "./seal.ts";
import { snapshotKey } from "./seal.ts";
import type { SnapshotStore } from "./stores/store.ts";
import { Workshop } from "./workshop.ts";

export interface WorkshopArchivistOptions {
  readonly store: SnapshotStore;
  /** The same store, as a child opens it. */
  readonly access: Access;
  /** For what is remembered of places, and for drills. */
  readonly folder: string;
  readonly environment: Readonly<Record<string, string | undefined>>;
}

export function createWorkshopArchivist(options: WorkshopArchivistOptions): Archivist {
  return new WorkshopArchivist(options);
}

class WorkshopArchivist implements Archivist {
  readonly #options: WorkshopArchivistOptions;
  readonly #workshop: Workshop;
  readonly #key: SnapshotKey | null;
  readonly #stop = new AbortController();
  /** To read with; what children have added since is found by a look at the store. */
  #packs: Promise<Packs> | null = null;
  #drills = 0;

  constructor(options: WorkshopArchivistOptions) {
    this.#options = options;
    this.#workshop = new Workshop({ environment: options.environment });
    const { key } = options.access;
    this.#key = key === null ? null : snapshotKey(Buffer.from(key, "hex"));
  }

  async capture(place: PlaceOptions, memory: string | null, signal: AbortSignal, onBytes: OnBytes): Promise<Captured> {
    const job = { kind: "capture", ...this.#options.access, place, memory: this.#memory(memory) } as const;
    return this.#workshop.capture(job, signal, toBytes(onBytes));
  }

  rootOf(place: PlaceOptions, memory: string | null, signal: AbortSignal, onBytes: OnBytes): Promise<string> {
    const job = { kind: "root", place, memory: this.#memory(memory) } as const;
    return this.#workshop.root(job, signal, toBytes(onBytes));
  }

  restore(tree: Tree, place: PlaceOptions, signal: AbortSignal, onBytes: OnBytes): Promise<void> {
    const job = { kind: "restore", ...this.#options.access, recorded: recordedOf(tree), place } as const;
    return this.#workshop.restore(job, signal, toBytes(onBytes));
  }

  putBack(place: PlaceOptions, signal: AbortSignal): Promise<boolean> {
    return this.#workshop.putBack({ kind: "put-back", place }, signal);
  }

  drill(tree: Tree, signal: AbortSignal, onBytes: OnBytes): Promise<void> {
    const folder = join(this.#options.folder, `drill-${++this.#drills}`);
    const job = { kind: "drill", ...this.#options.access, recorded: recordedOf(tree), folder } as const;
    return this.#workshop.drill(job, signal, toBytes(onBytes));
  }

  async write(signal: AbortSignal): Promise<Writing> {
    const { store } = this.#options;
    const packs = await openPacksToWrite(store, { key: this.#key, signal });
    return {
      keep: async (stream) => {
        const refs = await archiveStream(stream, packs, signal);
        await packs.flush();
        return refs;
      },
      check: () => packs.check(),
      close: () => packs.close(),
    };
  }

  async *read(refs: readonly ChunkRef[]): AsyncGenerator<Buffer> {
    yield* readStream(refs, await this.#reading(), this.#stop.signal);
  }

  async *chunksOf(tree: Tree): AsyncGenerator<string> {
    for (const { id } of tree.listing) yield id;
    const { entries } = await readTree(tree, await this.#reading(), this.#stop.signal);
    for (const entry of entries) if (entry.kind === "file") for (const { id } of decodeChunks(entry.chunks)) yield id;
  }

  async collect(kept: AsyncIterable<string>, signal: AbortSignal): Promise<boolean> {
    const collected = await collect(this.#options.store, kept, { key: this.#key, signal });
    this.#packs = null;
    return collected !== null;
  }

  async size(): Promise<number> {
    let bytes = 0;
    for await (const { sizeBytes } of this.#options.store.list("")) bytes += sizeBytes;
    return bytes;
  }

  async close(): Promise<void> {
    this.#stop.abort();
    await this.#workshop.close();
    await (await this.#packs?.catch(() => null))?.close();
  }

  #memory(name: string | null): string | null {
    return name === null ? null : join(this.#options.folder, `read-${name}`);
  }

  #reading(): Promise<Packs> {
    this.#packs ??= openPacks(this.#options.store, { key: this.#key, signal: this.#stop.signal });
    this.#packs.catch(() => (this.#packs = null));
    return this.#packs;
  }
}

const recordedOf = ({ root, listing, treeEntries, treeBytes }: Tree): Recorded => ({
  root,
  listing,
  treeEntries,
  treeBytes,
});

const toBytes =
  (onBytes: OnBytes) =>
  ({ bytes, total }: JobProgress): void =>
    onBytes(bytes, total?.bytes ?? 0);
