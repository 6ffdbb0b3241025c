// Digests beside the log on NATS: a stream of batches, found by the positions they speak of.
//
// A batch goes to the subject of the 64 records its positions belong to, `gw.<service>.digests.<upper>.<lower>`: replicas that replay
// append rows of old positions long after those of new ones, so the place in the stream says nothing. When the stream is full the
// oldest batches go (`discard: old`): digests only vouch, and what vouches must never be what stops the service.

import {
  api,
  apiCode,
  createStream,
  findStream,
  fitStream,
  insist,
  insistMs,
  natsError,
  publish,
  streamName,
  streamSubject,
  whileConnected,
} from "../drivers/nats.ts";
import type { Nats, StreamPlan } from "../drivers/nats.ts";
import { sequenceOf } from "../entry.ts";
import { GatewayError } from "../errors.ts";
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
  const found = await findStream(nats, name);
  await (found === null ? createStream(nats, plan) : fitStream(nats, found, plan));
  return new JetStreamDigests(nats, name, subject);
}

/** Records a subject; small enough that all rows of one fit into memory to be sorted. */
const bucketRecords = 64;
const bucketsAGroup = 256;
const bucketOf = (position: number): number => Math.floor(sequenceOf(position) / bucketRecords);
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
    const buckets = new Map<number, DigestRow[]>();
    for (const row of rows) {
      const bucket = bucketOf(row.position);
      const known = buckets.get(bucket);
      if (known === undefined) buckets.set(bucket, [row]);
      else known.push(row);
    }
    for (const [bucket, all] of buckets) {
      for (let at = 0; at < all.length; at += batchRowsMax) {
        const batch = encodeBatch(all.slice(at, at + batchRowsMax));
        await insist(insistMs, () => publish(this.#nats, this.#name, this.#subjectOf(bucket), batch));
      }
    }
  }

  async *read(from: number, to: number): AsyncGenerator<DigestRow> {
    for (const bucket of await this.#bucketsOf(bucketOf(from), bucketOf(to))) {
      yield* (await this.#bucket(bucket)).filter(({ position }) => position >= from && position <= to);
    }
  }

  /** In order; those without rows may be among them. */
  async #bucketsOf(first: number, last: number): Promise<number[]> {
    if (last - first < bucketsUnlistedMax) {
      return Array.from({ length: Math.max(0, last - first + 1) }, (_, index) => first + index);
    }
    return (await this.#buckets()).filter((bucket) => bucket >= first && bucket <= last);
  }

  /** All rows of a bucket, sorted, each once. */
  async #bucket(bucket: number): Promise<DigestRow[]> {
    const subject = this.#subjectOf(bucket);
    const rows = new Map<string, DigestRow>();
    // Ends after the last batch of the subject.
    for (let seq = 1; ; seq++) {
      const batch = await insist(insistMs, () => this.#nextBatch(subject, seq));
      if (batch === null) break;
      for (const row of decodeBatch(this.#name, batch.bytes)) rows.set(keyOf(row), row); // an append repeated is one row
      seq = batch.sequence;
    }
    return [...rows.values()].sort((a, b) => a.position - b.position);
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

const keyOf = (row: DigestRow): string =>
  [row.position, row.replica, row.epoch, row.incarnation, row.rules, row.digest, row.isFirstSend].join("\n");

// A batch: format (1 byte), bytes of the table (4), the table (JSON: strings), then rows of 35 bytes: position (double), five
// indexes into the table (2 each: replica, epoch, incarnation, version, rules), digest (16), first send (1).
const format = 1;
const headBytes = 5;
const rowBytes = 35;

function encodeBatch(rows: readonly DigestRow[]): Buffer {
  const table = new Map<string, number>();
  const indexOf = (text: string): number => {
    const index = table.get(text) ?? table.size;
    table.set(text, index);
    return index;
  };
  const body = Buffer.alloc(rows.length * rowBytes);
  rows.forEach((row, index) => {
    let at = body.writeDoubleLE(row.position, index * rowBytes);
    for (const text of [row.replica, row.epoch, row.incarnation, row.backendVersion, row.rules]) {
      at = body.writeUInt16LE(indexOf(text), at);
    }
    if (body.write(row.digest, at, 16, "hex") !== 16) {
      throw new GatewayError("GW_INTERNAL", `${row.digest} is no digest of 32 hex digits.`);
    }
    body.writeUInt8(row.isFirstSend ? 1 : 0, at + 16);
  });
  const strings = Buffer.from(JSON.stringify([...table.keys()]));
  const head = Buffer.alloc(headBytes);
  head.writeUInt8(format, 0);
  head.writeUInt32LE(strings.length, 1);
  return Buffer.concat([head, strings, body]);
}

function decodeBatch(name: string, batch: Buffer): DigestRow[] {
  if (batch.length < headBytes || batch.readUInt8(0) !== format) {
    throw new GatewayError("GW_LOG_CORRUPT", `A batch of ${name} is of an unknown format.`);
  }
  const from = headBytes + batch.readUInt32LE(1);
  const strings = JSON.parse(batch.toString("utf8", headBytes, from)) as string[];
  const text = (at: number): string => strings[batch.readUInt16LE(at)] ?? "";
  const rows: DigestRow[] = [];
  for (let at = from; at + rowBytes <= batch.length; at += rowBytes) {
    rows.push({
      position: batch.readDoubleLE(at),
      replica: text(at + 8),
      epoch: text(at + 10),
      incarnation: text(at + 12),
      backendVersion: text(at + 14),
      rules: text(at + 16),
      digest: batch.toString("hex", at + 18, at + 34),
      isFirstSend: batch.readUInt8(at + 34) === 1,
    });
  }
  return rows;
}
