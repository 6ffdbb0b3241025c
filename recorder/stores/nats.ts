// Snapshots in an object store of NATS JetStream, in its own layout: `nats object` and every client of it read what is here.
//
// The client's calls (@nats-io/obj 3.4.0) are not used beyond making the bucket. Its `put`, when the last answer is lost, removes the
// chunks of an object that is already there in place of the former one; its `get` waits for ever when a chunk is gone or the connection
// is lost. Here the last step of a put is a compare and set: so it is known what was
// replaced, and whether.
// Looked up at the stream's leader. One that was deposed and does not know it yet may, for seconds, not know the newest objects.

import { createHash, randomBytes } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";

import { StorageType } from "@nats-io/jetstream";
import type {
  JetStreamPublishOptions,
  LastForMsgRequest,
  NextMsgRequest,
  PurgeOpts,
  StoredMsg,
} from "@nats-io/jetstream";
import { Objm } from "@nats-io/obj";
import { headers } from "@nats-io/transport-node";

import { api, apiCode, apiTimeoutMs, insist, natsError, openNats, whileConnected } from "../../gateway/drivers/nats.ts";
import type { Nats } from "../../gateway/drivers/nats.ts";
import { GatewayError } from "../../gateway/errors.ts";
import { corrupt, openGuarded, unavailable, withinMs } from "./guarded.ts";
import type { Backing, Range } from "./guarded.ts";
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

const chunkBytesMax = 512 * 1024;
const chunksInFlight = 8;
const lookUpsAtOnce = 64;
const leftMax = 1_000;
const againMs = 100;
/** Chunks that no object names are a killed put's once they are so old; marks of removals have done their service then. */
const leftoverMs = 3_600_000;

/** What the bucket says of an object; the field names are the layout's. */
interface ObjectInfo {
  readonly name: string;
  readonly bucket: string;
  readonly nuid: string;
  readonly size: number;
  readonly chunks: number;
  readonly digest: string;
  readonly mtime: string;
  readonly deleted?: boolean;
  readonly options: { readonly max_chunk_size: number };
}

interface Found {
  /** Of the message; 0: there is none. */
  readonly sequence: number;
  /** Null: none, or one that is marked as deleted. */
  readonly info: ObjectInfo | null;
  readonly isOldMark: boolean;
}

class NatsBacking implements Backing {
  readonly kind = "nats";
  readonly where: string;
  readonly callMs: number;
  readonly #options: NatsStoreOptions;
  readonly #insistMs: number;
  readonly #stream: string;
  /** Subjects of chunks that could not be removed yet. */
  readonly #left = new Set<string>();
  #opened: Nats | null = null;

  constructor(options: NatsStoreOptions, limits: NatsLimits) {
    this.#options = options;
    this.where = `nats://${options.bucket} at ${options.servers.join(", ")}`;
    this.#stream = `OBJ_${options.bucket}`;
    this.callMs = limits.callMs;
    this.#insistMs = limits.insistMs;
  }

  async open(signal: AbortSignal): Promise<void> {
    const { servers, credentialsFile, tls, bucket, replicas } = this.#options;
    const connection = {
      servers,
      name: `snapshots in ${bucket}`,
      ...(credentialsFile === null ? {} : { credentialsFile }),
      ...(tls === null ? {} : { tls }),
    };
    const nats = await withinMs(signal, this.#insistMs, async (signal) => {
      const nats = await openNats(connection, signal);
      if (signal.aborted) await nats.close(); // nobody waits for it any more
      else this.#opened = nats;
      return nats;
    });
    const info = await this.#insist(signal, `Making the bucket ${bucket}`, async () => {
      await new Objm(nats.jetstream).create(bucket, { replicas, storage: StorageType.File });
      return nats.manager.streams.info(this.#stream);
    });
    const { config } = info;
    const faults = [
      ...(config.storage === StorageType.File ? [] : ["it is kept in memory"]),
      ...(config.max_age === 0 ? [] : ["its objects expire"]),
      ...(config.sealed ? ["it is sealed"] : []),
      ...(config.discard === "new" ? [] : ["it drops the oldest when it is full"]),
      ...(config.num_replicas >= replicas ? [] : [`it has ${config.num_replicas} replicas, ${replicas} are wanted`]),
    ];
    if (faults.length > 0) {
      throw unavailable(
        `The bucket ${bucket} cannot hold snapshots: ${faults.join(", ")}. Mend it with "nats stream edit ${this.#stream}", or name another`,
      );
    }
    await this.#sweep(signal);
  }

  /** Begins anew whenever it is not known what became of a part of it. */
  async put(name: string, bytes: Buffer, signal: AbortSignal): Promise<void> {
    const digest = digestOf(bytes);
    // Ends when it is stored, when the time is over, or when `signal` aborts.
    for (let isStored = false; !isStored;) {
      isStored = await this.#insist(signal, `Storing ${name}`, async () => {
        const nuid = randomBytes(11).toString("hex");
        const chunks = await this.#putChunks(nuid, bytes, signal).catch(async (error: unknown) => {
          await this.#discard(nuid);
          throw error;
        });
        const info: ObjectInfo = {
          name,
          bucket: this.#options.bucket,
          nuid,
          size: bytes.length,
          chunks,
          digest,
          mtime: new Date().toISOString(),
          deleted: false,
          options: { max_chunk_size: this.#chunkBytes() },
        };
        return this.#switchTo(info, signal);
      });
    }
  }

  async get(name: string, range: Range | null, signal: AbortSignal): Promise<Buffer | null> {
    const what = `The object ${name} in ${this.where}`;
    let found = await this.#lookUp(name, signal);
    // Ends with an answer: a round more only when the object was replaced meanwhile.
    for (;;) {
      const { info, sequence } = found;
      if (info === null) return null;
      if (info.size > objectBytesMax) throw corrupt(`${what} is larger than any that was stored`);
      const bytes = await this.#chunksOf(info, signal);
      if (bytes !== null && digestOf(bytes) === info.digest) {
        return range === null ? bytes : bytes.subarray(range.start, range.end);
      }
      found = await this.#lookUp(name, signal);
      if (found.sequence === sequence) throw corrupt(`${what} is not what was stored: chunks are missing or changed`);
    }
  }

  async *list(prefix: string, signal: AbortSignal): AsyncGenerator<StoredObject> {
    const names = await this.#names(signal);
    const wanted = names.filter((name) => name.startsWith(prefix) && isObjectName(name));
    // Ends with the names; so many are looked up at a time.
    for (let at = 0; at < wanted.length; at += lookUpsAtOnce) {
      const page = wanted.slice(at, at + lookUpsAtOnce);
      const found = await Promise.all(page.map((name) => this.#lookUp(name, signal)));
      for (const [index, { info, isOldMark }] of found.entries()) {
        if (info !== null) yield { name: info.name, sizeBytes: info.size, storedAtMs: Date.parse(info.mtime) };
        // Nothing can undo that removal any more. If this purge is undone, the mark is back.
        else if (isOldMark) await this.#purge({ filter: this.#infoSubject(page[index]!) }).catch(() => {});
      }
    }
  }

  /**
   * By a mark, as the layout has it: a kill -9 of the server (2.10.27, always syncing) undid purges that it had acknowledged. Only where
   * there is no room for a mark it is a purge.
   */
  async remove(name: string, signal: AbortSignal): Promise<void> {
    // Ends when there is none: whoever puts it at the same time is taken for the earlier or the later.
    for (;;) {
      const { info, sequence } = await this.#lookUp(name, signal);
      if (info === null) return;
      const mark = { ...info, deleted: true, size: 0, chunks: 0, digest: "", mtime: new Date().toISOString() };
      const outcome = await this.#compareAndSet(mark, sequence).catch((error: unknown) => {
        if (error instanceof GatewayError && error.code === "GW_LOG_FULL") return "full";
        throw error;
      });
      if (outcome === "full") {
        // One that was put meanwhile is newer, and stays.
        const purge = { filter: this.#infoSubject(name), seq: sequence + 1 };
        await this.#insist(signal, `Removing ${name}`, () => this.#purge(purge));
      }
      if (outcome === "full" || outcome === "stored") return this.#discard(info.nuid);
      await sleep(outcome === "unknown" ? againMs : 0, undefined, { signal });
    }
  }

  async close(): Promise<void> {
    await this.#opened?.close();
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

  /** Each acknowledged, in order. */
  async #putChunks(nuid: string, bytes: Buffer, signal: AbortSignal): Promise<number> {
    const pending: Promise<void>[] = [];
    const sizeBytes = this.#chunkBytes();
    for (let at = 0; at < bytes.length; at += sizeBytes) {
      signal.throwIfAborted();
      if (pending.length >= chunksInFlight) await pending[pending.length - chunksInFlight];
      const chunk = this.#publish(this.#chunkSubject(nuid), bytes.subarray(at, at + sizeBytes));
      chunk.catch(() => {}); // met by one of the waits
      pending.push(chunk);
    }
    return (await Promise.all(pending)).length;
  }

  /**
   * Makes the object the chunks of `info`, and removes those of the former one. False: it is not known whether it was that for a while,
   * and then whoever replaced it has removed the chunks, so they have to be put again.
   */
  async #switchTo(info: ObjectInfo, signal: AbortSignal): Promise<boolean> {
    let last = await this.#lookUp(info.name, signal);
    let isUnsure = false;
    // Ends when it is known, or when nothing answers any more.
    for (;;) {
      const outcome = await this.#compareAndSet(info, last.sequence);
      isUnsure ||= outcome === "unknown";
      const now: Found =
        outcome === "stored" ? { info, sequence: 0, isOldMark: false } : await this.#lookUp(info.name, signal);
      if (now.info?.nuid === info.nuid) {
        await this.#discard(last.info?.nuid);
        return true;
      }
      if (isUnsure && (now.sequence !== last.sequence || now.sequence === 0)) return false;
      last = now;
      await sleep(isUnsure ? againMs : 0, undefined, { signal });
    }
  }

  /** "lost": another one came first. Rejects with GW_LOG_FULL. */
  async #compareAndSet(info: ObjectInfo, expected: number): Promise<"stored" | "lost" | "unknown"> {
    const rollup = headers();
    rollup.set("Nats-Rollup", "sub");
    const bytes = Buffer.from(JSON.stringify(info));
    try {
      await this.#publish(this.#infoSubject(info.name), bytes, {
        headers: rollup,
        expect: { lastSubjectSequence: expected },
      });
      return "stored";
    } catch (error) {
      const { code } = natsError(error, "Storing");
      if (code === "GW_CONFLICT") return "lost";
      // What the server judged is known.
      if (code === "GW_LOG_UNAVAILABLE" && apiCode(error) === null) return "unknown";
      throw error;
    }
  }

  /** Rejects with GW_LOG_FULL or GW_CONFLICT (not stored), or with what leaves it open. */
  async #publish(subject: string, bytes: Buffer, options: Partial<JetStreamPublishOptions> = {}): Promise<void> {
    const nats = this.#nats();
    const what = `Storing ${bytes.length} bytes in ${this.#stream}`;
    // It would be dropped, and waited for in vain.
    if (!nats.isConnected()) throw new GatewayError("GW_LOG_UNAVAILABLE", `${what}: there is no connection to NATS.`);
    try {
      await whileConnected(nats, nats.jetstream.publish(subject, bytes, { timeout: apiTimeoutMs, ...options }));
    } catch (error) {
      const message = `${what}: ${(error as Error).message}.`;
      if (apiCode(error) === api.wrongLastSequence) throw new GatewayError("GW_CONFLICT", message, { cause: error });
      if (isFull(error)) throw new GatewayError("GW_LOG_FULL", message, { cause: error });
      throw natsError(error, what);
    }
  }

  async #lookUp(name: string, signal: AbortSignal): Promise<Found> {
    const message = await this.#message({ last_by_subj: this.#infoSubject(name) }, signal);
    if (message === null) return { sequence: 0, info: null, isOldMark: false };
    const info = infoIn(message);
    if (info === null) throw corrupt(`What ${this.where} says of ${name} cannot be read`);
    if (info.deleted !== true) return { sequence: message.seq, info, isOldMark: false };
    return { sequence: message.seq, info: null, isOldMark: isOld(message) };
  }

  /** Null: some are missing, or are not as many bytes. */
  async #chunksOf({ nuid, chunks, size }: ObjectInfo, signal: AbortSignal): Promise<Buffer | null> {
    const next_by_subj = this.#chunkSubject(nuid);
    const parts: Uint8Array[] = [];
    let sizeBytes = 0;
    for (let seq = 1; parts.length < chunks && sizeBytes <= size;) {
      const query = { seq, next_by_subj };
      // Chunks never change: any replica will do. What one does not have yet is asked of the leader.
      const message = (await this.#near(query, signal)) ?? (await this.#message(query, signal));
      if (message === null) return null;
      parts.push(message.data);
      sizeBytes += message.data.length;
      seq = message.seq + 1;
    }
    return sizeBytes === size ? Buffer.concat(parts, size) : null;
  }

  /** From the leader; null when there is none. */
  #message(query: LastForMsgRequest | NextMsgRequest, signal: AbortSignal): Promise<StoredMsg | null> {
    // The client's types know `next_by_subj` of the other call only; the server takes it here, too.
    const asked = query as LastForMsgRequest;
    return this.#read(signal, ({ manager }) => manager.streams.getMessage(this.#stream, asked));
  }

  #near(query: NextMsgRequest, signal: AbortSignal): Promise<StoredMsg | null> {
    return this.#read(signal, ({ manager }) => manager.direct.getMessage(this.#stream, query));
  }

  #read(signal: AbortSignal, ask: (nats: Nats) => Promise<StoredMsg | null>): Promise<StoredMsg | null> {
    return this.#insist(signal, `Reading ${this.#stream}`, async () => {
      try {
        return await whileConnected(this.#nats(), ask(this.#nats()));
      } catch (error) {
        if (apiCode(error) === api.noMessage) return null;
        throw error;
      }
    });
  }

  /** Of all objects, those that are marked as deleted included. */
  async #names(signal: AbortSignal): Promise<string[]> {
    const subjects = await this.#subjects("M", signal);
    return subjects
      .map((subject) => Buffer.from(subject.slice(subject.lastIndexOf(".") + 1), "base64url").toString("utf8"))
      .filter((name) => name !== "");
  }

  /** Removes the chunks that killed puts left. Only looks closely when there are more sets of chunks than objects. */
  async #sweep(signal: AbortSignal): Promise<void> {
    const uploads = await this.#subjects("C", signal);
    const names = await this.#names(signal);
    if (uploads.length <= names.length) return;
    const left = new Set(uploads);
    for (let at = 0; at < names.length; at += lookUpsAtOnce) {
      const page = names.slice(at, at + lookUpsAtOnce);
      for (const { info } of await Promise.all(page.map((name) => this.#lookUp(name, signal)))) {
        if (info !== null) left.delete(this.#chunkSubject(info.nuid));
      }
    }
    for (const subject of left) {
      const last = await this.#message({ last_by_subj: subject }, signal);
      if (last === null || !isOld(last)) continue;
      await this.#insist(signal, `Sweeping ${this.#stream}`, () => this.#purge({ filter: subject }));
    }
  }

  #subjects(kind: "C" | "M", signal: AbortSignal): Promise<string[]> {
    return this.#insist(signal, `Listing ${this.#stream}`, async () => {
      const filter = { subjects_filter: `$O.${this.#options.bucket}.${kind}.>` };
      const { state } = await whileConnected(this.#nats(), this.#nats().manager.streams.info(this.#stream, filter));
      return Object.keys(state.subjects ?? {});
    });
  }

  /** Chunks that no object names any more, with those of before. What cannot be removed now is remembered; else the next opening does it. */
  async #discard(nuid: string | undefined): Promise<void> {
    if (nuid !== undefined && this.#left.size < leftMax) this.#left.add(this.#chunkSubject(nuid));
    for (const filter of this.#left) {
      try {
        await this.#purge({ filter });
      } catch {
        return;
      }
      this.#left.delete(filter);
    }
  }

  async #purge(what: PurgeOpts): Promise<void> {
    if (!this.#nats().isConnected()) throw new GatewayError("GW_LOG_UNAVAILABLE", "There is no connection to NATS.");
    await whileConnected(this.#nats(), this.#nats().manager.streams.purge(this.#stream, what));
  }

  /** Repeats what has no answer, over a restart or a change of leader. All that is done here may be done twice. */
  #insist<T>(signal: AbortSignal, what: string, work: () => Promise<T>): Promise<T> {
    return insist(this.#insistMs, async () => {
      signal.throwIfAborted();
      try {
        return await work();
      } catch (error) {
        throw natsError(error, what);
      }
    });
  }

  #nats(): Nats {
    if (this.#opened === null) throw new GatewayError("GW_LOG_UNAVAILABLE", "There is no connection to NATS.");
    return this.#opened;
  }

  #chunkBytes(): number {
    return Math.min(chunkBytesMax, this.#nats().connection.info?.max_payload ?? chunkBytesMax);
  }

  #infoSubject(name: string): string {
    return `$O.${this.#options.bucket}.M.${base64Url(Buffer.from(name))}`;
  }

  #chunkSubject(nuid: string): string {
    return `$O.${this.#options.bucket}.C.${nuid}`;
  }
}

/** With padding, as the layout has it; Node's own has none. */
const base64Url = (bytes: Buffer): string => bytes.toString("base64").replaceAll("+", "-").replaceAll("/", "_");

const digestOf = (bytes: Buffer): string => `SHA-256=${base64Url(createHash("sha256").update(bytes).digest())}`;

const isOld = (message: StoredMsg): boolean => Date.now() - message.time.getTime() > leftoverMs;

function infoIn(message: StoredMsg): ObjectInfo | null {
  try {
    const info = message.json<ObjectInfo>();
    const isSound =
      [info.name, info.nuid, info.digest, info.mtime].every((it) => typeof it === "string") &&
      [info.size, info.chunks].every((it) => Number.isSafeInteger(it) && it >= 0);
    return isSound ? info : null;
  } catch {
    return null;
  }
}

/** The bucket's own limit, the account's, or the server's. */
function isFull(error: unknown): boolean {
  const code = apiCode(error);
  const isLimit = code === api.storeFailed && /maximum (bytes|messages) exceeded/.test((error as Error).message);
  return isLimit || code === api.insufficientResources || code === api.storageExceeded;
}
