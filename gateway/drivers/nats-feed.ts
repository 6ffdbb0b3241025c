// One push consumer of a stream, from one sequence on, until its connection ends: contiguous, bounded, never resumed.
//
// Ours instead of the client's ordered consumer (nats.js 3.4.0), whose heartbeat is 30 s, which goes on by itself after a reconnect
// (the stream must be looked at first), and which answers flow control when a message is queued, not when it was used.

import { AckPolicy, DeliverPolicy, ReplayPolicy } from "@nats-io/jetstream";
import { createInbox, nanos } from "@nats-io/transport-node";
import type { Msg, MsgHdrs, Subscription } from "@nats-io/transport-node";

import type { Nats } from "./nats.ts";

/** The server speaks at least this often … */
const heartbeatMs = 250;
/**
 * … and is taken for gone after this silence. `owing`: a record is known to be stored and has not come, so somebody waits for it. The
 * consumer lives on one server of a cluster: when that one dies, the stream goes on and only we hear nothing more.
 */
const silenceMs = { idle: 2_500, owing: 600 };
const checkMs = 100;

export interface Fed {
  readonly sequence: number;
  readonly bytes: Buffer;
}

export class JetStreamFeed {
  readonly #nats: Nats;
  readonly #stream: string;
  readonly #name: string;
  readonly #onRecord: (sequence: number) => void;
  readonly #known: () => number;
  readonly #unlisten: () => void;
  readonly #timer: NodeJS.Timeout;
  #subscription: Subscription | null = null;
  /** Received and not handed out. Bounded by flow control: the server sends on when we answer, and we answer when it is empty. */
  #queue: Fed[] = [];
  #at = 0;
  #next: number;
  /** Of the consumer's own count: tells a message lost on the way from one missing in the stream. */
  #delivered = 0;
  #flowControl: Msg | null = null;
  #heardAt = performance.now();
  #silentChecks = 0;
  #hasEnded = false;
  #isGap = false;
  #wake: (() => void) | null = null;

  /** Resolves when the consumer exists. Rejects with the driver's error. `known`: the highest sequence that the stream is known to hold. */
  static async open(
    nats: Nats,
    stream: string,
    from: number,
    onRecord: (sequence: number) => void,
    known: () => number,
  ): Promise<JetStreamFeed> {
    const inbox = createInbox();
    const feed = new JetStreamFeed(nats, stream, from, onRecord, known, inbox);
    try {
      feed.#subscription = nats.connection.subscribe(inbox, {
        callback: (error, message) => feed.#receive(error, message),
      });
      await nats.hastyManager.consumers.add(stream, {
        name: feed.#name,
        deliver_subject: inbox,
        deliver_policy: DeliverPolicy.StartSequence,
        opt_start_seq: Math.max(from, 1),
        replay_policy: ReplayPolicy.Instant,
        ack_policy: AckPolicy.None,
        flow_control: true,
        idle_heartbeat: nanos(heartbeatMs),
        inactive_threshold: nanos(10_000),
        mem_storage: true,
        num_replicas: 1,
      });
      return feed;
    } catch (error) {
      feed.close();
      throw error;
    }
  }

  private constructor(
    nats: Nats,
    stream: string,
    from: number,
    onRecord: (sequence: number) => void,
    known: () => number,
    inbox: string,
  ) {
    this.#known = known;
    this.#nats = nats;
    this.#stream = stream;
    this.#name = `gw_${inbox.slice(inbox.lastIndexOf(".") + 1)}`;
    this.#next = from;
    this.#onRecord = onRecord;
    this.#unlisten = nats.onConnected((isConnected) => {
      if (!isConnected) this.#endNow();
    });
    this.#timer = setInterval(() => this.#checkSilence(), checkMs);
  }

  /** The next record, if one is here. */
  shift(): Fed | undefined {
    const record = this.#queue[this.#at];
    if (record !== undefined) {
      this.#at++;
      return record;
    }
    if (this.#at > 0) {
      this.#queue = [];
      this.#at = 0;
    }
    this.#flowControl?.respond();
    this.#flowControl = null;
    return undefined;
  }

  /** Nothing more will come; what is here may still be taken. */
  hasEnded(): boolean {
    return this.#hasEnded;
  }

  /** It ended because the stream no longer has the next record. */
  isGap(): boolean {
    return this.#isGap;
  }

  /** Resolves when there is something new to see, or `wake` was called. */
  changed(): Promise<void> {
    return new Promise((resolve) => {
      this.#wake = (): void => {
        this.#wake = null;
        resolve();
      };
    });
  }

  wake(): void {
    this.#wake?.();
  }

  close(): void {
    this.#endNow();
    clearInterval(this.#timer);
    this.#unlisten();
    this.#subscription?.unsubscribe();
    if (this.#subscription === null || !this.#nats.isConnected()) return;
    this.#subscription = null;
    // The server drops it by itself ten seconds after the subscription; this only is tidier.
    this.#nats.manager.consumers.delete(this.#stream, this.#name).catch(() => {});
  }

  #receive(error: Error | null, message: Msg): void {
    if (this.#hasEnded) return;
    if (error !== null) return this.#endNow();
    this.#heardAt = performance.now();
    const place = placeOf(message.reply ?? "");
    if (place === null) return this.#control(message);
    this.#delivered++;
    if (place.delivery !== this.#delivered) return this.#endNow(); // one was lost on the way
    if (place.sequence !== this.#next) {
      this.#isGap = true;
      return this.#endNow();
    }
    this.#next++;
    this.#onRecord(place.sequence);
    this.#queue.push({ sequence: place.sequence, bytes: ownBytes(message.data) });
    this.#wake?.();
  }

  /** Everything without a place in the stream: flow control, heartbeats, "consumer deleted", "leadership change". */
  #control(message: Msg): void {
    const headers = message.headers;
    if (headers?.code !== 100) return this.#endNow();
    if (message.reply !== undefined && message.reply !== "") {
      this.#flowControl = message;
      this.#wake?.(); // an empty queue answers at once
      return;
    }
    this.#heartbeat(headers);
  }

  #heartbeat(headers: MsgHdrs): void {
    if (Number(headers.get("Nats-Last-Consumer") || "0") > this.#delivered) return this.#endNow(); // lost on the way
    const stalled = headers.get("Nats-Consumer-Stalled");
    // Our answer to its flow control was lost, or it was never sent to us.
    if (stalled !== "" && this.#flowControl === null && this.#queue.length === 0)
      this.#nats.connection.publish(stalled);
  }

  /** Twice in a row: after a stall of our own, what came meanwhile is read between two checks. */
  #checkSilence(): void {
    const limitMs = this.#known() >= this.#next ? silenceMs.owing : silenceMs.idle;
    this.#silentChecks = performance.now() - this.#heardAt > limitMs ? this.#silentChecks + 1 : 0;
    if (this.#silentChecks >= 2) this.#endNow();
  }

  #endNow(): void {
    this.#hasEnded = true;
    this.#wake?.();
  }
}

/**
 * From the reply subject that JetStream gives each message: `$JS.ACK.<stream>.<consumer>.<tries>.<stream seq>.<consumer seq>.<time>.<pending>`,
 * or with domain and account hash after ACK and a random token at the end. Null for what is no message of the stream.
 */
export function placeOf(reply: string): { sequence: number; delivery: number } | null {
  if (!reply.startsWith("$JS.ACK.")) return null;
  const tokens = reply.split(".");
  const at = tokens.length === 9 ? 5 : tokens.length >= 11 ? 7 : -1;
  const sequence = Number(tokens[at]);
  const delivery = Number(tokens[at + 1]);
  return Number.isSafeInteger(sequence) && Number.isSafeInteger(delivery) ? { sequence, delivery } : null;
}

/** A small message is a view of the 64 KiB that came from the socket, and would keep it all alive. */
function ownBytes(data: Uint8Array): Buffer {
  if (data.byteLength * 2 < data.buffer.byteLength) return Buffer.from(data);
  return Buffer.from(data.buffer, data.byteOffset, data.byteLength);
}
