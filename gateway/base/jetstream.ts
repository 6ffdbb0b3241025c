// The base beside the log on NATS: a stream of chunks with the log's replicas and storage, and one marker that names those of the base.
//
// Subjects: `gw.<service>.base.chunk.<upload>` holds the chunks of one save, `…ref.current` the marker. A saver first puts its name into
// the marker and in the end its chunks, both only if the marker is the one it saw last (compare and set). So of two savers one learns that
// it lost, and whoever has put its name there may remove all chunks but the base's. Not @nats-io/obj: its `get` holds a whole object in
// memory when the reader is slow, and its names are read without any order between servers.

import { randomBytes } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import type { StoredMsg } from "@nats-io/jetstream";
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
import type { KeyRow } from "../state/store.ts";
import type { Base, Bases } from "./base.ts";
import { damagedBase, encodeBase, keysOfBase, refuseOlder, verifyBase } from "./stored.ts";
import type { VerifiedBase } from "./stored.ts";

export interface JetStreamBasesOptions {
  /** Opened and closed by the caller. */
  readonly nats: Nats;
  readonly service: string;
  /** As the log's. */
  readonly replicas: number;
  /** Two bases have room in it. */
  readonly maxBytes: number;
}

/** Makes the stream if there is none. Rejects with GW_LOG_CONFIGURATION, GW_LOG_UNAVAILABLE. */
export async function openJetStreamBases(options: JetStreamBasesOptions): Promise<Bases> {
  const { nats, service, replicas, maxBytes } = options;
  const name = `${streamName(service)}_BASE`;
  const subject = `${streamSubject(service)}.base`;
  const plan: StreamPlan = {
    name,
    subjects: [`${subject}.>`],
    replicas,
    maxBytes,
    discard: "new",
    isDirect: true, // chunks never change and are verified; what one server lacks is asked of the leader
    metadata: {},
  };
  await ensureStream(nats, plan);
  return new JetStreamBases(nats, name, subject, replicas > 1);
}

interface Stored {
  readonly upload: string;
  /** Record that it is the state of. */
  readonly record: number;
  /** Of the chunks in the stream, in order. */
  readonly chunks: readonly number[];
}

interface Marker {
  /** Null: none was saved yet. */
  readonly base: Stored | null;
  /** Upload of the newest saver. */
  readonly saver: string;
}
interface StoredMarker extends Marker {
  /** In the stream. */
  readonly sequence: number;
}

const chunkBytes = 256 * 1024;
/** Publishes under way for one save, and chunks asked for ahead of a reader. */
const inFlightMax = 8;
const readAheadMax = 4;
/** A deposed leader may lack a chunk: what is missing with several replicas is believed only when it stays so. */
const confirmMs = 10_000;

class JetStreamBases implements Bases {
  readonly #nats: Nats;
  readonly #name: string;
  readonly #subject: string;
  readonly #isReplicated: boolean;
  readonly #place: string;
  #isClosed = false;

  constructor(nats: Nats, name: string, subject: string, isReplicated: boolean) {
    this.#nats = nats;
    this.#name = name;
    this.#subject = subject;
    this.#isReplicated = isReplicated;
    this.#place = `the base in stream ${name}`;
  }

  async save(base: Base): Promise<void> {
    const upload = randomBytes(12).toString("hex");
    const before = await this.#newestMarker();
    const former = before?.base ?? null;
    refuseOlder(base, former?.record ?? null);
    const mine = await this.#set({ base: former, saver: upload }, before?.sequence ?? 0);
    // Of savers that a crash cut off, or that will learn that they lost.
    for (const other of await this.#uploads())
      if (other !== former?.upload) await this.#purge(this.#chunkSubject(other));
    try {
      const chunks = await this.#store(upload, base);
      await this.#set({ base: { upload, record: base.head.sequence, chunks }, saver: upload }, mine);
    } catch (error) {
      // The marker may name the chunks by now, also when we never heard of it.
      const now = await this.#newestMarker().catch(() => "unknown" as const);
      if (now !== "unknown" && now?.base?.upload !== upload)
        await this.#purge(this.#chunkSubject(upload)).catch(() => {}); // else the next saver does it
      throw error;
    }
    if (former !== null) await this.#purge(this.#chunkSubject(former.upload)).catch(() => {});
  }

  /** All chunks, each acknowledged. */
  async #store(upload: string, base: Base): Promise<number[]> {
    const subject = this.#chunkSubject(upload);
    const stored: Promise<number>[] = [];
    const inFlight = new Set<Promise<unknown>>();
    for await (const chunk of chunked(encodeBase(base), Math.min(chunkBytes, this.#payloadMax()))) {
      this.#checkOpen();
      const publishing = insist(insistMs, () => publish(this.#nats, this.#name, subject, chunk));
      stored.push(publishing);
      inFlight.add(publishing);
      // The rejection is met by the race or by the wait below, whichever comes first.
      publishing.then(
        () => inFlight.delete(publishing),
        () => {},
      );
      if (inFlight.size >= inFlightMax) await Promise.race(inFlight);
    }
    return Promise.all(stored);
  }

  #payloadMax(): number {
    return this.#nats.connection.info?.max_payload ?? chunkBytes;
  }

  /** Resolves with the marker's sequence. Rejects with GW_CONFLICT when another one came first. */
  #set(marker: Marker, last: number): Promise<number> {
    const subject = this.#markerSubject();
    return insist(insistMs, async () => {
      this.#checkOpen();
      let sequence: number;
      try {
        sequence = await publish(this.#nats, this.#name, subject, encodeMarker(marker), { expectedLast: last });
      } catch (error) {
        if (!(error instanceof GatewayError) || error.code !== "GW_CONFLICT") throw error;
        // An earlier try of ours may have been stored although we never heard of it.
        const now = await this.#newestMarker();
        if (now === null || !encodeMarker(now).equals(encodeMarker(marker)))
          throw new GatewayError("GW_CONFLICT", `another gateway saves a base to ${this.#name}`, { cause: error });
        sequence = now.sequence;
      }
      if (last > 0) await this.#purge(subject, sequence).catch(() => {}); // older markers say nothing any more
      return sequence;
    });
  }

  async load(): Promise<Base | null> {
    // Ends with a base that was not replaced while it was read, or with the fault of one that was not.
    for (;;) {
      const stored = (await this.#newestMarker())?.base ?? null;
      if (stored === null) return null;
      try {
        const verified = await verifyBase(this.#pieces(stored), this.#place);
        return { head: verified.head, skips: verified.skips, keys: this.#keys(stored, verified) };
      } catch (error) {
        if (!(await this.#isReplaced(stored))) throw error;
      }
    }
  }

  async *#keys(stored: Stored, verified: VerifiedBase): AsyncGenerator<KeyRow> {
    try {
      yield* keysOfBase(this.#pieces(stored), verified, this.#place);
    } catch (error) {
      if (!(await this.#isReplaced(stored))) throw error;
      throw new GatewayError("GW_LOG_UNAVAILABLE", `${this.#place} was replaced by a newer one while it was read`, {
        cause: error,
      });
    }
  }

  async #isReplaced(stored: Stored): Promise<boolean> {
    return (await this.#newestMarker())?.base?.upload !== stored.upload;
  }

  async *#pieces({ chunks }: Stored): AsyncGenerator<Buffer> {
    const ahead: Promise<Buffer>[] = [];
    let asked = 0;
    for (let index = 0; index < chunks.length; index++) {
      while (asked < chunks.length && asked < index + readAheadMax) ahead.push(this.#chunk(chunks[asked++] as number));
      yield await (ahead.shift() as Promise<Buffer>);
    }
  }

  #chunk(seq: number): Promise<Buffer> {
    const until = performance.now() + (this.#isReplicated ? confirmMs : 0);
    const chunk = insist(insistMs, async () => {
      this.#checkOpen();
      try {
        const { direct, streams } = this.#nats.manager;
        const near = await whileConnected(this.#nats, direct.getMessage(this.#name, { seq }));
        const message = near ?? (await whileConnected(this.#nats, streams.getMessage(this.#name, { seq })));
        if (message !== null) return Buffer.from(message.data);
      } catch (error) {
        if (apiCode(error) !== api.noMessage) throw natsError(error, `Reading ${this.#name}`);
      }
      if (performance.now() > until) throw damagedBase(this.#place, `its chunk at ${seq} is missing`);
      throw new GatewayError("GW_LOG_UNAVAILABLE", `Only servers without a chunk answered for ${this.#place}.`);
    });
    chunk.catch(() => {}); // asked for ahead: met when its turn comes, or never
    return chunk;
  }

  /**
   * As it was when the call began, or newer. With several replicas a deposed leader may answer: believed is only who knows our fence, and
   * with it all that was stored before it. */
  async #newestMarker(): Promise<StoredMarker | null> {
    this.#checkOpen();
    if (!this.#isReplicated) {
      const message = await insist(insistMs, () => this.#get({ last_by_subj: this.#markerSubject() }));
      return message === null ? null : decodeMarker(message);
    }
    const subject = `${this.#subject}.ref.fence`;
    const fence = await insist(insistMs, () => publish(this.#nats, this.#name, subject, new Uint8Array()));
    if (fence > 1) await this.#purge(subject, fence).catch(() => {}); // a purge of all before 1 is one of all (2.10.27)
    const until = performance.now() + insistMs;
    let marker: StoredMarker | null = null;
    // Ends at our fence, or when the time is over.
    for (let at = 0; performance.now() < until;) {
      const seq = at + 1;
      const next = await insist(insistMs, () => this.#get({ seq, next_by_subj: `${this.#subject}.ref.*` }));
      if (next === null) {
        await sleep(20);
        continue;
      }
      at = next.seq;
      if (next.subject === this.#markerSubject()) marker = decodeMarker(next);
      else if (at >= fence) return marker;
    }
    throw new GatewayError("GW_LOG_UNAVAILABLE", `Only outdated servers answered for ${this.#place}.`);
  }

  async #get(query: { last_by_subj: string } | { seq: number; next_by_subj: string }): Promise<StoredMsg | null> {
    this.#checkOpen();
    try {
      return await whileConnected(this.#nats, this.#nats.manager.streams.getMessage(this.#name, query));
    } catch (error) {
      if (apiCode(error) === api.noMessage) return null;
      throw natsError(error, `Looking up ${this.#place}`);
    }
  }

  /** Of all chunks in the stream. */
  async #uploads(): Promise<string[]> {
    const filter = `${this.#subject}.chunk.*`;
    try {
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
      throw natsError(error, `Removing a former base from ${this.#name}`);
    }
  }

  #chunkSubject(upload: string): string {
    return `${this.#subject}.chunk.${upload}`;
  }

  #markerSubject(): string {
    return `${this.#subject}.ref.current`;
  }

  #checkOpen(): void {
    if (this.#isClosed) throw new GatewayError("GW_STOPPING", `The base in ${this.#name} is closed.`);
  }

  async close(): Promise<void> {
    this.#isClosed = true;
  }
}

/** Pieces of exactly `bytes` but for the last. */
async function* chunked(pieces: AsyncIterable<Buffer>, bytes: number): AsyncGenerator<Buffer> {
  let rest: Buffer = Buffer.alloc(0);
  for await (const piece of pieces) {
    const all = Buffer.concat([rest, piece]);
    let at = 0;
    for (; at + bytes <= all.length; at += bytes) yield all.subarray(at, at + bytes);
    rest = all.subarray(at);
  }
  if (rest.length > 0) yield rest;
}

/** Sequences as differences: a few bytes a chunk. */
function encodeMarker({ base, saver }: Marker): Buffer {
  const stored =
    base === null
      ? null
      : { ...base, chunks: undefined, steps: base.chunks.map((seq, index) => seq - (base.chunks[index - 1] ?? 0)) };
  return Buffer.from(JSON.stringify({ format: 1, saver, base: stored }));
}

function decodeMarker({ seq, data }: StoredMsg): StoredMarker {
  const { base, saver } = JSON.parse(Buffer.from(data).toString()) as {
    saver: string;
    base: { upload: string; record: number; steps: number[] } | null;
  };
  if (base === null) return { base, saver, sequence: seq };
  let at = 0;
  const { upload, record, steps } = base;
  return { base: { upload, record, chunks: steps.map((step) => (at += step)) }, saver, sequence: seq };
}
