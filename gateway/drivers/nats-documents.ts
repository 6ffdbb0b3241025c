// Small documents on NATS, in a bucket that `nats kv` can show: one value a name, compare-and-set by the sequence of its last message.
//
// The bucket is used through the stream's own API, because the KV client cannot do what `load` promises on several servers: a look at
// a value is answered by whoever takes itself for the leader, and a deposed one was stale in most rounds (design section 11). So with
// several replicas `load` first writes a fence beside the value, through the quorum, and believes only an answer that knows the fence.

import { setTimeout as sleep } from "node:timers/promises";
import { DiscardPolicy, RetentionPolicy, StorageType } from "@nats-io/jetstream";
import type { StoredMsg, StreamConfig, StreamInfo } from "@nats-io/jetstream";
import { GatewayError } from "../errors.ts";
import type { Saved } from "../saved.ts";
import { step } from "../steps.ts";
import { api, apiCode, apiTimeoutMs, findStream, natsError } from "./nats.ts";
import type { Nats } from "./nats.ts";

export interface NatsDocumentsOptions {
  /** Opened and closed by the caller. */
  readonly nats: Nats;
  readonly bucket: string;
  readonly replicas: number;
  /** After it a save counts as unknown, and a load as failed. */
  readonly timeoutMs?: number;
  /** Last token of the values' subjects, such as "cursor". */
  readonly leaf: string;
  /** As messages name them: "the cursors". */
  readonly all: string;
  /** Called before a value is sent: a step of steps.ts. */
  readonly stepName: string;
}

export interface StoredBytes {
  readonly bytes: Uint8Array;
  readonly revision: number;
}

/** The stream of the bucket is gone: what was saved in it is lost. */
export class BucketGoneError extends GatewayError {
  constructor(bucket: string, cause: unknown) {
    super("GW_LOG_UNAVAILABLE", `Stream KV_${bucket} is gone.`, { cause });
  }
}

export class NatsDocuments {
  readonly #options: NatsDocumentsOptions;
  readonly #stream: string;
  readonly #prefix: string;
  readonly #timeoutMs: number;
  #isClosed = false;

  private constructor(options: NatsDocumentsOptions) {
    this.#options = options;
    this.#stream = `KV_${options.bucket}`;
    this.#prefix = `$KV.${options.bucket}.`;
    this.#timeoutMs = options.timeoutMs ?? apiTimeoutMs;
  }

  /** Makes the bucket if there is none. Rejects with GW_LOG_CONFIGURATION for one that is not as it must be, and GW_LOG_UNAVAILABLE. */
  static async open(options: NatsDocumentsOptions): Promise<NatsDocuments> {
    const wanted = bucketConfig(options);
    const found = (await findStream(options.nats, wanted.name)) ?? (await makeBucket(options.nats, wanted));
    checkBucket(found.config, wanted, options.all);
    return new NatsDocuments(options);
  }

  /** Null: never saved. Never older than a save that resolved before the call. Rejects with BucketGoneError or GW_LOG_UNAVAILABLE. */
  async load(name: string): Promise<StoredBytes | null> {
    this.#refuseWhenClosed();
    try {
      const message = this.#options.replicas > 1 ? await this.#lastBeyondFence(name) : await this.#last(name);
      return message === null ? null : { bytes: message.data, revision: message.seq };
    } catch (error) {
      if (apiCode(error) === api.streamNotFound) throw new BucketGoneError(this.#options.bucket, error);
      throw natsError(error, `Loading ${name} of ${this.#options.all}`);
    }
  }

  /** Succeeds only if nobody saved since that revision was read; 0: never saved. */
  async save(name: string, bytes: Uint8Array, revision: number): Promise<Saved> {
    this.#refuseWhenClosed();
    step(this.#options.stepName);
    try {
      // Sent once: a second try of the client could meet the first and call a stored value a conflict.
      const ack = await this.#whileConnected(() =>
        this.#options.nats.jetstream.publish(this.#subject(name), bytes, {
          expect: { streamName: this.#stream, lastSubjectSequence: revision },
          timeout: this.#timeoutMs,
          retries: 1,
        }),
      );
      return { kind: "saved", revision: ack.seq };
    } catch (cause) {
      return apiCode(cause) === api.wrongLastSequence ? { kind: "conflict" } : { kind: "unknown", cause };
    }
  }

  async list(): Promise<readonly string[]> {
    this.#refuseWhenClosed();
    const end = `.${this.#options.leaf}`;
    try {
      const filter = { subjects_filter: `${this.#prefix}*${end}` };
      const info = await this.#whileConnected(() => this.#options.nats.manager.streams.info(this.#stream, filter));
      const tokens = Object.keys(info.state.subjects ?? {}).map((subject) =>
        subject.slice(this.#prefix.length, -end.length),
      );
      return tokens.map(nameOf).filter((name) => name !== null);
    } catch (error) {
      throw natsError(error, `Listing ${this.#options.all}`);
    }
  }

  close(): void {
    this.#isClosed = true;
  }

  async #last(name: string): Promise<StoredMsg | null> {
    return await this.#get({ last_by_subj: this.#subject(name) });
  }

  /**
   * The value as it was at the fence or later. Whoever answers with a value that came after the fence, or that the first message after
   * the value is a fence at or beyond ours, had everything before that fence: one answer, one server, one moment.
   */
  async #lastBeyondFence(name: string): Promise<StoredMsg | null> {
    const deadlineMs = performance.now() + this.#timeoutMs;
    const fence = `${this.#prefix}${tokenOf(name)}.fence`;
    const { seq } = await this.#whileConnected(() =>
      this.#options.nats.jetstream.publish(fence, new Uint8Array(), { timeout: this.#timeoutMs, retries: 1 }),
    );
    let last = await this.#last(name);
    // Ends with an answer that knows the fence, or at the deadline.
    while (performance.now() < deadlineMs) {
      // Saved while we asked: behind it there may never be a fence.
      if (last !== null && last.seq > seq) return last;
      const next = await this.#get({ seq: (last?.seq ?? 0) + 1, next_by_subj: `${this.#prefix}${tokenOf(name)}.*` });
      if (next !== null && next.subject === fence && next.seq >= seq) return last;
      if (next !== null && next.subject !== fence) last = next;
      else await sleep(20);
    }
    throw new GatewayError("GW_LOG_UNAVAILABLE", `Only outdated servers answered for ${name} of ${this.#options.all}.`);
  }

  async #get(query: { last_by_subj: string } | { seq: number; next_by_subj: string }): Promise<StoredMsg | null> {
    return await this.#whileConnected(() => this.#options.nats.manager.streams.getMessage(this.#stream, query));
  }

  /**
   * Rejects after the time limit, and at once when the connection is lost: the answer is lost with it, and only the client's own
   * timeout would tell later.
   */
  async #whileConnected<T>(request: () => Promise<T>): Promise<T> {
    const { nats } = this.#options;
    if (!nats.isConnected()) throw lost();
    return await new Promise<T>((resolve, reject) => {
      const unlisten = nats.onConnected((isConnected) => {
        if (!isConnected) reject(lost());
      });
      const timer = setTimeout(() => reject(late()), this.#timeoutMs);
      request()
        .then(resolve, reject)
        .finally(() => {
          clearTimeout(timer);
          unlisten();
        });
    });
  }

  #subject(name: string): string {
    return `${this.#prefix}${tokenOf(name)}.${this.#options.leaf}`;
  }

  #refuseWhenClosed(): void {
    if (this.#isClosed) throw new GatewayError("GW_LOG_UNAVAILABLE", `Closed: ${this.#options.all}.`);
  }
}

/** A name as one token of a subject: letters, digits, "-" and "_" stay, the rest becomes =hh. Distinct names stay distinct. */
function tokenOf(name: string): string {
  return name.replaceAll(/[^A-Za-z0-9_-]/gu, (char) =>
    [...Buffer.from(char)].map((byte) => `=${byte.toString(16).padStart(2, "0")}`).join(""),
  );
}

/** Null for a token that `tokenOf` never makes: a stranger's key in the bucket. */
function nameOf(token: string): string | null {
  try {
    const name = decodeURIComponent(token.replaceAll("=", "%"));
    return tokenOf(name) === token ? name : null;
  } catch {
    return null;
  }
}

const late = (): GatewayError => new GatewayError("GW_LOG_UNAVAILABLE", "NATS did not answer in time.");
const lost = (): GatewayError => new GatewayError("GW_LOG_UNAVAILABLE", "The connection to NATS is lost.");

type BucketConfig = Partial<StreamConfig> & { readonly name: string };

function bucketConfig({ bucket, replicas }: NatsDocumentsOptions): BucketConfig {
  return {
    name: `KV_${bucket}`,
    subjects: [`$KV.${bucket}.>`],
    storage: StorageType.File,
    retention: RetentionPolicy.Limits,
    discard: DiscardPolicy.New,
    num_replicas: replicas,
    max_msgs_per_subject: 1,
    max_msgs: -1,
    max_bytes: -1,
    max_age: 0,
    deny_delete: true,
    deny_purge: true,
    allow_rollup_hdrs: false,
    // A direct get may be answered by a replica that lags.
    allow_direct: false,
  };
}

/** Tries for `apiTimeoutMs` while a cluster has no leader yet; another gateway may be first. */
async function makeBucket(nats: Nats, config: BucketConfig): Promise<StreamInfo> {
  const untilMs = performance.now() + apiTimeoutMs;
  // Ends with a bucket, with a refusal that stays or when the time is over.
  for (;;) {
    try {
      return await nats.manager.streams.add({ ...config });
    } catch (error) {
      const code = apiCode(error);
      const found = code === api.streamNameInUse ? await findStream(nats, config.name) : null;
      if (found !== null) return found;
      if (code === api.subjectsOverlap || code === api.replicasUnsupported || performance.now() > untilMs) {
        throw natsError(error, `Making stream ${config.name}`);
      }
      await sleep(100);
    }
  }
}

function checkBucket(have: StreamConfig, wanted: BucketConfig, all: string): void {
  const fields = Object.entries(wanted) as [keyof StreamConfig, unknown][];
  // What is false or 0 may be left out by the server.
  const faults = fields.filter(
    ([field, want]) => JSON.stringify(have[field] ?? (want === 0 ? 0 : false)) !== JSON.stringify(want),
  );
  if (faults.length === 0) return;
  const list = faults.map(
    ([field, want]) => `${field} is ${JSON.stringify(have[field])} and must be ${JSON.stringify(want)}`,
  );
  throw new GatewayError(
    "GW_LOG_CONFIGURATION",
    `Stream ${wanted.name}, which keeps ${all}, is not as the gateway needs it: ${list.join("; ")}. ` +
      `Mend it with "nats stream edit ${wanted.name}", or make log.nats.replicas agree with it.`,
  );
}
