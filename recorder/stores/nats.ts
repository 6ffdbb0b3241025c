// Snapshots in an object store of NATS JetStream, in its own layout: `nats object` and every client of it read what is here.
//
// The client's calls (@nats-io/obj 3.4.0) are not used beyond making the bucket. Its `put`, when the last answer is lost, removes the
// chunks of an object that is already there in place of the former one; its `get` waits for ever when a chunk is gone or the connection
// is lost. Here the last step of a put is a compare and set: so it is known what was replaced, and whether.

import { randomBytes } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";

import { natsError, openNats } from "../../gateway/drivers/nats.ts";
import type { Nats } from "../../gateway/drivers/nats.ts";
import { GatewayError } from "../../gateway/errors.ts";
import { corrupt, openGuarded, unavailable, withinMs } from "./guarded.ts";
import type { Backing, Range } from "./guarded.ts";
import { Bucket, digestOf } from "./nats-bucket.ts";
import type { Description, Found } from "./nats-bucket.ts";
import { isObjectName, objectBytesMax } from "./store.ts";
import type { SnapshotStore, StoreOptions, StoredObject } from "./store.ts";

export type NatsStoreOptions = Extract<StoreOptions, { kind: "nats" }>;

export interface NatsLimits {
  readonly callMs: number;
  /** What has no answer is tried again for so long: above the fail-over of an R3 leader. */
  readonly insistMs: number;
}

/** Makes the bucket when there is none. Rejects with GW_STORE_UNAVAILABLE, also when the bucket could lose objects. */
export function openNatsStore(
  options: NatsStoreOptions,
  limits: NatsLimits = { callMs: 60_000, insistMs: 20_000 },
): Promise<SnapshotStore> {
  return openGuarded(new NatsBacking(options, limits));
}

const chunksInFlight = 8;
const lookUpsAtOnce = 64;
const leftMax = 1_000;
const againMs = 100;
/** Chunks that no object names are a killed put's once they are so old; marks of removals have done their service then. */
const leftoverMs = 3_600_000;

class NatsBacking implements Backing {
  readonly kind = "nats";
  readonly where: string;
  readonly callMs: number;
  readonly #options: NatsStoreOptions;
  readonly #insistMs: number;
  /** Subjects of chunks that could not be removed yet. */
  readonly #left = new Set<string>();
  #nats: Nats | null = null;
  #opened: Bucket | null = null;

  constructor(options: NatsStoreOptions, limits: NatsLimits) {
    this.#options = options;
    this.where = `nats://${options.bucket} at ${options.servers.join(", ")}`;
    this.callMs = limits.callMs;
    this.#insistMs = limits.insistMs;
  }

  async open(signal: AbortSignal): Promise<void> {
    const { servers, credentialsFile, auth, tls, bucket, replicas } = this.#options;
    const connection = {
      servers,
      name: `snapshots in ${bucket}`,
      ...(credentialsFile === null ? {} : { credentialsFile }),
      ...(auth === null ? {} : { auth }),
      ...(tls === null ? {} : { tls }),
    };
    const nats = await withinMs(signal, this.#insistMs, async (signal) => {
      const nats = await openNats(connection, signal);
      if (signal.aborted) await nats.close(); // nobody waits for it any more
      else this.#nats = nats;
      return nats;
    });
    this.#opened = new Bucket(nats, bucket, this.#insistMs);
    const faults = await this.#opened.make(replicas, signal);
    if (faults.length > 0) {
      throw unavailable(
        `The bucket ${bucket} cannot hold snapshots: ${faults.join(", ")}. Mend it with "nats stream edit OBJ_${bucket}", or name another`,
      );
    }
    await this.#sweep(signal);
  }

  /** Begins anew whenever it is not known what became of a part of it. */
  async put(name: string, bytes: Buffer, signal: AbortSignal): Promise<void> {
    const digest = digestOf(bytes);
    // Ends when it is stored, when the time is over, or when `signal` aborts.
    for (let isStored = false; !isStored;) {
      isStored = await this.#bucket.insist(signal, `Storing ${name}`, async () => {
        const nuid = randomBytes(11).toString("hex");
        const chunks = await this.#putChunks(nuid, bytes, signal).catch(async (error: unknown) => {
          await this.#discard(nuid);
          throw error;
        });
        const description = {
          name,
          bucket: this.#options.bucket,
          nuid,
          size: bytes.length,
          chunks,
          digest,
          mtime: new Date().toISOString(),
          deleted: false,
          options: { max_chunk_size: this.#bucket.chunkBytes },
        };
        return this.#switchTo(description, signal);
      });
    }
  }

  async get(name: string, range: Range | null, signal: AbortSignal): Promise<Buffer | null> {
    const what = `The object ${name} in ${this.where}`;
    let found = await this.#bucket.find(name, signal);
    // Ends with an answer: a round more only when the object was replaced meanwhile.
    for (;;) {
      const { description, sequence, kind } = found;
      if (kind === "damaged") throw corrupt(`${what} cannot be read: its description is none`);
      if (description === null || kind !== "object") return null;
      if (description.size > objectBytesMax) throw corrupt(`${what} is larger than any that was stored`);
      const bytes = await this.#bucket.chunks(description, signal);
      if (bytes !== null && digestOf(bytes) === description.digest) {
        return range === null ? bytes : bytes.subarray(range.start, range.end);
      }
      found = await this.#bucket.find(name, signal);
      if (found.sequence === sequence) throw corrupt(`${what} is not what was stored: chunks are missing or changed`);
    }
  }

  /** Without objects whose description is damaged: whoever misses one puts it again, and that mends it. */
  async *list(prefix: string, signal: AbortSignal): AsyncGenerator<StoredObject> {
    const names = await this.#bucket.names(signal);
    const wanted = names.filter((name) => name.startsWith(prefix) && isObjectName(name));
    for await (const [name, { kind, description, atMs }] of this.#found(wanted, signal)) {
      if (kind === "object" && description !== null) {
        yield { name, sizeBytes: description.size, storedAtMs: Date.parse(description.mtime) };
      }
      // Nothing can undo that removal any more. If this purge is undone, the mark is back.
      if (kind === "mark" && isOld(atMs)) {
        await this.#bucket.purge({ filter: this.#bucket.descriptionSubject(name) }).catch(() => {});
      }
    }
  }

  /**
   * By a mark, as the layout has it: a kill -9 of the server (2.10.27, always syncing) undid purges that it had acknowledged. It is a purge
   * only where there is no room for a mark, or nothing that could be marked.
   */
  async remove(name: string, signal: AbortSignal): Promise<void> {
    // Ends when there is none: whoever puts it at the same time is taken for the earlier or the later.
    for (;;) {
      const { kind, description, sequence } = await this.#bucket.find(name, signal);
      if (kind === "none" || kind === "mark") return;
      const outcome = description === null ? "full" : await this.#mark(description, sequence);
      if (outcome === "full") {
        // One that was put meanwhile is newer, and stays.
        const purge = { filter: this.#bucket.descriptionSubject(name), seq: sequence + 1 };
        await this.#bucket.insist(signal, `Removing ${name}`, () => this.#bucket.purge(purge));
      }
      if (outcome === "full" || outcome === "stored") return this.#discard(description?.nuid);
      await sleep(outcome === "unknown" ? againMs : 0, undefined, { signal });
    }
  }

  async close(): Promise<void> {
    await this.#nats?.close();
  }

  failure(error: unknown, what: string): GatewayError {
    const { code, message } = natsError(error, what);
    if (code === "GW_LOG_FULL") {
      return new GatewayError(
        "GW_STORE_FULL",
        `${what}: the bucket or the server's storage is full. Nothing was changed. Make room, or keep fewer snapshots.`,
        { cause: error },
      );
    }
    return unavailable(`${what}: ${message.replace(/\.$/, "")}`, error);
  }

  /** Each acknowledged, in order. When one fails, nothing of them is under way any more: a purge would overtake it. */
  async #putChunks(nuid: string, bytes: Buffer, signal: AbortSignal): Promise<number> {
    const pending: Promise<void>[] = [];
    const sizeBytes = this.#bucket.chunkBytes;
    try {
      for (let at = 0; at < bytes.length; at += sizeBytes) {
        signal.throwIfAborted();
        if (pending.length >= chunksInFlight) await pending[pending.length - chunksInFlight];
        const chunk = this.#bucket.putChunk(nuid, bytes.subarray(at, at + sizeBytes));
        chunk.catch(() => {}); // met by one of the waits
        pending.push(chunk);
      }
      return (await Promise.all(pending)).length;
    } finally {
      await Promise.allSettled(pending);
    }
  }

  /**
   * Makes the object the chunks of the description, and removes those of the former one. False: it is not known whether it was that for a
   * while, and then whoever replaced it has removed the chunks, so they have to be put again.
   */
  async #switchTo(description: Description, signal: AbortSignal): Promise<boolean> {
    const { name, nuid } = description;
    let last = await this.#bucket.find(name, signal);
    let isUnsure = false;
    // Ends when it is known, or when nothing answers any more.
    for (;;) {
      const outcome = await this.#bucket.compareAndSet(description, last.sequence).catch(async (error: unknown) => {
        if (!isUnsure) await this.#discard(nuid);
        throw error;
      });
      isUnsure ||= outcome === "unknown";
      const now = outcome === "stored" ? null : await this.#bucket.find(name, signal);
      if (now === null || now.description?.nuid === nuid) {
        await this.#discard(last.kind === "object" ? last.description?.nuid : undefined);
        return true;
      }
      if (isUnsure && (now.sequence !== last.sequence || now.sequence === 0)) return false;
      last = now;
      await sleep(isUnsure ? againMs : 0, undefined, { signal });
    }
  }

  async #mark(description: Description, sequence: number): Promise<"stored" | "lost" | "unknown" | "full"> {
    const mark = { ...description, deleted: true, size: 0, chunks: 0, digest: "", mtime: new Date().toISOString() };
    try {
      return await this.#bucket.compareAndSet(mark, sequence);
    } catch (error) {
      if (error instanceof GatewayError && error.code === "GW_LOG_FULL") return "full";
      throw error;
    }
  }

  /** What there is under each name; so many are looked up at a time. */
  async *#found(names: readonly string[], signal: AbortSignal): AsyncGenerator<readonly [string, Found]> {
    for (let at = 0; at < names.length; at += lookUpsAtOnce) {
      const page = names.slice(at, at + lookUpsAtOnce);
      const found = page.map(async (name) => [name, await this.#bucket.find(name, signal)] as const);
      yield* await Promise.all(found);
    }
  }

  /** Removes the chunks that killed puts left. Looks closely only when there are more sets of chunks than names. */
  async #sweep(signal: AbortSignal): Promise<void> {
    const left = new Set(await this.#bucket.chunkSubjects(signal));
    const names = await this.#bucket.names(signal);
    if (left.size <= names.length) return;
    for await (const [, { kind, description }] of this.#found(names, signal)) {
      if (kind === "damaged") return; // nobody knows which chunks it names
      if (kind === "object" && description !== null) left.delete(this.#bucket.chunkSubject(description.nuid));
    }
    for (const filter of left) {
      const last = await this.#bucket.last(filter, signal);
      if (last === null || !isOld(last.time.getTime())) continue;
      await this.#bucket.insist(signal, "Sweeping", () => this.#bucket.purge({ filter }));
    }
  }

  /** Chunks that no object names any more, with those of before. What cannot be removed now is remembered; else the next opening does it. */
  async #discard(nuid: string | undefined): Promise<void> {
    if (nuid !== undefined && this.#left.size < leftMax) this.#left.add(this.#bucket.chunkSubject(nuid));
    for (const filter of this.#left) {
      try {
        await this.#bucket.purge({ filter });
      } catch {
        return;
      }
      this.#left.delete(filter);
    }
  }

  get #bucket(): Bucket {
    if (this.#opened === null) throw unavailable(`${this.where} is not open`);
    return this.#opened;
  }
}

const isOld = (atMs: number): boolean => Date.now() - atMs > leftoverMs;
