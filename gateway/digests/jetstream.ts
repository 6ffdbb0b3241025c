// Digests beside the log on NATS: a stream of batches, found by the positions they speak of.
//
// A batch goes to the subject of its bucket, `gw.<service>.digests.<upper>.<lower>`. When the stream is full the oldest batches go
// (`discard: old`): digests only vouch, and what vouches must never be what stops the service.

import {
  api,
  apiCode,
  ensureStream,
  insist,
  insistMs,
  natsError,
  publish,
  streamName,
  streamSubject,
  whileConnected,
} from "../drivers/nats.ts";
import type { Nats, StreamPlan } from "../drivers/nats.ts";
import { GatewayError } from "../errors.ts";
import { batchesOf, bucketOf, rowsOf } from "./batch.ts";
import type { DigestRow, Digests } from "./digests.ts";

export interface JetStreamDigestsOptions {
  /** Opened and closed by the caller. */
  readonly nats: Nats;
  readonly service: string;
  /** As the log's. */
  readonly replicas: number;
  readonly maxBytes: number;
}

/** Makes the stream if there is none. Rejects with GW_LOG_CONFIGURATION, GW_LOG_UNAVAILABLE. */
export async function openJetStreamDigests(options: JetStreamDigestsOptions): Promise<Digests> {
  const { nats, service } = options;
  const name = `${streamName(service)}_DIGESTS`;
  const subject = `${streamSubject(service)}.digests`;
  const plan: StreamPlan = {
    name,
    subjects: [`${subject}.>`],
    replicas: options.replicas,
    maxBytes: options.maxBytes,
    discard: "old",
    isDirect: true, // a row that a lagging server lacks is "unverified", which is allowed
    metadata: {},
  };
  await ensureStream(nats, plan);
  return new JetStreamDigests(nats, name, subject);
}

const bucketsAGroup = 256;
/** 35 bytes each: a batch stays well below any max_payload in use. */
const batchRowsMax = 1024;
/** Above so many buckets it is cheaper to ask which of them exist. */
const bucketsUnlistedMax = 32;

class JetStreamDigests implements Digests {
  readonly #nats: Nats;
  readonly #name: string;
  readonly #subject: string;
  #isClosed = false;

  constructor(nats: Nats, name: string, subject: string) {
    this.#nats = nats;
    this.#name = name;
    this.#subject = subject;
  }

  async append(rows: readonly DigestRow[]): Promise<void> {
    this.#checkOpen();
    for (const { bucket, bytes } of batchesOf(rows, batchRowsMax)) {
      await insist(insistMs, () => publish(this.#nats, this.#name, this.#subjectOf(bucket), bytes));
    }
  }

  async *read(from: number, to: number): AsyncGenerator<DigestRow> {
    for (const bucket of await this.#bucketsOf(bucketOf(from), bucketOf(to))) {
      yield* rowsOf(this.#name, await this.#batches(bucket), from, to);
    }
  }

  /** In order; those without rows may be among them. */
  async #bucketsOf(first: number, last: number): Promise<number[]> {
    if (last - first < bucketsUnlistedMax) {
      return Array.from({ length: Math.max(0, last - first + 1) }, (_, index) => first + index);
    }
    return (await this.#buckets()).filter((bucket) => bucket >= first && bucket <= last);
  }

  /** All of a bucket, in the order they were appended. */
  async #batches(bucket: number): Promise<Buffer[]> {
    const subject = this.#subjectOf(bucket);
    const batches: Buffer[] = [];
    // Ends after the last batch of the subject.
    for (let seq = 1; ; seq++) {
      const batch = await insist(insistMs, () => this.#nextBatch(subject, seq));
      if (batch === null) return batches;
      batches.push(batch.bytes);
      seq = batch.sequence;
    }
  }

  async #nextBatch(subject: string, seq: number): Promise<{ sequence: number; bytes: Buffer } | null> {
    this.#checkOpen();
    try {
      const query = { seq, next_by_subj: subject };
      const message = await whileConnected(this.#nats, this.#nats.manager.direct.getMessage(this.#name, query));
      return message === null ? null : { sequence: message.seq, bytes: Buffer.from(message.data) };
    } catch (error) {
      if (apiCode(error) === api.noMessage) return null;
      throw natsError(error, `Reading ${this.#name}`);
    }
  }

  async #buckets(): Promise<number[]> {
    const subjects = await insist(insistMs, () => this.#subjects());
    return subjects
      .map((subject) => subject.split(".").slice(-2).map(Number))
      .map(([upper = 0, lower = 0]) => upper * bucketsAGroup + lower)
      .sort((a, b) => a - b);
  }

  async #subjects(): Promise<string[]> {
    this.#checkOpen();
    try {
      const { state } = await this.#nats.manager.streams.info(this.#name, { subjects_filter: `${this.#subject}.>` });
      return Object.keys(state.subjects ?? {});
    } catch (error) {
      throw natsError(error, `Listing ${this.#name}`);
    }
  }

  /** Whole buckets: up to 64 records below the position keep their rows until the next time. */
  async truncate(firstPosition: number): Promise<void> {
    const first = bucketOf(firstPosition);
    const firstGroup = Math.floor(first / bucketsAGroup);
    const filters = new Set<string>();
    for (const bucket of (await this.#buckets()).filter((bucket) => bucket < first)) {
      const group = Math.floor(bucket / bucketsAGroup);
      filters.add(group < firstGroup ? `${this.#subject}.${group}.*` : this.#subjectOf(bucket));
    }
    try {
      for (const filter of filters) await this.#nats.manager.streams.purge(this.#name, { filter });
    } catch (error) {
      throw natsError(error, `Truncating ${this.#name}`);
    }
  }

  #subjectOf(bucket: number): string {
    return `${this.#subject}.${Math.floor(bucket / bucketsAGroup)}.${bucket % bucketsAGroup}`;
  }

  #checkOpen(): void {
    if (this.#isClosed) throw new GatewayError("GW_STOPPING", `The digests in ${this.#name} are closed.`);
  }

  async close(): Promise<void> {
    this.#isClosed = true;
  }
}
