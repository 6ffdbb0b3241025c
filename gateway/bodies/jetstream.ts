// Bodies beside the log on NATS: a stream of chunks with the log's replicas and storage, and one marker for each body.
//
// Subjects: `gw.<service>.bodies.chunk.<upload>` holds the chunks of one put, `…ref.<sha256>` its marker, which names the chunks by
// their sequences. The last marker of a body decides. Putting it again adds a marker; sweeping adds a tombstone. Both are stored
// only if the last marker is the one that was looked at (compare and set), so of a put and a sweep that meet one learns that it lost.

import { createHash, randomBytes } from "node:crypto";

import { systemClock } from "../clock.ts";
import type { Clock } from "../clock.ts";
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
import type { BodyRef } from "../entry.ts";
import { GatewayError } from "../errors.ts";
import { bodyTooLarge, bodyUnreadable, chunkBytes, chunked } from "./bodies.ts";
import type { Bodies } from "./bodies.ts";

export interface JetStreamBodiesOptions {
  /** Opened and closed by the caller. */
  readonly nats: Nats;
  readonly service: string;
  /** As the log's. */
  readonly replicas: number;
  readonly maxBytes: number;
  readonly clock?: Clock;
}

/** Makes the stream if there is none. Rejects with GW_LOG_CONFIGURATION, GW_LOG_UNAVAILABLE. */
export async function openJetStreamBodies(options: JetStreamBodiesOptions): Promise<Bodies> {
  const { nats, service } = options;
  const name = `${streamName(service)}_BODIES`;
  const subject = `${streamSubject(service)}.bodies`;
  const plan: StreamPlan = {
    name,
    subjects: [`${subject}.>`],
    replicas: options.replicas,
    maxBytes: options.maxBytes,
    discard: "new",
    isDirect: true, // chunks never change and are verified; what one server lacks is asked of the leader
    metadata: {},
  };
  await ensureStream(nats, plan);
  return new JetStreamBodies(nats, name, subject, options.clock ?? systemClock, options.replicas > 1);
}

interface Marker {
  /** In the stream. */
  readonly sequence: number;
  readonly upload: string;
  /** False: a tombstone. */
  readonly isLive: boolean;
  readonly sizeBytes: number;
  /** Of the chunks, in order. */
  readonly chunks: readonly number[];
  /** Of the last put of these bytes. */
  readonly putMs: number;
}

/** Publishes under way for one put, and chunks asked for ahead of a reader. */
const inFlightMax = 8;
const readAheadMax = 4;
/** A put that pauses longer between two chunks fails, so that chunks of twice that age without a marker are garbage. */
const pauseMaxMs = 30 * 60_000;
const sweepsAtOnce = 16;

class JetStreamBodies implements Bodies {
  readonly #nats: Nats;
  readonly #name: string;
  readonly #subject: string;
  readonly #clock: Clock;
  readonly #isReplicated: boolean;
  #isClosed = false;

  constructor(nats: Nats, name: string, subject: string, clock: Clock, isReplicated: boolean) {
    this.#nats = nats;
    this.#name = name;
    this.#subject = subject;
    this.#clock = clock;
    this.#isReplicated = isReplicated;
  }

  async put(body: AsyncIterable<Buffer>, limitBytes: number): Promise<BodyRef> {
    const upload = randomBytes(12).toString("hex");
    const { ref, chunks } = await this.#store(upload, body, limitBytes).catch(async (error: unknown) => {
      await this.#purge(this.#chunkSubject(upload)).catch(() => {}); // else a sweep does it
      throw error;
    });
    // From here on a marker may name the chunks, also when we never hear of it: only a sweep may remove them.
    const kept = await this.#mark(ref, upload, chunks);
    if (kept !== upload) await this.#purge(this.#chunkSubject(upload)).catch(() => {});
    return ref;
  }

  /** All chunks, each acknowledged. */
  async #store(
    upload: string,
    body: AsyncIterable<Buffer>,
    limitBytes: number,
  ): Promise<{ ref: BodyRef; chunks: number[] }> {
    const hash = createHash("sha256");
    const pending: Promise<number>[] = [];
    const inFlight = new Set<Promise<unknown>>();
    let sizeBytes = 0;
    let at = this.#clock.now();
    for await (const chunk of chunked(body, Math.min(chunkBytes, this.#payloadMax()))) {
      this.#checkOpen();
      const now = this.#clock.now();
      if (now - at > pauseMaxMs) throw new GatewayError("GW_REQUEST_TIMEOUT", "The request's body stopped coming.");
      at = now;
      sizeBytes += chunk.length;
      if (sizeBytes > limitBytes) throw bodyTooLarge(limitBytes);
      hash.update(chunk);
      const stored = insist(insistMs, () => publish(this.#nats, this.#name, this.#chunkSubject(upload), chunk));
      pending.push(stored);
      inFlight.add(stored);
      // The rejection is met by the race or by the wait below, whichever comes first.
      stored.then(
        () => inFlight.delete(stored),
        () => {},
      );
      if (inFlight.size >= inFlightMax) await Promise.race(inFlight);
    }
    const chunks = await Promise.all(pending);
    return { ref: { sha256: hash.digest("hex"), sizeBytes }, chunks };
  }

  #payloadMax(): number {
    return this.#nats.connection.info?.max_payload ?? chunkBytes;
  }

  /** Makes the body readable. Resolves with the upload that holds its chunks: ours, or an earlier one's. */
  #mark({ sha256, sizeBytes }: BodyRef, upload: string, chunks: number[]): Promise<string> {
    const subject = this.#refSubject(sha256);
    return insist(insistMs, async () => {
      // Ends when a marker of ours is the last one, at the latest when everybody else stops putting and sweeping this body.
      for (;;) {
        this.#checkOpen();
        const last = await this.#lastMarker(sha256);
        const base = last?.isLive === true ? last : { upload, chunks };
        const marker = {
          upload: base.upload,
          isLive: true,
          sizeBytes,
          chunks: base.chunks,
          putMs: this.#clock.wallMs(),
        };
        if (await this.#compareAndSet(subject, marker, last?.sequence ?? 0)) return base.upload;
      }
    });
  }

  /** False when another marker came first. */
  async #compareAndSet(subject: string, marker: Omit<Marker, "sequence">, last: number): Promise<boolean> {
    try {
      const sequence = await publish(this.#nats, this.#name, subject, encodeMarker(marker), { expectedLast: last });
      if (last > 0) await this.#purge(subject, sequence).catch(() => {}); // older markers say nothing any more
      return true;
    } catch (error) {
      if (error instanceof GatewayError && error.code === "GW_CONFLICT") return false;
      throw error;
    }
  }

  async *read(ref: BodyRef): AsyncGenerator<Buffer> {
    const marker = await this.#markerOf(ref);
    const hash = createHash("sha256");
    const ahead: Promise<Buffer>[] = [];
    let asked = 0;
    for (let index = 0; index < marker.chunks.length; index++) {
      while (asked < marker.chunks.length && asked < index + readAheadMax)
        ahead.push(this.#chunk(ref, marker, asked++));
      const chunk = await ahead.shift()!;
      hash.update(chunk);
      const isLast = index === marker.chunks.length - 1;
      if (isLast && hash.digest("hex") !== ref.sha256) throw bodyUnreadable(ref, "its bytes have changed");
      yield chunk;
    }
  }

  /** A deposed leader may not know the body yet: believed only when it stays so. */
  async #markerOf(ref: BodyRef): Promise<Marker> {
    const until = performance.now() + (this.#isReplicated ? insistMs : 0);
    // Ends with a marker or when the time is over.
    for (;;) {
      this.#checkOpen();
      const marker = await insist(insistMs, () => this.#lastMarker(ref.sha256));
      if (marker?.isLive === true && marker.sizeBytes === ref.sizeBytes) return marker;
      if (performance.now() > until) throw bodyUnreadable(ref, "it is not there");
      await this.#clock.sleep(200);
    }
  }

  #chunk(ref: BodyRef, { chunks }: Marker, index: number): Promise<Buffer> {
    const chunk = insist(insistMs, async () => {
      this.#checkOpen();
      const seq = chunks[index] ?? 0;
      try {
        const { direct, streams } = this.#nats.manager;
        const near = await whileConnected(this.#nats, direct.getMessage(this.#name, { seq }));
        const message = near ?? (await whileConnected(this.#nats, streams.getMessage(this.#name, { seq })));
        if (message !== null) return Buffer.from(message.data);
      } catch (error) {
        if (apiCode(error) !== api.noMessage) throw natsError(error, `Reading a body from ${this.#name}`);
      }
      throw bodyUnreadable(ref, `chunk ${index} is missing`);
    });
    chunk.catch(() => {}); // asked for ahead: met when its turn comes, or never
    return chunk;
  }

  /** From the leader; null when there is none. */
  async #lastMarker(sha256: string): Promise<Marker | null> {
    try {
      const message = await this.#nats.manager.streams.getMessage(this.#name, {
        last_by_subj: this.#refSubject(sha256),
      });
      return message === null ? null : decodeMarker(message.seq, Buffer.from(message.data));
    } catch (error) {
      if (apiCode(error) === api.noMessage) return null;
      throw natsError(error, `Looking up a body in ${this.#name}`);
    }
  }

  async sweep(kept: ReadonlySet<string>, olderThanMs: number): Promise<number> {
    this.#checkOpen();
    // Uploads first: one that gets its marker while we look is young, because its last chunk is.
    const uploads = await this.#subjects("chunk");
    const bodies = await this.#subjects("ref");
    const referred = new Set<string>();
    let removed = 0;
    await each(bodies, sweepsAtOnce, async (sha256) => {
      const marker = await this.#lastMarker(sha256);
      if (marker === null) return;
      if (marker.isLive && (kept.has(sha256) || marker.putMs >= olderThanMs)) referred.add(marker.upload);
      else if (await this.#remove(sha256, marker)) removed++;
      else referred.add(marker.upload);
    });
    const garbageMs = Math.min(olderThanMs, this.#clock.wallMs() - 2 * pauseMaxMs);
    const unreferred = uploads.filter((upload) => !referred.has(upload));
    await each(unreferred, sweepsAtOnce, (upload) => this.#removeGarbage(upload, garbageMs));
    return removed;
  }

  /** False when somebody put the body again in the meantime. */
  async #remove(sha256: string, marker: Marker): Promise<boolean> {
    const subject = this.#refSubject(sha256);
    if (
      marker.isLive &&
      !(await this.#compareAndSet(subject, { ...marker, isLive: false, chunks: [] }, marker.sequence))
    ) {
      return false;
    }
    // The tombstone goes last: it names the chunks for whoever goes on after a crash.
    await this.#purge(this.#chunkSubject(marker.upload));
    const tombstone = await this.#lastMarker(sha256);
    if (tombstone !== null && !tombstone.isLive) await this.#purge(subject, tombstone.sequence + 1);
    return marker.isLive;
  }

  async #removeGarbage(upload: string, olderThanMs: number): Promise<void> {
    const subject = this.#chunkSubject(upload);
    const last = await this.#nats.manager.streams.getMessage(this.#name, { last_by_subj: subject }).catch(() => null);
    if (last !== null && last.time.getTime() < olderThanMs) await this.#purge(subject);
  }

  /** The last tokens of all subjects of a kind. */
  async #subjects(kind: "chunk" | "ref"): Promise<string[]> {
    try {
      const filter = `${this.#subject}.${kind}.*`;
      const { state } = await this.#nats.manager.streams.info(this.#name, { subjects_filter: filter });
      return Object.keys(state.subjects ?? {}).map((subject) => subject.slice(subject.lastIndexOf(".") + 1));
    } catch (error) {
      throw natsError(error, `Listing ${this.#name}`);
    }
  }

  /** Everything on the subject, or everything before a sequence. */
  async #purge(filter: string, seq?: number): Promise<void> {
    try {
      await this.#nats.manager.streams.purge(this.#name, seq === undefined ? { filter } : { filter, seq });
    } catch (error) {
      throw natsError(error, `Removing a body from ${this.#name}`);
    }
  }

  #chunkSubject(upload: string): string {
    return `${this.#subject}.chunk.${upload}`;
  }

  #refSubject(sha256: string): string {
    return `${this.#subject}.ref.${sha256}`;
  }

  #checkOpen(): void {
    if (this.#isClosed) throw new GatewayError("GW_STOPPING", `The bodies in ${this.#name} are closed.`);
  }

  async close(): Promise<void> {
    this.#isClosed = true;
  }
}

/** Sequences as differences: two bytes a chunk instead of eleven, so a marker of 8 GiB fits into a message. */
function encodeMarker({ upload, isLive, sizeBytes, chunks, putMs }: Omit<Marker, "sequence">): Buffer {
  const steps = chunks.map((sequence, index) => sequence - (chunks[index - 1] ?? 0));
  return Buffer.from(JSON.stringify({ format: 1, upload, isLive, sizeBytes, putMs, steps }));
}

function decodeMarker(sequence: number, bytes: Buffer): Marker {
  const { steps, ...marker } = JSON.parse(bytes.toString()) as Marker & { steps: number[] };
  let at = 0;
  return { ...marker, sequence, chunks: steps.map((step) => (at += step)) };
}

/** Ends when all are done; so many at a time. */
async function each<T>(all: readonly T[], atOnce: number, work: (one: T) => Promise<void>): Promise<void> {
  const left = all.values();
  const worker = async (): Promise<void> => {
    for (const one of left) await work(one);
  };
  await Promise.all(Array.from({ length: Math.min(atOnce, all.length) }, worker));
}
