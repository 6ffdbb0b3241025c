// The stream of an object store in NATS JetStream, and its layout: what is asked of the server, and what its answers mean.
//
// `$O.<bucket>.C.<nuid>` holds the chunks of one put, `$O.<bucket>.M.<name in base64url>` the description of an object, the last one of
// which counts. Descriptions are read from the stream's leader. One that was deposed and does not know it yet may, for seconds, not know
// the newest.

import { createHash } from "node:crypto";

import { StorageType } from "@nats-io/jetstream";
import type {
  JetStreamPublishOptions,
  LastForMsgRequest,
  NextMsgRequest,
  PurgeOpts,
  StoredMsg,
  StreamConfig,
} from "@nats-io/jetstream";
import { Objm } from "@nats-io/obj";
import { headers } from "@nats-io/transport-node";

import { api, apiCode, apiTimeoutMs, insist, natsError, whileConnected } from "../../gateway/drivers/nats.ts";
import type { Nats } from "../../gateway/drivers/nats.ts";
import { GatewayError } from "../../gateway/errors.ts";

/** Of an object; the field names are the layout's. */
export interface Description {
  readonly name: string;
  readonly bucket: string;
  readonly nuid: string;
  readonly size: number;
  readonly chunks: number;
  readonly digest: string;
  readonly mtime: string;
  /** True: a mark that it was removed. */
  readonly deleted?: boolean;
  readonly options: { readonly max_chunk_size: number };
}

export interface Found {
  /** Of the message; 0: there is none. */
  readonly sequence: number;
  readonly kind: "object" | "mark" | "damaged" | "none";
  /** Of an object or a mark. */
  readonly description: Description | null;
  readonly atMs: number;
}

const chunkBytesMax = 512 * 1024;

export class Bucket {
  readonly #nats: Nats;
  readonly #name: string;
  readonly #stream: string;
  readonly #insistMs: number;

  /** `insistMs`: what has no answer is tried again for so long. */
  constructor(nats: Nats, name: string, insistMs: number) {
    this.#nats = nats;
    this.#name = name;
    this.#stream = `OBJ_${name}`;
    this.#insistMs = insistMs;
  }

  get chunkBytes(): number {
    return Math.min(chunkBytesMax, this.#nats.connection.info?.max_payload ?? chunkBytesMax);
  }

  /** Made when there is none. Resolves with why it cannot hold snapshots; empty when it can. */
  async make(replicas: number, signal: AbortSignal): Promise<string[]> {
    const { config } = await this.insist(signal, `Making the bucket ${this.#name}`, async () => {
      await new Objm(this.#nats.jetstream).create(this.#name, { replicas, storage: StorageType.File });
      return this.#nats.manager.streams.info(this.#stream);
    });
    return faultsOf(config, replicas);
  }

  chunkSubject(nuid: string): string {
    return `$O.${this.#name}.C.${nuid}`;
  }

  descriptionSubject(name: string): string {
    return `$O.${this.#name}.M.${base64Url(Buffer.from(name))}`;
  }

  /** Of all descriptions, marks included. */
  async names(signal: AbortSignal): Promise<string[]> {
    const subjects = await this.#subjects("M", signal);
    return subjects.map((subject) =>
      Buffer.from(subject.slice(subject.lastIndexOf(".") + 1), "base64url").toString("utf8"),
    );
  }

  chunkSubjects(signal: AbortSignal): Promise<string[]> {
    return this.#subjects("C", signal);
  }

  #subjects(kind: "C" | "M", signal: AbortSignal): Promise<string[]> {
    return this.insist(signal, `Listing ${this.#stream}`, async () => {
      const filter = { subjects_filter: `$O.${this.#name}.${kind}.>` };
      const { state } = await whileConnected(this.#nats, this.#nats.manager.streams.info(this.#stream, filter));
      return Object.keys(state.subjects ?? {});
    });
  }

  async find(name: string, signal: AbortSignal): Promise<Found> {
    const message = await this.last(this.descriptionSubject(name), signal);
    if (message === null) return { sequence: 0, kind: "none", description: null, atMs: 0 };
    const description = descriptionIn(message);
    const kind = description === null ? "damaged" : description.deleted === true ? "mark" : "object";
    return { sequence: message.seq, kind, description, atMs: message.time.getTime() };
  }

  /** The last message of a subject. */
  last(subject: string, signal: AbortSignal): Promise<StoredMsg | null> {
    return this.#message({ last_by_subj: subject }, signal);
  }

  /** Null: chunks are missing, or are not as many bytes. */
  async chunks({ nuid, chunks, size }: Description, signal: AbortSignal): Promise<Buffer | null> {
    const next_by_subj = this.chunkSubject(nuid);
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
    return this.#read(signal, () => this.#nats.manager.streams.getMessage(this.#stream, asked));
  }

  #near(query: NextMsgRequest, signal: AbortSignal): Promise<StoredMsg | null> {
    return this.#read(signal, () => this.#nats.manager.direct.getMessage(this.#stream, query));
  }

  #read(signal: AbortSignal, ask: () => Promise<StoredMsg | null>): Promise<StoredMsg | null> {
    return this.insist(signal, `Reading ${this.#stream}`, async () => {
      try {
        return await whileConnected(this.#nats, ask());
      } catch (error) {
        if (apiCode(error) === api.noMessage) return null;
        throw error;
      }
    });
  }

  putChunk(nuid: string, bytes: Buffer): Promise<void> {
    return this.#publish(this.chunkSubject(nuid), bytes);
  }

  /**
   * Makes this the description, if the last one has the sequence `expected` (0: if there is none). "lost": another one came first.
   * Rejects with GW_LOG_FULL and whatever the server judged: then it is not stored.
   */
  async compareAndSet(description: Description, expected: number): Promise<"stored" | "lost" | "unknown"> {
    const rollup = headers();
    rollup.set("Nats-Rollup", "sub");
    try {
      await this.#publish(this.descriptionSubject(description.name), Buffer.from(JSON.stringify(description)), {
        headers: rollup,
        expect: { lastSubjectSequence: expected },
      });
      return "stored";
    } catch (error) {
      const { code } = natsError(error, "Storing");
      if (code === "GW_CONFLICT") return "lost";
      if (code === "GW_LOG_UNAVAILABLE" && apiCode(error) === null) return "unknown";
      throw error;
    }
  }

  async #publish(subject: string, bytes: Buffer, options: Partial<JetStreamPublishOptions> = {}): Promise<void> {
    const what = `Storing ${bytes.length} bytes in ${this.#stream}`;
    this.#checkConnected(what);
    const { jetstream } = this.#nats;
    try {
      await whileConnected(this.#nats, jetstream.publish(subject, bytes, { timeout: apiTimeoutMs, ...options }));
    } catch (error) {
      const message = `${what}: ${(error as Error).message}.`;
      if (apiCode(error) === api.wrongLastSequence) throw new GatewayError("GW_CONFLICT", message, { cause: error });
      if (isFull(error)) throw new GatewayError("GW_LOG_FULL", message, { cause: error });
      throw natsError(error, what);
    }
  }

  async purge(what: PurgeOpts): Promise<void> {
    this.#checkConnected(`Purging ${this.#stream}`);
    await whileConnected(this.#nats, this.#nats.manager.streams.purge(this.#stream, what));
  }

  /** What is sent without a connection is dropped, and waited for in vain. */
  #checkConnected(what: string): void {
    if (this.#nats.isConnected()) return;
    throw new GatewayError("GW_LOG_UNAVAILABLE", `${what}: there is no connection to NATS.`);
  }

  /** Repeats what has no answer, over a restart or a change of leader: only what may be done twice. */
  insist<T>(signal: AbortSignal, what: string, work: () => Promise<T>): Promise<T> {
    return insist(this.#insistMs, async () => {
      signal.throwIfAborted();
      try {
        return await work();
      } catch (error) {
        throw natsError(error, what);
      }
    });
  }
}

export const digestOf = (bytes: Buffer): string => `SHA-256=${base64Url(createHash("sha256").update(bytes).digest())}`;

/** With padding, as the layout has it; Node's own has none. */
const base64Url = (bytes: Buffer): string => bytes.toString("base64").replaceAll("+", "-").replaceAll("/", "_");

const faultsOf = (config: StreamConfig, replicas: number): string[] => [
  ...(config.storage === StorageType.File ? [] : ["it is kept in memory"]),
  ...(config.max_age === 0 ? [] : ["its objects expire"]),
  ...(config.sealed ? ["it is sealed"] : []),
  ...(config.discard === "new" ? [] : ["it drops the oldest when it is full"]),
  ...(config.num_replicas >= replicas ? [] : [`it has ${config.num_replicas} replicas, ${replicas} are wanted`]),
];

function descriptionIn(message: StoredMsg): Description | null {
  try {
    const found = message.json<Description>();
    const isSound =
      [found.name, found.nuid, found.digest, found.mtime].every((it) => typeof it === "string") &&
      [found.size, found.chunks].every((it) => Number.isSafeInteger(it) && it >= 0);
    return isSound ? found : null;
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
