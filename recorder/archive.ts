// A place's state as a tree of chunks, and back: `archive` reads a place into packs, `rootOf` only hashes it, `restore` replaces a place by
// what was recorded, after the whole listing was verified; every chunk is verified as it is written. Streams (key rows) go the same way.
//
// Side by side: eight files are read or written at a time (one where the place is sequential), and chunks of all of them are hashed, sealed and put
// while others are read. Memory is bounded by bytes under way, beside the tree itself: about 300 bytes an entry and 36 a chunk.
// Nothing is durable before `packs.flush()`: the caller flushes once, after the last stream of a snapshot.

import { systemClock } from "../gateway/clock.ts";
import { GatewayError } from "../gateway/errors.ts";
import type { Place, Readable, Replacement, TreeFile } from "./capture/place.ts";
import { cut } from "./chunker.ts";
import { Flight } from "./flight.ts";
import { decodeChunks, encodeChunks, encodeListing, makeTree, parseListing } from "./listing.ts";
import type { Tree } from "./listing.ts";
import type { ChunkRef, Manifest } from "./manifest.ts";
import type { Packs } from "./packs.ts";
import { chunkId } from "./seal.ts";
import type { StampCache } from "./stamps.ts";
import type { ChunkList, ListedEntry } from "./tree.ts";

export interface Progress {
  /** Of the tree, so far. */
  readonly entries: number;
  /** Plaintext, so far. */
  readonly bytes: number;
}

export interface ArchiveOptions {
  readonly signal: AbortSignal;
  /** Null: every file is read. */
  readonly cache: StampCache | null;
  readonly onProgress?: (progress: Progress) => void;
  /** When the capture begins; default: now. */
  readonly beganMs?: number;
}

export interface Archived {
  readonly root: string;
  readonly listing: readonly ChunkRef[];
  readonly treeEntries: number;
  readonly treeBytes: number;
  /** In the store, sealed: what was not there before, the listing's own chunks included. */
  readonly newBytes: number;
  readonly newChunks: number;
  /** Of the tree: read because no stamp vouched for them. */
  readonly readBytes: number;
  /** Left out: sockets, pipes and devices, and what vanished meanwhile. */
  readonly skipped: readonly string[];
}

export interface RestoreOptions {
  readonly signal: AbortSignal;
  /** `total`: of the tree. */
  readonly onProgress?: (progress: Progress, total: Progress) => void;
}

const filesAtOnce = 8;
/** Plaintext between reading and sealing. */
const bytesUnderWay = 4 * 1024 * 1024;
/** Of one stream that is read: chunks on their way. */
const chunksAhead = 4;

export async function archive(place: Place, packs: Packs, options: ArchiveOptions): Promise<Archived> {
  const sink = new PackSink(packs, options.signal);
  const scan = new Scan(place, sink, options);
  const tree = await scan.run();
  const listing = await sink.takeAll(encodeListing(tree));
  await scan.end();
  return {
    root: tree.root,
    listing,
    treeEntries: tree.entries.length,
    treeBytes: tree.sizeBytes,
    newBytes: sink.newBytes,
    newChunks: sink.newChunks,
    readBytes: scan.readBytes,
    skipped: scan.skipped,
  };
}

/** What `archive` would give as root, with nothing stored. */
export async function rootOf(place: Place, options: ArchiveOptions): Promise<string> {
  const scan = new Scan(place, null, options);
  const tree = await scan.run();
  await scan.end();
  return tree.root;
}

/** Refuses with GW_SNAPSHOT_CORRUPT before anything is written, or leaves nothing behind; else the place holds what was recorded, durably. */
export async function restore(
  recorded: Pick<Manifest, "root" | "listing">,
  packs: Packs,
  place: Place,
  { signal, onProgress }: RestoreOptions,
): Promise<void> {
  const tree = await readTree(recorded, packs, signal);
  const replacement = await place.replace(signal);
  try {
    const total = { entries: tree.entries.length, bytes: tree.sizeBytes };
    await putAll(tree, packs, place, replacement, signal, (progress) => onProgress?.(progress, total));
    signal.throwIfAborted();
    await replacement.commit();
  } catch (error) {
    // What it cannot clean up now, the next replacement does: the reason is worth more.
    await replacement.abort().catch(() => {});
    throw error;
  }
}

/** The listing of a snapshot, verified against the root. */
export async function readTree(
  recorded: Pick<Manifest, "root" | "listing">,
  packs: Packs,
  signal: AbortSignal,
): Promise<Tree> {
  const tree = await parseListing(readStream(recorded.listing, packs, signal));
  if (tree.root !== recorded.root)
    throw new GatewayError(
      "GW_SNAPSHOT_CORRUPT",
      `the listing has the root ${tree.root}, recorded is ${recorded.root}`,
    );
  return tree;
}

/** In order; durable after `packs.flush()`. */
export const archiveStream = (
  stream: AsyncIterable<Buffer>,
  packs: Packs,
  signal: AbortSignal,
): Promise<readonly ChunkRef[]> => new PackSink(packs, signal).takeAll(stream);

/** Each chunk verified, in order, some fetched ahead. */
export async function* readStream(
  refs: Iterable<ChunkRef>,
  packs: Packs,
  signal: AbortSignal,
): AsyncGenerator<Buffer, void, undefined> {
  const ahead: Promise<Buffer>[] = [];
  for (const ref of refs) {
    signal.throwIfAborted();
    const chunk = chunkOf(ref, packs);
    // Whoever reads sees the failure in its turn; if nobody reads on, nobody needs to.
    chunk.catch(() => {});
    ahead.push(chunk);
    if (ahead.length > chunksAhead) yield await ahead.shift()!;
  }
  for (const chunk of ahead) yield await chunk;
}

async function chunkOf({ id, sizeBytes }: ChunkRef, packs: Packs): Promise<Buffer> {
  const chunk = await packs.get(id);
  if (chunk.length === sizeBytes) return chunk;
  throw new GatewayError("GW_SNAPSHOT_CORRUPT", `chunk ${id} has ${chunk.length} bytes, listed with ${sizeBytes}`);
}

async function putAll(
  tree: Tree,
  packs: Packs,
  place: Place,
  replacement: Replacement,
  signal: AbortSignal,
  onProgress: (progress: Progress) => void,
): Promise<void> {
  const puts = new Flight(place.isSequential ? 1 : filesAtOnce, signal);
  let entries = 0;
  let bytes = 0;
  const told = (sizeBytes: number): void => {
    entries += 1;
    bytes += sizeBytes;
    onProgress({ entries, bytes });
  };
  await puts.during(async () => {
    for (const entry of tree.entries) {
      if (place.isSequential) await puts.landed();
      if (entry.kind !== "file") {
        // Before what is in it is begun.
        await replacement.put(entry, null);
        told(0);
        continue;
      }
      const { path, mode, sizeBytes, chunks } = entry;
      await puts.start(1, async () => {
        const content = readStream(decodeChunks(chunks), packs, puts.signal);
        await replacement.put({ kind: "file", path, mode, sizeBytes, stamp: null }, content);
        told(sizeBytes);
      });
    }
  });
}

/** Where chunks go: hashed at once, added to the packs side by side. */
class PackSink {
  newBytes = 0;
  newChunks = 0;
  readonly #packs: Packs;
  readonly #adds: Flight;

  constructor(packs: Packs, signal: AbortSignal) {
    this.#packs = packs;
    this.#adds = new Flight(bytesUnderWay, signal);
  }

  has(chunks: ChunkList): boolean {
    for (const { id } of decodeChunks(chunks)) if (!this.#packs.has(id)) return false;
    return true;
  }

  /** Resolves when there is room for the next one. */
  async take(chunk: Buffer): Promise<ChunkRef> {
    const id = chunkId(chunk);
    this.#adds.throwIfFailed();
    if (!this.#packs.has(id))
      await this.#adds.start(chunk.length, async () => {
        const bytes = await this.#packs.add(id, chunk);
        this.newBytes += bytes;
        this.newChunks += bytes === 0 ? 0 : 1;
      });
    return { id, sizeBytes: chunk.length };
  }

  /** Resolves when all that was taken while the work was done has been added; nothing is under way when it rejects. */
  during<T>(work: () => Promise<T>): Promise<T> {
    return this.#adds.during(work);
  }

  takeAll(stream: AsyncIterable<Buffer> | Iterable<Buffer>): Promise<readonly ChunkRef[]> {
    return this.during(async () => {
      const refs: ChunkRef[] = [];
      for await (const chunk of cut(asyncOf(stream))) refs.push(await this.take(chunk));
      return refs;
    });
  }
}

/** One walk over a place. */
class Scan {
  readBytes = 0;
  skipped: readonly string[] = [];
  readonly #place: Place;
  readonly #sink: PackSink | null;
  readonly #options: ArchiveOptions;
  readonly #beganMs: number;
  readonly #entries: ListedEntry[] = [];
  readonly #vanished: string[] = [];
  #bytes = 0;

  constructor(place: Place, sink: PackSink | null, options: ArchiveOptions) {
    this.#place = place;
    this.#sink = sink;
    this.#options = options;
    this.#beganMs = options.beganMs ?? systemClock.wallMs();
    options.cache?.begin();
  }

  async run(): Promise<Tree> {
    const files = new Flight(this.#place.isSequential ? 1 : filesAtOnce, this.#options.signal);
    const walk = (): Promise<void> => files.during(() => this.#walk(files));
    await (this.#sink === null ? walk() : this.#sink.during(walk));
    this.skipped = [...this.#place.skipped, ...this.#vanished];
    return makeTree(this.#entries);
  }

  async #walk(files: Flight): Promise<void> {
    for await (const readable of this.#place.read(files.signal)) {
      const { entry } = readable;
      if (entry.kind !== "file") this.#add(entry, 0);
      else if (!this.#isKnown(entry)) await files.start(1, () => this.#read(entry, readable, files.signal));
      if (this.#place.isSequential) await files.landed();
    }
  }

  /** After all went well. */
  async end(): Promise<void> {
    await this.#options.cache?.save(this.#beganMs);
  }

  /** Not written since it was read, and all of it still in the packs. */
  #isKnown(entry: TreeFile): boolean {
    const chunks = this.#options.cache?.find(entry.path, entry.stamp) ?? null;
    if (chunks === null || this.#sink?.has(chunks) === false) return false;
    this.#addFile(entry, entry.sizeBytes, chunks);
    return true;
  }

  async #read(entry: TreeFile, { content }: Readable, signal: AbortSignal): Promise<void> {
    const refs: ChunkRef[] = [];
    let sizeBytes = 0;
    try {
      for await (const chunk of cut(content?.() ?? asyncOf([]))) {
        signal.throwIfAborted();
        refs.push((await this.#sink?.take(chunk)) ?? { id: chunkId(chunk), sizeBytes: chunk.length });
        sizeBytes += chunk.length;
      }
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "ENOENT") throw error;
      this.#vanished.push(entry.path);
      return;
    }
    this.readBytes += sizeBytes;
    this.#addFile(entry, sizeBytes, encodeChunks(refs));
  }

  #addFile({ path, mode, stamp }: TreeFile, sizeBytes: number, chunks: ChunkList): void {
    this.#options.cache?.keep(path, stamp, chunks);
    this.#add({ kind: "file", path, mode, sizeBytes, chunks }, sizeBytes);
  }

  #add(entry: ListedEntry, sizeBytes: number): void {
    this.#entries.push(entry);
    this.#bytes += sizeBytes;
    this.#options.onProgress?.({ entries: this.#entries.length, bytes: this.#bytes });
  }
}

async function* asyncOf(stream: AsyncIterable<Buffer> | Iterable<Buffer>): AsyncGenerator<Buffer, void, undefined> {
  yield* stream;
}
